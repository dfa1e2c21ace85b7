//! Every operation, type and reduction, on 1 to 4 ranks as processes and as threads, of both
//! vendors; groups, splits, memory.

mod common;

use std::time::{Duration, Instant};

use common::gpu::{Gpu, encode};
use common::{JOB, Job, Rank, VENDORS, run_task, wait, within};
use nccl_rs::{
    Buffer, Communicator, Config, DataType, Error, JobId, Library, PreMulSum, Progress, RedOp,
    Shrink, Stream, Vendor,
};

/// A rank with a communicator, and two buffers for the operations of a test.
struct Bench {
    gpu: Gpu,
    comm: Communicator,
    stream: Stream,
    from: Buffer,
    to: Buffer,
}

/// Elements of one part; odd, so that nothing is aligned to more than an element.
const LEN: usize = 5;

impl Bench {
    fn new(rank: &Rank) -> Bench {
        let gpu = Gpu::open(rank.vendor);
        let comm = rank.init();
        let bytes = 8 * LEN * rank.ranks as usize;
        let (from, to) = (gpu.alloc(bytes, DataType::U8), gpu.alloc(bytes, DataType::U8));
        let stream = gpu.stream();
        Bench { gpu, comm, stream, from, to }
    }

    fn rank(&self) -> i64 {
        i64::from(self.comm.rank())
    }

    fn ranks(&self) -> i64 {
        i64::from(self.comm.ranks())
    }

    /// Buffers of `parts` parts each, the first filled; the second with something else.
    fn ready(&self, dtype: DataType, values: &[i64], to_parts: usize) -> (Buffer, Buffer) {
        let from = Buffer::new(self.from.address, values.len(), dtype);
        let to = Buffer::new(self.to.address, to_parts * LEN, dtype);
        self.gpu.write(from, &encode(dtype, values), self.stream);
        self.gpu.write(to, &encode(dtype, &vec![7; to.len]), self.stream);
        (from, to)
    }

    #[track_caller]
    fn expect(&self, to: Buffer, values: &[i64], what: &str) {
        wait(&self.gpu, self.stream, &self.comm).unwrap();
        let got = self.gpu.read(to, self.stream);
        assert_eq!(got, encode(to.dtype, values), "{what} of {} on {:?}", to.dtype, self.comm);
    }

    fn end(self) {
        self.comm.finalize().unwrap();
    }
}

/// Element `i` of part `part` of a rank, and what a reduction makes of all ranks'. All values are
/// exact in all types.
struct Reduction<'a> {
    op: RedOp<'a>,
    name: &'static str,
    value: fn(rank: i64, i: i64) -> i64,
    reduced: fn(ranks: i64, i: i64) -> i64,
}

fn small(rank: i64, i: i64) -> i64 {
    1 + (rank + i) % 2
}

fn over(ranks: i64, i: i64, with: fn(i64, i64) -> i64) -> i64 {
    (0..ranks).map(|rank| small(rank, i)).reduce(with).unwrap()
}

fn reductions(factor: &PreMulSum) -> [Reduction<'_>; 6] {
    let of = |op, name, value, reduced| Reduction { op, name, value, reduced };
    [
        of(RedOp::Sum, "sum", small, |ranks, i| over(ranks, i, |a, b| a + b)),
        of(RedOp::Prod, "prod", small, |ranks, i| over(ranks, i, |a, b| a * b)),
        of(RedOp::Max, "max", small, |ranks, i| over(ranks, i, i64::max)),
        of(RedOp::Min, "min", small, |ranks, i| over(ranks, i, i64::min)),
        of(RedOp::Avg, "avg", |rank, _| 1 + 2 * rank, |ranks, _| ranks),
        // A rank's factor is its number plus 1.
        of(
            RedOp::PreMulSum(factor),
            "premul sum",
            |_, i| 1 + i % 2,
            |ranks, i| (1 + i % 2) * ranks * (ranks + 1) / 2,
        ),
    ]
}

