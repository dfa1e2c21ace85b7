//! Momentum as a ball that rolls on: stochastic gradient descent in one pass over memory. On hosts.

use device::{Device, Kernel, Tensor};

use super::host::{OpenWeights, Parts, each_chunk};
use super::{Momentum, Spans, Weights, check_f32, check_factors};
use crate::KernelError;
use crate::op::{self, Inside, Op, on_host};

/// Gradient descent with momentum (Polyak 1964; Nesterov's form as in Sutskever et al. 2013,
/// "On the importance of initialization and momentum in deep learning") and decoupled decay:
///
/// ```text
/// g ← factors[unit]·g     m ← mu·m + g     u = m, or g + mu·m (Nesterov)
/// w ← keep·w - rate·u
/// ```
///
/// # Errors
/// Of [`crate::Op::launch`]: tensors too small, or of another type; a device that is no host.
#[derive(Clone)]
pub struct HeavyBall {
    pub spans: Spans,
    pub mu: f64,
    pub form: Momentum,
    /// `1 - lr·weight_decay`.
    pub keep: f64,
    /// The learning rate, schedule included.
    pub rate: f64,
    pub weights: Weights,
    /// f32, flat.
    pub grads: Tensor,
    /// `m`: f32, local.
    pub momentum: Tensor,
    /// f32, one of each unit.
    pub factors: Tensor,
}

impl HeavyBall {
    /// # Errors
    /// A device without code for it.
    pub fn check_device(device: &Device) -> Result<(), KernelError> {
        op::check_host(Self::NAME, device)
    }
}

impl Op for HeavyBall {
    const NAME: &'static str = "sgd";

    fn operands(&self, _: Inside) -> impl Iterator<Item = &Tensor> {
        let own = [&self.grads, &self.momentum, &self.factors];
        own.into_iter().chain(self.weights.tensors()).chain(&self.spans.table)
    }

    fn check(&self) -> Result<(), KernelError> {
        let HeavyBall { spans, grads, momentum, .. } = self;
        self.weights.check(spans)?;
        check_f32(spans, [("grads", grads)], [("momentum", momentum)])?;
        check_factors(spans, &self.factors)
    }

    on_host!();
}

impl HeavyBall {
    fn run(&self, k: &Kernel) -> Result<(), device::DeviceError> {
        let &HeavyBall { ref spans, mu, form, keep, rate, .. } = self;
        // Of the gradient and of the new momentum in the step.
        let (mu, keep, rate) = (mu as f32, keep as f32, rate as f32);
        let (of_g, of_m) = match form {
            Momentum::Classical => (0.0, 1.0),
            Momentum::Nesterov => (1.0, mu),
        };
        k.bytes(3 * 4 * spans.elements);
        let (weights, momentum) =
            (OpenWeights::of(k, &self.weights)?, Parts::<f32>::of(k, &self.momentum)?);
        let (grads, factors) = (k.read::<f32>(&self.grads)?, k.read::<f32>(&self.factors)?);
        each_chunk(k.parallel(), spans, |span| {
            let (g, factor) = (&grads[span.flat..span.flat + span.len], factors[span.unit]);
            let m = momentum.local(span);
            weights.update(
                span,
                #[inline(always)]
                |w| {
                    for ((w, m), &g) in w.iter_mut().zip(m.iter_mut()).zip(g) {
                        let g = g * factor;
                        *m = mu * *m + g;
                        *w = keep * *w - rate * (of_g * g + of_m * *m);
                    }
                },
            );
        });
        Ok(())
    }
}
