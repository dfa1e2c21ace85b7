//! Numbers that must fit each other, and the nearest ones that do.
//!
//! A value is offered only after the whole architecture has been through the check with it. Where
//! no one value passes, two are offered together. Mistakes that have nothing to do with each other
//! are reported together, and looked at apart.

mod choice;
mod latent;
mod rotary;

use crate::ModelError;
use crate::architecture::Architecture;
use crate::config::{Activation, D_MODEL_MAX, HEAD_DIM_MAX, HEADS_MAX, Positions};

/// An architecture whose numbers have been decided, and not compared yet.
#[derive(Debug, Clone)]
pub(crate) struct Draft {
    pub architecture: Architecture,
    /// The config gives the width of a head; what a preset gives belongs to its own `d_model` and
    /// `heads`, and goes with either.
    pub gives_head_dim: bool,
    /// `head_dim` is what latent attention makes it, or `d_model / heads`, or 0 where that is not
    /// whole.
    pub head_dim_follows: bool,
    pub tokenizer_vocab: usize,
    pub seq_len: usize,
}

/// Conditions that every architecture meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    HeadsDivideModel,
    KvHeadsDivideHeads,
    TableHoldsTokens,
    TableHoldsPositions,
    HalvesOfHead,
    BiasesOfMlp,
    DenseLayers,
    ExpertsAreSwiglu,
}

impl Rule {
    /// Whether it compares what a [`Key`] stands for; keys outside mend the others.
    fn is_of_heads(self) -> bool {
        matches!(self, Rule::HeadsDivideModel | Rule::KvHeadsDivideHeads | Rule::HalvesOfHead)
    }
}

/// A number of a [`Draft`] that can be offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Key {
    DModel,
    Heads,
    KvHeads,
    HeadDim,
}

impl Key {
    const ALL: [Key; 4] = [Key::KvHeads, Key::HeadDim, Key::Heads, Key::DModel];

    fn name(self) -> &'static str {
        match self {
            Key::DModel => "d_model",
            Key::Heads => "heads",
            Key::KvHeads => "kv_heads",
            Key::HeadDim => "head_dim",
        }
    }
}

impl Draft {
    /// Compares everything.
    ///
    /// # Errors
    /// The rules that are broken, with values that mend them; a model that is too large.
    pub fn check(self) -> Result<Architecture, ModelError> {
        let broken = self.broken();
        // Of the heads one rule: the others may follow from it, and are mended with it.
        let of_heads = broken.iter().find(|rule| rule.is_of_heads());
        let others = broken.iter().filter(|rule| !rule.is_of_heads());
        let refused = of_heads.into_iter().chain(others).map(|&rule| self.refusal(rule));
        let of_latent = latent::refusals(&self);
        let of_rotary = rotary::refusals(&self);
        let of_experts = self.architecture.moe.as_ref().and_then(choice::refusal);
        let too_large = crate::transformer::check_size(&self.architecture).err();
        let mut all: Vec<ModelError> =
            refused.chain(of_latent).chain(of_rotary).chain(of_experts).chain(too_large).collect();
        match all.len() {
            0 => Ok(self.architecture),
            1 => Err(all.remove(0)),
            _ => Err(ModelError::Several(all)),
        }
    }

    /// The rules that are broken, those first that others follow from.
    fn broken(&self) -> Vec<Rule> {
        let a = &self.architecture;
        let divides = |part: usize, whole: usize| part > 0 && whole.is_multiple_of(part);
        let swiglu = a.activation == Activation::Swiglu;
        let moe = a.moe.as_ref();
        // Heads of latent attention have rules of their own.
        let plain = a.latent.is_none();
        let follows = plain && self.head_dim_follows;
        let all = [
            (Rule::HeadsDivideModel, follows && !divides(a.heads, a.d_model)),
            (Rule::KvHeadsDivideHeads, plain && !divides(a.kv_heads, a.heads)),
            (Rule::TableHoldsTokens, a.vocab_size < self.tokenizer_vocab),
            (
                Rule::TableHoldsPositions,
                matches!(a.positions, Positions::Learned { max } if self.seq_len > max),
            ),
            (
                Rule::HalvesOfHead,
                plain
                    && matches!(a.positions, Positions::Rotary { .. })
                    && !a.head_dim.is_multiple_of(2),
            ),
            (Rule::BiasesOfMlp, a.mlp_bias && swiglu),
            (Rule::DenseLayers, moe.is_some_and(|moe| moe.first_dense_layers >= a.layers)),
            (Rule::ExpertsAreSwiglu, moe.is_some() && !swiglu),
        ];
        all.into_iter().filter(|(_, broken)| *broken).map(|(rule, _)| rule).collect()
    }

