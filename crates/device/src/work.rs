//! How much this process has done, in pieces of work: for whoever watches whether it gets on.

use std::sync::atomic::{AtomicU64, Ordering};

static DONE: AtomicU64 = AtomicU64::new(0);
static WAITED: AtomicU64 = AtomicU64::new(0);

/// A piece of work is done: a kernel, an operation of a file.
pub fn mark() {
    DONE.fetch_add(1, Ordering::Relaxed);
}

/// A look at a deadline while waiting under it. The process gets on, since that ends by itself;
/// work it is not.
pub fn mark_waiting() {
    WAITED.fetch_add(1, Ordering::Relaxed);
}

/// Pieces of work that this process has done, and looks at deadlines.
pub fn done() -> u64 {
    worked() + WAITED.load(Ordering::Relaxed)
}

/// Pieces of work alone: what is waited for by others who wait themselves is not among them.
pub fn worked() -> u64 {
    DONE.load(Ordering::Relaxed)
}
