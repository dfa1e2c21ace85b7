//! The worker's side: joining, and the handle to the control connection.

use std::io::ErrorKind;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::time::Duration;

use futures_util::StreamExt;
use tokio::net::TcpStream;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio_util::codec::Framed;

use super::codec::Codec;
use super::protocol::{self, Hello, Refusal, Said, ToServer, ToWorker};
use crate::door;
use crate::error::ranks;
use crate::handshake::{self, Claim, Failed, Keys, Refused, Seal};
use crate::patience::Patience;
use crate::tls::{self, Connection, Security, TlsFault};
use crate::{
    Backend, CommError, Fault, Result, Revocation, Secret, Settings, World, connect_with, ending,
};

/// How much later than the server the worker gives up waiting, since the server knows more. Both
/// count from the connection on, and the server from before it.
const LATER: Duration = Duration::from_secs(1);

/// A server whose connection has ended, in words.
const GONE: &str = "is gone, and its ranks with it";

/// A server whose messages come damaged, in words.
const DAMAGED: &str = "sends what comes damaged";

/// How long one try to connect may take, where more than one address or try may do.
const TRY: Duration = Duration::from_secs(5);
/// When a connection that was closed is made anew: soon, and then less often, since there may be
/// many who try.
pub(super) const AGAIN: Duration = Duration::from_millis(100);
const SELDOM: Duration = Duration::from_secs(1);
/// How long who took a connection after others were closed may be silent before that is the news.
const SILENT: Duration = Duration::from_secs(1);

/// A connection to the server, after the handshake.
struct Line {
    frames: Framed<Connection, Codec>,
    send: Seal,
    receive: Seal,
}

/// The result of a meeting, once all ranks have come and agree.
pub struct Joined {
    /// Where each rank listens; empty where they do not.
    pub peers: Vec<SocketAddr>,
    /// The job's name with a number of this start, which keeps those of earlier starts out.
    pub group: String,
    pub control: ControlHandle,
}

/// Why the job is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Aborted {
    /// The ranks that were lost; none if it was the supervising process.
    pub ranks: Vec<usize>,
    pub reason: String,
}

impl std::fmt::Display for Aborted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.ranks[..] {
            [] => f.write_str(&self.reason),
            [rank] => write!(f, "rank {rank} is lost: {}", self.reason),
            _ => write!(f, "{} are lost: {}", ranks(&self.ranks), self.reason),
        }
    }
}

/// The control connection of a worker. Dropping it without [`ControlHandle::bye`] tells the
/// others that this rank is lost; [`ControlHandle::blame`], that another is.
pub struct ControlHandle {
    shared: Arc<Shared>,
    security: Security,
    outgoing: Option<UnboundedSender<ToServer>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    wants_stop: AtomicBool,
    aborted: OnceLock<Aborted>,
    /// The server answers.
    is_heard: AtomicBool,
    /// Of the job that is about to meet, and then for as long as it lives.
    revocation: Revocation,
}

/// As [`join_with`], of a job without a secret.
///
/// # Errors
/// As [`join_with`].
pub fn join(addrs: impl ToSocketAddrs, hello: Hello, timeout_ms: u64) -> Result<Joined> {
    join_with(addrs, hello, Secret::none(), timeout_ms)
}

/// As [`join_hearing`], where nobody listens to hints.
///
/// # Errors
/// As [`join_hearing`].
pub fn join_with(
    addrs: impl ToSocketAddrs,
    hello: Hello,
    security: impl Into<Security>,
    timeout_ms: u64,
) -> Result<Joined> {
    join_hearing(addrs, hello, security, timeout_ms, &mut drop)
}

