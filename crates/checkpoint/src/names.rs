//! Names: attempts, files, state tensors and chunks.
//!
//! ```text
//! step-00001000.g0003/                  attempt: step, fencing generation
//!   rank-00000/shard-000.safetensors    data of rank 0
//!   rank-00000/shard-000.sums           CRC32C of each 4 MiB of it
//!   manifest.json
//!   COMMIT
//! generation-0003                       claim of a fencing generation
//! ```
//! Numbers are padded with zeros to the widths shown and grow wider when they must.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::Region;

/// The manifest's file name within an attempt.
pub(crate) const MANIFEST: &str = "manifest.json";
/// The file whose presence commits an attempt.
pub(crate) const COMMIT: &str = "COMMIT";
/// The fsynced temporary that `COMMIT` is linked from; meaningless to readers.
pub(crate) const COMMIT_TEMPORARY: &str = "COMMIT.partial";

/// One try at saving one step: no two attempts share a directory, so none disturbs another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Attempt {
    /// Optimizer steps taken.
    pub step: u64,
    /// Fencing generation of the job incarnation that saves.
    pub generation: u32,
}

impl Attempt {
    /// The directory name, `step-00001000.g0003`.
    pub fn dir_name(self) -> String {
        format!("step-{:08}.g{:04}", self.step, self.generation)
    }

    /// The attempt that a directory name stands for; `None` for any other name.
    pub fn parse(name: &str) -> Option<Attempt> {
        let (step, generation) = name.strip_prefix("step-")?.split_once(".g")?;
        let attempt = Attempt { step: step.parse().ok()?, generation: generation.parse().ok()? };
        // One attempt has one name: "step-1.g1" or "step-+0000001.g0001" is not ours.
        (attempt.dir_name() == name).then_some(attempt)
    }

    /// Orders attempts from oldest to newest. A later incarnation of the job knows of the
    /// earlier ones' commits and chose where to go on from, so its word is the newer one even
    /// at a lower step.
    pub fn age_key(self) -> (u32, u64) {
        (self.generation, self.step)
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.dir_name())
    }
}

/// The claim file of a generation.
pub(crate) fn claim_name(generation: u32) -> String {
    format!("generation-{generation:04}")
}

/// The generation that a claim file stands for.
pub(crate) fn parse_claim(name: &str) -> Option<u32> {
    let generation = name.strip_prefix("generation-")?.parse().ok()?;
    (claim_name(generation) == name).then_some(generation)
}

/// The directory of a rank within an attempt.
pub(crate) fn rank_dir(rank: u32) -> String {
    format!("rank-{rank:05}")
}

/// A record in a directory of checkpoints: it belongs to a reshape that is not committed yet.
pub(crate) const RESHAPE: &str = "reshape";

/// `wave-0000`: the record of a part of a reshape, until that is committed.
pub(crate) fn wave_name(number: u32) -> String {
    format!("wave-{number:04}")
}

/// A shard's path within an attempt, with `/` on every platform.
pub(crate) fn shard_path(rank: u32, shard: u32) -> String {
    format!("{}/shard-{shard:03}.safetensors", rank_dir(rank))
}

/// The path of a shard's sums table within an attempt.
pub(crate) fn sums_path(rank: u32, shard: u32) -> String {
    format!("{}/shard-{shard:03}.sums", rank_dir(rank))
}

/// The rank and number of a shard path; `None` for anything else, so that a manifest can never
/// point outside its directory.
pub(crate) fn parse_shard_path(path: &str) -> Option<(u32, u32)> {
    let (rank, shard) = path.strip_prefix("rank-")?.split_once("/shard-")?;
    let rank = rank.parse().ok()?;
    let shard = shard.strip_suffix(".safetensors")?.parse().ok()?;
    (shard_path(rank, shard) == path).then_some((rank, shard))
}

/// Which state tensor: a logical tensor's name and what is kept about it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorKey {
    /// Logical tensor name, as in the schema.
    pub name: String,
    /// `param` (the fp32 master), `momentum`, `adam_m`, `adam_v` …: `[a-z0-9_]+`.
    pub slot: String,
}

impl TensorKey {
    /// The key of a slot of a logical tensor.
    pub fn new(name: impl Into<String>, slot: impl Into<String>) -> TensorKey {
        TensorKey { name: name.into(), slot: slot.into() }
    }

    /// Whether the slot is a word of lower-case letters, digits and underscores, which keeps
    /// chunk names unambiguous whatever the logical name holds.
    pub fn slot_is_valid(&self) -> bool {
        let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
        !self.slot.is_empty() && self.slot.bytes().all(word)
    }

    /// The chunk's name in a safetensors header: `name:slot[offset,…]`.
    pub fn chunk_name(&self, region: &Region) -> String {
        let offsets: Vec<String> = region.offset.iter().map(usize::to_string).collect();
        format!("{}:{}[{}]", self.name, self.slot, offsets.join(","))
    }
}

impl fmt::Display for TensorKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, self.slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_one_spelling() {
        let attempt = Attempt { step: 1000, generation: 3 };
        assert_eq!(attempt.dir_name(), "step-00001000.g0003");
        for attempt in [attempt, Attempt { step: u64::MAX, generation: u32::MAX }] {
            assert_eq!(Attempt::parse(&attempt.dir_name()), Some(attempt));
        }
        for name in ["step-1000.g0003", "step-00001000.g3", "step-+0001000.g0003", "step-", "x"] {
            assert_eq!(Attempt::parse(name), None, "{name}");
        }
        assert_eq!(parse_claim(&claim_name(12)), Some(12));
        assert_eq!(parse_claim("generation-12"), None);
    }

    #[test]
    fn a_shard_path_cannot_leave_its_directory() {
        assert_eq!(parse_shard_path("rank-00001/shard-002.safetensors"), Some((1, 2)));
        let bad = ["../rank-00001/shard-002.safetensors", "rank-00001/shard-002.sums", "/etc", ""];
        for path in bad {
            assert_eq!(parse_shard_path(path), None, "{path}");
        }
    }
}
