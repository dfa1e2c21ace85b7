//! Reading a sample allocates nothing: the trainer does it in every step. A program of its own,
//! since it replaces the allocator.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};

use common::*;
use data::{Dataset, SampleMut, Split};

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call goes to the system's allocator unchanged; counting touches no memory of its
// own.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises about `layout` are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises about `pointer` and `layout` are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn reading_allocates_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let files = write_texts(dir.path(), &[words(50_000, 1), words(300, 2), words(9000, 3)]);
    let prepared = prepare_files(dir.path(), &files, "byte");
    let data = Dataset::open(&prepared, 32, 1, 0.05).unwrap();
    let (mut inputs, mut targets, mut doc_start) = ([0; 32], [0; 32], [0; 32]);
    let mut out =
        SampleMut { inputs: &mut inputs, targets: &mut targets, doc_start: &mut doc_start };
    data.read(Split::Train, 0, &mut out).unwrap();
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    let mut tokens = 0;
    for index in 0..4000 {
        tokens += data.read(Split::Train, index, &mut out).unwrap().target_tokens;
    }
    for index in 0..data.validation_samples() {
        tokens += data.read(Split::Validation, index, &mut out).unwrap().target_tokens;
    }
    assert!(tokens > 100_000);
    assert_eq!(ALLOCATIONS.load(Ordering::Relaxed) - before, 0);
}
