//! Whether a peer still takes part: one connection per pair of ranks.
//!
//! ```text
//! `P` 8 bytes   the peer lives: milliseconds since its moment, little-endian
//! `L`           then the end: the peer left in good order
//! `R` text      then the end: the peer gave the job up, and why
//!               the end alone: its process died, or the network broke
//! ```
//!
//! Each letter is followed by the length of what comes with it (two bytes), that, and the tag of
//! all of it ([`crate::handshake`]).
//!
//! Apart from the data, since a frame that is half read or half written would be in the way.

#[cfg(test)]
mod fuzz;

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt};

use super::progress::BROKEN;
use crate::handshake::{Key, Seal, TAG_BYTES};
use crate::job::Job;
use crate::revocation::Reason;
use crate::tls::{self, ReadHalf, WriteHalf};

/// Longest reason that is taken from a peer.
const REASON_BYTES: usize = 4 << 10;

/// The sending side of this rank's signals.
pub(super) struct Signals {
    /// By rank, until this rank has said its last thing.
    peers: Vec<Option<Peer>>,
    /// The last thing, for connections that are made later.
    last: Option<Vec<u8>>,
}

/// Who listens.
struct Peer {
    write: WriteHalf,
    seal: Seal,
}

impl Peer {
    /// Says it, as far as there is room; whether a part of it was said.
    fn say(&mut self, message: &[u8], hash: &blake3::Hash) -> bool {
        let message = [message, &self.seal.tag(hash)].concat();
        let said = tls::try_say(&mut self.write, &message);
        if said.is_err() {
            self.seal.take_back();
        }
        said.is_ok_and(|count| count < message.len())
    }
}

impl Signals {
    pub(super) fn new(world: usize) -> Signals {
        Signals { peers: (0..world).map(|_| None).collect(), last: None }
    }

    /// Takes over a connection; whether it is the first with that peer.
    pub(super) fn add(&mut self, rank: usize, write: WriteHalf, key: Key) -> bool {
        let mut peer = Peer { write, seal: Seal::new(key) };
        if let Some(last) = &self.last {
            peer.say(last, &blake3::hash(last));
            return false;
        }
        self.peers[rank].replace(peer).is_none()
    }

    pub(super) fn have_spoken(&self) -> bool {
        self.last.is_some()
    }

    /// Tells every peer that this process lives, and that it got on so many milliseconds ago.
    pub(super) fn tell(&mut self, age_ms: u64) {
        let message = encode(b'P', &age_ms.to_le_bytes());
        let hash = blake3::hash(&message);
        for peer in self.peers.iter_mut() {
            // A peer that has not read for hours has no room for another; a part of a message
            // cannot be completed later, so that connection is done.
            if peer.as_mut().is_some_and(|peer| peer.say(&message, &hash)) {
                *peer = None;
            }
        }
    }

    /// Tells every peer why the job is given up, once.
    pub(super) fn revoke(&mut self, why: &str) {
        let why = &why[..why.floor_char_boundary(REASON_BYTES)];
        self.say(encode(b'R', why.as_bytes()));
    }

    /// Tells every peer that this rank has done its part, unless it gave the job up.
    pub(super) fn leave(&mut self) {
        self.say(encode(b'L', &[]));
    }

    fn say(&mut self, message: Vec<u8>) {
        if self.last.is_none() {
            let hash = blake3::hash(&message);
            for mut peer in self.peers.iter_mut().filter_map(Option::take) {
                // It fits the buffer of a connection that says little, unless that is gone.
                // Dropping the half then ends the stream behind it.
                peer.say(&message, &hash);
            }
            self.last = Some(message);
        }
    }
}

/// Hears what `rank` says, to its end.
pub(super) async fn listen(mut read: ReadHalf, rank: usize, mut seal: Seal, job: Arc<Job>) {
    let ended = match hear(&mut read, rank, &mut seal, &job).await {
        Ok(heard) => heard,
        Err(error) => Reason::loss(rank, &broken(&error)).into(),
    };
    if let Some(reason) = ended {
        job.revocation().give_up(|| reason);
    }
}

