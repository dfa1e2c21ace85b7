//! Deadlines that run only while this process does.
//!
//! A process that was stopped (Ctrl-Z, SIGSTOP, a frozen container or machine) did not wait
//! meanwhile, and those that it waits for may have stood still with it. So waiting is counted in
//! looks at the clock, and the time between two looks counts for a bounded amount only.

use std::time::{Duration, Instant};

/// How often whoever waits looks at the clock at least.
pub(crate) const LOOK: Duration = Duration::from_millis(20);

/// The most that the time between two looks counts for: more than a busy machine keeps a thread
/// waiting for its turn, and less than any timeout that people choose.
const LONGEST: Duration = Duration::from_millis(500);

/// Time while this process runs; it stands still while the process does.
#[derive(Debug, Clone, Copy)]
pub struct AwakeClock {
    seen: Instant,
    awake: Duration,
}

impl Default for AwakeClock {
    fn default() -> AwakeClock {
        AwakeClock { seen: Instant::now(), awake: Duration::ZERO }
    }
}

impl AwakeClock {
    /// Time awake since the clock was made. To be called more often than twice a second.
    pub fn look(&mut self) -> Duration {
        self.look_at(Instant::now())
    }

    fn look_at(&mut self, now: Instant) -> Duration {
        self.awake += now.saturating_duration_since(self.seen).min(LONGEST);
        self.seen = now;
        self.awake
    }
}

/// The rest of a timeout, which begins with the first look at it: operations that need not wait
/// never read a clock.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    limit: Duration,
    clock: Option<AwakeClock>,
}

impl Patience {
    pub(crate) fn new(limit: Duration) -> Patience {
        Patience { limit, clock: None }
    }

    pub(crate) fn of_ms(timeout_ms: u64) -> Patience {
        Patience::new(Duration::from_millis(timeout_ms))
    }

    /// From now on at the latest.
    pub(crate) fn begin(&mut self) {
        self.clock.get_or_insert_default();
    }

    /// The time that is left; zero when the deadline has passed. Whoever waits like this gets on.
    pub(crate) fn left(&mut self) -> Duration {
        self.limit.saturating_sub(self.used())
    }

    /// Time awake since it began.
    pub(crate) fn used(&mut self) -> Duration {
        device::work::mark_waiting();
        self.clock.get_or_insert_default().look()
    }

    /// The whole timeout again.
    pub(crate) fn afresh(self) -> Patience {
        Patience::new(self.limit)
    }

    /// Returns when the deadline has passed.
    pub(crate) async fn passed(mut self) {
        loop {
            let left = self.left();
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left.min(LOOK)).await;
        }
    }

    /// The output of `work`, if it ends before the deadline.
    pub(crate) async fn within<T>(self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            done = work => Some(done),
            () = self.passed() => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_nobody_looked_at_for_long_counts_little_of_it() {
        let mut clock = AwakeClock::default();
        let start = clock.seen;
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(clock.look_at(at(20)).as_millis(), 20);
        assert_eq!(clock.look_at(at(40)).as_millis(), 40);
        // Stopped for an hour.
        assert_eq!(clock.look_at(at(3_600_040)).as_millis(), 540);
        assert_eq!(clock.look_at(at(3_600_060)).as_millis(), 560);
        // Looks of two threads may come out of order.
        assert_eq!(clock.look_at(at(3_600_050)).as_millis(), 560);
    }

    #[test]
    fn the_deadline_passes_for_who_is_awake() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let begun = Instant::now();
        let never = runtime.block_on(Patience::of_ms(60).within(std::future::pending::<()>()));
        assert_eq!(never, None);
        assert!(begun.elapsed() >= Duration::from_millis(60), "{:?}", begun.elapsed());
        let at_once = runtime.block_on(Patience::of_ms(0).within(std::future::ready(7)));
        assert_eq!(at_once, Some(7));
    }
}
