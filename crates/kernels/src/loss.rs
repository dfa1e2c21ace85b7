//! Cross-entropy on a chunk of rows, with its gradient in place.

use device::{Stream, Tensor};

use crate::error::{dispatch, expect};
use crate::math::{sum, vectorize};
use crate::{KernelError, Real};

/// A target that takes no part in the loss.
pub const IGNORE: u32 = u32::MAX;

/// For each row of `logits [R, V]`: `losses[r] = logsumexp(logits[r]) − logits[r, targets[r]]`
/// (natural logarithm; 0 where the target is [`IGNORE`]), and, with `gradient`, the logits are
/// overwritten by the gradient of the *sum* of the losses, `softmax − onehot`.
///
/// # Errors
/// Operands of the wrong size or type; a target outside the vocabulary.
pub fn cross_entropy(
    stream: &Stream,
    logits: &Tensor,
    targets: &Tensor,
    losses: &Tensor,
    gradient: bool,
) -> Result<(), KernelError> {
    const NAME: &str = "cross_entropy";
    let (rows, vocab) = (logits.dim(0), logits.dim(1));
    expect(NAME, "targets", targets, rows)?;
    expect(NAME, "losses", losses, rows)?;
    let (logits, targets, losses) = (logits.clone(), targets.clone(), losses.clone());
    dispatch!(NAME, logits.dtype(), T => {
        stream.launch(NAME, move |k| {
            k.streams();
            let targets = k.read::<u32>(&targets)?;
            let outside = |t: &&u32| **t != IGNORE && **t as usize >= vocab;
            if let Some(target) = targets.iter().find(outside) {
                return Err(k.error(format!("target {target} is outside the {vocab} logits")));
            }
            let outputs = ((k.write::<T>(&logits)?, vocab), (k.write::<T>(&losses)?, 1));
            k.parallel().chunks2(outputs.0, outputs.1, |row, logits, loss| {
                vectorize!(|| loss[0] = row_loss(logits, targets[row], gradient));
            });
            Ok(())
        })?;
        Ok(())
    })
}

#[inline(always)]
fn row_loss<T: Real>(logits: &mut [T], target: u32, gradient: bool) -> T {
    if target == IGNORE {
        if gradient {
            logits.fill(T::ZERO);
        }
        return T::ZERO;
    }
    let target = target as usize;
    let most = crate::math::most(logits);
    let chosen = logits[target];
    if !gradient {
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

/// `out[0] = Σ values` in f64 and row order; added to `out` when `accumulate`.
///
/// # Errors
/// Operands of the wrong size or type.
pub fn total(
    stream: &Stream,
    values: &Tensor,
    out: &Tensor,
    accumulate: bool,
) -> Result<(), KernelError> {
    const NAME: &str = "total";
    expect(NAME, "out", out, 1)?;
    let (values, out) = (values.clone(), out.clone());
    dispatch!(NAME, values.dtype(), T => {
        stream.launch(NAME, move |k| {
            let sum: f64 = k.read::<T>(&values)?.iter().map(|x| x.to_f64()).sum();
            let out = k.write::<f64>(&out)?;
            out[0] = if accumulate { out[0] + sum } else { sum };
            Ok(())
        })?;
        Ok(())
    })
}
