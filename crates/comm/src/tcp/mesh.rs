//! Making the mesh: each rank connects to the lower ranks and accepts the higher ones, twice: one
//! connection for data, one for the signal that a rank gives up or leaves. Both ends say who they
//! are; a connection of another job is closed and otherwise ignored.

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::frame::{HEADER_BYTES, Header};
use crate::patience::Patience;
use crate::{CommError, Operation, Result};

/// Binds the address that peers will connect to; port 0 takes any free one.
///
/// # Errors
/// The port is taken; the address is not one of this host.
pub fn listen(addr: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(addr).map_err(|source| match source.kind() {
        std::io::ErrorKind::AddrInUse => CommError::PortTaken { addr },
        _ => CommError::Socket { addr, action: "bind", source },
    })
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

/// The two connections to one peer, as far as they were made.
#[derive(Default)]
pub(super) struct Pair {
    pub data: Option<TcpStream>,
    pub signal: Option<TcpStream>,
}

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

/// The connections by rank, as far as they came before the deadline.
pub(super) async fn meet(
    listener: TcpListener,
    peers: &[SocketAddr],
    me: Identity,
    patience: Patience,
) -> Result<Vec<Pair>> {
    let mut pairs: Vec<Pair> = (0..me.world).map(|_| Pair::default()).collect();
    let addr = peers[me.rank];
    let failed = |source| CommError::Socket { addr, action: "listen", source };
    listener.set_nonblocking(true).map_err(failed)?;
    let listener = tokio::net::TcpListener::from_std(listener).map_err(failed)?;
    let mut pending = JoinSet::new();
    for (peer, &addr) in peers.iter().enumerate().take(me.rank) {
        for purpose in [Purpose::Data, Purpose::Signal] {
            pending.spawn(connect(addr, peer, purpose, me));
        }
    }
    let mut wanted = 2 * (me.world - 1);
    let passed = patience.passed();
    tokio::pin!(passed);
    while wanted > 0 {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted.map_err(failed)?;
                pending.spawn(accept(stream, me));
            }
            Some(met) = pending.join_next() => {
                // A stranger's connection brings nobody.
                let Ok(Some(Met { rank, purpose, stream })) = met else { continue };
                let place = match purpose {
                    Purpose::Data => &mut pairs[rank].data,
                    Purpose::Signal => &mut pairs[rank].signal,
                };
                if place.replace(stream).is_some() {
                    return Err(CommError::RankTaken { rank });
                }
                wanted -= 1;
            }
            () = &mut passed => break,
        }
    }
    Ok(pairs)
}

/// Connects to a lower rank, again and again until it answers as what it should be. Its listener
/// is bound before anyone learns its address, so the first attempt normally succeeds.
async fn connect(addr: SocketAddr, rank: usize, purpose: Purpose, me: Identity) -> Option<Met> {
    loop {
        if let Ok(mut stream) = TcpStream::connect(addr).await
            && greet(&mut stream, purpose, me).await.is_some()
            && hear(&mut stream, me).await == Some((rank, purpose))
        {
            return Some(Met { rank, purpose, stream });
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// Answers a higher rank of the same job.
async fn accept(mut stream: TcpStream, me: Identity) -> Option<Met> {
    let (rank, purpose) = hear(&mut stream, me).await.filter(|&(rank, _)| rank > me.rank)?;
    greet(&mut stream, purpose, me).await?;
    Some(Met { rank, purpose, stream })
}

async fn greet(stream: &mut TcpStream, purpose: Purpose, me: Identity) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    stream.write_all(&me.header(purpose).encode()).await.ok()
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
