//! Making connections: each rank connects to lower ranks and is connected to by higher ones. Both
//! ends say who they are and what the connection is for; one of another job is closed and otherwise
//! ignored, and costs nothing ([`crate::door::Door`]).

use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::sleep;

use super::frame::{HEADER_BYTES, Header};
use super::progress::Call;
use crate::door;
use crate::job::Members;
use crate::{CommError, Operation, Result};

/// Binds the address that peers will connect to; port 0 takes any free one.
///
/// # Errors
/// The port is taken; the address is not one of this host.
pub fn listen(addr: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(addr).map_err(|source| CommError::Bind { addr, source })
}

/// Whether this host can listen at an address. Nobody can connect to it meanwhile.
///
/// # Errors
/// As [`listen`].
pub fn can_listen(addr: SocketAddr) -> Result<()> {
    let failed = |source| CommError::Bind { addr, source };
    let socket = match addr {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    };
    let socket = socket.map_err(failed)?;
    // As the standard library's listeners: what has ended may still hold the port for a while.
    socket.set_reuseaddr(true).map_err(failed)?;
    socket.bind(addr).map_err(failed)
}

/// Who a process is in which job.
#[derive(Debug, Clone, Copy)]
pub(super) struct Identity {
    pub token: u64,
    pub rank: usize,
    pub world: usize,
}

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Signal,
    /// Of the channel or group with this tag, which is not 0.
    Data(u64),
}

impl Purpose {
    fn tag(self) -> u64 {
        match self {
            Purpose::Signal => 0,
            Purpose::Data(tag) => tag,
        }
    }
}

/// A connection that was made, and to whom.
pub(super) struct Met {
    pub rank: usize,
    pub purpose: Purpose,
    pub stream: TcpStream,
}

/// By rank, what came of the last try to connect to it.
pub(super) type Tries = Arc<Mutex<HashMap<usize, (SocketAddr, std::io::Error)>>>;

impl Identity {
    /// What either end of a new connection says first, in the form of an empty frame: rank and
    /// world stand in the sequence number, the purpose in the fingerprint.
    fn header(&self, purpose: Purpose) -> Header {
        let (operation, token, digest) = (Operation::Join, self.token, purpose.tag());
        let sequence = (self.world as u64) << 32 | self.rank as u64;
        Call { operation, token, sequence, digest }.header()
    }
}

/// Why members are missing: the system's reason, where it gave one.
pub(super) fn unmet(
    missing: Vec<usize>,
    members: &Members,
    tries: &Tries,
    timeout_ms: u64,
) -> CommError {
    let (operation, sequence) = (Operation::Join, 0);
    let mut tries = tries.lock().unwrap_or_else(PoisonError::into_inner);
    let mut tried = |place: &usize| Some((*place, tries.remove(&members.ranks[*place])?));
    let refused = missing.iter().find_map(&mut tried);
    match refused {
        Some((rank, (addr, error))) => {
            let cause = format!("cannot connect to it at {addr}: {error}");
            CommError::PeerLost { rank, operation, sequence, cause }
        }
        None => {
            let moved = Default::default();
            CommError::Timeout { operation, sequence, missing, timeout_ms, moved }
        }
    }
}

/// Connects to a lower rank, again and again until it answers as what it should be. Its listener
/// is bound before anyone learns its address, so the first attempt normally succeeds. `None` where
/// no attempt will.
pub(super) async fn connect(
    addr: SocketAddr,
    rank: usize,
    purpose: Purpose,
    me: Identity,
    tries: Tries,
) -> Option<Met> {
    loop {
        let tried = TcpStream::connect(addr).await;
        let is_final = tried.as_ref().is_err_and(door::is_final);
        match tried {
            Ok(mut stream) => {
                door::keep_alive(&stream);
                if stream.set_nodelay(true).is_ok()
                    && stream.write_all(&me.header(purpose).encode()).await.is_ok()
                    && hear(&mut stream, me).await == Some((rank, purpose))
                {
                    return Some(Met { rank, purpose, stream });
                }
            }
            Err(error) => {
                let mut tries = tries.lock().unwrap_or_else(PoisonError::into_inner);
                tries.insert(rank, (addr, error));
            }
        }
        if is_final {
            return None;
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// A higher rank of the same job, if that is what speaks.
pub(super) async fn hear_higher(mut stream: TcpStream, me: Identity) -> Option<Met> {
    stream.set_nodelay(true).ok()?;
    door::keep_alive(&stream);
    let (rank, purpose) = hear(&mut stream, me).await.filter(|&(rank, _)| rank > me.rank)?;
    stream.writable().await.ok()?;
    Some(Met { rank, purpose, stream })
}

/// Answers a rank that is taken from here on: the first bytes on a connection fit its buffer.
pub(super) fn greet_now(met: Met, me: Identity) -> Option<Met> {
    let header = me.header(met.purpose).encode();
    let written = met.stream.try_write(&header);
    written.is_ok_and(|written| written == header.len()).then_some(met)
}

/// Who is at the other end and what for, if it belongs to this job and world.
async fn hear(stream: &mut TcpStream, me: Identity) -> Option<(usize, Purpose)> {
    let mut bytes = [0; HEADER_BYTES];
    stream.read_exact(&mut bytes).await.ok()?;
    let theirs = Header::decode(&bytes)?;
    let rank = (theirs.sequence & u64::from(u32::MAX)) as usize;
    let purpose = match theirs.digest {
        0 => Purpose::Signal,
        tag => Purpose::Data(tag),
    };
    let is_ours = Identity { rank, ..me }.header(purpose) == theirs && rank < me.world;
    is_ours.then_some((rank, purpose))
}
