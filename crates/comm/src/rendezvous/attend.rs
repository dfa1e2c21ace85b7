//! The connections of the server: each is introduced, heard and told until it ends.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::oneshot;
use tokio_util::codec::Framed;

use super::attending::Attend;
use super::channel::FromHost;
use super::codec::Codec;
use super::meeting::{Outgoing, Shared};
use super::point::Point;
use super::protocol::{self, Hello, Said, ToServer};
use super::strangers::Why;
use crate::Fault;
use crate::door::{self, Door};
use crate::handshake::{self, Accepted, Claim, Heard, Seal, Stranger};
use crate::patience::Patience;
use crate::tls::Connection;

/// How long a lost or blamed rank waits for the supervisor to say how the process ended.
const GRACE: Duration = Duration::from_millis(300);
/// How much longer where that is on another host.
const FAR: Duration = Duration::from_millis(900);
/// And where nobody blames it, who could tell in which operation it is missing.
const UNBLAMED: Duration = Duration::from_millis(300);
/// How long messages may take to leave when the server ends.
pub(super) const PARTING: Duration = Duration::from_millis(100);
/// How long a supervisor that was told the last thing may take to close its end.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Connections whose first message is waited for at a time; the others wait in the backlog.
pub(super) const GUESTS: usize = 1024;
/// Bytes of a buffer for what a worker says; longer frames make it grow.
const BUFFER: usize = 1 << 10;

/// Serves whoever comes, until the other end of `ended` is dropped.
pub(super) async fn serve(
    listeners: Vec<TcpListener>,
    point: Arc<Point>,
    mut begun: UnboundedReceiver<Arc<Shared>>,
    mut ended: oneshot::Receiver<()>,
) {
    for listener in listeners {
        // The descriptor is known to be a listening socket; without it nothing can be served.
        let guests = point.meeting().world.min(GUESTS);
        let Ok(mut door) = Door::expecting(listener, guests) else { continue };
        let point = Arc::clone(&point);
        tokio::spawn(async move {
            loop {
                let introduce = |stream, from| introduce(stream, from, point.meeting());
                let guest = door.next(introduce).await;
                tokio::spawn(attend(guest, Arc::clone(&point)));
            }
        });
    }
    let judging = Arc::clone(&point);
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(judging.pause()).await;
            judging.look();
        }
    });
    loop {
        tokio::select! {
            _ = &mut ended => break,
            Some(meeting) = begun.recv() => drop(tokio::spawn(close_in_time(meeting))),
        }
    }
    // The rest ends with the runtime: the ranks of other hosts should hear of a loss before.
    if point.meeting().lock().lost.is_some() {
        tokio::time::sleep(PARTING).await;
    }
}

