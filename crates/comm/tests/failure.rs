//! Everything that can go wrong, on both backends: who, which operation, which number, why.

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use comm::{CommError, Operation};
use common::{BACKENDS, PATIENCE_MS, message, with_group};
use device::{DType, Device};

/// Whether a rank learned of a failure itself or from a peer that was faster.
fn tells(text: &str, what: &str) -> bool {
    text.contains(what)
}

#[test]
fn a_timeout_names_exactly_the_ranks_that_did_not_come() {
    for kind in BACKENDS {
        let done = Barrier::new(4);
        let results = with_group(kind, 4, 700, |group| {
            group.barrier().unwrap();
            let result = match group.rank() {
                1 | 3 => Ok(()),
                _ => group.barrier(),
            };
            done.wait();
            // The others had called the barrier that failed for them; the next needs them.
            let later = group.barrier().and_then(|()| group.barrier());
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
        let results = with_group(kind, 2, PATIENCE_MS, |group| {
            group.barrier().unwrap();
            match group.rank() {
                0 => message(group.all_gather_bytes(b"hello")),
                _ => message(group.barrier()),
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
        let results = with_group(kind, 2, PATIENCE_MS, |group| {
            let device = Device::cpu(1).unwrap();
            let window = group.window(&device, 64).unwrap();
            let mut segments = vec![vec![], vec![]];
            segments[0].push(0..4 + group.rank());
            message(group.all_gather_segments(&device.stream(), &window, 4, &segments))
        });
        let what = "all_gather_segments #3 with other arguments";
        let what = if kind == "tcp" { what.replace('3', "2") } else { what.to_owned() };
        assert!(results.iter().all(|text| tells(text, &what)), "{kind}: {results:?}");
        let results = with_group(kind, 2, PATIENCE_MS, |group| {
            let device = Device::cpu(1).unwrap();
            message(group.window(&device, 64 + group.rank()))
        });
        let told = |text: &String| tells(text, "with other arguments");
        assert!(results.iter().all(told), "{kind}: {results:?}");
    }
}

#[test]
fn revocation_reaches_blocked_ranks_at_once() {
    for kind in BACKENDS {
        let (started, revoked) = (Barrier::new(4), Barrier::new(4));
        with_group(kind, 4, PATIENCE_MS, |group| {
            // Rank 3 never enters; rank 0 is in the barrier too and is revoked from outside.
            started.wait();
            if group.rank() == 3 {
                revoked.wait();
                return;
            }
            let outside = (group.rank() == 0).then(|| {
                let group = Arc::clone(&group);
                std::thread::spawn(move || {
                    std::thread::sleep(Duration::from_millis(200));
                    group.revoke("on purpose");
                    Instant::now()
                })
            });
            let error = group.barrier().unwrap_err();
            let noticed = Instant::now();
            assert_eq!(error.to_string(), "the group was aborted: on purpose", "{kind}");
            if let Some(at) = outside.map(|thread| thread.join().unwrap()) {
                assert!(noticed.saturating_duration_since(at) < Duration::from_secs(1), "{kind}");
            }
            group.revoke("a second reason changes nothing");
            let later = group.all_gather_bytes(b"").unwrap_err().to_string();
            assert_eq!(later, "the group was aborted: on purpose", "{kind}");
            revoked.wait();
        });
    }
}

#[test]
fn a_rank_that_leaves_too_early_is_lost() {
    for kind in BACKENDS {
        let results = with_group(kind, 3, PATIENCE_MS, |group| {
            group.barrier().unwrap();
            match group.rank() {
                1 => String::new(),
                _ => message(group.barrier()),
            }
        });
        for rank in [0, 2] {
            assert!(tells(&results[rank], "rank 1 is lost"), "{kind}: {results:?}");
            assert!(tells(&results[rank], "barrier #"), "{kind}: {results:?}");
        }
    }
}

#[test]
fn leaving_after_the_last_operation_disturbs_nobody() {
    for kind in BACKENDS {
        for _ in 0..20 {
            with_group(kind, 3, PATIENCE_MS, |group| {
                let device = Device::cpu(1).unwrap();
                let window = group.window(&device, 1 << 20).unwrap();
                let share = |rank: usize| std::iter::once(rank * 1000..rank * 1000 + 900).collect();
                let segments: Vec<Vec<_>> = (0..3).map(share).collect();
                group.all_gather_segments(&device.stream(), &window, 4, &segments).unwrap();
            });
        }
    }
}

#[test]
fn a_message_of_another_size_is_named() {
    for kind in BACKENDS {
        let results = with_group(kind, 2, PATIENCE_MS, |group| {
            let device = Device::cpu(1).unwrap();
            let tensor = device.zeros(&[3 + group.rank()], DType::F32).unwrap();
            match group.rank() {
                0 => group.send(&device.stream(), 1, &tensor).map(|()| String::new()).unwrap(),
                _ => message(group.recv(&device.stream(), 0, &tensor)),
            }
        });
        assert_eq!(results[1], "rank 0 sends 12 bytes where 16 were expected", "{kind}");
    }
}

#[test]
fn arguments_out_of_bounds_fail_everywhere_instead_of_hanging() {
    for kind in BACKENDS {
        let results = with_group(kind, 2, PATIENCE_MS, |group| {
            let device = Device::cpu(1).unwrap();
            let window = group.window(&device, 64).unwrap();
            match group.rank() {
                0 => message(group.broadcast(&device.stream(), &window, 0, 4, 0..17)),
                _ => message(group.barrier()),
            }
        });
        let what = "gather segments: elements 0..17 lie outside 16";
        assert!(results.iter().all(|text| tells(text, what)), "{kind}: {results:?}");
        let results = with_group(kind, 2, PATIENCE_MS, |group| {
            let device = Device::cpu(1).unwrap();
            let tensor = device.zeros(&[1], DType::F32).unwrap();
            message(group.send(&device.stream(), 2, &tensor))
        });
        let what = "rank 2 does not exist among 2 ranks";
        assert!(results.iter().all(|text| tells(text, what)), "{kind}: {results:?}");
    }
}

#[test]
fn a_window_of_another_group_is_refused() {
    for kind in BACKENDS {
        let device = Device::cpu(1).unwrap();
        let foreign = with_group(kind, 1, PATIENCE_MS, |group| group.window(&device, 64).unwrap());
        let results = with_group(kind, 2, PATIENCE_MS, |group| {
            message(group.broadcast(&device.stream(), &foreign[0], 0, 4, 0..1))
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
    assert!(tells(&results[0], "rank 1 had not arrived"), "{results:?}");
    assert!(tells(&results[1], "rank 0 had not arrived"), "{results:?}");
}

#[test]
fn asynchronous_code_is_told_to_use_a_thread() {
    with_group("tcp", 1, PATIENCE_MS, |group| {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let text = runtime.block_on(async { message(group.barrier()) });
        assert!(tells(&text, "from an ordinary thread"), "{text}");
        group.barrier().unwrap();
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
                let group = comm::connect(backend, rank, 2, timeout_ms).unwrap();
                let device = Device::cpu(1).unwrap();
                let tensor = device.zeros(&[8 << 20], DType::U8).unwrap();
                match rank {
                    0 => message(group.recv(&device.stream(), 1, &tensor)),
                    _ => message(group.send(&device.stream(), 0, &tensor)),
                }
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
    assert_eq!(what, "receive #1: rank 1 had not arrived");
    assert!(rest.contains(" of 8388608 bytes had moved); see what"), "{said}");
}
