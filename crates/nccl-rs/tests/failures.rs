//! Ranks that come late, never, or twice; die, fail, hang, or call something else. Every call
//! comes back, with an error that says what happened.

mod common;

use std::time::{Duration, Instant};

use common::{Gpu, Job, Rank, VENDORS, assert_async, failure, run_task, wait, within};
use nccl_rs::{Buffer, Code, Communicator, DataType, End, Error, RedOp, Shrink, Stream, Vendor};

/// Generous: what a deadline promises, on a machine that is busy.
const SOON: Duration = Duration::from_secs(8);

struct Bench {
    gpu: Gpu,
    comm: Communicator,
    stream: Stream,
    buffer: Buffer,
}

impl Bench {
    fn new(rank: &Rank) -> Bench {
        let gpu = Gpu::open(rank.vendor);
        let comm = rank.init();
        let stream = gpu.stream();
        let buffer = gpu.filled(DataType::I32, &[1; 4], stream);
        Bench { gpu, comm, stream, buffer }
    }

    /// After a sum that every rank has seen.
    fn that_has_summed(rank: &Rank) -> Bench {
        let bench = Bench::new(rank);
        bench.sum().unwrap();
        bench.wait().unwrap();
        rank.meet("summed");
        bench
    }

    fn sum_of(&self, comm: &Communicator) -> Result<(), Error> {
        // SAFETY: the bench keeps its buffer, and frees it when no operation is left.
        unsafe { comm.all_reduce(self.buffer, self.buffer, RedOp::Sum, self.stream) }
    }

    fn sum(&self) -> Result<(), Error> {
        self.sum_of(&self.comm)
    }

    fn wait(&self) -> Result<(), Error> {
        wait(&self.gpu, self.stream, &self.comm)
    }

    /// Ends a communicator that has failed, and with it what hangs in the stream.
    fn abort(&self) {
        self.comm.abort().unwrap();
        self.gpu.synchronize(self.stream);
        let error = self.sum().unwrap_err();
        assert!(matches!(error, Error::Ended { end: End::Aborted, .. }), "{error}");
    }
}

#[track_caller]
fn assert_deadline(error: &Error, begun: Instant, least_ms: u64) {
    let Error::Deadline { waited_ms, .. } = error else { panic!("{error}") };
    assert!(*waited_ms >= least_ms && begun.elapsed() < SOON, "{error}");
}

fn late(rank: &Rank) {
    let begun = Instant::now();
    let bench = Bench::new(rank);
    assert!(begun.elapsed() >= Duration::from_millis(400), "rank 1 came late");
    bench.sum().unwrap();
    bench.wait().unwrap();
    bench.comm.finalize().unwrap();
}

fn absent(rank: &Rank) {
    let _gpu = Gpu::open(rank.vendor);
    let begun = Instant::now();
    let error = rank.try_init(&within(300)).unwrap_err();
    assert_deadline(&error, begun, 300);
    let told = error.to_string();
    let expected = format!("rank {} of 2: ncclCommInitRankConfig was not over", rank.rank);
    assert!(told.starts_with(&expected), "{told}");
    assert!(told.ends_with("not all ranks have come"), "{told}");
}

/// The process that made the id stays until both were told.
fn absent_for_all(rank: &Rank) {
    absent(rank);
    rank.meet("told");
}

fn twice(rank: &Rank) {
    let _gpu = Gpu::open(rank.vendor);
    // Both are rank 0, of the id of the first.
    let library = rank.library();
    let id = rank.id(&library);
    let error = Communicator::init_rank(&library, &id, common::JOB, 0, 2, &within(8000));
    assert_async(&error.unwrap_err(), Code::InvalidArgument, "there are two ranks 0");
    rank.meet("told");
}

fn dies_early(rank: &Rank) {
    let _gpu = Gpu::open(rank.vendor);
    let error = rank.try_init(&within(8000)).unwrap_err();
    assert_async(&error, Code::RemoteError, "a rank came and went");
    // All ranks are told by a thread of rank 0's process.
    rank.mark(&format!("told-{}", rank.rank));
    ["told-0", "told-2"].iter().for_each(|name| rank.wait_for(name));
}

