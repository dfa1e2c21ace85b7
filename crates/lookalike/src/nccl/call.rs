//! One call of a rank, as it is sent to the hub, and what all ranks' calls together come to.

use super::number::{DataType, Part, op, reduce};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    AllReduce,
    Reduce,
    Broadcast,
    ReduceScatter,
    AllGather,
    AllToAll,
    Gather,
    Scatter,
    Send,
    Recv,
    Split,
    Window,
    Finalize,
}

const KINDS: [(Kind, &str); 13] = [
    (Kind::AllReduce, "ncclAllReduce"),
    (Kind::Reduce, "ncclReduce"),
    (Kind::Broadcast, "ncclBroadcast"),
    (Kind::ReduceScatter, "ncclReduceScatter"),
    (Kind::AllGather, "ncclAllGather"),
    (Kind::AllToAll, "ncclAlltoAll"),
    (Kind::Gather, "ncclGather"),
    (Kind::Scatter, "ncclScatter"),
    (Kind::Send, "ncclSend"),
    (Kind::Recv, "ncclRecv"),
    (Kind::Split, "ncclCommSplit"),
    (Kind::Window, "ncclCommWindowRegister"),
    (Kind::Finalize, "ncclCommFinalize"),
];

impl Kind {
    pub(crate) fn of(number: u8) -> Option<Kind> {
        KINDS.get(usize::from(number)).map(|(kind, _)| *kind)
    }

    pub(crate) fn name(self) -> &'static str {
        KINDS[self as usize].1
    }

    fn reduces(self) -> bool {
        matches!(self, Kind::AllReduce | Kind::Reduce | Kind::ReduceScatter)
    }

    pub(crate) fn has_root(self) -> bool {
        matches!(self, Kind::Reduce | Kind::Broadcast | Kind::Gather | Kind::Scatter)
    }

    /// How many times `count` elements a rank reads and writes.
    pub(crate) fn parts(self, is_root: bool, ranks: usize) -> (usize, usize) {
        let at_root = |parts| if is_root { parts } else { 0 };
        match self {
            Kind::AllReduce => (1, 1),
            Kind::Reduce => (1, at_root(1)),
            Kind::Broadcast => (at_root(1), 1),
            Kind::ReduceScatter => (ranks, 1),
            Kind::AllGather => (1, ranks),
            Kind::AllToAll => (ranks, ranks),
            Kind::Gather => (1, at_root(ranks)),
            Kind::Scatter => (at_root(ranks), 1),
            Kind::Send => (1, 0),
            Kind::Recv => (0, 1),
            Kind::Split | Kind::Window | Kind::Finalize => (0, 0),
        }
    }
}

/// A call of a rank, with the elements that it gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) kind: Kind,
    pub(crate) dtype: DataType,
    pub(crate) op: u8,
    pub(crate) factor: [u8; 8],
    /// The root, or the peer.
    pub(crate) peer: u32,
    pub(crate) count: u64,
    pub(crate) data: Vec<u8>,
}

impl Call {
    /// Something without elements: what all ranks say is given to all.
    pub(crate) fn exchange(kind: Kind, data: Vec<u8>) -> Call {
        let (dtype, op, factor, peer, count) = (DataType(1), 0, [0; 8], 0, 0);
        Call { kind, dtype, op, factor, peer, count, data }
    }

    /// In words, with all in which the ranks must agree.
    pub(crate) fn describe(&self) -> String {
        let name = self.kind.name();
        if matches!(self.kind, Kind::Split | Kind::Window | Kind::Finalize) {
            return name.to_owned();
        }
        let op = if self.kind.reduces() { op::NAMES[usize::from(self.op)] } else { "" };
        let comma = if op.is_empty() { "" } else { ", " };
        let root =
            if self.kind.has_root() { format!(", root {}", self.peer) } else { String::new() };
        format!("{name} of {} {}{comma}{op}{root}", self.count, self.dtype.name())
    }
}

