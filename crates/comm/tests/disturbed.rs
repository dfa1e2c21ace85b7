//! Messages, broadcasts and personalized exchanges under seeded delays, and with a peer that hangs:
//! while they are submitted, waited for, and taken down in the middle.

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use comm::{AllToAll, CommError, Counters, EvenPlan, Group, Op, Operation, P2p, Settings};
use comm::{Window, World};
use common::{BACKENDS, PATIENCE_MS, control, delayed, settings, with_settings};
use device::{DType, Device, Stream, Tensor};
use layout::Tree;

/// Elements of a message: one that fits where small ones go, and one of many parts.
const LENS: [usize; 2] = [50, 300_000];

const SEEDS: u64 = 6;

#[test]
fn small_operations_in_a_row_keep_their_boxes_apart() {
    for (seed, kind) in (0..SEEDS).flat_map(|seed| BACKENDS.map(|kind| (seed, kind))) {
        with_settings(kind, 3, delayed(seed), |world| {
            let device = Device::cpu(1).unwrap();
            let (stream, group) = (device.stream(), world.group(&device).unwrap());
            let window = group.window(4 * 60).unwrap();
            let [all, out] = [window.tensor(0, &[60], DType::F32), device.zeros(&[60], DType::F32)]
                .map(|made: Result<Tensor, _>| made.unwrap());
            let plan = EvenPlan::new(&Tree::for_leaves(3), 0..60, DType::F32);
            let (place, before) = (group.place(), world.counters());
            for round in 0..30_usize {
                let value = |rank: usize| (100 * round + rank) as f32;
                let sum = value(0) + value(1) + value(2);
                stream.copy_in(&all, &[value(place); 60]).unwrap();
                let (from, by) = (window.clone(), plan.clone());
                let scatter = Op::ReduceScatter { window: from, plan: by, out: out.clone() };
                group.run(&stream, scatter).unwrap();
                let share =
                    stream.to_vec::<f32>(&out).unwrap()[20 * place..20 * place + 20].to_vec();
                assert_eq!(share, [sum; 20], "{kind}, seed {seed}, round {round}");
                let (window, plan) = (window.clone(), plan.clone());
                group.run(&stream, Op::AllReduce { window: window.clone(), plan }).unwrap();
                assert_eq!(stream.to_vec::<f32>(&all).unwrap(), [sum; 60], "{kind}, seed {seed}");
                let (root, range) = (round % 3, 0..60);
                stream.copy_in(&all, &[value(place); 60]).unwrap();
                group
                    .run(&stream, Op::Broadcast { window, root, element_bytes: 4, range })
                    .unwrap();
                let got = stream.to_vec::<f32>(&all).unwrap();
                assert_eq!(got, [value(root); 60], "{kind}, seed {seed}, round {round}");
            }
            // The bytes that all have sent are those that all have received.
            let sums = |counters: Counters| {
                let count = counters.of(Operation::ReduceScatterOrdered);
                [count.payload_sent_bytes, count.payload_received_bytes]
            };
            let (now, before) = (sums(world.counters()), sums(before));
            let moved = [0, 1].map(|side| (now[side] - before[side]).to_le_bytes()).concat();
            let moved = control(&world).all_gather_bytes(&moved).unwrap();
            let total = |side: usize| -> u64 {
                let word = |bytes: &Vec<u8>| {
                    u64::from_le_bytes(bytes[8 * side..8 * side + 8].try_into().unwrap())
                };
                moved.iter().map(word).sum()
            };
            assert_eq!(total(0), total(1), "{kind}");
            // Shares of 80 bytes and whole windows of 240, from two peers each, on three ranks.
            assert_eq!(total(1), 30 * 3 * 2 * (80 + 240), "{kind}");
        });
    }
}

/// A rank with a group of all and the memory of its operations, for messages of `len` elements.
struct Rank {
    stream: Stream,
    group: Group,
    place: usize,
    world: usize,
    len: usize,
    window: Window,
    of_window: Tensor,
    into: Tensor,
}

impl Rank {
    fn new(world: &World, len: usize) -> Rank {
        let device = Device::cpu(1).unwrap();
        let (stream, group) = (device.stream(), world.group(&device).unwrap());
        let (place, world) = (group.place(), world.size());
        let window = group.window(4 * len * world).unwrap();
        let of_window = window.tensor(0, &[len * world], DType::F32).unwrap();
        let into = device.zeros(&[len * world], DType::F32).unwrap();
        Rank { stream, group, place, world, len, window, of_window, into }
    }

    /// The value of `from` for `to` in a round.
    fn value(from: usize, to: usize, round: usize) -> f32 {
        (100 * round + 10 * from + to) as f32
    }

    fn part(&self, peer: usize) -> std::ops::Range<usize> {
        peer * self.len..(peer + 1) * self.len
    }

    fn parts(&self) -> Vec<std::ops::Range<usize>> {
        (0..self.world).map(|peer| self.part(peer)).collect()
    }

    /// Everyone's part of this rank's window.
    fn fill(&self, round: usize) {
        let part = |to| vec![Rank::value(self.place, to, round); self.len];
        let values: Vec<f32> = (0..self.world).flat_map(part).collect();
        self.stream.copy_in(&self.of_window, &values).unwrap();
    }

    fn all_to_all(&self) -> Op {
        let (send, receive) = (self.parts(), self.parts());
        Op::AllToAll(AllToAll { from: self.window.clone(), send, into: self.into.clone(), receive })
    }

    /// With everyone else.
    fn exchange(&self) -> Op {
        let peers = || (0..self.world).filter(|&peer| peer != self.place);
        let view = |tensor: &Tensor, peer| tensor.flat(self.part(peer)).unwrap();
        let send = |to| P2p::Send { to, tensor: view(&self.of_window, to) };
        let receive = |from| P2p::Receive { from, tensor: view(&self.into, from) };
        Op::Exchange(peers().map(send).chain(peers().map(receive)).collect())
    }

