//! What the trainer asks of a model.

use device::{DType, Device, Stream, Tensor};
use layout::{FlatLayout, Schema};
use model::{Architecture, Gradients, Hooks, Inputs, MicroBatch, Model, Stash, State, Types};

use crate::TrainError;

/// A model that can be trained: forward and backward apart, so that a pipeline may interleave
/// them, losses and gradients on the device.
pub trait Engine {
    fn schema(&self) -> &Schema;

    /// Where the parameters lie in the flat buffers.
    fn flat(&self) -> &FlatLayout;

    fn stream(&self) -> &Stream;

    /// Shape of every micro-batch.
    fn micro_batch(&self) -> MicroBatch;

    /// Runs a micro-batch forward.
    ///
    /// # Errors
    /// Device errors; tokens outside the vocabulary.
    fn forward(
        &mut self,
        inputs: &Inputs,
        state: State,
        hooks: &mut dyn Hooks,
    ) -> Result<Stash, TrainError>;

    /// Loss and gradients of a micro-batch.
    ///
    /// # Errors
    /// Device errors; targets outside the vocabulary.
    fn backward(
        &mut self,
        stash: Stash,
        state: State,
        to: Gradients,
        hooks: &mut dyn Hooks,
    ) -> Result<(), TrainError>;

    /// The summed loss of a micro-batch, `[1]` f64, without gradients.
    ///
    /// # Errors
    /// As [`Engine::backward`].
    fn evaluate(&mut self, stash: Stash, state: State, loss: &Tensor) -> Result<(), TrainError>;
}

/// The engine with hand-written forward and backward passes.
pub struct NativeEngine {
    model: Model,
}

impl NativeEngine {
    /// Plans and allocates.
    ///
    /// # Errors
    /// Memory.
    pub fn new(
        device: &Device,
        architecture: &Architecture,
        batch: MicroBatch,
        bucket_elements: usize,
        weights: DType,
    ) -> Result<NativeEngine, TrainError> {
        let types = Types::stored_as(weights);
        let model = Model::new(device, architecture, batch, bucket_elements, types)?;
        Ok(NativeEngine { model })
    }
}

impl Engine for NativeEngine {
    fn schema(&self) -> &Schema {
        self.model.schema()
    }

    fn flat(&self) -> &FlatLayout {
        self.model.flat()
    }

    fn stream(&self) -> &Stream {
        self.model.stream()
    }

    fn micro_batch(&self) -> MicroBatch {
        self.model.batch()
    }

    fn forward(
        &mut self,
        inputs: &Inputs,
        state: State,
        hooks: &mut dyn Hooks,
    ) -> Result<Stash, TrainError> {
        Ok(self.model.forward(inputs, state, hooks)?)
    }

    fn backward(
        &mut self,
        stash: Stash,
        state: State,
        to: Gradients,
        hooks: &mut dyn Hooks,
    ) -> Result<(), TrainError> {
        Ok(self.model.backward(stash, state, to, hooks)?)
    }

    fn evaluate(&mut self, stash: Stash, state: State, loss: &Tensor) -> Result<(), TrainError> {
        Ok(self.model.evaluate(&stash, state, loss)?)
    }
}
