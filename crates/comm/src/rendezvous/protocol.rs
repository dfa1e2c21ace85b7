//! Messages, and what makes ranks fit together: pure functions.

use std::collections::HashMap;
use std::io::Cursor;
use std::net::{IpAddr, SocketAddr};

use bytes::{Buf, Bytes};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio_util::codec::{Framed, FramedParts, FramedRead};

use super::attending::Attend;
use super::codec::Codec;
use crate::error::{Fault, TIMEOUT_KEY, numbered, ranks};
use crate::handshake::{Claim, PROTOCOL, Seal, TAG_BYTES};
use crate::tls::{self, Connection, ReadHalf, WriteHalf};

/// Purposes of connections to the server ([`crate::handshake`]): of a worker, which comes to meet;
/// of the process that would have started a host's workers; and of the one that has.
pub(super) const MEET: u64 = 1 << 63;
pub(super) const ABSENT: u64 = MEET | 1;
pub(super) const ENDED: u64 = MEET | 2;
/// Of a supervisor that stays.
pub(super) const ATTEND: u64 = MEET | 3;
/// In place of the server's rank.
const SERVER: u32 = u32::MAX;
/// Longest reason for an end, which goes to every rank: the last lines of a log may be long.
const REASON_BYTES: usize = 16 << 10;

/// The introduction of a worker to the server.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Keeps workers of other jobs out.
    pub job: String,
    pub rank: usize,
    /// How many ranks it was started for.
    pub world: usize,
    /// The number of its host, and of how many; none where ranks count no hosts.
    pub node: Option<(usize, usize)>,
    /// Of the program.
    pub version: String,
    /// Name (`config`, `ownership plan`, `data`, `schema` …) and digest in hex: all ranks must have
    /// the same.
    pub identity: Vec<(String, String)>,
    /// Of what has a digest there its entries, by their names: a difference is then named by the
    /// first of them. One rank of each host is enough to tell them.
    pub entries: Vec<(String, Entries)>,
    /// The so manyth start of the job's ranks, from 0: those of another one are turned away.
    pub incarnation: u64,
    /// Where its peers reach it; none where they meet in shared memory. An unspecified address
    /// (`0.0.0.0`) is replaced by the one that the server sees.
    pub listen: Option<SocketAddr>,
}

/// Names and values.
pub type Entries = Vec<(String, String)>;

/// Why ranks did not come together; everyone who waits is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// Groups of ranks by value, in order of the lowest rank.
    #[error(
        "the ranks differ in {what}: {}; start every rank with the same {what}",
        groups_text(groups)
    )]
    Disagree { what: String, groups: Vec<(String, Vec<usize>)> },
    /// `from` are their hosts.
    #[error(
        "two processes claim rank {rank}, {}; start each rank once, and give every host a \
         --node-rank of its own",
        match from { [one, other] if one == other => format!("both from {one}"),
                     [one, other] => format!("one from {one} and one from {other}") }
    )]
    RankTaken { rank: usize, from: [IpAddr; 2] },
    #[error("rank {rank} was started for {got} ranks, the job has {world}")]
    World { rank: usize, got: usize, world: usize },
    #[error(
        "node {node} was started as one of {got} nodes, node 0 as one of {nodes}; give every host \
         the same --nodes"
    )]
    Nodes { node: usize, got: usize, nodes: usize },
    #[error("rank {rank} does not exist among {world} ranks; ranks count from 0")]
    NoSuchRank { rank: usize, world: usize },
    #[error(
        "a worker of job `{got}` came to job `{job}`; check its rendezvous address, and that all \
         hosts were started together"
    )]
    Job { job: String, got: String },
    /// `nodes` are hosts of which no rank came; `turned_away` are those who came and were none of
    /// the job's.
    #[error(
        "{}{} did not come within {timeout_ms} ms{}; see whether they started and reach this \
         address, or raise {TIMEOUT_KEY}",
        ranks(missing),
        nodes_text(nodes),
        turned_away_text(turned_away)
    )]
    Missing { missing: Vec<usize>, nodes: Vec<usize>, timeout_ms: u64, turned_away: Vec<String> },
    #[error("rank {rank} ended before the job began: {reason}")]
    Ended { rank: usize, reason: String },
    #[error("node {node} ended before the job began: {reason}")]
    Absent { node: usize, reason: String },
    /// After the ranks were started again.
    #[error(
        "a rank of start {got} of the job came to start {ours}: it was left over when the job's \
         ranks were started again"
    )]
    Incarnation { ours: u64, got: u64 },
    #[error(
        "another process of node {node} is alive and of this job; start each host once, and give \
         every host a --node-rank of its own"
    )]
    NodeTaken { node: usize },
    #[error(
        "node {node} was started by another process of node 0, which has ended; start all hosts \
         again"
    )]
    Predecessor { node: usize },
    /// Told by whoever meets the other.
    #[error("a worker speaks protocol {got}, this is {ours}; use the same build everywhere")]
    Protocol { ours: u32, got: u32 },
}

