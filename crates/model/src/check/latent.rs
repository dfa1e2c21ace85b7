//! Latent attention excludes options of other attention, and has sizes of its own.

use std::fmt;

use serde::Serialize;

use super::Draft;
use crate::ModelError;
use crate::config::{Positions, QkNorm};
use crate::names::{Family, Part};

/// A word as configs have it.
struct Word<T>(T);

impl<T: Serialize> fmt::Display for Word<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.serialize(f)
    }
}

/// Whatever does not fit, with the nearest that would.
pub(super) fn refusals(draft: &Draft) -> Vec<ModelError> {
    let a = &draft.architecture;
    let Some(latent) = a.latent else { return Vec::new() };
    let mut all = Vec::new();
    let mut refuse = |key, value: &dyn fmt::Display, problem: &str, remedy: &str| {
        let (value, problem, remedy) = (value.to_string(), problem.into(), remedy.into());
        all.push(ModelError::Shape { key, value, problem, remedy });
    };
    if a.kv_heads != a.heads {
        let problem = format!("heads = {}, and latent attention has keys for each", a.heads);
        refuse("kv_heads", &a.kv_heads, &problem, &format!("use kv_heads = {}", a.heads));
    }
    if draft.gives_head_dim {
        let (problem, remedy) = (
            "latent attention has widths of its own",
            format!("leave it out, and use latent.nope_dim = {}", nope_dim(draft)),
        );
        refuse("head_dim", &a.head_dim, problem, &remedy);
    }
    if a.qk_norm != QkNorm::None {
        let problem = "latent attention normalizes what queries and keys are made of";
        refuse("qk_norm", &Word(a.qk_norm), problem, "use qk_norm: none");
    }
    if let Positions::Learned { .. } = a.positions {
        let problem = "latent attention turns columns by position";
        refuse("positions", &"learned", problem, "use positions: {rotary: {theta: 10000.0}}");
    }
    if a.attention_bias {
        let problem = "latent attention has no biases";
        refuse("attention_bias", &true, problem, "use attention_bias: false");
    }
    if !Family::of(a.names).has(Part::KeyValueUp) {
        let problem = "it has no names for latent attention";
        refuse("names", &Word(a.names), problem, "use names: deepseek_v3");
    }
    let sizes = [
        ("heads", a.heads),
        ("latent.kv_rank", latent.kv_rank),
        ("latent.nope_dim", latent.nope_dim),
        ("latent.value_dim", latent.value_dim),
    ];
    for (key, size) in sizes.into_iter().filter(|(_, size)| *size == 0) {
        refuse(key, &size, "latent attention needs it", "use 1 or more");
    }
    if latent.rope_dim == 0 || !latent.rope_dim.is_multiple_of(2) {
        let near = (latent.rope_dim & !1).max(2);
        let remedy = format!("use latent.rope_dim = {near}");
        refuse("latent.rope_dim", &latent.rope_dim, "positions turn pairs of columns", &remedy);
    }
    all
}

