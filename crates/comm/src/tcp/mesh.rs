//! Making connections: each rank connects to lower ranks and is connected to by higher ones. Both
//! ends prove that they know the job's secret, and that they mean the same start of the job, ranks
//! and purpose ([`crate::handshake`]); one of another job is closed and otherwise ignored, and
//! costs nothing ([`crate::door::Door`]).

use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use socket2::SockRef;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::sleep;

use crate::door;
use crate::error::SAME_SECRET;
use crate::handshake::{self, ANSWER_BYTES, Claim, Failed, Heard, Keys, Refused, Stranger};
use crate::job::Members;
use crate::tls::{self, Connection, Security};
use crate::{CommError, Operation, Result};

/// Binds the address that peers will connect to; port 0 takes any free one.
///
/// # Errors
/// The port is taken; the address is not one of this host.
pub fn listen(addr: SocketAddr) -> Result<TcpListener> {
    let listener = TcpListener::bind(addr).map_err(|source| CommError::Bind { addr, source })?;
    if addr.ip().is_loopback() {
        unpace(SockRef::from(&listener));
    }
    Ok(listener)
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
#[derive(Debug, Clone)]
pub(super) struct Identity {
    pub security: Security,
    /// Of this start of the job, as connections and as frames have it.
    pub scope: [u8; 16],
    pub token: u64,
    pub rank: usize,
    pub world: usize,
}

/// Purposes of a connection.
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

    fn of(tag: u64) -> Purpose {
        match tag {
            0 => Purpose::Signal,
            tag => Purpose::Data(tag),
        }
    }
}

/// A connection that was made, and to whom.
pub(super) struct Met {
    pub rank: usize,
    pub purpose: Purpose,
    pub stream: Connection,
    pub keys: Keys,
}

/// A higher rank that has connected and waits for the answer.
pub(super) struct Guest {
    met: Met,
    answer: [u8; ANSWER_BYTES],
}

/// By rank, what came of the last try of this process to connect to it, or of somebody's to pass
/// for it, or for one of its host.
pub(super) type Tries = Arc<Mutex<HashMap<usize, String>>>;

impl Identity {
    /// A connection from rank `from` to rank `to` of this start of the job.
    fn claim(&self, from: usize, to: usize, purpose: Purpose) -> Claim {
        let number = |rank| u32::try_from(rank).unwrap_or(u32::MAX);
        let (scope, from, to) = (self.scope, number(from), number(to));
        Claim { scope, from, to, purpose: purpose.tag() }
    }
}

