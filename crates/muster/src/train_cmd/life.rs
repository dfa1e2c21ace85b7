//! Whether a rank lives and gets on, by what its supervisor hears of it: pure functions of time.
//!
//! ```text
//! says nothing       for timeout_ms, or a grace period after a stop was asked for   it is gone
//! alive, no progress for step_timeout_ms, or much longer after a stop               it is stuck
//!                    for timeout_ms                                                 told, once
//! in one disk call   for a while                                                    told, once
//!                    for longer than such calls may last                            it is stuck
//! ```
//!
//! Time is the supervisor's own, awake: while it was stopped itself it could not hear anything.

use std::time::Duration;

use train::pulse::{Phase, Pulse, SystemCall};

/// How much later than its peers the supervisor gives a silent rank up: they know in which
/// operation it is missing.
const LATER: Duration = Duration::from_secs(3);

/// And how much later where all ranks of its host are silent, of which none can say it.
const ALL_SILENT: Duration = Duration::from_secs(2);

/// After a stop was asked for, a rank that says nothing gets this long.
const GRACE: Duration = Duration::from_secs(10);

/// After a stop was asked for, a rank that is alive and does nothing gets this long: one write to
/// a slow disk may take minutes.
const STUCK: Duration = Duration::from_secs(600);

/// After this long a call to a disk is told.
const DISK_IS_SLOW: Duration = Duration::from_secs(10);

/// Work that goes on beside a call that hangs shows within this long.
const BESIDE: Duration = Duration::from_secs(2);

/// The kind of work of the ranks, as far as messages depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    Training,
    /// Saves nothing, and has one limit.
    Benchmark,
}

impl Work {
    /// The key that sets the limit of silence.
    pub fn timeout_key(self) -> &'static str {
        match self {
            Work::Training => comm::TIMEOUT_KEY,
            Work::Benchmark => "--timeout-ms",
        }
    }

    /// The key that sets the limit of standing still.
    fn step_key(self) -> &'static str {
        match self {
            Work::Training => "ranks.step_timeout_ms",
            Work::Benchmark => "--timeout-ms",
        }
    }
}

/// How long ranks may be silent or without progress.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub work: Work,
    pub timeout: Duration,
    /// None: for ever.
    pub step_timeout: Option<Duration>,
    /// How long one call to a disk may last.
    pub call: Duration,
}

impl Limits {
    /// Of a benchmark, where both limits are one. Ranks that wait for one that stands still name
    /// it, and know in which operation: this comes later.
    pub fn of_benchmark(timeout: Duration) -> Limits {
        let step_timeout = Some(timeout + LATER);
        Limits { work: Work::Benchmark, timeout, step_timeout, call: timeout }
    }
}

/// After this long a meeting of several hosts is told to be waited for.
pub const MEETING_IS_SLOW: Duration = Duration::from_secs(2);

/// The verdict on a rank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judgement {
    Well,
    /// To be told.
    Slow(String),
    /// To be ended, for this reason.
    Lost(String),
}

/// The last signs of life of a rank, and their times.
#[derive(Debug, Default)]
pub struct Life {
    heard: Duration,
    pulse: Option<Pulse>,
    /// The last progress.
    moved: Duration,
    /// Its standstill was told.
    is_told: bool,
    waits: Option<Waits>,
}

