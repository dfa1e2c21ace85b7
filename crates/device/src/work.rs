//! How much this process has done, in pieces of work: for whoever watches whether it gets on.

use std::sync::atomic::{AtomicU64, Ordering};

static DONE: AtomicU64 = AtomicU64::new(0);

/// A piece of work is done: a kernel, an operation of a file. Waiting under a deadline of its own
/// counts too, since it ends by itself.
pub fn mark() {
    DONE.fetch_add(1, Ordering::Relaxed);
}

/// Pieces of work that this process has done.
pub fn done() -> u64 {
    DONE.load(Ordering::Relaxed)
}