fn dies(rank: &Rank) {
    let bench = Bench::that_has_summed(rank);
    // The loss may be known before the operation is begun.
    let _ = bench.sum();
    let error = failure(&bench.comm);
    assert_async(&error, Code::RemoteError, "look at the other ranks' messages");
    // It stays failed, for every later call.
    assert_async(&bench.comm.async_error().unwrap_err(), Code::RemoteError, "is gone");
    let error = bench.sum().unwrap_err();
    assert!(matches!(error, Error::Call { code: Code::RemoteError, .. }), "{error}");
    bench.abort();
}

/// The others go on without rank 1, or without rank 0, which all were connected to.
fn shrink(rank: &Rank, lost: u32) {
    let bench = Bench::that_has_summed(rank);
    // The loss may be known before the operation is begun.
    let _ = bench.sum();
    failure(&bench.comm);
    let smaller = bench.comm.shrink(&[lost], Shrink::Abort, &within(8000)).unwrap();
    assert_eq!(smaller.ranks(), rank.ranks - 1);
    bench.gpu.synchronize(bench.stream);
    let buffer = bench.gpu.filled(DataType::I32, &[i64::from(rank.rank) + 1; 4], bench.stream);
    let bench = Bench { buffer, ..bench };
    bench.sum_of(&smaller).unwrap();
    wait(&bench.gpu, bench.stream, &smaller).unwrap();
    let all: i64 = (0..rank.ranks).filter(|&r| r != lost).map(|r| i64::from(r) + 1).sum();
    let got = bench.gpu.read(bench.buffer, bench.stream);
    assert_eq!(got, common::gpu::encode(DataType::I32, &[all; 4]));
    smaller.finalize().unwrap();
    bench.comm.abort().unwrap();
}

fn error(rank: &Rank) {
    let bench = Bench::that_has_summed(rank);
    // The others may know of it before they begin.
    let _ = bench.sum();
    let error = failure(&bench.comm);
    if rank.rank == 1 {
        assert_async(&error, Code::SystemError, "an error on purpose");
        bench.abort();
        return rank.meet("told");
    }
    assert_async(&error, Code::RemoteError, "rank 1 is gone");
    rank.meet("told");
    bench.abort();
}

/// A thread aborts what another one waits for.
fn abort_elsewhere(rank: &Rank) {
    let bench = Bench::new(rank);
    bench.sum().unwrap();
    let (comm, begun, patience) = (&bench.comm, Instant::now(), Duration::from_millis(200));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(patience);
            comm.abort().unwrap();
        });
        // Without an abort it would wait for ever.
        bench.gpu.synchronize(bench.stream);
        assert!((patience..SOON).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    });
    bench.abort();
}

/// A thread aborts while another one is in a call of the library: here, a split that nobody joins.
fn abort_in_call(rank: &Rank) {
    let bench = Bench::new(rank);
    let comm = &bench.comm;
    if rank.rank == 1 {
        rank.wait_for("done");
        return bench.abort();
    }
    std::thread::scope(|scope| {
        let splitting = scope.spawn(|| comm.split(Some(0), 0, &within(60_000)));
        let third = scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(50));
            comm.pre_mul_sum(DataType::I32, &[0; 4])
        });
        std::thread::sleep(Duration::from_millis(200));
        let begun = Instant::now();
        comm.abort().unwrap();
        let error = splitting.join().unwrap().unwrap_err();
        assert!(matches!(error, Error::Ended { end: End::Aborted, .. }), "{error}");
        let error = third.join().unwrap().unwrap_err();
        assert!(matches!(error, Error::Ended { end: End::Aborted, .. }), "{error}");
        assert!(begun.elapsed() < SOON);
    });
    rank.mark("done");
}