/// A call to a disk that a rank waits for.
#[derive(Debug)]
struct Waits {
    call: SystemCall,
    since: Duration,
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
        let Pulse { phase, work, ref call, .. } = pulse;
        let same = |waits: &Waits| call.as_ref() == Some(&waits.call);
        let waits = self.waits.take().filter(same);
        let begun = |call: &SystemCall| Waits { call: call.clone(), since: now, is_told: false };
        let waits = waits.or_else(|| call.as_ref().map(begun));
        if self.pulse.as_ref().is_none_or(|last| (last.phase, last.work) != (phase, work)) {
            self.advance(now);
        }
        (self.heard, self.waits, self.pulse) = (now, waits, Some(pulse));
    }

    /// Whether it is to be given up where the others of its host say nothing either.
    pub fn is_lost_if_all_are(&self, now: Duration, limits: &Limits) -> bool {
        self.silent_for(now) > limits.timeout + ALL_SILENT
    }

    /// The message about a rank of which nothing comes.
    pub fn silence_now(&self, now: Duration, work: Work) -> String {
        self.silence(self.silent_for(now), work.timeout_key())
    }

    /// The message about a rank that is silent for longer than any of the living, if it is.
    pub fn is_silent(&self, now: Duration, work: Work) -> Option<String> {
        (self.silent_for(now) > LATER).then(|| self.silence_now(now, work))
    }

    /// How long it has said nothing.
    pub fn silent_for(&self, now: Duration) -> Duration {
        now.saturating_sub(self.heard)
    }

    fn silence(&self, silent: Duration, key: &str) -> String {
        format!(
            "no sign of life for {} ms{} (see what it is doing, or raise {key})",
            silent.as_millis(),
            self.meanwhile(),
        )
    }

    /// Whether it still waits for the other ranks to come, so that there is nothing to save.
    pub fn is_meeting(&self) -> bool {
        self.phase() == Some(Phase::Meeting)
    }

    /// Whether it has met the other ranks.
    pub fn has_met(&self) -> bool {
        self.phase().is_some_and(|phase| !matches!(phase, Phase::Starting | Phase::Meeting))
    }

    /// `stop`: when the run was asked to stop, if it was.
    pub fn judge(&mut self, now: Duration, limits: &Limits, stop: Option<Duration>) -> Judgement {
        let since = |then: Duration| now.saturating_sub(then);
        let silent = since(self.heard);
        if silent > limits.timeout + LATER {
            return Judgement::Lost(self.silence(silent, limits.work.timeout_key()));
        }
        if stop.is_some_and(|stop| since(self.heard.max(stop)) > GRACE) {
            return Judgement::Lost(format!(
                "no sign of life for {} ms{}, and the run was asked to stop",
                silent.as_millis(),
                self.meanwhile()
            ));
        }
        let still = since(self.moved);
        // One that says nothing may be frozen, and waits for no disk then.
        let is_heard = silent < BESIDE.min(limits.timeout / 2);
        if is_heard && let Some(judgement) = self.judge_call(now, limits, still) {
            return judgement;
        }
        if limits.step_timeout.is_some_and(|limit| still > limit) {
            // A silent one is not said to be alive.
            if silent > still / 2 {
                return Judgement::Lost(self.silence(silent, limits.work.step_key()));
            }
            return Judgement::Lost(format!(
                "alive, but without progress for {} ms{} (see what it is doing, or raise {})",
                still.as_millis(),
                self.meanwhile(),
                limits.work.step_key()
            ));
        }
        if stop.is_some_and(|stop| since(self.moved.max(stop)) > STUCK) {
            return Judgement::Lost(format!(
                "alive, but without progress for {} s{}, and the run was asked to stop",
                still.as_secs(),
                self.meanwhile()
            ));
        }
        // As above; and in a benchmark nothing may take long.
        let is_alive = silent < LATER && limits.work == Work::Training;
        if still > limits.timeout && is_alive && !std::mem::replace(&mut self.is_told, true) {
            return Judgement::Slow(format!(
                "is alive, but without progress for {} s{}; a step may take long, so it goes on; \
                 Ctrl-C twice stops at once, and {} sets a limit",
                still.as_secs(),
                self.meanwhile(),
                limits.work.step_key()
            ));
        }
        Judgement::Well
    }

    /// The verdict on a call to a disk, if there is one. One beside which work goes on may hang.
    fn judge_call(&mut self, now: Duration, limits: &Limits, still: Duration) -> Option<Judgement> {
        let meanwhile = self.meanwhile();
        let Waits { call, since, is_told } = self.waits.as_mut()?;
        let lasted = now.saturating_sub(*since);
        if lasted > limits.call && still > BESIDE.min(limits.timeout / 2) {
            let key = match limits.step_timeout {
                Some(_) => limits.work.step_key(),
                None => limits.work.timeout_key(),
            };
            return Some(Judgement::Lost(format!(
                "a call to the disk has lasted {} s: {}{meanwhile} (see whether that disk \
                 answers, or raise {key})",
                lasted.as_secs(),
                call.what
            )));
        }
        let is_slow = lasted > DISK_IS_SLOW.min(limits.timeout);
        (is_slow && !std::mem::replace(is_told, true)).then(|| {
            Judgement::Slow(format!(
                "waits for the disk{meanwhile}: {} has lasted {} s, and may last {} s",
                call.what,
                lasted.as_secs(),
                limits.call.as_secs()
            ))
        })
    }

    fn phase(&self) -> Option<Phase> {
        self.pulse.as_ref().map(|pulse| pulse.phase)
    }

    /// A clause for a message.
    fn meanwhile(&self) -> String {
        match self.phase() {
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
        let call = step_timeout.unwrap_or(s(1000));
        Limits { work: Work::Training, timeout: s(100), step_timeout, call }
    }

    fn pulse(work: u64) -> Pulse {
        Pulse { phase: Phase::Saving, work, call: None, operation: None }
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
                "is alive, but without progress for 103 s while it was saving a checkpoint; a step \
                 may take long, so it goes on; Ctrl-C twice stops at once, and \
                 ranks.step_timeout_ms sets a limit"
                    .into()
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

    #[test]
    fn one_that_is_silent_like_all_of_its_host_is_lost_sooner() {
        let limits = limits(None);
        let mut life = Life::new(s(0));
        life.beat(pulse(1), s(10));
        assert!(!life.is_lost_if_all_are(s(112), &limits));
        assert!(life.is_lost_if_all_are(s(113), &limits));
        assert_eq!(life.judge(s(113), &limits, None), Judgement::Well);
    }

    #[test]
    fn a_rank_that_was_frozen_is_not_said_to_wait_for_a_disk() {
        let call = SystemCall { number: 1, what: "fsync of /c/COMMIT".into() };
        let mut life = Life::new(s(0));
        life.beat(Pulse { call: Some(call), ..pulse(1) }, s(10));
        assert_eq!(life.judge(s(30), &limits(None), None), Judgement::Well);
    }

    #[test]
    fn a_rank_that_was_frozen_is_not_said_to_be_alive() {
        let limits = Limits { step_timeout: Some(s(30)), ..limits(None) };
        let mut life = Life::new(s(0));
        life.beat(pulse(1), s(10));
        let text = "no sign of life for 31000 ms while it was saving a checkpoint (see what it is \
                    doing, or raise ranks.step_timeout_ms)";
        assert_eq!(life.judge(s(41), &limits, None), Judgement::Lost(text.into()));
        // Those who wait for it in a benchmark are heard before.
        let limits = Limits::of_benchmark(s(30));
        let mut life = Life::new(s(0));
        for at in 1..=33 {
            life.beat(pulse(1), s(at));
            assert_eq!(life.judge(s(at), &limits, None), Judgement::Well, "{at}");
        }
        life.beat(pulse(1), s(35));
        assert!(lost(&life.judge(s(35), &limits, None)));
    }

    /// The judgements of a rank that is in call `number` of a disk since 10 s, by its pulse at each
    /// of `seconds`; `work` is the number of pieces by then.
    fn in_call(
        seconds: impl Iterator<Item = u64>,
        limits: &Limits,
        work: impl Fn(u64) -> u64,
        number: impl Fn(u64) -> u64,
    ) -> Vec<(u64, Judgement)> {
        let mut life = Life::new(s(9));
        let judge = |at| {
            let call = SystemCall { number: number(at), what: "fsync of /c/COMMIT".into() };
            let pulse = Pulse { call: Some(call), ..pulse(work(at)) };
            let before = life.pulse.as_ref().map(|pulse| pulse.work);
            life.beat(pulse, s(at));
            // As a rank that says how far it is, where it gets on.
            if before != Some(work(at)) {
                life.advance(s(at));
            }
            (at, life.judge(s(at), limits, None))
        };
        let told = seconds.map(judge).filter(|(_, judgement)| *judgement != Judgement::Well);
        told.collect()
    }

    #[test]
    fn a_call_to_a_disk_is_told_once_and_ends_a_rank_after_its_own_limit() {
        // The pulse beats as long as the call may last.
        let told = in_call(10..2000, &limits(None), |at| at.min(1010), |_| 7);
        let slow = "waits for the disk while it was saving a checkpoint: fsync of /c/COMMIT has \
                    lasted 11 s, and may last 1000 s";
        assert_eq!(told[0], (21, Judgement::Slow(slow.into())));
        let lost = "a call to the disk has lasted 1003 s: fsync of /c/COMMIT while it was saving \
                    a checkpoint (see whether that disk answers, or raise ranks.timeout_ms)";
        assert_eq!(told[1], (1013, Judgement::Lost(lost.into())));
        // With a limit of its own.
        let told = in_call(10..2000, &limits(Some(s(30))), |at| at.min(40), |_| 7);
        assert!(
            matches!(&told[1], (43, Judgement::Lost(why))
            if why.ends_with("or raise ranks.step_timeout_ms)")),
            "{told:?}"
        );
    }

    #[test]
    fn many_calls_are_none_that_lasts_and_one_beside_work_ends_nobody() {
        assert_eq!(in_call(10..2000, &limits(None), |at| at, |at| at / 5), []);
        let told = in_call(10..5000, &limits(None), |at| at, |_| 7);
        assert!(matches!(told[..], [(21, Judgement::Slow(_))]), "{told:?}");
    }
}