/// Meets the other ranks at any of the addresses of the server; tries again until it is there.
/// `hear` gets what people should know while others are awaited.
///
/// # Errors
/// Nobody answers within `timeout_ms`, or the network is not there; the server has another secret
/// or authority, TLS or none, or speaks another protocol; or why the ranks do not come together,
/// the same on each.
pub fn join_hearing(
    addrs: impl ToSocketAddrs,
    hello: Hello,
    security: impl Into<Security>,
    timeout_ms: u64,
    hear: &mut dyn FnMut(String),
) -> Result<Joined> {
    let security = security.into();
    let addrs: Vec<SocketAddr> = addrs.to_socket_addrs().map_err(CommError::Runtime)?.collect();
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_io().enable_time().build().map_err(CommError::Runtime)?;
    let shared = Arc::new(Shared::default());
    let (outgoing, messages) = unbounded_channel();
    let (answer, answered) = mpsc::channel();
    let (known, job) = (Arc::clone(&shared), hello.job.clone());
    let ours = security.clone();
    let thread = std::thread::Builder::new().name("control".to_owned());
    let thread = thread.spawn(move || {
        runtime.block_on(async move {
            let hint = |text| drop(answer.send(Told::Hint(text)));
            match meet(&addrs, hello, &ours, timeout_ms, hint).await {
                Err(error) => drop(answer.send(Told::Met(Err(error)))),
                Ok((line, peers, start)) => {
                    let _ = answer.send(Told::Met(Ok((peers, start))));
                    converse(line, messages, &known).await;
                }
            }
        });
    });
    let thread = Some(thread.map_err(CommError::Runtime)?);
    let control = ControlHandle { shared, security, outgoing: Some(outgoing), thread };
    let ended = |_| CommError::Runtime(std::io::ErrorKind::BrokenPipe.into());
    let (peers, start) = loop {
        match answered.recv().map_err(ended)? {
            Told::Hint(text) => hear(text),
            Told::Met(met) => break met?,
        }
    };
    Ok(Joined { peers, group: protocol::group(&job, start), control })
}

/// Messages of the control connection's thread to the one that joins.
enum Told {
    Hint(String),
    /// Where each rank listens, and the number of the start.
    Met(Result<(Vec<SocketAddr>, u64)>),
}

async fn meet(
    addrs: &[SocketAddr],
    hello: Hello,
    security: &Security,
    timeout_ms: u64,
    hint: impl Fn(String),
) -> Result<(Line, Vec<SocketAddr>, u64)> {
    let limit = Duration::from_millis(timeout_ms);
    if addrs.is_empty() {
        return Err(CommError::Runtime(std::io::ErrorKind::NotFound.into()));
    }
    let mut last = "no try has ended".to_owned();
    let claim = protocol::claim(hello.rank, protocol::MEET);
    let tried = Patience::new(limit).within(reach(addrs, security, claim, &mut last)).await;
    let silent = |last: String| CommError::NoRendezvous { addrs: list(addrs), timeout_ms, last };
    let (stream, addr, keys) = tried.ok_or_else(|| silent(last))??;
    // It was waited for longer than for who is not there.
    let nothing = || CommError::NoRendezvous {
        addrs: list(addrs),
        timeout_ms: timeout_ms + LATER.as_millis() as u64,
        last: "it took the connection and says nothing".to_owned(),
    };
    let stranger = |how| CommError::NotRendezvous { addr, how };
    let closed = || stranger("closed the connection without an answer");
    let lost = |source: std::io::Error| match source.kind() {
        ErrorKind::ConnectionReset
        | ErrorKind::ConnectionAborted
        | ErrorKind::BrokenPipe
        | ErrorKind::UnexpectedEof => closed(),
        _ => CommError::Socket { addr, action: "join", source },
    };
    let frames = Framed::new(stream, Codec);
    let mut line = Line { frames, send: Seal::new(keys.send), receive: Seal::new(keys.receive) };
    line.say(&ToServer::Hello(hello)).await.map_err(lost)?;
    let damaged = || stranger("sends an answer that comes damaged");
    let answer = async {
        loop {
            let frame = line.frames.next().await.ok_or_else(closed)?;
            let frame = frame.map_err(|error| match error.kind() {
                // A length that no frame has.
                ErrorKind::InvalidData => damaged(),
                _ => lost(error),
            })?;
            match protocol::open(&frame, &mut line.receive) {
                Some(ToWorker::Hint(text)) => hint(text),
                Some(ToWorker::Joined { peers, start }) => {
                    return Ok::<_, CommError>((peers, start));
                }
                Some(ToWorker::Refused(refusal)) => return Err(refusal.into()),
                _ => return Err(damaged()),
            }
        }
    };
    let answer = Patience::new(limit + LATER).within(answer).await;
    let (peers, start) = answer.ok_or_else(nothing)??;
    Ok((line, peers, start))
}

