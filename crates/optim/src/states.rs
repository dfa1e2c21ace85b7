//! The states of a run's parameters: themselves, and what their updates keep.

use device::Tensor;
use layout::state::PARAM;
use layout::{Absent, Region, Schema, Sharing, StateDecl};

use crate::rules::TensorPlan;

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
        let state = |slot| StateDecl::f32(&tensor.name, slot, &tensor.shape, sharing);
        states.push(state(PARAM).absent(Absent::Refuse));
        let kept = plan.update.rule().states(tensor.rows(), tensor.row_len());
        states.extend(kept.iter().map(|kind| state(kind.slot)));
    }
    states
}

/// Position in [`declared`] of the first state of each tensor.
pub(crate) fn firsts(states: &[StateDecl]) -> Vec<usize> {
    let of_param = |(index, state): (usize, &StateDecl)| (state.slot == PARAM).then_some(index);
    states.iter().enumerate().filter_map(of_param).collect()
}
