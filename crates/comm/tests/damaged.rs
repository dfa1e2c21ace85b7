//! A way between two ranks that does harm to one frame: whoever meets it says which peer, which
//! operation and which number it was, and both ranks end within the deadline.

mod common;

use std::io::{Read, Result as Io, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use comm::tcp::HEADER_BYTES;
use comm::{CommError, Damage, Op, Operation, P2p, World};
use common::control;
use device::{DType, Device};

/// Long enough for a busy machine, and what a test of a frame that never comes takes.
const TIMEOUT_MS: u64 = 3_000;
/// Bytes of the message between the ranks: several frames.
const BYTES: usize = 1 << 20;

/// A fault of one frame.
#[derive(Debug, Clone, Copy)]
enum Harm {
    /// A bit of the payload, by its byte, or of the header.
    FlipPayload(usize),
    FlipHeader(usize),
    /// Without its last bytes.
    Truncate,
    /// Only half of it, and then a reset.
    Reset,
    Replay,
    Drop,
    /// So late that it is no harm.
    Delay,
    /// Later than the timeout.
    Stall,
    /// A byte of the header becomes another, and its checksum fits.
    Forge(usize),
    /// It and the next one change places, and their numbers with them.
    Swap,
    /// As [`Harm::Replay`], with the number that comes next.
    ReplayNumbered,
}

/// Which frames are harmed: those from rank 1 of this operation, all before the `nth` being spared.
#[derive(Clone, Copy)]
struct Target {
    operation: Operation,
    nth: usize,
    harm: Harm,
}

fn word(bytes: &[u8], at: usize) -> usize {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
}

/// Of a frame on its connection.
const NUMBER: std::ops::Range<usize> = 44..48;
/// Of the header up to its tag.
const CHECKSUM: std::ops::Range<usize> = 52..56;

fn read_frame(from: &mut TcpStream) -> Io<Vec<u8>> {
    let mut frame = vec![0; HEADER_BYTES];
    from.read_exact(&mut frame)?;
    let length = word(&frame, 40);
    frame.resize(HEADER_BYTES + length, 0);
    from.read_exact(&mut frame[HEADER_BYTES..])?;
    Ok(frame)
}

/// Makes the checksum of a header right, which anyone can.
fn fit(frame: &mut [u8]) {
    let checksum = crc_fast::crc32_iscsi(&frame[..CHECKSUM.start]).to_le_bytes();
    frame[CHECKSUM].copy_from_slice(&checksum);
}

/// Passes frames on, one of them with harm.
fn pass_frames(mut from: TcpStream, mut to: TcpStream, target: Target) -> Io<()> {
    let mut seen = 0;
    loop {
        let mut frame = read_frame(&mut from)?;
        let length = frame.len() - HEADER_BYTES;
        let is_it = word(&frame, 4) == target.operation as usize && seen == target.nth;
        seen += usize::from(word(&frame, 4) == target.operation as usize);
        if !is_it {
            to.write_all(&frame)?;
            continue;
        }
        seen = usize::MAX;
        match target.harm {
            Harm::FlipPayload(at) => frame[HEADER_BYTES + at % length] ^= 16,
            Harm::FlipHeader(at) => frame[at % HEADER_BYTES] ^= 2,
            Harm::Truncate => frame.truncate(frame.len() - 5),
            Harm::Reset => {
                to.write_all(&frame[..frame.len() / 2])?;
                socket2::SockRef::from(&to).set_linger(Some(Duration::ZERO))?;
                // Whoever passes on what comes back lets go of it, too.
                to.shutdown(Shutdown::Read)?;
                std::thread::sleep(Duration::from_millis(50));
                return Ok(());
            }
            Harm::Replay => to.write_all(&frame)?,
            Harm::Drop => continue,
            Harm::Forge(at) => {
                frame[at] ^= 4;
                fit(&mut frame);
            }
            Harm::Swap => {
                let mut next = read_frame(&mut from)?;
                for at in NUMBER {
                    std::mem::swap(&mut frame[at], &mut next[at]);
                }
                [&mut frame, &mut next].into_iter().for_each(|frame| fit(frame));
                to.write_all(&next)?;
            }
            Harm::ReplayNumbered => {
                to.write_all(&frame)?;
                frame[NUMBER.start] += 1;
                fit(&mut frame);
            }
            Harm::Delay => std::thread::sleep(Duration::from_millis(TIMEOUT_MS / 6)),
            Harm::Stall => std::thread::sleep(Duration::from_millis(3 * TIMEOUT_MS)),
        }
        to.write_all(&frame)?;
        seen = usize::MAX;
    }
}

/// As they come.
fn pass_bytes(mut from: TcpStream, mut to: TcpStream) {
    let _ = std::io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
}

/// An address that leads to `addr`, past someone who does harm to what is said on connections of
/// groups.
fn harmful_way_to(addr: SocketAddr, target: Target) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let way = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for inner in listener.incoming() {
            std::thread::spawn(move || -> Io<()> {
                let (mut inner, mut outer) = (inner?, TcpStream::connect(addr)?);
                let back = (outer.try_clone()?, inner.try_clone()?);
                std::thread::spawn(move || pass_bytes(back.0, back.1));
                let (mut hail, mut proof) = ([0; 40], [0; 64]);
                inner.read_exact(&mut hail)?;
                outer.write_all(&hail)?;
                inner.read_exact(&mut proof)?;
                outer.write_all(&proof)?;
                // The purpose of the connection; groups come after everything else.
                let is_of_a_group = word(&proof, 24) >= 256;
                match is_of_a_group {
                    true => pass_frames(inner, outer, target)?,
                    false => pass_bytes(inner, outer),
                }
                Ok(())
            });
        }
    });
    way
}

