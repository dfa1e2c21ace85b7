//! Errors of a collective, and whose fault they are.
//!
//! An error of a group names the operation, its number in the group, and a rank: all members tell
//! the same culprit, so that the run ends with one sentence. Codes of operations are part of the
//! wire format.

use std::net::SocketAddr;
use std::ops::Range;

use device::{DType, DeviceError, DeviceKind};

use crate::rendezvous::Refusal;
use crate::tls::TlsFault;

/// The key of a config that sets [`crate::Settings::timeout_ms`], as messages name it that advise
/// to raise it. A program that calls it otherwise replaces it by its own word.
pub const TIMEOUT_KEY: &str = "ranks.timeout_ms";

/// Operations of a group, for counters, frames and messages. The numbers are part of the wire
/// format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Operation {
    /// Meeting of the ranks.
    Join = 0,
    Window = 1,
    Barrier = 2,
    AllGatherBytes = 3,
    BroadcastBytes = 4,
    ReduceScatterOrdered = 5,
    AllGatherSegments = 6,
    AllToAll = 7,
    Exchange = 8,
    /// The making of groups.
    Split = 9,
    GatherBytes = 10,
}

impl Operation {
    /// Every operation, in numeric order.
    pub const ALL: [Operation; 11] = [
        Operation::Join,
        Operation::Window,
        Operation::Barrier,
        Operation::AllGatherBytes,
        Operation::BroadcastBytes,
        Operation::ReduceScatterOrdered,
        Operation::AllGatherSegments,
        Operation::AllToAll,
        Operation::Exchange,
        Operation::Split,
        Operation::GatherBytes,
    ];

    /// The operation of a wire number.
    pub fn from_code(code: u64) -> Option<Operation> {
        usize::try_from(code).ok().and_then(|code| Operation::ALL.get(code).copied())
    }

    /// Its name in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Operation::Join => "join",
            Operation::Window => "window",
            Operation::Barrier => "barrier",
            Operation::AllGatherBytes => "all_gather_bytes",
            Operation::BroadcastBytes => "broadcast_bytes",
            Operation::ReduceScatterOrdered => "reduce_scatter_ordered",
            Operation::AllGatherSegments => "all_gather_segments",
            Operation::AllToAll => "all_to_all",
            Operation::Exchange => "exchange",
            Operation::Split => "split",
            Operation::GatherBytes => "gather_bytes",
        }
    }
}

