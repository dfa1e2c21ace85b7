//! The ranks of a job as a box of four axes: pipeline, data, expert, tensor.
//!
//! ```text
//! rank = ((pp · DP + dp) · EP + ep) · TP + tp          capitals: ranks along the axis
//!
//! pp 2, dp 1, ep 2, tp 2:   tp ▸ 0 1      stage 0:  ep 0 {0 1}   ep 1 {2 3}
//!                                         stage 1:  ep 0 {4 5}   ep 1 {6 7}
//! ```
//! Neighbours in rank order share a host, so the axis that talks most comes last: tensor-parallel
//! ranks exchange activations several times a layer, expert-parallel ranks twice a layer with
//! experts, data-parallel ranks gradients and weights once a step, and pipeline stages one
//! activation per micro-batch with two others only.
//!
//! Every rank along dp *and* ep computes other samples: dense parameters are replicated over both,
//! those of experts over dp alone, because ep divides the experts.

use std::fmt;
use std::ops::{BitOr, Range};

use crate::{LayoutError, Role, Tree};

/// One direction of the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Axis {
    /// Pipeline: contiguous runs of layers.
    Pp,
    /// Data: other samples, the same parameters.
    Dp,
    /// Experts: other samples, other experts.
    Ep,
    /// Tensor: the same samples, parts of every matrix.
    Tp,
}

impl Axis {
    /// Slowest first, as ranks are numbered.
    pub const ALL: [Axis; 4] = [Axis::Pp, Axis::Dp, Axis::Ep, Axis::Tp];

    /// The word by which configs and messages call it.
    pub fn word(self) -> &'static str {
        match self {
            Axis::Pp => "pp",
            Axis::Dp => "dp",
            Axis::Ep => "ep",
            Axis::Tp => "tp",
        }
    }
}

impl fmt::Display for Axis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// A set of axes: `Axes::DP | Axes::EP`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Axes(u8);

impl Axes {
    pub const NONE: Axes = Axes(0);
    pub const PP: Axes = Axes(1);
    pub const DP: Axes = Axes(2);
    pub const EP: Axes = Axes(4);
    pub const TP: Axes = Axes(8);
    pub const ALL: Axes = Axes(15);
    /// Along these every rank computes other samples.
    pub const SAMPLES: Axes = Axes(2 | 4);

    /// Whether `axis` is one of them.
    pub fn contains(self, axis: Axis) -> bool {
        self.0 & Axes::from(axis).0 != 0
    }

    /// All the others.
    pub(crate) fn complement(self) -> Axes {
        Axes(Axes::ALL.0 & !self.0)
    }
}

impl From<Axis> for Axes {
    fn from(axis: Axis) -> Axes {
        match axis {
            Axis::Pp => Axes::PP,
            Axis::Dp => Axes::DP,
            Axis::Ep => Axes::EP,
            Axis::Tp => Axes::TP,
        }
    }
}

impl BitOr for Axes {
    type Output = Axes;

    fn bitor(self, other: Axes) -> Axes {
        Axes(self.0 | other.0)
    }
}

/// Ranks along each axis, at least one; their product is the number of ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mesh {
    pub pp: usize,
    pub dp: usize,
    pub ep: usize,
    pub tp: usize,
}

/// Where a rank stands: a number below the mesh's along each axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Coordinate {
    pub pp: usize,
    pub dp: usize,
    pub ep: usize,
    pub tp: usize,
}

impl Coordinate {
    /// The first rank's.
    pub(crate) const ORIGIN: Coordinate = Coordinate { pp: 0, dp: 0, ep: 0, tp: 0 };

    /// The number along `axis`.
    pub fn along(self, axis: Axis) -> usize {
        let Coordinate { pp, dp, ep, tp } = self;
        match axis {
            Axis::Pp => pp,
            Axis::Dp => dp,
            Axis::Ep => ep,
            Axis::Tp => tp,
        }
    }

