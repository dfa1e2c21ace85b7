//! A supervisor's connection to node 0's, for as long as the job: kept, and made anew where it
//! breaks.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio_util::codec::Framed;

use super::attending::{Attend, Leave, Report};
use super::channel::{FromHost, ToHost};
use super::client;
use super::codec::Codec;
use super::point::beat;
use super::protocol::{self, Said, ToServer};
use crate::handshake::{Keys, Seal};
use crate::patience::{AwakeClock, Patience};
use crate::tls::{Connection, Security};
use crate::{CommError, Result, ending, secret};

/// News for a supervisor.
#[derive(Debug)]
pub enum News {
    Said(ToHost),
    /// Node 0 is not there, or takes this process for none of its job's.
    Lost(CommError),
}

/// The connection; dropping it ends it.
pub struct Link {
    known: Arc<Known>,
    outgoing: Option<UnboundedSender<FromHost>>,
    news: Receiver<News>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// Who attends, and how long that may take.
#[derive(Debug, Clone)]
pub struct Attending {
    /// Of node 0.
    pub addrs: Vec<SocketAddr>,
    pub job: String,
    pub node: usize,
    pub nodes: usize,
    pub security: Security,
    /// How long node 0 is looked for at first.
    pub timeout_ms: u64,
    /// And where it was there before; also how long it may say nothing.
    pub limit: Duration,
}

/// State that the connection's thread shares.
struct Known {
    session: u64,
    state: Mutex<State>,
    /// How long node 0 has said nothing, in milliseconds awake.
    silent_ms: AtomicU64,
}

#[derive(Default)]
struct State {
    /// The newest that was to start.
    incarnation: Option<u64>,
    report: Option<Report>,
    leave: Option<Leave>,
    overtaken: Option<String>,
}

impl Known {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, message: &ToHost) {
        let mut state = self.lock();
        match message {
            ToHost::Start { incarnation, .. } => {
                let (incarnation, leave) = (Some(*incarnation), state.leave.take());
                *state = State { incarnation, leave, ..State::default() };
            }
            ToHost::Overtaken { why, .. } => state.overtaken = Some(why.clone()),
            _ => {}
        }
    }
}

impl Link {
    /// Begins to look for node 0's supervisor, and attends there; what comes of it is news.
    ///
    /// # Errors
    /// The system has no thread, or no random numbers.
    pub fn attend(attending: Attending) -> Result<Link> {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_io().enable_time().build().map_err(CommError::Runtime)?;
        let session = u64::from_le_bytes(secret::random()?);
        let (state, silent_ms) = (Mutex::default(), AtomicU64::new(0));
        let known = Arc::new(Known { session, state, silent_ms });
        let (outgoing, messages) = unbounded_channel();
        let (told, news) = mpsc::channel();
        let ours = Arc::clone(&known);
        let thread = std::thread::Builder::new().name("supervisors".to_owned());
        let keeping = move || runtime.block_on(keep(attending, &ours, messages, &told));
        let thread = Some(thread.spawn(keeping).map_err(CommError::Runtime)?);
        Ok(Link { known, outgoing: Some(outgoing), news, thread })
    }

    /// The next news, if any comes in time.
    pub fn next(&self, patience: Duration) -> Option<News> {
        match self.news.recv_timeout(patience) {
            Ok(news) => Some(news),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => {
                let ended = std::io::ErrorKind::BrokenPipe.into();
                Some(News::Lost(CommError::Runtime(ended)))
            }
        }
    }

    /// Reports how the ranks of this host ended.
    pub fn report(&self, report: Report) {
        self.known.lock().report = Some(report.clone());
        self.say(FromHost::Ended(report));
    }

    /// Says that people have asked this host to end.
    pub fn leave(&self, leave: Leave) {
        self.known.lock().leave = Some(leave.clone());
        self.say(FromHost::Leave(leave));
    }

    /// Why this host was taken for gone since its last start, if it was: its ranks are of an
    /// incarnation that is over.
    pub fn overtaken(&self) -> Option<String> {
        self.known.lock().overtaken.clone()
    }

    /// How long node 0 has said nothing, while this process was awake.
    pub fn silent_for(&self) -> Duration {
        Duration::from_millis(self.known.silent_ms.load(Ordering::Relaxed))
    }

