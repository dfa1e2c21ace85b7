//! The optimizer of a rank: beside the weights, or in the memory of a device of its own.
//!
//! ```text
//! ranks.optimizer_device: cpu             flat gradients ─▶ statistics ─▶ vote ─▶ flat weights
//!                    sim, cuda:N, hip:N   gradients are summed there, and the rank's own weights
//!                                         come back updated
//! ```

use device::{DType, Device, DeviceKind, Stream, Tensor};
use optim::{Offloaded, OptimError, ShardedOptimizer, StateView, StepScalars};

use crate::{RunPlan, TrainError};

/// One rank's.
pub(crate) enum Optimizer {
    /// On the device that computes.
    Here {
        sharded: Box<ShardedOptimizer>,
        /// f64, one for each statistic of the model.
        statistics: Tensor,
    },
    Elsewhere(Box<Offloaded>),
}

impl Optimizer {
    /// Allocates the state of the pieces that `rank` owns, on `elsewhere` if that is given.
    ///
    /// # Errors
    /// Memory; a method that `elsewhere` has no kernels for.
    pub(crate) fn new(
        device: &Device,
        elsewhere: Option<&Device>,
        plan: &RunPlan,
        rank: usize,
    ) -> Result<Optimizer, TrainError> {
        let RunPlan { schema, flat, ownership, updates, weights, .. } = plan;
        if let Some(device) = elsewhere {
            let made = Offloaded::new(device, schema, flat, ownership, rank, updates, *weights)?;
            return Ok(Optimizer::Elsewhere(Box::new(made)));
        }
        let sharded =
            ShardedOptimizer::new(device, schema, flat, ownership, rank, updates, *weights)?;
        let statistics = device.zeros(&[ownership.statistics], DType::F64)?;
        Ok(Optimizer::Here { sharded: Box::new(sharded), statistics })
    }

    /// As [`ShardedOptimizer::initialize`].
    ///
    /// # Errors
    /// Device errors.
    pub(crate) fn initialize(&mut self, seed: u64) -> Result<(), OptimError> {
        match self {
            Optimizer::Here { sharded, .. } => sharded.initialize(seed),
            Optimizer::Elsewhere(offloaded) => offloaded.initialize(seed),
        }
    }

    /// Takes over the flat `weights`; `host` is the stream of what lies beside them.
    ///
    /// # Errors
    /// Device errors.
    pub(crate) fn adopt(&mut self, host: &Stream, weights: &Tensor) -> Result<(), OptimError> {
        match self {
            Optimizer::Here { sharded, .. } => sharded.adopt(weights),
            Optimizer::Elsewhere(offloaded) => offloaded.adopt(host, weights),
        }
    }

    /// As [`ShardedOptimizer::set_begun`].
    ///
    /// # Errors
    /// Device errors.
    pub(crate) fn set_begun(&mut self, begun: &[i64]) -> Result<(), OptimError> {
        match self {
            Optimizer::Here { sharded, .. } => sharded.set_begun(begun),
            Optimizer::Elsewhere(offloaded) => offloaded.set_begun(begun),
        }
    }

    /// Where gradients of the rank's segments are summed, if not in a flat buffer beside the
    /// weights, and where each element of them goes there.
    pub(crate) fn elsewhere(&self) -> Option<&Offloaded> {
        match self {
            Optimizer::Here { .. } => None,
            Optimizer::Elsewhere(offloaded) => Some(offloaded),
        }
    }

    /// Writes the sums of squares of this rank's pieces of the reduced gradients to their places in
    /// `sums`, and waits for them. `grads` are the flat ones, where they are summed beside the
    /// weights.
    ///
    /// # Errors
    /// Device errors.
    pub(crate) fn statistics(
        &mut self,
        host: &Stream,
        grads: &Tensor,
        sums: &mut [f64],
    ) -> Result<(), OptimError> {
        match self {
            Optimizer::Here { sharded, statistics } => {
                sharded.statistics(grads, statistics)?;
                Ok(host.copy_out(statistics, sums)?)
            }
            Optimizer::Elsewhere(offloaded) => offloaded.statistics(sums),
        }
    }

    /// Updates this rank's pieces of the flat `weights` from the gradients of which the statistics
    /// were taken.
    ///
    /// # Errors
    /// Device errors.
    pub(crate) fn apply(
        &mut self,
        host: &Stream,
        weights: &Tensor,
        grads: &Tensor,
        scalars: &StepScalars,
    ) -> Result<(), OptimError> {
        match self {
            Optimizer::Here { sharded, .. } => sharded.apply(weights, grads, scalars),
            Optimizer::Elsewhere(offloaded) => offloaded.apply(host, weights, scalars),
        }
    }

    /// As [`ShardedOptimizer::publish`].
    ///
    /// # Errors
    /// Device errors.
    pub(crate) fn publish(&mut self, host: &Stream, weights: &Tensor) -> Result<(), OptimError> {
        match self {
            Optimizer::Here { sharded, .. } => sharded.publish(weights),
            Optimizer::Elsewhere(offloaded) => offloaded.publish(host, weights),
        }
    }

    /// Which kind of device of its own decides rounding, if it has one: any number of a kind gives
    /// the same bits.
    pub(crate) fn device(&self) -> Option<String> {
        let Optimizer::Elsewhere(offloaded) = self else { return None };
        let device = offloaded.stream().device();
        let arch = device.properties().arch.map(|arch| arch.to_string()).unwrap_or_default();
        Some(match device.kind() {
            DeviceKind::Cuda(_) => format!("cuda {arch}"),
            DeviceKind::Hip(_) => format!("hip {arch}"),
            other => other.to_string(),
        })
    }

    /// As [`ShardedOptimizer::check_momentum`].
    ///
    /// # Errors
    /// As there.
    pub(crate) fn check_momentum(&self) -> Result<(), OptimError> {
        match self {
            Optimizer::Here { sharded, .. } => sharded.check_momentum(),
            Optimizer::Elsewhere(offloaded) => offloaded.check_momentum(),
        }
    }

    /// Every state that this rank keeps, and the stream of the memory that they lie in; `host` and
    /// `weights` are as elsewhere here.
    ///
    /// # Errors
    /// Weights of another length or type.
    pub(crate) fn states(
        &self,
        host: &Stream,
        weights: &Tensor,
    ) -> Result<(Stream, Vec<StateView>), OptimError> {
        match self {
            Optimizer::Here { sharded, .. } => Ok((host.clone(), sharded.states(weights)?)),
            Optimizer::Elsewhere(there) => Ok((there.stream().clone(), there.states()?)),
        }
    }
}