/// How a connection ended on which the peer has not said that it leaves.
fn broken(error: &std::io::Error) -> String {
    use std::io::ErrorKind;
    match error.kind() {
        ErrorKind::UnexpectedEof
        | ErrorKind::ConnectionReset
        | ErrorKind::ConnectionAborted
        | ErrorKind::BrokenPipe => "its process has ended or the network broke".to_owned(),
        _ => format!("its connection broke ({error}; {BROKEN})"),
    }
}

/// Why the job is over, unless the peer left in good order.
async fn hear(
    read: &mut (impl AsyncRead + Unpin),
    rank: usize,
    seal: &mut Seal,
    job: &Job,
) -> std::io::Result<Option<Reason>> {
    loop {
        let mut start = [0; 3];
        read.read_exact(&mut start).await?;
        let length = usize::from(u16::from_le_bytes([start[1], start[2]]));
        let mut rest = [0; REASON_BYTES + TAG_BYTES];
        let damaged =
            || Ok(Some(Reason::loss(rank, "what it says of itself comes damaged, or forged")));
        let Some(rest) = rest.get_mut(..length + TAG_BYTES) else { return damaged() };
        read.read_exact(rest).await?;
        match (start[0], decode(&start, rest, seal)) {
            (b'P', Some(said)) if said.len() == 8 => {
                job.moments().hear(rank, false);
                let age_ms = said.iter().rev().fold(0, |age, &byte| age << 8 | u64::from(byte));
                let moments = job.moments();
                moments.advance(rank, moments.now_ms().saturating_sub(age_ms));
            }
            (b'L', Some([])) => {
                job.moments().hear(rank, true);
                return Ok(None);
            }
            (b'R', Some(why)) => {
                let why = String::from_utf8_lossy(why).into_owned();
                return Ok(Some(Reason { why, lost: None }));
            }
            (_, Some(_)) => return Ok(Some(Reason::loss(rank, "it speaks another language"))),
            (_, None) => return damaged(),
        }
    }
}

fn encode(letter: u8, said: &[u8]) -> Vec<u8> {
    let length = u16::try_from(said.len()).unwrap_or(u16::MAX).to_le_bytes();
    [&[letter], &length[..], said].concat()
}

/// The signal's payload, if the tag fits letter, length and payload.
fn decode<'a>(start: &[u8; 3], rest: &'a [u8], seal: &mut Seal) -> Option<&'a [u8]> {
    let (said, tag) = rest.split_last_chunk::<TAG_BYTES>()?;
    let hash = blake3::Hasher::new().update(start).update(said).finalize();
    seal.fits(&hash, *tag).then_some(said)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_says_of_a_connection_comes_with_advice() {
        let said = |kind: std::io::ErrorKind| broken(&kind.into());
        let ended = said(std::io::ErrorKind::ConnectionReset);
        assert_eq!(ended, said(std::io::ErrorKind::UnexpectedEof));
        assert_eq!(ended, "its process has ended or the network broke");
        assert!(said(std::io::ErrorKind::TimedOut).contains("; see whether its process"));
    }

    #[test]
    fn no_flipped_bit_passes_for_a_signal() {
        let seal = || Seal::new(Key::new([3; 32]));
        let mut whole = encode(b'R', b"on purpose");
        whole.extend(seal().tag(&blake3::hash(&whole)));
        let said = |bytes: &[u8]| {
            let (start, rest) = bytes.split_first_chunk::<3>().unwrap();
            decode(start, rest, &mut seal()).map(<[u8]>::to_vec)
        };
        assert_eq!(said(&whole).unwrap(), b"on purpose");
        for bit in 0..8 * whole.len() {
            let mut damaged = whole.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(said(&damaged), None, "bit {bit}");
        }
    }
}
