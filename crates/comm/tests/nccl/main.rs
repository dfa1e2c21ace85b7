//! Groups over NCCL and RCCL, by the look-alikes of the libraries and of the drivers: several
//! processes, a GPU each.
//!
//! A driver's library is opened once in a process, and so is a vendor's; so every rank is this test
//! program again, with its `child` test alone.

#[path = "../common/mod.rs"]
mod common;

mod choices;
mod every;
mod failures;
mod job;
mod order;

use comm::{EvenPlan, GroupOptions, Op, Operation};
use device::DType;
use job::{Job, Rank, VENDORS};
use layout::Tree;

#[test]
#[ignore = "the body of a process: the tests start it, in every run, with its libraries"]
fn child() {
    let rank = Rank::from_environment();
    match rank.task.as_str() {
        "every" => every::child(&rank),
        "route" => choices::child(&rank),
        "shared" => choices::shared(&rank),
        "interleaved" => order::interleaved(&rank),
        "overlap" => order::overlap(&rank),
        "windows" => windows(&rank),
        "own sums" => own_sums(&rank),
        _ => failures::child(&rank),
    }
}

#[test]
fn every_operation_has_the_bits_of_the_host() {
    for (vendor, ranks, backend) in
        [("cuda", 3, "shm"), ("hip", 2, "tcp"), ("cuda", 4, "tcp"), ("cuda", 1, "shm")]
    {
        let expected = every::expected(ranks);
        let Some(job) = Job::new("every", vendor, ranks) else { return };
        let job = job.backend(backend).env("LOOKALIKE_NCCL_SEED", "7");
        for (rank, said) in job.passes().iter().enumerate() {
            said.without_complaint();
            assert!(said.bits() == expected[rank], "{vendor} {ranks} {backend}: rank {rank}");
        }
    }
}

/// And those of a staged group on the same devices.
#[test]
fn staged_groups_have_the_same_bits() {
    let expected = every::expected(3);
    let Some(job) = Job::new("every", "cuda", 3) else { return };
    for (rank, said) in job.env("CHILD_TRANSPORT", "staged").passes().iter().enumerate() {
        said.without_complaint();
        assert!(said.bits() == expected[rank], "rank {rank}");
    }
}

/// The library's own sums are those of numbers that any order sums to the same.
#[test]
fn sums_can_be_left_to_the_library() {
    for vendor in VENDORS {
        let Some(job) = Job::new("every", vendor, 3) else { return };
        let job = job.env("CHILD_SUM", "vendor").env("CHILD_WHOLE", "1");
        let expected = every::expected_of_whole_numbers(3);
        for (rank, said) in job.passes().iter().enumerate() {
            said.without_complaint();
            assert!(said.bits() == expected[rank], "{vendor}: rank {rank}");
        }
    }
}

/// One call of the library, and no gather after it.
fn own_sums(rank: &Rank) {
    let (world, device) = rank.connect();
    let everyone: Vec<usize> = (0..world.size()).collect();
    let group = world.split_with(&device, &[everyone], options()).unwrap();
    println!("\nroute {}", group.route());
    let window = group.window(4 * 12).unwrap();
    let plan = EvenPlan::new(&Tree::for_leaves(world.size()), 0..12, DType::F32);
    group.run(&device.stream(), Op::AllReduce { window, plan }).unwrap();
    let count = |operation| world.counters().of(operation).calls;
    let calls = [Operation::ReduceScatterOrdered, Operation::AllGatherSegments].map(count);
    assert_eq!(calls, [1, 0]);
    let moved = world.counters().of(Operation::ReduceScatterOrdered).payload_sent_bytes;
    assert_eq!(moved, 2 * 4 * 12 * (world.size() as u64 - 1) / world.size() as u64);
}

#[test]
fn sums_of_the_library_are_said_to_be_so() {
    let Some(job) = Job::new("own sums", "hip", 3) else { return };
    for said in job.env("CHILD_SUM", "vendor").passes() {
        said.without_complaint();
        assert!(said.line("route").ends_with("sums in the library's own order"), "{}", said.text);
    }
}

fn windows(rank: &Rank) {
    let (world, device) = rank.connect();
    let group = world.group(&device).unwrap();
    let windows = [0, 1, 4 << 20].map(|bytes| group.window(bytes).unwrap());
    println!("\npath {}", group.window_path().unwrap().name());
    let zeros = windows[2].tensor(0, &[4 << 20], DType::U8).unwrap();
    let bytes = device.stream().to_vec::<u8>(&zeros).unwrap();
    assert!(bytes.iter().all(|&byte| byte == 0));
    group.run(&device.stream(), Op::Barrier).unwrap();
    // In any order: what the library knows it forgets first.
    drop(group);
    drop((zeros, windows));
}

#[test]
fn windows_are_known_to_the_library_in_the_best_way_that_it_has() {
    for (version, expected) in [(23_007, "symmetric"), (22_105, "registered"), (21_801, "plain")] {
        let Some(job) = Job::new("windows", "cuda", 2) else { return };
        for said in job.version(version).passes() {
            said.without_complaint();
            assert_eq!(said.line("path"), expected, "{version}");
        }
    }
}

/// The options of a group, by the environment of a child.
fn options() -> GroupOptions {
    let named = |name: &str| std::env::var(name).ok();
    GroupOptions {
        transport: named("CHILD_TRANSPORT").map_or(Default::default(), |t| t.parse().unwrap()),
        sum: named("CHILD_SUM").map_or(Default::default(), |sum| sum.parse().unwrap()),
    }
}
