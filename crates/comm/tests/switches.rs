//! Every way that an operation can take, next to where it becomes another one: each result is
//! checked to the last bit, and one bit that flips in what a rank gives must be found, with its
//! rank and its place.

mod common;

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use comm::switches::{PARTS, one_round};
use comm::{EvenPlan, Group, Op, Settings, Window, World};
use common::{BACKENDS, PATIENCE_MS, settings, with_settings};
use device::{DType, Device, Stream, Tensor};
use layout::Tree;

/// Bits of an element that are one rank's: so the sum of all shows whose is wrong.
const FIELD: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    AllReduce,
    ReduceScatter,
    Reduce,
    AllGather,
    Broadcast,
}

const KINDS: [Kind; 5] =
    [Kind::AllReduce, Kind::ReduceScatter, Kind::Reduce, Kind::AllGather, Kind::Broadcast];

/// A bit that is not as it was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Flip {
    rank: usize,
    element: usize,
    bit: usize,
}

fn value(rank: usize, at: usize, round: usize) -> i64 {
    let mixed = (at as u64 ^ (round as u64) << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48;
    (mixed as i64) << (FIELD * rank)
}

/// The next write of a rank's hook, and whether it is about to happen.
#[derive(Default)]
struct Hook {
    is_armed: AtomicBool,
    target: Mutex<Option<(Tensor, i64)>>,
}

impl Hook {
    /// At the beginning of an operation, when its input is there and nothing of it is sent.
    fn fire(&self) {
        if self.is_armed.swap(false, Ordering::AcqRel)
            && let Some((tensor, value)) = self.target.lock().unwrap().take()
        {
            let stream = tensor.buffer().device().new_stream().unwrap();
            stream.copy_in(&tensor, &[value]).unwrap();
        }
    }
}

struct Rank<'a> {
    stream: Stream,
    group: Group,
    window: Window,
    all: Tensor,
    out: Tensor,
    place: usize,
    ranks: usize,
    hook: &'a Hook,
}

impl Rank<'_> {
    fn new<'a>(world: &World, most: usize, hook: &'a Hook) -> Rank<'a> {
        let device = Device::cpu(1).unwrap();
        let (stream, group) = (device.stream(), world.group(&device).unwrap());
        let window = group.window(8 * most).unwrap();
        let all = window.tensor(0, &[most], DType::I64).unwrap();
        let out = device.zeros(&[most], DType::I64).unwrap();
        let (place, ranks) = (group.place(), world.size());
        Rank { stream, group, window, all, out, place, ranks, hook }
    }

    /// One operation on `len` elements; what of its result is not as it must be. If `flip` is of
    /// this rank it happens.
    fn run(&self, kind: Kind, len: usize, round: usize, flip: Option<Flip>) -> Vec<Flip> {
        let mine: Vec<i64> = (0..len).map(|at| value(self.place, at, round)).collect();
        self.stream.copy_in(&self.all.flat(0..len).unwrap(), &mine).unwrap();
        if let Some(Flip { element, bit, .. }) = flip.filter(|flip| flip.rank == self.place) {
            let target = self.all.flat(element..element + 1).unwrap();
            *self.hook.target.lock().unwrap() = Some((target, mine[element] ^ 1 << bit));
            self.hook.is_armed.store(true, Ordering::Release);
        }
        let plan = EvenPlan::new(&Tree::for_leaves(self.ranks), 0..len, DType::I64);
        let share = |rank: usize| plan.segments()[rank].first().cloned().unwrap_or(0..0);
        let (window, root) = (self.window.clone(), 0);
        let (own, plan_again) = (share(self.place), plan.clone());
        let op = match kind {
            Kind::AllReduce => Op::AllReduce { window, plan: plan_again },
            Kind::ReduceScatter => {
                Op::ReduceScatter { window, plan: plan_again, out: self.out.clone() }
            }
            Kind::Reduce => Op::Reduce { window, plan: plan_again, root, out: None },
            Kind::AllGather => Op::AllGather { window, plan: plan_again },
            Kind::Broadcast => Op::Broadcast { window, root, element_bytes: 8, range: 0..len },
        };
        self.group.run(&self.stream, op).unwrap();
        let all_of = |at| (0..self.ranks).map(|rank| value(rank, at, round)).sum();
        match kind {
            Kind::AllReduce => self.differ(&self.all, 0..len, all_of),
            Kind::ReduceScatter => self.differ(&self.out, own, all_of),
            Kind::Reduce if self.place == root => self.differ(&self.all, 0..len, all_of),
            Kind::Reduce => Vec::new(),
            Kind::AllGather => (0..self.ranks)
                .flat_map(|rank| self.differ(&self.all, share(rank), |at| value(rank, at, round)))
                .collect(),
            Kind::Broadcast => self.differ(&self.all, 0..len, |at| value(root, at, round)),
        }
    }

    fn differ(
        &self,
        of: &Tensor,
        range: Range<usize>,
        expected: impl Fn(usize) -> i64,
    ) -> Vec<Flip> {
        let got = self.stream.to_vec::<i64>(&of.flat(range.clone()).unwrap()).unwrap();
        let wrong =
            range.zip(got).map(|(at, got)| (at, got ^ expected(at))).filter(|(_, x)| *x != 0);
        let found = wrong.map(|(element, bits)| {
            assert_eq!(bits.count_ones(), 1, "more than a bit is wrong: {bits:x} at {element}");
            let bit = bits.trailing_zeros() as usize;
            Flip { rank: bit / FIELD, element, bit }
        });
        found.collect()
    }
}

