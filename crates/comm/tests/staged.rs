//! Groups on devices whose memory the host cannot reach: the bits of the host's, on both backends.

mod common;

use comm::{AllToAll, EvenPlan, Gather, Op, OrderedReduce, P2p, Window};
use common::{BACKENDS, PATIENCE_MS, with_ranks};
use device::{Arch, DType, Device, SimOptions, Stream, Tensor};
use layout::{Node, Tree};

const WORLD: usize = 3;
const LEN: usize = 70_001;

/// A value whose sums depend on their order.
fn value(rank: usize, slot: usize, i: usize) -> f32 {
    let hash = (rank * 7 + slot + 1).wrapping_mul(0x9E37_79B9).wrapping_add(i.wrapping_mul(40_503));
    10_f32.powi((hash >> 7) as i32 % 7 - 3) * ((hash & 0xffff) as f32 - 30_000.5)
}

fn fill(stream: &Stream, tensor: &Tensor, value: impl Fn(usize) -> f32) {
    let values: Vec<f32> = (0..tensor.len()).map(value).collect();
    stream.copy_in(tensor, &values).unwrap();
}

/// Every operation once; all memory at the end, as bits.
fn everything(kind: &str, device: impl Fn(usize) -> Device + Sync) -> Vec<Vec<Vec<u32>>> {
    with_ranks(kind, WORLD, PATIENCE_MS, |world| {
        let (rank, device) = (world.rank(), device(world.rank()));
        let (stream, group) = (device.stream(), world.group(&device).unwrap());
        let flat = |window: &Window| window.tensor(0, &[LEN], DType::F32).unwrap();
        let slots: Vec<Window> = (0..2).map(|_| group.window(4 * LEN).unwrap()).collect();
        let other = device.zeros(&[LEN], DType::F32).unwrap();
        let mut memory: Vec<Tensor> = slots.iter().map(flat).chain([other.clone()]).collect();
        for (slot, tensor) in memory.iter().enumerate() {
            fill(&stream, tensor, |i| value(rank, slot, i));
        }
        // Two leaves of a rank that fold nothing: two partials each.
        let tree = Tree::new(&[2 * WORLD]).unwrap();
        let node = |leaf: usize| Node { leaves: leaf..leaf + 1 };
        let partials: Vec<Vec<(Node, usize)>> =
            (0..WORLD).map(|rank| vec![(node(2 * rank), 0), (node(2 * rank + 1), 1)]).collect();
        let nodes: Vec<Node> = (0..2 * WORLD).map(node).collect();
        let segments: Vec<Vec<_>> = (0..WORLD)
            .map(|rank| {
                vec![rank * 9000..rank * 9000 + 100, 30_000 + rank * 10_000..39_001 + rank * 10_000]
            })
            .collect();
        for out in [memory[1].clone(), other.clone()] {
            let op = OrderedReduce {
                slots: slots.as_slice().into(),
                partials: partials.as_slice().into(),
                program: tree.combine(&nodes).into(),
                range: 0..LEN - 1,
                segments: segments.as_slice().into(),
                out,
            };
            group.run(&stream, Op::ReduceScatterOrdered(op)).unwrap();
        }
        let window = slots[1].clone();
        let gather = Gather { window, element_bytes: 4, segments: segments.into() };
        group.run(&stream, Op::AllGatherSegments(gather)).unwrap();
        let plan = EvenPlan::new(&Tree::for_leaves(WORLD), 11..LEN, DType::F32);
        let (window, sum) = (slots[0].clone(), plan.clone());
        let sum = group.prepare(Op::AllReduce { window, plan: sum }).unwrap();
        // Behind each other, and behind what is on the stream; the stream goes on after them.
        let submit = || group.submit(&stream, &sum).unwrap();
        let pending = [submit(), submit()];
        pending[1].then(&stream).unwrap();
        let copy = device.zeros(&[LEN], DType::F32).unwrap();
        stream.copy(&copy, &memory[0]).unwrap();
        pending[1].wait().unwrap();
        let (window, out) = (slots[0].clone(), copy.clone());
        group.run(&stream, Op::ReduceScatter { window, plan: plan.clone(), out }).unwrap();
        let window = slots[0].clone();
        group.run(&stream, Op::AllGather { window, plan }).unwrap();
        let (window, root) = (slots[1].clone(), 2);
        let op = Op::Broadcast { window, root, element_bytes: 4, range: 5..60_000 };
        group.run(&stream, op).unwrap();
        let into = device.zeros(&[LEN], DType::F32).unwrap();
        let parts = |by: usize| (0..WORLD).map(|at| at * by..at * by + 7000).collect::<Vec<_>>();
        let (from, send) = (slots[0].clone(), parts(8000));
        let op = AllToAll { from, send, into: into.clone(), receive: parts(7500) };
        group.run(&stream, Op::AllToAll(op)).unwrap();
        let received = device.zeros(&[LEN], DType::F32).unwrap();
        let messages = vec![
            P2p::Send { to: (rank + 1) % WORLD, tensor: into.clone() },
            P2p::Receive { from: (rank + 2) % WORLD, tensor: received.clone() },
        ];
        group.run(&stream, Op::Exchange(messages)).unwrap();
        memory.extend([copy, into, received]);
        let bits = |tensor: &Tensor| -> Vec<u32> {
            stream.to_vec::<f32>(tensor).unwrap().iter().map(|x| x.to_bits()).collect()
        };
        memory.iter().map(bits).collect()
    })
}

#[test]
fn simulated_devices_get_the_bits_of_the_host() {
    for kind in BACKENDS {
        let expected = everything(kind, |_| Device::cpu(1).unwrap());
        for arch in [Arch::Sm90a, Arch::Gfx942] {
            let sim = |rank: usize| {
                let options = SimOptions { seed: 3 + rank as u64, ..SimOptions::default() };
                Device::sim(arch, 1, options).unwrap()
            };
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
