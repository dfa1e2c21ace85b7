//! Whether a thread is within a call that a driver's stream makes on the host, where drivers permit
//! no call of theirs.

use std::cell::Cell;

thread_local! {
    static IN_CALL: Cell<bool> = const { Cell::new(false) };
}

/// Runs what a driver's stream calls on the host.
pub(crate) fn within_call<R>(call: impl FnOnce() -> R) -> R {
    let before = IN_CALL.replace(true);
    let result = call();
    IN_CALL.set(before);
    result
}

pub(crate) fn is_within_call() -> bool {
    IN_CALL.get()
}
