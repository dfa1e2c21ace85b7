//! Operations allocate nothing after warm-up: over shared memory no thread does, over TCP none that
//! runs them (the watchdog's runtime may).

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

use comm::{EvenPlan, Op, OrderedReduce, RedOp, Window};
use common::{BACKENDS, PATIENCE_MS, control, with_ranks};
use device::{DType, Device};
use layout::{Node, Tree};

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// Of this thread.
    static OWN: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: passes every request on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        OWN.set(OWN.get() + 1);
        // SAFETY: the caller's promises are those of the system's allocator.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(start, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations(kind: &str) -> u64 {
    match kind {
        "shm" => ALLOCATIONS.load(Ordering::Relaxed),
        _ => OWN.get(),
    }
}

/// One test, since others would allocate beside it.
#[test]
fn nothing_is_allocated_after_warm_up() {
    BACKENDS.iter().for_each(|kind| check(kind, 2));
    check("2 a host", 4);
}

fn check(kind: &str, world: usize) {
    let tree = Tree::new(&[61]).unwrap();
    let partials: Vec<Vec<(Node, usize)>> = (0..world)
        .map(|rank| {
            let nodes = tree.maximal_subtrees(&tree.leaf_range(rank, world).unwrap());
            nodes.into_iter().enumerate().map(|(buffer, node)| (node, buffer)).collect()
        })
        .collect();
    let nodes: Vec<Node> = partials.iter().flatten().map(|(node, _)| node.clone()).collect();
    let long = tree.combine(&nodes);
    let plan = EvenPlan::new(&Tree::for_leaves(world), 0..50_000, DType::F32);
    let counts = with_ranks(kind, world, PATIENCE_MS, |world| {
        let device = Device::cpu(1).unwrap();
        let (group, control) = (world.group(&device).unwrap(), control(&world));
        let stream = device.stream();
        let window = || group.window(4 * 50_000).unwrap();
        let buffers: Vec<Window> = (0..31).map(|_| window()).collect();
        let out = device.zeros(&[50_000], DType::F32).unwrap();
        let long = OrderedReduce {
            buffers: buffers.as_slice().into(),
            dtype: DType::F32,
            redop: RedOp::Sum,
            partials: partials.as_slice().into(),
            program: long.clone().into(),
            range: 0..50_000,
            segments: plan.segments().clone(),
            out,
            places: None,
        };
        let long = group.prepare(Op::ReduceScatterOrdered(long)).unwrap();
        let (window, plan) = (buffers[0].clone(), plan.clone());
        let sum = group.prepare(Op::AllReduce { window, plan }).unwrap();
        let mut all = Vec::new();
        let mut round = || {
            if kind != "shm" {
                // On this thread.
                [&sum, &long].iter().for_each(|op| group.call(&stream, op).unwrap());
            } else {
                group.submit(&stream, &sum).unwrap();
                group.submit(&stream, &long).unwrap().wait().unwrap();
            }
            control.all_gather_bytes_into(&[7; 100_000], &mut all).unwrap();
            control.barrier().unwrap();
        };
        (0..3).for_each(|_| round());
        // Both ranks have warmed up, and neither ends before both have counted.
        control.barrier().unwrap();
        let before = allocations(kind);
        (0..20).for_each(|_| round());
        control.barrier().unwrap();
        let after = allocations(kind);
        control.barrier().unwrap();
        after - before
    });
    assert_eq!(counts, vec![0; world], "{kind}");
}
