//! Ranks that are late, die, hang, or do something else: every rank ends within the deadline, and
//! says which rank it was, in which operation.

use std::time::{Duration, Instant};

use comm::{EvenPlan, Group, Op, P2p, Result, Window, World};
use device::{DType, Device};
use layout::Tree;

use crate::job::{Job, Rank, until};

const LEN: usize = 3000;
/// Generous: what a deadline promises, on a machine that is busy.
const SOON: Duration = Duration::from_secs(20);

struct Bench {
    world: World,
    device: Device,
    group: Group,
    window: Window,
}

impl Bench {
    fn new(rank: &Rank) -> Bench {
        let (world, device) = rank.connect();
        let group = world.group(&device).unwrap();
        let window = group.window(4 * LEN).unwrap();
        Bench { world, device, group, window }
    }

    fn plan(&self, len: usize) -> EvenPlan {
        EvenPlan::new(&Tree::for_leaves(self.world.size()), 0..len, DType::F32)
    }

    fn sum(&self, len: usize) -> Result<()> {
        let (window, plan) = (self.window.clone(), self.plan(len));
        self.group.run(&self.device.stream(), Op::AllReduce { window, plan })
    }

    fn gather(&self, len: usize) -> Result<()> {
        let (window, plan) = (self.window.clone(), self.plan(len));
        self.group.run(&self.device.stream(), Op::AllGather { window, plan })
    }

    fn exchange(&self, place: usize, len: usize) -> Result<()> {
        let tensor = self.window.tensor(0, &[len], DType::F32).unwrap();
        let message = match place {
            0 => P2p::Send { to: 1, tensor },
            1 => P2p::Receive { from: 0, tensor },
            _ => return Ok(()),
        };
        self.group.run(&self.device.stream(), Op::Exchange(vec![message]))
    }

    /// Waits for the others to give up.
    fn idle(&self) -> Result<()> {
        until("the end", || self.world.revocation().why().is_some());
        let why = self.world.revocation().why().unwrap_or_default().to_owned();
        Err(comm::CommError::Revoked { why })
    }
}

pub fn child(rank: &Rank) {
    if rank.task == "absent" {
        let (world, device) = rank.connect();
        let begun = Instant::now();
        let error = world.group(&device).map(drop).unwrap_err();
        assert!(begun.elapsed() < SOON, "{error}");
        println!("\nerror {error}");
        return;
    }
    let bench = Bench::new(rank);
    let is_one = rank.rank == 1;
    if rank.task == "farewell" {
        bench.sum(LEN).unwrap();
        return farewell(bench, is_one);
    }
    let begun = Instant::now();
    // A rank's work after the first sum may end another's wait for that.
    let ended = bench.sum(LEN).and_then(|()| match rank.task.as_str() {
        "late" if is_one => bench.idle(),
        "dead" if is_one => std::process::abort(),
        "shorter" if is_one => bench.sum(LEN - 1),
        "another" if is_one => bench.gather(LEN),
        "revoked" if is_one => {
            std::thread::sleep(Duration::from_millis(300));
            bench.world.revoke("it is enough");
            bench.idle()
        }
        "exchange" => {
            bench.exchange(rank.rank, if is_one { LEN - 1 } else { LEN }).and_then(|()| {
                // Those that take no part in it.
                bench.sum(LEN)
            })
        }
        _ => bench.sum(LEN).and_then(|()| bench.sum(LEN)),
    });
    let error = ended.unwrap_err();
    assert!(begun.elapsed() < SOON, "{error}");
    println!("\nerror {error}");
    // Later ones fail at once, and nothing is left that a drop would wait for.
    bench.sum(LEN).unwrap_err();
    drop(bench);
    assert!(begun.elapsed() < 2 * SOON);
}

/// One rank keeps its group for longer than the other waits for it.
fn farewell(Bench { world, device, group, window }: Bench, is_one: bool) {
    if is_one {
        std::thread::sleep(Duration::from_secs(4));
    }
    drop((group, window));
    // The end of the communicator is waited for, and then its abort.
    std::thread::sleep(Duration::from_secs(1));
    let ones = device.zeros(&[LEN], DType::F32).unwrap();
    device.stream().copy_in(&ones, &[1.0_f32; LEN]).unwrap();
    assert_eq!(device.stream().to_vec::<f32>(&ones).unwrap(), [1.0; LEN]);
    assert_eq!(world.revocation().why(), None);
}

