//! Jobs of several hosts whose ranks share memory: how their groups move, what goes between hosts,
//! and who is named when a rank fails.

mod common;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use comm::{CommError, EvenPlan, Gather, Group, Op, Operation, Settings, Window, World};
use common::simulated;
use common::with_ranks;
use common::{BY_HOSTS, PATIENCE_MS, as_ranks, backends, delayed, message, on_hosts, settings};
use device::{Arch, DType, Device};
use layout::Tree;

fn device() -> Device {
    Device::cpu(1).unwrap()
}

/// How a group of these ranks moves, of a job whose rank `r` is on host `host_of[r]`.
fn route(host_of: &[usize], partition: &[Vec<usize>]) -> Vec<String> {
    as_ranks(
        on_hosts(host_of),
        |_| settings(PATIENCE_MS),
        |world| {
            assert_eq!(world.backend(), "shm+tcp");
            let device = device();
            let group = world.split(&device, partition).unwrap();
            let (len, stream) = (1000 * group.members().len(), device.stream());
            let window = group.window(4 * len).unwrap();
            let plan = EvenPlan::new(&Tree::for_leaves(group.members().len()), 0..len, DType::F32);
            let given: Vec<f32> = (0..len).map(|i| (i * (1 + world.rank())) as f32).collect();
            let tensor = window.tensor(0, &[len], DType::F32).unwrap();
            stream.copy_in(&tensor, &given).unwrap();
            group.run(&stream, Op::AllReduce { window, plan }).unwrap();
            let factors: usize = group.members().iter().map(|rank| 1 + rank).sum();
            let expected: Vec<f32> = (0..len).map(|i| (i * factors) as f32).collect();
            assert!(stream.to_vec::<f32>(&tensor).unwrap() == expected);
            group.route().to_string()
        },
    )
}

#[test]
fn a_group_goes_as_its_ranks_lie_and_says_so() {
    let all = |world: usize| vec![(0..world).collect::<Vec<_>>()];
    let said = route(&[0, 0, 1, 1], &all(4));
    assert_eq!(
        said,
        ["shm+tcp 2 × 2 (the memory is the host's; as many ranks on each host), sums ordered"; 4]
    );
    let said = route(&[7, 7, 3, 3, 3], &[vec![0, 1], vec![2, 3, 4]]);
    assert!(said.iter().all(|said| said.starts_with("shm (")), "{said:?}");
    let said = route(&[0, 0, 1], &all(3));
    let why = "tcp (the memory is the host's; 2 of the ranks are on host 0, and 1 on host 1)";
    assert!(said.iter().all(|said| said.starts_with(why)), "{said:?}");
    let said = route(&[0, 0, 1, 1], &[vec![0, 2], vec![1, 3]]);
    let why = "tcp (the memory is the host's; each rank is on a host of its own)";
    assert!(said.iter().all(|said| said.starts_with(why)), "{said:?}");
    let said = route(&[0, 1, 0, 1], &all(4));
    let why = "tcp (the memory is the host's; the ranks of host 0 do not follow one another)";
    assert!(said.iter().all(|said| said.starts_with(why)), "{said:?}");
}

struct Rank {
    world: World,
    device: Device,
    group: Group,
    window: Window,
    len: usize,
}

impl Rank {
    fn new(world: World, len: usize) -> Rank {
        let device = device();
        let group = world.group(&device).unwrap();
        let window = group.window(4 * len).unwrap();
        Rank { world, device, group, window, len }
    }

    fn all_reduce(&self) -> Result<(), CommError> {
        self.all_reduce_by(&Tree::for_leaves(self.world.size()))
    }

    fn all_reduce_by(&self, tree: &Tree) -> Result<(), CommError> {
        let plan = EvenPlan::new(tree, 0..self.len, DType::F32);
        self.group.run(&self.device.stream(), Op::AllReduce { window: self.window.clone(), plan })
    }
}

