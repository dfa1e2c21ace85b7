//! Every operation, type, reduction, number of ranks and length against a sequential reference, the
//! same bits over shared memory, over TCP, and on devices whose memory the host cannot reach.
//!
//! Exhaustively over few elements; and a selection of longer ones that a seed draws.

mod common;

use std::ops::Range;

use comm::{CommError, EvenPlan, Group, Op, Operation, RedOp, Window};
use common::{BACKENDS, BY_HOSTS, PATIENCE_MS, message, simulated, with_ranks};
use device::{Arch, DType, Device, Stream, Tensor};
use half::{bf16, f16};
use layout::{ReduceOp, Tree};
use proptest::prelude::*;

const TYPES: [DType; 7] =
    [DType::F32, DType::F64, DType::Bf16, DType::F16, DType::I32, DType::I64, DType::U8];

/// An element where it is computed: exact for every type but of sums, whose steps round.
#[derive(Clone, Copy)]
enum Number {
    F32(f32),
    F64(f64),
    Integer(i128),
}

fn decode(dtype: DType, bytes: &[u8]) -> Number {
    let mut word = [0; 8];
    word[..bytes.len()].copy_from_slice(bytes);
    let bits = u64::from_le_bytes(word);
    match dtype {
        DType::F32 => Number::F32(f32::from_bits(bits as u32)),
        DType::F64 => Number::F64(f64::from_bits(bits)),
        DType::Bf16 => Number::F32(bf16::from_bits(bits as u16).to_f32()),
        DType::F16 => Number::F32(f16::from_bits(bits as u16).to_f32()),
        DType::I32 => Number::Integer(i128::from(bits as i32)),
        DType::I64 => Number::Integer(i128::from(bits as i64)),
        _ => Number::Integer(i128::from(bits as u8)),
    }
}

fn encode(dtype: DType, number: Number) -> Vec<u8> {
    match (dtype, number) {
        (DType::Bf16, Number::F32(x)) => bf16::from_f32(x).to_le_bytes().to_vec(),
        (DType::F16, Number::F32(x)) => f16::from_f32(x).to_le_bytes().to_vec(),
        (_, Number::F32(x)) => x.to_le_bytes().to_vec(),
        (_, Number::F64(x)) => x.to_le_bytes().to_vec(),
        (_, Number::Integer(x)) => x.to_le_bytes()[..dtype.bytes()].to_vec(),
    }
}

/// As the type holds it.
fn wrapped(dtype: DType, x: i128) -> i128 {
    match decode(dtype, &encode(dtype, Number::Integer(x))) {
        Number::Integer(x) => x,
        _ => unreachable!("integers alone wrap"),
    }
}

fn combined(redop: RedOp, dtype: DType, a: Number, b: Number) -> Number {
    macro_rules! of {
        ($a:expr, $b:expr) => {
            match redop {
                RedOp::Sum | RedOp::Avg => $a + $b,
                RedOp::Prod => $a * $b,
                RedOp::Min => $a.min($b),
                RedOp::Max => $a.max($b),
            }
        };
    }
    match (a, b) {
        (Number::F32(a), Number::F32(b)) => Number::F32(of!(a, b)),
        (Number::F64(a), Number::F64(b)) => Number::F64(of!(a, b)),
        (Number::Integer(a), Number::Integer(b)) => Number::Integer(wrapped(dtype, of!(a, b))),
        _ => unreachable!("one type"),
    }
}

fn average(sum: Number, ranks: usize) -> Number {
    match sum {
        Number::F32(x) => Number::F32(x * (1.0 / ranks as f32)),
        Number::F64(x) => Number::F64(x * (1.0 / ranks as f64)),
        Number::Integer(x) => Number::Integer(x / ranks as i128),
    }
}

