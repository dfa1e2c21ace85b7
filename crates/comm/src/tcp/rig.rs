//! A rig for tests of a link: a job without connections, and frames as a peer would send them.

use std::ops::Range;
use std::time::Instant;

use super::frame::{FRAME_BYTES, HEADER_BYTES, Header};
use super::progress::TcpCall;
use crate::Operation;
use crate::handshake::{Key, Keys};
use crate::job::{Job, Moments, Settings};

/// A clock, and ranks that never get on.
struct Still(Instant);

impl Moments for Still {
    fn now_ms(&self) -> u64 {
        u64::try_from(self.0.elapsed().as_millis()).map_or(u64::MAX, |ms| ms + 1)
    }

    fn of(&self, _: usize) -> u64 {
        0
    }

    fn advance(&self, _: usize, _: u64) {}
}

/// Rank 0 of two.
pub(super) fn job(timeout_ms: u64) -> Job {
    let settings = Settings { pulse: || 0, ..Settings::new(timeout_ms) };
    Job::new(0, 2, settings, Box::new(Still(Instant::now())))
}

pub(super) fn call(operation: Operation) -> TcpCall {
    TcpCall { operation, token: 7, sequence: 3, digest: 9 }
}

pub(super) fn key() -> Key {
    Key::new([3; 32])
}

/// The same in both directions.
pub(super) fn keys() -> Keys {
    Keys { send: key(), receive: key() }
}

/// A frame with these bytes of a message of `total` bytes.
pub(super) fn frame(call: &TcpCall, number: u32, total: u64, payload: &[u8]) -> Vec<u8> {
    let (length, checksum) = (payload.len() as u32, crc_fast::crc32_iscsi(payload));
    let header = Header { total, length, number, checksum, ..call.header() };
    [&header.encode(&key(), number.into())[..], payload].concat()
}

/// A message in frames, the first of which has this number.
pub(super) fn frames(call: &TcpCall, first: u32, message: &[u8]) -> Vec<u8> {
    let total = message.len() as u64;
    let parts = message.chunks(FRAME_BYTES).zip(first..);
    match message.is_empty() {
        true => frame(call, first, 0, &[]),
        false => parts.flat_map(|(part, number)| frame(call, number, total, part)).collect(),
    }
}

/// Where the frames of a stream lie, headers among them.
pub(super) fn places(stream: &[u8]) -> Vec<Range<usize>> {
    let (mut places, mut at) = (Vec::new(), 0);
    while let Some(header) = stream.get(at..at + HEADER_BYTES) {
        let header = header.first_chunk().and_then(Header::decode);
        let end = at + HEADER_BYTES + header.map_or(0, |header| header.length as usize);
        places.push(at..end);
        at = end;
    }
    places
}
