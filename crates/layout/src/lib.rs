//! Who holds what: pure functions over names, shapes and counts, with no I/O.
//!
//! ```text
//! Schema ──▶ FlatLayout (offsets, buckets) ──┐
//!    │                                       ├──▶ Ownership (pieces, owners, statistics)
//!    └── Treatment per tensor, CostTable ────┘
//! Tree (virtual ranks) ──▶ leaf ranges of ranks, accumulation schedule, combine program
//!
//! MeshSpec, Demands ──▶ Mesh ──▶ Placements (boxes of tensors per coordinate)
//!                                    ├──▶ Shard      (what one coordinate holds, as a schema)
//!                                    └──▶ GroupPlan  (ownership among the replicas of a part)
//! ```
//!
//! Every rank computes the same values from the same configuration without talking; the digests
//! are compared when a job starts.

mod dtype;
mod error;
pub mod flat;
pub mod group;
pub mod mesh;
pub mod mesh_fit;
pub mod normal;
pub mod ownership;
pub mod placement;
pub mod placement_rules;
pub mod region;
pub mod schema;
pub mod shard;
mod share;
mod spread;
pub mod state;
pub mod tree;
mod write_plan;

pub use dtype::Dtype;
pub use error::LayoutError;
pub use flat::{Bucket, FlatLayout};
pub use group::GroupPlan;
pub use mesh::{Axes, Axis, Coordinate, Mesh};
pub use mesh_fit::{Demands, MeshProblem, MeshSpec, NearestMeshes, Uneven};
pub use ownership::{CostTable, Ownership, Piece, PieceKind, Treatment};
pub use placement::{Along, Placement, Placements};
pub use placement_rules::{HeadRows, Split};
pub use region::{Region, slabs};
pub use schema::{LogicalTensor, Part, Role, RoleWord, Schema};
pub use shard::Shard;
pub use share::share;
pub use spread::{Everywhere, spread};
pub use state::{Absent, Sharing, StateDecl};
pub use tree::{Accumulation, LeafStep, Node, ReduceOp, SumProgram, Tree};
pub use write_plan::{Written, write_plan};