/// The results of both ranks for operations with harm on their way from rank 1 to rank 0.
fn harmed(target: Target, body: fn(&World) -> comm::Result<()>) -> [comm::Result<()>; 2] {
    let mut backends = common::backends("tcp", 2);
    if let comm::Backend::Tcp { peers, .. } = &mut backends[1] {
        peers[0] = harmful_way_to(peers[0], target);
    }
    let results = std::thread::scope(|scope| {
        let ranks = backends.into_iter().enumerate().map(|(rank, backend)| {
            scope.spawn(move || {
                let settings = common::settings(TIMEOUT_MS);
                let world = comm::connect_with(backend, rank, 2, settings).unwrap();
                body(&world).and_then(|()| control(&world).barrier())
            })
        });
        let ranks: Vec<_> = ranks.collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect::<Vec<_>>()
    });
    results.try_into().unwrap()
}

/// Rank 1 sends three messages of several frames.
fn messages(world: &World) -> comm::Result<()> {
    let device = Device::cpu(1)?;
    let group = world.group(&device)?;
    let tensor = device.zeros(&[BYTES], DType::U8)?;
    let ones = vec![1 + world.rank() as u8; BYTES];
    device.stream().copy_in(&tensor, &ones)?;
    for _ in 0..3 {
        let tensor = tensor.clone();
        let message = match world.rank() {
            0 => P2p::Receive { from: 1, tensor },
            _ => P2p::Send { to: 0, tensor },
        };
        group.run(&device.stream(), Op::Exchange(vec![message]))?;
    }
    if world.rank() == 0 {
        assert_eq!(device.stream().to_vec::<u8>(&tensor)?, [2; BYTES]);
    }
    Ok(())
}

fn barriers(world: &World) -> comm::Result<()> {
    let device = Device::cpu(1)?;
    let group = world.group(&device)?;
    (0..3).try_for_each(|_| group.run(&device.stream(), Op::Barrier))
}

