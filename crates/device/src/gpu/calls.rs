//! Calls on the host that a driver was asked for and has not begun.
//!
//! They are kept here by number, and the driver is given the number alone: one that has failed, or
//! hangs, never calls, and what its calls hold must be let go of all the same.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::abort::Abort;
use crate::driver::HostCall;

struct Calls {
    next: usize,
    waiting: BTreeMap<usize, HostCall>,
}

static CALLS: Mutex<Calls> = Mutex::new(Calls { next: 1, waiting: BTreeMap::new() });

fn calls() -> MutexGuard<'static, Calls> {
    // A change is one assignment away from the next whole state.
    CALLS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The data for the driver beside [`run`].
pub(super) fn keep(call: HostCall) -> *mut c_void {
    let mut calls = calls();
    let number = calls.next;
    calls.next += 1;
    calls.waiting.insert(number, call);
    std::ptr::without_provenance_mut(number)
}

/// The call, unless it was taken before.
pub(super) fn take(data: *mut c_void) -> Option<HostCall> {
    calls().waiting.remove(&data.addr())
}

/// All calls of the device that `abort` is of.
pub(super) fn take_all(abort: &Arc<Abort>) -> Vec<HostCall> {
    let is_of = |_: &usize, call: &mut HostCall| Arc::ptr_eq(&call.abort, abort);
    calls().waiting.extract_if(.., is_of).map(|(_, call)| call).collect()
}

/// The function that a driver calls in a stream's turn. Panics end in the call itself.
pub(super) extern "C" fn run(data: *mut c_void) {
    if let Some(call) = take(data) {
        call.run();
    }
}
