//! Who holds what: pure functions over names, shapes and counts, with no I/O.
//!
//! ```text
//! Schema ──▶ FlatLayout (offsets, buckets) ──┐
//!    │                                       ├──▶ Ownership (pieces, owners, statistic slots)
//!    └── Treatment per tensor, CostTable ────┘
//! Tree (virtual ranks) ──▶ leaf ranges of ranks, accumulation schedule, combine program
//! ```
//!
//! Every rank computes the same values from the same configuration without talking; the digests
//! are compared when a job starts.

mod error;
pub mod flat;
pub mod ownership;
pub mod region;
pub mod schema;
pub mod tree;

pub use error::LayoutError;
pub use flat::{Bucket, FlatLayout};
pub use ownership::{CostTable, Ownership, Piece, PieceKind, Treatment};
pub use region::{Region, slabs};
pub use schema::{LogicalTensor, Part, Role, Schema};
pub use tree::{LeafStep, Node, Program, ReduceOp, Schedule, Tree};
