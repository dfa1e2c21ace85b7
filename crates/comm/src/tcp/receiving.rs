//! The receiving half of a connection, a frame at a time: read straight into its place, and not
//! used before its checksum has been seen to be right.

use std::io::{self, ErrorKind, IoSliceMut, Read};

use super::frame::{self, HEADER_BYTES, Header, checked};
use super::progress::TcpCall;
use super::traffic::{Message, SLICES, Way};
use super::turn::{At, Turn};
use crate::error::Damage;
use crate::handshake::Key;
use crate::{CommError, Result};

pub(super) struct Receiving {
    pub at: At,
    /// Whether a frame of the present operation has come.
    pub has_begun: bool,
    pub payload_bytes: u64,
    /// Bytes of the present message, once its first frame has said so.
    total: Option<usize>,
    /// The present frame.
    frame: Frame,
}

/// A part of a message, as far as it has come.
struct Frame {
    bytes: [u8; HEADER_BYTES],
    /// Bytes of the header that have come.
    len: usize,
    /// Once all of them have, and are right.
    header: Option<Header>,
    /// Bytes of the payload that have come, and their checksum.
    got: usize,
    checksum: u32,
}

impl Default for Receiving {
    fn default() -> Receiving {
        let (at, frame) = (At::default(), Frame::default());
        Receiving { at, has_begun: false, payload_bytes: 0, total: None, frame }
    }
}

impl Default for Frame {
    fn default() -> Frame {
        Frame { bytes: [0; HEADER_BYTES], len: 0, header: None, got: 0, checksum: 0 }
    }
}

impl Receiving {
    /// Whether a frame has come in part.
    pub(super) fn is_open(&self) -> bool {
        self.frame.len > 0
    }

    /// Receives what the system has of the present frame; false if it has nothing now.
    pub(super) fn step(
        &mut self,
        peer: usize,
        stream: &mut impl Read,
        key: &Key,
        turn: &mut Turn,
    ) -> Result<bool> {
        let message = Message { peer, index: self.at.index };
        let call = turn.call_of(Way::In, message);
        // The length that a message announces holds for all of it.
        let expected = turn.traffic.bytes(Way::In, message).or(self.total);
        let most = turn.traffic.frame_bytes(Way::In, peer);
        // Without a header, what must come if the peer does the same.
        let of = |total: usize| most.min(total.saturating_sub(self.at.start));
        let length = match &self.frame.header {
            Some(header) => header.length as usize,
            None => expected.map_or(0, of),
        };
        let range = self.at.start + self.frame.got..self.at.start + length;
        let mut outcome = Ok((0, 0));
        turn.traffic.take(message, range, &mut |slices| {
            outcome = self.frame.read(stream, slices);
        })?;
        let payload = match outcome {
            Ok((read, payload)) if read > 0 => payload,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(true),
            other => {
                let error = other.err().unwrap_or_else(|| ErrorKind::UnexpectedEof.into());
                return Err(call.lost_by(peer, &error, turn.progress.job));
            }
        };
        self.payload_bytes += payload as u64;
        turn.progress.advance(payload);
        if self.frame.header.is_none() && self.frame.len == HEADER_BYTES {
            let header = self.check(peer, key, &call, expected)?;
            let length = header.length as usize;
            if length != of(header.total as usize) {
                return Err(call.mismatch(peer, &header));
            }
            self.frame.header = Some(header);
            self.total = Some(header.total as usize);
            self.has_begun = true;
        }
        if let Some(header) = self.frame.header.filter(|h| h.length as usize == self.frame.got) {
            self.finish(message, &call, &header, turn)?;
        }
        Ok(true)
    }

    /// The header that has come, if it is that of the next frame of this message.
    fn check(
        &self,
        peer: usize,
        key: &Key,
        call: &TcpCall,
        expected: Option<usize>,
    ) -> Result<Header> {
        let header = Header::decode(&self.frame.bytes);
        let header = header.ok_or_else(|| call.damaged(peer, Damage::Header))?;
        if header.token != call.token {
            return Err(call.lost(peer, "it sent a frame of another job"));
        }
        if header.number != self.at.frames as u32 {
            let (got, expected) = (header.number, self.at.frames as u32);
            return Err(call.damaged(peer, Damage::Turn { got, expected }));
        }
        if !frame::is_genuine(&self.frame.bytes, key, self.at.frames) {
            return Err(call.damaged(peer, Damage::Forged));
        }
        if !header.is_of_the_operation_of(&call.header()) {
            return Err(call.mismatch(peer, &header));
        }
        match expected.map(|expected| expected as u64) {
            Some(expected) if expected != header.total => {
                Err(CommError::Length { rank: peer, got: header.total, expected })
            }
            _ => Ok(header),
        }
    }