#[test]
fn between_hosts_go_the_bytes_of_a_ring_of_hosts() {
    for (kind, world) in BY_HOSTS {
        let len = 96_000;
        let each = usize::from(kind.as_bytes()[0] - b'0');
        let hosts = world / each;
        let counts = with_ranks(kind, world, PATIENCE_MS, |world| {
            let rank = Rank::new(world, len);
            // The leaves of each host are one node.
            rank.all_reduce_by(&Tree::new(&[hosts, each]).unwrap()).unwrap();
            let count = |operation| rank.world.counters().of(operation);
            let [reduced, gathered] =
                [Operation::ReduceScatterOrdered, Operation::AllGatherSegments].map(count);
            assert_eq!((reduced.calls, gathered.calls), (1, 1));
            // An operation that runs over tcp and then on the host is measured as one.
            let timings = rank.world.timings();
            let times = [Operation::ReduceScatterOrdered, Operation::AllGatherSegments];
            let times = times.map(|operation| timings.of(operation));
            assert_eq!(times.map(|time| time.calls), [1, 1]);
            assert!(times.iter().all(|time| time.waited_ns <= time.ns && time.ns > 0));
            let (window, element_bytes) = (rank.window.clone(), 4);
            let segments =
                (0..rank.world.size()).map(|r| (r == 1).then_some(0..len).into_iter().collect());
            let segments = segments.collect();
            let op = Op::AllGatherSegments(Gather { window, element_bytes, segments });
            rank.group.run(&rank.device.stream(), op).unwrap();
            let broadcast = count(Operation::AllGatherSegments).socket_sent_bytes;
            let broadcast = broadcast - gathered.socket_sent_bytes;
            [reduced.socket_sent_bytes, gathered.socket_sent_bytes, broadcast]
        });
        for host in counts.chunks(each) {
            let sent = |operation: usize| host.iter().map(|sent| sent[operation]).sum::<u64>();
            let ring = ((hosts - 1) * 4 * len / hosts) as u64;
            assert_eq!([sent(0), sent(1)], [ring; 2], "{kind}, {world} ranks");
        }
        // Of a broadcast each host gets one copy, and all of its ranks bring a part of it.
        let total: u64 = counts.iter().map(|sent| sent[2]).sum();
        assert_eq!(total, ((hosts - 1) * 4 * len) as u64);
        let first = counts[..each].iter().map(|sent| sent[2]);
        assert!(first.clone().min() > Some(0), "{first:?}");
    }
}

