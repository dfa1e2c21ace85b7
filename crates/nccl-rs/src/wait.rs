//! Deadlines, and how to ask again until one: at first without a pause, then with longer ones.

use std::time::{Duration, Instant};

/// How long a wait may last, counted from its beginning.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline {
    start: Instant,
    timeout: Duration,
}

/// Longest wait of a drop, which has no better bound.
pub(crate) const DROP_PATIENCE: Duration = Duration::from_secs(10);

/// Waits that are this short are not slept through.
const SPIN: Duration = Duration::from_micros(200);
const LONGEST: Duration = Duration::from_millis(1);

impl Deadline {
    pub(crate) fn after(timeout: Duration) -> Deadline {
        Deadline { start: Instant::now(), timeout }
    }

    pub(crate) fn waited(&self) -> Duration {
        self.start.elapsed()
    }

    pub(crate) fn left(&self) -> Duration {
        self.timeout.saturating_sub(self.waited())
    }

    pub(crate) fn is_over(&self) -> bool {
        self.left().is_zero()
    }

    /// Pauses for an eighth of the time so far, so that a wait is at most that much too long.
    pub(crate) fn pause(&self) {
        let waited = self.waited();
        match waited < SPIN {
            true => std::thread::yield_now(),
            false => std::thread::sleep((waited / 8).min(LONGEST).min(self.left())),
        }
    }
}

/// Runs what may block without end on a thread of its own and waits until the deadline for it.
///
/// `None`: it is not over, and goes on without anybody who waits.
///
/// # Errors
/// No thread could be started, and it was not run.
pub(crate) fn run_bounded<T: Send + 'static>(
    deadline: Deadline,
    work: impl FnOnce() -> T + Send + 'static,
) -> std::io::Result<Option<T>> {
    let (tell, told) = std::sync::mpsc::sync_channel(1);
    let thread = std::thread::Builder::new().name("nccl-teardown".to_owned());
    // Nobody may listen any more.
    thread.spawn(move || drop(tell.send(work())))?;
    Ok(told.recv_timeout(deadline.left()).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endless_work_is_left_alone_at_the_deadline() {
        let short = Deadline::after(Duration::from_millis(20));
        let endless = || std::thread::sleep(Duration::from_secs(3));
        assert_eq!(run_bounded(short, endless).unwrap(), None);
        assert!(short.is_over());
        assert_eq!(run_bounded(Deadline::after(Duration::MAX), || 7).unwrap(), Some(7));
    }
}
