//! Which hosts' supervisors are there, what each has reported, and who is taken for gone: a pure
//! state over what was heard and when.
//!
//! ```text
//! never ── attends ──▶ here ── says nothing for the limit, or is not back in time ──▶ gone
//!                       ▲  └─ another process of that host: waits until this one is gone
//!                       └──── attends again: the same process is told that it was overtaken
//! ```
//!
//! Who is gone is none of the incarnation that runs; it may attend again and is of the next one.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;

use super::attending::{Attend, Leave, Report};
use super::channel::{FromHost, ToHost};
use super::protocol::Refusal;

/// How long a connection that has ended may take to be made anew: a process that was killed will
/// not do that, and a network that failed for a moment need not end anything.
const BACK: Duration = Duration::from_secs(3);

/// The way to a supervisor; its connection ends when this is dropped.
pub(super) type Way = UnboundedSender<ToHost>;

/// Whether a host's supervisor is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Presence {
    /// It has not come yet.
    Never,
    Here,
    /// It was taken for gone, for this reason.
    Gone(String),
}

/// A host, as node 0 knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostState {
    /// Its number, as at the beginning.
    pub node: usize,
    pub presence: Presence,
    /// Whether this process of it was told to start the incarnation that runs.
    pub is_in: bool,
    /// How that ended there.
    pub report: Option<Report>,
    /// People want it to end.
    pub leave: Option<Leave>,
}

/// A supervisor that has attended.
struct Seat {
    session: u64,
    way: Option<Way>,
    heard: Duration,
    closed: Option<Duration>,
    gone: Option<String>,
    /// The newest incarnation that it was told to start.
    started: Option<u64>,
    report: Option<Report>,
    leave: Option<Leave>,
    /// Another process that says that it is this host, and when it came.
    challenger: Option<(Attend, Way, Duration)>,
}

impl Seat {
    fn new(session: u64, way: Way, now: Duration) -> Seat {
        let (way, heard) = (Some(way), now);
        let (started, report, leave) = (None, None, None);
        let (closed, gone, challenger) = (None, None, None);
        Seat { session, way, heard, closed, gone, started, report, leave, challenger }
    }

    fn say(&self, message: ToHost) {
        // A connection that is gone is seen where it is read.
        let _ = self.way.iter().try_for_each(|way| way.send(message.clone()));
    }

    /// Why it is to be taken for gone now, if it is. One that is done may leave.
    fn lapse(&self, now: Duration, limit: Duration) -> Option<String> {
        if self.report.as_ref().is_some_and(|report| !report.waits) {
            return None;
        }
        let ms = |time: Duration| time.as_millis();
        if let Some(closed) = self.closed.filter(|&at| now.saturating_sub(at) > BACK.min(limit)) {
            let since = ms(now.saturating_sub(closed));
            return Some(format!(
                "the host's supervisor is gone: its connection ended, and was not made again \
                 within {since} ms"
            ));
        }
        let silent = now.saturating_sub(self.heard);
        (silent > limit).then(|| {
            format!(
                "the host's supervisor said nothing for {} ms (ranks.host_timeout_ms is {})",
                ms(silent),
                ms(limit)
            )
        })
    }
}

/// The seats of all hosts but node 0, which is the one that keeps them.
pub(super) struct Seats {
    nodes: usize,
    /// How long a supervisor may say nothing; none where nobody is judged.
    limit: Option<Duration>,
    incarnation: u64,
    /// The hosts of the incarnation, in the order of their ranks.
    members: Vec<usize>,
    seats: BTreeMap<usize, Seat>,
}

/// Hosts that are newly taken for gone, and why.
pub(super) type Gone = Vec<(usize, String)>;

impl Seats {
    /// Of a job of so many hosts, all of which start.
    pub(super) fn new(nodes: usize) -> Seats {
        let (members, seats) = ((0..nodes).collect(), BTreeMap::new());
        Seats { nodes, limit: None, incarnation: 0, members, seats }
    }

    /// From now on who says nothing for so long is gone.
    pub(super) fn judge(&mut self, limit: Duration) {
        self.limit = Some(limit);
    }

    pub(super) fn nodes(&self) -> usize {
        self.nodes
    }

    pub(super) fn incarnation(&self) -> u64 {
        self.incarnation
    }

    pub(super) fn limit(&self) -> Option<Duration> {
        self.limit
    }

    /// The place of a host among those of the incarnation.
    pub(super) fn place_of(&self, node: usize) -> Option<usize> {
        self.members.iter().position(|&member| member == node)
    }

    /// A supervisor has come, or has come back.
    pub(super) fn attend(&mut self, attend: Attend, way: Way, now: Duration) -> Gone {
        let (node, session) = (attend.node, attend.session);
        let Some(seat) = self.seats.get_mut(&node) else {
            if attend.incarnation.is_some() {
                let _ = way.send(ToHost::Refused(Refusal::Predecessor { node }));
                return Gone::new();
            }
            self.seats.insert(node, Seat::new(session, way, now));
            // All hosts are of the first incarnation, whenever they come.
            if self.incarnation == 0 {
                self.start(node);
            }
            return Gone::new();
        };
        if seat.session == session {
            (seat.way, seat.heard, seat.closed) = (Some(way), now, None);
            if let Some(why) = seat.gone.take() {
                seat.started = None;
                seat.say(ToHost::Overtaken { incarnation: self.incarnation, why });
                return Gone::new();
            }
            let is_of_this = |report: &Report| report.incarnation == self.incarnation;
            let report = attend.report.filter(is_of_this);
            seat.report = report.or_else(|| seat.report.take());
            seat.leave = attend.leave.or_else(|| seat.leave.take());
            if seat.started == Some(self.incarnation) && attend.incarnation != seat.started {
                self.start(node);
            }
            return Gone::new();
        }
        if seat.gone.is_none() && seat.closed.is_none() {
            // One that waited already is another process of the same mistake.
            seat.challenger = Some((attend, way, now));
            return Gone::new();
        }
        self.replace(node, session, way, now)
    }

