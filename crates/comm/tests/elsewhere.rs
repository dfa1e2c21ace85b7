//! Ordered sums on another device than their inputs', and in groups whose device the host does not
//! reach: the bits of a serial evaluation of the tree, for every type, number of ranks and tile, on
//! both backends, into memory that is laid out like the buffers or has places of its own.

mod common;

use std::ops::Range;
use std::sync::Arc;

use comm::{Group, Op, OrderedReduce, RedOp, SumRoom, Window, World};
use common::{BACKENDS, PATIENCE_MS, deal, message, simulated, with_ranks};
use device::{Arch, DType, Device, Element, Stream, Tensor};
use half::{bf16, f16};
use layout::{Node, Tree};
use proptest::prelude::*;

/// Where windows and sums are.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Place {
    Cpu,
    Guarded,
    Sim(Arch),
}

impl Place {
    /// `None` where the build has no kernels for it.
    fn device(self, seed: u64) -> Option<Device> {
        match self {
            Place::Cpu => Some(Device::cpu(2).unwrap()),
            Place::Guarded => Some(Device::guarded_in_order(1, seed).unwrap()),
            Place::Sim(arch) => simulated(arch, seed),
        }
    }
}

#[derive(Debug, Clone)]
struct Case {
    tree: Tree,
    world: usize,
    len: usize,
    segments: Vec<Vec<Range<usize>>>,
    windows: Place,
    /// `None`: where the windows are.
    sums: Option<Place>,
    /// Own segments one after another with gaps, instead of where they are in the buffers.
    has_places: bool,
}

/// A value whose sums depend on their order, small enough for f16.
fn value(leaf: usize, index: usize) -> f64 {
    let hash = (leaf as u64 + 1)
        .wrapping_mul(0x9E37_79B9_7F4A_7C15)
        .wrapping_add(index as u64)
        .wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let magnitude = 2_f64.powi((hash >> 60) as i32 - 8);
    magnitude * ((hash >> 20) as u32 as f64 / 2e9 - 1.0)
}

/// A type of partials, and of their sums.
trait Partial: Element {
    type Sum: Element + std::ops::Add<Output = Self::Sum>;
    fn of(value: f64) -> Self;
    fn widened(self) -> Self::Sum;
    fn bits(sum: Self::Sum) -> u64;
}

macro_rules! partial {
    ($t:ty, $sum:ty, $of:expr, $widened:expr) => {
        impl Partial for $t {
            type Sum = $sum;
            fn of(value: f64) -> $t {
                $of(value)
            }
            fn widened(self) -> $sum {
                $widened(self)
            }
            fn bits(sum: $sum) -> u64 {
                u64::from(sum.to_bits())
            }
        }
    };
}
partial!(f32, f32, |x| x as f32, |x| x);
partial!(f64, f64, |x| x, |x| x);
partial!(bf16, f32, bf16::from_f64, bf16::to_f32);
partial!(f16, f32, f16::from_f64, f16::to_f32);

/// The sum of a node of `tree`, from the definition: a left fold over its children.
fn serial<T: Partial>(tree: &Tree, node: Range<usize>, depth: usize, index: usize) -> T::Sum {
    if node.len() == 1 {
        return T::of(value(node.start, index)).widened();
    }
    let width = node.len() / tree.radices()[depth];
    let children = (node.start..node.end).step_by(width);
    let sums = children.map(|start| serial::<T>(tree, start..start + width, depth + 1, index));
    sums.reduce(|a, b| a + b).unwrap()
}

/// The value of `out` where nothing belongs.
fn untouched<T: Partial>() -> T::Sum {
    T::of(-0.375).widened()
}

/// One rank's end of a case: every leaf is a partial in a buffer of its own.
struct Rank<'a> {
    case: &'a Case,
    rank: usize,
    group: Group,
    stream: Stream,
    sums: Device,
    buffers: Vec<Window>,
    partials: Vec<Vec<(Node, usize)>>,
}

