//! Initial weights: a pure function of (seed, tensor, element), whatever the layout.

use device::{DType, Stream, Tensor};
use half::bf16;
use layout::FlatLayout;
use layout::normal::{mix, normals};

use crate::declare::Init;
use crate::transformer::declared;
use crate::{Architecture, ModelError};

/// Elements of one parallel task.
const TASK: usize = 1 << 14;

/// Fills `weights`, flat in f32, f64 or bf16, with normal deviates of the architecture's
/// `init_std`; projections back to the residual stream get it over √(2·layers) (Radford et al.
/// 2019); gains are one and biases zero.
///
/// # Errors
/// Device errors.
pub fn initialize(
    stream: &Stream,
    a: &Architecture,
    flat: &FlatLayout,
    seed: u64,
    weights: &Tensor,
) -> Result<(), ModelError> {
    let residual = 1.0 / (2.0 * a.layers as f64).sqrt();
    for (index, init) in declared(a)?.inits.into_iter().enumerate() {
        let (mean, std) = match init {
            Init::Zero => (0.0, 0.0),
            Init::One => (1.0, 0.0),
            Init::ToResidual => (0.0, a.init_std * residual),
            Init::Normal => (0.0, a.init_std),
        };
        let key = mix(seed ^ mix(index as u64 + 1));
        fill(stream, &weights.flat(flat.range(index))?, key, mean, std)?;
    }
    Ok(())
}

fn fill(stream: &Stream, to: &Tensor, key: u64, mean: f64, std: f64) -> Result<(), ModelError> {
    let to = to.clone();
    stream.launch("initialize", move |k| {
        let parallel = k.parallel();
        let value = |deviate: f64| mean + std * deviate;
        match to.dtype() {
            DType::F64 => parallel.chunks(k.write::<f64>(&to)?, TASK, |task, to| {
                deviates(key, task, to, value);
            }),
            DType::Bf16 => parallel.chunks(k.write::<bf16>(&to)?, TASK, |task, to| {
                deviates(key, task, to, |deviate| bf16::from_f32(value(deviate) as f32));
            }),
            _ => parallel.chunks(k.write::<f32>(&to)?, TASK, |task, to| {
                deviates(key, task, to, |deviate| value(deviate) as f32);
            }),
        }
        Ok(())
    })?;
    Ok(())
}

/// Fills part `task` of the stream `key`.
fn deviates<T>(key: u64, task: usize, to: &mut [T], value: impl Fn(f64) -> T) {
    for (j, pair) in to.chunks_mut(2).enumerate() {
        let (even, odd) = normals(key, (task * TASK / 2 + j) as u64);
        pair[0] = value(even);
        if let Some(second) = pair.get_mut(1) {
            *second = value(odd);
        }
    }
}
