//! Everything that can go wrong, on both backends: who, which operation, which number, why.

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use comm::{AllToAll, CommError, EvenPlan, Gather, Group, Op, Operation, P2p, Result, Window};
use common::{BACKENDS, PATIENCE_MS, control, message, with_ranks};

use device::{DType, Device, Tensor};
use layout::Tree;

/// Whether a rank learned of a failure itself or from a peer that was faster.
fn tells(text: &str, what: &str) -> bool {
    text.contains(what)
}

/// Passes a message from one member to another; any other has no part in it.
fn pass(group: &Group, from: usize, to: usize, tensor: &Tensor) -> Result<()> {
    let (stream, tensor) = (tensor.buffer().device().stream(), tensor.clone());
    let messages = match group.place() {
        place if place == from => vec![P2p::Send { to, tensor }],
        place if place == to => vec![P2p::Receive { from, tensor }],
        _ => Vec::new(),
    };
    group.run(&stream, Op::Exchange(messages))
}

fn broadcast(group: &Group, window: &Window, root: usize, range: Range<usize>) -> Result<()> {
    let stream = window.buffer().device().stream();
    let window = window.clone();
    group.run(&stream, Op::Broadcast { window, root, element_bytes: 4, range })
}

#[test]
fn a_timeout_names_exactly_the_ranks_that_did_not_come() {
    for kind in BACKENDS {
        let done = Barrier::new(4);
        let results = with_ranks(kind, 4, 700, |world| {
            control(&world).barrier().unwrap();
            let result = match world.rank() {
                1 | 3 => Ok(()),
                _ => control(&world).barrier(),
            };
            done.wait();
            // The others had called the barrier that failed for them; the next needs them.
            let later = control(&world).barrier().and_then(|()| control(&world).barrier());
            (result, message(later))
        });
        let what = "ranks 1 and 3 had not arrived after 700 ms; \
                    see what that process is doing, or raise ranks.timeout_ms";
        let first: Vec<_> = [0, 2].map(|rank| results[rank].0.as_ref().unwrap_err()).into();
        assert!(first.iter().any(|error| match error {
            CommError::Timeout { operation: Operation::Barrier, sequence, missing, .. } =>
                missing == &[1, 3] && *sequence >= 2,
            _ => false,
        }));
        for (rank, error) in [0, 2].iter().zip(first) {
            assert!(tells(&error.to_string(), what), "{kind} {rank}: {error}");
        }
        for (rank, (_, later)) in results.iter().enumerate() {
            assert!(later.starts_with("the group was aborted: rank "), "{kind} {rank}: {later}");
            assert!(tells(later, what), "{kind} {rank}: {later}");
        }
    }
}

#[test]
fn different_operations_at_one_point_are_a_mismatch() {
    for kind in BACKENDS {
        let results = with_ranks(kind, 2, PATIENCE_MS, |world| {
            control(&world).barrier().unwrap();
            match world.rank() {
                0 => message(control(&world).all_gather_bytes(b"hello")),
                _ => message(control(&world).barrier()),
            }
        });
        let named = |text: &String| {
            text.contains("all_gather_bytes #") && text.contains("is at barrier #")
                || text.contains("barrier #") && text.contains("is at all_gather_bytes #")
        };
        assert!(results.iter().all(named), "{kind}: {results:?}");
    }
}

#[test]
fn different_arguments_are_a_mismatch() {
    for kind in BACKENDS {
        let results = with_ranks(kind, 2, PATIENCE_MS, |world| {
            let device = Device::cpu(1).unwrap();
            let group = world.group(&device).unwrap();
            let window = group.window(64).unwrap();
            let mut segments = vec![vec![], vec![]];
            segments[0].push(0..4 + world.rank());
            let op = Gather { window, element_bytes: 4, segments: segments.into() };
            message(group.run(&device.stream(), Op::AllGatherSegments(op)))
        });
        let what = "all_gather_segments #";
        let other = "with other arguments";
        let told = |text: &String| tells(text, what) && tells(text, other);
        assert!(results.iter().all(told), "{kind}: {results:?}");
        let results = with_ranks(kind, 2, PATIENCE_MS, |world| {
            let device = Device::cpu(1).unwrap();
            message(world.group(&device).and_then(|group| group.window(64 + world.rank())))
        });
        let told = |text: &String| tells(text, "with other arguments");
        assert!(results.iter().all(told), "{kind}: {results:?}");
    }
}