fn groups_text(groups: &[(String, Vec<usize>)]) -> String {
    let each = groups.iter().map(|(value, members)| format!("{value} on {}", ranks(members)));
    each.collect::<Vec<String>>().join(", ")
}

fn nodes_text(nodes: &[usize]) -> String {
    match nodes {
        [] => String::new(),
        some => format!(" (all of {})", numbered("node", some)),
    }
}

fn turned_away_text(turned_away: &[String]) -> String {
    match turned_away {
        [] => String::new(),
        some => format!(" (turned away: {})", some.join("; ")),
    }
}

/// Groups that a refusal tells apart, and bytes of a name in it: what a worker says may be long,
/// and all of a refusal goes into a frame, whose other part is up to three bytes per rank.
const GROUPS: usize = 32;
const NAME_BYTES: usize = 1 << 10;

pub(super) fn cut_name(name: &mut String) {
    name.truncate(name.floor_char_boundary(NAME_BYTES));
}

impl Refusal {
    /// As much of it as a frame holds: names are cut, and groups beyond the first few are one.
    pub(super) fn fitted(mut self) -> Refusal {
        match &mut self {
            Refusal::Disagree { what, groups } => {
                cut_name(what);
                groups.iter_mut().for_each(|(value, _)| cut_name(value));
                let others = groups.split_off(groups.len().min(GROUPS));
                if !others.is_empty() {
                    let text = format!("{} others", others.len());
                    let mut ranks: Vec<usize> = others.into_iter().flat_map(|(_, r)| r).collect();
                    ranks.sort_unstable();
                    groups.push((text, ranks));
                }
            }
            Refusal::Job { job, got } => [job, got].into_iter().for_each(cut_name),
            Refusal::Missing { turned_away, .. } => turned_away.iter_mut().for_each(cut_name),
            Refusal::Ended { reason, .. } | Refusal::Absent { reason, .. } => {
                *reason = cut(reason).to_owned();
            }
            Refusal::RankTaken { .. }
            | Refusal::World { .. }
            | Refusal::Nodes { .. }
            | Refusal::NoSuchRank { .. }
            | Refusal::Incarnation { .. }
            | Refusal::NodeTaken { .. }
            | Refusal::Predecessor { .. }
            | Refusal::Protocol { .. } => {}
        }
        self
    }
}

/// A reason for an end, cut to what a message can hold.
pub(super) fn cut(reason: &str) -> &str {
    &reason[..reason.floor_char_boundary(REASON_BYTES)]
}

/// From a worker, or from the process that would have started it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum ToServer {
    Hello(Hello),
    Status {
        step: u64,
    },
    /// It will leave because of others, and does not know yet because of whom.
    Follows,
    /// It leaves because of others.
    Blame(Fault),
    Bye,
    /// Instead of a hello: a host will not bring its ranks.
    Absent {
        job: String,
        node: usize,
        reason: String,
    },
    /// Instead of a hello, after the meeting of `group`: how a rank of a host ended, as its
    /// supervisor knows it.
    Ended {
        group: String,
        node: usize,
        rank: usize,
        reason: String,
    },
    /// Instead of a hello, of a supervisor that stays for as long as the job: what follows are
    /// messages of [`super::channel`].
    Attend(Attend),
}