/// The output of ranks 0 and 2 of three.
fn told(task: &str, backend: &str, timeout_ms: u64, faults: &str) -> Option<Vec<String>> {
    let job = Job::new(task, "cuda", 3)?.backend(backend).timeout_ms(timeout_ms);
    let said = job.env("LOOKALIKE_NCCL_FAULTS", faults).run();
    let lines = [0, 2].map(|rank| said[rank].line("error").to_owned());
    if !said[1].text.contains("killed on purpose") && task != "dead" {
        assert!(!said[1].line("error").is_empty());
    }
    Some(lines.into())
}

/// One of the two met it first, and the other may have heard of it.
#[track_caller]
fn assert_all(told: &[String], words: &[&str]) {
    for told in told {
        assert!(words.iter().all(|word| told.contains(word)), "{told}");
        assert!(!told.contains('\n'), "one line: {told}");
    }
}

#[test]
fn a_late_rank_is_named_with_the_operation() {
    for backend in ["shm", "tcp"] {
        let Some(told) = told("late", backend, 1500, "") else { return };
        assert_all(&told, &["reduce_scatter_ordered #", "rank 1 had not arrived after 1500 ms"]);
    }
}

/// Nothing of the group is under way any more, so the device is good for others.
#[test]
fn a_rank_that_keeps_its_group_for_longer_harms_nobody() {
    let Some(job) = Job::new("farewell", "cuda", 2) else { return };
    let job = job.timeout_ms(500).env("LOOKALIKE_NCCL_FAULTS", "abort:0@3000");
    for said in job.passes() {
        said.without_complaint();
    }
}

#[test]
fn a_dead_rank_is_named() {
    for (task, faults) in [("dead", ""), ("dies", "dies:1@6")] {
        for backend in ["shm", "tcp"] {
            let Some(told) = told(task, backend, 60_000, faults) else { return };
            assert_all(&told, &["rank 1 is lost"]);
        }
    }
}

#[test]
fn ranks_that_do_something_else_are_named() {
    for backend in ["shm", "tcp"] {
        for task in ["shorter", "another"] {
            let Some(told) = told(task, backend, 60_000, "") else { return };
            assert!(told.iter().any(|told| told.contains("rank 1 is at")), "{task}: {told:?}");
            assert_all(&told, &["reduce_scatter_ordered #", "instead"]);
        }
        let Some(told) = told("exchange", backend, 60_000, "") else { return };
        assert_all(&told, &["rank 0 sends 12000 bytes where 11996 were expected"]);
    }
}

#[test]
fn a_device_that_hangs_ends_at_the_deadline() {
    let Some(told) = told("hangs", "shm", 1500, "hangs:1@6") else { return };
    assert_all(&told, &["among ranks 0 to 2", "NCCL was not done on rank", "after 1500 ms"]);
}

#[test]
fn what_the_library_says_ends_the_job() {
    let Some(told) = told("fails", "shm", 60_000, "error:1@6") else { return };
    assert_all(&told, &["reduce_scatter_ordered #", "unhandled system error"]);
}

#[test]
fn a_rank_that_the_library_never_meets_ends_the_meeting() {
    let Some(told) = told("absent", "shm", 1500, "absent:1") else { return };
    assert_all(&told, &["join #0", "not all ranks have come"]);
}

#[test]
fn a_job_that_is_given_up_ends_what_is_under_way() {
    for backend in ["shm", "tcp"] {
        let Some(told) = told("revoked", backend, 60_000, "") else { return };
        assert_all(&told, &["it is enough"]);
    }
}

#[test]
fn an_abort_that_does_not_come_back_gives_the_device_up() {
    let Some(told) = told("late", "shm", 1500, "abort:0@30000") else { return };
    assert_all(&told, &["rank 1 had not arrived after 1500 ms"]);
}