/// Windows of one size are told apart: a member that means another one would read and write what
/// the others use for something else.
#[test]
fn different_windows_are_a_mismatch() {
    type Make = fn(&Group, Window, Window) -> Op;
    // Beyond what goes through boxes in one round.
    const LEN: usize = 1 << 17;
    fn plan(group: &Group) -> EvenPlan {
        EvenPlan::new(&Tree::for_leaves(group.members().len()), 0..LEN, DType::F32)
    }
    let ops: [Make; 5] = [
        |group, one, _| Op::AllReduce { plan: plan(group), window: one },
        |group, one, other| match group.place() {
            0 => Op::AllReduce { plan: plan(group), window: one },
            _ => Op::AllReduceInto { plan: plan(group), window: other, into: one },
        },
        |_, one, _| Op::Broadcast { window: one, root: 0, element_bytes: 4, range: 0..LEN },
        |group, one, _| Op::AllGather { plan: plan(group), window: one },
        |_, one, other| {
            let into = other.tensor(0, &[LEN], DType::F32).unwrap();
            let half = |rank: usize| rank * LEN / 2..(rank + 1) * LEN / 2;
            let parts = vec![half(0), half(1)];
            Op::AllToAll(AllToAll { from: one, send: parts.clone(), into, receive: parts })
        },
    ];
    for kind in BACKENDS {
        for (number, make) in ops.iter().enumerate() {
            let results = with_ranks(kind, 2, PATIENCE_MS, |world| {
                let device = Device::cpu(1).unwrap();
                let group = world.group(&device).unwrap();
                let [a, b] = [0, 1].map(|_| group.window(4 * LEN).unwrap());
                let (one, other) = if world.rank() == 0 { (a, b) } else { (b, a) };
                message(group.run(&device.stream(), make(&group, one, other)))
            });
            let told = |text: &String| tells(text, "with other arguments");
            assert!(results.iter().all(told), "{kind}, {number}: {results:?}");
        }
    }
}

#[test]
fn revocation_reaches_blocked_ranks_at_once() {
    for kind in BACKENDS {
        let (started, revoked) = (Barrier::new(4), Barrier::new(4));
        with_ranks(kind, 4, PATIENCE_MS, |world| {
            // Rank 3 never enters; rank 0 is in the barrier too and is revoked from outside.
            started.wait();
            if world.rank() == 3 {
                revoked.wait();
                return;
            }
            let outside = (world.rank() == 0).then(|| {
                let world = world.clone();
                std::thread::spawn(move || {
                    std::thread::sleep(Duration::from_millis(200));
                    world.revoke("on purpose");
                    Instant::now()
                })
            });
            let error = control(&world).barrier().unwrap_err();
            let noticed = Instant::now();
            assert_eq!(error.to_string(), "the group was aborted: on purpose", "{kind}");
            if let Some(at) = outside.map(|thread| thread.join().unwrap()) {
                assert!(noticed.saturating_duration_since(at) < Duration::from_secs(1), "{kind}");
            }
            world.revoke("a second reason changes nothing");
            let later = control(&world).all_gather_bytes(b"").unwrap_err().to_string();
            assert_eq!(later, "the group was aborted: on purpose", "{kind}");
            revoked.wait();
        });
    }
}

/// Half a frame, or half a phase, must not pass for a part of what comes next.
#[test]
fn after_a_panic_inside_an_operation_nothing_works_any_more() {
    for kind in BACKENDS {
        let panics = Arc::new(AtomicBool::new(false));
        let settings = |rank: usize| {
            let panics = Arc::clone(&panics);
            let seen = AtomicUsize::new(0);
            let disturb = move || {
                let is_due = rank == 1 && panics.load(Ordering::Acquire);
                // In the middle, not at the beginning.
                assert!(!is_due || seen.fetch_add(1, Ordering::Relaxed) == 0, "on purpose");
            };
            let disturb: comm::Disturbance = Arc::new(disturb);
            comm::Settings { disturb: Some(disturb), ..common::settings(PATIENCE_MS) }
        };
        let begun = Barrier::new(2);
        let results = common::with_settings(kind, 2, settings, |world| {
            let device = Device::cpu(1).unwrap();
            let group = world.group(&device).unwrap();
            let window = group.window(4 << 20).unwrap();
            control(&world).barrier().unwrap();
            begun.wait();
            panics.store(true, Ordering::Release);
            begun.wait();
            // Of the rank that panics: what another has sent may be with the system by then.
            let first = message(broadcast(&group, &window, 1, 0..1 << 20));
            begun.wait();
            panics.store(false, Ordering::Release);
            begun.wait();
            let later = message(broadcast(&group, &window, 1, 0..16));
            (first, later, message(control(&world).barrier()))
        });
        let what = "rank 1: an operation ended in a panic";
        for (first, later, barrier) in &results {
            let all = [first, later, barrier];
            assert!(all.iter().all(|text| tells(text, what)), "{kind}: {results:?}");
        }
    }
}

