//! How fast the planes of queries and keys turn, stretched for windows longer than those that a
//! model began with.
//!
//! ```text
//! theta ─▶ geometric frequencies ─scaling─▶ frequencies, factor on what turns, factor on scores
//! ```
//! Published weights do not say how they were stretched: other frequencies are another model. All
//! is computed in f64; what must be met is `modeling_rope_utils` of Hugging Face's transformers.

use std::f64::consts::PI;

use kernels::rope::Turns;

use crate::config::{Positions, RotaryScaling};

/// The frequencies of planes of `dim` columns; `None` where nothing turns.
pub(crate) fn turns(positions: Positions, dim: usize) -> Option<Turns> {
    let Positions::Rotary { theta, scaling } = positions else { return None };
    let mut turns = Turns::geometric(dim, theta);
    match scaling {
        None => {}
        Some(RotaryScaling::Llama3 { factor, low_freq_factor, high_freq_factor, .. }) => {
            let window = scaling.map_or(0, RotaryScaling::original) as f64;
            let stretched =
                |f: &f64| llama3(*f, window, factor, [low_freq_factor, high_freq_factor]);
            turns.frequencies = turns.frequencies.iter().map(stretched).collect();
        }
        Some(RotaryScaling::Yarn { factor, beta_fast, beta_slow, truncate, .. }) => {
            let window = scaling.map_or(0, RotaryScaling::original) as f64;
            let [first, last] = yarn_range(dim, theta, window, [beta_fast, beta_slow], truncate);
            let stretched = |(i, f): (usize, &f64)| yarn(*f, i as f64, factor, [first, last]);
            turns.frequencies = turns.frequencies.iter().enumerate().map(stretched).collect();
            turns.length = length(scaling);
        }
    }
    Some(turns)
}

/// Factor on the scores of latent attention, beside the root of their width: DeepSeek-V3 folds
/// YaRN's temperature into it (`softmax_scale` of its inference code, `yarn_apply_mscale` of
/// transformers).
pub(crate) fn sharpness(positions: Positions) -> f64 {
    match positions {
        Positions::Rotary {
            scaling: Some(RotaryScaling::Yarn { factor, mscale_all_dim: Some(by), .. }),
            ..
        } => {
            let temperature = temperature(factor, by);
            temperature * temperature
        }
        _ => 1.0,
    }
}

/// Llama 3.1's (`apply_scaling` of meta-llama/llama-models): slow planes turn `factor` times
/// slower, fast ones as before, and those between blend.
fn llama3(frequency: f64, window: f64, factor: f64, [low, high]: [f64; 2]) -> f64 {
    let rounds = window * frequency / (2.0 * PI);
    let share = ((rounds - low) / (high - low)).clamp(0.0, 1.0);
    (1.0 - share) * frequency / factor + share * frequency
}

/// Equation 23 and section 3.2 of YaRN (Peng et al. 2023): planes before `first` turn as before,
/// those after `last` turn `factor` times slower, and those between blend.
fn yarn(frequency: f64, plane: f64, factor: f64, [first, last]: [f64; 2]) -> f64 {
    // As transformers has it, where both are one.
    let last = if first == last { last + 0.001 } else { last };
    let share = ((plane - first) / (last - first)).clamp(0.0, 1.0);
    share * frequency / factor + (1.0 - share) * frequency
}

/// The planes that turn `beta_fast` and `beta_slow` times in the window of before.
fn yarn_range(dim: usize, theta: f64, window: f64, betas: [f64; 2], truncate: bool) -> [f64; 2] {
    let plane = |rounds: f64| {
        dim as f64 * libm::log(window / (rounds * 2.0 * PI)) / (2.0 * libm::log(theta))
    };
    let [first, last] = betas.map(plane);
    let [first, last] = if truncate { [first.floor(), last.ceil()] } else { [first, last] };
    [first.max(0.0), last.min(dim as f64 - 1.0)]
}

/// The factor on cos and sin: the one that is given, or what follows from the others.
fn length(scaling: Option<RotaryScaling>) -> f64 {
    match scaling {
        Some(RotaryScaling::Yarn { factor, mscale, mscale_all_dim, attention_factor, .. }) => {
            let of = |by| temperature(factor, by);
            match (attention_factor, mscale, mscale_all_dim) {
                (Some(given), ..) => given,
                (None, Some(mscale), Some(all)) => of(mscale) / of(all),
                (None, ..) => of(1.0),
            }
        }
        _ => 1.0,
    }
}

