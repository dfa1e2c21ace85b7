//! The server: run by the supervising process of node 0, on a thread of its own.

use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use socket2::SockRef;
use tokio::sync::mpsc::unbounded_channel;
use tokio::sync::oneshot;

use super::attend::{PARTING, serve};
use super::channel::ToHost;
use super::meeting::{Meeting, Phase, Shared};
use super::point::Point;
use super::protocol::ToWorker;
use super::seats::HostState;
use crate::tls::Security;
use crate::{CommError, Fault, Result, Secret, door, ending, files, tcp};

/// How long an address may take to answer when it is tried.
const PROBE: Duration = Duration::from_secs(1);
/// Connections that may wait to be taken, as far as the system lets them: all ranks come at once.
const BACKLOG: i32 = 1 << 14;
/// Files that the server's process has open beside one for each rank.
const FILES: u64 = 32;

/// The meeting point; dropping it ends every control connection.
pub struct Server {
    addr: SocketAddr,
    point: Arc<Point>,
    shutdown: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    /// Starts waiting for the `world` ranks of `job`, for `timeout_ms` at most, at every one of
    /// the addresses that this host has.
    ///
    /// # Errors
    /// A port is taken; no address is one of this host; it cannot be reached even from here; this
    /// process may not have as many connections.
    pub fn bind(
        addrs: impl ToSocketAddrs,
        job: &str,
        world: usize,
        timeout_ms: u64,
    ) -> Result<Server> {
        Server::of_nodes(addrs, (job, Secret::none()), world, 1, timeout_ms)
    }

    /// As [`Server::bind`], of a job with a secret, and perhaps TLS, for ranks that are divided
    /// evenly among `nodes` hosts, in their order: hosts that do not come are named.
    ///
    /// # Errors
    /// As [`Server::bind`].
    pub fn of_nodes(
        addrs: impl ToSocketAddrs,
        (job, security): (&str, impl Into<Security>),
        world: usize,
        nodes: usize,
        timeout_ms: u64,
    ) -> Result<Server> {
        let needed = world as u64 + FILES;
        files::allow(needed).map_err(|limit| CommError::Files { world, needed, limit })?;
        // With some for strangers; it does without.
        let _ = files::allow((world + door::BESIDE) as u64);
        let of_job = (job, security.into());
        Server::start(addrs, Shared::new(of_job, world, nodes, timeout_ms)?)
    }

    pub(super) fn start(addrs: impl ToSocketAddrs, shared: Shared) -> Result<Server> {
        let (addr, listeners) = listeners(addrs)?;
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_io().enable_time().build().map_err(CommError::Runtime)?;
        let (begun, meetings) = unbounded_channel();
        let nodes = shared.nodes();
        let point = Arc::new(Point::new(shared, nodes, begun));
        let (shutdown, ended) = oneshot::channel();
        let served = Arc::clone(&point);
        let thread = std::thread::Builder::new().name("rendezvous".to_owned());
        let serving = move || runtime.block_on(serve(listeners, served, meetings, ended));
        let thread = Some(thread.spawn(serving).map_err(CommError::Runtime)?);
        Ok(Server { addr, point, shutdown: Some(shutdown), thread })
    }

