//! The trainer's view of a model: declarations, and passes over micro-batches.
//!
//! ```text
//! declared ─▶ RunPlan (ownership, memory, checkpoint)
//! each step:  begin_step ─▶ (forward ─▶ backward)×micro-batches ─▶ counts
//!             ─▶ (all ranks) ─▶ after_step
//! ```
//!
//! The trainer owns the flat weights and gradients; an engine owns all else that it needs, and
//! declares what of it outlives a step.

use std::collections::BTreeMap;

use device::{DType, Stream, Tensor};
use layout::{FlatLayout, Schema, StateDecl};
use model::{Gradients, Hooks, Inputs, MicroBatch};

use crate::TrainError;

/// Everything that is decided about a run of an engine before it has memory.
#[derive(Debug, Clone)]
pub struct Declared {
    pub schema: Schema,
    /// Places of the parameters in the flat buffers.
    pub flat: FlatLayout,
    /// Elements after which a bucket of gradients is closed.
    pub bucket_elements: usize,
    /// Shape of every micro-batch.
    pub batch: MicroBatch,
    /// Type of the flat weights, f32 or bf16.
    pub weights: DType,
    /// States beside the parameters, equal on all ranks.
    pub states: Vec<StateDecl>,
    /// Integers of a step that ranks add up.
    pub counts: usize,
    /// Bytes of a rank by what for.
    pub memory: Vec<(String, u64)>,
    /// Entries of the numeric plan: what of the engine decides bits.
    pub numeric: BTreeMap<String, String>,
    /// Parameters that one token meets.
    pub active_parameters: u64,
}

/// Spread of the tokens over experts, of all layers that have any.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Load {
    /// Least, median and most of an expert, over the mean of its layer.
    pub spread: [f64; 3],
    /// Experts without a token.
    pub idle: u64,
}

/// A model that can be trained: forward and backward apart, so that a pipeline may interleave
/// them, losses and gradients on the device.
pub trait Engine {
    /// A micro-batch between its passes; each has its own activations.
    type Stash;

    fn declared(&self) -> &Declared;

    fn stream(&self) -> &Stream;

    /// Sets the flat `weights` of a new run, and the engine's states.
    ///
    /// # Errors
    /// Device errors.
    fn initialize(&mut self, seed: u64, weights: &Tensor) -> Result<(), TrainError>;

    /// The flat weights are others than at the last pass.
    fn weights_changed(&mut self) {}

    /// Brings whatever the engine shows of the weights outside up to date with `weights`.
    ///
    /// # Errors
    /// Device errors.
    fn renew(&mut self, _weights: &Tensor) -> Result<(), TrainError> {
        Ok(())
    }

    /// Sets the counts to zero.
    ///
    /// # Errors
    /// Device errors.
    fn begin_step(&mut self) -> Result<(), TrainError> {
        Ok(())
    }

    /// Runs a micro-batch forward.
    ///
    /// # Errors
    /// Device errors; tokens outside the vocabulary; more micro-batches in flight than there may
    /// be.
    fn forward(
        &mut self,
        inputs: &Inputs,
        weights: &Tensor,
        hooks: &mut dyn Hooks,
    ) -> Result<Self::Stash, TrainError>;

    /// Loss and gradients of a micro-batch.
    ///
    /// # Errors
    /// Device errors; targets outside the vocabulary.
    fn backward(
        &mut self,
        stash: Self::Stash,
        weights: &Tensor,
        to: Gradients,
        hooks: &mut dyn Hooks,
    ) -> Result<(), TrainError>;

    /// The summed loss of a micro-batch, `[1]` f64, without gradients.
    ///
    /// # Errors
    /// As [`Engine::backward`].
    fn evaluate(
        &mut self,
        stash: Self::Stash,
        weights: &Tensor,
        loss: &Tensor,
        hooks: &mut dyn Hooks,
    ) -> Result<(), TrainError>;

    /// The memory of [`Declared::states`], each of the declared shape or of as many elements.
    ///
    /// # Errors
    /// Device errors.
    fn states(&self) -> Result<Vec<Tensor>, TrainError> {
        Ok(Vec::new())
    }

    /// The memory of the states was written to, as by a load.
    ///
    /// # Errors
    /// Device errors.
    fn states_changed(&mut self) -> Result<(), TrainError> {
        Ok(())
    }

    /// Copies this rank's counts since [`Engine::begin_step`] to `into`, [`Declared::counts`] of
    /// them.
    ///
    /// # Errors
    /// Device errors.
    fn counts(&mut self, _into: &mut [u32]) -> Result<(), TrainError> {
        Ok(())
    }

    /// Follows an applied step, with the counts of all ranks added up: equal on each.
    ///
    /// # Errors
    /// Device errors.
    fn after_step(&mut self, _counts: &[u64]) -> Result<(), TrainError> {
        Ok(())
    }

    /// The load of experts that the counts of all ranks tell of.
    fn load(&mut self, _counts: &[u64]) -> Option<Load> {
        None
    }
}
