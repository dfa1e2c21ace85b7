//! The server: run by the supervising process of node 0, on a thread of its own.

use std::net::{IpAddr, SocketAddr, TcpListener, ToSocketAddrs};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use socket2::SockRef;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use tokio_util::codec::Framed;

use super::codec::Codec;
use super::protocol::{self, Hello, Refusal, Said, ToServer, ToWorker};
use crate::door::{self, Door};
use crate::error::SAME_SECRET;
use crate::handshake::{self, Accepted, Claim, Heard, Seal};
use crate::patience::Patience;
use crate::tls::{Connection, Security, TlsFault};
use crate::{CommError, Fault, Result, Secret, ending, files, secret, tcp};

/// How long a lost or blamed rank waits for the supervisor to say how the process ended.
const GRACE: Duration = Duration::from_millis(300);
/// How long an address may take to answer when it is tried.
const PROBE: Duration = Duration::from_secs(1);
/// How long messages may take to leave when the server ends.
const PARTING: Duration = Duration::from_millis(100);
/// Connections that may wait to be taken, as far as the system lets them: all ranks come at once.
const BACKLOG: i32 = 1 << 14;
/// Files that the server's process has open beside one for each rank.
const FILES: u64 = 32;
/// Connections whose first message is waited for at a time; the others wait in the backlog.
const GUESTS: usize = 1024;
/// Bytes of a buffer for what a worker says; longer frames make it grow.
const BUFFER: usize = 1 << 10;
/// Strangers that are remembered, for whoever wonders why a rank is missing.
const STRANGERS: usize = 3;

/// The meeting point; dropping it ends every control connection.
pub struct Server {
    addr: SocketAddr,
    shared: Arc<Shared>,
    shutdown: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

struct Shared {
    job: String,
    security: Security,
    world: usize,
    /// Hosts, each with as many ranks, in their order.
    nodes: usize,
    timeout_ms: u64,
    /// Another number for each start.
    start: u64,
    meeting: Mutex<Meeting>,
    /// The phase has changed.
    changed: Condvar,
}

struct Meeting {
    phase: Phase,
    workers: Vec<Option<Worker>>,
    /// How many of them are there.
    come: usize,
    wants_stop: bool,
    /// The first rank that was lost after the meeting, and how.
    lost: Option<(usize, String)>,
    /// Who came and is none of the job's.
    turned_away: Vec<String>,
    /// By who came from where: why there is no TLS with it.
    faults: Vec<(String, std::mem::Discriminant<TlsFault>)>,
    /// What people should hear of them and have not heard yet.
    news: Vec<String>,
}

#[derive(Clone)]
enum Phase {
    Gathering,
    Open,
    Refused(Refusal),
}

struct Worker {
    hello: Hello,
    from: IpAddr,
    outgoing: UnboundedSender<Outgoing>,
    last_step: Option<u64>,
    /// It said goodbye.
    has_left: bool,
}

/// A frame on its way to a worker, shared by all who get it.
#[derive(Clone)]
struct Outgoing {
    said: Said,
    /// The connection ends after it.
    is_last: bool,
}

impl Outgoing {
    fn new(message: &ToWorker) -> Outgoing {
        let is_last = matches!(message, ToWorker::Refused(_));
        Outgoing { said: Said::new(message), is_last }
    }
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
        let addrs: Vec<SocketAddr> = addrs.to_socket_addrs().map_err(CommError::Runtime)?.collect();
        let needed = world as u64 + FILES;
        files::allow(needed).map_err(|limit| CommError::Files { world, needed, limit })?;
        // With some for strangers; it does without.
        let _ = files::allow((world + door::BESIDE) as u64);
        let listen = |addr| {
            let listener = tcp::listen(addr)?;
            let more = SockRef::from(&listener).listen(BACKLOG);
            more.map_err(|source| CommError::Bind { addr, source })?;
            probe(listener)
        };
        let listeners = each_of_this_host(&addrs, listen)?;
        let addr = listeners.first().map(TcpListener::local_addr);
        let addr = addr.unwrap_or(Err(std::io::ErrorKind::NotFound.into()));
        let addr = addr.map_err(CommError::Runtime)?;
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_io().enable_time().build().map_err(CommError::Runtime)?;
        let meeting = Meeting {
            phase: Phase::Gathering,
            workers: (0..world).map(|_| None).collect(),
            come: 0,
            wants_stop: false,
            lost: None,
            turned_away: Vec::new(),
            faults: Vec::new(),
            news: Vec::new(),
        };
        let shared = Arc::new(Shared {
            job: job.to_owned(),
            security: security.into(),
            world,
            nodes,
            timeout_ms,
            start: u64::from_le_bytes(secret::random()?),
            meeting: Mutex::new(meeting),
            changed: Condvar::new(),
        });
        let (shutdown, ended) = oneshot::channel();
        let served = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("rendezvous".to_owned());
        let thread = thread.spawn(move || runtime.block_on(serve(listeners, served, ended)));
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