/// Both ranks name the peer, the operation and its number; rank 0 with this error.
fn named(what: &str, results: &[comm::Result<()>; 2], is_it: impl Fn(&CommError) -> bool) {
    let text = |rank: usize| results[rank].as_ref().unwrap_err().to_string();
    let error = results[0].as_ref().unwrap_err();
    assert!(is_it(error), "{what}: {error}");
    // It learns it from rank 0, or finds out itself.
    let said = text(1);
    assert!(said.contains('#') && said.contains("rank"), "{what}: {said}");
}

#[test]
fn a_damaged_frame_names_peer_operation_and_number() {
    let (operation, nth) = (Operation::Exchange, 5);
    let whole = [Harm::FlipPayload(0), Harm::FlipPayload(77_777), Harm::FlipPayload(usize::MAX)];
    for harm in whole {
        let results = harmed(Target { operation, nth, harm }, messages);
        // The second message, of which the first frame is spared.
        named(&format!("{harm:?}"), &results, |error| {
            matches!(
                error,
                CommError::Damaged {
                    rank: 1,
                    operation: Operation::Exchange,
                    sequence: 2,
                    damage: Damage::Payload { start: 262_144, end: 524_288 },
                }
            )
        });
        let theirs = results[1].as_ref().unwrap_err().to_string();
        assert!(theirs.contains("exchange #2: a frame from rank 1 came damaged"), "{theirs}");
    }
    for at in [0, 5, 17, 40, 47, 50, 55] {
        let harm = Harm::FlipHeader(at);
        let results = harmed(Target { operation, nth, harm }, messages);
        named(&format!("{harm:?}"), &results, |error| {
            let damage = Damage::Header;
            matches!(error, CommError::Damaged { rank: 1, operation: Operation::Exchange,
                sequence: 2, damage: got } if *got == damage)
        });
    }
    let harm = Harm::FlipHeader(30);
    let (operation, nth) = (Operation::Barrier, 1);
    let results = harmed(Target { operation, nth, harm }, barriers);
    named("barrier", &results, |error| {
        matches!(
            error,
            CommError::Damaged {
                rank: 1,
                operation: Operation::Barrier,
                damage: Damage::Header,
                ..
            }
        )
    });
}

#[test]
fn frames_that_are_lost_doubled_or_cut_are_named() {
    let (operation, nth) = (Operation::Exchange, 5);
    for (harm, got, expected) in [(Harm::Replay, -1, 0), (Harm::Drop, 1, 0)] {
        let results = harmed(Target { operation, nth, harm }, messages);
        named(&format!("{harm:?}"), &results, |error| match error {
            CommError::Damaged { rank: 1, operation, sequence: 2, damage } => {
                let Damage::Turn { got: g, expected: e } = *damage else { return false };
                *operation == Operation::Exchange && i64::from(g) - i64::from(e) == got - expected
            }
            _ => false,
        });
    }
    let results = harmed(Target { operation, nth, harm: Harm::Truncate }, messages);
    named("truncated", &results, |error| {
        matches!(
            error,
            CommError::Damaged {
                rank: 1,
                operation: Operation::Exchange,
                sequence: 2,
                damage: Damage::Payload { .. },
            }
        )
    });
    // The last frame of all: nothing fills the gap.
    let last = Target { operation, nth: 11, harm: Harm::Truncate };
    let results = harmed(last, messages);
    named("truncated at the end", &results, |error| {
        matches!(error, CommError::Timeout {
            operation: Operation::Exchange, sequence: 3, missing, ..
        } if *missing == [1])
    });
}