/// More than the trays of a host hold at a time, and no multiple of that.
#[test]
fn gathers_into_other_memory_bring_the_bytes_of_a_ring_of_hosts_and_leave_windows() {
    const LEN: usize = 7_000_003;
    for (kind, world) in BY_HOSTS {
        let each = usize::from(kind.as_bytes()[0] - b'0');
        let sent = with_ranks(kind, world, PATIENCE_MS, |world| {
            let (device, rank) = (device(), world.rank());
            let (group, stream) = (world.group(&device).unwrap(), device.stream());
            let window = group.window(4 * LEN).unwrap();
            let all = window.tensor(0, &[LEN], DType::U32).unwrap();
            // The range does not begin with the window, nor the results with their memory.
            let plan = EvenPlan::new(&Tree::for_leaves(world.size()), 5..LEN, DType::U32);
            let share = plan.segments()[rank][0].clone();
            let given = |at: usize| if share.contains(&at) { at as u32 } else { u32::MAX };
            let given: Vec<u32> = (0..LEN).map(given).collect();
            stream.copy_in(&all, &given).unwrap();
            let whole = device.zeros(&[LEN - 4], DType::U32).unwrap();
            let into = whole.flat(1..LEN - 4).unwrap();
            let count = |world: &World| world.counters().of(Operation::AllGatherSegments);
            let op = Op::AllGatherInto { window: window.clone(), plan, into: into.clone() };
            group.run(&stream, op).unwrap();
            let got = stream.to_vec::<u32>(&into).unwrap();
            assert!(got.iter().zip(5..).all(|(&x, at)| x == at), "{kind}, rank {rank}");
            assert_eq!(stream.to_vec::<u32>(&whole.flat(0..1).unwrap()).unwrap(), [0]);
            assert!(stream.to_vec::<u32>(&all).unwrap() == given, "{kind}, rank {rank}");
            let gathered = count(&world);
            assert!(gathered.calls > 1, "{kind}: {} rounds", gathered.calls);
            let (root, range) = (world.size() - 1, 5..LEN);
            let op =
                Op::BroadcastInto { window, root, element_bytes: 4, range, into: into.clone() };
            group.run(&stream, op).unwrap();
            let got = stream.to_vec::<u32>(&into).unwrap();
            let plan = EvenPlan::new(&Tree::for_leaves(world.size()), 5..LEN, DType::U32);
            let first = plan.segments()[root][0].start;
            let is_given = |at: usize, x: u32| x == if at < first { u32::MAX } else { at as u32 };
            assert!(got.iter().zip(5..).all(|(&x, at)| is_given(at, x)), "{kind}, rank {rank}");
            assert!(stream.to_vec::<u32>(&all).unwrap() == given, "{kind}, rank {rank}");
            let bytes = count(&world).socket_sent_bytes;
            [gathered.socket_sent_bytes, bytes - gathered.socket_sent_bytes]
        });
        let others = (world / each - 1) as u64;
        let total = |operation: usize| sent.iter().map(|sent| sent[operation]).sum::<u64>();
        // Each host but one's own gets every byte once.
        assert_eq!([total(0), total(1)], [others * 4 * (LEN as u64 - 5); 2], "{kind}");
    }
}

/// Memory that the host does not reach goes the same way, by its mirrors.
#[test]
fn devices_that_are_staged_go_by_hosts() {
    const LEN: usize = 90_001;
    if simulated(Arch::Gfx942, 0).is_none() {
        return;
    }
    for (kind, world) in BY_HOSTS {
        let each = usize::from(kind.as_bytes()[0] - b'0');
        let hosts = world / each;
        let sent = with_ranks(kind, world, PATIENCE_MS, |world| {
            let device = simulated(Arch::Gfx942, world.rank() as u64).unwrap();
            let (group, stream) = (world.group(&device).unwrap(), device.stream());
            let route = format!("staged-shm+tcp {hosts} × {each} (");
            assert!(group.route().to_string().starts_with(&route), "{}", group.route());
            let window = group.window(4 * LEN).unwrap();
            let all = window.tensor(0, &[LEN], DType::F32).unwrap();
            let given: Vec<f32> = (0..LEN).map(|at| (at * (1 + world.rank())) as f32).collect();
            stream.copy_in(&all, &given).unwrap();
            let tree = Tree::new(&[hosts, each]).unwrap();
            let plan = EvenPlan::new(&tree, 0..LEN, DType::F32);
            let op = Op::AllReduce { window: window.clone(), plan: plan.clone() };
            let op = group.prepare(op).unwrap();
            assert!(op.is_by_hosts());
            group.call(&stream, &op).unwrap();
            let factors = (1..=world.size()).sum::<usize>();
            let sums: Vec<f32> = (0..LEN).map(|at| (at * factors) as f32).collect();
            assert!(stream.to_vec::<f32>(&all).unwrap() == sums, "{kind}");
            let into = device.zeros(&[LEN], DType::F32).unwrap();
            let op = Op::AllGatherInto { window, plan, into: into.clone() };
            group.run(&stream, op).unwrap();
            assert!(stream.to_vec::<f32>(&into).unwrap() == sums, "{kind}");
            let sent = |operation| world.counters().of(operation).socket_sent_bytes;
            [sent(Operation::ReduceScatterOrdered), sent(Operation::AllGatherSegments)]
        });
        let total = |operation: usize| sent.iter().map(|sent| sent[operation]).sum::<u64>();
        let ring = ((hosts - 1) * 4 * LEN) as u64;
        // Gathered twice.
        assert_eq!([total(0), total(1)], [ring, 2 * ring], "{kind}");
    }
}