    fn refusal(&self, rule: Rule) -> ModelError {
        let a = &self.architecture;
        let dense = a.moe.as_ref().map_or(0, |moe| moe.first_dense_layers);
        let learned = if let Positions::Learned { max } = a.positions { max } else { 0 };
        let (tokens, seq_len) = (self.tokenizer_vocab, self.seq_len);
        let (key, value, problem, remedy) = match rule {
            Rule::HeadsDivideModel => (
                "d_model",
                a.d_model.to_string(),
                format!("heads = {} does not divide it", a.heads),
                self.offers(&[Key::Heads, Key::DModel]),
            ),
            Rule::KvHeadsDivideHeads => (
                "heads",
                a.heads.to_string(),
                format!("kv_heads = {} does not divide it", a.kv_heads),
                self.offers(&[Key::KvHeads, Key::Heads]),
            ),
            Rule::TableHoldsTokens => (
                "vocab_size",
                a.vocab_size.to_string(),
                format!("the tokenizer has {tokens} tokens"),
                format!("use {} or more", tokens.next_multiple_of(64)),
            ),
            Rule::TableHoldsPositions => (
                "positions.learned.max",
                learned.to_string(),
                format!("the window has {seq_len} positions"),
                format!("use {seq_len} or more, or a shorter batch.seq_len"),
            ),
            Rule::HalvesOfHead => (
                "head_dim",
                a.head_dim.to_string(),
                "rotary positions rotate two halves".to_owned(),
                self.offers(&[Key::HeadDim, Key::Heads]),
            ),
            Rule::BiasesOfMlp => (
                "mlp_bias",
                "true".to_owned(),
                "a SwiGLU MLP has no biases".to_owned(),
                match a.moe {
                    // Experts need it.
                    Some(_) => "use mlp_bias: false".to_owned(),
                    None => "use activation: gelu, or mlp_bias: false".to_owned(),
                },
            ),
            Rule::DenseLayers => (
                "moe.first_dense_layers",
                dense.to_string(),
                format!("layers = {} leaves no layer with experts", a.layers),
                format!("use at most {}", a.layers.saturating_sub(1)),
            ),
            Rule::ExpertsAreSwiglu => (
                "activation",
                "gelu".to_owned(),
                "experts are SwiGLU MLPs".to_owned(),
                match a.mlp_bias {
                    true => "use activation: swiglu with mlp_bias: false".to_owned(),
                    false => "use activation: swiglu".to_owned(),
                },
            ),
        };
        ModelError::Shape { key, value, problem, remedy }
    }

    /// `use heads = 4, or d_model = 96`: of each key the nearest value with which the heads fit.
    /// Where there is none, the nearest with one other: `use d_model = 100 with kv_heads = 5`.
    fn offers(&self, keys: &[Key]) -> String {
        let named = |key: Key, value: usize| format!("{} = {value}", key.name());
        let one = |&key: &Key| Some(named(key, self.nearest(key)?));
        let mut found: Vec<String> = keys.iter().filter_map(one).collect();
        if found.is_empty() {
            let two = |&key: &Key| {
                let (value, other, beside) = self.nearest_pair(key)?;
                Some(format!("{} with {}", named(key, value), named(other, beside)))
            };
            found = keys.iter().filter_map(two).collect();
        }
        match found.is_empty() {
            true => "these two conflict whatever the others are: change both".into(),
            false => format!("use {}", found.join(", or ")),
        }
    }

    fn nearest(&self, key: Key) -> Option<usize> {
        self.by_distance(key).find(|&value| self.with(key, value).heads_fit(self))
    }