    fn say(&self, message: FromHost) {
        if let Some(outgoing) = &self.outgoing {
            // Where the thread has ended, that is news.
            let _ = outgoing.send(message.fitted());
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.outgoing = None;
        if let Some(thread) = self.thread.take() {
            ending::join(thread);
        }
    }
}

/// How a connection ended.
#[derive(Debug, PartialEq, Eq)]
enum Ended {
    /// It broke: it is to be made anew.
    Broken,
    /// This end wants no more.
    Here,
    /// The job is over, or this process is none of it.
    There,
}

async fn keep(
    attending: Attending,
    known: &Known,
    mut outgoing: UnboundedReceiver<FromHost>,
    told: &Sender<News>,
) {
    let mut timeout_ms = attending.timeout_ms;
    loop {
        let reached = tokio::select! {
            biased;
            reached = reach(&attending, timeout_ms) => reached,
            () = closed(&mut outgoing) => return,
        };
        let (connection, keys) = match reached {
            Ok(reached) => reached,
            Err(error) => return drop(told.send(News::Lost(error))),
        };
        let line = Line {
            frames: Framed::new(connection, Codec),
            send: Seal::new(keys.send),
            receive: Seal::new(keys.receive),
        };
        if converse(line, &attending, known, &mut outgoing, told).await != Ended::Broken {
            return;
        }
        timeout_ms = attending.limit.as_millis() as u64;
        tokio::time::sleep(client::AGAIN).await;
    }
}

/// Returns when this end wants no more. What is said meanwhile is told by the introduction of the
/// next connection.
async fn closed(outgoing: &mut UnboundedReceiver<FromHost>) {
    while outgoing.recv().await.is_some() {}
}

async fn reach(attending: &Attending, timeout_ms: u64) -> Result<(Connection, Keys)> {
    let Attending { addrs, node, security, .. } = attending;
    let mut last = "no try has ended".to_owned();
    let claim = protocol::claim(*node, protocol::ATTEND);
    let reaching = client::reach(addrs, security, claim, &mut last);
    match Patience::of_ms(timeout_ms).within(reaching).await {
        Some(reached) => reached.map(|(connection, _, keys)| (connection, keys)),
        None => Err(CommError::NoRendezvous { addrs: client::list(addrs), timeout_ms, last }),
    }
}

struct Line {
    frames: Framed<Connection, Codec>,
    send: Seal,
    receive: Seal,
}

/// Attends, and passes messages both ways until the connection ends.
async fn converse(
    line: Line,
    attending: &Attending,
    known: &Known,
    outgoing: &mut UnboundedReceiver<FromHost>,
    told: &Sender<News>,
) -> Ended {
    let Line { frames, mut send, mut receive } = line;
    let (mut incoming, mut to_server) = protocol::split(frames);
    let attend = {
        let state = known.lock();
        let (incarnation, session) = (state.incarnation, known.session);
        let (report, leave) = (state.report.clone(), state.leave.clone());
        let Attending { node, nodes, .. } = *attending;
        let job = attending.job.clone();
        ToServer::Attend(Attend { job, node, nodes, session, incarnation, report, leave })
    };
    let heard = Mutex::new((AwakeClock::default(), Duration::ZERO));
    let silence = |is_heard: bool| {
        let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
        let now = heard.0.look();
        if is_heard {
            heard.1 = now;
        }
        let silent_ms = now.saturating_sub(heard.1).as_millis() as u64;
        known.silent_ms.store(silent_ms, Ordering::Relaxed);
    };
    let listen = async {
        while let Some(Ok(frame)) = incoming.next().await {
            let Some(message) = protocol::open::<ToHost>(&frame, &mut receive) else { break };
            silence(true);
            known.note(&message);
            let is_last = matches!(message, ToHost::End { .. } | ToHost::Refused(_));
            if message != ToHost::Beat && told.send(News::Said(message)).is_err() || is_last {
                return Ended::There;
            }
        }
        Ended::Broken
    };
    let tell = async {
        let mut next = Said::new(&attend);
        loop {
            if next.say(&mut to_server, &mut send).await.is_err() {
                return Ended::Broken;
            }
            silence(false);
            let pause = tokio::time::sleep(beat(attending.limit));
            next = tokio::select! {
                biased;
                message = outgoing.recv() => match message {
                    Some(message) => Said::new(&message),
                    None => return Ended::Here,
                },
                () = pause => Said::new(&FromHost::Beat),
            };
        }
    };
    tokio::select! {
        ended = listen => ended,
        ended = tell => ended,
    }
}
