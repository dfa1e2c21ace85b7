//! Every operation, on whatever device; the bits of all memory in the end.

use std::ops::Range;

use comm::{
    AllToAll, EvenPlan, Gather, Group, GroupOptions, Op, OrderedReduce, P2p, RedOp, Segments,
    Window, World,
};
use device::{DType, Device, Stream, Tensor};
use half::bf16;
use layout::{Node, Tree};

use crate::common::{PATIENCE_MS, with_ranks};
use crate::job::Rank;

const LEN: usize = 9001;

pub fn child(rank: &Rank) {
    let (world, device) = rank.connect();
    let is_whole = std::env::var("CHILD_WHOLE").is_ok();
    rank.write(&everything(&world, &device, crate::options(), is_whole));
}

/// The results of ranks on the host.
pub fn expected(ranks: usize) -> Vec<Vec<u32>> {
    on_the_host(ranks, false)
}

pub fn expected_of_whole_numbers(ranks: usize) -> Vec<Vec<u32>> {
    on_the_host(ranks, true)
}

fn on_the_host(ranks: usize, is_whole: bool) -> Vec<Vec<u32>> {
    with_ranks("shm", ranks, PATIENCE_MS, |world| {
        let device = Device::cpu(1).unwrap();
        everything(&world, &device, GroupOptions::default(), is_whole)
    })
}

/// A value whose sums depend on their order, or one whose sums do not.
fn value(is_whole: bool, rank: usize, buffer: usize, i: usize) -> f32 {
    let hash =
        (rank * 7 + buffer + 1).wrapping_mul(0x9E37_79B9).wrapping_add(i.wrapping_mul(40_503));
    match is_whole {
        true => (hash % 1000) as f32,
        false => 10_f32.powi((hash >> 7) as i32 % 7 - 3) * ((hash & 0xffff) as f32 - 30_000.5),
    }
}

struct Everything {
    rank: usize,
    ranks: usize,
    device: Device,
    stream: Stream,
    group: Group,
    buffers: Vec<Window>,
    /// All that is compared in the end: the buffers first.
    memory: Vec<Tensor>,
}

fn everything(world: &World, device: &Device, options: GroupOptions, is_whole: bool) -> Vec<u32> {
    let everyone: Vec<usize> = (0..world.size()).collect();
    let group = world.split_with(device, &[everyone], options).unwrap();
    let (rank, ranks, stream) = (world.rank(), world.size(), device.stream());
    let buffers: Vec<Window> = (0..2).map(|_| group.window(4 * LEN).unwrap()).collect();
    let flat = |window: &Window| window.tensor(0, &[LEN], DType::F32).unwrap();
    let memory: Vec<Tensor> = buffers.iter().map(flat).collect();
    for (buffer, tensor) in memory.iter().enumerate() {
        let values: Vec<f32> = (0..LEN).map(|i| value(is_whole, rank, buffer, i)).collect();
        stream.copy_in(tensor, &values).unwrap();
    }
    let device = device.clone();
    let mut all = Everything { rank, ranks, device, stream, group, buffers, memory };
    all.even_operations();
    all.sums_of_leaves();
    all.sums_of_halves(is_whole);
    all.gathers();
    for (root, redop) in [(0, RedOp::Sum), (ranks - 1, RedOp::Max)] {
        all.rooted(root, redop);
    }
    all.personal_operations();
    let bits = |tensor: &Tensor| {
        let values = all.stream.to_vec::<f32>(tensor).unwrap();
        values.iter().map(|x| x.to_bits()).collect::<Vec<u32>>()
    };
    all.memory.iter().flat_map(bits).collect()
}

impl Everything {
    /// New memory that is compared, too.
    fn zeros(&mut self) -> Tensor {
        let tensor = self.device.zeros(&[LEN], DType::F32).unwrap();
        self.memory.push(tensor.clone());
        tensor
    }

    fn run(&self, op: Op) {
        self.group.run(&self.stream, op).unwrap();
    }