    /// Ranks of the job, on all hosts.
    pub fn world(&self) -> usize {
        self.shared.world
    }

    /// The first rank that was lost after the meeting, and how.
    pub fn lost(&self) -> Option<(usize, String)> {
        self.shared.lock().lost.clone()
    }

    /// Who has been turned away since this was asked last, and what to do about it: a few of
    /// them at most, since anyone may come.
    pub fn news(&self) -> Vec<String> {
        std::mem::take(&mut self.shared.lock().news)
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
            ending::join(thread);
        }
    }
}

/// Whether a server can be bound to the addresses. Nobody can connect to it meanwhile.
///
/// # Errors
/// As [`Server::bind`], but for addresses that cannot be reached from here.
pub fn can_serve(addrs: impl ToSocketAddrs) -> Result<()> {
    let addrs: Vec<SocketAddr> = addrs.to_socket_addrs().map_err(CommError::Runtime)?.collect();
    each_of_this_host(&addrs, tcp::can_listen).map(drop)
}

/// What `make` makes of every address that this host has.
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

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Meeting> {
        self.meeting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a worker in; the last one completes the meeting.
    fn enter(
        &self,
        hello: Hello,
        from: SocketAddr,
        outgoing: UnboundedSender<Outgoing>,
    ) -> Option<usize> {
        let mut meeting = self.lock();
        let (rank, world) = (hello.rank, self.world);
        let turn_away = |refusal: &Refusal| {
            let refusal = refusal.clone().fitted();
            let _ = outgoing.send(Outgoing::new(&ToWorker::Refused(refusal)));
        };
        if hello.job != self.job {
            // Not one of ours: it alone is turned away.
            let who = format!("a worker of job `{}` from {}", hello.job, from.ip());
            meeting.turn_away(who, "see where it was started, and with what rendezvous address");
            let refusal = Refusal::Job { job: self.job.clone(), got: hello.job };
            turn_away(&refusal);
            return None;
        }
        let refusal = if hello.world != world {
            Some(Refusal::World { rank, got: hello.world, world })
        } else if rank >= world {
            Some(Refusal::NoSuchRank { rank, world })
        } else {
            let first = meeting.workers[rank].as_ref().map(|worker| worker.from);
            first.map(|first| Refusal::RankTaken { rank, from: [first, from.ip()] })
        };
        if let Some(refusal) = refusal {
            // After the meeting a latecomer disturbs nobody.
            turn_away(&refusal);
            self.refuse(&mut meeting, refusal);
            return None;
        }
        if let Phase::Refused(refusal) = &meeting.phase {
            turn_away(refusal);
            return None;
        }
        let from = from.ip();
        let worker = Worker { hello, from, outgoing, last_step: None, has_left: false };
        meeting.workers[rank] = Some(worker);
        self.complete(&mut meeting);
        Some(rank)
    }

    fn complete(&self, meeting: &mut Meeting) {
        meeting.come += 1;
        if meeting.come < self.world {
            return;
        }
        let hellos: Vec<&Hello> =
            meeting.workers.iter().flatten().map(|worker| &worker.hello).collect();
        if let Err(refusal) = protocol::agree(&hellos) {
            return self.refuse(meeting, refusal);
        }
        let peers: Option<Vec<SocketAddr>> = hellos.iter().map(|hello| hello.listen).collect();
        meeting.phase = Phase::Open;
        let (peers, start) = (peers.unwrap_or_default(), self.start);
        meeting.tell_all(&ToWorker::Joined { peers, start });
        if meeting.wants_stop {
            meeting.tell_all(&ToWorker::Stop);
        }
        self.changed.notify_all();
    }

    /// Ends the gathering for everyone.
    fn refuse(&self, meeting: &mut Meeting, refusal: Refusal) {
        let refusal = refusal.fitted();
        if matches!(meeting.phase, Phase::Gathering) {
            meeting.tell_all(&ToWorker::Refused(refusal.clone()));
            meeting.phase = Phase::Refused(refusal);
            self.changed.notify_all();
        }
    }

    /// Nobody else comes in time.
    fn close(&self) {
        let mut meeting = self.lock();
        let absent = |rank: &usize| meeting.workers[*rank].is_none();
        let missing = (0..self.world).filter(absent).collect();
        let share = self.world / self.nodes.max(1);
        let is_absent = |node: &usize| (node * share..(node + 1) * share).all(|rank| absent(&rank));
        // On a single host nobody counts hosts.
        let nodes = (0..self.nodes).filter(|node| self.nodes > 1 && is_absent(node)).collect();
        let (timeout_ms, turned_away) = (self.timeout_ms, meeting.turned_away.clone());
        self.refuse(&mut meeting, Refusal::Missing { missing, nodes, timeout_ms, turned_away });
    }

    /// `rank` will not come back.
    fn lose(&self, rank: usize, reason: &str) {
        let mut meeting = self.lock();
        let reason = protocol::cut(reason).to_owned();
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
        let Some(worker) = meeting.workers.get_mut(rank).and_then(Option::as_mut) else { return };
        match message {
            ToServer::Hello(_) | ToServer::Absent { .. } => {}
            ToServer::Status { step } => worker.last_step = Some(step),
            ToServer::Bye | ToServer::Follows | ToServer::Blame(_) => worker.has_left = true,
        }
    }

    fn has_left(&self, rank: usize) -> bool {
        let meeting = self.lock();
        meeting.workers.get(rank).and_then(Option::as_ref).is_some_and(|worker| worker.has_left)
    }
}