/// Bytes of element `index` of what `rank` gives: of floats numbers whose sums depend on their
/// order, of integers any.
fn given(dtype: DType, rank: usize, index: usize) -> Vec<u8> {
    let mut hash = (rank * 1_000_003 + index + 1) as u64;
    for _ in 0..3 {
        hash = (hash ^ (hash >> 31)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    let float = (1.0 + (hash >> 40) as f64 / 1e7) * 4_f64.powi((hash % 5) as i32 - 2);
    let float = if hash & 32 == 0 { float } else { -float };
    match dtype {
        DType::F32 | DType::Bf16 | DType::F16 => encode(dtype, Number::F32(float as f32)),
        DType::F64 => encode(dtype, Number::F64(float)),
        _ => hash.to_le_bytes()[..dtype.bytes()].to_vec(),
    }
}

/// Bytes of element `index` of the result of all.
fn reduced(dtype: DType, redop: RedOp, tree: &Tree, index: usize) -> Vec<u8> {
    let world = tree.leaves();
    let nodes: Vec<_> = (0..world).map(|rank| layout::Node { leaves: rank..rank + 1 }).collect();
    let number = |rank| decode(dtype, &given(dtype, rank, index));
    let mut stack: Vec<Number> = Vec::new();
    for op in tree.combine(&nodes).ops {
        let (below, top) = match op {
            ReduceOp::Push(rank) => {
                stack.push(number(rank));
                continue;
            }
            ReduceOp::AddInput(rank) => (stack.pop().unwrap(), number(rank)),
            ReduceOp::Fold => {
                let top = stack.pop().unwrap();
                (stack.pop().unwrap(), top)
            }
        };
        stack.push(combined(redop, dtype, below, top));
    }
    match redop {
        RedOp::Avg => encode(dtype, average(stack[0], world)),
        _ => encode(dtype, stack[0]),
    }
}

/// A byte that is not written.
const UNTOUCHED: u8 = 0xA5;

/// One set of arguments.
#[derive(Debug, Clone)]
struct Case {
    dtype: DType,
    redop: RedOp,
    /// Elements that each member owns.
    counts: Vec<usize>,
    /// Elements before the first.
    start: usize,
    root: usize,
}

impl Case {
    fn even(dtype: DType, redop: RedOp, world: usize, len: usize) -> Case {
        let counts = (0..world).map(|r| len / world + usize::from(r < len % world)).collect();
        Case { dtype, redop, counts, start: len % 3, root: len % world }
    }

    fn world(&self) -> usize {
        self.counts.len()
    }

    fn range(&self) -> Range<usize> {
        self.start..self.start + self.counts.iter().sum::<usize>()
    }

    fn share(&self, rank: usize) -> Range<usize> {
        let start = self.start + self.counts[..rank].iter().sum::<usize>();
        start..start + self.counts[rank]
    }

    fn tree(&self) -> Tree {
        Tree::for_leaves(self.world())
    }

    fn plan(&self) -> EvenPlan {
        EvenPlan::with_counts(&self.tree(), self.start, &self.counts, self.dtype)
            .reducing(self.redop)
    }

    /// Elements of a window.
    fn len(&self) -> usize {
        self.range().end + 2
    }

    fn reduced(&self, range: Range<usize>) -> Vec<u8> {
        let tree = self.tree();
        range.flat_map(|index| reduced(self.dtype, self.redop, &tree, index)).collect()
    }

    fn given(&self, rank: usize, range: Range<usize>) -> Vec<u8> {
        range.flat_map(|index| given(self.dtype, rank, index)).collect()
    }

    /// A window of this rank with some elements of `bytes` in place of what is not written.
    fn with(&self, base: &[u8], at: Range<usize>, bytes: &[u8]) -> Vec<u8> {
        let mut all = base.to_vec();
        let size = self.dtype.bytes();
        all[at.start * size..at.end * size].copy_from_slice(bytes);
        all
    }
}

/// A rank with two windows and memory apart.
struct Rank<'a> {
    case: &'a Case,
    rank: usize,
    stream: Stream,
    group: &'a Group,
    a: Window,
    b: Window,
    apart: Tensor,
}

impl Rank<'_> {
    fn bytes(&self, window: &Window) -> Tensor {
        window.tensor(0, &[window.bytes()], DType::U8).unwrap()
    }

    /// Fills A with what `mine` says of its elements, and all else with what is not written.
    fn fill(&self, mine: Range<usize>) {
        let size = self.case.dtype.bytes();
        let mut bytes = vec![UNTOUCHED; self.a.bytes()];
        let given = self.case.given(self.rank, mine.clone());
        bytes[mine.start * size..mine.end * size].copy_from_slice(&given);
        self.stream.copy_in(&self.bytes(&self.a), &bytes).unwrap();
        for other in [self.bytes(&self.b), self.apart.as_bytes()] {
            self.stream.copy_in(&other, &vec![UNTOUCHED; other.len()]).unwrap();
        }
    }

    /// Runs `op` with `mine` of A given, and compares A, B and the memory apart.
    fn check(&self, name: &str, mine: Range<usize>, op: Op, expected: [Option<Vec<u8>>; 3]) {
        self.fill(mine);
        let before = self.read();
        self.group.run(&self.stream, op).unwrap();
        for ((got, before), expected) in self.read().into_iter().zip(before).zip(expected) {
            let Case { dtype, redop, counts, root, .. } = self.case;
            assert!(
                got == expected.unwrap_or(before),
                "{name} of {dtype} by {redop}, shares {counts:?}, root {root}, on rank {}",
                self.rank
            );
        }
    }

    fn read(&self) -> [Vec<u8>; 3] {
        [self.bytes(&self.a), self.bytes(&self.b), self.apart.as_bytes()]
            .map(|tensor| self.stream.to_vec::<u8>(&tensor).unwrap())
    }

    /// Those that reduce, in place and not.
    fn reductions(&self) {
        let Case { root, .. } = *self.case;
        let (case, window, plan) = (self.case, || self.a.clone(), || self.case.plan());
        let (range, share) = (case.range(), case.share(self.rank));
        let untouched = vec![UNTOUCHED; self.a.bytes()];
        let own = case.with(&untouched, range.clone(), &case.given(self.rank, range.clone()));
        let all = case.reduced(range.clone());
        let filled = |base: &[u8]| case.with(base, range.clone(), &all);
        let first = |bytes: &[u8]| {
            let mut apart = vec![UNTOUCHED; self.apart.bytes()];
            apart[..bytes.len()].copy_from_slice(bytes);
            Some(apart)
        };
        let run = |name, op, expected| self.check(name, range.clone(), op, expected);
        let op = Op::AllReduce { window: window(), plan: plan() };
        run("all_reduce", op, [Some(filled(&own)), None, None]);
        let op = Op::AllReduceInto { window: window(), plan: plan(), into: self.b.clone() };
        run("all_reduce into", op, [None, Some(filled(&untouched)), None]);
        let mine = &case.reduced(share.clone());
        let out = |window: &Window| window.tensor(0, &[case.len()], case.dtype).unwrap();
        let op = Op::ReduceScatter { window: window(), plan: plan(), out: out(&self.a) };
        run("reduce_scatter", op, [Some(case.with(&own, share.clone(), mine)), None, None]);
        let op = Op::ReduceScatter { window: window(), plan: plan(), out: out(&self.b) };
        run("reduce_scatter into", op, [None, Some(case.with(&untouched, share, mine)), None]);
        let is_root = self.rank == root;
        let op = Op::Reduce { window: window(), plan: plan(), root, out: None };
        run("reduce", op, [is_root.then(|| filled(&own)), None, None]);
        let out = is_root.then(|| self.apart.clone());
        let op = Op::Reduce { window: window(), plan: plan(), root, out };
        run("reduce into", op, [None, None, if is_root { first(&all) } else { None }]);
    }

    /// Those that move, in place and not.
    fn moves(&self) {
        let Case { root, .. } = *self.case;
        let (case, window, plan) = (self.case, || self.a.clone(), || self.case.plan());
        let (range, share) = (case.range(), case.share(self.rank));
        let untouched = vec![UNTOUCHED; self.a.bytes()];
        let shares: Vec<u8> =
            (0..case.world()).flat_map(|rank| case.given(rank, case.share(rank))).collect();
        let gathered = Some(case.with(&untouched, range.clone(), &shares));
        let first = |bytes: &[u8]| {
            let mut apart = vec![UNTOUCHED; self.apart.bytes()];
            apart[..bytes.len()].copy_from_slice(bytes);
            Some(apart)
        };
        let (is_root, into) = (self.rank == root, || self.apart.clone());
        let op = Op::AllGather { window: window(), plan: plan() };
        self.check("all_gather", share.clone(), op, [gathered.clone(), None, None]);
        let op = Op::AllGatherInto { window: window(), plan: plan(), into: into() };
        self.check("all_gather into", share.clone(), op, [None, None, first(&shares)]);
        let op = Op::Gather { window: window(), plan: plan(), root, into: None };
        let expected = gathered.filter(|_| is_root);
        self.check("gather", share.clone(), op, [expected, None, None]);
        let to = is_root.then(into);
        let op = Op::Gather { window: window(), plan: plan(), root, into: to };
        let expected = if is_root { first(&shares) } else { None };
        self.check("gather into", share.clone(), op, [None, None, expected]);

        let whole = if is_root { range.clone() } else { 0..0 };
        let base = match is_root {
            true => case.with(&untouched, range.clone(), &case.given(root, range.clone())),
            false => untouched,
        };
        let mine = case.given(root, share.clone());
        let op = Op::Scatter { window: window(), plan: plan(), root, into: None };
        let expected = Some(case.with(&base, share, &mine));
        self.check("scatter", whole.clone(), op, [expected, None, None]);
        let op = Op::Scatter { window: window(), plan: plan(), root, into: Some(into()) };
        self.check("scatter into", whole.clone(), op, [None, None, first(&mine)]);
        let (element_bytes, all) = (case.dtype.bytes(), case.given(root, range.clone()));
        let given = || range.clone();
        let op = Op::Broadcast { window: window(), root, element_bytes, range: given() };
        let expected = Some(case.with(&base, given(), &all));
        self.check("broadcast", whole.clone(), op, [expected, None, None]);
        let (window, into) = (window(), into());
        let op = Op::BroadcastInto { window, root, element_bytes, range: given(), into };
        self.check("broadcast into", whole, op, [None, None, first(&all)]);
    }
}