/// As above, of a revoke, which waits for nobody's deadline either.
fn revoke_in_call(rank: &Rank) {
    let bench = Bench::new(rank);
    let comm = &bench.comm;
    if rank.rank == 1 {
        rank.wait_for("done");
        return bench.abort();
    }
    std::thread::scope(|scope| {
        let splitting = scope.spawn(|| comm.split(Some(0), 0, &within(60_000)));
        std::thread::sleep(Duration::from_millis(200));
        let begun = Instant::now();
        comm.revoke().unwrap();
        let error = splitting.join().unwrap().unwrap_err();
        assert!(matches!(error, Error::Ended { end: End::Revoked, .. }), "{error}");
        assert!(begun.elapsed() < SOON);
    });
    rank.mark("done");
    bench.abort();
}

/// The library's own abort takes longer than anybody wants to wait.
fn slow_abort(rank: &Rank) {
    let bench = Bench::new(rank);
    bench.comm.set_timeout(Duration::from_millis(150));
    let begun = Instant::now();
    let error = bench.comm.abort().unwrap_err();
    assert_deadline(&error, begun, 150);
    let error = bench.sum().unwrap_err();
    assert!(matches!(error, Error::Ended { end: End::Aborted, .. }), "{error}");
    // It goes on, and ends.
    std::thread::sleep(Duration::from_millis(2000));
}

/// While the library frees a communicator it may still use the memory that it knows.
fn memory_in_slow_abort(rank: &Rank) {
    let bench = Bench::new(rank);
    let memory = [(); 3].map(|()| bench.comm.library().mem_alloc(4096).unwrap());
    let buffer = |i: usize| memory[i].buffer(DataType::U8);
    // SAFETY: the memory is kept until the end of the process.
    let (early, window) = unsafe { (bench.comm.register(buffer(0)), bench.comm.window(buffer(1))) };
    // SAFETY: as above.
    let late = unsafe { bench.comm.register(buffer(2)) }.unwrap();
    bench.comm.set_timeout(Duration::from_millis(150));
    bench.comm.abort().unwrap_err();
    let begun = Instant::now();
    assert_deadline(&early.unwrap().release().unwrap_err(), begun, 150);
    // Of many the first alone is waited for.
    bench.comm.set_timeout(Duration::from_secs(20));
    window.unwrap().release().unwrap_err();
    assert!(begun.elapsed() < Duration::from_millis(900), "it has waited once more");
    std::thread::sleep(Duration::from_millis(2000));
    late.release().unwrap();
}

/// Without a word one rank lets its communicator go.
fn dropped(rank: &Rank) {
    let Bench { gpu, comm, stream, buffer } = Bench::new(rank);
    if rank.rank == 1 {
        rank.wait_for("here");
        return drop(comm);
    }
    rank.mark("here");
    let bench = Bench { gpu, comm, stream, buffer };
    let _ = bench.sum();
    assert_async(&failure(&bench.comm), Code::RemoteError, "rank 1 is gone");
    bench.abort();
}

fn revoked(rank: &Rank) {
    let bench = Bench::new(rank);
    if rank.rank == 0 {
        bench.sum().unwrap();
        bench.comm.revoke().unwrap();
        bench.gpu.synchronize(bench.stream);
        let error = bench.sum().unwrap_err();
        assert!(matches!(error, Error::Ended { end: End::Revoked, .. }), "{error}");
        assert!(error.to_string().contains("shrink or split it"), "{error}");
        let error = bench.comm.finalize().unwrap_err();
        assert!(matches!(error, Error::Ended { end: End::Revoked, .. }), "{error}");
        let alone = bench.comm.shrink(&[1], Shrink::Idle, &within(8000)).unwrap();
        assert_eq!((alone.rank(), alone.ranks()), (0, 1));
        bench.sum_of(&alone).unwrap();
        wait(&bench.gpu, bench.stream, &alone).unwrap();
        alone.finalize().unwrap();
        rank.mark("done");
    }
    rank.wait_for("done");
    bench.abort();
}

fn never_finalized(rank: &Rank) {
    let bench = Bench::new(rank);
    if rank.rank == 0 {
        bench.comm.set_timeout(Duration::from_millis(200));
        let begun = Instant::now();
        let error = bench.comm.finalize().unwrap_err();
        assert_deadline(&error, begun, 200);
        bench.comm.set_timeout(Duration::from_secs(20));
        rank.mark("done");
    }
    rank.wait_for("done");
    bench.comm.abort().unwrap();
}