#[test]
fn a_rank_that_leaves_too_early_is_lost() {
    for kind in BACKENDS {
        let results = with_ranks(kind, 3, PATIENCE_MS, |world| {
            control(&world).barrier().unwrap();
            match world.rank() {
                1 => String::new(),
                _ => message(control(&world).barrier()),
            }
        });
        for rank in [0, 2] {
            assert!(tells(&results[rank], "rank 1 is lost"), "{kind}: {results:?}");
            assert!(tells(&results[rank], "barrier #"), "{kind}: {results:?}");
        }
    }
}

#[test]
fn a_gather_names_the_rank_that_is_lost_or_late_on_every_rank() {
    for (kind, world) in [("shm", 3), ("tcp", 3), ("2 a host", 4)] {
        let lost = with_ranks(kind, world, PATIENCE_MS, |world| {
            control(&world).gather_bytes_to(0, b"here").unwrap();
            match world.rank() {
                1 => String::new(),
                _ => message(control(&world).gather_bytes_to(0, b"here")),
            }
        });
        for text in lost.iter().enumerate().filter_map(|(rank, text)| (rank != 1).then_some(text)) {
            assert!(tells(text, "rank 1 is lost"), "{kind}: {lost:?}");
            assert!(tells(text, "gather_bytes #"), "{kind}: {lost:?}");
        }
        let done = Barrier::new(world);
        let late = with_ranks(kind, world, 700, |world| {
            control(&world).gather_bytes_to(0, b"here").unwrap();
            let text = match world.rank() {
                1 => String::new(),
                _ => message(control(&world).gather_bytes_to(0, b"here")),
            };
            done.wait();
            text
        });
        for text in late.iter().enumerate().filter_map(|(rank, text)| (rank != 1).then_some(text)) {
            assert!(tells(text, "rank 1 had not arrived after 700 ms"), "{kind}: {late:?}");
        }
    }
}

#[test]
fn leaving_after_the_last_operation_disturbs_nobody() {
    for kind in BACKENDS {
        for _ in 0..20 {
            with_ranks(kind, 3, PATIENCE_MS, |world| {
                let device = Device::cpu(1).unwrap();
                let group = world.group(&device).unwrap();
                let window = group.window(1 << 20).unwrap();
                let share = |rank: usize| std::iter::once(rank * 1000..rank * 1000 + 900).collect();
                let segments: Vec<Vec<_>> = (0..3).map(share).collect();
                let op = Gather { window, element_bytes: 4, segments: segments.into() };
                group.run(&device.stream(), Op::AllGatherSegments(op)).unwrap();
            });
        }
    }
}

#[test]
fn a_message_of_another_size_is_named() {
    for kind in BACKENDS {
        let results = with_ranks(kind, 2, PATIENCE_MS, |world| {
            let device = Device::cpu(1).unwrap();
            let tensor = device.zeros(&[3 + world.rank()], DType::F32).unwrap();
            message(pass(&world.group(&device).unwrap(), 0, 1, &tensor))
        });
        assert_eq!(results[1], "rank 0 sends 12 bytes where 16 were expected", "{kind}");
    }
}

#[test]
fn arguments_out_of_bounds_fail_everywhere_instead_of_hanging() {
    for kind in BACKENDS {
        let results = with_ranks(kind, 2, PATIENCE_MS, |world| {
            let device = Device::cpu(1).unwrap();
            let group = world.group(&device).unwrap();
            let window = group.window(64).unwrap();
            match world.rank() {
                0 => message(broadcast(&group, &window, 0, 0..17)),
                _ => message(control(&world).barrier()),
            }
        });
        let what = "gather segments: elements 0..17 lie outside 16";
        assert!(results.iter().all(|text| tells(text, what)), "{kind}: {results:?}");
        let results = with_ranks(kind, 2, PATIENCE_MS, |world| {
            let device = Device::cpu(1).unwrap();
            let tensor = device.zeros(&[1], DType::F32).unwrap();
            let messages = vec![P2p::Send { to: 2, tensor }];
            // The other may have given the job up before this one has met it.
            let group = world.group(&device);
            let run = |group: Group| group.run(&device.stream(), Op::Exchange(messages));
            message(group.and_then(run))
        });
        let what = "rank 2 does not exist among 2 ranks";
        assert!(results.iter().all(|text| tells(text, what)), "{kind}: {results:?}");
    }
}

