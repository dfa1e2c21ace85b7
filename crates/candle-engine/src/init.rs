//! Initial values as a pure function of (seed, name, element): candle's own cannot be seeded on a
//! CPU, and ranks must begin with the same bits.

use std::sync::PoisonError;

use candle_core::Tensor;
use candle_nn::VarMap;

use crate::CandleError;

/// Initial values of a parameter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    /// All the same.
    Const(f64),
    /// Normal deviates of mean 0.
    Normal { std: f64 },
    /// Uniform deviates from -bound to bound.
    Uniform { bound: f64 },
}

/// Sets every variable of `vars` as `init` says for its name and shape.
///
/// # Errors
/// Candle's.
pub fn seed(
    vars: &VarMap,
    seed: u64,
    init: impl Fn(&str, &[usize]) -> Init,
) -> Result<(), CandleError> {
    let data = vars.data().lock().unwrap_or_else(PoisonError::into_inner);
    for (name, var) in data.iter() {
        let (shape, count) = (var.dims(), var.elem_count());
        let mut uniform = Uniforms::new(seed, name);
        let values: Vec<f32> = match init(name, shape) {
            Init::Const(value) => vec![value as f32; count],
            Init::Normal { std } => (0..count).map(|_| (std * uniform.normal()) as f32).collect(),
            Init::Uniform { bound } => {
                (0..count).map(|_| (bound * (2.0 * uniform.next() - 1.0)) as f32).collect()
            }
        };
        let values = Tensor::from_vec(values, shape, var.device())?;
        var.set(&values.to_dtype(var.dtype())?)?;
    }
    Ok(())
}

/// Uniform deviates in (0, 1), from BLAKE3's output for seed and name.
struct Uniforms(blake3::OutputReader);

impl Uniforms {
    fn new(seed: u64, name: &str) -> Uniforms {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&seed.to_le_bytes()).update(name.as_bytes());
        Uniforms(hasher.finalize_xof())
    }

    fn next(&mut self) -> f64 {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        ((u64::from_le_bytes(bytes) >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
    }

    /// Box & Muller (1958), one of the pair.
    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * libm::log(self.next())).sqrt();
        radius * libm::cos(std::f64::consts::TAU * self.next())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};

    fn values(of: u64, name: &str) -> Vec<f32> {
        let vars = VarMap::new();
        let zero = candle_nn::Init::Const(0.0);
        vars.get((100, 100), name, zero, DType::F32, &Device::Cpu).unwrap();
        vars.get((3,), "gain", zero, DType::F32, &Device::Cpu).unwrap();
        let init = |name: &str, _: &[usize]| match name {
            "gain" => Init::Const(1.0),
            _ => Init::Normal { std: 2.0 },
        };
        seed(&vars, of, init).unwrap();
        let data = vars.data().lock().unwrap();
        assert_eq!(data["gain"].to_vec1::<f32>().unwrap(), [1.0; 3]);
        data[name].flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn values_depend_on_seed_and_name_alone() {
        let one = values(1, "a");
        assert_eq!(one, values(1, "a"));
        assert!(one != values(2, "a") && one != values(1, "b"));
        let count = one.len() as f64;
        let mean = one.iter().map(|&x| f64::from(x)).sum::<f64>() / count;
        let square = one.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / count;
        assert!(mean.abs() < 0.1 && (square - 4.0).abs() < 0.2, "{mean} {square}");
    }
}
