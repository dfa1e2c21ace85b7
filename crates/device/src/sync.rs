//! The locks and threads of the protocols that `loom/` explores, named in one place so that the
//! model checker's can stand there instead.

pub(crate) use std::sync::{Condvar, Mutex, MutexGuard, OnceLock};
pub(crate) use std::thread;