/// Runs every operation of these cases, which have one number of ranks.
fn check(kind: &str, cases: &[Case], device: impl Fn(usize) -> Device + Sync) {
    with_ranks(kind, cases[0].world(), PATIENCE_MS, |world| {
        let device = device(world.rank());
        let group = &world.group(&device).unwrap();
        for case in cases {
            let bytes = case.len() * case.dtype.bytes();
            let [a, b] = [0, 1].map(|_| group.window(bytes).unwrap());
            let apart = device.zeros(&[case.range().len() + 1], case.dtype).unwrap();
            let (rank, stream) = (world.rank(), device.stream());
            let rank = Rank { case, rank, stream, group, a, b, apart };
            rank.reductions();
            if case.redop == RedOp::Sum {
                rank.moves();
            }
        }
    });
}

fn host(rank: usize) -> Device {
    Device::cpu(1 + rank % 2).unwrap()
}

#[test]
fn every_operation_type_and_reduction_among_up_to_eight_ranks() {
    let flat = BACKENDS.into_iter().flat_map(|kind| (1..=8).map(move |w| (kind, w)));
    for (kind, world) in flat.chain(BY_HOSTS) {
        let mut cases = Vec::new();
        for (index, dtype) in TYPES.into_iter().enumerate() {
            for redop in RedOp::ALL {
                let lens = [0, 1, world + 1, 37];
                // Groups take their time where many ranks share few cores.
                let few = if world < 4 { 0..4 } else { (index + redop as usize) % 4..4 };
                cases.extend(few.step_by(3).map(|at| Case::even(dtype, redop, world, lens[at])));
            }
        }
        check(kind, &cases, host);
    }
}