impl Meeting {
    fn turn_away(&mut self, who: String, advice: &str) {
        if self.turned_away.len() < STRANGERS && !self.turned_away.contains(&who) {
            self.news.push(format!("turned away {who}; {advice}"));
            self.turned_away.push(who);
        }
    }

    /// With whom there is no TLS. The times in a fault pass, so who comes again is not told anew.
    fn turn_away_for(&mut self, who: String, fault: &TlsFault) {
        if self.faults.len() < STRANGERS && !self.faults.contains(&(who.clone(), fault.kind())) {
            self.faults.push((who.clone(), fault.kind()));
            let text = format!("{who}, which {fault}");
            self.news.push(format!("turned away {text}"));
            self.turned_away.push(text);
        }
    }

    fn tell_all(&self, message: &ToWorker) {
        let outgoing = Outgoing::new(message);
        for worker in self.workers.iter().flatten() {
            // A worker whose connection is gone needs no message.
            let _ = worker.outgoing.send(outgoing.clone());
        }
    }
}

async fn serve(listeners: Vec<TcpListener>, shared: Arc<Shared>, ended: oneshot::Receiver<()>) {
    let late = Arc::clone(&shared);
    tokio::spawn(async move {
        Patience::of_ms(late.timeout_ms).passed().await;
        late.close();
    });
    for listener in listeners {
        // The descriptor is known to be a listening socket; without it nothing can be served.
        let guests = shared.world.min(GUESTS);
        let Ok(mut door) = Door::expecting(listener, guests) else { continue };
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            loop {
                let introduce = |stream, from| introduce(stream, from, Arc::clone(&shared));
                let guest = door.next(introduce).await;
                tokio::spawn(attend(guest, Arc::clone(&shared)));
            }
        });
    }
    let _ = ended.await;
    // The rest ends with the runtime: the ranks of other hosts should hear of a loss before.
    if shared.lock().lost.is_some() {
        tokio::time::sleep(PARTING).await;
    }
}

type Frames = Framed<Connection, Codec>;

/// A connection of the job, which has said something.
struct Guest {
    line: Line,
    from: SocketAddr,
    said: ToServer,
}

/// A connection after the handshake.
struct Line {
    frames: Frames,
    send: Seal,
    receive: Seal,
}

async fn introduce(stream: TcpStream, from: SocketAddr, shared: Arc<Shared>) -> Option<Guest> {
    let _ = stream.set_nodelay(true);
    door::keep_alive(&stream);
    let heard = handshake::hear(stream, &shared.security).await?;
    let (mut stream, Accepted { claim, keys, answer }) = match heard {
        Heard::Known(stream, accepted) => (stream, accepted),
        Heard::Unknown(claim) => {
            let what = if claim.purpose == protocol::ABSENT { "node" } else { "rank" };
            let who = format!("{what} {} from {}, which has another secret", claim.from, from.ip());
            shared.lock().turn_away(who, SAME_SECRET);
            return None;
        }
        Heard::Protocol(got) => {
            let who = format!("a worker that speaks protocol {got} from {}", from.ip());
            shared.lock().turn_away(who, "use the same build everywhere");
            return None;
        }
        Heard::Tls(fault) => {
            shared.lock().turn_away_for(format!("a process from {}", from.ip()), &fault);
            return None;
        }
    };
    stream.write_all(&answer).await.ok()?;
    stream.flush().await.ok()?;
    let frames = Framed::with_capacity(stream, Codec, BUFFER);
    let mut line = Line { frames, send: Seal::new(keys.send), receive: Seal::new(keys.receive) };
    let first = line.frames.next().await?.ok()?;
    let said = protocol::open(&first, &mut line.receive)?;
    is_as_claimed(&said, claim).then_some(Guest { line, from, said })
}