/// The root of YaRN's temperature (equation 25).
fn temperature(factor: f64, by: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * by * libm::log(factor) + 1.0 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rotary(theta: f64, scaling: RotaryScaling) -> Positions {
        Positions::Rotary { theta, scaling: Some(scaling) }
    }

    fn llama31() -> RotaryScaling {
        RotaryScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_positions: 8192,
        }
    }

    fn deepseek() -> RotaryScaling {
        RotaryScaling::Yarn {
            factor: 40.0,
            original_max_positions: 4096,
            beta_fast: 32.0,
            beta_slow: 1.0,
            mscale: Some(1.0),
            mscale_all_dim: Some(1.0),
            attention_factor: None,
            truncate: true,
        }
    }

    /// Largest distance of the given planes from what transformers 5.24 computes in f32, relative.
    fn distance(turns: &Turns, theirs: &[(usize, f64)]) -> f64 {
        let of = |&(plane, value): &(usize, f64)| (turns.frequencies[plane] / value - 1.0).abs();
        theirs.iter().map(of).fold(0.0, f64::max)
    }

    #[test]
    fn published_models_turn_as_transformers_has_them() {
        let turns = turns(rotary(500_000.0, llama31()), 128).unwrap();
        assert_eq!((turns.frequencies.len(), turns.length), (64, 1.0));
        assert!(distance(&turns, LLAMA31) < 2e-6, "{turns:?}");
        let turns = super::turns(rotary(10_000.0, deepseek()), 64).unwrap();
        assert_eq!((turns.frequencies.len(), turns.length), (32, 1.0));
        assert!(distance(&turns, DEEPSEEK) < 2e-6, "{turns:?}");
        let sharpness = sharpness(rotary(10_000.0, deepseek()));
        assert!((sharpness - 1.368_887_945_411_393_6_f64.powi(2)).abs() < 1e-12, "{sharpness}");
    }

    /// Planes and their frequencies, by `ROPE_INIT_FUNCTIONS["llama3"]`.
    const LLAMA31: &[(usize, f64)] = &[
        (0, 1.00000000e+00),
        (10, 1.28687382e-01),
        (25, 5.94073068e-03),
        (28, 3.21144611e-03),
        (30, 1.37189368e-03),
        (32, 5.24846022e-04),
        (34, 1.78507791e-04),
        (36, 7.78465546e-05),
        (40, 3.42810235e-05),
        (63, 3.06892588e-07),
    ];
    /// By `ROPE_INIT_FUNCTIONS["yarn"]`.
    const DEEPSEEK: &[(usize, f64)] = &[
        (0, 1.00000000e+00),
        (5, 2.37137362e-01),
        (10, 5.62341288e-02),
        (11, 3.90069261e-02),
        (14, 1.24479560e-02),
        (17, 3.56199732e-03),
        (20, 7.90569407e-04),
        (23, 3.33380340e-05),
        (24, 2.49999994e-05),
        (31, 3.33380353e-06),
    ];

    #[test]
    fn the_length_is_what_is_given_or_follows() {
        let with = |change: fn(&mut RotaryScaling)| {
            let mut scaling = deepseek();
            change(&mut scaling);
            turns(rotary(10_000.0, scaling), 64).unwrap().length
        };
        let alone = with(|s| {
            if let RotaryScaling::Yarn { mscale, mscale_all_dim, .. } = s {
                (*mscale, *mscale_all_dim) = (None, None);
            }
        });
        assert_eq!(alone, 0.1 * libm::log(40.0) + 1.0);
        let ratio = with(|s| {
            if let RotaryScaling::Yarn { mscale, .. } = s {
                *mscale = Some(0.5);
            }
        });
        assert_eq!(ratio, (0.05 * libm::log(40.0) + 1.0) / alone);
        let given = with(|s| {
            if let RotaryScaling::Yarn { attention_factor, .. } = s {
                *attention_factor = Some(0.75);
            }
        });
        assert_eq!(given, 0.75);
    }

    proptest! {
        #[test]
        fn no_plane_turns_faster_than_before_or_slower_than_by_the_factor(
            (theta, pairs) in (10.0_f64..1e6, 1_usize..80),
            (factor, window) in (1.0_f64..64.0, 1_usize..100_000),
            (low, more) in (0.1_f64..8.0, 0.1_f64..60.0),
            truncate in any::<bool>(),
        ) {
            let all = [
                RotaryScaling::Llama3 {
                    factor,
                    low_freq_factor: low,
                    high_freq_factor: low + more,
                    original_max_positions: window,
                },
                RotaryScaling::Yarn {
                    factor,
                    original_max_positions: window,
                    beta_fast: low + more,
                    beta_slow: low,
                    mscale: None,
                    mscale_all_dim: None,
                    attention_factor: None,
                    truncate,
                },
            ];
            let plain = Turns::geometric(2 * pairs, theta);
            for scaling in all {
                let turns = turns(rotary(theta, scaling), 2 * pairs).unwrap();
                let mut before = f64::INFINITY;
                for (scaled, plain) in turns.frequencies.iter().zip(&plain.frequencies) {
                    let slower = plain / scaled;
                    prop_assert!((1.0 - 1e-12..=factor + 1e-9).contains(&slower), "{slower}");
                    prop_assert!(*scaled <= before);
                    before = *scaled;
                }
            }
        }
    }

    #[test]
    fn without_scaling_frequencies_have_the_bits_of_before() {
        let turns = turns(Positions::rotary(10_000.0), 8).unwrap();
        let before = |j: usize| libm::pow(10_000.0, -(2.0 * j as f64) / 8.0);
        assert_eq!(turns.frequencies, [0, 1, 2, 3].map(before));
        assert_eq!((turns.length, sharpness(Positions::rotary(1e4))), (1.0, 1.0));
    }
}
