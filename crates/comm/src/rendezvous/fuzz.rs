//! The readers of the control connection against streams that were changed at random.

use std::net::SocketAddr;

use bytes::{Buf, BytesMut};
use serde::{Deserialize, Serialize};
use tokio_util::codec::Decoder;

use super::attending::{Attend, Leave, Report};
use super::channel::{FromHost, ToHost};
use super::codec::Codec;
use super::protocol::{self, Hello, Refusal, Said, ToServer, ToWorker};
use crate::Fault;
use crate::fuzz::{self, Draw};
use crate::handshake::{Key, Seal};

fn text(draw: &mut Draw) -> String {
    "é?".repeat(draw.below(40))
}

fn pairs(draw: &mut Draw) -> Vec<(String, String)> {
    (0..draw.below(6)).map(|_| (text(draw), text(draw))).collect()
}

fn ranks(draw: &mut Draw) -> Vec<usize> {
    (0..draw.below(50)).map(|_| draw.next() as usize).collect()
}

fn to_server(draw: &mut Draw) -> ToServer {
    let addr = |draw: &mut Draw| SocketAddr::from((draw.next().to_le_bytes().map(u16::from), 7));
    match draw.below(7) {
        5 => ToServer::Attend(Attend {
            job: text(draw),
            node: draw.below(99),
            nodes: draw.below(99),
            session: draw.next(),
            incarnation: (draw.below(2) == 0).then(|| draw.next()),
            report: (draw.below(2) == 0).then(|| report(draw)),
            leave: (draw.below(2) == 0).then(|| leave(draw)),
        }),
        0 => ToServer::Hello(Hello {
            job: text(draw),
            rank: draw.next() as usize,
            world: draw.below(9),
            version: text(draw),
            node: (draw.below(2) == 0).then(|| (draw.below(9), draw.next() as usize)),
            identity: pairs(draw),
            entries: (0..draw.below(3)).map(|_| (text(draw), pairs(draw))).collect(),
            incarnation: draw.next(),
            listen: (draw.below(2) == 0).then(|| addr(draw)),
        }),
        1 => ToServer::Status { step: draw.next() },
        2 => ToServer::Blame(Fault { ranks: ranks(draw), what: text(draw) }),
        3 => ToServer::Absent { job: text(draw), node: draw.below(99), reason: text(draw) },
        4 => {
            let (node, rank) = (draw.below(99), draw.below(99));
            ToServer::Ended { group: text(draw), node, rank, reason: text(draw) }
        }
        _ => ToServer::Bye,
    }
}

fn report(draw: &mut Draw) -> Report {
    Report {
        incarnation: draw.next(),
        exit: draw.below(256) as u8,
        why: text(draw),
        step: (draw.below(2) == 0).then(|| draw.next()),
        has_met: draw.below(2) == 0,
        waits: draw.below(2) == 0,
        asked: (draw.below(2) == 0).then_some(75),
    }
}

fn leave(draw: &mut Draw) -> Leave {
    Leave { exit: draw.below(256) as u8, why: text(draw) }
}

fn from_host(draw: &mut Draw) -> FromHost {
    match draw.below(3) {
        0 => FromHost::Ended(report(draw)),
        1 => FromHost::Leave(leave(draw)),
        _ => FromHost::Beat,
    }
}

fn to_host(draw: &mut Draw) -> ToHost {
    match draw.below(6) {
        0 => ToHost::Start {
            incarnation: draw.next(),
            hosts: (0..draw.below(50)).map(|_| draw.below(99)).collect(),
        },
        1 => ToHost::Notice(text(draw)),
        2 => ToHost::End { exit: draw.below(256) as u8, why: text(draw) },
        3 => ToHost::Overtaken { incarnation: draw.next(), why: text(draw) },
        4 => ToHost::Refused(Refusal::NodeTaken { node: draw.below(99) }),
        _ => ToHost::Beat,
    }
}

fn to_worker(draw: &mut Draw) -> ToWorker {
    match draw.below(5) {
        4 => ToWorker::Hint(text(draw)),
        0 => ToWorker::Joined {
            peers: (0..draw.below(40)).map(|_| ([127, 0, 0, 1], 4000).into()).collect(),
            start: draw.next(),
        },
        1 => ToWorker::Abort { ranks: ranks(draw), reason: text(draw) },
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

fn seal() -> Seal {
    Seal::new(Key::new([3; 32]))
}

fn frame(said: &Said, seal: &mut Seal) -> Vec<u8> {
    let mut frame = said.frame(seal);
    frame.copy_to_bytes(frame.remaining()).into()
}

/// Messages as they travel, changed; and whether one was changed before its tag was made.
fn stream<T: Serialize>(draw: &mut Draw, make: fn(&mut Draw) -> T) -> (Vec<T>, Vec<u8>, bool) {
    let messages: Vec<T> = (0..1 + draw.below(3)).map(|_| make(draw)).collect();
    let (mut stream, mut is_forged, mut seal) = (Vec::new(), false, seal());
    for message in &messages {
        let mut bytes = postcard::to_stdvec(message).unwrap();
        if draw.below(3) == 0 {
            is_forged = true;
            fuzz::mutate(&mut bytes, draw);
        }
        stream.extend(frame(&Said::of_bytes(bytes), &mut seal));
    }
    for _ in 0..draw.below(3) {
        fuzz::mutate(&mut stream, draw);
    }
    (messages, stream, is_forged)
}

/// The messages that the reader finds in a stream that comes in parts, up to the first that is
/// none.
fn read<T: for<'a> Deserialize<'a>>(stream: &[u8], draw: &mut Draw) -> Vec<T> {
    let (mut bytes, mut got, mut left) = (BytesMut::new(), Vec::new(), stream);
    let mut seal = seal();
    loop {
        match Codec.decode(&mut bytes) {
            Ok(Some(frame)) => match protocol::open(&frame, &mut seal) {
                Some(message) => got.push(message),
                None => return got,
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
    // Bytes that a length promises are not allocated; those that a list promises, for a megabyte at
    // most.
    let bound = 64 * stream.len() + (2 << 20);
    let got: Vec<T> = fuzz::within(bound, || read(&stream, draw));
    // Tags are of a place in the stream: nothing is doubled or left out.
    let same = got.iter().zip(&sent).all(|(got, sent)| got == sent);
    assert!(is_forged || same, "another message than was sent");
}

#[test]
fn no_message_of_the_control_connection_does_harm() {
    fuzz::run("control", |draw| match draw.below(4) {
        0 => round(draw, to_server),
        1 => round(draw, to_worker),
        2 => round(draw, from_host),
        _ => round(draw, to_host),
    });
}

#[test]
fn whatever_has_a_tag_is_a_message_or_is_not() {
    fuzz::run("random messages", |draw| {
        let bytes: Vec<u8> = (0..draw.below(200)).map(|_| draw.next() as u8).collect();
        let frame = frame(&Said::of_bytes(bytes), &mut seal());
        let read = || {
            let body = &frame[4..];
            let to_server = protocol::open::<ToServer>(body, &mut seal());
            let hosts = protocol::open::<FromHost>(body, &mut seal());
            let to_host = protocol::open::<ToHost>(body, &mut seal());
            (to_server, protocol::open::<ToWorker>(body, &mut seal()), hosts, to_host)
        };
        drop(fuzz::within(2 << 20, read));
    });
}
