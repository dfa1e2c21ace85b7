//! Making the mesh: each rank connects to the lower ranks and accepts the higher ones, twice: one
//! connection for data, one for the signal that a rank gives up or leaves. Both ends say who they
//! are; a connection of another job is closed and otherwise ignored, and costs nothing ([`Door`]).

use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::frame::{HEADER_BYTES, Header};
use crate::door::{self, Door};
use crate::patience::Patience;
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
    Data = 0,
    Signal = 1,
}

/// A connection that was made, and to whom.
struct Met {
    rank: usize,
    purpose: Purpose,
    stream: TcpStream,
}

/// The two connections to one peer.
#[derive(Default)]
pub(super) struct Pair {
    pub data: Option<TcpStream>,
    pub signal: Option<TcpStream>,
}

/// By rank, what came of the last try to connect to it.
type Tries = Arc<Mutex<Vec<Option<(SocketAddr, std::io::Error)>>>>;

impl Identity {
    /// What either end of a new connection says first, in the form of an empty frame: the rank
    /// stands in the sequence number, world and purpose in the fingerprint.
    fn header(&self, purpose: Purpose) -> Header {
        Header {
            operation: Operation::Join as u32,
            token: self.token,
            sequence: self.rank as u64,
            digest: 2 * self.world as u64 + purpose as u64,
            length: 0,
        }
    }
}

/// The connections by rank; this rank's own are `None`.
///
/// # Errors
/// A rank cannot be reached, or did not come within `timeout_ms`.
pub(super) async fn meet(
    listener: TcpListener,
    peers: &[SocketAddr],
    me: Identity,
    timeout_ms: u64,
) -> Result<Vec<Pair>> {
    let addr = peers[me.rank];
    let failed = |source| CommError::Socket { addr, action: "listen", source };
    let mut door = Door::new(listener).map_err(failed)?;
    let tries: Tries = Arc::new(Mutex::new(peers.iter().map(|_| None).collect()));
    let mut dials = JoinSet::new();
    for (peer, &addr) in peers.iter().enumerate().take(me.rank) {
        for purpose in [Purpose::Data, Purpose::Signal] {
            dials.spawn(connect(addr, peer, purpose, me, Arc::clone(&tries)));
        }
    }
    let mut pairs: Vec<Pair> = (0..me.world).map(|_| Pair::default()).collect();
    let passed = Patience::of_ms(timeout_ms).passed();
    tokio::pin!(passed);
    while let Some(missing) = missing(&pairs, me.rank) {
        let Met { rank, purpose, stream } = tokio::select! {
            Some(dialled) = dials.join_next() => match dialled {
                Ok(Some(met)) => met,
                // Trying again would not help.
                _ => return Err(unmet(missing, &tries, timeout_ms)),
            },
            met = door.next(|stream, _| hear_higher(stream, me)) => {
                let Some(met) = greet_now(met, me) else { continue };
                met
            }
            () = &mut passed => {
                return Err(unmet(missing, &tries, timeout_ms));
            }
        };
        // A rank that comes again has given its first connection up.
        match purpose {
            Purpose::Data => pairs[rank].data = Some(stream),
            Purpose::Signal => pairs[rank].signal = Some(stream),
        }
    }
    Ok(pairs)
}

/// The ranks to which a connection is missing, if there are any.
fn missing(pairs: &[Pair], me: usize) -> Option<Vec<usize>> {
    let pairs = pairs.iter().enumerate().filter(|(rank, _)| *rank != me);
    let absent = pairs.filter(|(_, pair)| pair.data.is_none() || pair.signal.is_none());
    let missing: Vec<usize> = absent.map(|(rank, _)| rank).collect();
    (!missing.is_empty()).then_some(missing)
}

/// Why ranks are missing: the system's reason, where it gave one.
fn unmet(missing: Vec<usize>, tries: &Tries, timeout_ms: u64) -> CommError {
    let (operation, sequence) = (Operation::Join, 0);
    let mut tries = tries.lock().unwrap_or_else(PoisonError::into_inner);
    let refused = missing.iter().find_map(|&rank| Some((rank, tries[rank].take()?)));
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
async fn connect(
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
                tries.lock().unwrap_or_else(PoisonError::into_inner)[rank] = Some((addr, error));
            }
        }
        if is_final {
            return None;
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// A higher rank of the same job, if that is what speaks.
async fn hear_higher(mut stream: TcpStream, me: Identity) -> Option<Met> {
    stream.set_nodelay(true).ok()?;
    door::keep_alive(&stream);
    let (rank, purpose) = hear(&mut stream, me).await.filter(|&(rank, _)| rank > me.rank)?;
    stream.writable().await.ok()?;
    Some(Met { rank, purpose, stream })
}

/// Answers a rank that is taken from here on: the first bytes on a connection fit its buffer.
fn greet_now(met: Met, me: Identity) -> Option<Met> {
    let header = me.header(met.purpose).encode();
    let written = met.stream.try_write(&header);
    written.is_ok_and(|written| written == header.len()).then_some(met)
}

/// Who is at the other end and what for, if it belongs to this job and world.
async fn hear(stream: &mut TcpStream, me: Identity) -> Option<(usize, Purpose)> {
    let mut bytes = [0; HEADER_BYTES];
    stream.read_exact(&mut bytes).await.ok()?;
    let theirs = Header::decode(&bytes)?;
    let rank = usize::try_from(theirs.sequence).ok().filter(|&rank| rank < me.world)?;
    let them = Identity { rank, ..me };
    let purpose = [Purpose::Data, Purpose::Signal];
    let purpose = purpose.into_iter().find(|&purpose| them.header(purpose) == theirs)?;
    Some((rank, purpose))
}