/// A connection to the server, and the keys of what is said there. One that breaks before that is
/// known is made anew, for as long as the caller waits: the server may be about to start or start
/// again, a proxy before it may have nobody to pass it to, or the server's door, where many come,
/// had to make room. `last` tells what came of the last try.
pub(super) async fn reach(
    addrs: &[SocketAddr],
    security: &Security,
    claim: Claim,
    last: &mut String,
) -> Result<(Connection, SocketAddr, Keys)> {
    let (mut pause, mut silent) = (AGAIN, Duration::ZERO);
    loop {
        let (stream, addr) = connect(addrs, last).await?;
        let dialled = handshake::dial(stream, security, claim);
        match unless_silent(dialled, silent, last).await {
            Ok((stream, keys)) => return Ok((stream, addr, keys)),
            Err(Failed::Io(error)) => *last = broken(&error),
            Err(Failed::Refused(refused)) => return Err(of_another(addr, refused)),
            Err(Failed::Tls(fault)) => return Err(without_tls(addr, fault)),
        }
        tokio::time::sleep(pause).await;
        (pause, silent) = ((2 * pause).min(SELDOM), SILENT);
    }
}

/// The output of `dialled`; if that lasts, `last` says so meanwhile.
async fn unless_silent<T>(
    dialled: impl Future<Output = T>,
    after: Duration,
    last: &mut String,
) -> T {
    let mut dialled = std::pin::pin!(dialled);
    tokio::select! {
        biased;
        done = &mut dialled => return done,
        () = tokio::time::sleep(after) => {}
    }
    "it took the connection and says nothing".clone_into(last);
    dialled.await
}

/// How a connection ended that was taken.
fn broken(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::UnexpectedEof => "it took the connection, and closed it without an \
                                              answer, as versions before protocol 5 do"
            .to_owned(),
        _ => format!("it took the connection, and then: {error}"),
    }
}

/// Whom an error is of that the other end makes.
fn meeting_point(addr: SocketAddr) -> String {
    format!("the meeting point at {addr}, node 0 of the job,")
}

/// Why who listens at `addr` is not the server of this job.
fn of_another(addr: SocketAddr, refused: Refused) -> CommError {
    match refused {
        Refused::Secret => CommError::Secret { who: meeting_point(addr) },
        Refused::Protocol(got) => protocol::other_protocol(got).into(),
        Refused::Stranger => CommError::NotRendezvous { addr, how: "answers as something else" },
    }
}

/// Why there is no TLS with who listens at `addr`.
fn without_tls(addr: SocketAddr, fault: TlsFault) -> CommError {
    match fault {
        TlsFault::Lacks(lack) => {
            let reason = format!(
                "{lack}, as who listens at {addr} says without a proof; see node 0's own messages"
            );
            Refusal::Absent { node: 0, reason }.into()
        }
        fault => CommError::Tls { who: meeting_point(addr), fault },
    }
}

impl Line {
    async fn say(&mut self, message: &ToServer) -> std::io::Result<()> {
        Said::new(message).say(self.frames.get_mut(), &mut self.send).await
    }
}

pub(super) fn list(addrs: &[SocketAddr]) -> String {
    let texts: Vec<String> = addrs.iter().map(ToString::to_string).collect();
    texts.join(" or ")
}