    /// This place, but at `index` along `axis`.
    fn with(mut self, axis: Axis, index: usize) -> Coordinate {
        match axis {
            Axis::Pp => self.pp = index,
            Axis::Dp => self.dp = index,
            Axis::Ep => self.ep = index,
            Axis::Tp => self.tp = index,
        }
        self
    }
}

impl fmt::Display for Coordinate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "(pp {}, dp {}, ep {}, tp {})", self.pp, self.dp, self.ep, self.tp)
    }
}

impl fmt::Display for Mesh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pp {} · dp {} · ep {} · tp {}", self.pp, self.dp, self.ep, self.tp)
    }
}

impl Mesh {
    /// The mesh of a run that is parallel over data alone.
    pub fn data_parallel(world: usize) -> Mesh {
        Mesh { pp: 1, dp: world, ep: 1, tp: 1 }
    }

    /// Whether every axis but dp has one rank.
    pub fn is_data_parallel(self) -> bool {
        (self.pp, self.ep, self.tp) == (1, 1, 1)
    }

    /// Ranks along `axis`.
    pub fn along(self, axis: Axis) -> usize {
        let Mesh { pp, dp, ep, tp } = self;
        match axis {
            Axis::Pp => pp,
            Axis::Dp => dp,
            Axis::Ep => ep,
            Axis::Tp => tp,
        }
    }

    /// Number of ranks; `None` where it does not fit a `usize`.
    pub fn product(self) -> Option<usize> {
        let Mesh { pp, dp, ep, tp } = self;
        pp.checked_mul(dp)?.checked_mul(ep)?.checked_mul(tp)
    }

    /// Number of ranks of a mesh that fills a job (its product then fits).
    pub fn ranks(self) -> usize {
        self.product().unwrap_or(usize::MAX)
    }

    /// Members of a group along `axes`.
    pub fn size(self, axes: Axes) -> usize {
        Axis::ALL.into_iter().filter(|&a| axes.contains(a)).map(|a| self.along(a)).product()
    }

    /// Where `rank` stands.
    ///
    /// # Errors
    /// No such rank.
    pub fn coordinate(self, rank: usize) -> Result<Coordinate, LayoutError> {
        if rank >= self.ranks() {
            return Err(LayoutError::NoSuchRank { rank, mesh: self });
        }
        Ok(Coordinate {
            tp: rank % self.tp,
            ep: rank / self.tp % self.ep,
            dp: rank / self.tp / self.ep % self.dp,
            pp: rank / self.tp / self.ep / self.dp,
        })
    }

    /// The rank that stands at `at`.
    ///
    /// # Errors
    /// A coordinate outside the mesh.
    pub fn rank(self, at: Coordinate) -> Result<usize, LayoutError> {
        self.check(at)?;
        Ok(((at.pp * self.dp + at.dp) * self.ep + at.ep) * self.tp + at.tp)
    }

    pub(crate) fn check(self, at: Coordinate) -> Result<(), LayoutError> {
        match Axis::ALL.into_iter().find(|&axis| at.along(axis) >= self.along(axis)) {
            None => Ok(()),
            Some(axis) => Err(LayoutError::NoSuchCoordinate { at, axis, mesh: self }),
        }
    }

    /// All coordinates, in rank order.
    pub fn coordinates(self) -> impl Iterator<Item = Coordinate> {
        self.places(Coordinate::ORIGIN, Axes::ALL)
    }

    /// The coordinates that differ from `at` along `axes` only, `at` among them, in rank order.
    fn places(self, at: Coordinate, axes: Axes) -> impl Iterator<Item = Coordinate> {
        (0..self.size(axes)).map(move |mut index| {
            let mut place = at;
            for axis in Axis::ALL.into_iter().rev().filter(|&axis| axes.contains(axis)) {
                place = place.with(axis, index % self.along(axis));
                index /= self.along(axis);
            }
            place
        })
    }

