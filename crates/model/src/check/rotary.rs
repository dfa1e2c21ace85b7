//! Numbers of stretched rotary frequencies that fit each other.

use super::Draft;
use crate::ModelError;
use crate::config::{Positions, RotaryScaling, SCALING_MAX, WINDOW_MAX};

/// Whatever does not fit, with the nearest that would.
pub(super) fn refusals(draft: &Draft) -> Vec<ModelError> {
    let Positions::Rotary { scaling: Some(scaling), .. } = draft.architecture.positions else {
        return Vec::new();
    };
    let mut all = Vec::new();
    for (key, value, least) in numbers(scaling) {
        if !(least..=SCALING_MAX).contains(&value) {
            let problem = format!("it is no number from {least} to {SCALING_MAX}");
            let nearest = if value > SCALING_MAX { SCALING_MAX } else { least };
            all.push(refusal(key, value, problem, format!("use {nearest}")));
        }
    }
    if !(1..=WINDOW_MAX).contains(&scaling.original()) {
        let (key, window) = (window_key(scaling), scaling.original());
        let problem = format!("a window has 1 to {WINDOW_MAX} positions");
        let nearest = window.clamp(1, WINDOW_MAX);
        all.push(refusal(key, window as f64, problem, format!("use {nearest}")));
    }
    let (above, [below, value]) = order(scaling);
    // Told of numbers alone.
    if all.is_empty() && value <= below {
        let problem = format!("it is not above the {below} at which planes turn slower");
        all.push(refusal(above, value, problem, format!("use more than {below}")));
    }
    all
}

fn refusal(key: &'static str, value: f64, problem: String, remedy: String) -> ModelError {
    ModelError::Shape { key, value: value.to_string(), problem, remedy }
}

/// Keys, their numbers, and the least that each may be.
fn numbers(scaling: RotaryScaling) -> Vec<(&'static str, f64, f64)> {
    match scaling {
        RotaryScaling::Llama3 { factor, low_freq_factor, high_freq_factor, .. } => vec![
            ("positions.rotary.scaling.llama3.factor", factor, 1.0),
            ("positions.rotary.scaling.llama3.low_freq_factor", low_freq_factor, 0.0),
            ("positions.rotary.scaling.llama3.high_freq_factor", high_freq_factor, 0.0),
        ],
        RotaryScaling::Yarn {
            factor,
            beta_fast,
            beta_slow,
            mscale,
            mscale_all_dim,
            attention_factor,
            ..
        } => {
            let mut all = vec![
                ("positions.rotary.scaling.yarn.factor", factor, 1.0),
                ("positions.rotary.scaling.yarn.beta_fast", beta_fast, LEAST_TURNS),
                ("positions.rotary.scaling.yarn.beta_slow", beta_slow, LEAST_TURNS),
            ];
            let optional = [
                ("positions.rotary.scaling.yarn.mscale", mscale),
                ("positions.rotary.scaling.yarn.mscale_all_dim", mscale_all_dim),
                ("positions.rotary.scaling.yarn.attention_factor", attention_factor),
            ];
            let given = optional.into_iter().filter_map(|(key, value)| Some((key, value?, 0.0)));
            all.extend(given);
            all
        }
    }
}

/// Turns in a window that have a plane: the logarithm of none is not a number.
const LEAST_TURNS: f64 = 1e-6;

fn window_key(scaling: RotaryScaling) -> &'static str {
    match scaling {
        RotaryScaling::Llama3 { .. } => "positions.rotary.scaling.llama3.original_max_positions",
        RotaryScaling::Yarn { .. } => "positions.rotary.scaling.yarn.original_max_positions",
    }
}

/// The key of the number that must be above another, and both.
fn order(scaling: RotaryScaling) -> (&'static str, [f64; 2]) {
    match scaling {
        RotaryScaling::Llama3 { low_freq_factor, high_freq_factor, .. } => {
            let key = "positions.rotary.scaling.llama3.high_freq_factor";
            (key, [low_freq_factor, high_freq_factor])
        }
        RotaryScaling::Yarn { beta_fast, beta_slow, .. } => {
            ("positions.rotary.scaling.yarn.beta_fast", [beta_slow, beta_fast])
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{ModelConfig, Positions, Preset, RotaryScaling};

    fn told(scaling: RotaryScaling) -> Result<(), String> {
        let config = ModelConfig {
            preset: Some(Preset::TinyMoe),
            positions: Some(Positions::Rotary { theta: 1e4, scaling: Some(scaling) }),
            ..ModelConfig::default()
        };
        config.resolve(257, 64).map(drop).map_err(|error| error.to_string())
    }

    fn yarn(factor: f64, original_max_positions: usize, beta_fast: f64) -> Result<(), String> {
        told(RotaryScaling::Yarn {
            factor,
            original_max_positions,
            beta_fast,
            beta_slow: 1.0,
            mscale: None,
            mscale_all_dim: None,
            attention_factor: None,
            truncate: true,
        })
    }

    fn llama3(low_freq_factor: f64, high_freq_factor: f64) -> Result<(), String> {
        let (factor, original_max_positions) = (8.0, 32);
        told(RotaryScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_positions,
        })
    }

    #[test]
    fn numbers_that_do_not_fit_are_told_with_what_would() {
        assert_eq!(llama3(1.0, 4.0), Ok(()));
        assert_eq!(yarn(4.0, 32, 32.0), Ok(()));
        assert_eq!(
            llama3(4.0, 4.0).unwrap_err(),
            "model.positions.rotary.scaling.llama3.high_freq_factor = 4: it is not above the 4 at \
             which planes turn slower; use more than 4"
        );
        assert_eq!(
            yarn(0.5, 32, 32.0).unwrap_err(),
            "model.positions.rotary.scaling.yarn.factor = 0.5: it is no number from 1 to 1000000; \
             use 1"
        );
        assert_eq!(
            yarn(4.0, 0, 32.0).unwrap_err(),
            "model.positions.rotary.scaling.yarn.original_max_positions = 0: a window has 1 to \
             1073741824 positions; use 1"
        );
        assert_eq!(
            yarn(4.0, 32, 1.0).unwrap_err(),
            "model.positions.rotary.scaling.yarn.beta_fast = 1: it is not above the 1 at which \
             planes turn slower; use more than 1"
        );
        assert!(llama3(f64::NAN, 4.0).is_err());
    }
}
