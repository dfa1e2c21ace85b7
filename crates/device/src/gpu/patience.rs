//! How to ask a driver again and again: at first without a pause, then with longer ones.

use std::time::{Duration, Instant};

/// Waits that are this short are not slept through: a small copy is over by then.
const SPIN: Duration = Duration::from_micros(200);
const LONGEST: Duration = Duration::from_millis(1);

pub(super) struct Patience {
    start: Instant,
}

impl Patience {
    pub(super) fn new() -> Patience {
        Patience { start: Instant::now() }
    }

    /// Whether it has slept.
    pub(super) fn has_paused(&self) -> bool {
        self.start.elapsed() >= SPIN
    }

    /// An eighth of the time so far, so that a wait is at most that much too long.
    pub(super) fn pause(&mut self, until: Option<Instant>) {
        let waited = self.start.elapsed();
        if waited < SPIN {
            return std::thread::yield_now();
        }
        let pause = (waited / 8).min(LONGEST);
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        std::thread::sleep(left.map_or(pause, |left| left.min(pause)));
    }
}
