//! The ordered reduction: the bits of a serial evaluation of the tree, on every backend, for
//! every number of ranks, and no more bytes than a ring.

mod common;

use std::ops::Range;

use comm::{Gather, Op, Operation, OrderedReduce, RedOp, Window, World};
use common::{BACKENDS, BY_HOSTS, PATIENCE_MS, deal, with_ranks};
use device::{DType, Device, Stream, Tensor};
use layout::{Node, SumProgram, Tree};
use proptest::prelude::*;

/// Everything but the group: who holds and owns what.
#[derive(Debug, Clone)]
struct Case {
    tree: Tree,
    world: usize,
    len: usize,
    buckets: Vec<Range<usize>>,
    /// Per rank.
    segments: Vec<Vec<Range<usize>>>,
    threads: usize,
    is_guarded: bool,
    in_place: bool,
}

/// A value whose sums depend on their order.
fn value(leaf: usize, index: usize) -> f64 {
    let hash = (leaf as u64 + 1)
        .wrapping_mul(0x9E37_79B9_7F4A_7C15)
        .wrapping_add(index as u64)
        .wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let magnitude = 10_f64.powi((hash >> 60) as i32 - 8);
    magnitude * ((hash >> 20) as u32 as f64 / 2e9 - 1.0)
}

trait Float: device::Element + std::ops::Add<Output = Self> + PartialEq {
    fn of(value: f64) -> Self;
}
impl Float for f32 {
    fn of(value: f64) -> f32 {
        value as f32
    }
}
impl Float for f64 {
    fn of(value: f64) -> f64 {
        value
    }
}

/// The sum of a node of `tree`, from the definition: a left fold over its children.
fn serial<T: Float>(tree: &Tree, node: Range<usize>, depth: usize, index: usize) -> T {
    if node.len() == 1 {
        return T::of(value(node.start, index));
    }
    let width = node.len() / tree.radices()[depth];
    let children = (node.start..node.end).step_by(width);
    let sums = children.map(|start| serial::<T>(tree, start..start + width, depth + 1, index));
    sums.reduce(|a, b| a + b).unwrap()
}

fn cut(segments: &[Vec<Range<usize>>], bucket: &Range<usize>) -> Vec<Vec<Range<usize>>> {
    let cut = |range: &Range<usize>| range.start.max(bucket.start)..range.end.min(bucket.end);
    let cut_all = |all: &Vec<Range<usize>>| all.iter().map(cut).filter(|r| !r.is_empty()).collect();
    segments.iter().map(cut_all).collect()
}

fn filled<T: Float>(stream: &Stream, window: &Window, value: impl Fn(usize) -> T) -> Tensor {
    let len = window.bytes() / size_of::<T>();
    let tensor = window.tensor(0, &[len], T::DTYPE).unwrap();
    stream.copy_in(&tensor, &(0..len).map(value).collect::<Vec<T>>()).unwrap();
    tensor
}

/// A rank's way through the case; returns its result and the payload bytes it sent.
fn run<T: Float>(case: &Case, ranks: &World) -> (Vec<T>, u64) {
    let kind = if case.is_guarded { Device::guarded } else { Device::cpu };
    let device = kind(case.threads).unwrap();
    let stream = device.stream();
    let group = ranks.group(&device).unwrap();
    let (rank, world) = (ranks.rank(), case.world);
    let range = |rank| case.tree.leaf_range(rank, world).unwrap();
    let accumulations: Vec<_> =
        (0..world).map(|rank| case.tree.accumulation(&range(rank))).collect();
    let partials: Vec<Vec<(Node, usize)>> =
        accumulations.iter().map(|accumulation| accumulation.partials.clone()).collect();
    let nodes: Vec<Node> = partials.iter().flatten().map(|(node, _)| node.clone()).collect();
    let program = case.tree.combine(&nodes);
    let buffers = accumulations.iter().map(|accumulation| accumulation.buffers).max().unwrap();
    let bytes = case.len * size_of::<T>();
    let buffers: Vec<Window> = (0..buffers).map(|_| group.window(bytes).unwrap()).collect();
    accumulate::<T>(case, &accumulations[rank], &buffers, &stream);
    let separate = group.window(bytes).unwrap();
    let home = if case.in_place { &buffers[buffers.len() - 1] } else { &separate };
    let out = home.tensor(0, &[case.len], T::DTYPE).unwrap();
    for bucket in &case.buckets {
        let segments = cut(&case.segments, bucket);
        let op = OrderedReduce {
            buffers: buffers.as_slice().into(),
            partials: partials.as_slice().into(),
            program: program.clone().into(),
            range: bucket.clone(),
            segments: segments.into(),
            dtype: T::DTYPE,
            redop: RedOp::Sum,
            out: out.clone(),
            places: None,
        };
        group.run(&stream, Op::ReduceScatterOrdered(op)).unwrap();
    }
    let (window, segments) = (home.clone(), case.segments.as_slice().into());
    let gather = Gather { window, element_bytes: size_of::<T>(), segments };
    group.run(&stream, Op::AllGatherSegments(gather)).unwrap();
    let sent = ranks.counters().of(Operation::ReduceScatterOrdered).payload_sent_bytes;
    (stream.to_vec::<T>(&out).unwrap(), sent)
}

