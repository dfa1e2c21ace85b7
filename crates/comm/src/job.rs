//! The state that everything of a job on one rank shares: who it is, whether the job is given up,
//! and when each rank last got on.
//!
//! **Deadlines measure progress.** A rank gets on when its process works (its *pulse*), when it
//! moves a part of an operation, and when those that it waits for do. Each rank has a *moment*: the
//! latest time at which that was so. Whoever waits counts the time since it began to, or since the
//! moment of the rank that it waits for, whichever is less; so a rank that computes, loads or
//! writes for long is waited for, and one that stands still for the timeout is named.
//!
//! A moment is a time and not a count, so that two ranks that wait for each other do not take each
//! other's waiting for progress: both have the moment of the last that either did.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::counters::CounterCells;
use crate::hosts::BY_HOSTS_BYTES;
use crate::meter::TimingCells;
use crate::patience::Patience;
use crate::revocation::Reason;
use crate::tls::Tls;
use crate::{CommError, Operation, Result, Revocation, Secret};

/// When each rank last got on, in milliseconds of one clock; 0 where that is not known.
pub(crate) trait Moments: Send + Sync {
    fn now_ms(&self) -> u64;

    fn of(&self, rank: usize) -> u64;

    /// Moments only grow.
    fn advance(&self, rank: usize, to_ms: u64);

    /// A sign of life has come from `rank`; after one that `is_last` none is due any more.
    fn hear(&self, _rank: usize, _is_last: bool) {}

    /// Ranks of which signs of life are due and none has come for so long.
    fn silent(&self, _for_at_least: Duration) -> Vec<usize> {
        Vec::new()
    }
}

/// How much later a rank is named that may only wait for the one at fault. Ranks of one host learn
/// of each other's moments within a second, as those of other hosts do.
const BEHIND: Duration = Duration::from_millis(1250);

/// How much later than for the timeout a rank is given up that says nothing and that nobody waits
/// for: those who wait for it know in which operation it is missing.
const UNHEARD: Duration = Duration::from_secs(1);

/// A hook that tests put between the parts of operations.
pub type Disturbance = Arc<dyn Fn() + Send + Sync>;

/// How a rank takes part in a job.
#[derive(Clone)]
pub struct Settings {
    /// How long a rank may stand still that others wait for.
    pub timeout_ms: u64,
    pub revocation: Revocation,
    /// The secret that connections between ranks begin with a proof of.
    pub secret: Secret,
    /// With which all connections between ranks are TLS.
    pub tls: Option<Tls>,
    /// Cores that the ranks of this host have together. Where ranks outnumber them, waits sleep
    /// sooner: the rank that is waited for may need this one's. What a rank alone is confined to
    /// says nothing of that.
    pub cores: usize,
    /// A number that moves while this process works.
    pub pulse: fn() -> u64,
    /// Called at the beginning of each operation and between its parts: a test of delays waits
    /// there.
    #[doc(hidden)]
    pub disturb: Option<Disturbance>,
    /// Fewest bytes of a window that go by hosts; the same on every rank. Tests of small operations
    /// set it.
    #[doc(hidden)]
    pub by_hosts_bytes: usize,
}

impl Settings {
    /// With a revocation of its own, no secret, the cores that this process may use, and its work
    /// as its pulse.
    pub fn new(timeout_ms: u64) -> Settings {
        Settings {
            timeout_ms,
            revocation: Revocation::default(),
            secret: Secret::none(),
            tls: None,
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            pulse: device::work::worked,
            disturb: None,
            by_hosts_bytes: BY_HOSTS_BYTES,
        }
    }

    /// Whether each of `ranks` ranks of this host can have a core.
    pub(crate) fn has_cores_for(&self, ranks: usize) -> bool {
        ranks <= self.cores
    }
}

pub(crate) struct Job {
    pub rank: usize,
    pub world: usize,
    pub settings: Settings,
    pub counters: CounterCells,
    pub timings: TimingCells,
    moments: Box<dyn Moments>,
    /// The pulse when it was last looked at.
    pulse: AtomicU64,
}

/// The ranks of a channel or group, in their order there, and which of them this one is. Inside an
/// operation a rank is known by its place among them.
#[derive(Debug, Clone)]
pub(crate) struct Members {
    pub ranks: Arc<[usize]>,
    pub place: usize,
}

impl Members {
    /// Everyone.
    pub(crate) fn all(rank: usize, world: usize) -> Members {
        Members { ranks: (0..world).collect(), place: rank }
    }