impl std::fmt::Display for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Errors of a group, and of the meeting before it.
#[derive(Debug, thiserror::Error)]
pub enum CommError {
    /// Ranks did not get on for the whole timeout.
    #[error(
        "{operation} #{sequence}: {} had not arrived after {timeout_ms} ms{moved}; \
         see what that process is doing, or raise {TIMEOUT_KEY}",
        ranks(missing)
    )]
    Timeout {
        operation: Operation,
        sequence: u64,
        missing: Vec<usize>,
        timeout_ms: u64,
        moved: Moved,
    },
    /// A peer died or closed its connection.
    #[error("{operation} #{sequence}: rank {rank} is lost: {cause}")]
    PeerLost { rank: usize, operation: Operation, sequence: u64, cause: String },
    /// Two ranks do different things at the same point.
    #[error("{operation} #{sequence}: rank {rank} is at {theirs} instead")]
    Mismatch { operation: Operation, sequence: u64, rank: usize, theirs: String },
    /// A frame on the connection to a peer is not the one that it sent.
    #[error(
        "{operation} #{sequence}: a frame from rank {rank} came damaged: {damage}; what the \
         operation has written so far means nothing; look at the network cards, cables, switches \
         and memory between the two hosts"
    )]
    Damaged { rank: usize, operation: Operation, sequence: u64, damage: Damage },
    /// The job was revoked, here or elsewhere; nothing works any more.
    #[error("the group was aborted: {why}")]
    Revoked { why: String },
    #[error("rank {rank} does not exist among {world} ranks")]
    NoSuchRank { rank: usize, world: usize },
    #[error("{what}: {got} entries for {expected} ranks")]
    PerRank { what: &'static str, got: usize, expected: usize },
    #[error("{what}: elements {start}..{end} lie outside {len}")]
    Range { what: &'static str, start: usize, end: usize, len: usize },
    #[error("{what}: {got} entries for {expected} segments")]
    PerSegment { what: &'static str, got: usize, expected: usize },
    #[error(
        "{dtype} is not reduced to {sum}: f32, f64, i32, i64 and u8 give their own type, bf16 and \
         f16 theirs or f32"
    )]
    SumType { dtype: DType, sum: DType },
    /// A tensor that results go to.
    #[error("`{what}` of rank {rank} has {got} elements where {expected} go; give it as many")]
    Short { rank: usize, what: &'static str, got: usize, expected: usize },
    #[error("`{what}` of rank {rank} is {got} where the plan says {expected}; use one type")]
    OtherType { rank: usize, what: &'static str, got: DType, expected: DType },
    #[error(
        "`{what}` of rank {rank} lies on {got}, its window on {expected}; use memory of the \
         group's device"
    )]
    OtherDevice { rank: usize, what: &'static str, got: DeviceKind, expected: DeviceKind },
    #[error("{0}; make the program by `Tree::combine` of all partials in leaf order")]
    Sum(kernels::KernelError),
    #[error("the window belongs to another group; use one that this group made")]
    ForeignWindow,
    #[error("the operation was prepared by another group; use one that this group prepared")]
    ForeignOperation,
    #[error("{what} {}..{} and {}..{} overlap; each element belongs to one member at most",
        first.start, first.end, second.start, second.end)]
    Overlap { what: &'static str, first: Range<usize>, second: Range<usize> },
    #[error("rank {rank} sends to or receives from itself; messages go between two ranks")]
    OwnMessage { rank: usize },
    /// Of a partition into groups.
    #[error("the groups {problem}; every rank of 0 to {} belongs to exactly one", world - 1)]
    Partition { problem: String, world: usize },
    #[error("rank {rank} sends {got} bytes where {expected} were expected")]
    Length { rank: usize, got: u64, expected: u64 },
    #[error("cannot {action} shared memory: {source}")]
    SharedMemory { action: &'static str, source: std::io::Error },
    #[error(
        "what was inherited is not the shared memory of {world} ranks of this version; workers are \
         started by the process that makes it"
    )]
    ForeignMemory { world: usize },
    /// Something else listens there, the address is not this host's, or the port needs rights.
    #[error("cannot listen at {addr}: {}", bind_text(*addr, source))]
    Bind { addr: SocketAddr, source: std::io::Error },
    #[error("{addr}: cannot {action}: {source}")]
    Socket { addr: SocketAddr, action: &'static str, source: std::io::Error },
    /// Of the two ends of a connection only one knows what the other does.
    #[error("{who} has another secret than this process; {}", SAME_SECRET)]
    Secret { who: String },
    /// Of TLS, with whom.
    #[error("{who} {fault}")]
    Tls { who: String, fault: TlsFault },
    #[error("two processes claim rank {rank}; start each rank once")]
    RankTaken { rank: usize },
    /// Of the server, which holds a connection to every rank.
    #[error(
        "a meeting of {world} ranks takes {needed} open files, and this process may have {limit}: \
         raise the limit (`ulimit -n`, LimitNOFILE= of a service)"
    )]
    Files { world: usize, needed: u64, limit: u64 },
    /// More connections than this process may open.
    #[error(
        "a rank needs {more} connections beside {open} open files, and `ulimit -n` is {limit}; \
         raise it to {needed} at least, or use fewer ranks"
    )]
    Descriptors { open: usize, more: usize, needed: usize, limit: usize },
    /// `last` is what came of the last try.
    #[error(
        "nobody answers at {addrs} for {timeout_ms} ms ({last}); \
         check the rendezvous address and that its process runs, or raise {TIMEOUT_KEY}"
    )]
    NoRendezvous { addrs: String, timeout_ms: u64, last: String },
    #[error(
        "{addr} {how}: the supervising process there has ended, or another program has that port; \
         check the rendezvous address"
    )]
    NotRendezvous { addr: SocketAddr, how: &'static str },
    /// Trying again would not help.
    #[error("{addr} cannot be reached from here: {source}; {}", reach_text(*addr))]
    Unreachable { addr: SocketAddr, source: std::io::Error },
    /// The ranks did not come together.
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("a tcp group blocks: call it from an ordinary thread, not from asynchronous code")]
    Asynchronous,
    #[error("cannot start the communication runtime: {0}")]
    Runtime(std::io::Error),
    /// A group cannot have the transport that was asked for; found before anything of it is made.
    #[error(transparent)]
    Transport(#[from] crate::nccl::Refusal),
    /// An error of the library of a GPU's vendor.
    #[error("{operation} #{sequence} among {}: {source}", ranks(members))]
    Library {
        operation: Operation,
        sequence: u64,
        members: Vec<usize>,
        source: Box<nccl_rs::Error>,
    },
    /// All members had come, and the device does not come to the end.
    #[error(
        "{operation} #{sequence} among {}: all of them had come, and {library} was not done on \
         rank {rank} after {timeout_ms} ms without progress; see what those processes are doing, \
         look at NCCL_DEBUG=INFO, or raise {TIMEOUT_KEY}",
        ranks(members)
    )]
    Unfinished {
        operation: Operation,
        sequence: u64,
        rank: usize,
        members: Vec<usize>,
        library: nccl_rs::Vendor,
        timeout_ms: u64,
    },
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// Advice where the secrets differ.
pub(crate) const SAME_SECRET: &str = "give every host of the job the same one (ranks.secret_file, \
                                      --secret-file or MUSTER_SECRET), or none";