/// The lengths beyond one element are those at which records, frames and what TLS holds back end.
#[test]
fn every_type_and_reduction_over_tls() {
    let large = [0, 1, 16_383, 65_537, 1_000_003];
    for (world, redop) in [(2, RedOp::Sum), (3, RedOp::Sum), (2, RedOp::Max)] {
        let each = TYPES.into_iter().zip(large.into_iter().cycle());
        let mut cases: Vec<Case> =
            each.map(|(dtype, len)| Case::even(dtype, redop, world, len)).collect();
        cases.extend(TYPES.map(|dtype| Case::even(dtype, redop, world, 37)));
        cases.push(Case::even(DType::F32, redop, world, 1_000_003));
        check("tls", &cases, host);
    }
}

#[test]
fn every_type_and_reduction_on_devices_that_are_staged() {
    if simulated(Arch::Gfx942, 0).is_none() {
        return;
    }
    for (kind, world) in [(BACKENDS[0], 3), (BACKENDS[1], 3), BY_HOSTS[0], BY_HOSTS[2]] {
        let all = TYPES.into_iter().flat_map(|dtype| RedOp::ALL.map(|redop| (dtype, redop)));
        let cases: Vec<Case> =
            all.map(|(dtype, redop)| Case::even(dtype, redop, world, 1001)).collect();
        check(kind, &cases, |rank| simulated(Arch::Gfx942, rank as u64).unwrap());
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 24, rng_seed: proptest::test_runner::RngSeed::Fixed(20), ..ProptestConfig::default()
    })]
    #[test]
    fn shares_of_any_size(
        mut counts in prop::collection::vec(prop_oneof![0_usize..20, 0_usize..60_000], 1..6),
        start in 0_usize..70, kind in 0_usize..TYPES.len(), redop in 0_usize..5, root in 0_usize..6,
        backend in 0_usize..4,
    ) {
        if backend > 1 {
            counts.resize(4, 9_000);
        }
        let (dtype, redop, root) = (TYPES[kind], RedOp::ALL[redop], root % counts.len());
        let first = Case { dtype, redop, counts, start, root };
        let second = Case { redop: RedOp::Sum, ..first.clone() };
        check([BACKENDS[0], BACKENDS[1], "2 a host", "2 a host"][backend], &[first, second], host);
    }
}

