//! Layouts, meshes and trees that do not fit, with the nearest that do.

use crate::{Axis, Coordinate, Mesh, MeshProblem, NearestMeshes};

/// Errors of layout functions, with the offending value and what would do instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// A radix below two adds a level that sums nothing.
    #[error("radix {radix} at position {position} of {radices:?} must be at least 2")]
    Radix { radix: usize, position: usize, radices: Vec<usize> },
    /// The radices and the number of leaves disagree.
    #[error("radices {radices:?} multiply to {product}, not to the {leaves} leaves of the batch")]
    RadicesProduct { radices: Vec<usize>, product: usize, leaves: usize },
    /// A product that does not fit a machine word.
    #[error("radices {radices:?} multiply to more leaves than can be counted")]
    TooManyLeaves { radices: Vec<usize> },
    /// More ranks than virtual ranks: some rank would have no work.
    #[error(
        "{world} ranks cannot share {leaves} leaves; use at most {leaves} ranks or raise \
         batch.leaves to {world} or more"
    )]
    TooManyRanks { world: usize, leaves: usize },
    /// Two tensors with one name.
    #[error("tensor `{name}` is declared twice")]
    DuplicateName { name: String },
    /// A part list that does not tile the rows of its tensor.
    #[error("the parts of `{name}` cover rows {covered} of {rows}")]
    Parts { name: String, covered: usize, rows: usize },
    /// A per-tensor argument of the wrong length.
    #[error("{what}: {got} entries for {expected} tensors")]
    Count { what: &'static str, got: usize, expected: usize },
    /// FLOPs of more or fewer matrices than a tensor has.
    #[error("`{name}`: FLOPs of {got} matrices for {expected}")]
    Matrices { name: String, got: usize, expected: usize },
    /// A rank beyond the mesh.
    #[error("there is no rank {rank} in the mesh {mesh}: use 0 to {}", mesh.ranks().max(1) - 1)]
    NoSuchRank { rank: usize, mesh: Mesh },
    /// A coordinate beyond the mesh.
    #[error(
        "the coordinate {at} lies outside the mesh {mesh}: along {axis} use 0 to {}",
        mesh.along(*axis).max(1) - 1
    )]
    NoSuchCoordinate { at: Coordinate, axis: Axis, mesh: Mesh },
    /// A mesh that does not fill the ranks, or that the model does not allow.
    #[error("{problem}; {near}")]
    Mesh { problem: MeshProblem, near: NearestMeshes },
}
