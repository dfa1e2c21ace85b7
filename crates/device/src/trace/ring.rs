//! A bounded queue from one thread to another, without locks: what comes when it is full is lost,
//! and counted.
//!
//! ```text
//! cells   0 … capacity−1, each used again after capacity values
//! taken ≤ written ≤ taken + capacity        both only grow; cell i % capacity holds value i
//! ```
//!
//! Invariant: cells from `taken` to `written` are the reader's, all others the writer's. The writer
//! alone moves `written`, by `Release` after it has filled the cell; the reader alone moves
//! `taken`, by `Release` after it has read. Each loads the other's by `Acquire`.

use std::sync::Arc;

use crate::sync::{AtomicU64, Ordering, UnsafeCell};

struct Ring<T> {
    cells: Box<[UnsafeCell<T>]>,
    written: AtomicU64,
    taken: AtomicU64,
    lost: AtomicU64,
    /// 1 when the writer is gone.
    closed: AtomicU64,
}

// SAFETY: by the invariant a cell is used by one side at a time, and the two sides are one thread
// each, because `push` and `take` want their half mutably and neither half can be cloned. Values
// are copied from one thread to the other, which `Send` allows.
unsafe impl<T: Send> Sync for Ring<T> {}

/// The end that fills.
pub(crate) struct Writer<T> {
    ring: Arc<Ring<T>>,
}

/// The end that empties.
pub(crate) struct Reader<T> {
    ring: Arc<Ring<T>>,
    /// Lost values that were told.
    told: u64,
}

/// A queue of at most `capacity` values; all of its memory is allocated now.
pub(crate) fn ring<T: Copy + Default>(capacity: usize) -> (Writer<T>, Reader<T>) {
    let cells = (0..capacity.max(1)).map(|_| UnsafeCell::new(T::default())).collect();
    let [written, taken, lost, closed] = [0; 4].map(AtomicU64::new);
    let ring = Arc::new(Ring { cells, written, taken, lost, closed });
    (Writer { ring: Arc::clone(&ring) }, Reader { ring, told: 0 })
}

impl<T> Ring<T> {
    fn cell(&self, number: u64) -> &UnsafeCell<T> {
        &self.cells[(number % self.cells.len() as u64) as usize]
    }
}

impl<T: Copy> Writer<T> {
    /// Queues `value`; false if the queue is full, and it is lost.
    pub(crate) fn push(&mut self, value: T) -> bool {
        let ring = &*self.ring;
        let written = ring.written.load(Ordering::Relaxed);
        if written - ring.taken.load(Ordering::Acquire) >= ring.cells.len() as u64 {
            ring.lost.fetch_add(1, Ordering::Relaxed);
            return false;
        }
        // SAFETY: fewer than all cells are the reader's, so this one is not; nobody else writes.
        ring.cell(written).with_mut(|cell| unsafe { cell.write(value) });
        ring.written.store(written + 1, Ordering::Release);
        true
    }
}

impl<T: Copy> Reader<T> {
    /// The oldest value.
    pub(crate) fn take(&mut self) -> Option<T> {
        let ring = &*self.ring;
        let taken = ring.taken.load(Ordering::Relaxed);
        if taken == ring.written.load(Ordering::Acquire) {
            return None;
        }
        // SAFETY: the cell is the reader's until `taken` moves, and was filled before `written`
        // moved.
        let value = ring.cell(taken).with(|cell| unsafe { cell.read() });
        ring.taken.store(taken + 1, Ordering::Release);
        Some(value)
    }

    /// Values lost since the last call.
    pub(crate) fn take_lost(&mut self) -> u64 {
        let lost = self.ring.lost.load(Ordering::Relaxed);
        lost - std::mem::replace(&mut self.told, lost)
    }

    /// Whether nothing will come any more, but for what is queued now.
    pub(crate) fn is_closed(&self) -> bool {
        self.ring.closed.load(Ordering::Acquire) == 1
    }
}

impl<T> Drop for Writer<T> {
    fn drop(&mut self) {
        self.ring.closed.store(1, Ordering::Release);
    }
}
