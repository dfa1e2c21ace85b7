//! The server: run by the supervising process of node 0, on a thread of its own.

use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use tokio_util::codec::{Framed, LengthDelimitedCodec};

use super::protocol::{self, Garbled, Hello, Refusal, ToServer, ToWorker};
use crate::patience::Patience;
use crate::{CommError, Fault, Result, tcp};

/// How long a lost or blamed rank waits for the supervisor to say how the process ended.
const GRACE: Duration = Duration::from_millis(300);
/// How long a new connection may take to say who it is.
const HELLO: Duration = Duration::from_secs(10);

/// The meeting point; dropping it ends every control connection.
pub struct Server {
    addr: SocketAddr,
    shared: Arc<Shared>,
    shutdown: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

struct Shared {
    job: String,
    world: usize,
    timeout_ms: u64,
    meeting: Mutex<Meeting>,
    /// The phase has changed.
    changed: Condvar,
}

struct Meeting {
    phase: Phase,
    workers: Vec<Option<Worker>>,
    wants_stop: bool,
    /// The first rank that was lost after the meeting, and how.
    lost: Option<(usize, String)>,
}

#[derive(Clone)]
enum Phase {
    Gathering,
    Open,
    Refused(Refusal),
}

struct Worker {
    hello: Hello,
    outgoing: UnboundedSender<ToWorker>,
    last_step: Option<u64>,
    /// It said goodbye.
    has_left: bool,
}

impl Server {
    /// Starts waiting for the `world` ranks of `job`, for `timeout_ms` at most.
    ///
    /// # Errors
    /// The port is taken; the address is not one of this host.
    pub fn bind(addr: SocketAddr, job: &str, world: usize, timeout_ms: u64) -> Result<Server> {
        let listener = tcp::listen(addr)?;
        let failed = |source| CommError::Socket { addr, action: "listen", source };
        let addr = listener.local_addr().map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_io().enable_time().build().map_err(CommError::Runtime)?;
        let meeting = Meeting {
            phase: Phase::Gathering,
            workers: (0..world).map(|_| None).collect(),
            wants_stop: false,
            lost: None,
        };
        let shared = Arc::new(Shared {
            job: job.to_owned(),
            world,
            timeout_ms,
            meeting: Mutex::new(meeting),
            changed: Condvar::new(),
        });
        let (shutdown, ended) = oneshot::channel();
        let served = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("rendezvous".to_owned());
        let thread = thread.spawn(move || runtime.block_on(serve(listener, served, ended)));
        let thread = Some(thread.map_err(CommError::Runtime)?);
        Ok(Server { addr, shared, shutdown: Some(shutdown), thread })
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
        let mut meeting = self.shared.lock();
        loop {
            match &meeting.phase {
                Phase::Open => return Ok(()),
                Phase::Refused(refusal) => return Err(refusal.clone().into()),
                Phase::Gathering => {}
            }
            let woken = self.shared.changed.wait(meeting);
            meeting = woken.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A worker has ended otherwise than by finishing: every other rank gives up. `reason` is the
    /// one that people will read (exit status, last lines of its log).
    pub fn report_exit(&self, rank: usize, reason: &str) {
        self.shared.lose(rank, reason);
    }

    /// The step that `rank` last reported.
    pub fn last_step(&self, rank: usize) -> Option<u64> {
        let meeting = self.shared.lock();
        meeting.workers.get(rank).and_then(Option::as_ref).and_then(|worker| worker.last_step)
    }

    /// The first rank that was lost after the meeting, and how.
    pub fn lost(&self) -> Option<(usize, String)> {
        self.shared.lock().lost.clone()
    }

    /// Asks every rank to finish its step, save and leave.
    pub fn request_stop(&self) {
        let mut meeting = self.shared.lock();
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
            // A panic there was reported by its own thread.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Meeting> {
        self.meeting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a worker in; the last one completes the meeting.
    fn enter(&self, hello: Hello, outgoing: UnboundedSender<ToWorker>) -> Option<usize> {
        let mut meeting = self.lock();
        let (rank, world) = (hello.rank, self.world);
        if hello.job != self.job {
            // Not one of ours: it alone is turned away.
            let refusal = Refusal::Job { job: self.job.clone(), got: hello.job };
            let _ = outgoing.send(ToWorker::Refused(refusal));
            return None;
        }
        let refusal = if hello.world != world {
            Some(Refusal::World { rank, got: hello.world, world })
        } else if rank >= world {
            Some(Refusal::NoSuchRank { rank, world })
        } else if meeting.workers[rank].is_some() {
            Some(Refusal::RankTaken { rank })
        } else {
            None
        };
        if let Some(refusal) = refusal {
            // After the meeting a latecomer disturbs nobody.
            let _ = outgoing.send(ToWorker::Refused(refusal.clone()));
            self.refuse(&mut meeting, refusal);
            return None;
        }
        if let Phase::Refused(refusal) = &meeting.phase {
            let _ = outgoing.send(ToWorker::Refused(refusal.clone()));
            return None;
        }
        let worker = Worker { hello, outgoing, last_step: None, has_left: false };
        meeting.workers[rank] = Some(worker);
        self.complete(&mut meeting);
        Some(rank)
    }

    fn complete(&self, meeting: &mut Meeting) {
        let hellos: Vec<&Hello> =
            meeting.workers.iter().flatten().map(|worker| &worker.hello).collect();
        if hellos.len() < self.world {
            return;
        }
        if let Err(refusal) = protocol::agree(&hellos) {
            return self.refuse(meeting, refusal);
        }
        let peers: Option<Vec<SocketAddr>> = hellos.iter().map(|hello| hello.listen).collect();
        meeting.phase = Phase::Open;
        meeting.tell_all(&ToWorker::Joined { peers: peers.unwrap_or_default() });
        if meeting.wants_stop {
            meeting.tell_all(&ToWorker::Stop);
        }
        self.changed.notify_all();
    }

    /// Ends the gathering for everyone.
    fn refuse(&self, meeting: &mut Meeting, refusal: Refusal) {
        if matches!(meeting.phase, Phase::Gathering) {
            meeting.tell_all(&ToWorker::Refused(refusal.clone()));
            meeting.phase = Phase::Refused(refusal);
            self.changed.notify_all();
        }
    }

    /// `rank` will not come back.
    fn lose(&self, rank: usize, reason: &str) {
        let mut meeting = self.lock();
        let reason = reason.to_owned();
        match meeting.phase {
            Phase::Refused(_) => {}
            Phase::Gathering => self.refuse(&mut meeting, Refusal::Ended { rank, reason }),
            Phase::Open if meeting.lost.is_none() => {
                meeting.tell_all(&ToWorker::Abort { rank, reason: reason.clone() });
                meeting.lost = Some((rank, reason));
            }
            Phase::Open => {}
        }
    }

    fn hear(&self, rank: usize, message: ToServer) {
        let mut meeting = self.lock();
        let Some(worker) = &mut meeting.workers[rank] else { return };
        match message {
            ToServer::Hello(_) => {}
            ToServer::Status { step } => worker.last_step = Some(step),
            ToServer::Bye | ToServer::Follows | ToServer::Blame(_) => worker.has_left = true,
        }
    }

    fn has_left(&self, rank: usize) -> bool {
        self.lock().workers[rank].as_ref().is_some_and(|worker| worker.has_left)
    }
}

impl Meeting {
    fn tell_all(&self, message: &ToWorker) {
        for worker in self.workers.iter().flatten() {
            // A worker whose connection is gone needs no message.
            let _ = worker.outgoing.send(message.clone());
        }
    }
}

async fn serve(
    listener: std::net::TcpListener,
    shared: Arc<Shared>,
    mut ended: oneshot::Receiver<()>,
) {
    // The descriptor is known to be a listening socket; without a runtime nothing can be served.
    let Ok(listener) = TcpListener::from_std(listener) else { return };
    let late = Arc::clone(&shared);
    tokio::spawn(async move {
        Patience::of_ms(late.timeout_ms).passed().await;
        let mut meeting = late.lock();
        let absent = |rank: &usize| meeting.workers[*rank].is_none();
        let missing = (0..late.world).filter(absent).collect();
        late.refuse(&mut meeting, Refusal::Missing { missing, timeout_ms: late.timeout_ms });
    });
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, from)) => {
                    tokio::spawn(attend(stream, from, Arc::clone(&shared)));
                }
                // Out of descriptors, most likely: others may end meanwhile.
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            },
            _ = &mut ended => return,
        }
    }
}

