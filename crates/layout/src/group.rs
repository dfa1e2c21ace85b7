//! Ownership in a mesh: the replicas of a part divide its update among them.
//!
//! The ranks of one stage and one tp number (a *column*: a group along dp and ep) hold the same
//! parts of the dense tensors, and each of them the parts of some experts:
//!
//! ```text
//! column of dp 2, ep 2    member 0         1                2                3
//!                         (dp 0, ep 0)     (dp 0, ep 1)     (dp 1, ep 0)     (dp 1, ep 1)
//! dense tensors           owned by any of the four
//! experts of ep 0         owned by 0 or 2
//! experts of ep 1         owned by 1 or 3
//! ```
//! One plan is made for a column, so that dense tensors even out what experts leave uneven. With
//! one rank along pp, ep and tp the only column is the world, and its plan that of
//! [`Ownership::new`].

use crate::ownership::{Held, Owners, Statistics};
use crate::{
    Along, Axes, CostTable, LayoutError, Ownership, Placements, Region, Schema, Shard, Treatment,
};

/// The plan of a column.
#[derive(Debug, Clone, PartialEq)]
pub struct GroupPlan {
    /// Its ranks, in order.
    pub members: Vec<usize>,
    /// The tensors that its members hold together: the dense ones and the experts of all.
    pub shard: Shard,
    /// Owners are positions in `members`; tensors, rows and statistics those of the whole schema;
    /// flat elements those of `shard`. A statistic whose elements lie in several boxes is the sum
    /// of what their owners compute, here and in other columns; where columns hold copies,
    /// [`Placements::is_first_copy`] says which one counts.
    pub ownership: Ownership,
}

impl GroupPlan {
    /// Plans every column of the mesh, by first rank.
    ///
    /// # Errors
    /// As [`Ownership::new`].
    pub fn all(
        schema: &Schema,
        placements: &Placements,
        treatment: &[Treatment],
        bucket_elements: usize,
        cost: &CostTable,
    ) -> Result<Vec<GroupPlan>, LayoutError> {
        let statistics = Statistics::new(schema, treatment)?;
        let folded = placements.fold_experts();
        let columns = placements.mesh.groups(Axes::SAMPLES);
        let plan = |members: Vec<usize>| {
            let at = placements.mesh.coordinate(members[0])?;
            let shard = Shard::new(schema, &folded, at, bucket_elements)?;
            let held: Result<Vec<Held>, LayoutError> = (0..shard.tensors.len())
                .map(|position| held(schema, placements, &folded, treatment, &shard, position))
                .collect();
            let ownership = Ownership::among(members.len(), &held?, &statistics, cost);
            Ok(GroupPlan { members, shard, ownership })
        };
        columns.into_iter().map(plan).collect()
    }
}

fn held<'a>(
    schema: &Schema,
    placements: &Placements,
    folded: &Placements,
    treatment: &'a [Treatment],
    shard: &Shard,
    position: usize,
) -> Result<Held<'a>, LayoutError> {
    let index = shard.tensors[position];
    let tensor = &schema.tensors[index];
    let matrices = tensor.row_ranges();
    let rows = |region: &Region| match region.shape.first() {
        Some(rows) => region.offset[0]..region.offset[0] + rows,
        None => 0..1,
    };
    let number = |row: usize| matrices.iter().position(|rows| rows.contains(&row)).unwrap_or(0);
    let treatment = &treatment[index];
    let boxes = match treatment {
        Treatment::WholeMatrix { .. } => folded.matrices(index, shard.at)?,
        Treatment::Elementwise => shard.regions[position].clone(),
    };
    let runs = boxes.iter().map(rows).map(|rows| (rows.clone(), number(rows.start)));
    Ok(Held {
        tensor: index,
        treatment,
        row_len: tensor.row_len(),
        cols: shard.schema.tensors[position].row_len(),
        runs: runs.collect(),
        matrix_len: matrices.iter().map(|rows| rows.len() * tensor.row_len()).collect(),
        flat_start: shard.flat.offsets[position],
        owners: match &placements.tensors[index].ep {
            Along::Held { at } => {
                Owners { first: at.first().copied().unwrap_or(0), step: placements.mesh.ep }
            }
            _ => Owners::ALL,
        },
    })
}