fn list(range: std::ops::Range<i64>, of: impl Fn(i64) -> i64) -> Vec<i64> {
    range.map(of).collect()
}

fn reducing(bench: &Bench, dtype: DataType) {
    let (rank, ranks, len) = (bench.rank(), bench.ranks(), LEN as i64);
    let factor = bench.comm.pre_mul_sum(dtype, &encode(dtype, &[rank + 1])).unwrap();
    for Reduction { op, name, value, reduced } in reductions(&factor) {
        let own = list(0..len, |i| value(rank, i));
        let sum = list(0..len, |i| reduced(ranks, i));
        let (from, to) = bench.ready(dtype, &own, 1);
        // SAFETY: the bench keeps its buffers, and waits for the stream.
        unsafe { bench.comm.all_reduce(from, to, op, bench.stream) }.unwrap();
        bench.expect(to, &sum, name);
        // SAFETY: as above, in place.
        unsafe { bench.comm.all_reduce(from, from, op, bench.stream) }.unwrap();
        bench.expect(from, &sum, name);
        for root in 0..bench.comm.ranks() {
            let (from, to) = bench.ready(dtype, &own, 1);
            let at_root = (bench.comm.rank() == root).then_some(to);
            // SAFETY: as above.
            unsafe { bench.comm.reduce(from, at_root, op, root, bench.stream) }.unwrap();
            let expected = at_root.map_or(vec![7; LEN], |_| sum.clone());
            bench.expect(to, &expected, name);
        }
        let own = list(0..len * ranks, |i| value(rank, i));
        let (from, to) = bench.ready(dtype, &own, 1);
        // SAFETY: as above.
        unsafe { bench.comm.reduce_scatter(from, to, op, bench.stream) }.unwrap();
        bench.expect(to, &list(rank * len..(rank + 1) * len, |i| reduced(ranks, i)), name);
    }
}

fn moving(bench: &Bench, dtype: DataType) {
    let (comm, stream, len) = (&bench.comm, bench.stream, LEN as i64);
    let (rank, ranks, parts) = (bench.rank(), bench.ranks(), comm.ranks() as usize);
    // Of every rank something else.
    let value = |rank: i64, i: i64| 1 + (3 * rank + i) % 7;
    let own = list(0..len, |i| value(rank, i));
    let all = list(0..len * ranks, |i| value(i / len, i % len));
    let wide = list(0..len * ranks, |i| value(rank, i));

    let (from, to) = bench.ready(dtype, &own, parts);
    // SAFETY: the bench keeps its buffers, and waits for the stream; also below.
    unsafe { comm.all_gather(from, to, stream) }.unwrap();
    bench.expect(to, &all, "all_gather");
    let (from, to) = bench.ready(dtype, &wide, parts);
    // SAFETY: as above.
    unsafe { comm.all_to_all(from, to, stream) }.unwrap();
    bench.expect(to, &list(0..len * ranks, |i| value(i / len, rank * len + i % len)), "all_to_all");
    for root in 0..comm.ranks() {
        let is_root = comm.rank() == root;
        let (from, to) = bench.ready(dtype, &own, 1);
        // SAFETY: as above.
        unsafe { comm.broadcast(is_root.then_some(from), to, root, stream) }.unwrap();
        bench.expect(to, &list(0..len, |i| value(root.into(), i)), "broadcast");
        let (from, to) = bench.ready(dtype, &own, parts);
        // SAFETY: as above.
        unsafe { comm.gather(from, is_root.then_some(to), root, stream) }.unwrap();
        bench.expect(to, if is_root { &all } else { &[7; LEN * 4][..LEN * parts] }, "gather");
        let (from, to) = bench.ready(dtype, &wide, 1);
        // SAFETY: as above.
        unsafe { comm.scatter(is_root.then_some(from), to, root, stream) }.unwrap();
        bench.expect(to, &list(0..len, |i| value(root.into(), rank * len + i)), "scatter");
    }
    let (next, before) = ((rank + 1) % ranks, (rank + ranks - 1) % ranks);
    let (from, to) = bench.ready(dtype, &own, 1);
    let ring = comm.library().group(comm.timeout(), || {
        // SAFETY: as above.
        unsafe {
            comm.send(from, next as u32, stream)?;
            comm.recv(to, before as u32, stream)
        }
    });
    ring.unwrap();
    bench.expect(to, &list(0..len, |i| value(before, i)), "a ring of sends");
}

