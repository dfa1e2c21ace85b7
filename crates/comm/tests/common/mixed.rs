//! Random operations, the same on every rank, of which every result is checked to the last bit.
#![allow(dead_code)] // Each test binary uses its part.

use std::ops::Range;
use std::sync::Arc;

use comm::{AllToAll, Channel, Control, EvenPlan, Group, Op, P2p, Result, Window, World};
use device::{DType, Device, Stream, Tensor};
use layout::Tree;

/// Numbers without order, from a seed: splitmix64 (Steele, Lea, Flood 2014).
#[derive(Clone)]
pub struct Draw(pub u64);

impl Draw {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Below `limit`, which is not 0.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    pub fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }
}

/// A rank with a group of all and memory for its operations.
pub struct Mixed {
    /// Of one of several at most, since all share their order.
    control: Option<Arc<dyn Control>>,
    stream: Stream,
    group: Group,
    window: Window,
    /// Of the window, and memory apart: `room` elements per rank.
    of_window: Tensor,
    into: Tensor,
    place: usize,
    ranks: usize,
    draw: Draw,
    round: usize,
    /// Elements of an operation, or of one rank's part of it, are among these.
    lens: Vec<usize>,
}

/// The value of a rank at a place in a round: whole numbers, whose sums are exact.
fn value(rank: usize, at: usize, round: usize) -> f32 {
    ((rank * 7 + at * 3 + round * 11) % 1009) as f32
}

impl Mixed {
    /// Every rank has the same `seed` and `lens`.
    pub fn new(world: &World, seed: u64, lens: &[usize], with_control: bool) -> Result<Mixed> {
        let device = Device::cpu(1)?;
        let (stream, group) = (device.stream(), world.group(&device)?);
        let (place, ranks) = (group.place(), world.size());
        let most = lens.iter().max().copied().unwrap_or(1) * ranks;
        let window = group.window(4 * most)?;
        let of_window = window.tensor(0, &[most], DType::F32)?;
        let into = device.zeros(&[most], DType::F32)?;
        let (draw, round, lens) = (Draw(seed), 0, lens.to_vec());
        let control = with_control.then(|| world.control(Channel::Training));
        Ok(Mixed {
            control,
            stream,
            group,
            window,
            of_window,
            into,
            place,
            ranks,
            draw,
            round,
            lens,
        })
    }

    /// The next operation.
    ///
    /// # Panics
    /// A result is not what it must be.
    pub fn step(&mut self) -> Result<()> {
        self.round += 1;
        let (kind, len) = (self.draw.below(10), self.draw.of(&self.lens.clone()));
        let root = self.draw.below(self.ranks);
        match (kind, self.control.clone()) {
            (0, _) => self.all_reduce(len),
            (1, _) => self.reduce_scatter(len),
            (2, _) => self.reduce(len, root),
            (3, _) => self.all_gather(len),
            (4, _) => self.gather(len, root),
            (5, _) => self.broadcast(len, root),
            (6, _) => self.all_to_all(len),
            (7, _) => self.exchange(len),
            (8, Some(control)) => control.barrier(),
            (_, Some(control)) => self.words(&*control, len, root),
            (_, None) => self.run(Op::Barrier),
        }
    }

    fn plan(&self, len: usize) -> EvenPlan {
        EvenPlan::new(&Tree::for_leaves(self.ranks), 0..len, DType::F32)
    }

    /// The first `len` elements of the window.
    fn fill(&self, len: usize) -> Result<()> {
        let values: Vec<f32> = (0..len).map(|at| value(self.place, at, self.round)).collect();
        Ok(self.stream.copy_in(&self.of_window.flat(0..len)?, &values)?)
    }

    fn check(&self, of: &Tensor, range: Range<usize>, expected: impl Fn(usize) -> f32) {
        let got = self.stream.to_vec::<f32>(&of.flat(range.clone()).unwrap()).unwrap();
        for (at, got) in range.zip(got) {
            let expected = expected(at);
            let same = got.to_bits() == expected.to_bits();
            assert!(
                same,
                "a wrong result: rank {}, round {}, element {at} is {got} and must be {expected}",
                self.place, self.round
            );
        }
    }

    fn sum(&self, at: usize) -> f32 {
        (0..self.ranks).map(|rank| value(rank, at, self.round)).sum()
    }

    fn run(&self, op: Op) -> Result<()> {
        self.group.run(&self.stream, op)
    }

    fn all_reduce(&self, len: usize) -> Result<()> {
        self.fill(len)?;
        self.run(Op::AllReduce { window: self.window.clone(), plan: self.plan(len) })?;
        self.check(&self.of_window, 0..len, |at| self.sum(at));
        Ok(())
    }

