//! The engine: flat weights to variables, a closure's loss, candle's gradients to flat ones.

use candle_core::{DType, Tensor};
use device::Stream;
use kernels::Onto;
use train::{Declared, Engine, Gradients, Hooks, Inputs, TrainError};

use crate::CandleError;
use crate::gradients::{check_parts, check_variables, of_parameters};
use crate::parameter::Parameter;

/// A micro-batch, each `[B, T]` u32 on the device of the first variable.
#[derive(Debug, Clone)]
pub struct Tokens {
    pub inputs: Tensor,
    /// The next token of each position, or [`kernels::loss::IGNORE`].
    pub targets: Tensor,
    /// The window position where each position's document begins: a position should not attend to
    /// earlier ones.
    pub doc_start: Tensor,
}

/// A candle model, made by [`crate::Builder`].
pub struct CandleEngine<L> {
    declared: Declared,
    parameters: Vec<Parameter>,
    stream: Stream,
    loss: L,
    /// Whether the variables are those of an earlier step.
    is_stale: bool,
    /// Whether the closure has been seen to take one micro-batch to one loss.
    is_checked: bool,
    /// Whether a backward pass has reached all parts of fused parameters.
    is_proven: bool,
}

/// A micro-batch between its passes: candle's graph.
pub struct Pass {
    loss: Tensor,
}

impl<L: FnMut(&Tokens) -> candle_core::Result<Tensor>> CandleEngine<L> {
    pub(crate) fn new(
        declared: Declared,
        parameters: Vec<Parameter>,
        stream: Stream,
        loss: L,
    ) -> CandleEngine<L> {
        let (is_stale, is_checked, is_proven) = (true, false, false);
        CandleEngine { declared, parameters, stream, loss, is_stale, is_checked, is_proven }
    }

    /// Sets the variables to the flat `weights`.
    fn set(&mut self, weights: &device::Tensor) -> Result<(), TrainError> {
        for Parameter { var, flat, .. } in &self.parameters {
            let values: Vec<f32> = self.stream.to_vec(&weights.flat(flat.clone())?)?;
            let values = Tensor::from_vec(values, var.dims(), var.device());
            let set = values.and_then(|values| var.set(&values));
            set.map_err(CandleError::from)?;
        }
        self.is_stale = false;
        Ok(())
    }

    fn tokens(&self, inputs: &Inputs) -> candle_core::Result<Tokens> {
        let device = self.parameters[0].var.device();
        let batch = self.declared.batch;
        let tensor = |values| Tensor::from_slice(values, (batch.windows, batch.positions), device);
        Ok(Tokens {
            inputs: tensor(inputs.tokens)?,
            targets: tensor(inputs.targets)?,
            doc_start: tensor(inputs.doc_start)?,
        })
    }

    /// The closure's loss, looked at.
    fn run(&mut self, inputs: &Inputs) -> Result<Tensor, CandleError> {
        let tokens = self.tokens(inputs)?;
        let loss = (self.loss)(&tokens)?;
        let is_number = matches!(loss.dtype(), DType::F32 | DType::F64);
        if loss.elem_count() != 1 || !is_number {
            let (shape, dtype) = (loss.dims().to_vec(), loss.dtype());
            return Err(CandleError::NotScalar { shape, dtype });
        }
        check_variables(&loss, &self.parameters)?;
        if !self.is_checked {
            let (first, second) = (number(&loss)?, number(&(self.loss)(&tokens)?)?);
            if first.to_bits() != second.to_bits() {
                return Err(CandleError::Inconstant { first, second });
            }
            self.is_checked = true;
        }
        Ok(loss)
    }

    fn tell(&self, loss: &Tensor, to: &device::Tensor) -> Result<(), TrainError> {
        Ok(self.stream.copy_in(to, &[number(loss).map_err(CandleError::from)?])?)
    }

    /// Writes the gradients of all parameters to the flat buffer.
    fn write(&self, grads: &[Option<Tensor>], to: &Gradients) -> Result<(), TrainError> {
        for (Parameter { flat, .. }, grad) in self.parameters.iter().zip(grads) {
            let place = to.flat.flat(flat.clone())?;
            let Some(grad) = grad else {
                if to.onto == Onto::Overwrite {
                    self.stream.copy_in(&place, &vec![0_f32; flat.len()])?;
                }
                continue;
            };
            let values = grad.flatten_all().and_then(|grad| grad.to_vec1::<f32>());
            let mut values = values.map_err(CandleError::from)?;
            if to.onto == Onto::Add {
                let before = self.stream.to_vec::<f32>(&place)?;
                for (value, before) in values.iter_mut().zip(before) {
                    *value += before;
                }
            }
            self.stream.copy_in(&place, &values)?;
        }
        Ok(())
    }
}

/// The value of a loss of one element.
fn number(loss: &Tensor) -> candle_core::Result<f64> {
    loss.flatten_all()?.get(0)?.to_dtype(DType::F64)?.to_scalar()
}

impl<L: FnMut(&Tokens) -> candle_core::Result<Tensor>> Engine for CandleEngine<L> {
    type Stash = Pass;

    fn declared(&self) -> &Declared {
        &self.declared
    }

    fn stream(&self) -> &Stream {
        &self.stream
    }

    /// The values that the variables have; the seed is not asked, see [`crate::seed`].
    fn initialize(&mut self, _seed: u64, weights: &device::Tensor) -> Result<(), TrainError> {
        for Parameter { var, flat, .. } in &self.parameters {
            let values = var.flatten_all().and_then(|values| values.to_vec1::<f32>());
            let values = values.map_err(CandleError::from)?;
            self.stream.copy_in(&weights.flat(flat.clone())?, &values)?;
        }
        Ok(())
    }

    fn weights_changed(&mut self) {
        self.is_stale = true;
    }

    fn renew(&mut self, weights: &device::Tensor) -> Result<(), TrainError> {
        self.set(weights)
    }

    fn forward(
        &mut self,
        inputs: &Inputs,
        weights: &device::Tensor,
        hooks: &mut dyn Hooks,
    ) -> Result<Pass, TrainError> {
        // Which parameters are read when, only the closure knows.
        hooks.need(0..self.declared.flat.len).map_err(TrainError::of_hook)?;
        if self.is_stale {
            self.set(weights)?;
        }
        Ok(Pass { loss: self.run(inputs)? })
    }

    fn backward(
        &mut self,
        stash: Pass,
        _weights: &device::Tensor,
        to: Gradients,
        hooks: &mut dyn Hooks,
    ) -> Result<(), TrainError> {
        let grads = stash.loss.backward().map_err(CandleError::from)?;
        let grads = of_parameters(grads, &self.parameters)?;
        if !self.is_proven {
            check_parts(&grads, &self.parameters)?;
            self.is_proven = true;
        }
        self.write(&grads, &to)?;
        self.tell(&stash.loss, to.loss)?;
        hooks.ready(0..self.declared.flat.len).map_err(TrainError::of_hook)
    }

    fn evaluate(
        &mut self,
        stash: Pass,
        _weights: &device::Tensor,
        loss: &device::Tensor,
        _hooks: &mut dyn Hooks,
    ) -> Result<(), TrainError> {
        self.tell(&stash.loss, loss)
    }
}