fn everything(rank: &Rank) {
    let bench = Bench::new(rank);
    for dtype in DataType::ALL {
        reducing(&bench, dtype);
        moving(&bench, dtype);
    }
    assert_eq!(bench.comm.async_error().unwrap(), Progress::Done);
    bench.end();
}

/// Longer than any buffer of a socket, in both directions at once.
fn long_ring(rank: &Rank) {
    let bench = Bench::new(rank);
    let len = 3 << 20;
    let from = bench.gpu.filled(DataType::I32, &vec![bench.rank() + 1; len], bench.stream);
    let to = bench.gpu.alloc(len, DataType::I32);
    let (comm, ranks) = (&bench.comm, bench.ranks());
    let peer = |step: i64| ((bench.rank() + step + ranks) % ranks) as u32;
    let ring = comm.library().group(Duration::from_secs(20), || {
        // SAFETY: the buffers are kept until the stream was waited for.
        unsafe {
            comm.recv(to, peer(-1), bench.stream)?;
            comm.send(from, peer(1), bench.stream)
        }
    });
    ring.unwrap();
    bench.expect(to, &vec![i64::from(peer(-1)) + 1; len], "a long ring");
    bench.end();
}

fn splits(rank: &Rank) {
    let bench = Bench::new(rank);
    let comm = &bench.comm;
    // Rank 3 stays out; of the others those of even rank, and in the opposite order.
    let color = (rank.rank < 3).then_some(rank.rank % 2);
    let child = comm.split(color, -(rank.rank as i32), &within(20_000)).unwrap();
    assert_eq!(child.is_some(), rank.rank < 3);
    if let Some(child) = &child {
        let expected = [(1, 2), (0, 1), (0, 2)][rank.rank as usize];
        assert_eq!((child.rank(), child.ranks()), expected);
        let (from, to) = bench.ready(DataType::I32, &[bench.rank() + 1; LEN], 1);
        // SAFETY: the bench keeps its buffers, and waits for the stream.
        unsafe { child.all_reduce(from, to, RedOp::Sum, bench.stream) }.unwrap();
        bench.expect(to, &[[4, 2, 4][rank.rank as usize]; LEN], "a child's all_reduce");
        child.finalize().unwrap();
    }
    // The parent goes on, and can be made smaller while it is sound.
    let smaller = (rank.rank != 1).then(|| comm.shrink(&[1], Shrink::Idle, &within(20_000)));
    if let Some(smaller) = smaller {
        let smaller = smaller.unwrap();
        assert_eq!((smaller.rank(), smaller.ranks()), (rank.rank.saturating_sub(1), 3));
        smaller.finalize().unwrap();
    }
    let error = comm.shrink(&[4], Shrink::Idle, &within(1000)).unwrap_err();
    assert!(matches!(error, Error::Rank { rank: 4, ranks: 4, .. }), "{error}");
    let error = comm.shrink(&[rank.rank], Shrink::Idle, &within(1000)).unwrap_err();
    assert!(matches!(error, Error::Argument { .. }), "{error}");
    bench.end();
}