    /// Where workers connect to.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Blocks until every rank has joined.
    ///
    /// # Errors
    /// Why they did not come together.
    pub fn wait_joined(&self) -> Result<()> {
        let shared = self.point.meeting();
        let mut meeting = shared.lock();
        loop {
            match &meeting.phase {
                Phase::Open => return Ok(()),
                Phase::Refused(refusal) => return Err(refusal.clone().into()),
                Phase::Gathering => {}
            }
            let woken = shared.changed.wait(meeting);
            meeting = woken.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A worker has ended otherwise than by finishing: every other rank gives up. `reason` is the
    /// one that people will read (exit status, last lines of its log).
    pub fn report_exit(&self, rank: usize, reason: &str) {
        self.point.meeting().lose(&[rank], reason);
    }

    /// The step that `rank` last reported.
    pub fn last_step(&self, rank: usize) -> Option<u64> {
        let shared = self.point.meeting();
        let meeting = shared.lock();
        meeting.workers.get(rank).and_then(Option::as_ref).and_then(|worker| worker.last_step)
    }

    /// Ranks of the job, on all hosts.
    pub fn world(&self) -> usize {
        self.point.meeting().world
    }

    /// The first ranks that were lost after the meeting, and how.
    pub fn lost(&self) -> Option<Fault> {
        self.point.meeting().lock().lost.clone()
    }

    /// Who has been turned away since this was asked last, and what to do about it: bounded, since
    /// anyone may come.
    pub fn news(&self) -> Vec<String> {
        self.point.meeting().lock().strangers.news()
    }

    /// Whether the ranks did not come together.
    pub fn has_refused(&self) -> bool {
        matches!(self.point.meeting().lock().phase, Phase::Refused(_))
    }

    /// After a meeting that was refused: stays until the ranks of all other hosts have heard why,
    /// those that were late among them, for `patience` at most; returns whether they have. Returns
    /// at once where nobody was refused.
    pub fn linger(&self, patience: Duration) -> bool {
        let may_be_late = |meeting: &mut Meeting| {
            matches!(meeting.phase, Phase::Refused(_)) && !meeting.told.is_everyone()
        };
        let shared = self.point.meeting();
        let meeting = shared.lock();
        let waited = shared.changed.wait_timeout_while(meeting, patience, may_be_late);
        let (mut meeting, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let all_know = !may_be_late(&mut meeting);
        let was_refused = matches!(meeting.phase, Phase::Refused(_));
        drop(meeting);
        if all_know && was_refused {
            // The last messages are on their way.
            std::thread::sleep(PARTING);
        }
        all_know
    }

    /// From now on a host whose supervisor says nothing for `limit` is taken for gone, and its
    /// ranks for lost.
    pub fn judge_hosts(&self, limit: Duration) {
        self.point.seats(|seats, _| seats.judge(limit));
    }

    /// Every host but this one.
    pub fn hosts(&self) -> Vec<HostState> {
        self.point.seats(|seats, _| seats.states())
    }

    /// Begins the next incarnation, with the ranks of these hosts, each as many as before: they
    /// meet here, and the supervisors of the other hosts are told to start them. Returns its
    /// number.
    ///
    /// # Errors
    /// No random numbers.
    pub fn begin_again(&self, hosts: &[usize]) -> Result<u64> {
        self.point.begin(hosts)
    }

    /// Says something to the people at all other hosts.
    pub fn notice(&self, text: &str) {
        self.point.seats(|seats, _| seats.tell_all(&ToHost::Notice(text.to_owned())));
    }

    /// Tells all other hosts that the job is over, and waits, within `patience`, until they have
    /// heard it.
    pub fn end_hosts(&self, exit: u8, why: &str, patience: Duration) {
        self.point.seats(|seats, _| seats.end(exit, why));
        let until = Instant::now() + patience;
        while self.point.seats(|seats, _| seats.any_open()) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Asks every rank to finish its step, save and leave.
    pub fn request_stop(&self) {
        let shared = self.point.meeting();
        let mut meeting = shared.lock();
        meeting.wants_stop = true;
        if matches!(meeting.phase, Phase::Open) {
            meeting.tell_all(&ToWorker::Stop);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.shutdown.take());
        if let Some(thread) = self.thread.take() {
            ending::join(thread);
        }
    }
}

/// Listens at every one of the addresses that this host has; the first of them.
pub(super) fn listeners(addrs: impl ToSocketAddrs) -> Result<(SocketAddr, Vec<TcpListener>)> {
    let addrs: Vec<SocketAddr> = addrs.to_socket_addrs().map_err(CommError::Runtime)?.collect();
    let listen = |addr| {
        let listener = tcp::listen(addr)?;
        let more = SockRef::from(&listener).listen(BACKLOG);
        more.map_err(|source| CommError::Bind { addr, source })?;
        probe(listener)
    };
    let listeners = each_of_this_host(&addrs, listen)?;
    let addr = listeners.first().map(TcpListener::local_addr);
    let addr = addr.unwrap_or(Err(std::io::ErrorKind::NotFound.into()));
    Ok((addr.map_err(CommError::Runtime)?, listeners))
}

/// Whether a server can be bound to the addresses. Nobody can connect to it meanwhile.
///
/// # Errors
/// As [`Server::bind`], but for addresses that cannot be reached from here.
pub fn can_serve(addrs: impl ToSocketAddrs) -> Result<()> {
    let addrs: Vec<SocketAddr> = addrs.to_socket_addrs().map_err(CommError::Runtime)?.collect();
    each_of_this_host(&addrs, tcp::can_listen).map(drop)
}

/// Returns the results of `make` on every address that this host has.
fn each_of_this_host<T>(
    addrs: &[SocketAddr],
    make: impl Fn(SocketAddr) -> Result<T>,
) -> Result<Vec<T>> {
    let mut all = Vec::new();
    let mut elsewhere = None;
    for (index, &addr) in addrs.iter().enumerate() {
        if addrs[..index].contains(&addr) {
            continue;
        }
        match make(addr) {
            Ok(made) => all.push(made),
            // A name may stand for addresses that this host lacks, such as those of IPv6.
            Err(error) if is_elsewhere(&error) => elsewhere = Some(error),
            Err(error) => return Err(error),
        }
    }
    match elsewhere {
        Some(error) if all.is_empty() => Err(error),
        _ => Ok(all),
    }
}

/// Whether an address is none of this host, or has no network to it.
fn is_elsewhere(error: &CommError) -> bool {
    match error {
        CommError::Bind { source, .. } => {
            source.kind() == std::io::ErrorKind::AddrNotAvailable || door::is_final(source)
        }
        CommError::Unreachable { .. } => true,
        _ => false,
    }
}

/// One can listen where nobody gets to: at loopback while that interface is down.
fn probe(listener: TcpListener) -> Result<TcpListener> {
    let own = listener.local_addr().map_err(CommError::Runtime)?;
    if !own.ip().is_unspecified()
        && let Err(source) = std::net::TcpStream::connect_timeout(&own, PROBE)
        && door::is_final(&source)
    {
        return Err(CommError::Unreachable { addr: own, source });
    }
    Ok(listener)
}
