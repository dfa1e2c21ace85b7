//! Whether a peer still takes part: one connection per pair that carries at most one message.
//!
//! ```text
//! `L`            then the end   the peer left in good order
//! `R` and text   then the end   the peer gave the group up, and why
//!                the end alone  its process died, or the network broke
//! ```
//!
//! Apart from the data, since a frame that is half read or half written would be in the way.

use std::future::pending;

use futures_util::future::try_join_all;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use super::exchange::Call;
use crate::{CommError, Result};

/// Longest reason that is taken from a peer.
const REASON_BYTES: usize = 4 << 10;

/// The signal connections of a rank.
pub(super) struct Signals {
    peers: Vec<Option<Signal>>,
}

struct Signal {
    read: OwnedReadHalf,
    /// Until this rank has said its one thing.
    write: Option<OwnedWriteHalf>,
    /// What came so far; kept, since a wait may be cut off at any point.
    heard: Vec<u8>,
    has_left: bool,
}

impl Signals {
    /// By rank; this rank's own is `None`.
    pub(super) fn new(streams: Vec<Option<TcpStream>>) -> Signals {
        let signal = |stream: TcpStream| {
            let (read, write) = stream.into_split();
            Signal { read, write: Some(write), heard: Vec::new(), has_left: false }
        };
        Signals { peers: streams.into_iter().map(|stream| stream.map(signal)).collect() }
    }

    /// Waits until a peer gives up or dies; for ever if none does.
    pub(super) async fn watch(&mut self, call: &Call) -> CommError {
        let peers = self.peers.iter_mut().enumerate();
        let watched = peers.filter_map(|(rank, signal)| Some((rank, signal.as_mut()?)));
        match try_join_all(watched.map(|(rank, signal)| signal.watch(rank, call))).await {
            Err(error) => error,
            Ok(_) => pending().await,
        }
    }

    /// Tells every peer why the group is given up, once.
    pub(super) fn revoke(&mut self, why: &str) {
        let why = &why[..why.floor_char_boundary(REASON_BYTES)];
        self.say(format!("R{why}").as_bytes());
    }

    /// Tells every peer that this rank has done its part, unless it gave the group up.
    pub(super) fn leave(&mut self) {
        self.say(b"L");
    }

    fn say(&mut self, message: &[u8]) {
        for write in self.peers.iter_mut().flatten().filter_map(|signal| signal.write.take()) {
            // The first bytes on this connection: they fit its buffer, unless it is gone.
            // Dropping the half then ends the stream behind them.
            let _ = write.try_write(message);
        }
    }
}

impl Signal {
    async fn watch(&mut self, rank: usize, call: &Call) -> Result<()> {
        let mut bytes = [0; 512];
        while !self.has_left {
            let readable = self.read.readable().await;
            match readable.and_then(|()| self.read.try_read(&mut bytes)) {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Ok(count) if count > 0 && self.heard.len() < REASON_BYTES => {
                    self.heard.extend_from_slice(&bytes[..count]);
                }
                ended => match self.heard.split_first() {
                    Some((b'L', _)) => self.has_left = true,
                    Some((b'R', why)) => {
                        let why = String::from_utf8_lossy(why).into_owned();
                        return Err(CommError::Revoked { why });
                    }
                    _ => {
                        let cause = match ended {
                            Err(error) => error.to_string(),
                            Ok(_) => "its process has ended or the network broke".to_owned(),
                        };
                        return Err(call.lost(rank, cause));
                    }
                },
            }
        }
        Ok(())
    }
}