fn groups(rank: &Rank) {
    let bench = Bench::new(rank);
    let (comm, stream, library) = (&bench.comm, bench.stream, bench.comm.library());
    let patience = Duration::from_secs(20);
    let (from, to) = bench.ready(DataType::I32, &[bench.rank() + 1; LEN], 1);
    // SAFETY: the bench keeps its buffers, and waits for the stream; also below.
    let sum = || unsafe { comm.all_reduce(from, to, RedOp::Sum, stream) };
    // An error before anything was queued is that error, one after it says so.
    let none = library.group(patience, || comm.pre_mul_sum(DataType::F32, &[0; 3]).map(drop));
    assert!(matches!(none, Err(Error::Argument { .. })), "{none:?}");
    let some = library.group(patience, || {
        sum()?;
        comm.pre_mul_sum(DataType::F32, &[0; 3]).map(drop)
    });
    let Err(Error::Group { queued: 1, source }) = some else { panic!("{some:?}") };
    assert!(matches!(*source, Error::Argument { .. }), "{source}");
    bench.expect(to, &[3; LEN], "what was queued before the error");
    // A panic ends the group.
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _ = library.group(patience, || -> Result<(), Error> { panic!("on purpose") });
    }));
    assert!(caught.is_err());
    // A call that has to wait cannot be part of one; a group can.
    let inside = library.group(patience, || comm.split(Some(0), 0, &within(100)));
    assert!(matches!(inside, Err(Error::Argument { .. })), "{inside:?}");
    library.group(patience, || library.group(patience, sum)).unwrap();
    bench.expect(to, &[3; LEN], "a group within a group");
    // An estimate starts nothing.
    let (from, to) = bench.ready(DataType::I32, &[1; LEN], 1);
    // SAFETY: as above.
    let sum = || unsafe { comm.all_reduce(from, to, RedOp::Sum, stream) };
    let estimated_us = library.group_simulate(sum).unwrap();
    assert!(estimated_us > 0.0, "{estimated_us}");
    bench.expect(to, &[7; LEN], "nothing was started");
    bench.end();
}

fn memory(rank: &Rank) {
    let bench = Bench::new(rank);
    let (comm, stream) = (&bench.comm, bench.stream);
    let allocated = comm.library().mem_alloc(8192 + 3).unwrap();
    let buffer = allocated.buffer(DataType::F32);
    assert_eq!((buffer.len, allocated.bytes()), (2048, 8195));
    // SAFETY: the memory is kept until both were dropped.
    let window = unsafe { comm.window(buffer) }.unwrap();
    assert!(window.is_taken());
    // SAFETY: as above.
    let registration = unsafe { comm.register(bench.from) }.unwrap();
    bench.gpu.write(buffer, &encode(DataType::F32, &vec![2; 2048]), stream);
    // SAFETY: as above; the stream is waited for.
    unsafe { comm.all_reduce(buffer, buffer, RedOp::Sum, stream) }.unwrap();
    bench.expect(buffer, &vec![2 * bench.ranks(); 2048], "in a window");
    let off = Buffer::new(buffer.address + 4, 4, DataType::F32);
    // SAFETY: as above.
    let error = unsafe { comm.window(off) }.err().unwrap();
    assert!(error.to_string().contains("not a multiple of 4096"), "{error}");
    drop((window, registration));
    bench.end();
    drop(allocated);
}

/// Threads of one rank use one communicator at once, each in a stream of its own.
fn shared(rank: &Rank) {
    let bench = Bench::new(rank);
    let comm = &bench.comm;
    std::thread::scope(|scope| {
        for thread in 1..=4 {
            scope.spawn(move || {
                let gpu = Gpu::open(rank.vendor);
                let stream = gpu.stream();
                let buffer = gpu.filled(DataType::I32, &[thread; LEN], stream);
                for _ in 0..25 {
                    // SAFETY: the buffer is kept until the stream was waited for.
                    unsafe { comm.all_reduce(buffer, buffer, RedOp::Sum, stream) }.unwrap();
                }
                wait(&gpu, stream, comm).unwrap();
                assert_eq!(gpu.read(buffer, stream), encode(DataType::I32, &[thread; LEN]));
            });
        }
    });
    bench.end();
}

