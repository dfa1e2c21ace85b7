//! After warm-up a step allocates nothing: 20 steps of one rank are watched by the allocator.
//!
//! The one exception is the packing buffers of the `gemm` crate, which it makes anew for every
//! product. They are told apart by their backtrace and must be all that is left.

mod rank;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use train::Wants;

struct Watching;

#[derive(Clone, Copy, PartialEq)]
enum Watch {
    Off,
    On,
    /// While the watcher itself allocates.
    Paused,
}

thread_local! {
    static WATCH: Cell<Watch> = const { Cell::new(Watch::Off) };
    static GEMM: Cell<usize> = const { Cell::new(0) };
    /// Where else it was allocated, and how often.
    static OURS: RefCell<BTreeMap<String, usize>> = const { RefCell::new(BTreeMap::new()) };
}

fn note() {
    if WATCH.try_with(Cell::get) != Ok(Watch::On) {
        return;
    }
    WATCH.set(Watch::Paused);
    let place = std::backtrace::Backtrace::force_capture().to_string();
    if place.contains("gemm_common::") || place.contains("gemm_f32::") {
        GEMM.set(GEMM.get() + 1);
    } else {
        OURS.with_borrow_mut(|ours| *ours.entry(place).or_default() += 1);
    }
    WATCH.set(Watch::On);
}

// SAFETY: every call goes to the system allocator unchanged.
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note();
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(start, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watching = Watching;

#[test]
fn a_step_allocates_nothing_after_warm_up() {
    let dir = tempfile::tempdir().unwrap();
    let config = rank::config(dir.path(), 4);
    rank::with_group("shm", 1, dir.path(), |comm| {
        let mut trainer = rank::trainer(&config, &dir.path().join("cache"), comm);
        let mut step = || {
            let step = trainer.take_step(Wants::default()).unwrap().step;
            assert!(!step.skipped && step.expert_load.is_some());
        };
        (0..5).for_each(|_| step());
        // The watcher sees what is made before its time, or it could not see anything.
        WATCH.set(Watch::On);
        drop(std::hint::black_box(Box::new(7)));
        WATCH.set(Watch::Off);
        let seen: usize = OURS.with_borrow_mut(std::mem::take).values().sum();
        assert_eq!(seen, 1);
        WATCH.set(Watch::On);
        (0..20).for_each(|_| step());
        WATCH.set(Watch::Off);
        let ours = OURS.with_borrow_mut(std::mem::take);
        let list: Vec<String> =
            ours.iter().map(|(place, count)| format!("{count} times\n{place}")).collect();
        assert!(list.is_empty(), "{}", list.join("\n\n"));
        println!("{} packing buffers in 20 steps", GEMM.get());
    });
}
