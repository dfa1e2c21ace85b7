//! Size, count, algbw and busbw as nccl-tests means them, operation by operation.
//!
//! Source of every formula: `GetCollByteCount` and `GetBw` of nccl-tests 2.19.6, `src/<op>.cu`, and
//! its `doc/PERFORMANCE.md`. With *n* ranks and *S* the bytes in the column `size(B)`:
//!
//! ```text
//! all_reduce                                       algbw S/t          busbw algbw · 2(n−1)/n
//! reduce_scatter, all_gather, all_to_all(v),
//! gather, scatter         S = n · bytes of a part  algbw S/t          busbw algbw · (n−1)/n
//! broadcast, reduce, send_recv                     algbw S/t          busbw algbw
//! hypercube               S = n · bytes of a part  algbw S(n−1)/(nt)  busbw algbw
//! barrier                 S = 0                    none
//! ```
//!
//! Bandwidths are decimal (10⁹ bytes per second), though sizes are typed in binary units.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::BenchError;

/// A collective operation.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    AllReduce,
    ReduceScatter,
    AllGather,
    Broadcast,
    Reduce,
    Gather,
    Scatter,
    AllToAll,
    /// Counts differ between pairs; its size is the most that one rank sends or receives.
    #[serde(rename = "all_to_all_v")]
    AllToAllV,
    /// Every rank sends to the next one and receives from the one before.
    SendRecv,
    Hypercube,
    Barrier,
}

impl Op {
    pub const ALL: [Op; 12] = [
        Op::AllReduce,
        Op::ReduceScatter,
        Op::AllGather,
        Op::Broadcast,
        Op::Reduce,
        Op::Gather,
        Op::Scatter,
        Op::AllToAll,
        Op::AllToAllV,
        Op::SendRecv,
        Op::Hypercube,
        Op::Barrier,
    ];