impl<'a> Rank<'a> {
    fn new<T: Partial>(case: &'a Case, world: &World) -> Rank<'a> {
        let rank = world.rank();
        let device = case.windows.device(rank as u64 + 1).unwrap();
        let sums = case.sums.map_or(device.clone(), |place| place.device(7).unwrap());
        let (stream, group) = (device.stream(), world.group(&device).unwrap());
        let leaves = |rank: usize| case.tree.leaf_range(rank, case.world).unwrap();
        let node = |leaf: usize| Node { leaves: leaf..leaf + 1 };
        let of_rank = |rank: usize| -> Vec<(Node, usize)> {
            leaves(rank).enumerate().map(|(buffer, leaf)| (node(leaf), buffer)).collect()
        };
        let partials: Vec<_> = (0..case.world).map(of_rank).collect();
        let buffers = partials.iter().map(Vec::len).max().unwrap();
        let bytes = case.len * T::DTYPE.bytes();
        let buffers: Vec<Window> = (0..buffers).map(|_| group.window(bytes).unwrap()).collect();
        for (leaf, buffer) in leaves(rank).zip(&buffers) {
            let values: Vec<T> = (0..case.len).map(|index| T::of(value(leaf, index))).collect();
            stream.copy_in(&buffer.tensor(0, &[case.len], T::DTYPE).unwrap(), &values).unwrap();
        }
        Rank { case, rank, group, stream, sums, buffers, partials }
    }

    fn own(&self) -> &[Range<usize>] {
        &self.case.segments[self.rank]
    }

    /// Where own segments begin in `out`, and its length.
    fn places(&self) -> (Option<Arc<[usize]>>, usize) {
        if !self.case.has_places {
            return (None, self.case.len);
        }
        let mut end = 3;
        let places = self.own().iter().map(|segment| {
            let start = end + segment.start % 5;
            end = start + segment.len();
            start
        });
        (Some(places.collect()), end + 2)
    }

    fn op<T: Partial>(&self, out: Tensor, places: Option<Arc<[usize]>>) -> OrderedReduce {
        let nodes: Vec<Node> =
            self.partials.iter().flatten().map(|(node, _)| node.clone()).collect();
        OrderedReduce {
            buffers: self.buffers.as_slice().into(),
            dtype: T::DTYPE,
            redop: RedOp::Sum,
            partials: self.partials.as_slice().into(),
            program: self.case.tree.combine(&nodes).into(),
            range: 0..self.case.len,
            segments: self.case.segments.as_slice().into(),
            out,
            places,
        }
    }

    /// Two steps, one behind the other, of which the second finds other sums in `out`.
    fn reduce<T: Partial>(&self) -> Vec<T::Sum> {
        let (places, len) = self.places();
        let before = vec![untouched::<T>(); len];
        let out = self.sums.tensor(&[len], &before).unwrap();
        self.sums.stream().synchronize().unwrap();
        let op = self.group.prepare(Op::ReduceScatterOrdered(self.op::<T>(out.clone(), places)));
        let op = op.unwrap();
        self.group.submit(&self.stream, &op).unwrap();
        self.group.submit(&self.stream, &op).unwrap().wait().unwrap();
        self.sums.stream().to_vec::<T::Sum>(&out).unwrap()
    }

    fn expected<T: Partial>(&self) -> Vec<T::Sum> {
        let (places, len) = self.places();
        let mut expected = vec![untouched::<T>(); len];
        for (index, segment) in self.own().iter().enumerate() {
            let start = places.as_ref().map_or(segment.start, |places| places[index]);
            for (at, element) in segment.clone().enumerate() {
                let leaves = 0..self.case.tree.leaves();
                expected[start + at] = serial::<T>(&self.case.tree, leaves, 0, element);
            }
        }
        expected
    }
}

fn check<T: Partial>(case: &Case, kind: &str) {
    let places = [case.windows, case.sums.unwrap_or(case.windows)];
    if places.iter().any(|place| place.device(0).is_none()) {
        return;
    }
    with_ranks(kind, case.world, PATIENCE_MS, |world| {
        let rank = Rank::new::<T>(case, &world);
        let (got, expected) = (rank.reduce::<T>(), rank.expected::<T>());
        let both =
            got.into_iter().zip(expected).map(|(got, expected)| [got, expected].map(T::bits));
        for (index, [got, expected]) in both.enumerate() {
            assert!(got == expected, "{kind} {}: element {index} of {case:?}", T::DTYPE);
        }
    });
}

fn check_type(case: &Case, kind: &str, dtype: DType) {
    match dtype {
        DType::F64 => check::<f64>(case, kind),
        DType::Bf16 => check::<bf16>(case, kind),
        DType::F16 => check::<f16>(case, kind),
        _ => check::<f32>(case, kind),
    }
}

const SIMS: [Place; 2] = [Place::Sim(Arch::Sm90a), Place::Sim(Arch::Gfx942)];

fn place() -> impl Strategy<Value = Place> {
    prop::sample::select(vec![Place::Cpu, Place::Guarded, SIMS[0], SIMS[1]])
}

prop_compose! {
    fn cases()(
        radices in prop::collection::vec(2_usize..4, 0..3),
        pick in any::<prop::sample::Index>(),
        len in 0_usize..6000,
        owners in prop::collection::vec((0_usize..900, 0_usize..8, any::<bool>()), 0..14),
        windows in place(),
        sums in prop::option::of(place()),
        has_places in any::<bool>(),
    ) -> Case {
        let tree = Tree::new(&radices).unwrap();
        let world = 1 + pick.index(tree.leaves().min(4));
        let segments = deal(len, world, &owners);
        Case { tree, world, len, segments, windows, sums, has_places }
    }
}

fn dtype() -> impl Strategy<Value = DType> {
    prop::sample::select(vec![DType::F32, DType::F64, DType::Bf16, DType::F16])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn bits_are_those_of_a_serial_sum(case in cases(), dtype in dtype()) {
        let by_hosts = (case.world == 4).then_some("2 a host");
        for kind in BACKENDS.into_iter().chain(by_hosts) {
            check_type(&case, kind, dtype);
        }
    }
}

/// Every owner has segments in every tenth.
fn spread(tree: Tree, world: usize, len: usize, windows: Place, sums: Option<Place>) -> Case {
    let owners: Vec<_> = (0..9).map(|i| (len / 10 + i % 3, i * 2, i == 4)).collect();
    let segments = deal(len, world, &owners);
    Case { tree, world, len, segments, windows, sums, has_places: true }
}

#[test]
fn more_elements_than_a_lane_has_and_more_partials_than_a_kernel_takes() {
    for kind in BACKENDS {
        for sim in SIMS {
            for (windows, sums) in [(Place::Cpu, Some(sim)), (sim, None), (sim, Some(Place::Cpu))] {
                // A lane has 17152 elements of each of 61 partials, …
                let flat = Tree::new(&[61]).unwrap();
                check::<f32>(&spread(flat, 2, 70_001, windows, sums), kind);
            }
            // … and 4 MiB of one.
            for dtype in [DType::F32, DType::Bf16] {
                let case = spread(Tree::new(&[2]).unwrap(), 2, 4_500_001, Place::Cpu, Some(sim));
                check_type(&case, kind, dtype);
            }
        }
    }
}

#[test]
fn memory_is_what_is_planned_for_all_reductions_of_a_group() {
    let (windows, sums) = (Place::Cpu, Some(Place::Guarded));
    let case = spread(Tree::new(&[40]).unwrap(), 2, 5_000, windows, sums);
    with_ranks("shm", 2, PATIENCE_MS, |world| {
        let rank = Rank::new::<f32>(&case, &world);
        let (places, len) = rank.places();
        let out = rank.sums.zeros(&[len], DType::F32).unwrap();
        let before = rank.sums.allocated_bytes();
        let op = rank.op::<f32>(out, places);
        let planned = SumRoom::device_bytes(&rank.sums, &op.program, 40, DType::F32).unwrap();
        assert!(planned > SumRoom::pinned_bytes(40, DType::F32), "it has a workspace");
        let all = [(); 3].map(|()| rank.group.prepare(Op::ReduceScatterOrdered(op.clone())));
        let all = all.map(Result::unwrap);
        for _ in 0..2 {
            all.iter().for_each(|op| drop(rank.group.submit(&rank.stream, op).unwrap()));
            rank.group.submit(&rank.stream, &all[0]).unwrap().wait().unwrap();
            assert_eq!(rank.sums.allocated_bytes() - before, planned);
        }
    });
}

#[test]
fn places_that_do_not_fit_are_refused() {
    let case = spread(Tree::new(&[]).unwrap(), 1, 100, Place::Cpu, Some(Place::Guarded));
    let refused = |edit: &(dyn Fn(&mut OrderedReduce, &Rank) + Sync)| {
        let texts = with_ranks("shm", 1, PATIENCE_MS, |world| {
            let rank = Rank::new::<f32>(&case, &world);
            let (places, len) = rank.places();
            let mut op = rank.op::<f32>(rank.sums.zeros(&[len], DType::F32).unwrap(), places);
            edit(&mut op, &rank);
            message(rank.group.prepare(Op::ReduceScatterOrdered(op)))
        });
        texts.into_iter().next().unwrap()
    };
    let places = |op: &mut OrderedReduce, edit: &dyn Fn(&mut Vec<usize>)| {
        let mut places = op.places.as_deref().unwrap().to_vec();
        edit(&mut places);
        op.places = Some(places.into());
    };
    let missing = refused(&|op, _| places(op, &|all| all.truncate(8)));
    assert_eq!(missing, "places in `out`: 8 entries for 9 segments");
    let outside = refused(&|op, _| places(op, &|all| all[8] += 3));
    assert!(outside.starts_with("places in `out`: elements 1"), "{outside}");
    let twice = refused(&|op, _| places(op, &|all| all[1] = all[0] + 1));
    assert!(twice.starts_with("places in `out` ") && twice.contains("overlap"), "{twice}");
    let buffer = refused(&|op, rank| {
        op.out = rank.buffers[0].tensor(0, &[100], DType::F32).unwrap();
        op.places = Some(rank.own().iter().map(|segment| segment.start).collect());
    });
    assert!(buffer.contains("asked for memory that it is already writing"), "{buffer}");
    let narrow = refused(&|op, _| op.dtype = DType::F64);
    assert!(narrow.starts_with("f64 is not reduced to f32: "), "{narrow}");
    let whole = refused(&|op, _| op.dtype = DType::U32);
    assert!(whole.starts_with("u32 is not reduced to f32: "), "{whole}");
}