    /// Another process takes a host's seat.
    fn replace(&mut self, node: usize, session: u64, way: Way, now: Duration) -> Gone {
        let former = self.seats.insert(node, Seat::new(session, way, now));
        let runs = |seat: &Seat| seat.gone.is_none() && seat.started == Some(self.incarnation);
        match former.filter(runs) {
            Some(_) => vec![(
                node,
                "another process has come in the place of the host's supervisor".into(),
            )],
            None => Gone::new(),
        }
    }

    /// A supervisor says something; returns what matters to the ranks.
    pub(super) fn hear(
        &mut self,
        (node, session): (usize, u64),
        message: FromHost,
        now: Duration,
    ) -> Option<Report> {
        let incarnation = self.incarnation;
        let seat = self.seats.get_mut(&node).filter(|seat| seat.session == session)?;
        if seat.gone.is_some() {
            return None;
        }
        seat.heard = now;
        // Both are alive: the first stays.
        if let Some((_, way, _)) = seat.challenger.take_if(|(.., since)| now > *since) {
            let _ = way.send(refused(node));
        }
        match message {
            FromHost::Beat => None,
            FromHost::Ended(report) if report.incarnation == incarnation => {
                seat.report = Some(report.clone());
                (seat.started == Some(incarnation)).then_some(report)
            }
            FromHost::Ended(_) => None,
            FromHost::Leave(leave) => {
                seat.leave = Some(leave);
                None
            }
        }
    }

    /// A connection has ended.
    pub(super) fn close(&mut self, (node, session): (usize, u64), now: Duration) {
        let Some(seat) = self.seats.get_mut(&node) else { return };
        if seat.session == session {
            seat.closed.get_or_insert(now);
        }
        let is_this = |(attend, ..): &mut (Attend, Way, Duration)| attend.session == session;
        seat.challenger.take_if(is_this);
    }

    /// Judges who is gone, and tells the others that this process lives.
    pub(super) fn look(&mut self, now: Duration) -> Gone {
        let mut gone = Gone::new();
        let mut heirs = Vec::new();
        for (&node, seat) in &mut self.seats {
            seat.say(ToHost::Beat);
            let Some(limit) = self.limit.filter(|_| seat.gone.is_none()) else { continue };
            let Some(why) = seat.lapse(now, limit) else { continue };
            if seat.started == Some(self.incarnation) {
                gone.push((node, why.clone()));
            }
            // Its connection ends with this.
            (seat.way, seat.gone) = (None, Some(why));
            heirs.extend(seat.challenger.take().map(|heir| (node, heir)));
        }
        for (node, (attend, way, _)) in heirs {
            self.seats.insert(node, Seat::new(attend.session, way, now));
        }
        gone
    }

    /// Begins the next incarnation with these hosts, node 0 among them.
    pub(super) fn begin(&mut self, members: &[usize]) -> u64 {
        self.incarnation += 1;
        self.members = members.to_vec();
        for node in members.iter().copied() {
            self.start(node);
        }
        self.incarnation
    }

    fn start(&mut self, node: usize) {
        let (incarnation, hosts) = (self.incarnation, self.members.clone());
        if let Some(seat) = self.seats.get_mut(&node).filter(|seat| seat.gone.is_none()) {
            (seat.started, seat.report) = (Some(incarnation), None);
            seat.say(ToHost::Start { incarnation, hosts });
        }
    }

    /// Says something to everyone.
    pub(super) fn tell_all(&self, message: &ToHost) {
        self.seats.values().for_each(|seat| seat.say(message.clone()));
    }

    /// The job is over: connections end once that is said.
    pub(super) fn end(&mut self, exit: u8, why: &str) {
        self.tell_all(&ToHost::End { exit, why: why.to_owned() });
        for seat in self.seats.values_mut() {
            (seat.way, seat.challenger) = (None, None);
        }
    }

    /// Whether any connection is open.
    pub(super) fn any_open(&self) -> bool {
        self.seats.values().any(|seat| seat.closed.is_none() && seat.gone.is_none())
    }

    /// Every host but node 0.
    pub(super) fn states(&self) -> Vec<HostState> {
        (1..self.nodes).map(|node| self.state(node)).collect()
    }

    fn state(&self, node: usize) -> HostState {
        let seat = self.seats.get(&node);
        let presence = match seat.map(|seat| (&seat.gone, seat.closed)) {
            None => Presence::Never,
            Some((Some(why), _)) => Presence::Gone(why.clone()),
            Some((None, _)) => Presence::Here,
        };
        let is_in = seat.is_some_and(|seat| seat.started == Some(self.incarnation));
        let report = seat.and_then(|seat| seat.report.clone());
        let leave = seat.and_then(|seat| seat.leave.clone());
        HostState { node, presence, is_in, report, leave }
    }
}

/// The answer to a second process of a host that is there.
fn refused(node: usize) -> ToHost {
    ToHost::Refused(Refusal::NodeTaken { node })
}

#[cfg(test)]
mod tests;
