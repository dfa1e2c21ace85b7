//! Whether anything comes from peers, whatever this rank does meanwhile: a host that is frozen
//! keeps its connections, and whoever waits for nothing from it would go on without it.
//!
//! Time is that of [`AwakeClock`]: while this process was stopped it could not hear anything.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::patience::AwakeClock;

/// When each peer was heard last.
pub(super) struct Silence {
    clock: Mutex<AwakeClock>,
    /// In milliseconds, by rank; 0 where no sign of life is due.
    heard_ms: Vec<AtomicU64>,
}

impl Silence {
    pub(super) fn new(world: usize) -> Silence {
        let heard_ms = (0..world).map(|_| AtomicU64::new(0)).collect();
        Silence { clock: Mutex::default(), heard_ms }
    }

    /// A sign of life has come; after the last one none is due.
    pub(super) fn hear(&self, rank: usize, is_last: bool) {
        let now_ms = if is_last { 0 } else { self.now_ms() };
        self.heard_ms[rank].store(now_ms, Ordering::Relaxed);
    }

    /// Ranks of which nothing has come for so long, though it is due.
    pub(super) fn of(&self, for_at_least: Duration) -> Vec<usize> {
        let now_ms = self.now_ms();
        let is_silent = |rank: &usize| match self.heard_ms[*rank].load(Ordering::Relaxed) {
            0 => false,
            heard_ms => Duration::from_millis(now_ms.saturating_sub(heard_ms)) >= for_at_least,
        };
        (0..self.heard_ms.len()).filter(is_silent).collect()
    }

    /// Never zero.
    fn now_ms(&self) -> u64 {
        let mut clock = self.clock.lock().unwrap_or_else(PoisonError::into_inner);
        u64::try_from(clock.look().as_millis()).map_or(u64::MAX, |ms| ms.saturating_add(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_heard_once_and_has_not_left_is_silent_after_a_while() {
        let silence = Silence::new(4);
        [1, 2, 3].into_iter().for_each(|rank| silence.hear(rank, false));
        silence.hear(2, true);
        let long = Duration::from_millis(60);
        assert_eq!(silence.of(long), [0; 0]);
        assert_eq!(silence.of(Duration::ZERO), [1, 3]);
        // Looked at often, as a watchdog does, or little of the time counts.
        let since = std::time::Instant::now();
        while silence.of(long).is_empty() {
            assert!(since.elapsed() < Duration::from_secs(60), "nobody ever is");
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(since.elapsed() >= long / 2);
        silence.hear(1, false);
        assert_eq!(silence.of(long), [3]);
    }
}
