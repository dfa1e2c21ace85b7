//! Whether a peer still takes part: one connection per pair of ranks.
//!
//! ```text
//! `P` and 8 bytes   the peer gets on: milliseconds since its moment, little-endian
//! `L`               then the end: the peer left in good order
//! `R` and text      then the end: the peer gave the job up, and why
//!                   the end alone: its process died, or the network broke
//! ```
//!
//! Apart from the data, since a frame that is half read or half written would be in the way.

use std::sync::Arc;

use tokio::io::AsyncReadExt;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use crate::job::Job;
use crate::revocation::Reason;

/// Longest reason that is taken from a peer.
const REASON_BYTES: usize = 4 << 10;

/// What this rank says.
pub(super) struct Signals {
    /// By rank, until this rank has said its last thing.
    peers: Vec<Option<OwnedWriteHalf>>,
    /// The last thing, for connections that are made later.
    last: Option<Vec<u8>>,
}

impl Signals {
    pub(super) fn new(world: usize) -> Signals {
        Signals { peers: (0..world).map(|_| None).collect(), last: None }
    }

    /// Takes over a connection; whether it is the first with that peer.
    pub(super) fn add(&mut self, rank: usize, write: OwnedWriteHalf) -> bool {
        if let Some(last) = &self.last {
            let _ = write.try_write(last);
            return false;
        }
        self.peers[rank].replace(write).is_none()
    }

    pub(super) fn have_spoken(&self) -> bool {
        self.last.is_some()
    }

    /// Tells every peer that this rank got on so many milliseconds ago.
    pub(super) fn tell(&mut self, age_ms: u64) {
        let mut message = [b'P'; 9];
        message[1..].copy_from_slice(&age_ms.to_le_bytes());
        for write in self.peers.iter_mut() {
            // A peer that has not read for hours has no room for another; a part of a message
            // cannot be completed later, so that connection is done.
            let said = write.as_ref().map(|write| write.try_write(&message));
            if matches!(said, Some(Ok(count)) if count < message.len()) {
                *write = None;
            }
        }
    }

    /// Tells every peer why the job is given up, once.
    pub(super) fn revoke(&mut self, why: &str) {
        let why = &why[..why.floor_char_boundary(REASON_BYTES)];
        self.say(format!("R{why}").into_bytes());
    }

    /// Tells every peer that this rank has done its part, unless it gave the job up.
    pub(super) fn leave(&mut self) {
        self.say(b"L".to_vec());
    }

    fn say(&mut self, message: Vec<u8>) {
        if self.last.is_none() {
            for write in self.peers.iter_mut().filter_map(Option::take) {
                // It fits the buffer of a connection that says little, unless that is gone.
                // Dropping the half then ends the stream behind it.
                let _ = write.try_write(&message);
            }
            self.last = Some(message);
        }
    }
}

/// Hears what `rank` says, to its end.
pub(super) async fn listen(mut read: OwnedReadHalf, rank: usize, job: Arc<Job>) {
    let ended = match hear(&mut read, rank, &job).await {
        Ok(heard) => heard,
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            Reason::loss(rank, "its process has ended or the network broke").into()
        }
        Err(error) => Reason::loss(rank, &error.to_string()).into(),
    };
    if let Some(reason) = ended {
        job.revocation().give_up(|| reason);
    }
}

/// Why the job is over, unless the peer left in good order.
async fn hear(read: &mut OwnedReadHalf, rank: usize, job: &Job) -> std::io::Result<Option<Reason>> {
    loop {
        match read.read_u8().await? {
            b'P' => {
                let age_ms = read.read_u64_le().await?;
                let moments = job.moments();
                moments.advance(rank, moments.now_ms().saturating_sub(age_ms));
            }
            b'L' => return Ok(None),
            b'R' => {
                let mut why = Vec::new();
                let _ = read.take(REASON_BYTES as u64).read_to_end(&mut why).await;
                let why = String::from_utf8_lossy(&why).into_owned();
                return Ok(Some(Reason { why, lost: None }));
            }
            _ => return Ok(Some(Reason::loss(rank, "it speaks another language"))),
        }
    }
}
