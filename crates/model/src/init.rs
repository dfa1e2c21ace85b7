//! Initial weights: a pure function of (seed, tensor, element), whatever the layout.

use device::{DType, Stream, Tensor};
use half::bf16;
use layout::{FlatLayout, Role, Schema};

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
    schema: &Schema,
    flat: &FlatLayout,
    seed: u64,
    weights: &Tensor,
) -> Result<(), ModelError> {
    let residual = 1.0 / (2.0 * a.layers as f64).sqrt();
    for (index, tensor) in schema.tensors.iter().enumerate() {
        let name = tensor.name.as_str();
        let to_residual = [".c_proj.", ".o_proj.", ".down_proj.", ".w2."];
        let (mean, std) = match tensor.role {
            Role::Vector if name.ends_with("bias") => (0.0, 0.0),
            Role::Vector => (1.0, 0.0),
            _ if to_residual.iter().any(|part| name.contains(part)) => (0.0, a.init_std * residual),
            _ => (0.0, a.init_std),
        };
        let key = mix(seed ^ mix(index as u64 + 1));
        fill(stream, &weights.flat(flat.range(index))?, key, mean, std)?;
    }
    Ok(())
}

fn fill(stream: &Stream, to: &Tensor, key: u64, mean: f64, std: f64) -> Result<(), ModelError> {
    let to = to.clone();
    let value = move |i: usize| mean + std * normal(key, i as u64);
    stream.launch("initialize", move |k| {
        let parallel = k.parallel();
        match to.dtype() {
            DType::F64 => parallel.chunks(k.write::<f64>(&to)?, TASK, |task, to| {
                to.iter_mut().enumerate().for_each(|(i, x)| *x = value(task * TASK + i));
            }),
            DType::Bf16 => parallel.chunks(k.write::<bf16>(&to)?, TASK, |task, to| {
                let cast = |i| bf16::from_f32(value(task * TASK + i) as f32);
                to.iter_mut().enumerate().for_each(|(i, x)| *x = cast(i));
            }),
            _ => parallel.chunks(k.write::<f32>(&to)?, TASK, |task, to| {
                to.iter_mut().enumerate().for_each(|(i, x)| *x = value(task * TASK + i) as f32);
            }),
        }
        Ok(())
    })?;
    Ok(())
}

/// Deviate `i` of the stream `key`: Box & Muller (1958) on two hashed uniforms; each pair of
/// uniforms gives deviates 2j and 2j + 1.
fn normal(key: u64, i: u64) -> f64 {
    let uniform = |n: u64| {
        ((mix(key.wrapping_add(n.wrapping_mul(GOLDEN))) >> 11) as f64 + 0.5) / 2f64.powi(53)
    };
    let pair = i / 2;
    let radius = (-2.0 * uniform(2 * pair).ln()).sqrt();
    let angle = std::f64::consts::TAU * uniform(2 * pair + 1);
    radius * if i.is_multiple_of(2) { angle.cos() } else { angle.sin() }
}

/// 2⁶⁴ over the golden ratio, the increment of SplitMix64.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// The finalizer of SplitMix64 (Steele et al. 2014).
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deviates_are_normal() {
        let n = 100_000;
        let values: Vec<f64> = (0..n).map(|i| normal(mix(7), i)).collect();
        let moment = |p: i32| values.iter().map(|x| x.powi(p)).sum::<f64>() / n as f64;
        assert!(moment(1).abs() < 0.02 && (moment(2) - 1.0).abs() < 0.02);
        assert!(moment(3).abs() < 0.05 && (moment(4) - 3.0).abs() < 0.1);
    }
}
