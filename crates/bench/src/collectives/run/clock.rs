//! A clock that all processes of a host read the same.

use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds since some moment before the host's processes began.
pub fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
