//! Four ranks of which one is at fault, in operations that pass more than sockets hold from one
//! rank to the next or to one rank alone: every other rank names that one, and nobody else.

mod common;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use comm::{EvenPlan, Group, Op, Settings, Window};
use common::{BACKENDS, control, message, settings, with_settings};
use device::{DType, Device};
use layout::Tree;

/// By hosts, whose peers say once a second how far they are, a deadline cannot be as short.
fn timeout_ms(kind: &str) -> u64 {
    if kind == HOSTS { 6_000 } else { 1_000 }
}

/// Three of them: so columns have a third member.
const HOSTS: &str = "2 a host";

fn ranks(kind: &str) -> usize {
    if kind == HOSTS { 6 } else { 4 }
}

/// Elements of a window, 24 MiB: loopback connections take in 10 MiB at most.
const LEN: usize = 6 << 20;
/// Beginnings and ends of parts after which a rank stops in the middle; over shared memory there
/// are few.
fn parts(kind: &str) -> usize {
    if kind == "shm" { 1 } else { 7 }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// In the middle of the operation.
    Stopped,
    /// It never comes to it.
    Late,
    /// It leaves instead.
    Dead,
}

/// Of a window and the number of ranks.
type Make = fn(Window, usize) -> Op;

fn plan(ranks: usize) -> EvenPlan {
    EvenPlan::new(&Tree::for_leaves(ranks), 0..LEN, DType::F32)
}

/// Elements of what sockets take in whole, so that its root goes on: 1.5 MiB.
const LITTLE: usize = 384 << 10;
/// So often each operation is run: who has done it waits for the others in the next one.
const ROUNDS: usize = 3;

/// The failure, and the rank in the middle of it.
const OPERATIONS: [(&str, Make, usize); 4] = [
    (
        "a little broadcast",
        |window, _| Op::Broadcast { window, root: 1, element_bytes: 4, range: 0..LITTLE },
        1,
    ),
    (
        "broadcast",
        |window, _| Op::Broadcast { window, root: 1, element_bytes: 4, range: 0..LEN },
        1,
    ),
    ("reduce", |window, n| Op::Reduce { window, plan: plan(n), root: 0, out: None }, 0),
    ("gather", |window, n| Op::Gather { window, plan: plan(n), root: 0, into: None }, 0),
];

/// A rank that stops in the middle of what it does while `is_armed`.
fn stopping(
    kind: &str,
    culprit: usize,
    is_armed: &Arc<AtomicBool>,
) -> impl Fn(usize) -> Settings + Sync {
    let (is_armed, before) = (Arc::clone(is_armed), parts(kind));
    let timeout_ms = timeout_ms(kind);
    move |rank| {
        let (is_armed, seen) = (Arc::clone(&is_armed), AtomicUsize::new(0));
        let disturb = move || {
            let is_armed = || rank == culprit && is_armed.load(Ordering::Acquire);
            if is_armed() && seen.fetch_add(1, Ordering::Relaxed) >= before {
                while is_armed() {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        };
        Settings { disturb: Some(Arc::new(disturb)), ..settings(timeout_ms) }
    }
}

/// The outcomes of the operations of a rank's group, and how long the last one took.
fn run(group: &Group, window: &Window, op: impl Fn(Window) -> Op) -> (String, Duration) {
    let (mut start, mut said) = (Instant::now(), String::new());
    for _ in 0..ROUNDS {
        start = Instant::now();
        said = message(group.run(&window.buffer().device().stream(), op(window.clone())));
        if said != "no error" {
            break;
        }
    }
    (said, start.elapsed())
}

/// The outcomes on every rank but the culprit.
fn said(kind: &str, make: Make, culprit: usize, fault: Fault) -> Vec<(String, Duration)> {
    let is_armed = Arc::new(AtomicBool::new(false));
    let ranks = ranks(kind);
    let (begun, done) = (Barrier::new(ranks), Barrier::new(ranks));
    let all = with_settings(kind, ranks, stopping(kind, culprit, &is_armed), |world| {
        let device = Device::cpu(1).unwrap();
        let group = world.group(&device).unwrap();
        let window = group.window(4 * LEN).unwrap();
        control(&world).barrier().unwrap();
        begun.wait();
        is_armed.store(fault == Fault::Stopped, Ordering::Release);
        begun.wait();
        if world.rank() != culprit {
            let said = run(&group, &window, |window| make(window, ranks));
            done.wait();
            is_armed.store(false, Ordering::Release);
            return Some(said);
        }
        if fault == Fault::Dead {
            drop((group, window, world));
            done.wait();
            return None;
        }
        // Nobody waits for it here: that would be a deadline of its own.
        let op = group.prepare(make(window, ranks)).unwrap();
        let pending = (fault == Fault::Stopped).then(|| group.submit(&device.stream(), &op));
        done.wait();
        is_armed.store(false, Ordering::Release);
        drop(pending);
        None
    });
    all.into_iter().flatten().collect()
}

fn names_only(text: &str, culprit: usize) -> bool {
    let names = |rank: usize| {
        [" had not arrived", " is lost"]
            .iter()
            .any(|how| text.contains(&format!("rank {rank}{how}")))
    };
    // More than one would be `ranks 1 and 2`.
    !text.contains("ranks ") && (0..6).all(|rank| names(rank) == (rank == culprit))
}

fn check_one(kind: &str, (what, make): (&str, Make), culprit: usize, fault: Fault) {
    for (text, took) in said(kind, make, culprit, fault) {
        let case = format!("{kind}, {what}, rank {culprit} {fault:?}: {text}");
        assert!(names_only(&text, culprit), "{case}");
        let most = Duration::from_millis(timeout_ms(kind)) + Duration::from_secs(5);
        assert!(took < most, "{case}");
    }
}

fn check(fault: Fault) {
    for kind in BACKENDS {
        for (what, make, root) in OPERATIONS {
            for culprit in [root, root + 1, root + 2] {
                check_one(kind, (what, make), culprit, fault);
            }
        }
    }
}

/// A column has a member on each of three hosts, of which one may wait for another.
#[test]
fn a_rank_of_another_host_that_stops_is_named_alone() {
    std::thread::scope(|scope| {
        for (what, make, root) in [OPERATIONS[1], OPERATIONS[2]] {
            for culprit in [root, root + 2] {
                scope.spawn(move || check_one(HOSTS, (what, make), culprit, Fault::Stopped));
            }
        }
    });
}

#[test]
fn a_rank_that_stops_in_the_middle_is_named_alone() {
    check(Fault::Stopped);
}

#[test]
fn a_rank_that_is_late_is_named_alone() {
    check(Fault::Late);
}

#[test]
fn a_rank_that_is_dead_is_named_alone() {
    check(Fault::Dead);
}
