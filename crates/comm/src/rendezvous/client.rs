//! The worker's side: joining, and the handle to the control connection.

use std::io::{Read, Write};
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio_util::codec::Framed;

use super::codec::Codec;
use super::protocol::{self, Garbled, Hello, ToServer, ToWorker};
use crate::door;
use crate::patience::Patience;
use crate::{Backend, CommError, Fault, Result, Revocation, Settings, World, connect_with, ending};

/// How much later than the server the worker gives up waiting, since the server knows more.
const LATER: Duration = Duration::from_secs(2);

/// What became of a server whose connection has ended.
const GONE: &str = "is gone, and its ranks with it";

/// What is known of one that sends something else than it means.
const DAMAGED: &str = "sends what comes damaged";

/// How long one try to connect may take, where more than one address or try may do.
const TRY: Duration = Duration::from_secs(5);
/// How long one try to tell it may take.
const ABSENCE_TRY: Duration = Duration::from_secs(2);

type Frames = Framed<TcpStream, Codec>;

/// What a worker gets when all ranks have come and agree.
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
    /// The rank that was lost; none if it was the supervising process.
    pub rank: Option<usize>,
    pub reason: String,
}

impl std::fmt::Display for Aborted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.rank {
            Some(rank) => write!(f, "rank {rank} is lost: {}", self.reason),
            None => f.write_str(&self.reason),
        }
    }
}

/// The control connection of a worker. Dropping it without [`ControlHandle::bye`] tells the
/// others that this rank is lost; [`ControlHandle::blame`], that another is.
pub struct ControlHandle {
    shared: Arc<Shared>,
    outgoing: Option<UnboundedSender<ToServer>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    wants_stop: AtomicBool,
    aborted: OnceLock<Aborted>,
    /// Of the job that is about to meet, and then for as long as it lives.
    revocation: Revocation,
}

/// Meets the other ranks at any of the addresses of the server; tries again until it is there.
///
/// # Errors
/// Nobody answers within `timeout_ms`, or the network is not there; or why the ranks do not come
/// together, the same on each.
pub fn join(addrs: impl ToSocketAddrs, hello: Hello, timeout_ms: u64) -> Result<Joined> {
    let addrs: Vec<SocketAddr> = addrs.to_socket_addrs().map_err(CommError::Runtime)?.collect();
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_io().enable_time().build().map_err(CommError::Runtime)?;
    let shared = Arc::new(Shared::default());
    let (outgoing, messages) = unbounded_channel();
    let (answer, answered) = mpsc::channel();
    let (known, job) = (Arc::clone(&shared), hello.job.clone());
    let thread = std::thread::Builder::new().name("control".to_owned());
    let thread = thread.spawn(move || {
        runtime.block_on(async move {
            match meet(&addrs, hello, timeout_ms).await {
                Err(error) => drop(answer.send(Err(error))),
                Ok((frames, peers, start)) => {
                    let _ = answer.send(Ok((peers, start)));
                    converse(frames, messages, &known).await;
                }
            }
        });
    });
    let thread = Some(thread.map_err(CommError::Runtime)?);
    let control = ControlHandle { shared, outgoing: Some(outgoing), thread };
    let ended = |_| CommError::Runtime(std::io::ErrorKind::BrokenPipe.into());
    let (peers, start) = answered.recv().map_err(ended)??;
    Ok(Joined { peers, group: format!("{job}-{start:016x}"), control })
}

async fn meet(
    addrs: &[SocketAddr],
    hello: Hello,
    timeout_ms: u64,
) -> Result<(Frames, Vec<SocketAddr>, u64)> {
    let limit = Duration::from_millis(timeout_ms);
    if addrs.is_empty() {
        return Err(CommError::Runtime(std::io::ErrorKind::NotFound.into()));
    }
    let mut last = "no try has ended".to_owned();
    let tried = Patience::new(limit).within(connect(addrs, &mut last)).await;
    let silent = |last: String| CommError::NoRendezvous { addrs: list(addrs), timeout_ms, last };
    let (stream, addr) = tried.ok_or_else(|| silent(last))??;
    let mut frames = Framed::new(stream, Codec);
    let lost = |source| CommError::Socket { addr, action: "join", source };
    frames.send(protocol::encode(&ToServer::Hello(hello), true)).await.map_err(lost)?;
    let first = Patience::new(limit + LATER).within(frames.next()).await;
    let first =
        first.ok_or_else(|| silent("it took the connection and says nothing".to_owned()))?;
    let stranger = |how| CommError::NotRendezvous { addr, how };
    let first = first.ok_or_else(|| stranger("closed the connection without an answer"))?;
    let other = "answers as something else";
    let first = first.map_err(|error| match error.kind() {
        // A length that no frame has.
        std::io::ErrorKind::InvalidData => stranger(other),
        _ => lost(error),
    })?;
    match protocol::decode(&first, true) {
        Ok(ToWorker::Joined { peers, start }) => Ok((frames, peers, start)),
        Ok(ToWorker::Refused(refusal)) => Err(refusal.into()),
        Err(Garbled::Protocol(got)) => Err(protocol::other_protocol(got).into()),
        Err(Garbled::Damaged) => Err(stranger("sends an answer that comes damaged")),
        Ok(_) | Err(Garbled::Stranger) => Err(stranger(other)),
    }
}