    /// All of a frame has come.
    fn finish(
        &mut self,
        message: Message,
        call: &TcpCall,
        header: &Header,
        turn: &mut Turn,
    ) -> Result<()> {
        let (start, end) = (self.at.start, self.at.start + header.length as usize);
        if self.frame.checksum != header.checksum {
            let damage = Damage::Payload { start: start as u64, end: end as u64 };
            return Err(call.damaged(message.peer, damage));
        }
        self.frame = Frame::default();
        self.total = self.total.filter(|&total| end < total);
        self.at.pass(end, header.total as usize);
        turn.traffic.came(message, start..end)?;
        turn.progress.part_done();
        Ok(())
    }
}

impl Frame {
    /// Reads what is missing of the header, and payload into `slices`; how many bytes, and how many
    /// of them are payload.
    fn read(
        &mut self,
        stream: &mut impl Read,
        slices: &mut [IoSliceMut<'_>],
    ) -> io::Result<(usize, usize)> {
        let (rest, count) = (HEADER_BYTES - self.len, slices.len());
        let mut all = [(); SLICES + 1].map(|()| IoSliceMut::new(&mut []));
        all[0] = IoSliceMut::new(&mut self.bytes[self.len..]);
        for (all, slice) in all[1..].iter_mut().zip(slices.iter_mut()) {
            *all = IoSliceMut::new(slice);
        }
        let from = usize::from(rest == 0);
        let read = stream.read_vectored(&mut all[from..=count])?;
        let of_header = read.min(rest);
        self.len += of_header;
        let payload = read - of_header;
        self.got += payload;
        let mut left = payload;
        for slice in slices {
            let filled = left.min(slice.len());
            self.checksum = checked(self.checksum, &slice[..filled]);
            left -= filled;
        }
        Ok((read, payload))
    }
}

#[cfg(test)]
mod tests {
    use super::super::progress::Progress;
    use super::super::rig;
    use super::super::traffic::Words;
    use super::*;
    use crate::Operation;
    use crate::job::Members;

    /// The outcome of a message of unknown length that comes like this.
    fn receive(stream: &[u8]) -> Result<Vec<u8>> {
        let (job, members) = (rig::job(1000), Members::all(0, 2));
        let (mut progress, mut all) = (Progress::new(&job, &members), vec![Vec::new(); 2]);
        let call = &rig::call(Operation::AllGatherBytes);
        let mut receiving = Receiving::default();
        receiving.at.begin(1);
        let mut stream = stream;
        while !receiving.at.is_done() {
            let traffic = &mut Words { mine: &[], to: None, all: &mut all };
            let mut turn = Turn { call, progress: &mut progress, traffic };
            receiving.step(1, &mut stream, &rig::key(), &mut turn)?;
        }
        Ok(all.swap_remove(1))
    }

    #[test]
    fn a_message_whose_length_changes_on_the_way_is_refused() {
        let call = rig::call(Operation::AllGatherBytes);
        let message: Vec<u8> = (0..600_000_u32).map(|i| i as u8).collect();
        assert_eq!(receive(&rig::frames(&call, 0, &message)).unwrap(), message);
        let (first, second) = message[..1 << 19].split_at(1 << 18);
        // Longer, so that it would never end; shorter, so that it would end early.
        for total in [1 << 62, 1 << 19] {
            let frames = [
                rig::frame(&call, 0, 600_000, first),
                rig::frame(&call, 1, total, second),
                rig::frame(&call, 2, 600_000, &message[1 << 19..]),
            ];
            let error = receive(&frames.concat()).unwrap_err();
            let is_it = matches!(error, CommError::Length { rank: 1, got, expected: 600_000 }
                if got == total);
            assert!(is_it, "{error}");
        }
    }
}
