//! A connection to one peer. Nothing here waits: what a socket does not take or have at once is
//! tried again when it is ready.

use std::io::{ErrorKind, Write};
use std::time::Duration;

use super::poll::Ready;
use super::receiving::Receiving;
use super::sending::Sending;
use super::traffic::{Message, Traffic, Way};
use super::turn::{At, Turn};
use crate::Result;
use crate::handshake::Keys;
use crate::tls::Stream;

/// A connection that does not block, between two that have proved themselves.
pub(super) struct Wire {
    pub stream: Stream,
    pub keys: Keys,
}

/// A connection that does not block, and how far both directions have come.
pub(super) struct Link {
    /// The peer's place.
    pub peer: usize,
    pub stream: Stream,
    pub keys: Keys,
    pub sending: Sending,
    pub receiving: Receiving,
    /// Whether trying may move something.
    pub ready: Ready,
}

impl Link {
    pub(super) fn new(peer: usize, Wire { stream, keys }: Wire) -> Link {
        let (sending, receiving) = (Sending::default(), Receiving::default());
        let ready = Ready { to_read: true, to_write: true };
        Link { peer, stream, keys, sending, receiving, ready }
    }

    /// At the beginning of an operation.
    pub(super) fn begin(&mut self, traffic: &dyn Traffic) {
        self.sending.at.begin(traffic.messages(Way::Out, self.peer));
        self.receiving.at.begin(traffic.messages(Way::In, self.peer));
        self.receiving.has_begun = false;
        self.ready = Ready { to_read: true, to_write: true };
    }

    /// Payload of the present operation both ways; 0 where that is not known.
    pub(super) fn expected(&self, traffic: &dyn Traffic) -> usize {
        let peer = self.peer;
        let of = |way| {
            let messages = 0..traffic.messages(way, peer);
            messages.map(|index| traffic.bytes(way, Message { peer, index })).sum::<Option<usize>>()
        };
        of(Way::Out).zip(of(Way::In)).map_or(0, |(sent, received)| sent + received)
    }

    /// Whether the peer is at the operation, as far as it has anything to say there.
    pub(super) fn has_come(&self) -> bool {
        self.receiving.has_begun || self.receiving.at.is_done()
    }

    /// Bytes that TLS holds back must go, too: nobody else sends them after the operation.
    pub(super) fn is_done(&self) -> bool {
        self.sending.at.is_done() && self.receiving.at.is_done() && !self.stream.is_pending()
    }

    /// The readiness to wait for.
    pub(super) fn wanted(&self, traffic: &dyn Traffic) -> Ready {
        let may = |way, at: &At, is_open: bool| {
            let message = Message { peer: self.peer, index: at.index };
            !at.is_done() && (is_open || traffic.may_begin(way, message, at.start))
        };
        Ready {
            to_read: may(Way::In, &self.receiving.at, self.receiving.is_open()),
            to_write: self.stream.is_pending()
                || may(Way::Out, &self.sending.at, self.sending.is_open()),
        }
    }

    /// How much longer than others the peer is waited for; `None` if it owes nothing now.
    pub(super) fn excuse(&self, traffic: &dyn Traffic) -> Option<Duration> {
        let wanted = self.wanted(traffic);
        let of = |way, at: &At| match at.is_done() {
            true => Duration::ZERO,
            false => traffic.excuse(way, Message { peer: self.peer, index: at.index }),
        };
        let to_read = wanted.to_read.then(|| of(Way::In, &self.receiving.at));
        let to_write = wanted.to_write.then(|| of(Way::Out, &self.sending.at));
        to_read.into_iter().chain(to_write).min()
    }

    /// Moves what can be moved of the present frame in this direction; whether something was.
    pub(super) fn step(&mut self, way: Way, turn: &mut Turn) -> Result<bool> {
        let wanted = self.wanted(turn.traffic);
        let Link { peer, stream, keys, sending, receiving, ready } = self;
        // Of TLS, parts of records count, too: the rest of one may take many packets.
        let before = stream.passed_bytes();
        let moved = match way {
            Way::Out if wanted.to_write && ready.to_write => {
                ready.to_write = match stream.is_pending() {
                    true => flush(*peer, stream, sending.at.index, turn)?,
                    false => sending.step(*peer, stream, &keys.send, turn)?,
                };
                ready.to_write
            }
            Way::In if wanted.to_read && ready.to_read => {
                ready.to_read = receiving.step(*peer, stream, &keys.receive, turn)?;
                ready.to_read
            }
            _ => false,
        };
        let has_passed = stream.passed_bytes() != before;
        if has_passed {
            turn.progress.advance(0);
        }
        Ok(moved || has_passed)
    }
}

/// Hands the system what TLS holds back; false if that takes no more now.
fn flush(peer: usize, stream: &mut Stream, index: usize, turn: &mut Turn) -> Result<bool> {
    match stream.flush() {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
        Err(error) => {
            let call = turn.call_of(Way::Out, Message { peer, index });
            Err(call.lost_by(peer, &error, turn.progress.job))
        }
    }
}
