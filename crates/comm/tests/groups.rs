//! Groups that submit work: order between groups, parts of a mesh, failures while work is queued.

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use comm::{Channel, CommError, EvenPlan, Gather, Group, Op, Operation, P2p, Pending, Prepared};
use comm::{Settings, World};
use common::with_settings;
use common::{BACKENDS, PATIENCE_MS, control, delayed, message, settings, with_ranks};
use device::{DType, Device, Stream, Tensor};
use layout::Tree;

/// A sum of `len` elements over a group, in place.
struct Sum {
    group: Group,
    tensor: Tensor,
    op: Prepared,
}

impl Sum {
    fn new(group: Group, len: usize) -> Sum {
        let window = group.window(4 * len).unwrap();
        let tensor = window.tensor(0, &[len], DType::F32).unwrap();
        let plan = EvenPlan::new(&Tree::for_leaves(group.members().len()), 0..len, DType::F32);
        let op = group.prepare(Op::AllReduce { window, plan }).unwrap();
        Sum { group, tensor, op }
    }

    fn submit(&self, stream: &Stream, value: f32) -> Pending {
        stream.copy_in(&self.tensor, &vec![value; self.tensor.len()]).unwrap();
        self.group.submit(stream, &self.op).unwrap()
    }

    fn result(&self, stream: &Stream) -> Vec<f32> {
        stream.to_vec(&self.tensor).unwrap()
    }
}

#[test]
fn groups_do_not_wait_for_each_other() {
    for kind in BACKENDS {
        with_ranks(kind, 2, PATIENCE_MS, |world| {
            let device = Device::cpu(1).unwrap();
            let stream = device.stream();
            let [a, b] = [(), ()].map(|()| Sum::new(world.group(&device).unwrap(), 10_000));
            for round in 0..20 {
                let values = [1.0, 2.0].map(|x| x + (10 * round + world.rank()) as f32);
                // Each rank begins with another group.
                let pending = match world.rank() {
                    0 => [a.submit(&stream, values[0]), b.submit(&stream, values[1])],
                    _ => [b.submit(&stream, values[1]), a.submit(&stream, values[0])],
                };
                // Work that follows on the compute stream comes after both, without the host.
                pending.iter().for_each(|pending| pending.then(&stream).unwrap());
                let expected = [3.0, 5.0].map(|x| x + (20 * round) as f32);
                for (sum, expected) in [&a, &b].into_iter().zip(expected) {
                    let got = sum.result(&stream);
                    assert!(got.iter().all(|&x| x == expected), "{kind}: {} {expected}", got[0]);
                }
            }
        });
    }
}

#[test]
fn the_groups_of_a_mesh_sum_their_own() {
    // Ranks 0 to 3 as rows (0 1) (2 3) and columns (0 2) (1 3).
    for kind in BACKENDS {
        with_ranks(kind, 4, PATIENCE_MS, |world| {
            let device = Device::cpu(1).unwrap();
            let stream = device.stream();
            let split = |partition: &[Vec<usize>]| world.split(&device, partition).unwrap();
            let rows = Sum::new(split(&[vec![0, 1], vec![2, 3]]), 5_000);
            let columns = Sum::new(split(&[vec![0, 2], vec![1, 3]]), 70_000);
            let alone = Sum::new(split(&[vec![3], vec![1], vec![0], vec![2]]), 100);
            let rank = world.rank();
            assert_eq!(rows.group.members(), [[0, 1], [2, 3]][rank / 2]);
            assert_eq!(rows.group.place(), rank % 2);
            assert_eq!(columns.group.members(), [rank % 2, rank % 2 + 2]);
            let value = 2_f32.powi(rank as i32);
            let of =
                |ranks: &[usize]| ranks.iter().map(|&rank| 2_f32.powi(rank as i32)).sum::<f32>();
            for _ in 0..5 {
                let pending = [&columns, &rows, &alone].map(|sum| sum.submit(&stream, value));
                pending.iter().rev().for_each(|pending| pending.wait().unwrap());
                for (sum, expected) in
                    [&rows, &columns, &alone].map(|sum| (sum, of(sum.group.members())))
                {
                    let got = sum.result(&stream);
                    assert!(got.iter().all(|&x: &f32| x == expected), "{kind} {rank}: {}", got[0]);
                }
            }
        });
    }
}

