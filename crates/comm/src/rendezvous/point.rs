//! The meeting point for the whole life of a job: the meeting of its ranks, another one for each
//! start of them, and the supervisors of its hosts, which stay.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;

use super::attending::Attend;
use super::channel::{FromHost, ToHost};
use super::meeting::Shared;
use super::protocol::Refusal;
use super::seats::{Gone, Seats, Way};
use crate::{AwakeClock, Result};

/// How often a supervisor says that it lives: more often than twice a second, as the clock of who
/// is awake needs it; and how often where the limit is short.
const BEAT: Duration = Duration::from_millis(250);
const BEAT_LEAST: Duration = Duration::from_millis(50);

/// How often a supervisor that may say nothing for `limit` says that it lives.
pub(super) fn beat(limit: Duration) -> Duration {
    (limit / 10).clamp(BEAT_LEAST, BEAT)
}

/// State that the threads of the server share.
pub(super) struct Point {
    meeting: Mutex<Arc<Shared>>,
    seats: Mutex<(Seats, AwakeClock)>,
    /// To the thread that ends meetings in time.
    begun: UnboundedSender<Arc<Shared>>,
}

impl Point {
    /// Of a job that begins with this meeting, which `begun` gets, as all later ones.
    pub(super) fn new(first: Shared, nodes: usize, begun: UnboundedSender<Arc<Shared>>) -> Point {
        let first = Arc::new(first);
        // The other end is served as long as this lives.
        let _ = begun.send(Arc::clone(&first));
        let seats = Mutex::new((Seats::new(nodes), AwakeClock::default()));
        Point { meeting: Mutex::new(first), seats, begun }
    }

    /// The meeting of this time.
    pub(super) fn meeting(&self) -> Arc<Shared> {
        Arc::clone(&self.meeting.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Does something with the seats of the hosts, at this time.
    pub(super) fn seats<T>(&self, act: impl FnOnce(&mut Seats, Duration) -> T) -> T {
        let mut guard: MutexGuard<(Seats, AwakeClock)> =
            self.seats.lock().unwrap_or_else(PoisonError::into_inner);
        let (seats, clock) = &mut *guard;
        let now = clock.look();
        act(seats, now)
    }

    /// Begins the next incarnation with these hosts: the ranks of it meet, and the supervisors are
    /// told to start them.
    ///
    /// # Errors
    /// No random numbers.
    pub(super) fn begin(&self, hosts: &[usize]) -> Result<u64> {
        let former = self.meeting();
        let number = self.seats(|seats, _| seats.incarnation() + 1);
        let next = Arc::new(former.again(number, hosts)?);
        *self.meeting.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&next);
        former.abandon();
        let _ = self.begun.send(next);
        // The meeting is there before anybody comes to it.
        Ok(self.seats(|seats, _| seats.begin(hosts)))
    }

    /// A supervisor has come.
    pub(super) fn attend(&self, attend: Attend, way: Way) {
        if let Some(refusal) = self.refusal(&attend) {
            let _ = way.send(ToHost::Refused(refusal));
            return;
        }
        let gone = self.seats(|seats, now| seats.attend(attend, way, now));
        self.lose(&gone);
    }

    fn refusal(&self, attend: &Attend) -> Option<Refusal> {
        let (Attend { node, nodes: got, .. }, meeting) = (attend, self.meeting());
        let (node, got) = (*node, *got);
        if attend.job != meeting.job {
            return Some(Refusal::Job { job: meeting.job.clone(), got: attend.job.clone() });
        }
        // A meeting that failed is made anew, unless it was the first.
        let is_first = self.seats(|seats, _| seats.incarnation()) == 0;
        if is_first && let Some(refusal) = meeting.refuses(node) {
            return Some(refusal);
        }
        let nodes = self.seats(|seats, _| seats.nodes());
        let fits = got == nodes && (1..nodes).contains(&node);
        (!fits).then_some(Refusal::Nodes { node, got, nodes })
    }

    /// A supervisor says something.
    pub(super) fn hear(&self, from: (usize, u64), message: FromHost) {
        let ended = self.seats(|seats, now| seats.hear(from, message, now));
        let Some(report) = ended.filter(|report| report.exit != 0) else { return };
        // The others need not wait for its ranks.
        let meeting = self.meeting();
        if meeting.is_gathering() {
            self.lose(&vec![(from.0, report.why)]);
        }
    }

    /// Judges who is gone.
    pub(super) fn look(&self) {
        let gone = self.seats(|seats, now| seats.look(now));
        self.lose(&gone);
    }

    /// How long until the next look.
    pub(super) fn pause(&self) -> Duration {
        self.seats(|seats, _| seats.limit()).map_or(BEAT, beat)
    }

    /// The ranks of these hosts will not come back.
    fn lose(&self, gone: &Gone) {
        for (node, why) in gone {
            let place = self.seats(|seats, _| seats.place_of(*node));
            place.iter().for_each(|&place| self.meeting().lose_host(place, why));
        }
    }
}
