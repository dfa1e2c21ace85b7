//! An orthogonalization as it is typed: words for algorithm, coefficients and type.

use device::DeviceKind;
use kernels::newton_schulz::{Algorithm, Iteration, Method, Storage};

use crate::config::nearest;
use crate::error::CliError;

/// The value of `words` that is called `word`, or a mistake that names the nearest.
fn named<T: Copy>(what: &str, word: &str, words: &[(&str, T)]) -> Result<T, CliError> {
    let found = words.iter().find(|(name, _)| *name == word).map(|(_, value)| *value);
    found.ok_or_else(|| {
        let names: Vec<&str> = words.iter().map(|(name, _)| *name).collect();
        let near = match nearest(word, names.iter().copied()) {
            Some(name) => format!("; did you mean `{name}`?"),
            None => String::new(),
        };
        CliError::mistake(format!("--{what} `{word}` is none of {}{near}", names.join(", ")))
    })
}

/// # Errors
/// An unknown word.
pub fn algorithm(word: &str) -> Result<Algorithm, CliError> {
    named("algorithm", word, &Algorithm::ALL.map(|algorithm| (algorithm.word(), algorithm)))
}

/// # Errors
/// An unknown word.
pub fn storage(word: &str) -> Result<Storage, CliError> {
    named("dtype", word, &Storage::ALL.map(|storage| (storage.word(), storage)))
}

/// CPUs multiply f32; on GPUs f16 has eight times the precision of bf16 at the same speed, and the
/// iterations' matrices stay far inside its range.
pub fn default_storage(device: DeviceKind) -> Storage {
    if device.is_host() { Storage::F32 } else { Storage::F16 }
}

/// `--threads`, where 0 means all cores.
pub fn threads(asked: usize) -> usize {
    match asked {
        0 => crate::limits::cores(),
        threads => threads,
    }
}

/// A method; `coefficients` is a set's name, or YAML as in a config: `{taylor: {kappa: 3}}`.
///
/// # Errors
/// An unknown word.
pub fn method(
    algorithm: &str,
    coefficients: &str,
    steps: usize,
    storage: Storage,
) -> Result<Method, CliError> {
    // As the key of a config, whose words and errors these are.
    let muon: optim::MuonConfig = serde_yaml::from_str(&format!("coefficients: {coefficients}"))
        .map_err(|error| CliError::mistake(format!("--coefficients `{coefficients}`: {error}")))?;
    Ok(Method {
        algorithm: self::algorithm(algorithm)?,
        coefficients: muon.method().coefficients,
        steps,
        storage,
        ..Method::default()
    })
}

/// The checked method, for a device that can run it.
///
/// # Errors
/// Coefficients that do not orthogonalize; what the device does not have.
pub fn iteration(method: &Method, device: DeviceKind) -> Result<Iteration, CliError> {
    if !device.is_host() && method.storage == Storage::F32 {
        return Err(CliError::mistake(format!(
            "{device} multiplies bf16 and f16; use --dtype f16, or --device cpu for f32"
        )));
    }
    if !device.is_host() && method.algorithm == Algorithm::Svd {
        return Err(CliError::mistake(format!("svd runs on the CPU alone, not on {device}")));
    }
    Iteration::new(method).map_err(CliError::mistake)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_those_of_configs_and_mistakes_name_the_nearest() {
        let found = method("gram", "cans", 5, Storage::F16).unwrap();
        assert_eq!(found.algorithm, Algorithm::Gram);
        assert_eq!(found.coefficients.word(), "cans");
        let message = algorithm("gramm").unwrap_err().message;
        assert!(message.contains("did you mean `gram`?"), "{message}");
        assert!(storage("fp16").unwrap_err().message.contains("f32, bf16, f16"));
        assert!(method("auto", "polar", 5, Storage::F32).is_err());
    }

    #[test]
    fn devices_say_what_they_do_not_have() {
        let f32 = method("auto", "jordan", 5, Storage::F32).unwrap();
        assert!(iteration(&f32, DeviceKind::Cpu).is_ok());
        assert!(iteration(&f32, DeviceKind::Cuda(0)).unwrap_err().message.contains("--dtype f16"));
        let svd = method("svd", "jordan", 5, Storage::F16).unwrap();
        assert!(iteration(&svd, DeviceKind::Cuda(0)).unwrap_err().message.contains("CPU alone"));
    }
}