    /// The group of `rank` along `axes`: the ranks that differ from it along these only, itself
    /// among them, in rank order.
    ///
    /// # Errors
    /// No such rank.
    pub fn members(self, rank: usize, axes: Axes) -> Result<Vec<usize>, LayoutError> {
        let at = self.coordinate(rank)?;
        self.places(at, axes).map(|place| self.rank(place)).collect()
    }

    /// All groups along `axes`, by their first rank: every rank is in exactly one.
    pub fn groups(self, axes: Axes) -> Vec<Vec<usize>> {
        let firsts = self.places(Coordinate::ORIGIN, axes.complement());
        let ranks = |first| self.places(first, axes).filter_map(|place| self.rank(place).ok());
        firsts.map(|first| ranks(first).collect()).collect()
    }

    /// The number of `rank` in its group along `axes`.
    ///
    /// # Errors
    /// No such rank.
    pub(crate) fn member_index(self, rank: usize, axes: Axes) -> Result<usize, LayoutError> {
        Ok(self.index_along(self.coordinate(rank)?, axes))
    }

    pub(crate) fn index_along(self, at: Coordinate, axes: Axes) -> usize {
        let axes = Axis::ALL.into_iter().filter(|&axis| axes.contains(axis));
        axes.fold(0, |index, axis| index * self.along(axis) + at.along(axis))
    }

    /// The ranks that hold the same part of a parameter of `role` as `rank` does and compute its
    /// gradient from other samples: over dp and ep for dense parameters, over dp for experts'.
    ///
    /// # Errors
    /// No such rank.
    pub fn replicas(self, rank: usize, role: Role) -> Result<Vec<usize>, LayoutError> {
        self.members(rank, replica_axes(role))
    }

    /// Ranks among which the batch's leaves are divided; a rank's place among them is its
    /// `member_index` along [`Axes::SAMPLES`].
    pub fn sample_ranks(self) -> usize {
        self.size(Axes::SAMPLES)
    }

    /// The leaves of `tree` from which `rank` has the gradient of a parameter of `role`: its own
    /// for dense ones; for an expert, to which the ranks along ep send their tokens, those of all
    /// of them, which are neighbours. Its replicas' ranges tile the leaves, in rank order.
    ///
    /// # Errors
    /// No such rank; more ranks with samples of their own than leaves.
    pub fn leaves(self, tree: &Tree, rank: usize, role: Role) -> Result<Range<usize>, LayoutError> {
        let (first, count) = match role {
            Role::Expert { .. } => (self.member_index(rank, Axes::DP)? * self.ep, self.ep),
            _ => (self.member_index(rank, Axes::SAMPLES)?, 1),
        };
        let start = tree.leaf_range(first, self.sample_ranks())?.start;
        Ok(start..tree.leaf_range(first + count - 1, self.sample_ranks())?.end)
    }
}