#[test]
fn a_partition_names_every_rank_once_and_is_the_same_everywhere() {
    for kind in BACKENDS {
        for (wrong, what) in [
            (vec![vec![0, 1], vec![1]], "the groups name rank 1 more than once"),
            (vec![vec![0]], "the groups name rank 1 never"),
            (vec![vec![0, 1, 2]], "rank 2 does not exist among 2 ranks"),
        ] {
            let texts = with_ranks(kind, 2, PATIENCE_MS, |world| {
                // Both have met before either gives up.
                let _ = control(&world).barrier();
                message(world.split(&Device::cpu(1).unwrap(), &wrong))
            });
            assert!(texts.iter().any(|text| text.starts_with(what)), "{kind}: {texts:?}");
        }
        let texts = with_ranks(kind, 2, PATIENCE_MS, |world| {
            let parts = [vec![vec![0, 1]], vec![vec![1, 0]]];
            message(world.split(&Device::cpu(1).unwrap(), &parts[world.rank()]))
        });
        let told = |text: &String| text.contains("is at another partition instead");
        assert!(texts.iter().any(told), "{kind}: {texts:?}");
    }
}

#[test]
fn both_directions_of_a_ring_of_large_messages_move_at_once() {
    const LEN: usize = 2 << 20;
    for kind in BACKENDS {
        with_ranks(kind, 3, PATIENCE_MS, |world| {
            let device = Device::cpu(1).unwrap();
            let (stream, group) = (device.stream(), world.group(&device).unwrap());
            let rank = world.rank();
            let (next, last) = ((rank + 1) % 3, (rank + 2) % 3);
            let value = |rank: usize, way: usize, i: usize| (10 * rank + way + i % 97) as f32;
            let filled = |way: usize| {
                let values: Vec<f32> = (0..LEN).map(|i| value(rank, way, i)).collect();
                device.tensor(&[LEN], &values).unwrap()
            };
            let empty = || device.zeros(&[LEN], DType::F32).unwrap();
            let [from_last, from_next] = [empty(), empty()];
            let messages = vec![
                P2p::Send { to: next, tensor: filled(1) },
                P2p::Send { to: last, tensor: filled(2) },
                P2p::Receive { from: next, tensor: from_next.clone() },
                P2p::Receive { from: last, tensor: from_last.clone() },
            ];
            group.run(&stream, Op::Exchange(messages)).unwrap();
            for (tensor, from, way) in [(&from_last, last, 1), (&from_next, next, 2)] {
                let got = stream.to_vec::<f32>(tensor).unwrap();
                let is_right = |(i, &x): (usize, &f32)| x == value(from, way, i);
                assert!(got.iter().enumerate().all(is_right), "{kind} {rank}");
            }
            let bytes = world.counters().of(Operation::Exchange);
            assert_eq!(bytes.payload_sent_bytes, 2 * 4 * LEN as u64, "{kind}");
            assert_eq!(bytes.payload_received_bytes, 2 * 4 * LEN as u64, "{kind}");
        });
    }
}

#[test]
fn an_exchange_and_a_collective_in_different_orders_are_a_mismatch() {
    for kind in BACKENDS {
        for len in [1, 100_000] {
            let texts = with_ranks(kind, 2, PATIENCE_MS, |world| {
                let device = Device::cpu(1).unwrap();
                let (stream, group) = (device.stream(), world.group(&device).unwrap());
                let window = group.window(64).unwrap();
                let tensor = device.zeros(&[len], DType::F32).unwrap();
                let exchange = Op::Exchange(match world.rank() {
                    0 => vec![P2p::Send { to: 1, tensor }],
                    _ => vec![P2p::Receive { from: 0, tensor }],
                });
                let collective = Op::Broadcast { window, root: 0, element_bytes: 4, range: 0..4 };
                let mut order = [exchange, collective];
                if world.rank() == 1 {
                    order.reverse();
                }
                let [first, second] = order;
                let ran = group.run(&stream, first).and_then(|()| group.run(&stream, second));
                // A small message may be on its way when its sender goes on.
                message(ran.and_then(|()| control(&world).barrier()))
            });
            let at = |text: &String| text.contains("rank 0 is at exchange");
            assert!(at(&texts[1]), "{kind} {len}: {texts:?}");
            assert!(at(&texts[0]), "{kind} {len}: {texts:?}");
        }
    }
}