#[test]
fn segments_that_overlap_and_messages_to_oneself_are_refused() {
    with_ranks("shm", 1, PATIENCE_MS, |world| {
        let device = Device::cpu(1).unwrap();
        let group = world.group(&device).unwrap();
        let window = group.window(64).unwrap();
        let segments = [vec![8..12, 0..4, 3..6]].into();
        let gather = Gather { window, element_bytes: 4, segments };
        let refused = message(group.prepare(Op::AllGatherSegments(gather)));
        let what = "gather segments 0..4 and 3..6 overlap; each element belongs to one member";
        assert!(refused.starts_with(what), "{refused}");
    });
    with_ranks("shm", 1, PATIENCE_MS, |world| {
        let device = Device::cpu(1).unwrap();
        let (group, stream) = (world.group(&device).unwrap(), device.stream());
        let tensor = device.zeros(&[1], DType::F32).unwrap();
        let messages = vec![P2p::Send { to: 0, tensor }];
        let refused = message(group.run(&stream, Op::Exchange(messages)));
        assert!(refused.starts_with("rank 0 sends to or receives from itself"), "{refused}");
    });
}

#[test]
fn a_window_of_another_group_is_refused() {
    for kind in BACKENDS {
        let device = Device::cpu(1).unwrap();
        let foreign = with_ranks(kind, 1, PATIENCE_MS, |world| {
            world.group(&device).unwrap().window(64).unwrap()
        });
        let results = with_ranks(kind, 2, PATIENCE_MS, |world| {
            let group = world.group(&device);
            message(group.and_then(|group| broadcast(&group, &foreign[0], 0, 0..1)))
        });
        let what = "the window belongs to another group";
        assert!(results.iter().all(|text| tells(text, what)), "{kind}: {results:?}");
    }
}

#[test]
fn ranks_that_never_join_are_named() {
    for kind in BACKENDS {
        let mut backends = common::backends(kind, 3);
        let absent = backends.remove(1);
        let results: Vec<String> = std::thread::scope(|scope| {
            let ranks = [0, 2].into_iter().zip(backends);
            let ranks: Vec<_> = ranks
                .map(|(rank, backend)| {
                    scope.spawn(move || message(comm::connect(backend, rank, 3, 500)))
                })
                .collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        });
        drop(absent);
        let told = |text: &String| tells(text, "rank 1 had not arrived after 500 ms");
        assert!(results.iter().any(told), "{kind}: {results:?}");
        assert!(results.iter().all(|text| !text.is_empty() && text != "no error"), "{kind}");
    }
}

#[test]
fn a_rank_claimed_twice_is_refused() {
    let mut backends = common::backends("shm", 2);
    let (third, [first, second]) = (common::again(&backends[1]), take_two(&mut backends));
    std::thread::scope(|scope| {
        let ends = [second, third]
            .map(|backend| scope.spawn(move || message(comm::connect(backend, 1, 2, PATIENCE_MS))));
        assert_eq!(message(comm::connect(first, 0, 2, PATIENCE_MS)), "no error");
        let mut ends = ends.map(|end| end.join().unwrap());
        ends.sort();
        assert_eq!(ends, ["no error", "two processes claim rank 1; start each rank once"]);
    });
}

fn take_two(backends: &mut Vec<comm::Backend>) -> [comm::Backend; 2] {
    let second = backends.pop().unwrap();
    [backends.pop().unwrap(), second]
}

