//! Whether a rank lives and gets on, by what its supervisor hears of it: pure functions of time.
//!
//! ```text
//! says nothing       for timeout_ms, or a grace period after a stop was asked for   it is gone
//! alive, no progress for step_timeout_ms, or much longer after a stop               it is stuck
//!                    for timeout_ms                                                 told, once
//! ```
//!
//! Time is the supervisor's own, awake: while it was stopped itself it could not hear anything.

use std::time::Duration;

use train::pulse::{Phase, Pulse};

/// How much later than its peers the supervisor gives a silent rank up: they know in which
/// operation it is missing.
const LATER: Duration = Duration::from_secs(3);

/// After a stop was asked for, a rank that says nothing gets this long.
const GRACE: Duration = Duration::from_secs(10);

/// After a stop was asked for, a rank that is alive and does nothing gets this long: one write to
/// a slow disk may take minutes.
const STUCK: Duration = Duration::from_secs(600);

/// How long ranks may be silent or without progress.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub timeout: Duration,
    /// None: for ever.
    pub step_timeout: Option<Duration>,
}

/// After this long a meeting of several hosts is told to be waited for.
pub const MEETING_IS_SLOW: Duration = Duration::from_secs(2);

/// What is to be done about a rank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judgement {
    Well,
    /// To be told.
    Slow(String),
    /// To be ended, for this reason.
    Lost(String),
}

/// What was heard of a rank, and when.
#[derive(Debug, Default)]
pub struct Life {
    heard: Duration,
    pulse: Option<Pulse>,
    /// The last progress.
    moved: Duration,
    /// Its standstill was told.
    is_told: bool,
}

impl Life {
    pub fn new(now: Duration) -> Life {
        Life { heard: now, moved: now, ..Life::default() }
    }

    /// It said something.
    pub fn hear(&mut self, now: Duration) {
        self.heard = now;
    }

    /// It said that it got on.
    pub fn advance(&mut self, now: Duration) {
        (self.heard, self.moved, self.is_told) = (now, now, false);
    }

    /// It showed its pulse.
    pub fn beat(&mut self, pulse: Pulse, now: Duration) {
        if self.pulse.replace(pulse) != Some(pulse) {
            self.advance(now);
        }
        self.heard = now;
    }

    /// What is said of a rank that is silent for longer than any of the living, if it is.
    pub fn is_silent(&self, now: Duration) -> Option<String> {
        let silent = now.saturating_sub(self.heard);
        (silent > LATER).then(|| self.silence(silent))
    }

    fn silence(&self, silent: Duration) -> String {
        format!(
            "no sign of life for {} ms{} (see what it is doing, or raise ranks.timeout_ms)",
            silent.as_millis(),
            self.phase()
        )
    }

    /// Whether it still waits for the other ranks to come, so that there is nothing to save.
    pub fn is_meeting(&self) -> bool {
        self.pulse.is_some_and(|pulse| pulse.phase == Phase::Meeting)
    }

    /// Whether it has met the other ranks.
    pub fn has_met(&self) -> bool {
        self.pulse.is_some_and(|pulse| !matches!(pulse.phase, Phase::Starting | Phase::Meeting))
    }

    /// `stop`: when the run was asked to stop, if it was.
    pub fn judge(&mut self, now: Duration, limits: &Limits, stop: Option<Duration>) -> Judgement {
        let since = |then: Duration| now.saturating_sub(then);
        let silent = since(self.heard);
        if silent > limits.timeout + LATER {
            return Judgement::Lost(self.silence(silent));
        }
        if stop.is_some_and(|stop| since(self.heard.max(stop)) > GRACE) {
            return Judgement::Lost(format!(
                "no sign of life for {} ms{}, and the run was asked to stop",
                silent.as_millis(),
                self.phase()
            ));
        }
        let still = since(self.moved);
        if limits.step_timeout.is_some_and(|limit| still > limit) {
            return Judgement::Lost(format!(
                "alive, but without progress for {} ms{} (see what it is doing, or raise \
                 ranks.step_timeout_ms)",
                still.as_millis(),
                self.phase()
            ));
        }
        if stop.is_some_and(|stop| since(self.moved.max(stop)) > STUCK) {
            return Judgement::Lost(format!(
                "alive, but without progress for {} s{}, and the run was asked to stop",
                still.as_secs(),
                self.phase()
            ));
        }
        // A silent one is not said to be alive.
        let is_alive = silent < LATER;
        if still > limits.timeout && is_alive && !std::mem::replace(&mut self.is_told, true) {
            return Judgement::Slow(format!(
                "alive, but without progress for {} s{}",
                still.as_secs(),
                self.phase()
            ));
        }
        Judgement::Well
    }

    /// A clause for a message.
    fn phase(&self) -> String {
        match self.pulse.map(|pulse| pulse.phase) {
            None | Some(Phase::Training) => String::new(),
            Some(phase) => format!(" while it was {}", phase.words()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn limits(step_timeout: Option<Duration>) -> Limits {
        Limits { timeout: s(100), step_timeout }
    }

    fn pulse(work: u64) -> Pulse {
        Pulse { phase: Phase::Saving, work }
    }

    fn lost(judgement: &Judgement) -> bool {
        matches!(judgement, Judgement::Lost(_))
    }

    #[test]
    fn silence_ends_a_rank_and_sooner_after_a_stop() {
        let mut life = Life::new(s(0));
        life.beat(pulse(1), s(10));
        assert_eq!(life.judge(s(113), &limits(None), None), Judgement::Well);
        life.beat(pulse(1), s(111));
        assert_eq!(
            life.judge(s(113), &limits(None), None),
            Judgement::Slow(
                "alive, but without progress for 103 s while it was saving a checkpoint".into()
            )
        );
        let text = "no sign of life for 104000 ms while it was saving a checkpoint (see what it is \
                    doing, or raise ranks.timeout_ms)";
        assert_eq!(life.judge(s(215), &limits(None), None), Judgement::Lost(text.into()));
        // A log line is a sign of life.
        life.hear(s(210));
        assert!(!lost(&life.judge(s(215), &limits(None), None)));
        // Asked to stop at 216: ten seconds from then on.
        assert!(!lost(&life.judge(s(226), &limits(None), Some(s(216)))));
        assert!(lost(&life.judge(s(227), &limits(None), Some(s(216)))));
    }

    #[test]
    fn a_step_may_take_long_unless_the_config_says_otherwise() {
        let mut life = Life::new(s(0));
        let mut judge = |work: u64, at: u64, limit: Option<Duration>, stop: Option<Duration>| {
            life.beat(pulse(work), s(at));
            life.judge(s(at), &limits(limit), stop)
        };
        assert_eq!(judge(1, 10, None, None), Judgement::Well);
        // Told once for each standstill.
        assert!(matches!(judge(1, 111, None, None), Judgement::Slow(_)));
        assert_eq!(judge(1, 5000, None, None), Judgement::Well);
        assert_eq!(judge(2, 5001, None, None), Judgement::Well);
        assert!(matches!(judge(2, 5102, None, None), Judgement::Slow(_)));
        // After a stop not for ever.
        assert!(!lost(&judge(2, 5800, None, Some(s(5200)))));
        assert!(lost(&judge(2, 5801, None, Some(s(5200)))));
        assert_eq!(judge(3, 5801, Some(s(30)), None), Judgement::Well);
        let text = "alive, but without progress for 31000 ms while it was saving a checkpoint \
                    (see what it is doing, or raise ranks.step_timeout_ms)";
        assert_eq!(judge(3, 5832, Some(s(30)), None), Judgement::Lost(text.into()));
    }
}