    /// A value of `key`, and what another key must be beside it.
    fn nearest_pair(&self, key: Key) -> Option<(usize, Key, usize)> {
        self.by_distance(key).find_map(|value| {
            let draft = self.with(key, value);
            // A width that follows is not set beside what it follows from.
            let others = Key::ALL
                .into_iter()
                .filter(|&other| other != key && (other != Key::HeadDim || self.gives_head_dim));
            let mut found = others.filter_map(|other| {
                let fits = |&beside: &usize| draft.with(other, beside).heads_fit(self);
                Some((value, other, draft.by_distance(other).find(fits)?))
            });
            found.next()
        })
    }

    /// Other values of `key`, the nearest first.
    fn by_distance(&self, key: Key) -> impl Iterator<Item = usize> + use<> {
        let now = self.value(key);
        let mut candidates = self.candidates(key);
        candidates.sort_unstable_by_key(|&value| (value.abs_diff(now), value));
        candidates.dedup();
        candidates.into_iter().filter(move |&value| value != now)
    }

    /// Whether this passes the check, but for what its heads cannot mend in the draft `before` it.
    fn heads_fit(&self, before: &Draft) -> bool {
        let size = |draft: &Draft| crate::transformer::check_size(&draft.architecture);
        !self.broken().iter().any(|rule| rule.is_of_heads())
            && (size(self).is_ok() || size(before).is_err())
    }

    fn value(&self, key: Key) -> usize {
        let a = &self.architecture;
        match key {
            Key::DModel => a.d_model,
            Key::Heads => a.heads,
            Key::KvHeads => a.kv_heads,
            Key::HeadDim => a.head_dim,
        }
    }

    /// This draft as if the config gave `key` that value.
    fn with(&self, key: Key, value: usize) -> Draft {
        let mut draft = self.clone();
        let a = &mut draft.architecture;
        match key {
            Key::DModel => a.d_model = value,
            Key::Heads => a.heads = value,
            Key::KvHeads => a.kv_heads = value,
            Key::HeadDim => a.head_dim = value,
        }
        match key {
            Key::KvHeads => {}
            Key::HeadDim => (draft.gives_head_dim, draft.head_dim_follows) = (true, false),
            Key::DModel | Key::Heads => draft.head_dim_follows = !draft.gives_head_dim,
        }
        draft.follow();
        draft
    }

    /// Sets a width of heads that follows from other numbers.
    pub fn follow(&mut self) {
        let a = &mut self.architecture;
        if !self.head_dim_follows {
            return;
        }
        if let Some(latent) = a.latent {
            a.head_dim = latent.key_dim();
        } else {
            let divides = a.heads > 0 && a.d_model.is_multiple_of(a.heads);
            a.head_dim = if divides { a.d_model / a.heads } else { 0 };
        }
    }

    /// Values among which a fitting one is looked for.
    fn candidates(&self, key: Key) -> Vec<usize> {
        let a = &self.architecture;
        let all = match key {
            Key::DModel => multiples_around(a.d_model, a.heads, D_MODEL_MAX),
            Key::Heads if self.gives_head_dim => multiples_around(a.heads, a.kv_heads, HEADS_MAX),
            Key::Heads => divisors(a.d_model).into_iter().filter(|&d| d <= HEADS_MAX).collect(),
            Key::KvHeads => divisors(a.heads),
            Key::HeadDim => vec![a.head_dim.saturating_sub(1), a.head_dim + 1],
        };
        let most = match key {
            Key::DModel => D_MODEL_MAX,
            Key::Heads | Key::KvHeads => HEADS_MAX,
            Key::HeadDim => HEAD_DIM_MAX,
        };
        all.into_iter().filter(|value| (1..=most).contains(value)).collect()
    }
}

/// Multiples of `of` on both sides of `value`, an even one of each among them, up to `most`.
fn multiples_around(value: usize, of: usize, most: usize) -> Vec<usize> {
    let near = value / of.max(1);
    let all = (near.saturating_sub(2)..=near + 3).filter_map(|n| n.checked_mul(of.max(1)));
    // Where `value` is beyond the range, the last ones inside it.
    let last = most / of.max(1);
    let last = (last.saturating_sub(1)..=last).map(|n| n * of.max(1));
    all.chain(last).filter(|&multiple| multiple <= most).collect()
}