/// Sizes in elements next to every switch.
fn lens(ranks: usize) -> Vec<usize> {
    let shared = one_round().map(|bytes| bytes / (ranks - 1).max(1));
    let all = one_round().into_iter().chain(PARTS).chain(shared);
    let mut lens: Vec<usize> =
        all.flat_map(|bytes| [bytes / 8 - 1, bytes / 8, bytes / 8 + 1]).collect();
    lens.sort_unstable();
    lens.dedup();
    lens
}

/// Where a bit flips in a run of `rounds`, and in which of them; in what the rank gives, so that it
/// must arrive.
fn flip(kind: Kind, len: usize, ranks: usize, rounds: usize, seed: u64) -> (usize, Flip) {
    let mut state = seed;
    let mut draw = |limit: usize| {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (state >> 33) as usize % limit
    };
    let (round, rank, bit) = (draw(rounds), draw(ranks), draw(FIELD));
    let rank = if kind == Kind::Broadcast { 0 } else { rank };
    let plan = EvenPlan::new(&Tree::for_leaves(ranks), 0..len, DType::I64);
    let given = match kind {
        Kind::AllGather => plan.segments()[rank][0].clone(),
        _ => 0..len,
    };
    let element = given.start + draw(given.len());
    (round, Flip { rank, element, bit: FIELD * rank + bit })
}

/// Runs every kind next to every switch; how many operations it was.
fn every_switch(rounds: usize) -> usize {
    let start = Instant::now();
    let mut operations = 0;
    for (kind, ranks) in BACKENDS.into_iter().flat_map(|kind| [2, 3].map(|ranks| (kind, ranks))) {
        let hooks: Vec<Hook> = (0..ranks).map(|_| Hook::default()).collect();
        let hooks = Arc::new(hooks);
        let lens = lens(ranks);
        let most = lens.iter().max().copied().unwrap();
        let with_hook = |rank: usize| {
            let hooks = Arc::clone(&hooks);
            let disturb: comm::Disturbance = Arc::new(move || hooks[rank].fire());
            Settings { disturb: Some(disturb), ..settings(PATIENCE_MS) }
        };
        let found = with_settings(kind, ranks, with_hook, |world| {
            let rank = Rank::new(&world, most, &hooks[world.rank()]);
            let mut found = Vec::new();
            for (index, (&len, kind)) in
                lens.iter().flat_map(|len| KINDS.map(|kind| (len, kind))).enumerate()
            {
                let (flips_in, flip) = flip(kind, len, ranks, rounds, index as u64);
                for round in 0..rounds {
                    let now = (round == flips_in).then_some(flip);
                    let wrong = rank.run(kind, len, round, now);
                    let is_right = match now {
                        None => wrong.is_empty(),
                        Some(flip) => wrong.is_empty() || wrong == [flip],
                    };
                    assert!(is_right, "{kind:?} of {len}, round {round}: {wrong:?}, sent {now:?}");
                    found.extend(wrong.first().map(|&flip| (index, flip)));
                }
            }
            found
        });
        // Every flip was found by one rank at least.
        let cases = lens.len() * KINDS.len();
        for case in 0..cases {
            let is_found = found.iter().flatten().any(|(index, _)| *index == case);
            assert!(is_found, "{kind}, {ranks} ranks: the flip of case {case} was not found");
        }
        operations += cases * rounds;
        println!("{kind}, {ranks} ranks: {cases} cases, a flipped bit found in each");
    }
    println!("{operations} operations in {:.0} s", start.elapsed().as_secs_f64());
    operations
}

#[test]
fn a_flipped_bit_is_found_next_to_every_switch() {
    every_switch(3);
}

#[test]
#[ignore = "takes many minutes: benches/cpu/transports.sh runs it; a short form runs above"]
fn a_flipped_bit_is_found_among_a_hundred_thousand_operations() {
    assert!(every_switch(350) >= 100_000);
}