/// Somebody knows that the other rank will not come.
fn given_up(rank: &Rank) {
    let bench = Bench::new(rank);
    if rank.rank == 0 {
        bench.comm.set_timeout(Duration::from_secs(60));
        let begun = Instant::now();
        let goes_on = || begun.elapsed() < Duration::from_millis(200);
        let error = bench.comm.finalize_while(goes_on).unwrap_err();
        assert!(matches!(error, Error::Deadline { .. }), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
        rank.mark("done");
    }
    rank.wait_for("done");
    bench.comm.abort().unwrap();
}

/// Each rank calls something else; both are told what both call.
fn mismatched(rank: &Rank, what: &str) {
    let bench = Bench::new(rank);
    let Bench { comm, stream, buffer, .. } = &bench;
    let (stream, buffer, first) = (*stream, *buffer, rank.rank == 0);
    let shorter = Buffer { len: 3, ..buffer };
    let floats = Buffer { dtype: DataType::F32, ..buffer };
    // SAFETY: the bench keeps its buffer, and frees it when no operation is left.
    let begun = unsafe {
        match (what, first) {
            ("count", false) => comm.all_reduce(shorter, shorter, RedOp::Sum, stream),
            ("type", false) => comm.all_reduce(floats, floats, RedOp::Sum, stream),
            ("reduction", false) => comm.all_reduce(buffer, buffer, RedOp::Max, stream),
            ("order", false) => comm.broadcast(Some(buffer), buffer, 0, stream),
            ("root", _) => comm.broadcast(Some(buffer), buffer, rank.rank, stream),
            ("pair", true) => comm.send(buffer, 1, stream),
            ("pair", false) => comm.recv(shorter, 0, stream),
            _ => comm.all_reduce(buffer, buffer, RedOp::Sum, stream),
        }
    };
    begun.unwrap();
    let error = bench.wait().unwrap_err();
    let [one, other] = match what {
        "count" => ["ncclAllReduce of 4 i32", "ncclAllReduce of 3 i32"],
        "type" => ["ncclAllReduce of 4 i32", "ncclAllReduce of 4 f32"],
        "reduction" => ["4 i32, sum", "4 i32, max"],
        "order" => ["ncclAllReduce of 4 i32", "ncclBroadcast of 4 i32"],
        "root" => ["root 0", "root 1"],
        _ => ["ncclSend of 4 i32 to rank 1", "ncclRecv of 3 i32"],
    };
    assert_async(&error, Code::InvalidUsage, one);
    assert_async(&error, Code::InvalidUsage, other);
    rank.meet("told");
    bench.abort();
}

#[test]
#[ignore = "the body of a process: tests start it, in every run, with its libraries"]
fn child() {
    run_task(|task, rank| match task {
        "late" => late(rank),
        "absent" => absent(rank),
        "absent_for_all" => absent_for_all(rank),
        "twice" => twice(rank),
        "dies_early" => dies_early(rank),
        "dies" => dies(rank),
        "shrink_0" => shrink(rank, 0),
        "shrink_1" => shrink(rank, 1),
        "error" => error(rank),
        "abort_elsewhere" => abort_elsewhere(rank),
        "abort_in_call" => abort_in_call(rank),
        "revoke_in_call" => revoke_in_call(rank),
        "slow_abort" => slow_abort(rank),
        "memory_in_slow_abort" => memory_in_slow_abort(rank),
        "dropped" => dropped(rank),
        "revoked" => revoked(rank),
        "never_finalized" => never_finalized(rank),
        "given_up" => given_up(rank),
        _ => mismatched(rank, task.strip_prefix("mismatched ").expect("there is no such task")),
    });
}

#[test]
fn a_rank_that_comes_late_is_waited_for() {
    for vendor in VENDORS {
        Job::new("late", vendor, 2).faults("late:1@400").processes();
        Job::new("late", vendor, 3).faults("late:1@400").threads();
    }
}

#[test]
fn a_rank_that_never_comes_is_a_deadline() {
    for vendor in VENDORS {
        // Its process is not there.
        for said in Job::new("absent", vendor, 2).run(0..1) {
            said.passed().without_complaint();
        }
    }
}

#[test]
fn a_rank_that_hangs_while_it_comes_is_a_deadline_for_all() {
    Job::new("absent_for_all", Vendor::Nvidia, 2).faults("absent:0").processes();
}

#[test]
fn two_ranks_of_one_number_are_told() {
    let [one, other] = &Job::new("twice", Vendor::Nvidia, 2).run(0..2)[..] else { panic!() };
    one.passed();
    other.passed();
}

/// Rank 1 is killed, and is the only one that fails.
fn killed(task: &str, vendor: Vendor, ranks: u32, fault: &str, lost: usize) {
    let all = Job::new(task, vendor, ranks).faults(fault).run(0..ranks);
    for (rank, said) in all.iter().enumerate() {
        if rank == lost {
            use std::os::unix::process::ExitStatusExt;
            assert_eq!(said.output.status.signal(), Some(libc::SIGKILL), "{}", said.text);
        } else {
            said.passed();
        }
    }
}

#[test]
fn a_rank_that_is_killed_while_ranks_come_is_an_error_of_the_others() {
    for vendor in VENDORS {
        killed("dies_early", vendor, 3, "dies:1@0", 1);
    }
}

#[test]
fn a_rank_that_is_killed_in_an_operation_is_an_error_of_the_others() {
    for vendor in VENDORS {
        killed("dies", vendor, 2, "dies:1@2", 1);
        killed("dies", vendor, 3, "dies:0@2", 0);
    }
}

#[test]
fn the_others_shrink_and_go_on_after_a_death() {
    for vendor in VENDORS {
        killed("shrink_1", vendor, 3, "dies:1@2", 1);
        killed("shrink_0", vendor, 4, "dies:0@2", 0);
    }
}

#[test]
fn an_asynchronous_error_reaches_all_ranks() {
    for vendor in VENDORS {
        for said in Job::new("error", vendor, 3).faults("error:1@2").run(0..3) {
            said.passed();
        }
    }
}

#[test]
fn an_abort_from_another_thread_ends_what_hangs() {
    for vendor in VENDORS {
        Job::new("abort_elsewhere", vendor, 1).faults("hangs:0@1").processes();
    }
}

#[test]
fn an_abort_ends_the_calls_of_other_threads() {
    for said in Job::new("abort_in_call", Vendor::Nvidia, 2).run(0..2) {
        said.passed();
    }
}

#[test]
fn a_revoke_ends_the_calls_of_other_threads() {
    for said in Job::new("revoke_in_call", Vendor::Nvidia, 2).run(0..2) {
        said.passed();
    }
}

#[test]
fn an_abort_that_takes_too_long_is_a_deadline() {
    Job::new("slow_abort", Vendor::Nvidia, 1).faults("abort:0@1200").processes();
}

#[test]
fn memory_is_let_go_of_when_the_library_has_freed_the_communicator() {
    Job::new("memory_in_slow_abort", Vendor::Nvidia, 1).faults("abort:0@1200").processes();
}

#[test]
fn a_drop_aborts() {
    for said in Job::new("dropped", Vendor::Nvidia, 2).run(0..2) {
        said.passed();
    }
}

#[test]
fn a_revoked_communicator_makes_a_smaller_one() {
    for said in Job::new("revoked", Vendor::Nvidia, 2).run(0..2) {
        said.passed();
    }
}

#[test]
fn a_rank_that_never_finalizes_is_a_deadline() {
    for said in Job::new("never_finalized", Vendor::Amd, 2).run(0..2) {
        said.passed();
    }
}

#[test]
fn a_farewell_lasts_as_long_as_it_is_to() {
    for said in Job::new("given_up", Vendor::Amd, 2).run(0..2) {
        said.passed();
    }
}

#[test]
fn calls_that_do_not_fit_together_are_told_to_all() {
    for what in ["count", "type", "reduction", "order", "root", "pair"] {
        for said in Job::new(&format!("mismatched {what}"), Vendor::Nvidia, 2).run(0..2) {
            said.passed();
        }
    }
}
