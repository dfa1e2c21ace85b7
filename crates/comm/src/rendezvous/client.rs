//! The worker's side: joining, and the handle to the control connection.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak, mpsc};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio_util::codec::{Framed, LengthDelimitedCodec};

use super::protocol::{self, Garbled, Hello, ToServer, ToWorker};
use crate::patience::Patience;
use crate::{CommError, Communicator, Fault, Result};

/// How much later than the server the worker gives up waiting, since the server knows more.
const LATER: Duration = Duration::from_secs(2);

type Frames = Framed<TcpStream, LengthDelimitedCodec>;

/// What a worker gets when all ranks have come and agree.
pub struct Joined {
    /// Where each rank listens; empty where they do not.
    pub peers: Vec<SocketAddr>,
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
    groups: Mutex<Vec<Weak<dyn Communicator>>>,
}

/// Meets the other ranks at `addr`; tries again until the server is there.
///
/// # Errors
/// Nobody answers within `timeout_ms`; or why the ranks do not come together, the same on each.
pub fn join(addr: SocketAddr, hello: Hello, timeout_ms: u64) -> Result<Joined> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_io().enable_time().build().map_err(CommError::Runtime)?;
    let shared = Arc::new(Shared::default());
    let (outgoing, messages) = unbounded_channel();
    let (answer, answered) = mpsc::channel();
    let known = Arc::clone(&shared);
    let thread = std::thread::Builder::new().name("control".to_owned());
    let thread = thread.spawn(move || {
        runtime.block_on(async move {
            match meet(addr, hello, timeout_ms).await {
                Err(error) => drop(answer.send(Err(error))),
                Ok((frames, peers)) => {
                    let _ = answer.send(Ok(peers));
                    converse(frames, messages, &known).await;
                }
            }
        });
    });
    let thread = Some(thread.map_err(CommError::Runtime)?);
    let control = ControlHandle { shared, outgoing: Some(outgoing), thread };
    let silent = || CommError::NoRendezvous { addr, timeout_ms };
    let peers = answered.recv().map_err(|_| silent())??;
    Ok(Joined { peers, control })
}

async fn meet(
    addr: SocketAddr,
    hello: Hello,
    timeout_ms: u64,
) -> Result<(Frames, Vec<SocketAddr>)> {
    let limit = Duration::from_millis(timeout_ms);
    let silent = || CommError::NoRendezvous { addr, timeout_ms };
    let stream = Patience::new(limit).within(connect(addr)).await.ok_or_else(silent)?;
    let mut frames = Framed::new(stream, protocol::codec());
    let lost = |source| CommError::Socket { addr, action: "join", source };
    frames.send(protocol::encode(&ToServer::Hello(hello), true)).await.map_err(lost)?;
    let first = Patience::new(limit + LATER).within(frames.next()).await.ok_or_else(silent)?;
    let ended = || lost(std::io::ErrorKind::UnexpectedEof.into());
    let first = first.ok_or_else(ended)?.map_err(lost)?;
    match protocol::decode(&first, true) {
        Ok(ToWorker::Joined { peers }) => Ok((frames, peers)),
        Ok(ToWorker::Refused(refusal)) => Err(refusal.into()),
        Err(Garbled::Protocol(got)) => Err(protocol::other_protocol(got).into()),
        Ok(_) | Err(Garbled::Stranger) => Err(lost(std::io::ErrorKind::InvalidData.into())),
    }
}

async fn connect(addr: SocketAddr) -> TcpStream {
    loop {
        if let Ok(stream) = TcpStream::connect(addr).await {
            let _ = stream.set_nodelay(true);
            return stream;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Passes messages until this rank leaves or the server is gone.
async fn converse(
    mut frames: Frames,
    mut outgoing: UnboundedReceiver<ToServer>,
    shared: &Arc<Shared>,
) {
    loop {
        tokio::select! {
            message = outgoing.recv() => {
                let Some(message) = message else { return };
                let is_last = matches!(message, ToServer::Bye | ToServer::Blame(_));
                let sent = frames.send(protocol::encode(&message, false)).await;
                if is_last || sent.is_err() && shared.lose_server() {
                    return;
                }
            }
            incoming = frames.next() => match incoming.map(|frame| frame.map(decode)) {
                Some(Ok(Some(ToWorker::Stop))) => shared.wants_stop.store(true, Ordering::Release),
                Some(Ok(Some(ToWorker::Abort { rank, reason }))) => {
                    shared.abort(Aborted { rank: Some(rank), reason });
                }
                Some(Ok(Some(ToWorker::Joined { .. } | ToWorker::Refused(_)))) => {}
                Some(Ok(None) | Err(_)) | None => {
                    shared.lose_server();
                    return;
                }
            }
        }
    }
}

fn decode(frame: bytes::BytesMut) -> Option<ToWorker> {
    protocol::decode(&frame, false).ok()
}

impl Shared {
    fn groups(&self) -> std::sync::MutexGuard<'_, Vec<Weak<dyn Communicator>>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first reason stays; every attached group is given up.
    fn abort(&self, aborted: Aborted) {
        let aborted = self.aborted.get_or_init(|| aborted);
        let groups: Vec<Arc<dyn Communicator>> =
            self.groups().iter().filter_map(Weak::upgrade).collect();
        groups.iter().for_each(|group| group.revoke(&aborted.to_string()));
    }

    fn lose_server(&self) -> bool {
        let reason = "the supervising process is gone".to_owned();
        self.abort(Aborted { rank: None, reason });
        true
    }
}

impl ControlHandle {
    /// Lets an abort revoke `group`, from now on for as long as it lives.
    pub fn attach(&self, group: &Arc<dyn Communicator>) {
        self.shared.groups().push(Arc::downgrade(group));
        // Looked at after the group is on the list, so that an abort meets it in one place or both.
        if let Some(aborted) = self.aborted() {
            group.revoke(&aborted.to_string());
        }
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
        self.say(ToServer::Blame(fault.clone()));
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
            let _ = thread.join();
        }
    }
}

impl Drop for ControlHandle {
    fn drop(&mut self) {
        self.close();
    }
}
