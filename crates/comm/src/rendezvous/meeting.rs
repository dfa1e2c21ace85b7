//! Who has come, and what becomes of the meeting: decisions, told to the workers at once.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc::UnboundedSender;

use super::protocol::{self, Hello, Refusal, Said, ToServer, ToWorker};
use super::strangers::{Strangers, Why};
use crate::tls::Security;
use crate::{Fault, Result, secret};

/// State that the server's threads share.
pub(super) struct Shared {
    pub job: String,
    pub security: Security,
    pub world: usize,
    /// Hosts, each with as many ranks, in their order.
    nodes: usize,
    /// Which start of the ranks this is of.
    incarnation: u64,
    /// The hosts as people call them: by their numbers at the beginning.
    names: Vec<usize>,
    pub timeout_ms: u64,
    /// Who is none of the job's is told so.
    pub answers_strangers: bool,
    /// Another number for each start.
    start: u64,
    meeting: Mutex<Meeting>,
    /// The phase has changed.
    pub changed: Condvar,
}

pub(super) struct Meeting {
    pub phase: Phase,
    pub workers: Vec<Option<Worker>>,
    /// How many of them are there.
    come: usize,
    pub wants_stop: bool,
    /// The first ranks that were lost after the meeting, and how.
    pub lost: Option<Fault>,
    /// Who knows that the meeting was refused.
    pub told: Told,
    /// Who came and is none of the job's.
    pub strangers: Strangers,
}

#[derive(Clone)]
pub(super) enum Phase {
    Gathering,
    Open,
    Refused(Refusal),
}

pub(super) struct Worker {
    hello: Hello,
    from: IpAddr,
    outgoing: UnboundedSender<Outgoing>,
    pub last_step: Option<u64>,
    /// It said goodbye.
    has_left: bool,
    /// Its connection has ended.
    is_gone: bool,
}

/// Who knows that the meeting was refused.
#[derive(Default)]
pub(super) struct Told {
    /// Ranks of the job, as far as that is known.
    world: usize,
    nodes: usize,
    ranks: BTreeSet<usize>,
    /// Hosts that have said that they will not come.
    absent: BTreeSet<usize>,
}

impl Told {
    /// By a rank that believes in a job of `world` ranks.
    fn rank(&mut self, rank: usize, world: usize) {
        if self.world == 0 {
            self.world = world;
        }
        self.ranks.insert(rank);
    }

    /// Whether nobody of another host than node 0 is left to be told.
    pub(super) fn is_everyone(&self) -> bool {
        let share = self.world / self.nodes.max(1);
        let mut others = 1..self.nodes;
        others.all(|node| {
            let mut ranks = node * share..(node + 1) * share;
            self.absent.contains(&node) || share > 0 && ranks.all(|rank| self.ranks.contains(&rank))
        })
    }
}

/// A frame on its way to a worker, shared by all who get it.
#[derive(Clone)]
pub(super) struct Outgoing {
    pub said: Said,
    /// The connection ends after it.
    pub is_last: bool,
}

impl Outgoing {
    fn new(message: &ToWorker) -> Outgoing {
        let is_last = matches!(message, ToWorker::Refused(_));
        Outgoing { said: Said::new(message), is_last }
    }
}

impl Shared {
    /// Nobody has come yet.
    pub(super) fn new(
        (job, security): (&str, Security),
        world: usize,
        nodes: usize,
        timeout_ms: u64,
    ) -> Result<Shared> {
        let meeting = Meeting {
            phase: Phase::Gathering,
            workers: (0..world).map(|_| None).collect(),
            come: 0,
            wants_stop: false,
            lost: None,
            told: Told { world, nodes, ..Told::default() },
            strangers: Strangers::default(),
        };
        Ok(Shared {
            job: job.to_owned(),
            security,
            world,
            nodes,
            incarnation: 0,
            names: (0..nodes).collect(),
            timeout_ms,
            answers_strangers: true,
            start: u64::from_le_bytes(secret::random()?),
            meeting: Mutex::new(meeting),
            changed: Condvar::new(),
        })
    }

    /// A meeting that will not be: how many ranks there would have been is not known here. Who is
    /// none of the job's is left without an answer.
    pub(super) fn of_refused(
        of_job: (&str, Security),
        nodes: usize,
        refusal: Refusal,
    ) -> Result<Shared> {
        let shared = Shared::new(of_job, 0, nodes, 0)?;
        shared.lock().phase = Phase::Refused(refusal.fitted());
        Ok(Shared { answers_strangers: false, ..shared })
    }

