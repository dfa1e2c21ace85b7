//! Measures every pair, while other pairs that share no rank with it are measured, too.

use comm::{Channel, Group, Op, P2p, Prepared, World};
use device::{DType, Device, Stream, Tensor};
use serde::{Deserialize, Serialize};

use super::crowd::{self, Crowd, Room};
use super::edge::{Edge, Seat};
use super::judge::{Judgement, Told, judge};
use super::rounds::rounds;
use crate::BenchError;
use crate::collectives::stats;

/// Bytes of a message whose round trip is timed.
const SMALL_BYTES: usize = 8;

/// The size and count of the messages to measure.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plan {
    /// Of a message whose time gives the bandwidth.
    pub message_bytes: usize,
    /// Messages of a direction, after a quarter as many that are not counted.
    pub messages: usize,
}

/// All pairs of a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Names, by number.
    pub hosts: Vec<String>,
    /// By rank.
    pub seats: Vec<Seat>,
    pub crowds: Vec<Crowd>,
    pub told: Told,
}

/// The place of a rank, as it tells the others.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Here {
    /// Its host's name.
    name: String,
    machine: String,
    /// The name that tells its host from others of that name and that machine.
    network: String,
    cores: usize,
    all_cores: usize,
}

/// A rank's measurement of a direction in which it received.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Received {
    from: usize,
    to: usize,
    message_us: f64,
    round_trip_us: f64,
}

/// Measures all pairs of a job, on every rank of it, and again what seems slow; each gets the same.
/// `tell` hears after each round how many of all are done.
///
/// # Errors
/// An operation that a group or the device refuses; a rank that fails or is late.
pub fn run(
    world: &World,
    device: &Device,
    plan: &Plan,
    tell: &mut dyn FnMut(usize, usize) -> Result<(), BenchError>,
) -> Result<Measured, BenchError> {
    let group = world.split(device, &[(0..world.size()).collect::<Vec<_>>()])?;
    let control = world.control(Channel::Training);
    let said = postcard::to_stdvec(&here(world)).map_err(BenchError::Stamps)?;
    let said = control.all_gather_bytes(&said)?;
    let read = |bytes: &Vec<u8>| postcard::from_bytes(bytes).map_err(BenchError::Stamps);
    let said = said.iter().map(read).collect::<Result<Vec<Here>, _>>()?;
    let (hosts, seats) = seats(&said);
    let crowds = crowd::crowds(&rooms(&said, &seats));
    let all = rounds(&seats);
    let ends = Ends::new(&group, device, plan)?;
    let (mut due, mut measured): (Vec<&Vec<_>>, _) = (all.iter().collect(), Vec::new());
    let (mut done, mut of) = (0, all.len());
    loop {
        let mut edges = Vec::new();
        for round in due {
            edges.extend(ends.round(world, round)?);
            done += 1;
            tell(done, of)?;
        }
        measured.push(edges);
        match judge(&seats, &measured, &crowds) {
            Judgement::Told(told) => return Ok(Measured { hosts, seats, crowds, told }),
            // Whole rounds, so that links are shared as they were.
            Judgement::Again(pairs) => {
                let has_one = |round: &&Vec<_>| round.iter().any(|pair| pairs.contains(pair));
                due = all.iter().filter(has_one).collect();
                of += due.len();
            }
        }
    }
}

/// Over a network a namespace of its own is a host of its own.
fn here(world: &World) -> Here {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let network = match world.backend() {
        "shm" => None,
        _ => std::fs::read_link("/proc/self/ns/net").ok(),
    };
    Here {
        name: read("/proc/sys/kernel/hostname"),
        machine: read("/proc/sys/kernel/random/boot_id"),
        network: network.map(|link| link.display().to_string()).unwrap_or_default(),
        cores: world.cores(),
        all_cores: crowd::listed(&read("/sys/devices/system/cpu/online")).unwrap_or(usize::MAX),
    }
}

/// Hosts in the order of their first ranks, and where each rank is, from what all said of
/// themselves.
fn seats(said: &[Here]) -> (Vec<String>, Vec<Seat>) {
    let (mut known, mut ranks): (Vec<&Here>, Vec<usize>) = (Vec::new(), Vec::new());
    let mut seats = Vec::with_capacity(said.len());
    let key = |here: &'_ Here| (here.name.clone(), here.machine.clone(), here.network.clone());
    for here in said {
        let host = known.iter().position(|other| key(other) == key(here)).unwrap_or_else(|| {
            known.push(here);
            ranks.push(0);
            known.len() - 1
        });
        seats.push(Seat { host, rail: ranks[host] });
        ranks[host] += 1;
    }
    (known.iter().map(|here| here.name.clone()).collect(), seats)
}

fn rooms(said: &[Here], seats: &[Seat]) -> Vec<Room> {
    let room = |(here, seat): (&Here, &Seat)| Room {
        machine: here.machine.clone(),
        host: seat.host,
        cores: here.cores,
        all_cores: here.all_cores,
    };
    said.iter().zip(seats).map(room).collect()
}

/// A rank's memory for messages.
struct Ends<'a> {
    group: &'a Group,
    stream: Stream,
    barrier: Prepared,
    send: Tensor,
    receive: Tensor,
    messages: usize,
}