/// One connection from its first byte to its last.
async fn attend(stream: TcpStream, from: SocketAddr, shared: Arc<Shared>) {
    let _ = stream.set_nodelay(true);
    let mut frames = Framed::new(stream, protocol::codec());
    let first = Patience::new(HELLO).within(frames.next()).await;
    let Some(Some(Ok(first))) = first else { return };
    let mut hello = match protocol::decode::<ToServer>(&first, true) {
        Ok(ToServer::Hello(hello)) => hello,
        Ok(_) | Err(Garbled::Stranger) => return,
        Err(Garbled::Protocol(got)) => {
            let refusal = protocol::other_protocol(got);
            let answer = ToWorker::Refused(refusal.clone());
            let _ = frames.send(protocol::encode(&answer, true)).await;
            return shared.refuse(&mut shared.lock(), refusal);
        }
    };
    if let Some(listen) = hello.listen.as_mut().filter(|listen| listen.ip().is_unspecified()) {
        listen.set_ip(from.ip());
    }
    let (sender, outgoing) = unbounded_channel();
    let rank = shared.enter(hello, sender);
    converse(&mut frames, outgoing, |message| {
        let Some(rank) = rank else { return };
        if let ToServer::Blame(Fault { ranks, what }) = &message
            && !ranks.is_empty()
        {
            tokio::spawn(mourn(ranks.clone(), what.clone(), Arc::clone(&shared)));
        }
        shared.hear(rank, message);
    })
    .await;
    let Some(rank) = rank.filter(|&rank| !shared.has_left(rank)) else { return };
    mourn(vec![rank], "its control connection ended".to_owned(), shared).await;
}

/// Loses the first of `ranks` that has not said by then that it only follows, unless a better
/// reason comes soon.
async fn mourn(ranks: Vec<usize>, reason: String, shared: Arc<Shared>) {
    tokio::time::sleep(GRACE).await;
    let silent = ranks.iter().find(|&&rank| !shared.has_left(rank));
    if let Some(&rank) = silent.or(ranks.first()) {
        shared.lose(rank, &reason);
    }
}

/// Passes messages both ways until either side ends.
async fn converse(
    frames: &mut Framed<TcpStream, LengthDelimitedCodec>,
    mut outgoing: UnboundedReceiver<ToWorker>,
    hear: impl Fn(ToServer),
) {
    let mut is_first = true;
    loop {
        tokio::select! {
            incoming = frames.next() => {
                let Some(Ok(frame)) = incoming else { return };
                let Ok(message) = protocol::decode::<ToServer>(&frame, false) else { return };
                hear(message);
            }
            message = outgoing.recv() => {
                // None: the worker was turned away and has been told.
                let Some(message) = message else { return };
                let bytes = protocol::encode(&message, std::mem::take(&mut is_first));
                if frames.send(bytes).await.is_err() || matches!(message, ToWorker::Refused(_)) {
                    return;
                }
            }
        }
    }
}