fn list(addrs: &[SocketAddr]) -> String {
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

/// Tells the server, if it is found within `patience`, that a host will not bring its ranks, so
/// that the others need not wait for them; returns whether it was. Once they have met this changes
/// nothing.
pub fn report_absent(
    addrs: impl ToSocketAddrs,
    job: &str,
    node: usize,
    reason: &str,
    patience: Duration,
) -> bool {
    let addrs: Vec<SocketAddr> = addrs.to_socket_addrs().into_iter().flatten().collect();
    let (job, reason) = (job.to_owned(), protocol::cut(reason).to_owned());
    let message = protocol::encode(&ToServer::Absent { job, node, reason }, true);
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX).to_le_bytes();
    let until = Instant::now() + patience;
    while Instant::now() < until {
        let connect = |addr| std::net::TcpStream::connect_timeout(addr, ABSENCE_TRY).ok();
        if let Some(mut stream) = addrs.iter().find_map(connect) {
            let _ = stream.set_read_timeout(Some(ABSENCE_TRY));
            // The server has heard it when it closes the connection.
            let said = stream.write_all(&[&length[..], &message].concat());
            let _ = said.and_then(|()| stream.read(&mut [0]));
            return true;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    false
}

/// Passes messages until this rank leaves or the server is gone. A server that does not read what
/// it is sent is still listened to.
async fn converse(frames: Frames, mut outgoing: UnboundedReceiver<ToServer>, shared: &Arc<Shared>) {
    let server = frames.get_ref().peer_addr().ok();
    let (mut to_server, mut from_server) = frames.split();
    let tell = async {
        while let Some(message) = outgoing.recv().await {
            let is_last = matches!(message, ToServer::Bye | ToServer::Blame(_));
            let sent = to_server.send(protocol::encode(&message, false)).await;
            if is_last {
                return;
            }
            if sent.is_err() {
                return shared.lose_server(server, GONE);
            }
        }
    };
    let listen = async {
        loop {
            match from_server.next().await.map(|frame| frame.map(decode)) {
                Some(Ok(Some(ToWorker::Stop))) => shared.wants_stop.store(true, Ordering::Release),
                Some(Ok(Some(ToWorker::Abort { rank, reason }))) => {
                    shared.abort(Aborted { rank: Some(rank), reason });
                }
                Some(Ok(Some(ToWorker::Joined { .. } | ToWorker::Refused(_)))) => {}
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

fn decode(frame: bytes::BytesMut) -> Option<ToWorker> {
    protocol::decode(&frame, false).ok()
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
        self.abort(Aborted { rank: None, reason });
    }
}

impl ControlHandle {
    /// As [`crate::connect`], under control: an abort ends the meeting at once, and revokes the job
    /// for as long as it lives.
    ///
    /// # Errors
    /// As [`crate::connect`].
    pub fn connect(
        &self,
        backend: Backend,
        rank: usize,
        world: usize,
        timeout_ms: u64,
    ) -> Result<World> {
        let revocation = self.shared.revocation.clone();
        let settings = Settings { revocation, ..Settings::new(timeout_ms) };
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

    /// Says that this rank will leave because of others, not yet because of whom.
    pub fn follow(&self) {
        self.say(ToServer::Follows);
    }

    /// Leaves because of others; returns once that is said.
    pub fn blame(mut self, fault: &Fault) {
        let what = protocol::cut(&fault.what).to_owned();
        self.say(ToServer::Blame(Fault { ranks: fault.ranks.clone(), what }));
        self.close();
    }

    /// Leaves in good order; returns once that is said.
    pub fn bye(mut self) {
        self.say(ToServer::Bye);
        self.close();
    }

    fn say(&self, message: ToServer) {
        // The connection may be gone; whoever asks `aborted` knows.
        let _ = self.outgoing.as_ref().map(|outgoing| outgoing.send(message));
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
