//! A host that will not bring its ranks, which are waited for: it tells the server, or serves in
//! its place if that would have been there.

use std::net::{SocketAddr, ToSocketAddrs};
use std::time::{Duration, Instant};

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use super::meeting::Shared;
use super::protocol::{self, Refusal, Said, ToServer};
use super::server::Server;
use crate::handshake::{self, Failed, Seal};
use crate::tls::{Security, Tls};
use crate::{Result, Secret};

/// How long one try to tell it may take.
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

/// What came of telling the server.
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
    let addrs: Vec<SocketAddr> = addrs.to_socket_addrs().into_iter().flatten().collect();
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let Ok(runtime) = builder.enable_io().enable_time().build() else {
        return Reported::NotFound;
    };
    let until = Instant::now() + patience;
    runtime.block_on(async {
        while Instant::now() < until {
            for &addr in &addrs {
                let connected = tokio::time::timeout(ABSENCE_TRY, TcpStream::connect(addr)).await;
                let Ok(Ok(stream)) = connected else { continue };
                match tokio::time::timeout(ABSENCE_TRY, tell_absence(stream, absent)).await {
                    // One that takes its time has heard it.
                    Err(_) | Ok(Ok(())) => return Reported::Heard,
                    // Closed at once, as in [`reach`].
                    Ok(Err(Failed::Io(_))) => {}
                    // Such as one of another secret.
                    Ok(Err(_)) => return Reported::Refused,
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Reported::NotFound
    })
}

/// Node 0 will not bring its ranks, nor serve those of the others: serves at the addresses that
/// this host has, for `patience` at most, and says so to whoever comes; returns whether all ranks
/// of the other `nodes` have heard it, or their hosts have said that they will not come either.
/// Who does not prove to be of the job is told nothing: what this host failed with may be that it
/// does not know the job's secret.
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

/// Returns when the server has heard it.
async fn tell_absence(stream: TcpStream, absent: Absent<'_>) -> std::result::Result<(), Failed> {
    let Absent { job, secret, tls, node, reason } = absent;
    let security = Security { secret, tls: tls.cloned() };
    let claim = protocol::claim(node, protocol::ABSENT);
    let (mut stream, keys) = handshake::dial(stream, &security, claim).await?;
    let (job, reason) = (job.to_owned(), protocol::cut(reason).to_owned());
    let message = Said::new(&ToServer::Absent { job, node, reason });
    message.say(&mut stream, &mut Seal::new(keys.send)).await?;
    // It closes the connection then, in one way or another.
    let _ = stream.read(&mut [0]).await;
    Ok(())
}