/// The columns beside those that turn with which keys are as wide as the config says; where there
/// are none, those there are.
fn nope_dim(draft: &Draft) -> usize {
    let a = &draft.architecture;
    let now = a.latent.map_or((1, 0), |latent| (latent.nope_dim.max(1), latent.rope_dim));
    let left = a.head_dim.saturating_sub(now.1);
    if left > 0 { left } else { now.0 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::config::{LatentConfig, Names};
    use crate::{ModelConfig, ModelError, Positions, Preset, QkNorm};

    const SIZES: LatentConfig = LatentConfig {
        q_rank: Some(24),
        kv_rank: Some(16),
        nope_dim: Some(8),
        rope_dim: Some(4),
        value_dim: Some(8),
        norm_eps: None,
    };

    fn with(change: impl FnOnce(&mut ModelConfig)) -> ModelConfig {
        let mut config = ModelConfig {
            layers: Some(1),
            d_model: Some(32),
            heads: Some(4),
            d_ff: Some(48),
            latent: Some(SIZES),
            ..ModelConfig::default()
        };
        change(&mut config);
        config
    }

    fn message(change: impl FnOnce(&mut ModelConfig)) -> String {
        with(change).resolve(257, 64).unwrap_err().to_string()
    }

    fn sizes(change: impl FnOnce(&mut LatentConfig)) -> String {
        message(|config| change(config.latent.as_mut().unwrap()))
    }

    #[test]
    fn what_it_needs_follows_from_it() {
        let a = with(|_| ()).resolve(257, 64).unwrap();
        assert_eq!((a.names, a.kv_heads, a.head_dim), (Names::DeepseekV3, 4, 12));
        // The width of a head is not made of the other two.
        let a = with(|config| config.d_model = Some(31)).resolve(257, 64).unwrap();
        assert_eq!(a.head_dim, 12);
        let whole = LatentConfig { q_rank: Some(0), ..SIZES };
        let a = with(|config| config.latent = Some(whole)).resolve(257, 64).unwrap();
        assert_eq!(a.latent.unwrap().q_rank, None);
    }

    #[test]
    fn each_option_that_it_excludes_is_told_with_what_would_do() {
        assert_eq!(
            message(|config| config.kv_heads = Some(2)),
            "model.kv_heads = 2: heads = 4, and latent attention has keys for each; use kv_heads = \
             4"
        );
        assert_eq!(
            message(|config| config.head_dim = Some(16)),
            "model.head_dim = 16: latent attention has widths of its own; leave it out, and use \
             latent.nope_dim = 12"
        );
        assert_eq!(
            message(|config| config.head_dim = Some(4)),
            "model.head_dim = 4: latent attention has widths of its own; leave it out, and use \
             latent.nope_dim = 8"
        );
        assert_eq!(
            message(|config| config.qk_norm = Some(QkNorm::Head)),
            "model.qk_norm = head: latent attention normalizes what queries and keys are made of; \
             use qk_norm: none"
        );
        assert_eq!(
            message(|config| config.positions = Some(Positions::Learned { max: 64 })),
            "model.positions = learned: latent attention turns columns by position; use positions: \
             {rotary: {theta: 10000.0}}"
        );
        assert_eq!(
            message(|config| config.attention_bias = Some(true)),
            "model.attention_bias = true: latent attention has no biases; use attention_bias: false"
        );
        assert_eq!(
            message(|config| config.names = Some(Names::Qwen3Moe)),
            "model.names = qwen3_moe: it has no names for latent attention; use names: deepseek_v3"
        );
    }

    #[test]
    fn each_size_is_told_with_the_nearest_that_would_do() {
        assert_eq!(
            sizes(|latent| latent.rope_dim = Some(7)),
            "model.latent.rope_dim = 7: positions turn pairs of columns; use latent.rope_dim = 6"
        );
        assert_eq!(
            sizes(|latent| latent.rope_dim = Some(0)),
            "model.latent.rope_dim = 0: positions turn pairs of columns; use latent.rope_dim = 2"
        );
        assert_eq!(
            sizes(|latent| latent.kv_rank = Some(0)),
            "model.latent.kv_rank = 0: latent attention needs it; use 1 or more"
        );
        assert_eq!(
            sizes(|latent| (latent.nope_dim, latent.value_dim) = (Some(0), Some(0))),
            "model.latent.nope_dim = 0: latent attention needs it; use 1 or more\n\
             model.latent.value_dim = 0: latent attention needs it; use 1 or more"
        );
        assert_eq!(
            sizes(|latent| latent.kv_rank = None),
            "model.latent.kv_rank is not set; latent attention needs it"
        );
        let huge = sizes(|latent| {
            (latent.kv_rank, latent.value_dim) = (Some(1 << 40), Some(1 << 40));
        });
        assert!(huge.starts_with("the model would have"), "{huge}");
    }

    #[test]
    fn options_of_a_preset_are_excluded_too() {
        let config = ModelConfig {
            preset: Some(Preset::TinyMoe),
            latent: Some(SIZES),
            ..Default::default()
        };
        assert_eq!(
            config.resolve(257, 64).unwrap_err().to_string(),
            "model.kv_heads = 2: heads = 4, and latent attention has keys for each; use kv_heads = \
             4\n\
             model.qk_norm = head: latent attention normalizes what queries and keys are made of; \
             use qk_norm: none\n\
             model.names = qwen3_moe: it has no names for latent attention; use names: deepseek_v3"
        );
        // The width of heads that a preset gives is of heads that are not latent.
        let config = ModelConfig {
            preset: Some(Preset::Qwen3Moe30b),
            kv_heads: Some(32),
            qk_norm: Some(QkNorm::None),
            names: Some(Names::DeepseekV3),
            latent: Some(SIZES),
            ..ModelConfig::default()
        };
        assert_eq!(config.resolve(257, 64).unwrap().head_dim, 12);
    }

    /// The config with what a message says to use.
    fn mend(config: &mut ModelConfig, key: &str, remedy: &str) {
        let latent = config.latent.as_mut().unwrap();
        let number = || remedy.rsplit(' ').next().unwrap().parse::<usize>().ok();
        match key {
            "kv_heads" => config.kv_heads = number(),
            "head_dim" => (config.head_dim, latent.nope_dim) = (None, number()),
            "latent.rope_dim" => latent.rope_dim = number(),
            "latent.kv_rank" => latent.kv_rank = Some(1),
            // Another message may have offered more.
            "latent.nope_dim" => latent.nope_dim = latent.nope_dim.max(Some(1)),
            "latent.value_dim" => latent.value_dim = Some(1),
            "qk_norm" => config.qk_norm = Some(QkNorm::None),
            "positions" => config.positions = Some(Positions::rotary(10_000.0)),
            "attention_bias" => config.attention_bias = Some(false),
            "names" => config.names = Some(Names::DeepseekV3),
            other => panic!("{other}: {remedy}"),
        }
    }

    proptest! {
        /// With all that messages say to use, the whole model passes.
        #[test]
        fn offered_values_are_taken(
            (heads, kv_heads) in (1_usize..9, 1_usize..9),
            head_dim in prop::option::weighted(0.3, 1_usize..40),
            (kv_rank, nope_dim, rope_dim, value_dim) in
                (0_usize..3, 0_usize..20, 0_usize..20, 0_usize..3),
            (normed, learned, biased, other_names) in any::<(bool, bool, bool, bool)>(),
        ) {
            let mut config = with(|config| {
                (config.heads, config.kv_heads) = (Some(heads), Some(kv_heads));
                config.head_dim = head_dim;
                config.qk_norm = normed.then_some(QkNorm::Projection);
                config.positions = learned.then_some(Positions::Learned { max: 64 });
                config.attention_bias = Some(biased);
                config.names = other_names.then_some(Names::Gpt2);
                config.latent = Some(LatentConfig {
                    q_rank: None,
                    kv_rank: Some(kv_rank),
                    nope_dim: Some(nope_dim),
                    rope_dim: Some(rope_dim),
                    value_dim: Some(value_dim),
                    norm_eps: None,
                });
            });
            let Err(error) = config.resolve(257, 64) else { return Ok(()) };
            let all = if let ModelError::Several(all) = error { all } else { vec![error] };
            for error in all {
                let ModelError::Shape { key, remedy, .. } = &error else { panic!("{error}") };
                mend(&mut config, key, remedy);
            }
            let left = config.resolve(257, 64).err();
            prop_assert!(left.is_none(), "{config:?}: {left:?}");
        }
    }
}
