//! Where the calls of all ranks of a communicator meet: a thread of one process, to which every
//! rank is connected.
//!
//! ```text
//! rank 0 ──┐            ┌ collectives: the oldest of each rank together
//! rank 1 ──┼── Batch ──▶│                                               ── Done ──▶ each rank
//! rank 2 ──┘            └ sends and receives: pairs, oldest first
//! ```
//!
//! A connection that ends without a farewell is a rank that died, and breaks the communicator for
//! all others, as calls that do not fit together do.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use super::call::{Call, Kind, complete, complete_pair};
use super::frame::Frame;
use super::result;

/// The address of a communicator, which is in its unique id.
pub(crate) fn address(name: &str) -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(name)
}

/// Starts the hub of a communicator in this process.
///
/// # Errors
/// There is one of the name.
pub(crate) fn start(name: &str) -> io::Result<()> {
    let listener = UnixListener::bind_addr(&address(name)?)?;
    listener.set_nonblocking(true)?;
    let thread = std::thread::Builder::new().name("lookalike-hub".to_owned());
    thread.spawn(move || Hub::default().run(&listener)).map(drop)
}

/// How often a hub looks for ranks that come.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// A call that waits for others, and where its result belongs.
struct Waiting {
    call: Call,
    batch: u64,
    index: usize,
}

#[derive(Default)]
struct Rank {
    stream: Option<UnixStream>,
    /// Batches that came before an earlier one, and which is next.
    early: BTreeMap<u64, Vec<Call>>,
    next: u64,
    collectives: VecDeque<Waiting>,
    /// Results of batches that are not complete.
    open: BTreeMap<u64, Vec<Option<Vec<u8>>>>,
}

#[derive(Default)]
struct Hub {
    version: u32,
    ranks: Vec<Rank>,
    /// By sender and receiver.
    sends: BTreeMap<(usize, usize), VecDeque<Waiting>>,
    receives: BTreeMap<(usize, usize), VecDeque<Waiting>>,
}

type Event = (usize, io::Result<Frame>);

impl Hub {
    fn run(mut self, listener: &UnixListener) {
        let (tell, told) = channel();
        let gathered = self.gather(listener, &tell, &told);
        let all_came = gathered.is_ok();
        let Err((code, text)) = gathered.and_then(|()| self.serve(&told)) else { return };
        if code != result::REMOTE {
            eprintln!("lookalike: nccl: {text}");
        }
        let failure = Frame::Failed { code, text };
        for rank in &self.ranks {
            self.send(rank, &failure);
        }
        let begun = Instant::now();
        // Whoever comes now learns it, too.
        while !all_came && begun.elapsed() < Duration::from_secs(60) {
            match listener.accept() {
                // If it is gone by now it needs no answer.
                Ok((stream, _)) => drop(failure.write(&stream)),
                // Nobody comes at present.
                Err(_) => std::thread::sleep(LOOK_AGAIN),
            }
        }
    }

    fn send(&self, rank: &Rank, frame: &Frame) {
        if let Some(stream) = &rank.stream {
            // One that is gone is noticed by its reader.
            let _ = frame.write(stream);
        }
    }

    /// Until all ranks have come.
    fn gather(
        &mut self,
        listener: &UnixListener,
        tell: &Sender<Event>,
        told: &Receiver<Event>,
    ) -> Result<(), (i32, String)> {
        while self.ranks.is_empty() || self.ranks.iter().any(|rank| rank.stream.is_none()) {
            if let Ok((stream, _)) = listener.accept() {
                self.admit(stream, tell)?;
                continue;
            }
            match told.recv_timeout(LOOK_AGAIN) {
                Ok((rank, Err(_))) => return Err(gone(rank, "while ranks were coming")),
                Ok((rank, Ok(frame))) => self.early(rank, frame)?,
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
            }
        }
        self.ranks.iter().for_each(|rank| self.send(rank, &Frame::Welcome));
        Ok(())
    }

    fn early(&self, rank: usize, frame: Frame) -> Result<(), (i32, String)> {
        Err((result::INTERNAL, format!("rank {rank} says {frame:?} before all have come")))
    }

    /// A rank that is refused is told so, too.
    fn admit(&mut self, stream: UnixStream, tell: &Sender<Event>) -> Result<(), (i32, String)> {
        let hello = stream.set_nonblocking(false).and_then(|()| Frame::read(&stream));
        let Ok(Frame::Hello { rank, ranks, version }) = hello else {
            return Err((result::REMOTE, "a rank came and went without a word".to_owned()));
        };
        if let Err(text) = self.seat(rank, ranks, version) {
            let code = result::INVALID_ARGUMENT;
            // If it is gone by now it needs no answer.
            let _ = Frame::Failed { code, text: text.clone() }.write(&stream);
            return Err((code, text));
        }
        let (index, reader, tell) = (rank as usize, stream.try_clone(), tell.clone());
        self.ranks[index].stream = Some(stream);
        std::thread::spawn(move || {
            let Ok(reader) = reader else { return };
            loop {
                let frame = Frame::read(&reader);
                let is_last = matches!(frame, Err(_) | Ok(Frame::Bye));
                if tell.send((index, frame)).is_err() || is_last {
                    return;
                }
            }
        });
        Ok(())
    }

