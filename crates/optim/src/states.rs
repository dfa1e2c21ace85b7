//! The states of a run's parameters: themselves, and what their updates keep.

use device::Tensor;
use layout::state::PARAM;
use layout::{Absent, Ownership, PieceKind, Region, Schema, Sharing, StateDecl};

use crate::OptimError;
use crate::group::rows_of;
use crate::rules::TensorPlan;
use crate::update::Axes;

/// A box of one state that a rank holds; the memory itself.
#[derive(Debug, Clone)]
pub struct StateView {
    /// Position in [`declared`].
    pub state: usize,
    pub region: Region,
    /// f32, `[rows, elements per row]`.
    pub view: Tensor,
}

/// Every state of the parameters of `schema`, tensor by tensor: the parameter, then what its
/// update keeps.
pub fn declared(schema: &Schema, plans: &[TensorPlan]) -> Vec<StateDecl> {
    let mut states = Vec::new();
    for (tensor, plan) in schema.tensors.iter().zip(plans) {
        let sharing = Sharing::Owned { tensor: plan.tensor };
        let state = |slot, shape: &[usize]| StateDecl::f32(&tensor.name, slot, shape, sharing);
        states.push(state(PARAM, &tensor.shape).absent(Absent::Refuse));
        // Those of each true matrix, which differ in shape alone.
        let parts = plan.parts.iter();
        let parts: Vec<_> =
            parts.map(|p| plan.update.rule().states(p.rows.len(), p.cols)).collect();
        for (index, kind) in parts.first().into_iter().flatten().enumerate() {
            let declared = match kind.axes {
                Axes::Same => state(kind.slot, &tensor.shape),
                Axes::Rows(_, row_len) => {
                    let each = parts.iter().zip(&plan.parts);
                    let each = each.map(|(kinds, p)| kinds[index].extent(p.rows.len(), p.cols).0);
                    state(kind.slot, &[each.sum(), row_len])
                }
            };
            states.push(declared.absent(kind.absent));
        }
    }
    states
}

/// The boxes of states that each rank keeps, as (position in [`declared`], box), piece by piece:
/// those that [`crate::ShardedOptimizer::states`] gives of that rank, without its memory.
///
/// # Errors
/// Plans of another schema.
pub fn kept_boxes(
    schema: &Schema,
    ownership: &Ownership,
    plans: &[TensorPlan],
) -> Result<Vec<Vec<(usize, Region)>>, OptimError> {
    let (got, expected) = (plans.len(), schema.tensors.len());
    if got != expected {
        return Err(OptimError::Count { what: "tensor plans", got, expected });
    }
    let states = declared(schema, plans);
    let firsts = firsts(&states);
    let mut ranks = vec![Vec::new(); ownership.world];
    for piece in &ownership.pieces {
        let (boxes, first) = (&mut ranks[piece.owner], firsts[piece.tensor]);
        let (plan, tensor) = (&plans[piece.tensor], &schema.tensors[piece.tensor]);
        boxes.push((first, states[first].rows(piece.rows.clone())));
        let (shape, row_len) = match piece.kind {
            PieceKind::Matrix { rows, cols } => ((rows, cols), cols),
            PieceKind::Blocks { .. } => ((0, 0), tensor.row_len()),
        };
        for index in 0..plan.update.rule().states(shape.0, shape.1).len() {
            let (rows, _) = rows_of(plan, (piece, row_len), index);
            let state = first + 1 + index;
            boxes.push((state, states[state].rows(rows)));
        }
    }
    Ok(ranks)
}

/// Position in [`declared`] of the first state of each tensor.
pub(crate) fn firsts(states: &[StateDecl]) -> Vec<usize> {
    let of_param = |(index, state): (usize, &StateDecl)| (state.slot == PARAM).then_some(index);
    states.iter().enumerate().filter_map(of_param).collect()
}