#[test]
fn a_peer_that_hangs_holds_up_neither_submission_nor_teardown_and_is_named() {
    const TIMEOUT_MS: u64 = 1500;
    for kind in BACKENDS {
        let (hung, over) = (Barrier::new(2), Barrier::new(2));
        with_ranks(kind, 2, TIMEOUT_MS, |world| {
            let device = Device::cpu(1).unwrap();
            let stream = device.stream();
            let sum = Sum::new(world.group(&device).unwrap(), 1000);
            if world.rank() == 1 {
                hung.wait();
                over.wait();
                return;
            }
            hung.wait();
            let start = Instant::now();
            let pending: Vec<Pending> =
                (0..5).map(|_| sum.group.submit(&stream, &sum.op).unwrap()).collect();
            assert!(start.elapsed() < Duration::from_millis(TIMEOUT_MS / 2), "{kind}");
            assert!(!pending[0].is_done().unwrap());
            let error = pending[2].wait().unwrap_err();
            assert!(start.elapsed() < Duration::from_millis(10 * TIMEOUT_MS), "{kind}");
            match error {
                CommError::Timeout { operation, sequence, missing, .. } => {
                    assert_eq!(operation, Operation::ReduceScatterOrdered, "{kind}");
                    assert_eq!(missing, [1], "{kind}");
                    assert!(sequence > 0, "{kind}");
                }
                other => panic!("{kind}: {other}"),
            }
            let later = message(pending[4].wait());
            assert!(later.contains("rank 1 had not arrived"), "{kind}: {later}");
            let refused = message(sum.group.submit(&stream, &sum.op));
            assert!(refused.contains("rank 1 had not arrived"), "{kind}: {refused}");
            let start = Instant::now();
            drop((sum, pending, world, device));
            assert!(start.elapsed() < Duration::from_secs(2), "{kind}");
            over.wait();
        });
    }
}

#[test]
fn dropping_everything_while_a_peer_hangs_waits_for_nothing() {
    for kind in BACKENDS {
        let over = Barrier::new(2);
        with_ranks(kind, 2, PATIENCE_MS, |world| {
            let device = Device::cpu(1).unwrap();
            let stream = device.stream();
            let sum = Sum::new(world.group(&device).unwrap(), 1000);
            if world.rank() == 0 {
                let _ = sum.group.submit(&stream, &sum.op).unwrap();
                let start = Instant::now();
                world.revoke("enough");
                drop((sum, stream, device, world));
                assert!(start.elapsed() < Duration::from_secs(5), "{kind}");
            }
            over.wait();
        });
    }
}

#[test]
fn work_that_never_comes_to_its_operation_is_this_ranks_own_fault() {
    for kind in BACKENDS {
        let over = Barrier::new(2);
        with_ranks(kind, 2, 1000, |world| {
            let device = Device::cpu(1).unwrap();
            let sum = Sum::new(world.group(&device).unwrap(), 10);
            if world.rank() == 0 {
                let stuck = device.new_stream().unwrap();
                let (hold, let_go) = std::sync::mpsc::channel::<()>();
                let let_go = std::sync::Mutex::new(let_go);
                let wait = move || {
                    let _ = let_go.lock().unwrap().recv();
                    Ok(())
                };
                stuck.host(wait).unwrap();
                let error = sum.group.submit(&stuck, &sum.op).unwrap().wait().unwrap_err();
                let missing =
                    matches!(&error, CommError::Timeout { missing, .. } if *missing == [0]);
                assert!(missing, "{kind}: {error}");
                drop(hold);
            }
            over.wait();
        });
    }
}