/// To a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum ToWorker {
    /// `peers` is empty where ranks do not listen; `start` is another number for each start.
    Joined {
        peers: Vec<SocketAddr>,
        start: u64,
    },
    Refused(Refusal),
    /// While others are awaited: what people should hear meanwhile, whoever said it.
    Hint(String),
    Abort {
        ranks: Vec<usize>,
        reason: String,
    },
    Stop,
    /// That it leaves: an abort follows, once it is known why.
    Heard,
}

/// The two ways of a connection. What was read already stays to be read; frames are written
/// as they are, since a buffer of its own for each would multiply the longest.
pub(super) fn split(frames: Framed<Connection, Codec>) -> (FramedRead<ReadHalf, Codec>, WriteHalf) {
    let FramedParts { io, codec, read_buf, .. } = frames.into_parts();
    let (incoming, outgoing) = tls::split(io);
    let mut incoming = FramedRead::new(incoming, codec);
    *incoming.read_buffer_mut() = read_buf;
    (incoming, outgoing)
}

/// The name of a start of a job, which keeps those of earlier starts out.
pub(super) fn group(job: &str, start: u64) -> String {
    format!("{job}-{start:016x}")
}

/// A worker or another process that comes to the server, by its number. The job's name comes with
/// its first message, which is sealed: who has the secret and comes to another job is told so.
pub(super) fn claim(number: usize, purpose: u64) -> Claim {
    let from = u32::try_from(number).unwrap_or(SERVER);
    Claim { scope: [0; 16], from, to: SERVER, purpose }
}

/// A message and its hash, of which each connection's tag is. It is made once for all workers:
/// their list of addresses is as long as they are many.
#[derive(Clone)]
pub(super) struct Said {
    message: Bytes,
    hash: blake3::Hash,
}

impl Said {
    pub(super) fn new<T: Serialize>(message: &T) -> Said {
        Said::of_bytes(postcard::to_stdvec(message).expect("messages are plain data"))
    }

    pub(super) fn of_bytes(message: Vec<u8>) -> Said {
        let hash = blake3::hash(&message);
        Said { message: message.into(), hash }
    }

    /// Says it: its frame.
    pub(super) async fn say(
        &self,
        to: &mut (impl AsyncWrite + Unpin),
        seal: &mut Seal,
    ) -> std::io::Result<()> {
        to.write_all_buf(&mut self.frame(seal)).await?;
        // Bytes that the system does not take at once may wait in TLS.
        to.flush().await
    }

    /// As it travels: its length, itself, and its tag as the next message under `seal`.
    pub(super) fn frame(&self, seal: &mut Seal) -> impl Buf + use<> {
        let length = u32::try_from(self.message.len() + TAG_BYTES);
        let length = length.expect("a frame is far shorter").to_le_bytes();
        let tag = seal.tag(&self.hash);
        Cursor::new(length).chain(self.message.clone()).chain(Cursor::new(tag))
    }
}

/// The next message under `seal`; `None` of what is damaged, forged or out of turn.
pub(super) fn open<T: for<'a> Deserialize<'a>>(bytes: &[u8], seal: &mut Seal) -> Option<T> {
    let (message, tag) = bytes.split_last_chunk::<TAG_BYTES>()?;
    let is_next = seal.fits(&blake3::hash(message), *tag);
    is_next.then(|| postcard::from_bytes(message).ok())?
}

/// The refusal for a process of another protocol.
pub(super) fn other_protocol(got: u32) -> Refusal {
    Refusal::Protocol { ours: u32::from(PROTOCOL), got }
}

/// Whether all ranks (in rank order) have the same version and identity.
pub(super) fn agree(hellos: &[&Hello]) -> Result<(), Refusal> {
    differ("version", hellos, |hello| Some(&hello.version))?;
    let mut known: Vec<&str> = Vec::new();
    for (what, _) in hellos.iter().flat_map(|hello| &hello.identity) {
        if known.contains(&what.as_str()) {
            continue;
        }
        known.push(what);
        differ(what, hellos, |hello| {
            hello.identity.iter().find(|(theirs, _)| theirs == what).map(|(_, digest)| digest)
        })?;
    }
    Ok(())
}