/// Faults of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    #[error("its header does not fit its checksum")]
    Header,
    /// Nothing that machines do to bits looks like this.
    #[error("its header is whole, and was not made by that rank: somebody between the two forges")]
    Forged,
    /// Bytes of the message.
    #[error("bytes {start}..{end} do not fit their checksum")]
    Payload { start: u64, end: u64 },
    /// Of TLS.
    #[error("a record of TLS does not fit its seal: it was damaged on the way, or forged")]
    Record,
    /// One was lost, sent twice or overtaken.
    #[error("it is frame {got} of the connection where frame {expected} must come")]
    Turn { got: u32, expected: u32 },
}

/// Bytes of an operation that had moved, sent and received, when its deadline passed, and of how
/// many; shown as a clause that is empty where nothing had.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Moved {
    pub bytes: u64,
    /// 0 where it is not known.
    pub of: u64,
}

impl std::fmt::Display for Moved {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Moved { bytes: 0, .. } => Ok(()),
            Moved { bytes, of: 0 } => write!(f, " without progress ({bytes} bytes had moved)"),
            Moved { bytes, of } => {
                write!(f, " without progress ({bytes} of {of} bytes had moved)")
            }
        }
    }
}

/// A failure of other ranks, where an error is theirs and not that of the rank which met it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Fault {
    /// None where nobody knows.
    pub ranks: Vec<usize>,
    /// In words that follow `rank 1 failed: `.
    pub what: String,
}

impl Fault {
    /// `rank 1 failed: it closed the connection`.
    pub fn headline(&self) -> String {
        match self.ranks[..] {
            [] => self.what.clone(),
            _ => format!("{} failed: {}", ranks(&self.ranks), self.what),
        }
    }
}

impl CommError {
    /// As it is for whoever knows ranks by their number in the job, and not by their place among
    /// the members of a group.
    pub(crate) fn among(mut self, members: &[usize]) -> CommError {
        let of = |place: &mut usize| *place = members.get(*place).copied().unwrap_or(*place);
        match &mut self {
            CommError::Timeout { missing, .. } => missing.iter_mut().for_each(of),
            CommError::PeerLost { rank, .. }
            | CommError::Mismatch { rank, .. }
            | CommError::Damaged { rank, .. }
            | CommError::Length { rank, .. } => of(rank),
            _ => {}
        }
        self
    }