/// A backward pass as it sums: leaves into buffers, buffers into buffers, by the rank's
/// accumulation.
fn accumulate<T: Float>(
    case: &Case,
    accumulation: &layout::Accumulation,
    buffers: &[Window],
    stream: &Stream,
) {
    for step in &accumulation.steps {
        let leaf = step.leaf;
        filled::<T>(stream, &buffers[step.buffer], |index| T::of(value(leaf, index)));
        for &(into, from) in &step.folds {
            let into = buffers[into].tensor(0, &[case.len], T::DTYPE).unwrap();
            let from = buffers[from].tensor(0, &[case.len], T::DTYPE).unwrap();
            stream
                .launch("fold", move |k| {
                    let from = k.read::<T>(&from)?;
                    let into = k.write::<T>(&into)?;
                    into.iter_mut().zip(from).for_each(|(a, &b)| *a = *a + b);
                    Ok(())
                })
                .unwrap();
        }
    }
}

fn check<T: Float + std::fmt::Debug>(case: &Case, kind: &str) {
    let results = with_ranks(kind, case.world, PATIENCE_MS, |ranks| run::<T>(case, &ranks));
    for (rank, (got, _)) in results.iter().enumerate() {
        for (index, got) in got.iter().enumerate() {
            let owned = |range: &Range<usize>| {
                range.contains(&index) && case.buckets.iter().any(|b| b.contains(&index))
            };
            if case.segments.iter().flatten().any(owned) {
                let expected = serial::<T>(&case.tree, 0..case.tree.leaves(), 0, index);
                assert!(
                    bytemuck::bytes_of(got) == bytemuck::bytes_of(&expected),
                    "{kind}: rank {rank} element {index}: {got:?}, not {expected:?}; {case:?}"
                );
            }
        }
    }
}

prop_compose! {
    fn cases()(
        radices in prop::collection::vec(2_usize..5, 0..4),
        pick in any::<prop::sample::Index>(),
        len in 0_usize..6000,
        owners in prop::collection::vec((0_usize..900, 0_usize..8, any::<bool>()), 0..14),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..3),
        threads in 1_usize..3,
        is_guarded in any::<bool>(),
        in_place in any::<bool>(),
    ) -> Case {
        let tree = Tree::new(&radices).unwrap();
        let world = 1 + pick.index(tree.leaves().min(5));
        let mut edges: Vec<usize> = cuts.iter().map(|cut| cut.index(len + 1)).collect();
        edges.extend([0, len]);
        edges.sort_unstable();
        let buckets = edges.windows(2).rev().map(|edge| edge[0]..edge[1]).collect();
        let segments = deal(len, world, &owners);
        Case { tree, world, len, buckets, segments, threads, is_guarded, in_place }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn bits_equal_a_serial_sum_of_the_tree(case in cases(), wide in any::<bool>()) {
        let by_hosts = (case.world == 4).then_some("2 a host");
        for kind in BACKENDS.into_iter().chain(by_hosts) {
            if wide { check::<f64>(&case, kind) } else { check::<f32>(&case, kind) }
        }
    }
}

fn plain(tree: Tree, world: usize, len: usize, in_place: bool) -> Case {
    let owners: Vec<_> = (0..4 * world).map(|i| (len / (4 * world) + 1, i * 3, false)).collect();
    let buckets = std::iter::once(0..len).collect();
    let segments = deal(len, world, &owners);
    Case { tree, world, len, buckets, segments, threads: 2, is_guarded: false, in_place }
}

