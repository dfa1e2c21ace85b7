//! The reader of frames against streams that were changed at random, with checksums that fit and
//! with such as do not, cut anywhere: no panic, no memory beyond what came, and no message that is
//! taken for whole and is not what was sent.

use std::io::{Error, ErrorKind, IoSliceMut, Read};

use super::frame::{FRAME_BYTES, HEADER_BYTES, Header};
use super::progress::Progress;
use super::receiving::Receiving;
use super::rig;
use super::traffic::{Message, Take, Traffic, Way, Words};
use super::turn::Turn;
use crate::fuzz::{self, Draw};
use crate::job::{Job, Members};
use crate::{CommError, Operation, Result};

/// A stream that has come in part at any time.
struct Cut<'a> {
    left: &'a [u8],
    draw: &'a mut Draw,
}

impl Read for Cut<'_> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        self.read_vectored(&mut [IoSliceMut::new(into)])
    }

    fn read_vectored(&mut self, into: &mut [IoSliceMut<'_>]) -> std::io::Result<usize> {
        let most = match self.draw.below(8) {
            0 => return Err(ErrorKind::Interrupted.into()),
            1 => 1 + self.draw.below(7),
            2 => 1 + self.draw.below(2 * HEADER_BYTES),
            _ => usize::MAX,
        };
        let (now, _) = self.left.split_at(self.left.len().min(most));
        let (mut now, mut count) = (now, 0);
        for slice in into {
            count += now.read(slice)?;
        }
        self.left = &self.left[count..];
        // An end here would be a lost peer, and wait for its reason.
        if count == 0 { Err(Error::from(ErrorKind::WouldBlock)) } else { Ok(count) }
    }
}

/// Messages of known lengths.
struct Known<'a> {
    lengths: &'a [usize],
    got: Vec<Vec<u8>>,
}

impl Traffic for Known<'_> {
    fn messages(&self, _: Way, _: usize) -> usize {
        self.lengths.len()
    }

    fn bytes(&self, _: Way, message: Message) -> Option<usize> {
        Some(self.lengths[message.index])
    }

    fn give(&self, _: Message, _: std::ops::Range<usize>, _: super::traffic::Give) -> Result<()> {
        Ok(())
    }

    fn take(&mut self, message: Message, bytes: std::ops::Range<usize>, go: Take) -> Result<()> {
        go(&mut [IoSliceMut::new(&mut self.got[message.index][bytes])]);
        Ok(())
    }
}

/// The messages sent, and how they are received.
struct Case {
    messages: Vec<Vec<u8>>,
    are_known: bool,
    operation: Operation,
}

impl Case {
    fn new(draw: &mut Draw) -> Case {
        let are_known = draw.below(2) == 0;
        let count = if are_known { 1 + draw.below(4) } else { 1 };
        let lengths = [0, 1, 100, 5000, FRAME_BYTES - 1, FRAME_BYTES, FRAME_BYTES + 1, 700_000];
        let message = |draw: &mut Draw| {
            let short = draw.below(8) > 0;
            let length = lengths[draw.below(if short { 4 } else { lengths.len() })];
            let byte = draw.below(256);
            (0..length).map(|at| (at * 7 + byte) as u8).collect()
        };
        let messages = (0..count).map(|_| message(draw)).collect();
        let operation = Operation::ALL[draw.below(Operation::ALL.len())];
        Case { messages, are_known, operation }
    }

    fn stream(&self) -> Vec<u8> {
        let (call, mut stream, mut number) = (rig::call(self.operation), Vec::new(), 0);
        for message in &self.messages {
            stream.extend(rig::frames(&call, number, message));
            number = rig::places(&stream).len() as u32;
        }
        stream
    }

    /// The messages that the reader finds in a stream; none where more would have to come.
    fn read(&self, job: &Job, stream: &mut Cut) -> Result<Option<Vec<Vec<u8>>>> {
        let members = Members::all(0, 2);
        let (mut progress, call) = (Progress::new(job, &members), &rig::call(self.operation));
        let lengths: Vec<usize> = self.messages.iter().map(Vec::len).collect();
        let got = lengths.iter().map(|&length| vec![0; length]).collect();
        let mut known = Known { lengths: &lengths, got };
        let mut all = vec![Vec::new(); 2];
        let mut receiving = Receiving::default();
        receiving.at.begin(self.messages.len());
        loop {
            let mut words = Words { mine: &[], to: None, all: &mut all };
            let traffic: &mut dyn Traffic = if self.are_known { &mut known } else { &mut words };
            let mut turn = Turn { call, progress: &mut progress, traffic };
            if !receiving.step(1, stream, &rig::key(), &mut turn)? {
                return Ok(None);
            }
            if receiving.at.is_done() {
                return Ok(Some(if self.are_known { known.got } else { all.split_off(1) }));
            }
        }
    }
}

/// Changes a field of a header, and makes its checksum fit, and its tag.
fn forge(stream: &mut [u8], draw: &mut Draw) {
    let places = rig::places(stream);
    let count = (!places.is_empty()).then(|| draw.below(places.len()));
    let place = count.map(|count| places[count].start);
    let header = place.and_then(|start| stream.get_mut(start..));
    let Some(bytes) = header.and_then(|header| header.first_chunk_mut::<HEADER_BYTES>()) else {
        return;
    };
    let Some(mut header) = Header::decode(bytes) else { return };
    let near = |value: u64, draw: &mut Draw| match draw.below(4) {
        0 => value.wrapping_add(1),
        1 => value.wrapping_sub(1),
        2 => draw.next(),
        _ => [0, u64::MAX, 1 << 32, 1 << 63][draw.below(4)],
    };
    match draw.below(8) {
        0 => header.operation = near(header.operation.into(), draw) as u32,
        1 => header.token = near(header.token, draw),
        2 => header.sequence = near(header.sequence, draw),
        3 => header.digest = near(header.digest, draw),
        4 => header.total = near(header.total, draw),
        5 => header.length = near(header.length.into(), draw) as u32,
        6 => header.number = near(header.number.into(), draw) as u32,
        _ => header.checksum = near(header.checksum.into(), draw) as u32,
    }
    *bytes = header.encode(&rig::key(), count.unwrap_or_default() as u64);
}

#[test]
fn no_stream_of_frames_does_harm() {
    let mut counts = [0_u64; 3];
    fuzz::run("frames", |draw| {
        let (job, case) = (rig::job(1000), Case::new(draw));
        let mut stream = case.stream();
        let mut is_forged = false;
        for _ in 0..draw.below(4) {
            match draw.below(2) {
                0 => fuzz::mutate(&mut stream, draw),
                _ => {
                    is_forged = true;
                    forge(&mut stream, draw);
                }
            }
        }
        let expected = case.messages.iter().map(Vec::len).sum::<usize>();
        let bound = 8 * (stream.len() + expected) + (64 << 10);
        let mut cut = Cut { left: &stream, draw };
        let read = fuzz::within(bound, || case.read(&job, &mut cut));
        match read {
            Ok(Some(got)) => {
                assert!(is_forged || got == case.messages, "another message than was sent");
                counts[0] += 1;
            }
            Ok(None) => counts[1] += 1,
            Err(
                CommError::Damaged { rank: 1, .. }
                | CommError::Mismatch { rank: 1, .. }
                | CommError::Length { rank: 1, .. }
                | CommError::PeerLost { rank: 1, .. },
            ) => counts[2] += 1,
            Err(other) => panic!("an error of another kind: {other}"),
        }
    });
    assert!(counts.iter().all(|&count| count > 0), "whole, cut, refused: {counts:?}");
}