fn differ(
    what: &str,
    hellos: &[&Hello],
    value: impl for<'a> Fn(&'a Hello) -> Option<&'a String>,
) -> Result<(), Refusal> {
    let groups = grouped(hellos.iter().enumerate().map(|(rank, hello)| {
        let value = value(hello).map_or("none", String::as_str);
        (value, vec![rank])
    }));
    if groups.len() < 2 {
        return Ok(());
    }
    let (what, groups) =
        first_entry(what, &groups, hellos).unwrap_or_else(|| (what.to_owned(), groups));
    Err(Refusal::Disagree { what, groups })
}

type Groups = Vec<(String, Vec<usize>)>;

/// Ranks by what they have, in the order in which they come.
fn grouped<'a>(ranks: impl Iterator<Item = (&'a str, Vec<usize>)>) -> Groups {
    let mut groups = Groups::new();
    let mut places: HashMap<&str, usize> = HashMap::new();
    for (value, mut members) in ranks {
        let place = *places.entry(value).or_insert(groups.len());
        match groups.get_mut(place) {
            Some((_, known)) => known.append(&mut members),
            None => groups.push((value.to_owned(), members)),
        }
    }
    groups
}

/// The first entry in which groups differ whose digests of `what` do, where all have told theirs.
fn first_entry<'a>(what: &str, groups: &Groups, hellos: &'a [&Hello]) -> Option<(String, Groups)> {
    let of_rank = |&rank: &usize| {
        let (_, entries) = hellos[rank].entries.iter().find(|(known, _)| known == what)?;
        Some(entries)
    };
    let told = groups.iter().map(|(_, members)| members.iter().find_map(of_rank));
    let told: Vec<&'a Entries> = told.collect::<Option<_>>()?;
    let maps = told.iter().map(|entries| {
        entries.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
    });
    let maps: Vec<HashMap<&str, &str>> = maps.collect();
    let mut names = told.iter().flat_map(|entries| entries.iter().map(|(name, _)| name.as_str()));
    // An entry that one lacks and another has as none is the same to those who are told.
    let value = |map: &HashMap<&'a str, &'a str>, name: &str| *map.get(name).unwrap_or(&"none");
    let differs = |name: &&str| maps.iter().any(|map| value(map, name) != value(&maps[0], name));
    let name = names.find(differs)?;
    let values = maps.iter().map(|map| value(map, name));
    let members = groups.iter().map(|(_, members)| members.clone());
    let mut by_value = grouped(values.zip(members));
    by_value.iter_mut().for_each(|(_, members)| members.sort_unstable());
    Some((format!("{name} of the {what}"), by_value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handshake::Key;

    fn hello(version: &str, identity: &[(&str, &str)]) -> Hello {
        Hello {
            job: "job".to_owned(),
            world: 3,
            version: version.to_owned(),
            identity: owned(identity),
            ..Hello::default()
        }
    }

    fn owned(pairs: &[(&str, &str)]) -> Entries {
        pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
    }

    #[test]
    fn differences_name_value_and_ranks() {
        let (a, b) = (hello("1", &[("config", "aa"), ("data", "d")]), hello("1", &[("data", "d")]));
        let c = hello("1", &[("config", "cc"), ("data", "d")]);
        assert_eq!(agree(&[&a, &a, &a]), Ok(()));
        assert_eq!(
            agree(&[&a, &b, &a, &c]).unwrap_err().to_string(),
            "the ranks differ in config: aa on ranks 0 and 2, none on rank 1, cc on rank 3; \
             start every rank with the same config"
        );
        let newer = hello("2", &[("config", "zz")]);
        assert_eq!(
            agree(&[&a, &newer]).unwrap_err().to_string(),
            "the ranks differ in version: 1 on rank 0, 2 on rank 1; \
             start every rank with the same version"
        );
    }

    #[test]
    fn behind_a_digest_the_first_entry_that_differs_is_named() {
        let with = |digest: &str, entries: &[(&str, &str)]| Hello {
            entries: vec![("config".to_owned(), owned(entries))],
            ..hello("1", &[("config", digest)])
        };
        let said = |hellos: &[&Hello]| agree(hellos).unwrap_err().to_string();
        let same = [("name", "a"), ("steps", "6")];
        let (a, quiet) = (with("aa", &same), hello("1", &[("config", "aa")]));
        let (b, c) = (with("bb", &[("name", "a"), ("steps", "7")]), with("cc", &same[..1]));
        assert_eq!(
            said(&[&a, &quiet, &b]),
            "the ranks differ in steps of the config: 6 on ranks 0 and 1, 7 on rank 2; start every \
             rank with the same steps of the config"
        );
        assert_eq!(
            said(&[&b, &a, &c]),
            "the ranks differ in steps of the config: 7 on rank 0, 6 on rank 1, none on rank 2; \
             start every rank with the same steps of the config"
        );
        // One that the first lacks; and groups that one value joins.
        let (d, e) = (with("dd", &same), with("ee", &[("name", "b"), ("steps", "6")]));
        assert!(said(&[&c, &a]).contains("in steps of the config: none on rank 0, 6 on rank 1;"));
        // Of what one lacks and the other says there is none, what is below it.
        let (f, g) = (with("ff", &[("beside", "none")]), with("gg", &[("beside.shape", "2x8")]));
        let below = "in beside.shape of the config: none on rank 0, 2x8 on rank 1;";
        assert!(said(&[&f, &g]).contains(below), "{}", said(&[&f, &g]));
        let joined = "in name of the config: a on ranks 0 and 2, b on rank 1; start";
        assert!(said(&[&a, &e, &d]).contains(joined));
        // Where nothing is known but digests, or nothing differs but them, they are told.
        let digests = "in config: aa on rank 0, dd on rank 1; start";
        assert!(said(&[&a, &d]).contains(digests));
        assert!(said(&[&quiet, &d]).contains(digests));
    }

    #[test]
    fn whatever_a_refusal_has_to_say_fits_a_frame() {
        let long = |number: usize| format!("{number} {}", "é".repeat(100_000));
        let groups = (0..2000).map(|rank| (format!("{rank} {}", "x".repeat(2000)), vec![rank]));
        let disagree = Refusal::Disagree { what: long(0), groups: groups.collect() };
        let turned_away = (0..17).map(|number| long(number).repeat(5)).collect();
        let missing = Refusal::Missing {
            missing: (0..1 << 16).collect(),
            nodes: (0..1 << 16).collect(),
            timeout_ms: u64::MAX,
            turned_away,
        };
        let job = Refusal::Job { job: long(1), got: long(2).repeat(9) };
        for refusal in [disagree.clone(), missing, job] {
            let said = Said::new(&ToWorker::Refused(refusal.fitted()));
            let bytes = said.frame(&mut Seal::new(Key::new([5; 32]))).remaining();
            assert!(bytes < super::super::codec::FRAME_BYTES, "{bytes}");
        }
        let text = disagree.fitted().to_string();
        assert!(text.contains(" on rank 31, 1968 others on ranks 32 to 1999; start"), "{text}");
    }

    #[test]
    fn messages_survive_in_their_turn_and_no_flipped_bit_passes() {
        let seal = || Seal::new(Key::new([5; 32]));
        let message = ToServer::Hello(hello("1", &[]));
        let said = Said::new(&message);
        let mut from = seal();
        let mut next = || {
            let mut frame = said.frame(&mut from);
            let mut bytes = frame.copy_to_bytes(frame.remaining()).to_vec();
            let body = bytes.split_off(4);
            assert_eq!(u32::from_le_bytes(bytes.try_into().unwrap()) as usize, body.len());
            body
        };
        let (first, second) = (next(), next());
        let mut to = seal();
        assert_eq!(open::<ToServer>(&first, &mut to), Some(message.clone()));
        assert_eq!(open::<ToServer>(&second, &mut to), Some(message));
        for replayed in [&first, &second] {
            assert_eq!(open::<ToServer>(replayed, &mut to), None);
        }
        assert_eq!(open::<ToServer>(&second, &mut seal()), None, "the first was left out");
        for bit in 0..8 * first.len() {
            let mut damaged = first.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(open::<ToServer>(&damaged, &mut seal()), None, "bit {bit}");
        }
        assert_eq!(open::<ToServer>(b"short", &mut seal()), None);
    }
}