/// An operation of a device that is not the window's, a window, and a plan of 16 elements.
type MakeOp<'a> = &'a (dyn Fn(&Device, &Window, &EvenPlan) -> Op + Sync);

/// Elements that are not reduced in one round.
const LARGE: usize = 1 << 20;

/// The errors of both ranks where rank 1 prepares an operation and rank 0 waits for it.
fn refused(op: MakeOp) -> (String, String) {
    let told = with_ranks("shm", 2, PATIENCE_MS, |world| {
        let device = Device::cpu(1).unwrap();
        let group = world.group(&device).unwrap();
        let (window, other) = (group.window(LARGE * 4).unwrap(), Device::cpu(1).unwrap());
        let plan = EvenPlan::new(&Tree::for_leaves(2), 0..16, DType::F32);
        if world.rank() == 0 {
            // Waits until the other gives the job up, and why.
            return message(group.run(&device.stream(), Op::Barrier));
        }
        match group.prepare(op(&other, &window, &plan)) {
            Ok(_) => "no error".to_owned(),
            Err(error) => error.to_string(),
        }
    });
    (told[0].clone(), told[1].clone())
}

#[test]
fn mistakes_name_the_rank_and_what_is_wrong() {
    let tensor = |device: &Device, len: usize, dtype| device.zeros(&[len], dtype).unwrap();
    let of = |window: &Window| window.buffer().device().clone();
    let into_itself = |len: usize| {
        move |_: &Device, window: &Window, _: &EvenPlan| {
            let plan = EvenPlan::new(&Tree::for_leaves(2), 0..len, DType::F32);
            let out = Some(window.tensor(0, &[len], DType::F32).unwrap());
            Op::Reduce { window: window.clone(), plan, root: 1, out }
        }
    };
    let (small, large) = (into_itself(16), into_itself(LARGE));
    let wrong: [(&str, MakeOp); 9] = [
        ("to write what it reads", &small),
        ("to write what it reads", &large),
        ("rank 2 does not exist among 2 ranks", &|_, window, plan| Op::Reduce {
            window: window.clone(),
            plan: plan.clone(),
            root: 2,
            out: None,
        }),
        ("rank 5 does not exist among 2 ranks", &|_, window, plan| Op::Scatter {
            window: window.clone(),
            plan: plan.clone(),
            root: 5,
            into: None,
        }),
        ("`into` of rank 1 has 15 elements where 16 go", &|_, window, plan| {
            let into = tensor(&of(window), 15, DType::F32);
            Op::AllGatherInto { window: window.clone(), plan: plan.clone(), into }
        }),
        ("`out` of rank 1 has 3 elements where 16 go", &|_, window, plan| {
            let out = Some(tensor(&of(window), 3, DType::F32));
            Op::Reduce { window: window.clone(), plan: plan.clone(), root: 1, out }
        }),
        ("`into` of rank 1 is i32 where the plan says f32", &|_, window, plan| {
            let into = Some(tensor(&of(window), 16, DType::I32));
            Op::Gather { window: window.clone(), plan: plan.clone(), root: 1, into }
        }),
        ("`into` of rank 1 lies on cpu", &|other, window, plan| {
            let into = Some(tensor(other, 16, DType::F32));
            Op::Scatter { window: window.clone(), plan: plan.clone(), root: 0, into }
        }),
        ("u32 is not reduced to u32", &|_, window, _| {
            let plan = EvenPlan::new(&Tree::for_leaves(2), 0..16, DType::U32);
            Op::AllReduce { window: window.clone(), plan }
        }),
    ];
    for (words, op) in wrong {
        let (other, own) = refused(op);
        assert!(own.contains(words), "{own}");
        // Whoever waits for that rank learns why it does not come.
        assert!(other.contains("rank 1: ") && other.contains(words), "{other}");
    }
}