/// Whether who says this has proved itself as who says it.
fn is_as_claimed(said: &ToServer, claim: Claim) -> bool {
    match said {
        ToServer::Hello(hello) => claim == protocol::claim(hello.rank, protocol::MEET),
        ToServer::Absent { node, .. } => claim == protocol::claim(*node, protocol::ABSENT),
        _ => false,
    }
}

/// One connection from its introduction to its last byte.
async fn attend(guest: Guest, shared: Arc<Shared>) {
    let Guest { line, from, said } = guest;
    match said {
        ToServer::Hello(hello) => serve_worker(line, from, hello, shared).await,
        ToServer::Absent { job, node, reason } if job == shared.job => {
            let reason = protocol::cut(&reason).to_owned();
            shared.refuse(&mut shared.lock(), Refusal::Absent { node, reason });
        }
        _ => {}
    }
}

async fn serve_worker(line: Line, from: SocketAddr, mut hello: Hello, shared: Arc<Shared>) {
    if let Some(listen) = hello.listen.as_mut().filter(|listen| listen.ip().is_unspecified()) {
        listen.set_ip(from.ip());
    }
    let (sender, outgoing) = unbounded_channel();
    let rank = shared.enter(hello, from, sender);
    let ended = converse(line, outgoing, |message| {
        let Some(rank) = rank else { return };
        if let ToServer::Blame(Fault { ranks, what }) = &message {
            let known = ranks.iter().copied().filter(|&rank| rank < shared.world);
            let ranks: Vec<usize> = known.collect();
            if !ranks.is_empty() {
                tokio::spawn(mourn(ranks, what.clone(), Arc::clone(&shared)));
            }
        }
        shared.hear(rank, message);
    })
    .await;
    let Some(rank) = rank.filter(|&rank| !shared.has_left(rank)) else { return };
    mourn(vec![rank], ended.to_owned(), shared).await;
}

/// Loses the first of `ranks` that has not said by then that it only follows, unless a better
/// reason comes soon. Where all follow, they have time to say whom.
async fn mourn(ranks: Vec<usize>, reason: String, shared: Arc<Shared>) {
    tokio::time::sleep(GRACE).await;
    let silent = ranks.iter().find(|&&rank| !shared.has_left(rank));
    if silent.is_none() {
        tokio::time::sleep(GRACE).await;
    }
    if let Some(&rank) = silent.or(ranks.first()) {
        shared.lose(rank, &reason);
    }
}

/// Passes messages both ways until either side ends, and says how; neither way waits for the other.
async fn converse(
    line: Line,
    mut outgoing: UnboundedReceiver<Outgoing>,
    hear: impl Fn(ToServer),
) -> &'static str {
    const ENDED: &str = "its control connection ended";
    const DAMAGED: &str = "a message on its control connection came damaged, or forged";
    let Line { frames, mut send, mut receive } = line;
    let (mut from_worker, mut to_worker) = protocol::split(frames);
    let listen = async {
        loop {
            let next = from_worker.next().await;
            match next.map(|frame| frame.map(|frame| protocol::open(&frame, &mut receive))) {
                Some(Ok(Some(message))) => hear(message),
                Some(Ok(None)) => return DAMAGED,
                // A length that no frame has.
                Some(Err(error)) if error.kind() == std::io::ErrorKind::InvalidData => {
                    return DAMAGED;
                }
                Some(Err(_)) | None => return ENDED,
            }
        }
    };
    let tell = async {
        // Ends once the worker was turned away and has been told.
        while let Some(Outgoing { said, is_last }) = outgoing.recv().await {
            let written = said.say(&mut to_worker, &mut send).await;
            if written.is_err() || is_last {
                break;
            }
        }
        ENDED
    };
    tokio::select! {
        ended = listen => ended,
        ended = tell => ended,
    }
}
