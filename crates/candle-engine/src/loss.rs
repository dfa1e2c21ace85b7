//! The loss that the trainer expects: a sum over targets.

use candle_core::{D, DType, Result, Tensor};
use candle_nn::ops::log_softmax;
use kernels::loss::IGNORE;

/// The sum of the cross-entropies of `logits [B, T, V]` (or `[N, V]`) over the rows whose target in
/// `targets [B, T]` (or `[N]`) is not [`kernels::loss::IGNORE`], as one F64 number.
///
/// # Errors
/// Shapes that do not fit; a target outside the vocabulary.
pub fn cross_entropy(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let logits = logits.flatten_to(D::Minus2)?;
    let targets = targets.flatten_all()?;
    let counts = targets.ne(IGNORE)?;
    let chosen = counts.where_cond(&targets, &targets.zeros_like()?)?;
    let log_p = log_softmax(&logits, D::Minus1)?.gather(&chosen.unsqueeze(1)?, 1)?.squeeze(1)?;
    let zero = log_p.zeros_like()?;
    counts.where_cond(&log_p, &zero)?.to_dtype(DType::F64)?.sum_all()?.neg()
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    #[test]
    fn it_is_a_sum_over_rows_with_a_target() {
        let logits: Vec<f32> = (0..24).map(|i| (i * 7 % 11) as f32 / 3.0).collect();
        let logits = Var::from_vec(logits, (2, 3, 4), &Device::Cpu).unwrap();
        let targets = [1, IGNORE, 3, 0, 2, IGNORE];
        let targets = Tensor::from_slice(&targets, (2, 3), &Device::Cpu).unwrap();
        let loss = cross_entropy(logits.as_tensor(), &targets).unwrap();
        assert_eq!((loss.dims(), loss.dtype()), (&[][..], DType::F64));
        let rows = logits.as_tensor().reshape((6, 4)).unwrap();
        let rows = rows.index_select(&Tensor::new(&[0_u32, 2, 3, 4], &Device::Cpu).unwrap(), 0);
        let of = Tensor::new(&[1_u32, 3, 0, 2], &Device::Cpu).unwrap();
        let mean = candle_nn::loss::cross_entropy(&rows.unwrap(), &of).unwrap();
        let want = 4.0 * f64::from(mean.to_scalar::<f32>().unwrap());
        assert!((loss.to_scalar::<f64>().unwrap() - want).abs() < 1e-5);
        // A row's gradients are softmax less one at the target; a row without one has none.
        let grads = loss.backward().unwrap();
        let grad = grads.get(logits.as_tensor()).unwrap().reshape((6, 4)).unwrap();
        let sums = grad.sum(1).unwrap().to_vec1::<f32>().unwrap();
        assert!(sums.iter().all(|sum| sum.abs() < 1e-6), "{sums:?}");
        let grad = grad.to_vec2::<f32>().unwrap();
        assert!(grad[0][1] < 0.0 && grad[1] == [0.0; 4] && grad[5] == [0.0; 4]);
    }
}
