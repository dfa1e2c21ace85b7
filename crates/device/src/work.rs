//! The work of this process, for whoever watches whether it gets on: pieces of work that are done,
//! and calls to the outside that last.
//!
//! One call, such as an fsync, may take longer than ranks wait for each other. While it lasts the
//! process is at work, for so long as [`set_call_limit`] says.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::trace::{self, Detail};

static DONE: AtomicU64 = AtomicU64::new(0);
static WAITED: AtomicU64 = AtomicU64::new(0);

/// In milliseconds; see [`set_call_limit`].
static CALL_LIMIT: AtomicU64 = AtomicU64::new(600_000);
static CALLS_BEGUN: AtomicU64 = AtomicU64::new(0);
/// How many of [`CALLS`] there are: without any nobody takes the lock.
static LASTING: AtomicUsize = AtomicUsize::new(0);
/// In the order in which they began.
static CALLS: Mutex<Vec<Lasting>> = Mutex::new(Vec::new());

/// The most that the time between two looks counts for, since the process may have been stopped.
const LONGEST_LOOK: Duration = Duration::from_millis(500);

/// A piece of work is done: a kernel or a step of a long one, an operation of a file.
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

/// Pieces of work alone: what is waited for by others who wait themselves is not among them. To
/// look while a call lasts makes one.
pub fn worked() -> u64 {
    if LASTING.load(Ordering::Relaxed) > 0 && look_at_calls() {
        mark();
    }
    DONE.load(Ordering::Relaxed)
}

/// How long a call counts as work. One that never returns ends like any standstill.
pub fn set_call_limit(limit: Duration) {
    let limit_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
    CALL_LIMIT.store(limit_ms, Ordering::Relaxed);
}

/// A call that has not returned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SystemCall {
    /// Of this process's calls; no other has it.
    pub number: u64,
    /// `fsync`.
    pub action: &'static str,
    /// The file that it is about, where that is one.
    pub path: Option<PathBuf>,
}

struct Lasting {
    call: SystemCall,
    seen: Instant,
    /// Time awake since it began.
    awake: Duration,
}

/// The call that has lasted longest.
pub fn oldest_call() -> Option<SystemCall> {
    lock().first().map(|lasting| lasting.call.clone())
}

/// Makes a call, which counts as work while it lasts.
pub fn calling<T>(action: &'static str, path: Option<&Path>, call: impl FnOnce() -> T) -> T {
    let _lasts = Lasts::begin(action, path);
    let begin_ns = trace::begin();
    let done = call();
    if let Some(begin_ns) = begin_ns {
        trace::end(action, begin_ns, Detail::Call);
    }
    done
}

/// Ends the call in any case.
struct Lasts {
    number: u64,
}

impl Lasts {
    fn begin(action: &'static str, path: Option<&Path>) -> Lasts {
        let number = CALLS_BEGUN.fetch_add(1, Ordering::Relaxed);
        let call = SystemCall { number, action, path: path.map(Path::to_path_buf) };
        lock().push(Lasting { call, seen: Instant::now(), awake: Duration::ZERO });
        LASTING.fetch_add(1, Ordering::Relaxed);
        Lasts { number }
    }
}

impl Drop for Lasts {
    fn drop(&mut self) {
        lock().retain(|lasting| lasting.call.number != self.number);
        LASTING.fetch_sub(1, Ordering::Relaxed);
        mark();
    }
}

fn lock() -> MutexGuard<'static, Vec<Lasting>> {
    CALLS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether any call has not lasted beyond the limit.
fn look_at_calls() -> bool {
    let limit = Duration::from_millis(CALL_LIMIT.load(Ordering::Relaxed));
    let now = Instant::now();
    let mut any = false;
    for lasting in lock().iter_mut() {
        any |= lasting.look(now) <= limit;
    }
    any
}

impl Lasting {
    /// Time awake until `now`.
    fn look(&mut self, now: Instant) -> Duration {
        self.awake += now.saturating_duration_since(self.seen).min(LONGEST_LOOK);
        self.seen = now;
        self.awake
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_work_while_it_lasts() {
        calling("fsync", Some(Path::new("/checkpoints/COMMIT")), || {
            let calls = lock().iter().map(|lasting| lasting.call.clone()).collect::<Vec<_>>();
            let found = calls.iter().any(|call| {
                call.action == "fsync"
                    && call.path.as_deref() == Some("/checkpoints/COMMIT".as_ref())
            });
            assert!(found, "{calls:?}");
            let before = worked();
            assert!(worked() > before);
        });
        assert!(lock().iter().all(|lasting| lasting.call.action != "fsync"));
    }

    #[test]
    fn a_call_is_over_its_limit_by_time_awake_alone() {
        let start = Instant::now();
        let call = SystemCall { number: 0, action: "write", path: None };
        let mut lasting = Lasting { call, seen: start, awake: Duration::ZERO };
        let mut at = |ms| lasting.look(start + Duration::from_millis(ms)).as_millis();
        assert_eq!(at(100), 100);
        // Stopped for an hour.
        assert_eq!(at(3_600_100), 600);
        assert_eq!(at(3_600_200), 700);
    }
}
