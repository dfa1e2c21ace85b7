//! Sums of 16-bit types by hosts: the bits of a serial evaluation in f32 that is rounded once,
//! wherever the ranks are, and no more bytes between hosts than what they are sums of.

mod common;

use comm::{EvenPlan, Op, Operation, RedOp, World};
use common::{BY_HOSTS, PATIENCE_MS, as_ranks, on_hosts, settings, with_ranks};
use device::{DType, Device, Element};
use half::{bf16, f16};
use layout::Tree;

trait Half: Element {
    fn of(value: f32) -> Self;
    fn wide(self) -> f32;
}

macro_rules! half {
    ($type:ty) => {
        impl Half for $type {
            fn of(value: f32) -> Self {
                <$type>::from_f32(value)
            }
            fn wide(self) -> f32 {
                self.to_f32()
            }
        }
    };
}
half!(bf16);
half!(f16);

/// A rank's value: sums depend on their order, and on where they are rounded.
fn given<T: Half>(rank: usize, index: usize) -> T {
    let hash = ((rank * 1_000_003 + index + 1) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    let value = (1.0 + hash as f32 / 1e6) * 2_f32.powi((hash % 9) as i32 - 4);
    T::of(if hash & 16 == 0 { value } else { -value })
}

/// The sum of a node in f32: a left fold over its children.
fn serial<T: Half>(tree: &Tree, node: std::ops::Range<usize>, depth: usize, index: usize) -> f32 {
    if node.len() == 1 {
        return given::<T>(node.start, index).wide();
    }
    let width = node.len() / tree.radices()[depth];
    let children = (node.start..node.end).step_by(width);
    let sums = children.map(|start| serial::<T>(tree, start..start + width, depth + 1, index));
    sums.reduce(|a, b| a + b).unwrap()
}

/// This rank's share of the sum of `len` elements, to `out` of another window or to f32.
fn check<T: Half>(world: &World, tree: &Tree, len: usize, redop: RedOp) {
    let device = Device::cpu(1).unwrap();
    let (stream, group, ranks) = (device.stream(), world.group(&device).unwrap(), world.size());
    let window = group.window(2 * len).unwrap();
    let mine: Vec<T> = (0..len).map(|index| given(world.rank(), index)).collect();
    stream.copy_in(&window.tensor(0, &[len], T::DTYPE).unwrap(), &mine).unwrap();
    let plan = EvenPlan::new(tree, 0..len, T::DTYPE).reducing(redop);
    let share = plan.segments()[world.rank()][0].clone();
    let sums = share.clone().map(|index| {
        let sum = serial::<T>(tree, 0..ranks, 0, index);
        if redop == RedOp::Avg { sum * (1.0 / ranks as f32) } else { sum }
    });
    let sums: Vec<f32> = sums.collect();
    // Members may take results of either type.
    let types = [T::DTYPE, DType::F32];
    for round in 0..2 {
        let out = device.zeros(&[len], types[(world.rank() + round) % 2]).unwrap();
        let (window, plan) = (window.clone(), plan.clone());
        group.run(&stream, Op::ReduceScatter { window, plan, out: out.clone() }).unwrap();
        let own = out.flat(share.clone()).unwrap();
        let is_same = match out.dtype() {
            DType::F32 => stream.to_vec::<f32>(&own).unwrap() == sums,
            _ => {
                let rounded: Vec<T> = sums.iter().map(|&sum| T::of(sum)).collect();
                let got = stream.to_vec::<T>(&own).unwrap();
                bytemuck::cast_slice::<T, u8>(&got) == bytemuck::cast_slice::<T, u8>(&rounded)
            }
        };
        let (route, radices) = (group.route(), tree.radices());
        assert!(is_same, "{} of {len} by {radices:?} over {route}", out.dtype());
    }
}

#[test]
fn sums_have_the_bits_of_a_serial_one_wherever_ranks_are() {
    for (world, hosts) in (1..=8).flat_map(|world| [1, 2, 3].map(|hosts| (world, hosts))) {
        // Up to an uneven number of ranks a host, which go flat.
        let host_of: Vec<usize> = (0..world).map(|rank| rank * hosts / world).collect();
        let in_a_row = if world > 1 { vec![world] } else { Vec::new() };
        for tree in [Tree::for_leaves(world), Tree::new(&in_a_row).unwrap()] {
            as_ranks(
                on_hosts(&host_of),
                |_| settings(PATIENCE_MS),
                |world| {
                    for len in [1, 37, 20_011] {
                        check::<bf16>(&world, &tree, len, RedOp::Sum);
                        check::<f16>(&world, &tree, len, RedOp::Avg);
                    }
                },
            );
        }
    }
}

#[test]
fn between_hosts_goes_one_partial_or_what_it_is_the_sum_of() {
    const LEN: usize = 48_000;
    for (kind, ranks) in BY_HOSTS {
        let each = usize::from(kind.as_bytes()[0] - b'0');
        let hosts = ranks / each;
        // The leaves of each host are one node; or of the first alone.
        for (radices, halves) in [(vec![hosts, each], 2), (vec![ranks], each)] {
            let tree = Tree::new(&radices).unwrap();
            let sent = with_ranks(kind, ranks, PATIENCE_MS, |world| {
                check::<bf16>(&world, &tree, LEN, RedOp::Sum);
                world.counters().of(Operation::ReduceScatterOrdered).socket_sent_bytes
            });
            // Twice: every element comes to its owner from each other host.
            let bytes = 2 * 2 * halves * LEN * (hosts - 1);
            assert_eq!(sent.iter().sum::<u64>(), bytes as u64, "{kind}, {radices:?}");
        }
    }
}
