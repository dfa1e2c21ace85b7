//! The model checker's locks, threads and atomics.

pub(crate) use loom::cell::UnsafeCell;
pub(crate) use loom::sync::atomic::AtomicU64;
pub(crate) use loom::sync::{Condvar, Mutex, MutexGuard};
pub(crate) use loom::thread;

pub(crate) use loom::sync::atomic::Ordering;

use loom::sync::atomic::AtomicBool;

/// A place that is set once, of which the checker has none. It sees when the place is looked at and
/// when it is set, and that who finds the value has seen what came before it.
pub(crate) struct OnceLock<T> {
    is_set: AtomicBool,
    value: std::sync::OnceLock<T>,
}

impl<T> Default for OnceLock<T> {
    fn default() -> OnceLock<T> {
        OnceLock { is_set: AtomicBool::new(false), value: std::sync::OnceLock::new() }
    }
}

impl<T> From<T> for OnceLock<T> {
    fn from(value: T) -> OnceLock<T> {
        OnceLock { is_set: AtomicBool::new(true), value: value.into() }
    }
}

impl<T> OnceLock<T> {
    pub(crate) fn get(&self) -> Option<&T> {
        self.is_set.load(Ordering::Acquire).then(|| self.value.get())?
    }

    pub(crate) fn set(&self, value: T) -> Result<(), T> {
        self.value.set(value)?;
        self.is_set.store(true, Ordering::Release);
        Ok(())
    }
}