    pub(crate) fn len(&self) -> usize {
        self.ranks.len()
    }

    /// Refuses a place that nobody has.
    pub(crate) fn check(&self, place: usize) -> Result<()> {
        let (rank, world) = (place, self.len());
        if rank < world { Ok(()) } else { Err(CommError::NoSuchRank { rank, world }) }
    }

    /// Places of the others.
    pub(crate) fn peers(&self) -> impl Iterator<Item = usize> + Clone + use<> {
        let place = self.place;
        (0..self.len()).filter(move |&peer| peer != place)
    }
}

impl Job {
    pub(crate) fn new(
        rank: usize,
        world: usize,
        settings: Settings,
        moments: Box<dyn Moments>,
    ) -> Job {
        let pulse = AtomicU64::new((settings.pulse)());
        let (counters, timings) = (CounterCells::default(), TimingCells::default());
        Job { rank, world, settings, counters, timings, moments, pulse }
    }

    pub(crate) fn timeout_ms(&self) -> u64 {
        self.settings.timeout_ms
    }

    pub(crate) fn revocation(&self) -> &Revocation {
        &self.settings.revocation
    }

    pub(crate) fn patience(&self) -> Cell<Patience> {
        Patience::of_ms(self.timeout_ms()).into()
    }

    pub(crate) fn moments(&self) -> &dyn Moments {
        self.moments.as_ref()
    }

    /// This rank has moved something.
    pub(crate) fn got_on(&self) {
        self.moments.advance(self.rank, self.moments.now_ms());
    }

    /// Whoever waits looks, and a watchdog, where there are other ranks.
    pub(crate) fn look_at_pulse(&self) {
        let now = (self.settings.pulse)();
        if self.pulse.swap(now, Ordering::Relaxed) != now {
            self.got_on();
        }
    }

    /// Between the parts of an operation.
    pub(crate) fn part_done(&self) {
        self.got_on();
        self.disturb();
    }

    pub(crate) fn disturb(&self) {
        if let Some(disturb) = &self.settings.disturb {
            disturb();
        }
    }

    /// How long `rank` has stood still, as far as whoever waits since `used` can say.
    fn stood_still(&self, rank: usize, used: Duration) -> Duration {
        let since = self.moments.now_ms().saturating_sub(self.moments.of(rank));
        used.min(Duration::from_millis(since))
    }

    /// Whether one of the `awaited` members has stood still for the whole of `patience`. If not,
    /// this rank has got on as far as the last of them has.
    pub(crate) fn is_over(
        &self,
        members: &Members,
        patience: &Cell<Patience>,
        awaited: impl Iterator<Item = usize> + Clone,
    ) -> bool {
        self.is_over_by(Duration::ZERO, members, patience, awaited)
    }

    /// As [`Job::is_over`], so much later.
    pub(crate) fn is_over_by(
        &self,
        later: Duration,
        members: &Members,
        patience: &Cell<Patience>,
        awaited: impl Iterator<Item = usize> + Clone,
    ) -> bool {
        self.look_at_pulse();
        let awaited = awaited.map(|place| members.ranks[place]);
        let mut looked_at = patience.get();
        let used = looked_at.used();
        patience.set(looked_at);
        let oldest = awaited.clone().map(|rank| self.stood_still(rank, used)).max();
        if oldest.unwrap_or(used) >= Duration::from_millis(self.timeout_ms()) + later {
            return true;
        }
        if let Some(moment) = awaited.map(|rank| self.moments.of(rank)).min() {
            self.moments.advance(self.rank, moment.min(self.moments.now_ms()));
        }
        false
    }

    /// As [`Job::is_over`], of members that may themselves wait for the one at fault: they get
    /// [`BEHIND`] more, to name it. And this rank seems to have got on of late, as long as none is
    /// over: to ranks that wait for both, the one at fault stands still and this one does not.
    pub(crate) fn is_over_behind(
        &self,
        members: &Members,
        patience: &Cell<Patience>,
        awaited: impl Iterator<Item = usize> + Clone,
    ) -> bool {
        if self.is_over_by(BEHIND, members, patience, awaited) {
            return true;
        }
        let now_ms = self.moments.now_ms();
        self.moments.advance(self.rank, now_ms.saturating_sub(self.timeout_ms() / 4));
        false
    }