impl<'a> Ends<'a> {
    fn new(group: &'a Group, device: &Device, plan: &Plan) -> Result<Ends<'a>, BenchError> {
        let bytes = plan.message_bytes.max(SMALL_BYTES);
        let tensor = || device.zeros(&[bytes], DType::U8);
        let (send, receive) = (tensor()?, tensor()?);
        let (stream, barrier) = (device.stream(), group.prepare(Op::Barrier)?);
        Ok(Ends { group, stream, barrier, send, receive, messages: plan.messages.max(1) })
    }

    /// All pairs of a round, as all ranks hear of it.
    fn round(&self, world: &World, pairs: &[(usize, usize)]) -> Result<Vec<Edge>, BenchError> {
        let me = world.rank();
        self.group.call(&self.stream, &self.barrier)?;
        let received = match pairs.iter().find(|(a, b)| *a == me || *b == me) {
            Some(&pair) => self.measure(me, pair)?,
            None => Vec::new(),
        };
        let bytes = postcard::to_stdvec(&received).map_err(BenchError::Stamps)?;
        let heard = world.control(Channel::Training).all_gather_bytes(&bytes)?;
        // Small messages leave no other sign of work.
        device::work::mark();
        let mut edges = Vec::new();
        for bytes in heard {
            let heard: Vec<Received> = postcard::from_bytes(&bytes).map_err(BenchError::Stamps)?;
            edges.extend(heard.into_iter().map(|received| Edge {
                from: received.from,
                to: received.to,
                gb_per_s: self.send.len() as f64 / received.message_us.max(1e-3) / 1e3,
                round_trip_us: received.round_trip_us,
            }));
        }
        Ok(edges)
    }

    /// Both directions of a pair, each alone, and round trips.
    fn measure(&self, me: usize, (low, high): (usize, usize)) -> Result<Vec<Received>, BenchError> {
        let peer = if me == low { high } else { low };
        let round_trip_us = self.round_trips(me == low, peer)?;
        let mut all = Vec::new();
        for (from, to) in [(low, high), (high, low)] {
            let is_sender = me == from;
            let message_us = self.stream_of_messages(is_sender, peer)?;
            if !is_sender {
                all.push(Received { from, to, message_us, round_trip_us });
            }
        }
        Ok(all)
    }

    fn sends(&self, peer: usize, bytes: usize) -> Result<Prepared, BenchError> {
        let tensor = self.send.flat(0..bytes)?;
        Ok(self.group.prepare(Op::Exchange(vec![P2p::Send { to: peer, tensor }]))?)
    }

    fn receives(&self, peer: usize, bytes: usize) -> Result<Prepared, BenchError> {
        let tensor = self.receive.flat(0..bytes)?;
        Ok(self.group.prepare(Op::Exchange(vec![P2p::Receive { from: peer, tensor }]))?)
    }

    /// The median time of a message, in µs. The sender answers a first word of the receiver, so
    /// that neither counts what the other came late; the receiver's times are those that count.
    fn stream_of_messages(&self, is_sender: bool, peer: usize) -> Result<f64, BenchError> {
        let bytes = self.send.len();
        let (send, receive) = (self.sends(peer, bytes)?, self.receives(peer, bytes)?);
        let (call, answer) = (self.sends(peer, SMALL_BYTES)?, self.receives(peer, SMALL_BYTES)?);
        let mut times = Vec::with_capacity(self.messages);
        for number in 0..self.messages + self.messages.div_ceil(4) {
            let begun = std::time::Instant::now();
            if is_sender {
                self.group.call(&self.stream, &answer)?;
                self.group.call(&self.stream, &send)?;
            } else {
                self.group.call(&self.stream, &call)?;
                self.group.call(&self.stream, &receive)?;
            }
            if number >= self.messages.div_ceil(4) {
                times.push(begun.elapsed().as_secs_f64() * 1e6);
            }
            device::work::mark();
        }
        Ok(middle(times))
    }

    /// The median time of a small message and its answer, in µs.
    fn round_trips(&self, is_first: bool, peer: usize) -> Result<f64, BenchError> {
        let send = self.sends(peer, SMALL_BYTES)?;
        let receive = self.receives(peer, SMALL_BYTES)?;
        let order = if is_first { [&send, &receive] } else { [&receive, &send] };
        let mut times = Vec::with_capacity(self.messages);
        for number in 0..self.messages + self.messages.div_ceil(4) {
            let begun = std::time::Instant::now();
            for op in order {
                self.group.call(&self.stream, op)?;
            }
            if number >= self.messages.div_ceil(4) {
                times.push(begun.elapsed().as_secs_f64() * 1e6);
            }
        }
        Ok(middle(times))
    }
}

fn middle(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    stats::median(&times).unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_counted_within_their_hosts() {
        let here = |(name, machine, cores): (&str, &str, usize)| Here {
            name: name.into(),
            machine: machine.into(),
            network: String::new(),
            cores,
            all_cores: 8,
        };
        let said =
            [("a", "1", 2), ("a", "1", 2), ("b", "2", 1), ("a", "3", 2), ("b", "2", 1)].map(here);
        let (hosts, found) = seats(&said);
        assert_eq!(hosts, ["a", "b", "a"]);
        let crowds = crowd::crowds(&rooms(&said, &found));
        assert_eq!(crowds, [Crowd { hosts: vec![1], ranks: 2, cores: 1 }]);
        let found: Vec<(usize, usize)> = found.iter().map(|seat| (seat.host, seat.rail)).collect();
        assert_eq!(found, [(0, 0), (0, 1), (1, 0), (2, 0), (1, 1)]);
    }
}