    /// The meeting of the ranks of these hosts, in the order of their ranks, for another start.
    pub(super) fn again(&self, incarnation: u64, names: &[usize]) -> Result<Shared> {
        let world = self.world / self.nodes.max(1) * names.len();
        let of_job = (&self.job[..], self.security.clone());
        let shared = Shared::new(of_job, world, names.len(), self.timeout_ms)?;
        Ok(Shared { incarnation, names: names.to_vec(), ..shared })
    }

    /// Its time is over: whoever is still of it leaves.
    pub(super) fn abandon(&self) {
        let mut meeting = self.lock();
        let reason = "the ranks of the job were started again".to_owned();
        match meeting.phase {
            Phase::Gathering => self.refuse(&mut meeting, Refusal::Ended { rank: 0, reason }),
            Phase::Open if meeting.lost.is_none() => {
                meeting.tell_all(&ToWorker::Abort { ranks: Vec::new(), reason });
            }
            Phase::Open | Phase::Refused(_) => {}
        }
    }

    /// The host at `place` is gone, or its ranks have ended before the others came.
    pub(super) fn lose_host(&self, place: usize, reason: &str) {
        let is_gathering = matches!(self.lock().phase, Phase::Gathering);
        match is_gathering {
            true => self.leave_out(place, reason),
            false => self.lose(&self.ranks_of(place).collect::<Vec<_>>(), reason),
        }
    }

    pub(super) fn nodes(&self) -> usize {
        self.nodes
    }

    pub(super) fn is_gathering(&self) -> bool {
        matches!(self.lock().phase, Phase::Gathering)
    }