    fn even_operations(&mut self) {
        self.run(Op::Barrier);
        for range in [0..LEN - LEN % 12, 11..LEN] {
            let plan = EvenPlan::new(&Tree::for_leaves(self.ranks), range, DType::F32);
            let (window, sum) = (self.buffers[0].clone(), plan.clone());
            let sum = self.group.prepare(Op::AllReduce { window, plan: sum }).unwrap();
            let out = self.zeros();
            // Behind each other, and behind what is on the stream, which goes on after them.
            let pending = [(), ()].map(|()| self.group.submit(&self.stream, &sum).unwrap());
            pending[1].then(&self.stream).unwrap();
            self.stream.copy(&out, &self.memory[0]).unwrap();
            pending[1].wait().unwrap();
            assert!(pending[0].is_done().unwrap());
            let out = self.zeros();
            let window = self.buffers[0].clone();
            self.run(Op::ReduceScatter { window, plan: plan.clone(), out });
            let window = self.buffers[0].clone();
            self.run(Op::AllGather { window, plan });
        }
    }

    /// Two leaves on each rank, but three on the last; owners of several segments, or of none.
    fn sums_of_leaves(&mut self) {
        let leaves = 2 * self.ranks + 1;
        let tree = Tree::new(&[leaves]).unwrap();
        let node = |leaf: usize| Node { leaves: leaf..leaf + 1 };
        let mut partials: Vec<Vec<(Node, usize)>> = (0..self.ranks)
            .map(|rank| vec![(node(2 * rank), 0), (node(2 * rank + 1), 1)])
            .collect();
        partials[self.ranks - 1].push((node(leaves - 1), 0));
        let nodes: Vec<Node> = (0..leaves).map(node).collect();
        let segments = self.pieces();
        for out in [self.zeros(), self.memory[1].clone()] {
            self.run(Op::ReduceScatterOrdered(OrderedReduce {
                buffers: self.buffers.as_slice().into(),
                dtype: DType::F32,
                redop: RedOp::Sum,
                partials: partials.as_slice().into(),
                program: tree.combine(&nodes).into(),
                range: 0..LEN - 1,
                segments: segments.clone(),
                out,
                places: None,
            }));
        }
    }

    /// Of every rank a short and a long segment; the second rank owns nothing.
    fn pieces(&self) -> Segments {
        let own = |rank: usize| match rank {
            1 => Vec::new(),
            _ => {
                let (short, long) = (400 * rank, 3000 + 1500 * rank);
                vec![long..long + 1400, short..short + 37]
            }
        };
        (0..self.ranks).map(own).collect()
    }

    /// Partials of bf16 are summed in f32, into places of their own.
    fn sums_of_halves(&mut self, is_whole: bool) {
        let window = self.group.window(2 * LEN).unwrap();
        let halves = window.tensor(0, &[LEN], DType::Bf16).unwrap();
        let values = (0..LEN).map(|i| value(is_whole, self.rank, 3, i));
        let values: Vec<bf16> = values.map(bf16::from_f32).collect();
        self.stream.copy_in(&halves, &values).unwrap();
        let nodes: Vec<Node> =
            (0..self.ranks).map(|rank| Node { leaves: rank..rank + 1 }).collect();
        let segments = self.pieces();
        let mut at = 3;
        let place = |segment: &Range<usize>| {
            let start = at;
            at += segment.len() + 5;
            start
        };
        let places = segments[self.rank].iter().map(place).collect::<Vec<_>>();
        let out = self.zeros();
        self.run(Op::ReduceScatterOrdered(OrderedReduce {
            buffers: [window].into(),
            dtype: DType::Bf16,
            redop: RedOp::Sum,
            partials: nodes.iter().map(|node| vec![(node.clone(), 0)]).collect(),
            program: Tree::for_leaves(self.ranks).combine(&nodes).into(),
            range: 0..LEN,
            segments,
            out,
            places: Some(places.into()),
        }));
    }