/// The axes along which a parameter is replicated over other samples.
pub(crate) fn replica_axes(role: Role) -> Axes {
    match role {
        Role::Expert { .. } => Axes::DP,
        _ => Axes::SAMPLES,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn mesh() -> impl Strategy<Value = Mesh> {
        (1_usize..4, 1_usize..4, 1_usize..4, 1_usize..4).prop_map(|(pp, dp, ep, tp)| Mesh {
            pp,
            dp,
            ep,
            tp,
        })
    }

    proptest! {
        #[test]
        fn coordinates_round_trip_in_rank_order(mesh in mesh()) {
            let all: Vec<Coordinate> = mesh.coordinates().collect();
            prop_assert_eq!(all.len(), mesh.ranks());
            prop_assert!(all.is_sorted());
            for (rank, &at) in all.iter().enumerate() {
                prop_assert_eq!(mesh.coordinate(rank).unwrap(), at);
                prop_assert_eq!(mesh.rank(at).unwrap(), rank);
            }
            prop_assert!(mesh.coordinate(mesh.ranks()).is_err());
        }

        #[test]
        fn groups_partition_the_world_and_membership_is_symmetric(mesh in mesh(), set in 0_u8..16) {
            let axes = Axes(set);
            let groups = mesh.groups(axes);
            prop_assert_eq!(groups.len() * mesh.size(axes), mesh.ranks());
            let mut seen = vec![0; mesh.ranks()];
            for group in &groups {
                prop_assert!(group.is_sorted() && group.len() == mesh.size(axes));
                for (place, &rank) in group.iter().enumerate() {
                    seen[rank] += 1;
                    prop_assert_eq!(&mesh.members(rank, axes).unwrap(), group);
                    prop_assert_eq!(mesh.member_index(rank, axes).unwrap(), place);
                    // Along the other axes the members of a group have one place.
                    for axis in Axis::ALL.into_iter().filter(|&axis| !axes.contains(axis)) {
                        let along = |rank| mesh.coordinate(rank).unwrap().along(axis);
                        prop_assert_eq!(along(rank), along(group[0]));
                    }
                }
            }
            prop_assert!(seen.iter().all(|&count| count == 1));
            prop_assert!(groups.is_sorted_by_key(|group| group[0]));
        }

        #[test]
        fn the_leaves_of_replicas_tile_the_batch(
            mesh in mesh(), more in 0_usize..9, seed in any::<usize>(),
        ) {
            let tree = Tree::for_leaves(mesh.sample_ranks() + more);
            let rank = seed % mesh.ranks();
            for role in [Role::Matrix, Role::Expert { index: 0, of: 1 }] {
                let mut next = 0;
                for replica in mesh.replicas(rank, role).unwrap() {
                    let leaves = mesh.leaves(&tree, replica, role).unwrap();
                    prop_assert!(leaves.start == next && !leaves.is_empty());
                    next = leaves.end;
                    // An expert's are those of the ranks that send it tokens.
                    let own = mesh.leaves(&tree, replica, Role::Vector).unwrap();
                    prop_assert!(leaves.start <= own.start && own.end <= leaves.end);
                }
                prop_assert_eq!(next, tree.leaves());
            }
        }

        #[test]
        fn experts_replicas_are_some_of_the_dense_ones(mesh in mesh(), seed in any::<usize>()) {
            let rank = seed % mesh.ranks();
            let dense = mesh.replicas(rank, Role::Matrix).unwrap();
            let expert = mesh.replicas(rank, Role::Expert { index: 0, of: 1 }).unwrap();
            prop_assert_eq!(dense.len(), mesh.sample_ranks());
            prop_assert_eq!(expert.len() * mesh.ep, dense.len());
            prop_assert!(expert.iter().all(|rank| dense.contains(rank)));
        }
    }

    #[test]
    fn tensor_parallel_ranks_are_neighbours() {
        let mesh = Mesh { pp: 2, dp: 1, ep: 2, tp: 2 };
        assert_eq!(mesh.groups(Axes::TP), [[0, 1], [2, 3], [4, 5], [6, 7]]);
        assert_eq!(mesh.groups(Axes::EP), [[0, 2], [1, 3], [4, 6], [5, 7]]);
        assert_eq!(mesh.members(3, Axes::PP).unwrap(), [3, 7]);
        assert_eq!(mesh.replicas(3, Role::Vector).unwrap(), [1, 3]);
        assert_eq!(mesh.groups(Axes::ALL).len(), 1);
        assert_eq!(mesh.groups(Axes::NONE).len(), 8);
    }

    #[test]
    fn what_is_outside_is_named() {
        let mesh = Mesh { pp: 2, dp: 1, ep: 2, tp: 2 };
        let error = mesh.members(8, Axes::TP).unwrap_err().to_string();
        assert_eq!(error, "there is no rank 8 in the mesh pp 2 · dp 1 · ep 2 · tp 2: use 0 to 7");
        let error = mesh.rank(Coordinate { ep: 2, ..Coordinate::ORIGIN }).unwrap_err().to_string();
        assert_eq!(
            error,
            "the coordinate (pp 0, dp 0, ep 2, tp 0) lies outside the mesh \
             pp 2 · dp 1 · ep 2 · tp 2: along ep use 0 to 1"
        );
    }
}