/// The results of a collective call of all ranks, by rank.
///
/// # Errors
/// They do not call the same; in words.
pub(crate) fn complete(calls: &[Call]) -> Result<Vec<Vec<u8>>, String> {
    let first = &calls[0];
    for (rank, call) in calls.iter().enumerate() {
        if call.describe() != first.describe() {
            let (one, other) = (first.describe(), call.describe());
            return Err(format!("rank 0 calls {one}, and rank {rank} {other}"));
        }
    }
    let ranks = calls.len();
    let (dtype, root) = (first.dtype, first.peer as usize);
    let part = first.count as usize * dtype.bytes();
    let slice = |rank: usize, of: usize| &calls[rank].data[of * part..(of + 1) * part];
    let whole = || calls.iter().flat_map(|call| call.data.iter().copied()).collect::<Vec<u8>>();
    let sum = || {
        let parts = calls.iter().map(|call| Part { elements: &call.data, factor: &call.factor });
        reduce(dtype, first.op, &parts.collect::<Vec<_>>())
    };
    let for_root = |data: Vec<u8>| {
        let mut all = vec![Vec::new(); ranks];
        all[root] = data;
        all
    };
    let by_rank = |of: &dyn Fn(usize) -> Vec<u8>| (0..ranks).map(of).collect::<Vec<_>>();
    Ok(match first.kind {
        Kind::AllReduce => vec![sum(); ranks],
        Kind::Reduce => for_root(sum()),
        Kind::Broadcast => vec![calls[root].data.clone(); ranks],
        Kind::ReduceScatter => {
            let sum = sum();
            by_rank(&|rank| sum[rank * part..(rank + 1) * part].to_vec())
        }
        Kind::AllGather | Kind::Split | Kind::Window | Kind::Finalize => vec![whole(); ranks],
        Kind::AllToAll => {
            by_rank(&|rank| (0..ranks).flat_map(|from| slice(from, rank).to_vec()).collect())
        }
        Kind::Gather => for_root(whole()),
        Kind::Scatter => by_rank(&|rank| slice(root, rank).to_vec()),
        Kind::Send | Kind::Recv => unreachable!("they meet in pairs"),
    })
}

/// The elements that a receive gets of a send.
///
/// # Errors
/// They are not of the same elements; in words.
pub(crate) fn complete_pair(
    (from, sent): (usize, &Call),
    (to, received): (usize, &Call),
) -> Result<Vec<u8>, String> {
    if (sent.count, sent.dtype) == (received.count, received.dtype) {
        return Ok(sent.data.clone());
    }
    let (one, other) = (sent.describe(), received.describe());
    Err(format!("rank {from} calls {one} to rank {to}, which calls {other}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(kind: Kind, peer: u32, count: u64, data: &[u8]) -> Call {
        let (dtype, data) = (DataType(1), data.to_vec());
        Call { kind, dtype, op: op::SUM, factor: [0; 8], peer, count, data }
    }

    #[test]
    fn each_kind_moves_what_its_name_says() {
        let two = |kind, a: &[u8], b: &[u8], count| {
            complete(&[call(kind, 1, count, a), call(kind, 1, count, b)]).unwrap()
        };
        assert_eq!(two(Kind::AllReduce, &[1, 2], &[3, 4], 2), [[4, 6], [4, 6]]);
        assert_eq!(two(Kind::Reduce, &[1, 2], &[3, 4], 2), [vec![], vec![4, 6]]);
        assert_eq!(two(Kind::Broadcast, &[], &[3, 4], 2), [[3, 4], [3, 4]]);
        assert_eq!(two(Kind::ReduceScatter, &[1, 2], &[3, 4], 1), [[4], [6]]);
        assert_eq!(two(Kind::AllGather, &[1], &[3], 1), [[1, 3], [1, 3]]);
        assert_eq!(two(Kind::AllToAll, &[1, 2], &[3, 4], 1), [[1, 3], [2, 4]]);
        assert_eq!(two(Kind::Gather, &[1], &[3], 1), [vec![], vec![1, 3]]);
        assert_eq!(two(Kind::Scatter, &[], &[3, 4], 1), [[3], [4]]);
    }

    #[test]
    fn what_differs_is_said_in_words() {
        let told = |a: Call, b: Call| complete(&[a, b]).unwrap_err();
        let sum = call(Kind::AllReduce, 0, 1, &[1]);
        let max = Call { op: op::MAX, ..sum.clone() };
        let expected =
            "rank 0 calls ncclAllReduce of 1 u8, sum, and rank 1 ncclAllReduce of 1 u8, max";
        assert_eq!(told(sum.clone(), max), expected);
        let longer = Call { count: 2, ..sum.clone() };
        assert!(told(sum.clone(), longer).contains("of 2 u8"));
        let other = told(call(Kind::Broadcast, 0, 1, &[1]), call(Kind::Broadcast, 1, 1, &[1]));
        assert!(other.contains("root 0") && other.contains("root 1"), "{other}");
        let (sent, received) = (call(Kind::Send, 1, 1, &[1]), call(Kind::Recv, 0, 2, &[]));
        let pair = complete_pair((0, &sent), (1, &received)).unwrap_err();
        assert_eq!(pair, "rank 0 calls ncclSend of 1 u8 to rank 1, which calls ncclRecv of 2 u8");
    }
}
