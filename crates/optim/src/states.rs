//! The states of a run's parameters: themselves, and what their updates keep.

use device::Tensor;
use layout::state::PARAM;
use layout::{Absent, Region, Schema, Sharing, StateDecl};

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

/// Position in [`declared`] of the first state of each tensor.
pub(crate) fn firsts(states: &[StateDecl]) -> Vec<usize> {
    let of_param = |(index, state): (usize, &StateDecl)| (state.slot == PARAM).then_some(index);
    states.iter().enumerate().filter_map(of_param).collect()
}