    /// The members among the awaited ones to name when [`Job::is_over`]: they stood still for half
    /// of the timeout at least, since moments of ranks that stopped together differ a little. Each
    /// is named once, also where it is awaited for several messages.
    pub(crate) fn standing(
        &self,
        members: &Members,
        patience: &Cell<Patience>,
        awaited: impl Iterator<Item = usize>,
    ) -> Vec<usize> {
        let used = patience.get().used();
        let enough = Duration::from_millis(self.timeout_ms() / 2);
        let is_still = |&place: &usize| self.stood_still(members.ranks[place], used) >= enough;
        let mut standing: Vec<usize> = awaited.filter(is_still).collect();
        standing.sort_unstable();
        standing.dedup();
        standing
    }

    /// Ranks that are to be given up because nothing comes from them, whatever they are waited for;
    /// those who wait and know more have been heard by then. Ranks that went silent together are
    /// named together.
    pub(crate) fn given_up_for_silence(&self) -> Option<Reason> {
        let timeout = Duration::from_millis(self.timeout_ms());
        let is_over = !self.moments.silent(timeout + UNHEARD).is_empty();
        is_over.then(|| Reason::silence(self.silent_together(), self.timeout_ms()))
    }

    /// Who went silent at about the same time: of which nothing has come for half of the timeout,
    /// and far longer than between two signs of life.
    fn silent_together(&self) -> Vec<usize> {
        let half = Duration::from_millis(self.timeout_ms() / 2);
        self.moments.silent(half.max(UNHEARD / 2))
    }

    /// Who is as silent as one that has not come stopped with it, as all ranks of a host do.
    fn with_the_silent(&self, mut error: CommError) -> CommError {
        if let CommError::Timeout { missing, .. } = &mut error {
            let silent = self.silent_together();
            if missing.iter().any(|rank| silent.contains(rank)) {
                missing.extend(silent);
                missing.sort_unstable();
                missing.dedup();
            }
        }
        error
    }

    /// Gives the job up if an operation among `members` failed, and names ranks of the job where
    /// the error has their places.
    pub(crate) fn settle<R>(
        &self,
        members: &Members,
        (operation, sequence): (Operation, u64),
        result: Result<R>,
    ) -> Result<R> {
        let error = match result {
            Ok(done) => return Ok(done),
            Err(CommError::Revoked { why }) => {
                let error = self.revocation().error(operation, sequence);
                return Err(error.unwrap_or(CommError::Revoked { why }));
            }
            Err(error) => self.with_the_silent(error.among(&members.ranks)),
        };
        let rank = self.rank;
        self.revocation().revoke(&match error {
            CommError::Timeout { .. }
            | CommError::PeerLost { .. }
            | CommError::Mismatch { .. }
            | CommError::Damaged { .. }
            | CommError::Library { .. }
            | CommError::Unfinished { .. } => format!("rank {rank}: {error}"),
            _ => format!("rank {rank}: {operation} #{sequence}: {error}"),
        });
        Err(error)
    }
}

/// While this lives, an operation is in progress. One that ends in a panic leaves half a frame or
/// half a phase behind, which the next would take for its own: so the job is given up.
pub(crate) struct InProgress<'a>(pub &'a Job);

