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

use std::time::{Duration, Instant};

use device::trace::now_ns;

use super::link::{Link, Turn};
use super::poll::{Polls, Ready};
use super::progress::{Call, Progress};
use super::traffic::{Traffic, Way};
use crate::{CommError, Operation, Result, meter, patience};

/// Most looks at the sockets before a sleep, where every rank of this host has a core: about 50 µs,
/// more than it takes to wake a thread.
const LOOKS: usize = 200;
/// A sleep that ends so soon after looks that saw nothing: the peer may have needed this core.
const QUICK: Duration = Duration::from_micros(200);
/// After so many of them it is tried again whether looking helps.
const TRY_AGAIN: u32 = 16;

/// How a rank waits. To look pays where the peer works on another core meanwhile, and holds it up
/// where the system has put both on one, as it does when others load the machine; nothing tells
/// which of the two it is but whether looks see something.
#[derive(Default)]
pub(super) struct Waiting {
    polls: Polls,
    most: usize,
    /// Looks before the next sleep.
    looks: usize,
    /// Sleeps that ended soon.
    quick: u32,
}

impl Waiting {
    /// Of a rank that shares its host with `ranks` ranks, itself among them.
    pub(super) fn new(ranks: usize) -> Waiting {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        // Where ranks outnumber cores, the one that is waited for may need this one's.
        let most = if ranks <= cores { LOOKS } else { 0 };
        Waiting { most, looks: most, ..Waiting::default() }
    }

    /// Looks have seen something.
    fn looked_well(&mut self) {
        self.looks = (2 * self.looks).min(self.most);
    }

    /// After looks that have seen nothing, something came in so long a sleep.
    fn slept(&mut self, took: Duration) {
        if took < QUICK {
            self.quick = self.quick.wrapping_add(1);
            let is_due = self.quick.is_multiple_of(TRY_AGAIN);
            self.looks = if is_due { self.most / 4 } else { self.looks / 4 };
        }
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
    let (mut looks, begin_ns, mut all_came) = (0, now_ns(), false);
    loop {
        let mut moved = false;
        for way in [Way::Out, Way::In] {
            for link in links.iter_mut().flatten() {
                moved |= link.step(way, &mut Turn { call, progress, traffic })?;
            }
        }
        if !all_came && links.iter().flatten().all(Link::has_come) {
            all_came = true;
            meter::waited_since(begin_ns);
        }
        // What is through stays so, even if the job is given up meanwhile.
        if links.iter().flatten().all(Link::is_done) {
            return Ok(());
        }
        progress.job.revocation().check()?;
        looks = if moved { 0 } else { looks + 1 };
        if moved || looks <= waiting.looks {
            if waiting.poll(links, traffic, Duration::ZERO)? && !moved {
                waiting.looked_well();
            }
            continue;
        }
        progress.before_sleep();
        let since = Instant::now();
        match waiting.poll(links, traffic, patience::LOOK)? {
            true => waiting.slept(since.elapsed()),
            false => progress.after_sleep(call, missing(links, call.operation))?,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_that_hold_the_peer_up_become_few_and_are_tried_again() {
        let mut waiting = Waiting { most: 64, looks: 64, ..Waiting::default() };
        waiting.slept(Duration::from_secs(1));
        assert_eq!(waiting.looks, 64, "a peer that comes late needed no core of ours");
        let soon = Duration::from_micros(5);
        (0..4).for_each(|_| waiting.slept(soon));
        assert_eq!(waiting.looks, 0);
        (4..TRY_AGAIN).for_each(|_| waiting.slept(soon));
        assert_eq!(waiting.looks, 16);
        (0..9).for_each(|_| waiting.looked_well());
        assert_eq!(waiting.looks, 64);
        let mut crowded = Waiting::default();
        (0..TRY_AGAIN).for_each(|_| crowded.slept(soon));
        crowded.looked_well();
        assert_eq!(crowded.looks, 0);
    }
}
