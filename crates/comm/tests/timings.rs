//! Measured times of operations: waiting for a late rank is told apart, and clocks agree.

mod common;

use std::time::Duration;

use comm::{Channel, EvenPlan, Op, Operation, clocks};
use common::{BACKENDS, PATIENCE_MS, control, with_ranks};
use device::{DType, Device};
use layout::Tree;

/// So late is one rank.
const LATE: Duration = Duration::from_millis(300);
/// Whatever the machine does meanwhile, the others wait for a part of it.
const LEAST: u64 = 100_000_000;

#[test]
fn a_late_rank_is_waited_for_and_does_not_wait_itself() {
    for kind in BACKENDS {
        let world = 3;
        let plan = EvenPlan::new(&Tree::for_leaves(world), 0..100_000, DType::F32);
        let timings = with_ranks(kind, world, PATIENCE_MS, |world| {
            let device = Device::cpu(1).unwrap();
            let (group, stream) = (world.group(&device).unwrap(), device.stream());
            let window = group.window(400_000).unwrap();
            let gather = group.prepare(Op::AllGather { window, plan: plan.clone() }).unwrap();
            let late = || {
                control(&world).barrier().unwrap();
                if world.rank() == 1 {
                    std::thread::sleep(LATE);
                }
            };
            late();
            let before = world.timings();
            group.call(&stream, &gather).unwrap();
            late();
            world.control(Channel::Saving).all_gather_bytes(&[7; 100]).unwrap();
            world.timings().since(&before)
        });
        for operation in [Operation::AllGatherSegments, Operation::AllGatherBytes] {
            let of = |rank: usize| timings[rank].of(operation);
            assert!((0..world).all(|rank| of(rank).calls == 1), "{kind} {operation}");
            for rank in [0, 2] {
                assert!(of(rank).waited_ns >= LEAST, "{kind} {operation}: {:?}", of(rank));
            }
            for rank in 0..world {
                assert!(of(rank).waited_ns <= of(rank).ns, "{kind} {operation}: {:?}", of(rank));
            }
            // The rank that all waited for waited less than any of them.
            let least = of(0).waited_ns.min(of(2).waited_ns);
            assert!(of(1).waited_ns < least, "{kind} {operation}: {:?}", of(1));
        }
    }
}

#[test]
fn ranks_of_one_host_have_one_clock() {
    for (kind, world) in BACKENDS.into_iter().flat_map(|kind| [1, 2, 4].map(|w| (kind, w))) {
        let aligned = with_ranks(kind, world, PATIENCE_MS, |world| {
            let before = device::trace::now_ns();
            let aligned = clocks::align(&*control(&world), world.rank()).unwrap();
            (before, aligned, device::trace::now_ns())
        });
        let origin_ns = aligned[0].1.origin_ns;
        assert!((aligned[0].0..aligned[0].2).contains(&origin_ns), "{kind}");
        for (_, clock, _) in aligned {
            assert_eq!((clock.offset_ns, clock.uncertainty_ns), (0, 0), "{kind}");
            assert_eq!(clock.origin_ns, origin_ns, "{kind}");
        }
    }
}
