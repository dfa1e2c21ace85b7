//! Cross-entropy on a chunk of rows, with its gradient in place.

use device::{DType, DeviceError, Kernel, Tensor};

use crate::error::expect;
use crate::math::{sum, vectorize};
use crate::op::{Inside, Op, host_by_type};
use crate::operands::{expect_all, expect_dtype, expect_real};
use crate::{KernelError, Onto, Real};

/// A target that takes no part in the loss.
pub const IGNORE: u32 = u32::MAX;

/// The content of the logits after their loss has been taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Becomes {
    /// The logits themselves.
    Unchanged,
    /// The gradient of the *sum* of the losses, `softmax − onehot`; 0 where the target is
    /// [`IGNORE`].
    Gradient,
}

/// For each row `r`: `losses[r] = logsumexp(logits[r]) − logits[r, targets[r]]` (natural
/// logarithm), 0 where the target is [`IGNORE`].
///
/// A target outside the vocabulary is an error of the kernel.
pub struct CrossEntropy {
    /// `[rows, V]`, f32 or f64.
    pub logits: Tensor,
    pub logits_become: Becomes,
    /// `[rows]`, u32.
    pub targets: Tensor,
    /// Written, `[rows]`, of the type of the logits.
    pub losses: Tensor,
}

impl Op for CrossEntropy {
    const NAME: &'static str = "cross_entropy";

    fn operands(&self, _: Inside) -> impl Iterator<Item = &Tensor> {
        [&self.logits, &self.targets, &self.losses].into_iter()
    }

    fn check(&self) -> Result<(), KernelError> {
        let CrossEntropy { logits, targets, losses, .. } = self;
        let rows = logits.dim(0);
        expect_real(Self::NAME, logits)?;
        expect_all(Self::NAME, DType::U32, [("targets", targets, rows)])?;
        let lens = [("logits", logits, rows * logits.dim(1)), ("losses", losses, rows)];
        expect_all(Self::NAME, logits.dtype(), lens)
    }

    host_by_type!(logits);
}

impl CrossEntropy {
    fn on_host<T: Real>(&self, k: &Kernel) -> Result<(), DeviceError> {
        let (vocab, becomes) = (self.logits.dim(1), self.logits_become);
        k.streams();
        let targets = k.read::<u32>(&self.targets)?;
        let outside = |t: &&u32| **t != IGNORE && **t as usize >= vocab;
        if let Some(target) = targets.iter().find(outside) {
            return Err(k.error(format!("target {target} is outside the {vocab} logits")));
        }
        let (logits, losses) = (k.write::<T>(&self.logits)?, k.write::<T>(&self.losses)?);
        k.parallel().chunks2((logits, vocab), (losses, 1), |row, logits, loss| {
            vectorize!(|| loss[0] = row_loss(logits, targets[row], becomes));
        });
        Ok(())
    }
}

#[inline(always)]
fn row_loss<T: Real>(logits: &mut [T], target: u32, becomes: Becomes) -> T {
    if target == IGNORE {
        if becomes == Becomes::Gradient {
            logits.fill(T::ZERO);
        }
        return T::ZERO;
    }
    let target = target as usize;
    let most = crate::math::most(logits);
    let chosen = logits[target];
    if becomes == Becomes::Unchanged {
        let total = sum(
            [&*logits],
            #[inline(always)]
            |[x]| (x - most).portable_exp(),
        );
        return total.portable_ln() + most - chosen;
    }
    for x in logits.iter_mut() {
        *x = (*x - most).portable_exp();
    }
    let total = sum([&*logits], |[x]| x);
    let inverse = T::ONE / total;
    for x in logits.iter_mut() {
        *x *= inverse;
    }
    logits[target] -= T::ONE;
    total.portable_ln() + most - chosen
}

/// `out[0] = Σ values`, in f64 and in order.
pub struct Total {
    /// `[rows]`, f32 or f64.
    pub values: Tensor,
    /// Written, `[1]`, f64.
    pub out: Tensor,
    pub out_onto: Onto,
}

impl Op for Total {
    const NAME: &'static str = "total";

    fn operands(&self, _: Inside) -> impl Iterator<Item = &Tensor> {
        [&self.values, &self.out].into_iter()
    }

    fn check(&self) -> Result<(), KernelError> {
        expect_real(Self::NAME, &self.values)?;
        expect(Self::NAME, "out", &self.out, 1)?;
        expect_dtype(Self::NAME, "out", &self.out, DType::F64)
    }

    host_by_type!(values);
}

impl Total {
    fn on_host<T: Real>(&self, k: &Kernel) -> Result<(), DeviceError> {
        let sum: f64 = k.read::<T>(&self.values)?.iter().map(|x| x.to_f64()).sum();
        let out = k.write::<f64>(&self.out)?;
        out[0] = if self.out_onto.adds() { out[0] + sum } else { sum };
        Ok(())
    }
}