/// Why members are missing: what came of the `tries`, where one ended at all.
pub(super) fn unmet(
    missing: Vec<usize>,
    members: &Members,
    tries: [&Tries; 2],
    timeout_ms: u64,
) -> CommError {
    let (operation, sequence) = (Operation::Join, 0);
    let of = |rank: usize| {
        let known = tries.map(|tries| tries.lock().unwrap_or_else(PoisonError::into_inner));
        known.iter().find_map(|known| known.get(&rank).cloned())
    };
    let refused = missing.iter().find_map(|&place| Some((place, of(members.ranks[place])?)));
    match refused {
        Some((rank, cause)) => CommError::PeerLost { rank, operation, sequence, cause },
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
    let claim = me.claim(me.rank, rank, purpose);
    let failed = |cause: String| {
        let mut tries = tries.lock().unwrap_or_else(PoisonError::into_inner);
        tries.insert(rank, cause);
    };
    loop {
        let is_final = match open(addr).await {
            Ok(stream) => {
                tune(&stream);
                match handshake::dial(stream, &me.security, claim).await {
                    Ok((stream, keys)) => return Some(Met { rank, purpose, stream, keys }),
                    Err(Failed::Refused(Refused::Secret)) => {
                        failed(format!("who listens at {addr} {}", other_secret()));
                        true
                    }
                    Err(Failed::Tls(fault)) => {
                        failed(format!("who listens at {addr} {fault}"));
                        true
                    }
                    // It may have been taken for a stranger, or be one, or not of this start.
                    Err(_) => false,
                }
            }
            Err(error) => {
                failed(format!("cannot connect to it at {addr}: {error}"));
                door::is_final(&error)
            }
        };
        if is_final {
            return None;
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// Within a host nothing is congested, and a control that paces what it sends (BBR) only holds it
/// up: there connections have the first of these that the system allows.
const UNPACED: [&[u8]; 2] = [b"cubic", b"reno"];

/// To be called before there is a connection: what has been paced once keeps its timers. Nothing
/// but time depends on whether it works.
fn unpace(socket: SockRef) {
    let _ = UNPACED.iter().any(|name| socket.set_tcp_congestion(name).is_ok());
}

async fn open(addr: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if addr.ip().is_loopback() {
        unpace(SockRef::from(&socket));
    }
    socket.connect(addr).await
}

fn tune(stream: &TcpStream) {
    door::keep_alive(stream);
    let _ = stream.set_nodelay(true);
}

fn other_secret() -> String {
    format!("has another secret than this process; {SAME_SECRET}")
}

/// A higher rank of the same job, if that is what speaks. Who passes for one is remembered in
/// `tries`; who does not come so far as to say a rank, for all of `there`, the higher ranks of the
/// address that it comes from.
pub(super) async fn hear_higher(
    stream: TcpStream,
    from: SocketAddr,
    there: Vec<usize>,
    me: Identity,
    tries: Tries,
) -> Option<Guest> {
    tune(&stream);
    let tried = || tries.lock().unwrap_or_else(PoisonError::into_inner);
    let (stream, accepted) = match handshake::hear(stream, &me.security).await? {
        Heard::Known(stream, accepted) => (stream, accepted),
        Heard::Stranger(Stranger::Secret(claim)) => {
            // Whoever does not even know whom it calls is no rank of a wrong secret.
            let rank = usize::try_from(claim.from).ok();
            let rank = rank.filter(|&rank| me.rank < rank && rank < me.world)?;
            if usize::try_from(claim.to) != Ok(me.rank) {
                return None;
            }
            let cause = format!("who came from {} as that rank {}", from.ip(), other_secret());
            tried().insert(rank, cause);
            return None;
        }
        Heard::Stranger(Stranger::Tls(fault)) => {
            let cause = format!("who came from {}, where that rank is, {fault}", from.ip());
            tried().extend(there.into_iter().map(|rank| (rank, cause.clone())));
            return None;
        }
        Heard::Stranger(Stranger::Protocol(_) | Stranger::Lacks { .. }) => return None,
    };
    let (rank, purpose) = (accepted.claim.from as usize, Purpose::of(accepted.claim.purpose));
    let is_ours = accepted.claim == me.claim(rank, me.rank, purpose);
    if !is_ours || rank <= me.rank || rank >= me.world {
        return None;
    }
    let met = Met { rank, purpose, stream, keys: accepted.keys };
    Some(Guest { met, answer: accepted.answer })
}

/// Answers a rank that is taken from here on: the first bytes on a connection fit its buffer.
pub(super) fn greet_now(Guest { mut met, answer }: Guest) -> Option<Met> {
    let written = tls::try_say(&mut met.stream, &answer);
    written.is_ok_and(|written| written == answer.len()).then_some(met)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_within_a_host_are_not_paced() {
        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let addr = listener.local_addr().unwrap();
        let runtime = super::super::runtime::runtime().unwrap();
        let ours = runtime.block_on(open(addr)).unwrap();
        let (theirs, _) = listener.accept().unwrap();
        for socket in [SockRef::from(&ours), SockRef::from(&theirs)] {
            let Ok(name) = socket.tcp_congestion() else {
                eprintln!("skipped: this system does not say what controls a connection");
                return;
            };
            let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
            assert!(UNPACED.contains(&name), "{}", String::from_utf8_lossy(name));
        }
    }
}