    /// Whether a rank has a place here; the first one says how many there are.
    fn seat(&mut self, rank: u32, ranks: u32, version: u32) -> Result<(), String> {
        if self.ranks.is_empty() {
            self.ranks.resize_with(ranks as usize, Rank::default);
            self.version = version;
        }
        let (have, ours) = (self.ranks.len(), self.version);
        if ranks as usize != have {
            return Err(format!("a rank of {have} and one of {ranks} have one unique id"));
        }
        if version != ours {
            return Err(format!("ranks of versions {ours} and {version} have met"));
        }
        match self.ranks[rank as usize].stream {
            Some(_) => Err(format!("there are two ranks {rank}")),
            None => Ok(()),
        }
    }

    /// Until all ranks have gone.
    fn serve(&mut self, told: &Receiver<Event>) -> Result<(), (i32, String)> {
        let mut left = 0;
        while left < self.ranks.len() {
            match told.recv_timeout(Duration::from_secs(3600)) {
                Ok((_, Ok(Frame::Bye))) => left += 1,
                Ok((rank, Ok(Frame::Batch { number, calls }))) => {
                    self.ranks[rank].early.insert(number, calls);
                    self.take_up(rank);
                    self.match_all()?;
                }
                Ok((rank, Ok(frame))) => return self.early(rank, frame),
                Ok((rank, Err(_))) => return Err(gone(rank, "")),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return Ok(()),
            }
        }
        Ok(())
    }

    /// Takes up a rank's batches in their order.
    fn take_up(&mut self, rank: usize) {
        while let Some(calls) = {
            let next = self.ranks[rank].next;
            self.ranks[rank].early.remove(&next)
        } {
            let batch = self.ranks[rank].next;
            self.ranks[rank].next += 1;
            self.ranks[rank].open.insert(batch, vec![None; calls.len()]);
            for (index, call) in calls.into_iter().enumerate() {
                let (kind, peer) = (call.kind, call.peer as usize);
                let waiting = Waiting { call, batch, index };
                match kind {
                    Kind::Send => self.sends.entry((rank, peer)).or_default().push_back(waiting),
                    Kind::Recv => self.receives.entry((peer, rank)).or_default().push_back(waiting),
                    _ => self.ranks[rank].collectives.push_back(waiting),
                }
            }
        }
    }

    fn match_all(&mut self) -> Result<(), (i32, String)> {
        let wrong = |text| (result::INVALID_USAGE, text);
        while self.ranks.iter().all(|rank| !rank.collectives.is_empty()) {
            let fronts = self.ranks.iter_mut().filter_map(|rank| rank.collectives.pop_front());
            let (places, calls): (Vec<_>, Vec<_>) =
                fronts.map(|waiting| ((waiting.batch, waiting.index), waiting.call)).unzip();
            let results = complete(&calls).map_err(wrong)?;
            for (rank, (place, data)) in places.into_iter().zip(results).enumerate() {
                self.give(rank, place, data);
            }
        }
        let pairs: Vec<(usize, usize)> = self.sends.keys().copied().collect();
        for pair in pairs {
            while let Some((sent, received)) = self.pop_pair(pair) {
                let (from, to) = pair;
                let data =
                    complete_pair((from, &sent.call), (to, &received.call)).map_err(wrong)?;
                self.give(from, (sent.batch, sent.index), Vec::new());
                self.give(to, (received.batch, received.index), data);
            }
        }
        Ok(())
    }

    fn pop_pair(&mut self, pair: (usize, usize)) -> Option<(Waiting, Waiting)> {
        let (sends, receives) = (self.sends.get_mut(&pair)?, self.receives.get_mut(&pair)?);
        if sends.is_empty() || receives.is_empty() {
            return None;
        }
        sends.pop_front().zip(receives.pop_front())
    }

    fn give(&mut self, rank: usize, (batch, index): (u64, usize), data: Vec<u8>) {
        let open = &mut self.ranks[rank].open;
        let Some(results) = open.get_mut(&batch) else { return };
        results[index] = Some(data);
        if results.iter().all(Option::is_some) {
            let results = open.remove(&batch).into_iter().flatten().flatten().collect();
            self.send(&self.ranks[rank], &Frame::Done { number: batch, results });
        }
    }
}

fn gone(rank: usize, when: &str) -> (i32, String) {
    let space = if when.is_empty() { "" } else { " " };
    (result::REMOTE, format!("rank {rank} is gone{space}{when}"))
}