#[test]
fn a_frame_of_another_job_is_refused() {
    let mut backends = common::backends("tcp", 2);
    if let comm::Backend::Tcp { job, .. } = &mut backends[1] {
        job.push('x');
    }
    let results: Vec<String> = std::thread::scope(|scope| {
        let ranks: Vec<_> = backends
            .into_iter()
            .enumerate()
            .map(|(rank, backend)| {
                scope.spawn(move || message(comm::connect(backend, rank, 2, 400)))
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    });
    // On a busy machine one of them may begin when the other has ended.
    for (rank, text) in results.iter().enumerate() {
        let other = 1 - rank;
        let is_gone = text.contains(&format!("rank {other} is lost: cannot connect to it"));
        assert!(tells(text, &format!("rank {other} had not arrived")) || is_gone, "{results:?}");
    }
    assert!(results.iter().any(|text| text.contains("had not arrived")), "{results:?}");
}

#[test]
fn asynchronous_code_is_told_to_use_a_thread() {
    with_ranks("tcp", 1, PATIENCE_MS, |world| {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let text = runtime.block_on(async { message(control(&world).barrier()) });
        assert!(tells(&text, "from an ordinary thread"), "{text}");
        control(&world).barrier().unwrap();
    });
}

#[test]
fn strangers_at_a_ranks_port_do_not_keep_the_others_out() {
    let backends = common::backends("tcp", 2);
    let comm::Backend::Tcp { peers, .. } = &backends[0] else { panic!("not tcp") };
    let connect = || TcpStream::connect(peers[0]).unwrap();
    let mut strangers: Vec<TcpStream> = (0..100).map(|_| connect()).collect();
    strangers[0].write_all(b"GET / HTTP/1.1\r\nHost: somewhere.example\r\n\r\n").unwrap();
    drop(strangers.remove(1));
    let start = Instant::now();
    std::thread::scope(|scope| {
        let ranks: Vec<_> = backends
            .into_iter()
            .enumerate()
            .map(|(rank, backend)| {
                scope.spawn(move || message(comm::connect(backend, rank, 2, PATIENCE_MS)))
            })
            .collect();
        ranks.into_iter().for_each(|rank| assert_eq!(rank.join().unwrap(), "no error"));
    });
    assert!(start.elapsed() < Duration::from_millis(PATIENCE_MS / 2));
}

#[test]
fn a_rank_whose_address_refuses_is_named_with_the_reason() {
    let mut backends = common::backends("tcp", 2);
    let last = backends.pop().unwrap();
    // Rank 0 is gone with its listener.
    drop(backends);
    let text = message(comm::connect(last, 1, 2, 300));
    assert!(text.starts_with("join #0: rank 0 is lost: cannot connect to it at 127."), "{text}");
    assert!(text.ends_with(": Connection refused (os error 111)"), "{text}");
}

/// An address that leads to `addr`. Each connection made there passes on `free` bytes at once, and
/// then as many as come in a read of 128 KiB per `tick`.
fn slow_way_to(addr: SocketAddr, free: usize, tick: Duration) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let way = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for inner in listener.incoming() {
            let (inner, outer) = (inner.unwrap(), TcpStream::connect(addr).unwrap());
            let back = (outer.try_clone().unwrap(), inner.try_clone().unwrap());
            for (mut from, mut to) in [(inner, outer), back] {
                std::thread::spawn(move || {
                    let (mut bytes, mut passed) = (vec![0; 128 << 10], 0);
                    while let Ok(count @ 1..) = from.read(&mut bytes) {
                        if passed >= free {
                            std::thread::sleep(tick);
                        }
                        passed += count;
                        if to.write_all(&bytes[..count]).is_err() {
                            return;
                        }
                    }
                    let _ = to.shutdown(std::net::Shutdown::Write);
                });
            }
        }
    });
    way
}

/// Rank 1 sends 8 MiB to rank 0 over a slow way; what rank 0 says, and how long it took.
fn slowly(timeout_ms: u64, free: usize, tick: Duration) -> (String, Duration) {
    let mut backends = common::backends("tcp", 2);
    if let comm::Backend::Tcp { peers, .. } = &mut backends[1] {
        peers[0] = slow_way_to(peers[0], free, tick);
    }
    let start = Instant::now();
    let said = std::thread::scope(|scope| {
        let ranks = backends.into_iter().enumerate().map(|(rank, backend)| {
            scope.spawn(move || {
                let settings = common::settings(timeout_ms);
                let world = comm::connect_with(backend, rank, 2, settings).unwrap();
                let device = Device::cpu(1).unwrap();
                let tensor = device.zeros(&[8 << 20], DType::U8).unwrap();
                message(pass(&world.group(&device).unwrap(), 1, 0, &tensor))
            })
        });
        let ranks: Vec<_> = ranks.collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).next().unwrap()
    });
    (said, start.elapsed())
}

#[test]
fn a_deadline_does_not_run_while_bytes_move() {
    // 64 ticks of 60 ms are well beyond the timeout, one is well within.
    let (said, took) = slowly(1500, 4096, Duration::from_millis(60));
    assert_eq!(said, "no error");
    assert!(took > Duration::from_millis(3000), "{took:?}");
}

#[test]
fn a_timeout_tells_how_much_had_moved() {
    // After a part the way stands still.
    let (said, _) = slowly(1500, 1 << 20, Duration::from_secs(5));
    let (what, rest) = said.split_once(" after 1500 ms without progress (").expect(&said);
    // Either end may be the first to find out.
    let ends = [0, 1].map(|rank| format!("exchange #1: rank {rank} had not arrived"));
    assert!(ends.iter().any(|end| what.ends_with(end.as_str())), "{said}");
    assert!(rest.contains(" of 8388608 bytes had moved); see what"), "{said}");
}
