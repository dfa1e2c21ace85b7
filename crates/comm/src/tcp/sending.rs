//! The sending half of a connection, a frame at a time: header and payload in one call of the
//! system, from where the payload lies.

use std::io::{self, ErrorKind, IoSlice, Write};

use super::frame::{HEADER_BYTES, Header, checked};
use super::traffic::{Message, SLICES, Way};
use super::turn::{At, Turn};
use crate::Result;
use crate::handshake::Key;

#[derive(Default)]
pub(super) struct Sending {
    pub at: At,
    frame: Option<Frame>,
    pub header_bytes: u64,
    pub payload_bytes: u64,
}

/// A part of a message that is on its way.
struct Frame {
    /// Bytes of the message.
    start: usize,
    end: usize,
    /// Up to where the payload is summed, and its checksum so far.
    summed: usize,
    checksum: u32,
    /// Once all of the payload is summed.
    header: Option<[u8; HEADER_BYTES]>,
    /// Bytes that the system has taken, of header and payload.
    written: usize,
}

impl Sending {
    /// Whether a frame is on its way.
    pub(super) fn is_open(&self) -> bool {
        self.frame.is_some()
    }

    /// Sends what the system takes of the present frame; false if it takes nothing now.
    pub(super) fn step(
        &mut self,
        peer: usize,
        stream: &mut impl Write,
        key: &Key,
        turn: &mut Turn,
    ) -> Result<bool> {
        let message = Message { peer, index: self.at.index };
        let total = turn.traffic.bytes(Way::Out, message).unwrap_or(0);
        let end = total.min(self.at.start + turn.traffic.frame_bytes(Way::Out, peer));
        let frame = self.frame.get_or_insert_with(|| Frame::new(self.at.start, end));
        let call = turn.call_of(Way::Out, message);
        let count = self.at.frames;
        let seal = |checksum, length: usize| {
            let (total, length, number) = (total as u64, length as u32, count as u32);
            Header { total, length, number, checksum, ..call.header() }.encode(key, count)
        };
        let mut outcome = None;
        while outcome.is_none() {
            turn.traffic.give(message, frame.next()..end, &mut |slices| {
                outcome = frame.push(stream, slices, seal);
            })?;
        }
        let written = match outcome.unwrap_or(Ok(0)) {
            Ok(written) if written > 0 => written,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(true),
            other => {
                let error = other.err().unwrap_or_else(|| ErrorKind::WriteZero.into());
                return Err(call.lost_by(peer, &error, turn.progress.job));
            }
        };
        let payload = frame.advance(written);
        self.payload_bytes += payload as u64;
        self.header_bytes += (written - payload) as u64;
        turn.progress.advance(payload);
        if frame.is_through() {
            self.frame = None;
            self.at.pass(end, total);
            turn.progress.part_done();
        }
        Ok(true)
    }
}

impl Frame {
    fn new(start: usize, end: usize) -> Frame {
        Frame { start, end, summed: start, checksum: 0, header: None, written: 0 }
    }

    /// The byte of the message from where on the payload is needed.
    fn next(&self) -> usize {
        match self.header {
            None => self.summed,
            Some(_) => self.start + self.written.saturating_sub(HEADER_BYTES),
        }
    }

    fn is_through(&self) -> bool {
        self.written == HEADER_BYTES + self.end - self.start
    }

    /// Sums payload from [`Frame::next`] on, or writes it if all is summed: `None` if nothing was
    /// tried.
    fn push(
        &mut self,
        stream: &mut impl Write,
        slices: &[IoSlice<'_>],
        seal: impl Fn(u32, usize) -> [u8; HEADER_BYTES],
    ) -> Option<io::Result<usize>> {
        if self.header.is_none() {
            let is_from_start = self.summed == self.start;
            for slice in slices {
                self.checksum = checked(self.checksum, slice);
                self.summed += slice.len();
            }
            if self.summed < self.end {
                return None;
            }
            self.header = Some(seal(self.checksum, self.end - self.start));
            if !is_from_start {
                return None;
            }
        }
        let header = self.header.as_ref()?;
        let mut all = [IoSlice::new(&[]); SLICES + 1];
        all[0] = IoSlice::new(&header[self.written.min(HEADER_BYTES)..]);
        all[1..=slices.len()].copy_from_slice(slices);
        let from = usize::from(all[0].is_empty());
        Some(stream.write_vectored(&all[from..=slices.len()]))
    }

    /// Counts what was written; how much of it was payload.
    fn advance(&mut self, written: usize) -> usize {
        let before = self.written.max(HEADER_BYTES);
        self.written += written;
        self.written.max(HEADER_BYTES) - before
    }
}