    fn own(&self, plan: &EvenPlan, rank: usize) -> Range<usize> {
        plan.segments()[rank].first().cloned().unwrap_or(0..0)
    }

    fn reduce_scatter(&self, len: usize) -> Result<()> {
        self.fill(len)?;
        let (window, plan, out) = (self.window.clone(), self.plan(len), self.into.clone());
        let own = self.own(&plan, self.place);
        self.run(Op::ReduceScatter { window, plan, out })?;
        self.check(&self.into, own, |at| self.sum(at));
        Ok(())
    }

    fn reduce(&self, len: usize, root: usize) -> Result<()> {
        self.fill(len)?;
        let (window, plan) = (self.window.clone(), self.plan(len));
        self.run(Op::Reduce { window, plan, root, out: None })?;
        if self.place == root {
            self.check(&self.of_window, 0..len, |at| self.sum(at));
        }
        Ok(())
    }

    fn check_shares(&self, plan: &EvenPlan) {
        for rank in 0..self.ranks {
            let own = self.own(plan, rank);
            self.check(&self.of_window, own, |at| value(rank, at, self.round));
        }
    }

    fn all_gather(&self, len: usize) -> Result<()> {
        self.fill(len)?;
        let (window, plan) = (self.window.clone(), self.plan(len));
        self.run(Op::AllGather { window, plan: plan.clone() })?;
        self.check_shares(&plan);
        Ok(())
    }

    fn gather(&self, len: usize, root: usize) -> Result<()> {
        self.fill(len)?;
        let (window, plan) = (self.window.clone(), self.plan(len));
        self.run(Op::Gather { window, plan: plan.clone(), root, into: None })?;
        if self.place == root {
            self.check_shares(&plan);
        }
        Ok(())
    }

    fn broadcast(&self, len: usize, root: usize) -> Result<()> {
        self.fill(len)?;
        let window = self.window.clone();
        self.run(Op::Broadcast { window, root, element_bytes: 4, range: 0..len })?;
        self.check(&self.of_window, 0..len, |at| value(root, at, self.round));
        Ok(())
    }

    fn part(len: usize, rank: usize) -> Range<usize> {
        rank * len..(rank + 1) * len
    }

    fn all_to_all(&self, len: usize) -> Result<()> {
        self.fill(len * self.ranks)?;
        let parts: Vec<_> = (0..self.ranks).map(|rank| Mixed::part(len, rank)).collect();
        let (from, into) = (self.window.clone(), self.into.clone());
        self.run(Op::AllToAll(AllToAll { from, send: parts.clone(), into, receive: parts }))?;
        for rank in 0..self.ranks {
            let mine = Mixed::part(len, self.place).start;
            let expected = |at| value(rank, mine + at - rank * len, self.round);
            self.check(&self.into, Mixed::part(len, rank), expected);
        }
        Ok(())
    }

    /// Each to the next.
    fn exchange(&self, len: usize) -> Result<()> {
        self.fill(len)?;
        let (to, from) =
            ((self.place + 1) % self.ranks, (self.place + self.ranks - 1) % self.ranks);
        let of = |tensor: &Tensor| tensor.flat(0..len);
        let send = P2p::Send { to, tensor: of(&self.of_window)? };
        let receive = P2p::Receive { from, tensor: of(&self.into)? };
        self.run(Op::Exchange(vec![send, receive]))?;
        self.check(&self.into, 0..len, |at| value(from, at, self.round));
        Ok(())
    }

    /// Small messages of unknown lengths.
    fn words(&self, control: &dyn Control, len: usize, root: usize) -> Result<()> {
        let say = |rank: usize| vec![(rank + self.round) as u8; len * (rank + 1)];
        let said = control.all_gather_bytes(&say(self.place))?;
        assert!(said.iter().enumerate().all(|(rank, said)| *said == say(rank)), "a wrong result");
        let mut bytes = if self.place == root { say(root) } else { Vec::new() };
        control.broadcast_bytes(root, &mut bytes)?;
        assert!(bytes == say(root), "a wrong result");
        let gathered = control.gather_bytes_to(root, &say(self.place))?;
        let is_root = self.place == root;
        let expected = |rank: usize| if is_root { say(rank) } else { Vec::new() };
        assert!(gathered.iter().enumerate().all(|(rank, said)| *said == expected(rank)));
        Ok(())
    }
}

/// Files that this process has open, and its threads.
pub fn held() -> (usize, usize) {
    let count = |path| std::fs::read_dir(path).unwrap().count();
    (count("/proc/self/fd"), count("/proc/self/task"))
}