async fn close_in_time(meeting: Arc<Shared>) {
    Patience::of_ms(meeting.timeout_ms).passed().await;
    meeting.close();
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
    let heard = match shared.answers_strangers {
        true => handshake::hear(stream, &shared.security).await?,
        false => handshake::hear_known(stream, &shared.security).await?,
    };
    let (mut stream, Accepted { claim, keys, answer }) = match heard {
        Heard::Known(stream, accepted) => (stream, accepted),
        Heard::Stranger(stranger) => {
            shared.turn_away(from.ip(), why(stranger, &shared)?);
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

/// Why somebody is none of the job's, if anybody should hear of it.
fn why(stranger: Stranger, shared: &Shared) -> Option<Why> {
    Some(match stranger {
        Stranger::Secret(claim) => {
            let number = claim.from as usize;
            let (what, ranks) = match claim.purpose {
                protocol::ABSENT | protocol::ENDED | protocol::ATTEND => {
                    ("node", shared.ranks_of(number))
                }
                _ => ("rank", number..number + 1),
            };
            let is_awaited = !ranks.is_empty() && shared.awaits(ranks);
            Why::Secret { claimed: format!("{what} {number}"), is_awaited }
        }
        Stranger::Protocol(got) => Why::Protocol(got),
        Stranger::Tls(fault) => Why::Tls(fault),
        Stranger::Lacks { node, lack } => {
            let (node, ranks) = (node as usize, shared.ranks_of(node as usize));
            // Nobody else's word is of any interest.
            let is_awaited = !ranks.is_empty() && shared.awaits(ranks);
            is_awaited.then_some(Why::Lacks { node, lack })?
        }
    })
}

/// Whether who says this has proved itself as who says it.
fn is_as_claimed(said: &ToServer, claim: Claim) -> bool {
    match said {
        ToServer::Hello(hello) => claim == protocol::claim(hello.rank, protocol::MEET),
        ToServer::Absent { node, .. } => claim == protocol::claim(*node, protocol::ABSENT),
        ToServer::Ended { node, .. } => claim == protocol::claim(*node, protocol::ENDED),
        ToServer::Attend(Attend { node, .. }) => claim == protocol::claim(*node, protocol::ATTEND),
        _ => false,
    }
}

/// One connection from its introduction to its last byte.
async fn attend(guest: Guest, point: Arc<Point>) {
    let Guest { line, from, said } = guest;
    let shared = point.meeting();
    match said {
        ToServer::Attend(attend) => serve_supervisor(line, from, attend, point).await,
        ToServer::Hello(hello) => serve_worker(line, from, hello, shared).await,
        ToServer::Absent { job, node, reason } if job == shared.job => {
            // One that is none of a later start's is not awaited.
            let place = point.seats(|seats, _| match seats.incarnation() {
                0 => Some(node),
                _ => seats.place_of(node),
            });
            place.iter().for_each(|&place| shared.leave_out(place, &reason));
        }
        ToServer::Ended { group, node, rank, reason } => {
            shared.hear_end(&group, node, rank, &reason);
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
    let Some(rank) = rank else { return };
    shared.end(rank);
    if shared.has_left(rank) {
        return;
    }
    if shared.is_known_elsewhere(&[rank]) {
        tokio::time::sleep(UNBLAMED).await;
    }
    mourn(vec![rank], ended.to_owned(), shared).await;
}

async fn serve_supervisor(line: Line, from: SocketAddr, attend: Attend, point: Arc<Point>) {
    let who = (attend.node, attend.session);
    let meeting = point.meeting();
    if attend.job != meeting.job {
        meeting.turn_away(from.ip(), Why::Job(attend.job.clone()));
    }
    let (way, mut outgoing) = unbounded_channel();
    point.attend(attend, way);
    let Line { frames, mut send, mut receive } = line;
    let (mut incoming, mut to_host) = protocol::split(frames);
    let listen = async {
        // One that is damaged or forged ends it; who is of the job connects anew.
        while let Some(Ok(frame)) = incoming.next().await {
            let Some(message) = protocol::open::<FromHost>(&frame, &mut receive) else { return };
            point.hear(who, message);
        }
    };
    let tell = async {
        // Ends once nothing more is to be said.
        while let Some(message) = outgoing.recv().await {
            if Said::new(&message.fitted()).say(&mut to_host, &mut send).await.is_err() {
                return;
            }
        }
        // The last words are read before the connection ends.
        let _ = to_host.shutdown().await;
        tokio::time::sleep(LAST_WORDS).await;
    };
    tokio::select! {
        () = listen => {}
        () = tell => {}
    }
    point.seats(|seats, now| seats.close(who, now));
}

/// Loses those of `ranks` that have not said by then that they only follow, unless a better reason
/// comes soon. Where all follow, they have time to say whom, and are lost then.
async fn mourn(ranks: Vec<usize>, reason: String, shared: Arc<Shared>) {
    tokio::time::sleep(GRACE).await;
    if shared.is_known_elsewhere(&ranks) {
        tokio::time::sleep(FAR).await;
    }
    let (left, silent): (Vec<usize>, Vec<usize>) =
        ranks.into_iter().partition(|&rank| shared.has_left(rank));
    if !silent.is_empty() {
        return shared.lose(&shared.gone_with(silent), &reason);
    }
    tokio::time::sleep(GRACE).await;
    shared.lose(&left, &reason);
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