#[test]
fn what_is_small_says_that_it_goes_flat() {
    let by_hosts = as_ranks(
        on_hosts(&[0, 0, 1, 1]),
        |_| Settings { by_hosts_bytes: 4000, ..settings(PATIENCE_MS) },
        |world| {
            let (device, tree) = (device(), Tree::for_leaves(4));
            let group = world.group(&device).unwrap();
            [999, 1000].map(|len| {
                let window = group.window(4 * len).unwrap();
                let plan = EvenPlan::new(&tree, 0..len, DType::F32);
                let op = group.prepare(Op::AllGather { window, plan }).unwrap();
                group.call(&device.stream(), &op).unwrap();
                op.is_by_hosts()
            })
        },
    );
    assert_eq!(by_hosts, [[false, true]; 4]);
}

#[test]
fn a_rank_that_comes_late_is_named_by_all_and_no_other() {
    for late in [1, 2] {
        let told = with_ranks("2 a host", 4, 1500, |world| {
            let rank = Rank::new(world, 9_000);
            rank.all_reduce().unwrap();
            let since = Instant::now();
            if rank.world.rank() == late {
                while rank.world.revocation().why().is_none() {
                    assert!(since.elapsed() < Duration::from_secs(30), "nobody gave up");
                    std::thread::sleep(Duration::from_millis(5));
                }
                return (message(rank.all_reduce()), Duration::from_millis(1500));
            }
            (message(rank.all_reduce()), since.elapsed())
        });
        for (text, after) in told {
            // Of ranks that waited for ranks that waited for it none is named.
            let names = format!(": rank {late} had not arrived after 1500 ms");
            assert!(text.contains(&names), "{text}");
            assert!(after >= Duration::from_millis(1400), "{text} after {after:?}");
            assert!(after < Duration::from_secs(10), "{text} after {after:?}");
        }
    }
}

#[test]
fn a_rank_that_stops_in_the_middle_is_named_by_all_and_no_other() {
    const TIMEOUT_MS: u64 = 6000;
    // Beside each other, since each waits for its deadline.
    std::thread::scope(|scope| {
        for (stops, after) in [(1, 1), (3, 2), (2, 4), (0, 7), (3, 12)] {
            scope.spawn(move || stop(("2 a host", 4), (stops, after), TIMEOUT_MS));
        }
    });
}

/// Its neighbour waits for it in memory while the other hosts wait for both, and know of either
/// what they were told last: a second ago is half of this timeout.
#[test]
fn of_three_hosts_the_rank_that_stops_is_named_within_a_short_timeout() {
    std::thread::scope(|scope| {
        for (stops, after) in [(0, 15), (0, 18), (0, 21), (3, 11), (3, 13), (4, 8)] {
            scope.spawn(move || stop(("2 a host", 6), (stops, after), 2000));
        }
    });
}