    fn gathers(&mut self) {
        let (window, segments) = (self.buffers[1].clone(), self.pieces());
        self.run(Op::AllGatherSegments(Gather { window, element_bytes: 4, segments }));
        let window = self.buffers[1].clone();
        let root = self.ranks - 1;
        self.run(Op::Broadcast { window, root, element_bytes: 4, range: 5..8000 });
        let window = self.buffers[1].clone();
        self.run(Op::Broadcast { window, root: 0, element_bytes: 4, range: 7..7 });
    }

    /// Operations with a root and those out of place, over shares of different lengths; the last
    /// member has none.
    fn rooted(&mut self, root: usize, redop: RedOp) {
        let counts: Vec<usize> = (1..=self.ranks).map(|i| 501 * (self.ranks - i)).collect();
        let tree = Tree::for_leaves(self.ranks);
        let plan = || EvenPlan::with_counts(&tree, 40, &counts, DType::F32).reducing(redop);
        let (first, second) = (self.buffers[0].clone(), self.buffers[1].clone());
        let range = 40..40 + counts.iter().sum::<usize>();
        let of_root = |out: &Tensor| (self.rank == root).then(|| out.clone());
        let outs: Vec<Tensor> =
            (0..5).map(|_| self.device.zeros(&[LEN], DType::F32).unwrap()).collect();
        let window = || first.clone();
        self.run(Op::Reduce { window: window(), plan: plan(), root, out: of_root(&outs[0]) });
        self.run(Op::Gather { window: window(), plan: plan(), root, into: of_root(&outs[1]) });
        let into = Some(outs[2].clone());
        self.run(Op::Scatter { window: window(), plan: plan(), root, into });
        self.run(Op::AllGatherInto { window: window(), plan: plan(), into: outs[3].clone() });
        let (element_bytes, into) = (4, outs[4].clone());
        let range_of = range.clone();
        let op = Op::BroadcastInto { window: window(), root, element_bytes, range: range_of, into };
        self.run(op);
        self.run(Op::AllReduceInto { window: window(), plan: plan(), into: second.clone() });
        self.run(Op::Reduce { window: second.clone(), plan: plan(), root, out: None });
        self.run(Op::Scatter { window: window(), plan: plan(), root, into: None });
        self.run(Op::Gather { window: window(), plan: plan(), root, into: None });
        self.memory.extend(outs);
    }

    fn personal_operations(&mut self) {
        let (into, received) = (self.zeros(), self.zeros());
        // Of different lengths, one of them none.
        let len = |from: usize, to: usize| if from == to + 1 { 0 } else { 300 + 70 * from + to };
        let spread = |lengths: Vec<usize>| {
            let starts = lengths.into_iter().enumerate();
            starts.map(|(at, len)| at * 1100..at * 1100 + len).collect::<Vec<_>>()
        };
        let all = || 0..self.ranks;
        let send = spread(all().map(|to| len(self.rank, to)).collect());
        let receive = spread(all().map(|from| len(from, self.rank)).collect());
        let from = self.buffers[0].clone();
        self.run(Op::AllToAll(AllToAll { from, send, into: into.clone(), receive }));
        let (next, last) =
            ((self.rank + 1) % self.ranks, (self.rank + self.ranks - 1) % self.ranks);
        let ring = match self.ranks {
            1 => Vec::new(),
            _ => vec![
                P2p::Send { to: next, tensor: into },
                P2p::Receive { from: last, tensor: received },
            ],
        };
        self.run(Op::Exchange(ring));
        self.some_only();
    }

    /// An exchange of two messages, one after the other, in which only the first two take part.
    fn some_only(&mut self) {
        let out = self.zeros();
        let part = |range: Range<usize>| out.flat(range).unwrap();
        let from = |range: Range<usize>| self.memory[0].flat(range).unwrap();
        let messages = match self.rank {
            _ if self.ranks == 1 => return,
            0 => vec![
                P2p::Send { to: 1, tensor: from(10..500) },
                P2p::Send { to: 1, tensor: from(0..7) },
            ],
            1 => vec![
                P2p::Receive { from: 0, tensor: part(1..491) },
                P2p::Receive { from: 0, tensor: part(600..607) },
            ],
            _ => return,
        };
        self.run(Op::Exchange(messages));
    }
}