#[test]
fn giving_up_reaches_ranks_that_are_in_no_operation_or_wait_in_another_group() {
    for kind in BACKENDS {
        let (ready, over) = (Barrier::new(4), Barrier::new(4));
        with_ranks(kind, 4, PATIENCE_MS, |world| {
            let device = Device::cpu(1).unwrap();
            let stream = device.stream();
            let group = world.split(&device, &[vec![0, 1], vec![2, 3]]).unwrap();
            let sum = Sum::new(group, 100);
            ready.wait();
            let start = Instant::now();
            match world.rank() {
                0 => world.revoke("on purpose"),
                // Waits for a member that does not come.
                2 => {
                    let done = sum.group.submit(&stream, &sum.op);
                    let done = done.and_then(|pending| pending.wait());
                    assert_eq!(message(done), "the group was aborted: on purpose");
                }
                // In no operation.
                _ => {
                    let revocation = world.revocation();
                    while revocation.why().is_none() {
                        assert!(start.elapsed() < Duration::from_secs(20), "{kind}");
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    assert_eq!(revocation.why(), Some("on purpose"), "{kind}");
                }
            }
            // A tenth of that is what it takes; the rest is for a machine that does much else.
            assert!(start.elapsed() < Duration::from_secs(1), "{kind}: {:?}", start.elapsed());
            over.wait();
        });
    }
}

#[test]
fn saving_goes_on_beside_a_group_that_waits() {
    for kind in BACKENDS {
        with_ranks(kind, 2, PATIENCE_MS, |world| {
            let device = Device::cpu(1).unwrap();
            let stream = device.stream();
            let sum = Sum::new(world.group(&device).unwrap(), 100);
            let early = (world.rank() == 0).then(|| sum.submit(&stream, 1.0));
            let saving = world.control(Channel::Saving);
            for round in 0..50_u8 {
                let all = saving.all_gather_bytes(&[world.rank() as u8, round]).unwrap();
                assert_eq!(all, [[0, round], [1, round]], "{kind}");
            }
            assert!(early.as_ref().is_none_or(|pending| !pending.is_done().unwrap()), "{kind}");
            // And the two channels beside each other, from two threads, in any order.
            std::thread::scope(|scope| {
                let training = control(&world);
                scope.spawn(move || (0..50).for_each(|_| training.barrier().unwrap()));
                (0..50).for_each(|_| saving.barrier().unwrap());
            });
            early.unwrap_or_else(|| sum.submit(&stream, 1.0)).wait().unwrap();
            assert_eq!(sum.result(&stream)[0], 2.0, "{kind}");
        });
    }
}

#[test]
fn delays_change_nothing() {
    for (kind, seed) in BACKENDS.into_iter().flat_map(|kind| [1, 2].map(|seed| (kind, seed))) {
        with_settings(kind, 4, delayed(seed), |world| {
            let device = Device::cpu(1).unwrap();
            let stream = device.stream();
            let all = Sum::new(world.group(&device).unwrap(), 150_000);
            let pairs = world.split(&device, &[vec![0, 3], vec![1, 2]]).unwrap();
            let pairs = Sum::new(pairs, 3_000);
            for round in 0..6 {
                let value = (world.rank() + round) as f32;
                let submit = [&all, &pairs].map(|sum| sum.submit(&stream, value));
                control(&world).barrier().unwrap();
                submit.iter().for_each(|pending| pending.wait().unwrap());
                let expected = [(6 + 4 * round) as f32, (3 + 2 * round) as f32];
                let got = [&all, &pairs].map(|sum| sum.result(&stream));
                for (got, expected) in got.iter().zip(expected) {
                    assert!(got.iter().all(|&x| x == expected), "{kind} seed {seed}");
                }
            }
        });
    }
}

/// Rank 0's windows of 64 MiB, gathered by both; rank 1 pauses between the parts.
fn gather_slowly(kind: &str, timeout_ms: u64, pause: Duration) -> Vec<(String, Duration)> {
    let is_slow = Arc::new(AtomicBool::new(false));
    let slow = |rank: usize| {
        let is_slow = Arc::clone(&is_slow);
        let disturb = move || {
            if rank == 1 && is_slow.load(Ordering::Relaxed) {
                std::thread::sleep(pause);
            }
        };
        Settings { disturb: Some(Arc::new(disturb)), ..settings(timeout_ms) }
    };
    with_settings(kind, 2, slow, |world| {
        let device = Device::cpu(1).unwrap();
        let group = world.group(&device).unwrap();
        let (stream, window) = (device.stream(), group.window(64 << 20).unwrap());
        let segments = [std::iter::once(0..64 << 20).collect(), vec![]].into();
        let gather = Gather { window, element_bytes: 1, segments };
        control(&world).barrier().unwrap();
        is_slow.store(true, Ordering::Relaxed);
        let start = Instant::now();
        (message(group.run(&stream, Op::AllGatherSegments(gather))), start.elapsed())
    })
}

#[test]
fn a_transfer_that_moves_may_take_longer_than_the_timeout() {
    // Rank 1 reads one half, rank 0 writes the other.
    let results = gather_slowly("shm", 1000, Duration::from_millis(350));
    for (text, took) in results {
        assert_eq!(text, "no error");
        assert!(took > Duration::from_millis(2500), "{took:?}");
    }
}

#[test]
fn a_transfer_that_stands_still_is_named() {
    let results = gather_slowly("shm", 500, Duration::from_secs(4));
    let told = |text: &str| text.contains("rank 1 had not arrived after 500 ms");
    assert!(results.iter().any(|(text, _)| told(text)), "{results:?}");
}

/// A pulse that always beats.
fn beating() -> u64 {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_millis() as u64
}

#[test]
fn a_sender_that_stands_still_is_named_and_not_who_has_received() {
    let is_slow = Arc::new(AtomicBool::new(false));
    let of = |rank: usize| {
        let is_slow = Arc::clone(&is_slow);
        let disturb = move || {
            if rank == 0 && is_slow.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_secs(3));
            }
        };
        // Rank 2 works on when it has its message.
        let pulse = if rank == 2 { beating } else { || 0 };
        Settings { pulse, disturb: Some(Arc::new(disturb)), ..settings(500) }
    };
    for kind in BACKENDS {
        // All must have left what comes before: else rank 0 stands still in that.
        let begun = Barrier::new(3);
        let said = with_settings(kind, 3, of, |world| {
            let device = Device::cpu(1).unwrap();
            let (group, stream) = (world.group(&device).unwrap(), device.stream());
            let [large, small] = [8 << 20, 8].map(|len| device.zeros(&[len], DType::U8).unwrap());
            control(&world).barrier().unwrap();
            begun.wait();
            is_slow.store(true, Ordering::Relaxed);
            let send = |to, tensor: &Tensor| P2p::Send { to, tensor: tensor.clone() };
            let receive = |from, tensor: &Tensor| P2p::Receive { from, tensor: tensor.clone() };
            let messages = match world.rank() {
                0 => vec![send(1, &large)],
                1 => vec![send(2, &small), receive(0, &large)],
                _ => vec![receive(1, &small)],
            };
            let said = message(group.run(&stream, Op::Exchange(messages)));
            if world.rank() == 2 {
                std::thread::sleep(Duration::from_secs(2));
            }
            said
        });
        assert!(said[1].contains("rank 0 had not arrived after 500 ms"), "{kind}: {said:?}");
        is_slow.store(false, Ordering::Relaxed);
    }
}

#[test]
fn a_rank_that_works_is_waited_for_beyond_the_timeout() {
    const TIMEOUT_MS: u64 = 2500;
    let busy = |rank: usize| {
        let pulse = if rank == 1 { beating } else { || 0 };
        Settings { pulse, ..settings(TIMEOUT_MS) }
    };
    for kind in BACKENDS {
        with_settings(kind, 3, busy, |world: World| {
            let pairs = [vec![0, 1], vec![2]];
            let group = world.split(&Device::cpu(1).unwrap(), &pairs).unwrap();
            // Rank 2 waits for rank 0, which waits for rank 1, which is busy.
            match world.rank() {
                0 => drop(group.window(100).unwrap()),
                1 => {
                    std::thread::sleep(Duration::from_millis(2 * TIMEOUT_MS + 1000));
                    drop(group.window(100).unwrap());
                }
                _ => {}
            }
            assert_eq!(message(control(&world).barrier()), "no error", "{kind} {}", world.rank());
        });
    }
}