#[test]
fn long_vectors_cross_blocks_and_tiles() {
    for kind in BACKENDS {
        for (world, in_place) in [(1, true), (2, true), (3, false), (4, true)] {
            check::<f32>(&plain(Tree::for_leaves(12), world, 300_007, in_place), kind);
        }
    }
}

#[test]
fn hosts_whose_leaves_are_one_subtree_or_several() {
    for (kind, world) in BY_HOSTS {
        for radices in [&[2, 2, 3][..], &[3, 2, 2], &[2, 2, 2], &[7], &[2, 5], &[3, 3]] {
            for in_place in [false, true] {
                let tree = Tree::new(radices).unwrap();
                if world <= tree.leaves() {
                    check::<f32>(&plain(tree, world, 10_007, in_place), kind);
                }
            }
        }
        check::<f64>(&plain(Tree::for_leaves(12), world, 300_007, true), kind);
        let guarded = plain(Tree::for_leaves(12), world, 3_001, false);
        check::<f32>(&Case { is_guarded: true, ..guarded }, kind);
        // More partials of a host than one kernel takes.
        check::<f32>(&plain(Tree::new(&[61]).unwrap(), world, 30_000, true), kind);
    }
}

#[test]
fn more_partials_than_one_kernel_takes() {
    // A flat tree folds nothing inside a rank; every leaf is a partial.
    let flat = Tree::new(&[61]).unwrap();
    // A tall one keeps many sums open.
    let tall = Tree::new(&[2, 2, 2, 2, 2, 2]).unwrap();
    for kind in BACKENDS {
        for (tree, world) in [(&flat, 2), (&tall, 1), (&tall, 5)] {
            for in_place in [false, true] {
                check::<f32>(&plain(tree.clone(), world, 70_000, in_place), kind);
            }
        }
    }
}

#[test]
fn free_worlds_send_what_a_ring_would() {
    let len = 30_011;
    for kind in BACKENDS {
        for leaves in [12, 16] {
            for world in [2, 4] {
                let case = plain(Tree::for_leaves(leaves), world, len, true);
                let sent = |(_, sent): &(Vec<f32>, u64)| *sent;
                let results = with_ranks(kind, world, PATIENCE_MS, |ranks| {
                    let result = run::<f32>(&case, &ranks);
                    let count = ranks.counters().of(Operation::ReduceScatterOrdered);
                    let headers = match ranks.backend() {
                        "tcp" => (world - 1) * comm::tcp::HEADER_BYTES,
                        _ => 0,
                    };
                    assert_eq!(count.header_sent_bytes, headers as u64, "{kind}");
                    result
                });
                let total: u64 = results.iter().map(sent).sum();
                let ring = (world - 1) * len * 4;
                assert_eq!(total, ring as u64, "{kind}: {leaves} leaves on {world} ranks");
            }
        }
    }
}

#[test]
fn a_program_that_is_not_of_these_partials_is_refused() {
    for kind in BACKENDS {
        for (program, expected) in [
            (
                Tree::for_leaves(3).combine(&nodes(3)),
                "reads 3 inputs where there are 2; make the program by",
            ),
            (
                SumProgram { ops: Vec::new(), depth: 0 },
                "reads 0 inputs where there are 2; make the program by",
            ),
        ] {
            let got = with_ranks(kind, 2, PATIENCE_MS, |ranks| {
                let device = Device::cpu(1).unwrap();
                let group = ranks.group(&device).unwrap();
                // The other rank may refuse, and give the group up, while this one still meets it.
                let window = match group.window(64) {
                    Ok(window) => window,
                    Err(error) => return error.to_string(),
                };
                let out = window.tensor(0, &[16], DType::F32).unwrap();
                let partials: Vec<_> = nodes(2).into_iter().map(|node| vec![(node, 0)]).collect();
                let op = OrderedReduce {
                    buffers: [window].into(),
                    partials: partials.into(),
                    program: program.clone().into(),
                    range: 0..16,
                    segments: [Vec::new(), Vec::new()].into(),
                    dtype: DType::F32,
                    redop: RedOp::Sum,
                    out,
                    places: None,
                };
                common::message(group.run(&device.stream(), Op::ReduceScatterOrdered(op)))
            });
            assert!(got.iter().any(|text| text.contains(expected)), "{kind}: {got:?}");
        }
    }
}

fn nodes(count: usize) -> Vec<Node> {
    (0..count).map(|leaf| Node { leaves: leaf..leaf + 1 }).collect()
}
