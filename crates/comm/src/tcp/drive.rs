//! The loop that moves an operation: one thread, the connections to all peers, both ways at once.
//!
//! ```text
//!   ┌─▶ send to each peer what its socket takes ─▶ receive from each what its socket has ─┐
//!   │                                                                                     ▼
//!   └── poll: at once while something moves, then for a while, then asleep ◀── not all through
//! ```
//!
//! No connection holds up another, so operations of all ranks together cannot lock up. Asleep, the
//! thread wakes every [`patience::LOOK`] to see whether the job is given up or a peer stands still.

use std::time::Duration;

use super::link::{Link, Turn};
use super::poll::{Polls, Ready};
use super::progress::{Call, Progress};
use super::traffic::{Traffic, Way};
use crate::{CommError, Operation, Result, patience};

/// Looks at the sockets before the first sleep, where every rank of this host has a core: about
/// 100 µs, less than a peer needs to sum a megabyte and more than it takes to wake a thread.
const LOOKS: usize = 200;

/// How a rank waits.
#[derive(Default)]
pub(super) struct Waiting {
    polls: Polls,
    /// Looks before a sleep.
    looks: usize,
}

impl Waiting {
    /// Of a rank that shares its host with `ranks` ranks, itself among them.
    pub(super) fn new(ranks: usize) -> Waiting {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        // Where ranks outnumber cores, the one that is waited for may need this one's.
        Waiting { polls: Polls::default(), looks: if ranks <= cores { LOOKS } else { 0 } }
    }

    /// Returns when a socket has become ready for something that is wanted of it, or after `limit`:
    /// whether one has.
    fn poll(
        &mut self,
        links: &mut [Option<Link>],
        traffic: &dyn Traffic,
        limit: Duration,
    ) -> Result<bool> {
        let waits = |link: &Link| {
            let wanted = link.wanted(traffic);
            Ready {
                to_read: wanted.to_read && !link.ready.to_read,
                to_write: wanted.to_write && !link.ready.to_write,
            }
        };
        self.polls.clear();
        for link in links.iter().flatten() {
            self.polls.add(&link.stream, waits(link));
        }
        if limit.is_zero() && self.polls.is_empty() {
            return Ok(true);
        }
        let count = self.polls.wait(limit).map_err(CommError::Runtime)?;
        for (link, ready) in links.iter_mut().flatten().zip(self.polls.ready()) {
            link.ready.to_read |= ready.to_read;
            link.ready.to_write |= ready.to_write;
        }
        Ok(count > 0)
    }
}

/// Moves all messages of an operation.
///
/// # Errors
/// Peers that are lost, do something else or stand still; damaged frames; the job is given up.
pub(super) fn drive(
    links: &mut [Option<Link>],
    waiting: &mut Waiting,
    call: &Call,
    progress: &mut Progress<'_>,
    traffic: &mut dyn Traffic,
) -> Result<()> {
    for link in links.iter_mut().flatten() {
        link.begin(traffic);
        progress.expect(link.expected(traffic));
    }
    traffic.begin()?;
    let mut looks = 0;
    loop {
        let mut moved = false;
        for way in [Way::Out, Way::In] {
            for link in links.iter_mut().flatten() {
                moved |= link.step(way, &mut Turn { call, progress, traffic })?;
            }
        }
        // What is through stays so, even if the job is given up meanwhile.
        if links.iter().flatten().all(Link::is_done) {
            return Ok(());
        }
        progress.job.revocation().check()?;
        looks = if moved { 0 } else { looks + 1 };
        if moved || looks <= waiting.looks {
            waiting.poll(links, traffic, Duration::ZERO)?;
            continue;
        }
        progress.before_sleep();
        if !waiting.poll(links, traffic, patience::LOOK)? {
            progress.after_sleep(call, missing(links, call.operation))?;
        }
    }
}

/// The places of the peers that have not begun; if all have, of those that have not sent all; if
/// all have, of those that have not taken all. In an exchange peers do not wait for each other:
/// each is awaited until its own messages are through.
fn missing(
    links: &[Option<Link>],
    operation: Operation,
) -> impl Iterator<Item = usize> + Clone + '_ {
    let stages: [fn(&Link) -> bool; 3] = [
        |link| !link.receiving.has_begun,
        |link| !link.receiving.at.is_done(),
        |link| !link.is_done(),
    ];
    let mut candidates = match operation {
        Operation::Exchange => stages[2..].iter(),
        _ => stages.iter(),
    };
    let is_met = |stage: &&fn(&Link) -> bool| links.iter().flatten().any(**stage);
    let stage = candidates.find(is_met).unwrap_or(&stages[2]);
    let stage = *stage;
    links.iter().flatten().filter(move |link| stage(link)).map(|link| link.peer)
}
