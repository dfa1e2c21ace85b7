//! Which rank writes which boxes of a checkpoint: a pure function of the plan of the run.
//!
//! Of the weights and the engine's states every rank holds all, so that their rows go to those that
//! have least to write of their own: what updates keep, which lies at owners alone.

use checkpoint::{Boxes, ExpectedTensor, Region, SavePlan, TensorKey, WriteOptions};
use device::DType;
use layout::state::PARAM;
use layout::{Everywhere, Sharing, StateDecl, spread};

use crate::{RunPlan, TrainError};

pub(crate) fn key(state: &StateDecl) -> TensorKey {
    TensorKey { name: state.name.clone(), slot: state.slot.to_owned() }
}

/// Every state tensor of a whole checkpoint.
fn expected(states: &[StateDecl]) -> Vec<ExpectedTensor> {
    let expected = |state: &StateDecl| {
        let (dtype, global_shape) = (state.dtype, state.shape.clone());
        ExpectedTensor { key: key(state), dtype, global_shape }
    };
    states.iter().map(expected).collect()
}

impl RunPlan {
    /// Bytes of boxes.
    pub(crate) fn bytes_of(&self, boxes: &[(usize, Region)]) -> u64 {
        let of = |(state, region): &(usize, Region)| {
            (region.elements().unwrap_or(0) * self.states[*state].dtype.size_bytes()) as u64
        };
        boxes.iter().map(of).sum()
    }

    /// Whether every rank holds all of a state with the bits that a checkpoint has: parameters of
    /// f32 weights, since what bf16 weights are rounded from lies at owners.
    pub(crate) fn is_everywhere(&self, state: &StateDecl) -> bool {
        state.sharing == Sharing::Replicated || (state.slot == PARAM && self.weights == DType::F32)
    }

    /// The boxes that each rank writes, as (number of the state, box): every element once, by a
    /// rank that holds it, and by all as many bytes as those allow that one alone holds.
    ///
    /// # Errors
    /// Plans that do not match, which [`RunPlan::of`] excludes.
    pub fn save_boxes(&self) -> Result<Vec<Boxes>, TrainError> {
        let RunPlan { schema, ownership, updates, states, .. } = self;
        let mut ranks = optim::kept_boxes(schema, ownership, updates)?;
        for boxes in &mut ranks {
            boxes.retain(|(state, _)| !self.is_everywhere(&states[*state]));
        }
        let everywhere: Vec<usize> =
            (0..states.len()).filter(|&state| self.is_everywhere(&states[state])).collect();
        let rows = |&state: &usize| {
            let rows = states[state].shape.first().copied().unwrap_or(1);
            Everywhere { rows, row_bytes: states[state].bytes() / rows.max(1) as u64 }
        };
        let own: Vec<u64> = ranks.iter().map(|boxes| self.bytes_of(boxes)).collect();
        let tensors: Vec<Everywhere> = everywhere.iter().map(rows).collect();
        for (boxes, parts) in ranks.iter_mut().zip(spread(&own, &tensors)) {
            let of = |(tensor, rows): (usize, _)| {
                let state = everywhere[tensor];
                (state, states[state].rows(rows))
            };
            boxes.extend(parts.into_iter().map(of));
        }
        Ok(ranks)
    }

    /// Where the boxes of all ranks lie in a checkpoint.
    ///
    /// # Errors
    /// Boxes that do not tile the states, which would be a fault of this program.
    pub(crate) fn save_plan(
        &self,
        ranks: &[Boxes],
        options: &WriteOptions,
    ) -> Result<SavePlan, TrainError> {
        Ok(SavePlan::new(&self.schema, &expected(&self.states), ranks, options)?)
    }
}
