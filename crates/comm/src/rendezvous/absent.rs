//! A host that will not bring its ranks, which are waited for: it tells the server, or serves in
//! its place if that would have been there. What it says is worth as much as it can prove
//! ([`crate::lack`]).

use std::io::ErrorKind;
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::{Duration, Instant};

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use super::attend::GUESTS;
use super::meeting::Shared;
use super::protocol::{self, Refusal, Said, ToServer};
use super::server::{self, Server};
use crate::door::Door;
use crate::handshake::{self, Failed, Seal};
use crate::tls::{Security, Tls};
use crate::{CommError, Lack, Result, Secret};

/// How long one try may take, until the other end has proved itself or has heard it.
const ABSENCE_TRY: Duration = Duration::from_secs(2);

/// A host that will not bring its ranks.
#[derive(Debug, Clone, Copy)]
pub struct Absent<'a> {
    pub job: &'a str,
    pub secret: Secret,
    pub tls: Option<&'a Tls>,
    pub node: usize,
    pub reason: &'a str,
}

/// Whether the server was there before, or may still come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    Never,
    Before,
}

/// The outcome of telling the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reported {
    Heard,
    /// Who is there takes this process for none of the job, which will not change.
    Refused,
    NotFound,
}

/// Tells the server, if it is found within `patience`, that a host will not bring its ranks, so
/// that the others need not wait for them. Once they have met this changes nothing.
pub fn report_absent(addrs: impl ToSocketAddrs, absent: Absent, patience: Duration) -> Reported {
    let (job, reason) = (absent.job.to_owned(), protocol::cut(absent.reason).to_owned());
    let message = ToServer::Absent { job, node: absent.node, reason };
    report(addrs, (patience, Seen::Never), async |stream| {
        tell(stream, absent, protocol::ABSENT, &message).await
    })
}

/// Tells the server how `rank` ended, which was one of the host's and met the others as `group`;
/// the job of `host` is not looked at. An earlier start's end is none of a later one. The server
/// was there then: where nobody listens any more, it is over.
pub fn report_end(
    addrs: impl ToSocketAddrs,
    host: Absent,
    (group, rank): (&str, usize),
    patience: Duration,
) -> Reported {
    let (node, group) = (host.node, group.to_owned());
    let reason = protocol::cut(host.reason).to_owned();
    let message = ToServer::Ended { group, node, rank, reason };
    report(addrs, (patience, Seen::Before), async |stream| {
        tell(stream, host, protocol::ENDED, &message).await
    })
}

/// As [`report_absent`], of a host that cannot prove itself.
pub fn report_lack(
    addrs: impl ToSocketAddrs,
    node: usize,
    lack: Lack,
    patience: Duration,
) -> Reported {
    let node = u32::try_from(node).unwrap_or(u32::MAX);
    report(addrs, (patience, Seen::Never), async |stream| {
        in_time(handshake::give_notice(stream, node, lack)).await
    })
}

fn report(
    addrs: impl ToSocketAddrs,
    (patience, seen): (Duration, Seen),
    tell: impl AsyncFn(TcpStream) -> std::result::Result<(), Failed>,
) -> Reported {
    let addrs: Vec<SocketAddr> = addrs.to_socket_addrs().into_iter().flatten().collect();
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let Ok(runtime) = builder.enable_io().enable_time().build() else {
        return Reported::NotFound;
    };
    let until = Instant::now() + patience;
    runtime.block_on(async {
        while Instant::now() < until {
            let mut closed = 0;
            for &addr in &addrs {
                let connected = tokio::time::timeout(ABSENCE_TRY, TcpStream::connect(addr)).await;
                let stream = match connected {
                    Ok(Ok(stream)) => stream,
                    Ok(Err(error)) => {
                        closed += usize::from(error.kind() == ErrorKind::ConnectionRefused);
                        continue;
                    }
                    Err(_) => continue,
                };
                match tell(stream).await {
                    Ok(()) => return Reported::Heard,
                    // Closed at once, as in [`reach`], or silent.
                    Err(Failed::Io(_)) => {}
                    // Such as one of another secret.
                    Err(_) => return Reported::Refused,
                }
            }
            if closed == addrs.len() && seen == Seen::Before {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Reported::NotFound
    })
}

/// Node 0 will not bring its ranks, nor serve those of the others: serves at the addresses that
/// this host has, for `patience` at most, and says so to whoever comes; returns whether all ranks
/// of the other `nodes` have heard it, or their hosts have said that they will not come either.
/// Who does not prove to be of the job is told nothing.
///
/// # Errors
/// As [`Server::bind`].
pub fn serve_absence(
    addrs: impl ToSocketAddrs,
    absent: Absent,
    nodes: usize,
    patience: Duration,
) -> Result<bool> {
    let Absent { job, secret, tls, node, reason } = absent;
    let security = Security { secret, tls: tls.cloned() };
    let refusal = Refusal::Absent { node, reason: reason.to_owned() };
    let shared = Shared::of_refused((job, security), nodes, refusal)?;
    Ok(Server::start(addrs, shared)?.linger(patience))
}

/// As [`serve_absence`], of node 0 that cannot prove itself, for all of `patience`: who has heard
/// it is not known either.
///
/// # Errors
/// As [`Server::bind`].
pub fn serve_lack(addrs: impl ToSocketAddrs, lack: Lack, patience: Duration) -> Result<()> {
    let (_, listeners) = server::listeners(addrs)?;
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_io().enable_time().build().map_err(CommError::Runtime)?;
    runtime.block_on(async {
        for listener in listeners {
            // As of a server: without it nothing can be served.
            let Ok(mut door) = Door::<()>::expecting(listener, GUESTS) else { continue };
            let answer = move |stream, _| async move {
                // Who does not hear it is where it was.
                let _ = handshake::answer_lacking(stream, lack).await;
                None
            };
            tokio::spawn(async move { door.next(answer).await });
        }
        tokio::time::sleep(patience).await;
    });
    Ok(())
}

/// A try that lasts is one that was closed.
async fn in_time<T>(
    told: impl Future<Output = std::result::Result<T, Failed>>,
) -> std::result::Result<T, Failed> {
    let told = tokio::time::timeout(ABSENCE_TRY, told).await;
    told.unwrap_or_else(|_| Err(Failed::Io(ErrorKind::TimedOut.into())))
}

/// Returns when the server has heard it.
async fn tell(
    stream: TcpStream,
    host: Absent<'_>,
    purpose: u64,
    message: &ToServer,
) -> std::result::Result<(), Failed> {
    let security = Security { secret: host.secret, tls: host.tls.cloned() };
    let claim = protocol::claim(host.node, purpose);
    let (mut stream, keys) = in_time(handshake::dial(stream, &security, claim)).await?;
    let message = Said::new(message);
    message.say(&mut stream, &mut Seal::new(keys.send)).await?;
    // It closes the connection then, in one way or another; one that takes its time has heard it.
    let _ = tokio::time::timeout(ABSENCE_TRY, stream.read(&mut [0])).await;
    Ok(())
}