impl Drop for InProgress<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let rank = self.0.rank;
            self.0.revocation().revoke(&format!("rank {rank}: an operation ended in a panic"));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    /// A clock that stands at 10 s, and moments that tests set.
    struct Table([AtomicU64; 3]);

    impl Moments for Table {
        fn now_ms(&self) -> u64 {
            10_000
        }

        fn of(&self, rank: usize) -> u64 {
            self.0[rank].load(Ordering::Relaxed)
        }

        fn advance(&self, rank: usize, to_ms: u64) {
            self.0[rank].fetch_max(to_ms, Ordering::Relaxed);
        }
    }

    /// As [`Table`], of which ranks 1 and 2 say nothing for so many milliseconds.
    struct Frozen(Table, [u64; 2]);

    impl Moments for Frozen {
        fn now_ms(&self) -> u64 {
            self.0.now_ms()
        }

        fn of(&self, rank: usize) -> u64 {
            self.0.of(rank)
        }

        fn advance(&self, rank: usize, to_ms: u64) {
            self.0.advance(rank, to_ms);
        }

        fn silent(&self, for_at_least: Duration) -> Vec<usize> {
            let is_silent = |rank: &usize| Duration::from_millis(self.1[rank - 1]) >= for_at_least;
            (1..3).filter(is_silent).collect()
        }
    }

    #[test]
    fn ranks_that_fell_silent_together_are_named_together() {
        let job = |silent_ms| {
            let table = Table([0, 0, 0].map(AtomicU64::new));
            Job::new(0, 3, Settings::new(2000), Box::new(Frozen(table, silent_ms)))
        };
        // Nobody waits for them; and those who do are heard before.
        assert!(job([2900, 2950]).given_up_for_silence().is_none());
        let reason = job([2900, 3000]).given_up_for_silence().unwrap();
        assert_eq!(reason.why, "no sign of life of ranks 1 and 2 within 2000 ms");
        let reason = job([900, 3000]).given_up_for_silence().unwrap();
        assert_eq!(reason.why, "no sign of life of rank 2 within 2000 ms");
        // One is waited for; or one that only stands still.
        let missing = |silent_ms| {
            let job = job(silent_ms);
            let (operation, sequence, moved) = (Operation::Barrier, 7, Default::default());
            let (missing, timeout_ms) = (vec![1], 2000);
            let error = CommError::Timeout { operation, sequence, missing, timeout_ms, moved };
            let all = Members::all(0, 3);
            match job.settle(&all, (operation, sequence), Err::<(), _>(error)) {
                Err(CommError::Timeout { missing, .. }) => missing,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(missing([2000, 1900]), [1, 2]);
        assert_eq!(missing([2000, 300]), [1]);
        assert_eq!(missing([300, 2000]), [1]);
    }

    fn job(moments: [u64; 3], timeout_ms: u64) -> Job {
        let table = Box::new(Table(moments.map(AtomicU64::new)));
        Job::new(0, 3, Settings::new(timeout_ms), table)
    }

    #[test]
    fn the_rank_that_stands_still_is_named_and_not_the_busy_one() {
        let job = job([0, 9_999, 0], 30);
        let (patience, all) = (job.patience(), Members::all(0, 3));
        assert!(!job.is_over(&all, &patience, 1..3));
        std::thread::sleep(Duration::from_millis(40));
        assert!(!job.is_over(&all, &patience, 1..2));
        assert!(job.is_over(&all, &patience, 1..3));
        assert_eq!(job.standing(&all, &patience, 1..3), [2]);
        assert_eq!(job.standing(&all, &patience, [2, 1, 2].into_iter()), [2]);
    }

    #[test]
    fn a_rank_that_works_does_not_stand_still_for_itself() {
        fn beating() -> u64 {
            static BEATS: AtomicU64 = AtomicU64::new(0);
            BEATS.fetch_add(1, Ordering::Relaxed)
        }
        let table = || Box::new(Table([0, 0, 0].map(AtomicU64::new)));
        for (pulse, is_over) in [((|| 0) as fn() -> u64, true), (beating, false)] {
            let job = Job::new(0, 1, Settings { pulse, ..Settings::new(30) }, table());
            let (patience, all) = (job.patience(), Members::all(0, 1));
            assert!(!job.is_over(&all, &patience, 0..1), "it begins now");
            std::thread::sleep(Duration::from_millis(40));
            assert_eq!(job.is_over(&all, &patience, 0..1), is_over);
        }
    }

    #[test]
    fn who_waits_for_others_that_wait_comes_later_and_seems_to_get_on() {
        let (job, all) = (job([0, 9_999, 0], 40), Members::all(0, 3));
        let patience = job.patience();
        assert!(!job.is_over(&all, &patience, 2..3), "it begins now");
        std::thread::sleep(Duration::from_millis(50));
        assert!(job.is_over(&all, &patience, 2..3));
        assert_eq!(job.moments().of(0), 0);
        assert!(!job.is_over_behind(&all, &patience, 2..3));
        // Late enough that nobody names this one, and not for ever.
        assert_eq!(job.moments().of(0), 9_990);
        let since = Instant::now();
        while !job.is_over_behind(&all, &patience, 2..3) {
            assert!(since.elapsed() < Duration::from_secs(60));
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(since.elapsed() > BEHIND / 2);
    }

    #[test]
    fn who_waits_has_got_on_as_far_as_the_last_of_those_it_waits_for() {
        let (job, all) = (job([0, 9_000, 8_000], 60_000), Members::all(0, 3));
        assert!(!job.is_over(&all, &job.patience(), 1..3));
        assert_eq!(job.moments().of(0), 8_000);
        assert!(!job.is_over(&all, &job.patience(), 1..2));
        assert_eq!(job.moments().of(0), 9_000);
        // Whoever waits for it in turn learns nothing newer from that.
        job.moments().advance(1, job.moments().of(0));
        assert_eq!(job.moments().of(1), 9_000);
    }
}