    /// The other ranks at fault, if this is not the fault of the rank that met it.
    pub fn fault(&self) -> Option<Fault> {
        let (ranks, what) = match self {
            CommError::Timeout { operation, sequence, missing, timeout_ms, moved } => (
                missing.clone(),
                format!(
                    "no sign of life within {timeout_ms} ms in {operation} #{sequence}{moved} \
                     (see what it is doing, or raise {TIMEOUT_KEY})"
                ),
            ),
            CommError::PeerLost { rank, operation, sequence, cause } => {
                (vec![*rank], format!("{cause} ({operation} #{sequence})"))
            }
            CommError::Damaged { rank, operation, sequence, damage } => {
                (vec![*rank], format!("its frame came damaged: {damage} ({operation} #{sequence})"))
            }
            CommError::Refused(Refusal::Ended { rank, reason }) => (vec![*rank], reason.clone()),
            // A peer of the library's, whichever.
            CommError::Library { source, .. } if crate::nccl::is_of_a_peer(source) => {
                (Vec::new(), self.to_string())
            }
            CommError::Refused(Refusal::Missing { .. } | Refusal::Absent { .. })
            | CommError::NoRendezvous { .. }
            | CommError::NotRendezvous { .. }
            | CommError::Unfinished { .. }
            | CommError::Revoked { .. } => (Vec::new(), self.to_string()),
            _ => return None,
        };
        Some(Fault { ranks, what })
    }
}

fn bind_text(addr: SocketAddr, source: &std::io::Error) -> String {
    use std::io::ErrorKind;
    match source.kind() {
        ErrorKind::AddrInUse => {
            format!("another process listens at port {}; choose another port", addr.port())
        }
        ErrorKind::AddrNotAvailable => {
            format!("{} is no address of this host; give one that is", addr.ip())
        }
        ErrorKind::PermissionDenied => {
            format!("port {} needs the rights of root; choose one above 1023", addr.port())
        }
        _ => source.to_string(),
    }
}

fn reach_text(addr: SocketAddr) -> &'static str {
    match addr.ip().is_loopback() {
        true => "this host's loopback interface is down: `ip link set lo up`",
        false => "see whether this host has a network and a route there, or name another address",
    }
}

/// `rank 1`, `ranks 1, 2 and 5` or `ranks 1, 4 to 6 and 8`.
pub(crate) fn ranks(ranks: &[usize]) -> String {
    numbered("rank", ranks)
}

/// As [`ranks`], of anything that has numbers.
pub(crate) fn numbered(noun: &str, numbers: &[usize]) -> String {
    let mut parts: Vec<String> = Vec::new();
    // A run of three or more is shown by its ends: there may be thousands.
    for run in numbers.chunk_by(|one, next| one.checked_add(1) == Some(*next)) {
        match run {
            [first, _, .., last] => parts.push(format!("{first} to {last}")),
            few => parts.extend(few.iter().map(ToString::to_string)),
        }
    }
    match (numbers, parts.as_slice()) {
        ([], _) => format!("no {noun}"),
        ([one], _) => format!("{noun} {one}"),
        (_, [first @ .., last]) if !first.is_empty() => {
            format!("{noun}s {} and {last}", first.join(", "))
        }
        _ => format!("{noun}s {}", parts.join("")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_words() {
        for (numbers, expected) in [
            (&[][..], "no rank"),
            (&[4], "rank 4"),
            (&[4, 5], "ranks 4 and 5"),
            (&[4, 5, 6], "ranks 4 to 6"),
            (&[1, 4, 5, 6, 8, 9], "ranks 1, 4 to 6, 8 and 9"),
            (&[3, 1, 2], "ranks 3, 1 and 2"),
        ] {
            assert_eq!(ranks(numbers), expected);
        }
        let most: Vec<usize> = (1..16_384).collect();
        assert_eq!(ranks(&most), "ranks 1 to 16383");
    }
}