/// Mistakes that are refused before the library sees them; nobody waits.
fn refusals(rank: &Rank) {
    let bench = Bench::new(rank);
    let (comm, stream) = (&bench.comm, bench.stream);
    let (from, to) = bench.ready(DataType::F32, &[1; LEN], 1);
    let short = Buffer { len: LEN - 1, ..to };
    // SAFETY: nothing is enqueued; also below.
    let told = |result: Result<(), Error>| result.unwrap_err();
    // SAFETY: as above.
    let error = told(unsafe { comm.all_reduce(from, short, RedOp::Sum, stream) });
    assert_eq!(error.to_string(), "ncclAllReduce: it reads 5 elements and writes 4");
    // SAFETY: as above.
    let error = told(unsafe { comm.all_gather(from, to, stream) });
    assert!(error.to_string().contains("(1 to 2)"), "{error}");
    // SAFETY: as above.
    let error = told(unsafe { comm.broadcast(Some(from), to, 2, stream) });
    assert!(matches!(error, Error::Rank { what: "the root", rank: 2, ranks: 2 }), "{error}");
    // SAFETY: as above.
    let error = told(unsafe { comm.send(from, 9, stream) });
    assert!(matches!(error, Error::Rank { what: "the peer", rank: 9, ranks: 2 }), "{error}");
    // SAFETY: as above.
    let error = told(unsafe { comm.gather(from, None, comm.rank(), stream) });
    assert!(error.to_string().contains("this rank is the root"), "{error}");
    // SAFETY: as above.
    let error = told(unsafe { comm.all_to_all(from, to, stream) });
    assert!(error.to_string().contains("do not divide among 2 ranks"), "{error}");
    // SAFETY: as above.
    let error = told(unsafe { comm.all_to_all(from, from, stream) });
    let overlap = "the buffers overlap, and it cannot be done in place: give it another one";
    assert_eq!(error.to_string(), format!("ncclAlltoAll: {overlap}"));
    let factor = comm.pre_mul_sum(DataType::F64, &2.0_f64.to_ne_bytes()).unwrap();
    // SAFETY: as above.
    let error = told(unsafe { comm.all_reduce(from, to, RedOp::PreMulSum(&factor), stream) });
    assert!(matches!(error, Error::Reduction { dtype: DataType::F32, .. }), "{error}");
    drop(factor);
    let error = comm.split(Some(u32::MAX), 0, &within(100)).unwrap_err();
    assert!(matches!(error, Error::Argument { .. }), "{error}");
    comm.finalize().unwrap();
    // SAFETY: as above.
    let error = told(unsafe { comm.all_reduce(from, to, RedOp::Sum, stream) });
    assert!(error.to_string().ends_with("was finalized"), "{error}");
    assert!(comm.abort().is_ok(), "an end after the end is none");
}

/// An id that meets another job, another vendor, another rank than there is.
fn strange_ids(rank: &Rank) {
    let _gpu = Gpu::open(rank.vendor);
    let [ours, theirs] = match rank.vendor {
        Vendor::Nvidia => [Vendor::Nvidia, Vendor::Amd],
        Vendor::Amd => [Vendor::Amd, Vendor::Nvidia],
    };
    let [ours, theirs] = [ours, theirs].map(|vendor| Library::open(vendor).unwrap());
    let id = ours.unique_id(JOB).unwrap();
    let init = |library: &Library, job, rank, ranks| {
        let begun = Instant::now();
        let error = Communicator::init_rank(library, &id, job, rank, ranks, &Config::default());
        assert!(begun.elapsed() < Duration::from_secs(5), "it waited for somebody");
        error.unwrap_err()
    };
    let error = init(&ours, JobId([6; 16]), 0, 1);
    assert!(matches!(error, Error::IdJob { theirs: JOB, ours: JobId([6, ..]) }), "{error}");
    assert!(error.to_string().contains("give every rank the id"), "{error}");
    let error = init(&theirs, JOB, 0, 1);
    assert!(matches!(error, Error::IdVendor { .. }), "{error}");
    let error = init(&ours, JOB, 3, 3);
    assert!(matches!(error, Error::Rank { what: "the rank", rank: 3, ranks: 3 }), "{error}");
}

