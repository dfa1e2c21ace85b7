//! Groups on devices whose memory the host cannot reach: the bits of the host's, on both backends.

mod common;

use comm::{
    AllToAll, EvenPlan, Gather, Group, Op, OrderedReduce, P2p, RedOp, Segments, Window, World,
};
use common::{BACKENDS, PATIENCE_MS, simulated, with_ranks};
use device::{Arch, DType, Device, Stream, Tensor};
use layout::{Node, Tree};

const WORLD: usize = 3;
const LEN: usize = 70_001;

/// A value whose sums depend on their order.
fn value(rank: usize, buffer: usize, i: usize) -> f32 {
    let hash =
        (rank * 7 + buffer + 1).wrapping_mul(0x9E37_79B9).wrapping_add(i.wrapping_mul(40_503));
    10_f32.powi((hash >> 7) as i32 % 7 - 3) * ((hash & 0xffff) as f32 - 30_000.5)
}

/// A rank in a run of every operation, with its memory.
struct Rank {
    rank: usize,
    device: Device,
    stream: Stream,
    group: Group,
    buffers: Vec<Window>,
    /// All that is compared in the end: the buffers first.
    memory: Vec<Tensor>,
}

impl Rank {
    fn new(world: &World, device: Device) -> Rank {
        let (rank, stream) = (world.rank(), device.stream());
        let group = world.group(&device).unwrap();
        let buffers: Vec<Window> = (0..2).map(|_| group.window(4 * LEN).unwrap()).collect();
        let flat = |window: &Window| window.tensor(0, &[LEN], DType::F32).unwrap();
        let memory: Vec<Tensor> = buffers.iter().map(flat).collect();
        for (buffer, tensor) in memory.iter().enumerate() {
            let values: Vec<f32> = (0..LEN).map(|i| value(rank, buffer, i)).collect();
            stream.copy_in(tensor, &values).unwrap();
        }
        Rank { rank, device, stream, group, buffers, memory }
    }

    /// New memory that is compared, too.
    fn zeros(&mut self) -> Tensor {
        let tensor = self.device.zeros(&[LEN], DType::F32).unwrap();
        self.memory.push(tensor.clone());
        tensor
    }

    fn run(&self, op: Op) {
        self.group.run(&self.stream, op).unwrap();
    }

    /// Ordered sums of two partials each, which fold nothing, into memory apart and in place; and
    /// a gather of them.
    fn sum_and_gather(&mut self) {
        let tree = Tree::new(&[2 * WORLD]).unwrap();
        let node = |leaf: usize| Node { leaves: leaf..leaf + 1 };
        let partials: Vec<Vec<(Node, usize)>> =
            (0..WORLD).map(|rank| vec![(node(2 * rank), 0), (node(2 * rank + 1), 1)]).collect();
        let nodes: Vec<Node> = (0..2 * WORLD).map(node).collect();
        let own = |rank: usize| {
            let (short, long) = (9000 * rank, 30_000 + 10_000 * rank);
            vec![short..short + 100, long..long + 9001]
        };
        let segments: Segments = (0..WORLD).map(own).collect();
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
        let window = self.buffers[1].clone();
        self.run(Op::AllGatherSegments(Gather { window, element_bytes: 4, segments }));
    }

    fn even_operations(&mut self) {
        let plan = EvenPlan::new(&Tree::for_leaves(WORLD), 11..LEN, DType::F32);
        let (window, sum) = (self.buffers[0].clone(), plan.clone());
        let sum = self.group.prepare(Op::AllReduce { window, plan: sum }).unwrap();
        let out = self.zeros();
        // Behind each other, and behind what is on the stream; the stream goes on after them.
        let pending = [(), ()].map(|()| self.group.submit(&self.stream, &sum).unwrap());
        pending[1].then(&self.stream).unwrap();
        self.stream.copy(&out, &self.memory[0]).unwrap();
        pending[1].wait().unwrap();
        let window = self.buffers[0].clone();
        self.run(Op::ReduceScatter { window, plan: plan.clone(), out });
        let window = self.buffers[0].clone();
        self.run(Op::AllGather { window, plan });
        let (window, range) = (self.buffers[1].clone(), 5..60_000);
        self.run(Op::Broadcast { window, root: 2, element_bytes: 4, range });
    }

    fn personal_operations(&mut self) {
        let (into, received) = (self.zeros(), self.zeros());
        let parts = |by: usize| (0..WORLD).map(|at| at * by..at * by + 7000).collect();
        let (from, send) = (self.buffers[0].clone(), parts(8000));
        let op = AllToAll { from, send, into: into.clone(), receive: parts(7500) };
        self.run(Op::AllToAll(op));
        self.run(Op::Exchange(vec![
            P2p::Send { to: (self.rank + 1) % WORLD, tensor: into },
            P2p::Receive { from: (self.rank + 2) % WORLD, tensor: received },
        ]));
    }

    fn bits(&self, tensor: &Tensor) -> Vec<u32> {
        self.stream.to_vec::<f32>(tensor).unwrap().iter().map(|x| x.to_bits()).collect()
    }
}

/// Every operation once; all memory of every rank at the end.
fn everything(kind: &str, device: impl Fn(usize) -> Device + Sync) -> Vec<Vec<Vec<u32>>> {
    with_ranks(kind, WORLD, PATIENCE_MS, |world| {
        let mut rank = Rank::new(&world, device(world.rank()));
        rank.sum_and_gather();
        rank.even_operations();
        rank.personal_operations();
        rank.memory.iter().map(|tensor| rank.bits(tensor)).collect()
    })
}

#[test]
fn simulated_devices_get_the_bits_of_the_host() {
    for kind in BACKENDS {
        let expected = everything(kind, |_| Device::cpu(1).unwrap());
        for arch in [Arch::Sm90a, Arch::Gfx942] {
            if simulated(arch, 0).is_none() {
                continue;
            }
            let sim = |rank: usize| simulated(arch, 3 + rank as u64).unwrap();
            let got = everything(kind, sim);
            for (rank, (got, expected)) in got.iter().zip(&expected).enumerate() {
                for (index, (got, expected)) in got.iter().zip(expected).enumerate() {
                    assert!(got == expected, "{kind} {arch:?}: memory {index} of rank {rank}");
                }
            }
        }
    }
}

#[test]
fn guarded_devices_get_the_bits_of_the_host() {
    for kind in BACKENDS {
        let expected = everything(kind, |_| Device::cpu(1).unwrap());
        for seed in [1, 5] {
            let guarded = |rank: usize| Device::guarded_in_order(1, seed + rank as u64).unwrap();
            assert!(everything(kind, guarded) == expected, "{kind} {seed}");
        }
    }
}