/// Lets rank `stops` stop after so many parts of an operation, until all others know.
fn stop((kind, world): (&str, usize), (stops, after): (usize, usize), timeout_ms: u64) {
    let (is_armed, parts) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let over = Arc::new(AtomicUsize::new(0));
    let stopping = |rank: usize| {
        let (is_armed, parts, over) = (is_armed.clone(), parts.clone(), over.clone());
        let disturb = move || {
            if rank != stops || !is_armed.load(Ordering::Acquire) {
                return;
            }
            if parts.fetch_add(1, Ordering::Relaxed) == after {
                while over.load(Ordering::Acquire) < world - 1 {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        };
        Settings { disturb: Some(Arc::new(disturb)), ..settings(timeout_ms) }
    };
    let told = as_ranks(backends(kind, world), stopping, |world| {
        let rank = Rank::new(world, 400_000);
        rank.all_reduce().unwrap();
        if rank.world.rank() == stops {
            is_armed.store(true, Ordering::Release);
        }
        let failed = (0..50).map(|_| rank.all_reduce()).find(Result::is_err);
        let text = message(failed.unwrap_or(Ok(())));
        if rank.world.rank() != stops {
            over.fetch_add(1, Ordering::AcqRel);
        }
        text
    });
    for text in told {
        let names = format!(": rank {stops} had not arrived after {timeout_ms} ms");
        assert!(text.contains(&names), "stopped after {after} parts: {text}");
    }
}

#[test]
fn delays_change_no_bit() {
    for (seed, (kind, world)) in (0..4).flat_map(|seed| BY_HOSTS.map(|shape| (seed, shape))) {
        let len = [1000, 200_000][seed as usize % 2];
        as_ranks(backends(kind, world), delayed(seed), |world| {
            let rank = Rank::new(world, len);
            let (stream, size) = (rank.device.stream(), rank.world.size());
            let all = rank.window.tensor(0, &[len], DType::F32).unwrap();
            for round in 0..6 {
                let value = |rank: usize, at: usize| (at % 100 + round) as f32 * rank as f32;
                let mine = (0..len).map(|at| value(1 + rank.world.rank(), at));
                stream.copy_in(&all, &mine.collect::<Vec<_>>()).unwrap();
                rank.all_reduce().unwrap();
                let factors = size * (size + 1) / 2;
                let sums = (0..len).map(|at| value(factors, at)).collect::<Vec<_>>();
                assert!(stream.to_vec::<f32>(&all).unwrap() == sums, "{kind}, seed {seed}");
                let root = round % size;
                stream.copy_in(&all, &vec![rank.world.rank() as f32; len]).unwrap();
                let (window, range) = (rank.window.clone(), 0..len);
                let op = Op::Broadcast { window, root, element_bytes: 4, range };
                rank.group.run(&stream, op).unwrap();
                let got = stream.to_vec::<f32>(&all).unwrap();
                assert!(got.iter().all(|x| *x == root as f32), "{kind}, seed {seed}");
            }
        });
    }
}

#[test]
fn a_rank_that_does_something_else_is_named() {
    for odd in [0, 3] {
        // Making a window would fail, too.
        let all_have_one = Barrier::new(4);
        let told = with_ranks("2 a host", 4, PATIENCE_MS, |world| {
            let rank = Rank::new(world, 9_000);
            all_have_one.wait();
            if rank.world.rank() == odd {
                return message(rank.group.run(&rank.device.stream(), Op::Barrier));
            }
            message(rank.all_reduce())
        });
        for (rank, text) in told.iter().enumerate() {
            let is_named = text.contains(&format!("rank {odd}")) || rank == odd;
            assert!(is_named && text.contains("barrier"), "{told:?}");
        }
    }
}

#[test]
fn a_rank_that_leaves_is_lost_to_all_whichever_host_it_is_on() {
    for gone in [0, 3] {
        let before = Barrier::new(4);
        let told = with_ranks("2 a host", 4, PATIENCE_MS, |world| {
            let rank = Rank::new(world, 9_000);
            rank.all_reduce().unwrap();
            before.wait();
            if rank.world.rank() == gone {
                return format!("rank {gone}");
            }
            message(rank.all_reduce())
        });
        for text in &told {
            assert!(text.contains(&format!("rank {gone}")), "{told:?}");
        }
    }
}

#[test]
fn a_reason_to_give_up_reaches_every_rank_of_every_host() {
    // Making a group would fail, too.
    let all_have_one = Barrier::new(4);
    let told = with_ranks("2 a host", 4, PATIENCE_MS, |world| {
        let rank = Rank::new(world, 9_000);
        all_have_one.wait();
        if rank.world.rank() == 3 {
            rank.world.revoke("on purpose");
        }
        let since = Instant::now();
        let text = message(rank.all_reduce());
        (text, since.elapsed())
    });
    for (text, after) in told {
        assert!(text.contains("on purpose"), "{text}");
        assert!(after < Duration::from_secs(20), "{after:?}");
    }
}