    /// Why there will be no meeting, told to a supervisor that comes too late for its ranks to hear
    /// it.
    pub(super) fn refuses(&self, node: usize) -> Option<Refusal> {
        let mut meeting = self.lock();
        let Phase::Refused(refusal) = meeting.phase.clone() else { return None };
        meeting.told.absent.insert(node);
        self.changed.notify_all();
        Some(refusal)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Meeting> {
        self.meeting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a worker in; the last one completes the meeting.
    pub(super) fn enter(
        &self,
        hello: Hello,
        from: SocketAddr,
        outgoing: UnboundedSender<Outgoing>,
    ) -> Option<usize> {
        let mut meeting = self.lock();
        let (rank, world) = (hello.rank, self.world);
        let turn_away = |refusal: &Refusal| {
            let refusal = refusal.clone().fitted();
            let _ = outgoing.send(Outgoing::new(&ToWorker::Refused(refusal)));
        };
        if hello.job != self.job {
            // Not one of ours: it alone is turned away.
            meeting.strangers.turn_away(from.ip(), Why::Job(hello.job.clone()));
            let refusal = Refusal::Job { job: self.job.clone(), got: hello.job };
            turn_away(&refusal);
            return None;
        }
        if hello.incarnation != self.incarnation {
            turn_away(&Refusal::Incarnation { ours: self.incarnation, got: hello.incarnation });
            return None;
        }
        if let Phase::Refused(refusal) = &meeting.phase {
            turn_away(refusal);
            meeting.told.rank(rank, hello.world);
            self.changed.notify_all();
            return None;
        }
        let other = hello.node.filter(|&(_, nodes)| nodes != self.nodes);
        let refusal = if let Some((node, got)) = other {
            Some(Refusal::Nodes { node, got, nodes: self.nodes })
        } else if hello.world != world {
            Some(Refusal::World { rank, got: hello.world, world })
        } else if rank >= world {
            Some(Refusal::NoSuchRank { rank, world })
        } else {
            let first = meeting.workers[rank].as_ref().map(|worker| worker.from);
            first.map(|first| Refusal::RankTaken { rank, from: [first, from.ip()] })
        };
        if let Some(refusal) = refusal {
            // After the meeting a latecomer disturbs nobody.
            turn_away(&refusal);
            meeting.told.rank(rank, hello.world);
            self.refuse(&mut meeting, refusal);
            return None;
        }
        let from = from.ip();
        let worker =
            Worker { hello, from, outgoing, last_step: None, has_left: false, is_gone: false };
        meeting.strangers.has_come(self.node_of(rank));
        meeting.strangers.lacking().for_each(|told| self.hint(&worker, &told));
        meeting.workers[rank] = Some(worker);
        self.complete(&mut meeting);
        Some(rank)
    }

    fn complete(&self, meeting: &mut Meeting) {
        meeting.come += 1;
        if meeting.come < self.world {
            return;
        }
        let hellos: Vec<&Hello> =
            meeting.workers.iter().flatten().map(|worker| &worker.hello).collect();
        if let Err(refusal) = protocol::agree(&hellos) {
            return self.refuse(meeting, refusal);
        }
        let peers: Option<Vec<SocketAddr>> = hellos.iter().map(|hello| hello.listen).collect();
        meeting.phase = Phase::Open;
        let (peers, start) = (peers.unwrap_or_default(), self.start);
        meeting.tell_all(&ToWorker::Joined { peers, start });
        if meeting.wants_stop {
            meeting.tell_all(&ToWorker::Stop);
        }
        self.changed.notify_all();
    }

    /// Ends the gathering for everyone.
    pub(super) fn refuse(&self, meeting: &mut Meeting, refusal: Refusal) {
        let refusal = refusal.fitted();
        if matches!(meeting.phase, Phase::Gathering) {
            meeting.tell_all(&ToWorker::Refused(refusal.clone()));
            let Meeting { workers, told, .. } = meeting;
            // Who differs may have come in the place of one of this job's, which is still to come.
            if !matches!(refusal, Refusal::Disagree { .. }) {
                let told_of = |worker: &Worker| told.rank(worker.hello.rank, self.world);
                workers.iter().flatten().for_each(told_of);
            }
            meeting.phase = Phase::Refused(refusal);
            self.changed.notify_all();
        }
    }

    /// The host at a place, as people call it.
    fn name_of(&self, place: usize) -> usize {
        self.names.get(place).copied().unwrap_or(place)
    }

    /// A host says that it will not come.
    pub(super) fn leave_out(&self, place: usize, reason: &str) {
        let mut meeting = self.lock();
        meeting.told.absent.insert(place);
        let (node, reason) = (self.name_of(place), reason.to_owned());
        self.refuse(&mut meeting, Refusal::Absent { node, reason });
        self.changed.notify_all();
    }

    /// Nobody else comes in time.
    pub(super) fn close(&self) {
        let mut meeting = self.lock();
        let absent = |rank: &usize| meeting.workers[*rank].is_none();
        let missing = (0..self.world).filter(absent).collect();
        let is_absent = |node: &usize| self.ranks_of(*node).all(|rank| absent(&rank));
        // On a single host nobody counts hosts.
        let nodes = (0..self.nodes).filter(|node| self.nodes > 1 && is_absent(node));
        let nodes = nodes.map(|place| self.name_of(place)).collect();
        let (timeout_ms, turned_away) = (self.timeout_ms, meeting.strangers.list());
        self.refuse(&mut meeting, Refusal::Missing { missing, nodes, timeout_ms, turned_away });
    }

    /// Somebody has come who is none of the job's.
    pub(super) fn turn_away(&self, from: IpAddr, why: Why) {
        let mut meeting = self.lock();
        // The others wait for that host, too.
        let concerns_all = matches!(why, Why::Lacks { .. });
        let told = meeting.strangers.turn_away(from, why).filter(|_| concerns_all);
        for worker in meeting.workers.iter().flatten() {
            told.iter().for_each(|told| self.hint(worker, told));
        }
    }

    /// Tells a worker of another host what this one's people are told.
    fn hint(&self, worker: &Worker, told: &str) {
        if !self.ranks_of(0).contains(&worker.hello.rank) {
            let hint = ToWorker::Hint(format!("node 0 {told}"));
            // As in [`Meeting::tell_all`].
            let _ = worker.outgoing.send(Outgoing::new(&hint));
        }
    }

    /// Whether ranks `which` are awaited, all of them.
    pub(super) fn awaits(&self, mut which: Range<usize>) -> bool {
        let meeting = self.lock();
        let is_missing = |rank| meeting.workers.get(rank).is_some_and(Option::is_none);
        matches!(meeting.phase, Phase::Gathering) && which.all(is_missing)
    }

    /// The ranks of a host, each of which has as many.
    pub(super) fn ranks_of(&self, node: usize) -> Range<usize> {
        let share = self.world / self.nodes.max(1);
        node.saturating_mul(share)..node.saturating_add(1).saturating_mul(share)
    }

    /// The host of a rank.
    fn node_of(&self, rank: usize) -> usize {
        rank / (self.world / self.nodes.max(1)).max(1)
    }

    /// These will not come back.
    pub(super) fn lose(&self, ranks: &[usize], reason: &str) {
        let mut meeting = self.lock();
        let reason = protocol::cut(reason).to_owned();
        let (&[rank, ..], ranks) = (ranks, ranks.to_vec()) else { return };
        match meeting.phase {
            Phase::Refused(_) => {}
            Phase::Gathering => self.refuse(&mut meeting, Refusal::Ended { rank, reason }),
            Phase::Open if meeting.lost.is_none() => {
                let abort = ToWorker::Abort { ranks: ranks.clone(), reason: reason.clone() };
                meeting.tell_all(&abort);
                meeting.lost = Some(Fault { ranks, what: reason });
            }
            Phase::Open => {}
        }
    }

    /// The supervisor of host `node` says how one of its ranks ended that met here as `group`.
    pub(super) fn hear_end(&self, group: &str, node: usize, rank: usize, reason: &str) {
        let is_known = group == protocol::group(&self.job, self.start);
        if is_known && self.ranks_of(node).contains(&rank) {
            self.lose(&[rank], reason);
        }
    }

    /// The connection of a rank has ended.
    pub(super) fn end(&self, rank: usize) {
        let mut meeting = self.lock();
        if let Some(worker) = meeting.workers.get_mut(rank).and_then(Option::as_mut) {
            worker.is_gone = true;
        }
    }

    /// Whether the connection of one of these has ended whose supervisor is another process, which
    /// knows why.
    pub(super) fn is_known_elsewhere(&self, ranks: &[usize]) -> bool {
        let meeting = self.lock();
        ranks.iter().any(|&rank| self.node_of(rank) > 0 && meeting.is_gone(rank))
    }

    /// These, and the ranks of other hosts that went with one of them: their connections have ended
    /// too, and none has said that it leaves. So it is when a whole host fails.
    pub(super) fn gone_with(&self, mut ranks: Vec<usize>) -> Vec<usize> {
        let meeting = self.lock();
        let gone = |rank: &usize| self.node_of(*rank) > 0 && meeting.is_gone(*rank);
        let hosts: BTreeSet<usize> =
            ranks.iter().filter(|rank| gone(rank)).map(|&rank| self.node_of(rank)).collect();
        let here = hosts.iter().flat_map(|&node| self.ranks_of(node));
        let has_left = |rank: &usize| meeting.workers[*rank].as_ref().is_some_and(|w| w.has_left);
        ranks.extend(here.filter(|rank| gone(rank) && !has_left(rank)));
        ranks.sort_unstable();
        ranks.dedup();
        ranks
    }

    pub(super) fn hear(&self, rank: usize, message: ToServer) {
        let mut meeting = self.lock();
        let Some(worker) = meeting.workers.get_mut(rank).and_then(Option::as_mut) else { return };
        match message {
            ToServer::Hello(_)
            | ToServer::Absent { .. }
            | ToServer::Ended { .. }
            | ToServer::Attend(_) => {}
            ToServer::Status { step } => worker.last_step = Some(step),
            ToServer::Bye => worker.has_left = true,
            ToServer::Follows | ToServer::Blame(_) => {
                worker.has_left = true;
                // As in [`Meeting::tell_all`].
                let _ = worker.outgoing.send(Outgoing::new(&ToWorker::Heard));
            }
        }
    }

    pub(super) fn has_left(&self, rank: usize) -> bool {
        let meeting = self.lock();
        meeting.workers.get(rank).and_then(Option::as_ref).is_some_and(|worker| worker.has_left)
    }
}

impl Meeting {
    /// Whether the connection of `rank` has ended.
    fn is_gone(&self, rank: usize) -> bool {
        self.workers.get(rank).and_then(Option::as_ref).is_some_and(|worker| worker.is_gone)
    }

    pub(super) fn tell_all(&self, message: &ToWorker) {
        let outgoing = Outgoing::new(message);
        for worker in self.workers.iter().flatten() {
            // A worker whose connection is gone needs no message.
            let _ = worker.outgoing.send(outgoing.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everyone_is_told_when_all_ranks_of_other_hosts_are_or_their_hosts_do_not_come() {
        let mut told = Told { world: 6, nodes: 3, ..Told::default() };
        // Whatever number of ranks one of them believes in.
        for (rank, world) in [(2, 6), (3, 8), (4, 6)] {
            told.rank(rank, world);
        }
        assert!(!told.is_everyone());
        let (ranks, absent) = (told.ranks.clone(), [2].into());
        let other = Told { world: 6, nodes: 3, ranks, absent };
        assert!(other.is_everyone());
        told.rank(5, 6);
        assert!(told.is_everyone());
        // As node 0 that does not start knows it.
        let mut told = Told { nodes: 2, ..Told::default() };
        assert!(!told.is_everyone());
        told.rank(2, 4);
        told.rank(3, 4);
        assert!(told.is_everyone());
    }
}