    /// Of the root's own part.
    fn broadcast(&self, root: usize) -> Op {
        let (window, range) = (self.window.clone(), self.part(root));
        Op::Broadcast { window, root, element_bytes: 4, range }
    }

    /// The value in the part of each peer.
    fn received(&self, tensor: &Tensor, peer: usize) -> f32 {
        let values = self.stream.to_vec::<f32>(tensor).unwrap();
        let part = &values[self.part(peer)];
        assert!(part.iter().all(|x| x == &part[0]), "a message is torn");
        part[0]
    }
}

#[test]
fn delays_change_no_message() {
    for (kind, seed) in BACKENDS.into_iter().flat_map(|kind| (0..SEEDS).map(move |s| (kind, s))) {
        let len = LENS[seed as usize % 2];
        with_settings(kind, 3, delayed(seed), |world| {
            let rank = Rank::new(&world, len);
            for round in 0..4 {
                for op in [rank.all_to_all(), rank.exchange()] {
                    rank.fill(round);
                    rank.group.run(&rank.stream, op).unwrap();
                    let peers = (0..rank.world).filter(|&peer| peer != rank.place);
                    for peer in peers {
                        let expected = Rank::value(peer, rank.place, round);
                        assert_eq!(rank.received(&rank.into, peer), expected, "{kind} {seed}");
                    }
                    rank.stream.copy_in(&rank.into, &vec![-1_f32; rank.into.len()]).unwrap();
                }
                let root = round % rank.world;
                rank.group.run(&rank.stream, rank.broadcast(root)).unwrap();
                let expected = Rank::value(root, root, round);
                assert_eq!(rank.received(&rank.of_window, root), expected, "{kind} {seed}");
                // Nobody writes again what others still read.
                control(&world).barrier().unwrap();
            }
        });
    }
}

/// Settings whose rank 1 comes to a stop in the middle of the operations that follow `hangs`,
/// until `over`.
fn hanging(hangs: &Arc<AtomicBool>, timeout_ms: u64) -> impl Fn(usize) -> Settings + Sync {
    let hangs = Arc::clone(hangs);
    move |rank| {
        let hangs = Arc::clone(&hangs);
        let disturb = move || {
            while rank == 1 && hangs.load(Ordering::Acquire) {
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        Settings { disturb: Some(Arc::new(disturb)), ..settings(timeout_ms) }
    }
}

/// The wait of a rank that hangs, until its peer has seen enough.
fn wait_for_the_end(hangs: &AtomicBool) {
    while hangs.load(Ordering::Acquire) {
        std::thread::sleep(Duration::from_millis(1));
    }
}

type Make = fn(&Rank) -> Op;

const OPERATIONS: [(Operation, Make); 2] =
    [(Operation::Exchange, Rank::exchange), (Operation::AllToAll, Rank::all_to_all)];

#[test]
fn a_peer_that_hangs_in_the_middle_is_named() {
    const TIMEOUT_MS: u64 = 700;
    for (kind, len) in BACKENDS.into_iter().flat_map(|kind| LENS.map(|len| (kind, len))) {
        for (operation, make) in OPERATIONS {
            let hangs = Arc::new(AtomicBool::new(false));
            let begun = Barrier::new(2);
            with_settings(kind, 2, hanging(&hangs, TIMEOUT_MS), |world| {
                let rank = Rank::new(&world, len);
                control(&world).barrier().unwrap();
                begun.wait();
                hangs.store(true, Ordering::Release);
                let pending = rank.group.prepare(make(&rank)).unwrap();
                let pending = rank.group.submit(&rank.stream, &pending).unwrap();
                if rank.place == 1 {
                    return wait_for_the_end(&hangs);
                }
                let start = Instant::now();
                let result = pending.wait();
                hangs.store(false, Ordering::Release);
                let error = result.expect_err("the peer hangs");
                assert!(start.elapsed() < Duration::from_millis(20 * TIMEOUT_MS), "{kind}");
                let named = matches!(&error, CommError::Timeout { operation: at, missing, .. }
                    if *at == operation && *missing == [1]);
                assert!(named, "{kind} {len}: {error}");
            });
        }
    }
}

#[test]
fn dropping_everything_in_the_middle_waits_for_no_peer() {
    let operations = OPERATIONS.map(|(_, make)| make);
    let all: [Make; 3] = [operations[0], operations[1], |rank| rank.broadcast(1)];
    for (kind, make) in BACKENDS.into_iter().flat_map(|kind| all.map(|make| (kind, make))) {
        let hangs = Arc::new(AtomicBool::new(false));
        let begun = Barrier::new(2);
        with_settings(kind, 2, hanging(&hangs, PATIENCE_MS), |world| {
            let rank = Rank::new(&world, LENS[1]);
            control(&world).barrier().unwrap();
            begun.wait();
            hangs.store(true, Ordering::Release);
            let op = rank.group.prepare(make(&rank)).unwrap();
            let pending = rank.group.submit(&rank.stream, &op).unwrap();
            if rank.place == 1 {
                return wait_for_the_end(&hangs);
            }
            std::thread::sleep(Duration::from_millis(50));
            let is_done = pending.is_done();
            let start = Instant::now();
            // Nobody has revoked anything.
            drop((op, pending, rank, world));
            let took = start.elapsed();
            hangs.store(false, Ordering::Release);
            assert!(!is_done.unwrap(), "{kind}");
            assert!(took < Duration::from_secs(10), "{kind}: {took:?}");
        });
    }
}
