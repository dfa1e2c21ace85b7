//! Checkpoints that are whole or absent, and load into any layout.
//!
//! ```text
//! SavePlan (pure, each rank the same)
//! claim_generation ─▶ write_rank (each rank) ─▶ digests ─▶ commit (coordinator) ─▶ retain
//!                     newest ─▶ Checkpoint ─▶ run_state, read_box (any box of any tensor)
//! ```
//! State is kept in the space of *logical* tensors, cut into boxes; who wrote a box is of no
//! consequence to who reads it, so any number of ranks may load what any other number saved.
//!
//! Invariants, each tested by crashing at every file-system operation:
//! - nothing is overwritten or renamed; an attempt's files are written once under its own name;
//! - `COMMIT` appears only after all that it vouches for is durable, and proves it: its digest of
//!   the manifest, the manifest's digests of the sums tables, their CRC32C of each 4 MiB;
//! - a reader gets one commit, whole, or an error that says what and where; never a mixture;
//! - what is deleted loses its `COMMIT` first.
//!
//! The format is described byte by byte in `docs/checkpoint-format.md`.

mod anywhere;
mod at_once;
mod chunk_index;
mod commit;
mod diff;
mod digest;
pub mod disk;
mod error;
pub mod manifest;
mod names;
pub mod objects;
mod read;
mod reshape;
mod save_plan;
mod scattered;
mod shard;
mod spread;
mod store;
mod stream;
mod sums;
mod system;
mod values;
mod verified;
mod verify;
mod waves;
mod write;

use layout::region;

pub use anywhere::Anywhere;
pub use commit::{Committed, ExpectedTensor};
pub use diff::{Diff, Distance, RunStateDifference, TensorDiff, TensorDifference, diff};
pub use digest::Digest;
pub use error::{Error, Source};
pub use layout::{Dtype, Region, slabs};
pub use manifest::{Manifest, RunState, StateTensor};
pub use names::{Attempt, TensorKey};
pub use read::Checkpoint;
pub use reshape::{Reshape, ReshapeOptions, Reshaped};
pub use save_plan::{Boxes, RankDigest, SavePlan};
pub use store::{Entry, Keep, Newest, Proof, Removable, Skipped, Status, Store};
pub use stream::{Places, Reads, Wanted};
pub use sums::RANGE_BYTES;
pub use values::{ValueDifference, value_differences};
pub use verified::FileRange;
pub use verify::{VerifyReport, verify, verify_on};
pub use write::{Chunk, ChunkData, RankReport, ReportedChunk, ReportedFile, WriteOptions};

/// The version of the on-disk format that this crate writes and reads.
pub const FORMAT_VERSION: u32 = 1;