#[test]
#[ignore = "the body of a process: tests start it, in every run, with its libraries"]
fn child() {
    run_task(|task, rank| match task {
        "everything" => everything(rank),
        "long_ring" => long_ring(rank),
        "splits" => splits(rank),
        "groups" => groups(rank),
        "memory" => memory(rank),
        "shared" => shared(rank),
        "refusals" => refusals(rank),
        "strange_ids" => strange_ids(rank),
        _ => panic!("there is no task {task}"),
    });
}

#[test]
fn every_operation_type_and_reduction_among_processes() {
    for vendor in VENDORS {
        for ranks in 1..=4 {
            Job::new("everything", vendor, ranks).processes();
        }
    }
}

#[test]
fn every_operation_type_and_reduction_among_threads() {
    for vendor in VENDORS {
        for ranks in 1..=4 {
            Job::new("everything", vendor, ranks).threads();
        }
    }
}

/// Operations reach their streams only after the communicator was polled.
#[test]
fn a_library_that_works_in_the_background_is_waited_for() {
    for (seed, vendor) in VENDORS.into_iter().enumerate() {
        let seed = seed.to_string();
        Job::new("everything", vendor, 3).env("LOOKALIKE_NCCL_SEED", &seed).processes();
        Job::new("everything", vendor, 2).env("LOOKALIKE_NCCL_SEED", &seed).threads();
    }
}

/// All-to-all, gather and scatter by sends and receives.
#[test]
fn every_operation_with_a_library_that_lacks_some() {
    Job::new("everything", Vendor::Nvidia, 3).version(22_403).processes();
    let delayed = Job::new("everything", Vendor::Amd, 2).env("LOOKALIKE_NCCL_SEED", "3");
    delayed.version(22_707).processes();
}

/// The loader finds the library under its name, and it shares the driver's memory and streams.
#[test]
fn a_library_is_found_where_the_loader_looks() {
    for vendor in VENDORS {
        Job::new("long_ring", vendor, 2).linked().processes();
    }
}

#[test]
fn sends_and_receives_in_a_group_do_not_wait_for_each_other() {
    for ranks in 2..=4 {
        Job::new("long_ring", Vendor::Nvidia, ranks).processes();
    }
    Job::new("long_ring", Vendor::Amd, 3).threads();
}

#[test]
fn communicators_are_split_and_shrunk() {
    Job::new("splits", Vendor::Nvidia, 4).processes();
    Job::new("splits", Vendor::Amd, 4).threads();
}

#[test]
fn groups_end_however_their_calls_do() {
    for vendor in VENDORS {
        Job::new("groups", vendor, 2).processes();
    }
    Job::new("groups", Vendor::Nvidia, 2).env("LOOKALIKE_NCCL_SEED", "5").threads();
}

#[test]
fn threads_share_a_communicator() {
    for vendor in VENDORS {
        Job::new("shared", vendor, 1).env("LOOKALIKE_NCCL_SEED", "11").processes();
    }
}

#[test]
fn memory_is_allocated_registered_and_let_go_of() {
    for vendor in VENDORS {
        Job::new("memory", vendor, 2).processes();
    }
}

#[test]
fn wrong_arguments_never_reach_the_library() {
    Job::new("refusals", Vendor::Nvidia, 2).processes();
}

#[test]
fn an_id_that_is_not_this_ranks_is_refused_at_once() {
    for vendor in VENDORS {
        Job::new("strange_ids", vendor, 1).processes();
    }
}
