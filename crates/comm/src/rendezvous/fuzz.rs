//! The readers of the control connection against streams that were changed at random.

use std::net::SocketAddr;

use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use tokio_util::codec::{Decoder, Encoder};

use super::codec::Codec;
use super::protocol::{self, Garbled, Hello, Refusal, ToServer, ToWorker};
use crate::Fault;
use crate::fuzz::{self, Draw};

fn text(draw: &mut Draw) -> String {
    "é?".repeat(draw.below(40))
}

fn ranks(draw: &mut Draw) -> Vec<usize> {
    (0..draw.below(50)).map(|_| draw.next() as usize).collect()
}

fn to_server(draw: &mut Draw) -> ToServer {
    let addr = |draw: &mut Draw| SocketAddr::from((draw.next().to_le_bytes().map(u16::from), 7));
    match draw.below(5) {
        0 => ToServer::Hello(Hello {
            job: text(draw),
            rank: draw.next() as usize,
            world: draw.below(9),
            version: text(draw),
            identity: (0..draw.below(6)).map(|_| (text(draw), text(draw))).collect(),
            listen: (draw.below(2) == 0).then(|| addr(draw)),
        }),
        1 => ToServer::Status { step: draw.next() },
        2 => ToServer::Blame(Fault { ranks: ranks(draw), what: text(draw) }),
        3 => ToServer::Absent { job: text(draw), node: draw.below(99), reason: text(draw) },
        _ => ToServer::Bye,
    }
}

fn to_worker(draw: &mut Draw) -> ToWorker {
    match draw.below(4) {
        0 => ToWorker::Joined {
            peers: (0..draw.below(40)).map(|_| ([127, 0, 0, 1], 4000).into()).collect(),
            start: draw.next(),
        },
        1 => ToWorker::Abort { rank: draw.below(99), reason: text(draw) },
        2 => ToWorker::Refused(Refusal::Missing {
            missing: ranks(draw),
            nodes: ranks(draw),
            timeout_ms: draw.next(),
            turned_away: (0..draw.below(4)).map(|_| text(draw)).collect(),
        }),
        _ => ToWorker::Refused(Refusal::Disagree {
            what: text(draw),
            groups: (0..draw.below(5)).map(|_| (text(draw), ranks(draw))).collect(),
        }),
    }
}

/// Makes the checksum at the end fit.
fn fit(message: &mut [u8]) {
    if let Some((checked, checksum)) = message.split_last_chunk_mut::<4>() {
        *checksum = crc_fast::crc32_iscsi(checked).to_le_bytes();
    }
}

/// Messages as they travel, changed; and whether the checksum of one was made to fit.
fn stream<T: Serialize>(draw: &mut Draw, make: fn(&mut Draw) -> T) -> (Vec<T>, Vec<u8>, bool) {
    let messages: Vec<T> = (0..1 + draw.below(3)).map(|_| make(draw)).collect();
    let (mut stream, mut is_forged) = (BytesMut::new(), false);
    for (index, message) in messages.iter().enumerate() {
        let mut bytes = protocol::encode(message, index == 0).to_vec();
        if draw.below(3) == 0 {
            is_forged = true;
            fuzz::mutate(&mut bytes, draw);
            fit(&mut bytes);
        }
        Codec.encode(bytes.into(), &mut stream).unwrap();
    }
    let mut stream = stream.to_vec();
    for _ in 0..draw.below(3) {
        fuzz::mutate(&mut stream, draw);
    }
    (messages, stream, is_forged)
}

/// What the reader makes of a stream that comes in parts: the messages up to the first that is
/// none.
fn read<T: for<'a> Deserialize<'a>>(stream: &[u8], draw: &mut Draw) -> Vec<T> {
    let (mut bytes, mut got, mut left) = (BytesMut::new(), Vec::new(), stream);
    loop {
        match Codec.decode(&mut bytes) {
            Ok(Some(frame)) => match protocol::decode(&frame, got.is_empty()) {
                Ok(message) => got.push(message),
                Err(Garbled::Stranger | Garbled::Protocol(_) | Garbled::Damaged) => return got,
            },
            Ok(None) if left.is_empty() => return got,
            Ok(None) => {
                let (now, later) = left.split_at((1 + draw.below(300)).min(left.len()));
                bytes.extend_from_slice(now);
                left = later;
            }
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::InvalidData);
                return got;
            }
        }
    }
}

fn round<T>(draw: &mut Draw, make: fn(&mut Draw) -> T)
where
    T: Serialize + for<'a> Deserialize<'a> + PartialEq,
{
    let (sent, stream, is_forged) = stream(draw, make);
    // What a length promises is not taken; what a list promises, for a megabyte at most.
    let bound = 64 * stream.len() + (2 << 20);
    let got: Vec<T> = fuzz::within(bound, || read(&stream, draw));
    let same = got.iter().zip(&sent).all(|(got, sent)| got == sent);
    // A message that was doubled or left out comes whole all the same.
    let is_one = |got: &T| sent.iter().any(|sent| sent == got);
    assert!(is_forged || same || got.iter().all(is_one), "another message than was sent");
}

#[test]
fn no_message_of_the_control_connection_does_harm() {
    fuzz::run("control", |draw| match draw.below(2) {
        0 => round(draw, to_server),
        _ => round(draw, to_worker),
    });
}

#[test]
fn whatever_comes_first_is_a_message_or_is_not() {
    fuzz::run("first bytes", |draw| {
        let bytes: Vec<u8> = (0..draw.below(200)).map(|_| draw.next() as u8).collect();
        let mut bytes = [b"MSTC", &4_u32.to_le_bytes()[..], &bytes].concat();
        fit(&mut bytes);
        let read = || {
            (protocol::decode::<ToServer>(&bytes, true), protocol::decode::<ToWorker>(&bytes, true))
        };
        drop(fuzz::within(2 << 20, read));
        let _ = Bytes::from(bytes);
    });
}