#[test]
fn connections_that_break_or_stall_are_named_and_a_delay_is_not() {
    let (operation, nth) = (Operation::Exchange, 5);
    let results = harmed(Target { operation, nth, harm: Harm::Reset }, messages);
    named("reset", &results, |error| {
        matches!(
            error,
            CommError::PeerLost { rank: 1, operation: Operation::Exchange, sequence: 2, .. }
        )
    });
    let results = harmed(Target { operation, nth, harm: Harm::Stall }, messages);
    named("stall", &results, |error| {
        matches!(error, CommError::Timeout {
            operation: Operation::Exchange, sequence: 2, missing, ..
        } if *missing == [1])
    });
    let results = harmed(Target { operation, nth, harm: Harm::Delay }, messages);
    assert!(results.iter().all(Result::is_ok), "{results:?}");
}

/// Who is between the ranks and makes checksums fit, but does not know the secret.
#[test]
fn frames_that_are_forged_replayed_or_reordered_are_told_from_damage() {
    let (operation, nth) = (Operation::Exchange, 5);
    // A tag alone; then every field that no other check looks at before the tag.
    let forged = [56, 63, 4, 16, 24, 32, 40, 48].map(Harm::Forge);
    for harm in forged.into_iter().chain([Harm::Swap, Harm::ReplayNumbered]) {
        let results = harmed(Target { operation, nth, harm }, messages);
        named(&format!("{harm:?}"), &results, |error| {
            matches!(
                error,
                CommError::Damaged {
                    rank: 1,
                    operation: Operation::Exchange,
                    sequence: 2,
                    damage: Damage::Forged,
                }
            )
        });
        let theirs = results[1].as_ref().unwrap_err().to_string();
        assert!(theirs.contains("was not made by that rank"), "{theirs}");
    }
}

/// Ranks that have different secrets, past the meeting point: the one that connects ends at once,
/// the other when it has waited, and both say why.
#[test]
fn ranks_with_different_secrets_do_not_meet() {
    let backends = common::backends("tcp", 2);
    let begun = std::time::Instant::now();
    let said = std::thread::scope(|scope| {
        let ranks = backends.into_iter().enumerate().map(|(rank, backend)| {
            scope.spawn(move || {
                let secret = comm::Secret::of_text(&[rank as u8; 16]).unwrap();
                let settings = comm::Settings { secret, ..common::settings(2 * TIMEOUT_MS) };
                let met = common::message(comm::connect_with(backend, rank, 2, settings));
                (met, begun.elapsed())
            })
        });
        let ranks: Vec<_> = ranks.collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect::<Vec<_>>()
    });
    let [(first, _), (second, took)] = &said[..] else { panic!("two ranks") };
    let start = "join #0: rank 1 is lost: who came from 127.0.0.1 as that rank has another secret";
    assert!(first.starts_with(start), "{first}");
    let start = "join #0: rank 0 is lost: who listens at 127.0.0.1:";
    assert!(second.starts_with(start) && second.contains(" has another secret than"), "{second}");
    assert!(*took < Duration::from_secs(1), "{took:?}");
}

/// One rank is of an earlier start of the job, whose secret is the same.
#[test]
fn ranks_of_two_starts_do_not_meet() {
    let mut backends = common::backends("tcp", 2);
    if let comm::Backend::Tcp { job, .. } = &mut backends[1] {
        job.push_str("-earlier");
    }
    let secret = comm::Secret::of_text(b"the secret of this job").unwrap();
    let said = std::thread::scope(|scope| {
        let ranks = backends.into_iter().enumerate().map(|(rank, backend)| {
            let settings = comm::Settings { secret, ..common::settings(1_000) };
            scope.spawn(move || common::message(comm::connect_with(backend, rank, 2, settings)))
        });
        let ranks: Vec<_> = ranks.collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect::<Vec<_>>()
    });
    for (rank, said) in said.iter().enumerate() {
        let absent = format!("join #0: rank {} had not arrived after 1000 ms", 1 - rank);
        // Rank 1 tries until the end: where it started later, it finds that rank 0 has gone.
        let gone = "join #0: rank 0 is lost: cannot connect to it at ";
        assert!(said.starts_with(&absent) || rank == 1 && said.starts_with(gone), "{said}");
    }
}