/// Connects to whichever address answers first; `last` tells what came of the last try.
async fn connect(addrs: &[SocketAddr], last: &mut String) -> Result<(TcpStream, SocketAddr)> {
    loop {
        let mut unreachable = None;
        let mut hopeless = 0;
        for &addr in addrs {
            match tokio::time::timeout(TRY, TcpStream::connect(addr)).await {
                Ok(Ok(stream)) => {
                    let _ = stream.set_nodelay(true);
                    door::keep_alive(&stream);
                    return Ok((stream, addr));
                }
                Ok(Err(source)) if door::is_final(&source) => {
                    hopeless += 1;
                    unreachable = Some(CommError::Unreachable { addr, source });
                }
                Ok(Err(error)) => *last = error.to_string(),
                Err(_) => "no answer".clone_into(last),
            }
        }
        if let Some(error) = unreachable.filter(|_| hopeless == addrs.len()) {
            return Err(error);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Passes messages until this rank leaves or the server is gone. A server that does not read what
/// it is sent is still listened to.
async fn converse(line: Line, mut outgoing: UnboundedReceiver<ToServer>, shared: &Arc<Shared>) {
    let Line { frames, mut send, mut receive } = line;
    let server = tls::peer_addr(frames.get_ref());
    let (mut from_server, mut to_server) = protocol::split(frames);
    let tell = async {
        while let Some(message) = outgoing.recv().await {
            let leaves = matches!(message, ToServer::Bye | ToServer::Blame(_));
            let sent = Said::new(&message).say(&mut to_server, &mut send).await;
            // Who leaves does without.
            if sent.is_err() && !leaves {
                return shared.lose_server(server, GONE);
            }
        }
    };
    let listen = async {
        loop {
            let next = from_server.next().await;
            match next.map(|frame| frame.map(|frame| protocol::open(&frame, &mut receive))) {
                Some(Ok(Some(ToWorker::Stop))) => shared.wants_stop.store(true, Ordering::Release),
                Some(Ok(Some(ToWorker::Heard))) => shared.is_heard.store(true, Ordering::Release),
                Some(Ok(Some(ToWorker::Abort { ranks, reason }))) => {
                    shared.abort(Aborted { ranks, reason });
                }
                // Of the meeting, which is over.
                Some(Ok(Some(_))) => {}
                Some(Ok(None)) => return shared.lose_server(server, DAMAGED),
                // A length that no frame has.
                Some(Err(error)) if error.kind() == std::io::ErrorKind::InvalidData => {
                    return shared.lose_server(server, DAMAGED);
                }
                Some(Err(_)) | None => return shared.lose_server(server, GONE),
            }
        }
    };
    tokio::select! {
        () = tell => {}
        () = listen => {}
    }
}

impl Shared {
    /// The first reason stays; the job is given up.
    fn abort(&self, aborted: Aborted) {
        let aborted = self.aborted.get_or_init(|| aborted);
        self.revocation.revoke(&aborted.to_string());
    }

    /// The connection to the server, which is node 0's, is of no use any more.
    fn lose_server(&self, server: Option<SocketAddr>, how: &str) {
        let at = server.map(|addr| format!(" (at {addr})")).unwrap_or_default();
        let reason = format!("node 0's supervising process{at} {how}");
        self.abort(Aborted { ranks: Vec::new(), reason });
    }
}

impl ControlHandle {
    /// As [`crate::connect_with`], under control: an abort ends the meeting at once, and revokes
    /// the job for as long as it lives. Revocation, secret and TLS are those of the control
    /// connection.
    ///
    /// # Errors
    /// As [`crate::connect_with`].
    pub fn connect(
        &self,
        backend: Backend,
        rank: usize,
        world: usize,
        settings: Settings,
    ) -> Result<World> {
        let (revocation, secret) = (self.shared.revocation.clone(), self.security.secret);
        let tls = self.security.tls.clone();
        let settings = Settings { revocation, secret, tls, ..settings };
        connect_with(backend, rank, world, settings)
    }

    /// Reports that `step` is done.
    pub fn status(&self, step: u64) {
        self.say(ToServer::Status { step });
    }

    /// Whether the job should finish its step, save and end.
    pub fn stop_requested(&self) -> bool {
        self.shared.wants_stop.load(Ordering::Acquire)
    }

    /// Why the job is over, if it is.
    pub fn aborted(&self) -> Option<Aborted> {
        self.shared.aborted.get().cloned()
    }

    /// Whether the server has heard that this rank will leave. One that is frozen does not, nor
    /// what becomes of that.
    pub fn is_heard(&self) -> bool {
        self.shared.is_heard.load(Ordering::Acquire)
    }

    /// Says that this rank will leave because of others, not yet because of whom.
    pub fn follow(&self) {
        self.say(ToServer::Follows);
    }

    /// Says that this rank will leave because of others, and whom it blames; what becomes of that
    /// is known by [`ControlHandle::aborted`].
    pub fn accuse(&self, fault: &Fault) {
        let what = protocol::cut(&fault.what).to_owned();
        self.say(ToServer::Blame(Fault { ranks: fault.ranks.clone(), what }));
    }

    /// Leaves because of others; returns once that is said.
    pub fn blame(mut self, fault: &Fault) {
        self.accuse(fault);
        self.close();
    }

    /// Leaves in good order; returns once that is said.
    pub fn bye(mut self) {
        self.say(ToServer::Bye);
        self.close();
    }

    fn say(&self, message: ToServer) {
        if let Some(outgoing) = &self.outgoing {
            // The connection may be gone; whoever asks `aborted` knows.
            let _ = outgoing.send(message);
        }
    }

    fn close(&mut self) {
        self.outgoing = None;
        if let Some(thread) = self.thread.take() {
            ending::join(thread);
        }
    }
}

impl Drop for ControlHandle {
    fn drop(&mut self) {
        self.close();
    }
}