    /// As it is typed and written.
    pub fn word(self) -> &'static str {
        match self {
            Op::AllReduce => "all_reduce",
            Op::ReduceScatter => "reduce_scatter",
            Op::AllGather => "all_gather",
            Op::Broadcast => "broadcast",
            Op::Reduce => "reduce",
            Op::Gather => "gather",
            Op::Scatter => "scatter",
            Op::AllToAll => "all_to_all",
            Op::AllToAllV => "all_to_all_v",
            Op::SendRecv => "send_recv",
            Op::Hypercube => "hypercube",
            Op::Barrier => "barrier",
        }
    }

    /// The program of nccl-tests that measures it; it has none for a barrier.
    pub fn program(self) -> Option<&'static str> {
        Some(match self {
            Op::AllReduce => "all_reduce_perf",
            Op::ReduceScatter => "reduce_scatter_perf",
            Op::AllGather => "all_gather_perf",
            Op::Broadcast => "broadcast_perf",
            Op::Reduce => "reduce_perf",
            Op::Gather => "gather_perf",
            Op::Scatter => "scatter_perf",
            Op::AllToAll => "alltoall_perf",
            Op::AllToAllV => "alltoallv_perf",
            Op::SendRecv => "sendrecv_perf",
            Op::Hypercube => "hypercube_perf",
            Op::Barrier => return None,
        })
    }

    /// The operation of this name, by all names that [`FromStr`] knows, if it is one of `offered`.
    ///
    /// # Errors
    /// [`BenchError::Argument`] with the nearest of those, or all.
    pub fn among(name: &str, offered: &[Op]) -> Result<Op, BenchError> {
        let word = plain(name);
        let is_named = |op: &Op| plain(op.word()) == word;
        let refuse = |what: String| Err(BenchError::Argument(what));
        let words = offered.iter().map(|op| op.word()).collect::<Vec<_>>().join(", ");
        match Op::ALL.into_iter().find(is_named) {
            Some(op) if offered.contains(&op) => return Ok(op),
            Some(op) => return refuse(format!("{op} is not offered; use one of {words}")),
            None => {}
        }
        let distance = |op: &Op| strsim::damerau_levenshtein(&plain(op.word()), &word);
        let near = offered.iter().copied().min_by_key(distance);
        match near.filter(|op| distance(op) * 3 <= word.len().max(3)) {
            Some(near) => refuse(format!("no operation `{name}`; did you mean `{near}`?")),
            None => refuse(format!("no operation `{name}`; use one of {words}")),
        }
    }

    /// Whether values are combined, so that a reduction belongs to the operation.
    pub fn reduces(self) -> bool {
        matches!(self, Op::AllReduce | Op::ReduceScatter | Op::Reduce)
    }

    /// Whether one rank is apart from the others.
    pub fn rooted(self) -> bool {
        matches!(self, Op::Broadcast | Op::Reduce | Op::Gather | Op::Scatter)
    }

    /// Whether the buffer is divided into one part per rank.
    pub fn divided(self) -> bool {
        use Op::*;
        matches!(
            self,
            ReduceScatter | AllGather | Gather | Scatter | AllToAll | AllToAllV | Hypercube
        )
    }

    /// busbw / algbw among `ranks` ranks; `None` for a barrier, which moves nothing.
    pub(crate) fn bus_factor(self, ranks: usize) -> Option<f64> {
        let n = ranks.max(1) as f64;
        match self {
            Op::AllReduce => Some(2.0 * (n - 1.0) / n),
            Op::Broadcast | Op::Reduce | Op::SendRecv | Op::Hypercube => Some(1.0),
            Op::Barrier => None,
            _ => Some((n - 1.0) / n),
        }
    }

    /// algbw and busbw of `bytes`, as in the column `size(B)`, in `time_us`.
    ///
    /// `None` for a barrier and where no time has passed.
    pub(crate) fn bandwidths(self, bytes: u64, ranks: usize, time_us: f64) -> Option<Bandwidths> {
        let factor = self.bus_factor(ranks)?;
        if !time_us.is_finite() || time_us <= 0.0 {
            return None;
        }
        let n = ranks.max(1) as f64;
        let moved = match self {
            Op::Hypercube => bytes as f64 * (n - 1.0) / n,
            _ => bytes as f64,
        };
        // 10⁻⁹ bytes over 10⁻⁶ seconds.
        let algbw_gb_per_s = moved / (time_us * 1e3);
        Some(Bandwidths { algbw_gb_per_s, busbw_gb_per_s: algbw_gb_per_s * factor })
    }

    /// The bytes and count that are measured where `bytes` were asked for.
    ///
    /// `element_bytes` is the size of one element, `ranks` at least 1.
    pub fn extent(self, bytes: u64, element_bytes: u64, ranks: usize, parts: Parts) -> Extent {
        let (element_bytes, ranks) = (element_bytes.max(1), ranks.max(1) as u64);
        let elements = bytes / element_bytes;
        match self {
            Op::Barrier => Extent { bytes: 0, count: 0 },
            op if op.divided() => {
                let step = match parts {
                    Parts::Exact => 1,
                    Parts::Of16Bytes => (16 / element_bytes).max(1),
                };
                let count = elements / ranks / step * step;
                Extent { bytes: count * ranks * element_bytes, count }
            }
            _ => Extent { bytes: elements * element_bytes, count: elements },
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// The name without its path, `_perf` and what a build adds to that (`_mpi`), case and separators.
fn plain(name: &str) -> String {
    let name = name.trim().rsplit(['/', '\\']).next().unwrap_or("");
    let name = name.split_once("_perf").map_or(name, |(name, _)| name);
    name.chars().filter(|c| !matches!(c, '_' | '-' | ' ')).collect::<String>().to_lowercase()
}

impl FromStr for Op {
    type Err = BenchError;

    /// `all_reduce`, and the names that nccl-tests and rccl-tests have for it: `all_reduce_perf`
    /// with or without its folder, `AllReduce`.
    fn from_str(name: &str) -> Result<Op, BenchError> {
        Op::among(name, &Op::ALL)
    }
}

/// The two bandwidths of nccl-tests, in 10⁹ bytes per second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Bandwidths {
    /// Bytes of the operation over its time.
    pub algbw_gb_per_s: f64,
    /// The rate of the links if the algorithm moves no byte more than it must.
    pub busbw_gb_per_s: f64,
}

/// How a buffer is divided among ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parts {
    /// Parts of any number of elements.
    Exact,
    /// Parts of a multiple of 16 bytes, as nccl-tests rounds them down.
    Of16Bytes,
}