/// Every divisor up to the root has a partner above it.
fn divisors(value: usize) -> Vec<usize> {
    let low = (1..=value.isqrt()).filter(|d| value.is_multiple_of(*d));
    low.flat_map(|d| [d, value / d]).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{ModelConfig, Preset, QkNorm};

    #[test]
    fn every_divisor_is_found_by_its_partner() {
        for value in 1..200 {
            let mut found = divisors(value);
            found.sort_unstable();
            found.dedup();
            assert_eq!(found, (1..=value).filter(|d| value % d == 0).collect::<Vec<_>>());
        }
    }

    fn shape() -> impl Strategy<Value = ModelConfig> {
        let size = |most: usize| prop::option::weighted(0.7, 1..most);
        let presets = [Preset::TinyMoe, Preset::Gpt2124m, Preset::Qwen3Moe30b];
        (
            prop::sample::select(presets.to_vec()),
            size(300),
            size(40),
            size(40),
            prop::option::weighted(0.3, 1_usize..80),
            prop::option::of(Just(QkNorm::Head)),
        )
            .prop_map(|(preset, d_model, heads, kv_heads, head_dim, qk_norm)| {
                let (layers, preset) = (Some(1), Some(preset));
                ModelConfig {
                    preset,
                    layers,
                    d_model,
                    heads,
                    kv_heads,
                    head_dim,
                    qk_norm,
                    ..ModelConfig::default()
                }
            })
    }

    /// The config with `key = value, …` set as a message says.
    fn changed(config: &ModelConfig, offer: &str) -> ModelConfig {
        let mut changed = config.clone();
        for word in offer.split(" with ") {
            let (key, value) = word.split_once(" = ").expect("a key and its value");
            let value: Option<usize> = Some(value.parse().unwrap());
            match key {
                "d_model" => changed.d_model = value,
                "heads" => changed.heads = value,
                "kv_heads" => changed.kv_heads = value,
                "head_dim" => changed.head_dim = value,
                other => panic!("{other}"),
            }
        }
        changed
    }

    #[test]
    fn two_numbers_are_offered_where_one_is_not_enough() {
        let preset = Some(Preset::TinyMoe);
        let message = |d_model, heads, head_dim| {
            let (d_model, heads) = (Some(d_model), Some(heads));
            let config = ModelConfig { preset, d_model, heads, head_dim, ..ModelConfig::default() };
            config.resolve(257, 64).unwrap_err().to_string()
        };
        assert_eq!(
            message(102, 5, None),
            "model.d_model = 102: heads = 5 does not divide it; use heads = 6 with d_model = 96, \
             or d_model = 100 with kv_heads = 1"
        );
        assert_eq!(
            message(1, 3, Some(3)),
            "model.heads = 3: kv_heads = 2 does not divide it; use kv_heads = 1 with head_dim = 2, \
             or heads = 2 with head_dim = 2"
        );
    }

    #[test]
    fn mistakes_apart_from_each_other_are_told_together() {
        let config = ModelConfig {
            preset: Some(Preset::TinyMoe),
            heads: Some(3),
            vocab_size: Some(100),
            ..ModelConfig::default()
        };
        assert_eq!(
            config.resolve(257, 64).unwrap_err().to_string(),
            "model.d_model = 128: heads = 3 does not divide it; use heads = 2\n\
             model.vocab_size = 100: the tokenizer has 257 tokens; use 320 or more"
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        /// With whatever a message says to use, the whole model passes.
        #[test]
        fn offered_values_are_taken(config in shape()) {
            let Err(ModelError::Shape { remedy, .. }) = config.resolve(257, 64) else {
                return Ok(());
            };
            let offers = remedy.strip_prefix("use ");
            prop_assert!(offers.is_some(), "{config:?}: {remedy}");
            for offer in offers.unwrap().split(", or ") {
                let left = changed(&config, offer).resolve(257, 64).err();
                prop_assert!(left.is_none(), "{config:?}: {offer}: {left:?}");
            }
        }
    }
}