#[test]
fn members_that_disagree_are_told_about_each_other() {
    for kind in BACKENDS {
        let told = with_ranks(kind, 2, PATIENCE_MS, |world| {
            let device = Device::cpu(1).unwrap();
            let group = world.group(&device).unwrap();
            let window = group.window(64).unwrap();
            let counts = if world.rank() == 0 { [5, 5] } else { [5, 4] };
            let plan = EvenPlan::with_counts(&Tree::for_leaves(2), 0, &counts, DType::F32);
            let op = Op::Gather { window, plan, root: 0, into: None };
            group.run(&device.stream(), op)
        });
        let Err(error) = &told[0] else { panic!("{kind}: unequal counts were taken") };
        let names = matches!(error, CommError::Length { rank: 1, got: 16, expected: 20 });
        assert!(names, "{kind}: {error}");
    }
    for kind in BACKENDS {
        let told = with_ranks(kind, 2, PATIENCE_MS, |world| {
            let device = Device::cpu(1).unwrap();
            let group = world.group(&device).unwrap();
            let window = group.window(64).unwrap();
            let redop = [RedOp::Min, RedOp::Max][world.rank()];
            let plan = EvenPlan::new(&Tree::for_leaves(2), 0..16, DType::F32).reducing(redop);
            message(group.run(&device.stream(), Op::AllReduce { window, plan }))
        });
        let names = |text: &String| text.contains("with other arguments");
        assert!(told.iter().any(names), "{kind}: {told:?}");
    }
}

#[test]
fn what_is_written_into_windows_is_counted_as_what_is_read_out_of_them() {
    const LEN: usize = 90_000;
    for kind in BACKENDS {
        with_ranks(kind, 3, PATIENCE_MS, |world| {
            let device = Device::cpu(1).unwrap();
            let (group, stream) = (world.group(&device).unwrap(), device.stream());
            let window = group.window(4 * LEN).unwrap();
            let plan = EvenPlan::new(&Tree::for_leaves(3), 0..LEN, DType::F32);
            let counted = |operation| {
                let count = world.counters().of(operation);
                [count.payload_sent_bytes, count.payload_received_bytes]
            };
            group.run(&stream, Op::AllReduce { window: window.clone(), plan }).unwrap();
            let shares = [2 * 4 * LEN as u64 / 3; 2];
            assert_eq!(counted(Operation::ReduceScatterOrdered), shares, "{kind}");
            assert_eq!(counted(Operation::AllGatherSegments), shares, "{kind}");
            let op = Op::Broadcast { window, root: 1, element_bytes: 4, range: 0..LEN };
            group.run(&stream, op).unwrap();
            let bytes = 4 * LEN as u64;
            let moved = if world.rank() == 1 { [2 * bytes, 0] } else { [0, bytes] };
            let all = [0, 1].map(|side: usize| shares[side] + moved[side]);
            assert_eq!(counted(Operation::AllGatherSegments), all, "{kind}");
        });
    }
}