/// The columns `size(B)` and `count(elements)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// The larger of what one rank sends and receives.
    pub bytes: u64,
    /// Elements of one part where the buffer is divided, otherwise of the whole.
    pub count: u64,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn eight_ranks_have_the_factors_of_nccl_tests() {
        for (op, factor) in [
            (Op::AllReduce, Some(1.75)),
            (Op::AllGather, Some(0.875)),
            (Op::AllToAllV, Some(0.875)),
            (Op::Broadcast, Some(1.0)),
            (Op::Hypercube, Some(1.0)),
            (Op::Barrier, None),
        ] {
            assert_eq!(op.bus_factor(8), factor, "{op}");
        }
        // 1 GiB in 4 ms among 8 ranks.
        let all_reduce = Op::AllReduce.bandwidths(1 << 30, 8, 4000.0).unwrap();
        assert!((all_reduce.algbw_gb_per_s - 268.435_456).abs() < 1e-9);
        assert!((all_reduce.busbw_gb_per_s - 469.762_048).abs() < 1e-9);
        let hypercube = Op::Hypercube.bandwidths(8000, 8, 1.0).unwrap();
        assert_eq!((hypercube.algbw_gb_per_s, hypercube.busbw_gb_per_s), (7.0, 7.0));
        assert_eq!(Op::AllReduce.bandwidths(8, 1, 1.0).unwrap().busbw_gb_per_s, 0.0);
        assert_eq!(Op::AllReduce.bandwidths(8, 2, 0.0), None);
    }

    #[test]
    fn programs_are_known_by_whatever_their_builds_are_called() {
        for name in ["all_reduce", "AllReduce", "./build/all_reduce_perf", "all_reduce_perf_mpi"] {
            assert_eq!(name.parse::<Op>().unwrap(), Op::AllReduce, "{name}");
        }
        assert!("my_perf".parse::<Op>().is_err());
        let among = |name| Op::among(name, &[Op::AllToAll, Op::Barrier]).unwrap_err().to_string();
        assert_eq!(among("x"), "no operation `x`; use one of all_to_all, barrier");
        assert_eq!(among("all_to_al"), "no operation `all_to_al`; did you mean `all_to_all`?");
        assert_eq!(
            among("alltoallv_perf"),
            "all_to_all_v is not offered; use one of all_to_all, barrier"
        );
    }

    #[test]
    fn parts_are_rounded_as_nccl_tests_rounds_them() {
        let extent = |op: Op, parts| op.extent(1000, 4, 3, parts);
        assert_eq!(extent(Op::AllReduce, Parts::Exact), Extent { bytes: 1000, count: 250 });
        assert_eq!(extent(Op::AllGather, Parts::Exact), Extent { bytes: 996, count: 83 });
        assert_eq!(extent(Op::AllGather, Parts::Of16Bytes), Extent { bytes: 960, count: 80 });
        assert_eq!(Op::Broadcast.extent(1001, 2, 8, Parts::Of16Bytes).bytes, 1000);
        // Eight bytes cannot be divided into parts of sixteen.
        assert_eq!(Op::AllToAll.extent(8, 4, 2, Parts::Of16Bytes), Extent { bytes: 0, count: 0 });
        assert_eq!(Op::Barrier.extent(64, 4, 2, Parts::Exact).bytes, 0);
    }

    #[test]
    fn operations_are_known_by_every_name_they_go_by() {
        for op in Op::ALL {
            assert_eq!(op.word().parse::<Op>().unwrap(), op);
            if let Some(program) = op.program() {
                assert_eq!(format!("/opt/build/{program}").parse::<Op>().unwrap(), op);
            }
            assert_eq!(serde_json::to_value(op).unwrap(), op.word());
        }
        assert_eq!("AlltoAllv".parse::<Op>().unwrap(), Op::AllToAllV);
        assert_eq!("HyperCube".parse::<Op>().unwrap(), Op::Hypercube);
        let message = |name: &str| name.parse::<Op>().unwrap_err().to_string();
        assert!(message("all_redcue").contains("did you mean `all_reduce`?"));
        assert!(message("teleport").contains("all_gather"));
    }

    proptest! {
        #[test]
        fn a_divided_buffer_is_the_parts_of_all_ranks(
            op in prop::sample::select(Op::ALL.to_vec()),
            bytes in 0_u64..1 << 40,
            log in 0_u32..4,
            ranks in 1_usize..100,
        ) {
            let element = 1_u64 << log;
            for parts in [Parts::Exact, Parts::Of16Bytes] {
                let extent = op.extent(bytes, element, ranks, parts);
                prop_assert!(extent.bytes <= bytes);
                let copies = if op.divided() { ranks as u64 } else { 1 };
                prop_assert_eq!(extent.bytes, extent.count * element * copies);
                if parts == Parts::Exact && op != Op::Barrier {
                    prop_assert!(bytes - extent.bytes < element * copies);
                }
            }
        }

        #[test]
        fn twice_the_time_is_half_the_bandwidth(
            op in prop::sample::select(Op::ALL.to_vec()),
            bytes in 1_u64..1 << 40,
            ranks in 2_usize..1000,
            us in 0.1_f64..1e6,
        ) {
            let both = (op.bandwidths(bytes, ranks, us), op.bandwidths(bytes, ranks, us * 2.0));
            let (Some(once), Some(twice)) = both else { return Ok(()) };
            prop_assert!((once.busbw_gb_per_s / twice.busbw_gb_per_s - 2.0).abs() < 1e-9);
            prop_assert!(once.busbw_gb_per_s <= 2.0 * once.algbw_gb_per_s);
        }
    }
}
