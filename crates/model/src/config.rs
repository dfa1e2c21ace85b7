//! What the config says of a model, and the architecture that follows from it.
//!
//! `ModelConfig` (all keys optional, over a preset) ──resolve──▶ `Architecture` (all decided).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::check::{D_MODEL_MAX, Draft, HEAD_DIM_MAX, HEADS_MAX};
use crate::{ModelError, Preset};

/// The `model` section of a config: a preset and whatever differs from it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ModelConfig {
    /// The shape to start from; every other key of this section overrides it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preset: Option<Preset>,
    /// Whose tensor names checkpoints use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub names: Option<Names>,
    /// Rows of the embedding table; by default the tokenizer's vocabulary, rounded up to 64.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 2, max = 16_777_216))]
    pub vocab_size: Option<usize>,
    /// Number of transformer blocks.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000))]
    pub layers: Option<usize>,
    /// Width of the residual stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = D_MODEL_MAX))]
    pub d_model: Option<usize>,
    /// Query heads.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = HEADS_MAX))]
    pub heads: Option<usize>,
    /// Key/value heads; a divisor of `heads` (grouped-query attention).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = HEADS_MAX))]
    pub kv_heads: Option<usize>,
    /// Width of a head; by default `d_model / heads`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = HEAD_DIM_MAX))]
    pub head_dim: Option<usize>,
    /// Normalization of the residual stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub norm: Option<Norm>,
    /// Added to the variance under the root.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0))]
    pub norm_eps: Option<f64>,
    /// How positions enter: `learned: {max: 1024}` or `rotary: {theta: 10000.0}`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub positions: Option<Positions>,
    /// Normalization of queries and keys before attention.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub qk_norm: Option<QkNorm>,
    /// Biases on the attention projections.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attention_bias: Option<bool>,
    /// Biases on the MLP projections (GELU MLPs only).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mlp_bias: Option<bool>,
    /// The MLP's non-linearity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub activation: Option<Activation>,
    /// Width of a dense MLP.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 16_777_216))]
    pub d_ff: Option<usize>,
    /// Mixture of experts in place of the dense MLP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub moe: Option<MoeConfig>,
    /// One table for embedding and output projection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tie_embeddings: Option<bool>,
    /// Standard deviation of the initial weights; projections back to the residual stream get it
    /// divided by √(2·layers), as in GPT-2.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0))]
    pub init_std: Option<f64>,
}

/// The `model.moe` section.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MoeConfig {
    /// Experts per layer.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65_536))]
    pub experts: Option<usize>,
    /// Experts that each token visits.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65_536))]
    pub top_k: Option<usize>,
    /// Width of one expert.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 16_777_216))]
    pub d_ff: Option<usize>,
    /// How router logits become scores.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scores: Option<Scores>,
    /// Divide the chosen scores by their sum.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub normalize_top_k: Option<bool>,
    /// Factor on the chosen scores.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0))]
    pub route_scale: Option<f64>,
    /// Step of the loss-free balancing bias per training step; 0 switches it off.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0))]
    pub balance_rate: Option<f64>,
    /// Weight of the load-balancing loss; 0 switches it off. The loss of a layer is
    /// experts · Σ (share of choices · mean score), 1 when balanced, since the shares of all
    /// experts sum to 1, and layers are added. Hugging Face's `router_aux_loss_coef` weighs a loss
    /// whose shares sum to `top_k`, with all layers pooled into one mean: that number times
    /// `top_k`, divided by the layers with experts, is about the same pull.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0))]
    pub aux_loss: Option<f64>,
    /// Weight of the router z-loss; 0 switches it off.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0))]
    pub z_loss: Option<f64>,
    /// Experts that every token visits, each `d_ff` wide.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 1_024))]
    pub shared_experts: Option<usize>,
    /// Leading layers that keep a dense MLP; fewer than `layers`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 9_999))]
    pub first_dense_layers: Option<usize>,
}

/// Tensor names of a published family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Names {
    Gpt2,
    Llama,
    Qwen3Moe,
    Olmoe,
    Mixtral,
}

/// Normalization of the residual stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Norm {
    /// x / rms(x) · gain.
    Rms,
    /// (x − mean) / std · gain + bias.
    Layer,
}

/// How positions enter.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Positions {
    /// A table added to the token embedding.
    Learned {
        /// Rows of the table: the longest window.
        #[schemars(range(min = 1, max = 16_777_216))]
        max: usize,
    },
    /// Rotation of query and key halves (RoPE, half-split as in the published checkpoints).
    Rotary {
        /// Base of the geometric frequencies.
        #[schemars(range(min = 1.0, max = 1e15))]
        theta: f64,
    },
}

/// Normalization of queries and keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum QkNorm {
    None,
    /// RMS over each head, one gain of `head_dim` (Qwen3).
    Head,
    /// RMS over the whole projection, one gain of its width (OLMoE).
    Projection,
}

/// The MLP's non-linearity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// silu(gate) · up.
    Swiglu,
    /// GELU in its tanh form, as GPT-2.
    Gelu,
}

/// How router logits become scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Scores {
    Softmax,
    Sigmoid,
}

/// A mixture of experts, all decided.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Moe {
    pub experts: usize,
    pub top_k: usize,
    pub d_ff: usize,
    pub scores: Scores,
    pub normalize_top_k: bool,
    pub route_scale: f64,
    pub balance_rate: f64,
    pub aux_loss: f64,
    pub z_loss: f64,
    pub shared_experts: usize,
    pub first_dense_layers: usize,
}

/// The feed-forward part of one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feed {
    Dense,
    Experts,
}

/// A model, all decided.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Architecture {
    pub names: Names,
    pub vocab_size: usize,
    pub layers: usize,
    pub d_model: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub norm: Norm,
    pub norm_eps: f64,
    pub positions: Positions,
    pub qk_norm: QkNorm,
    pub attention_bias: bool,
    pub mlp_bias: bool,
    pub activation: Activation,
    pub d_ff: usize,
    pub moe: Option<Moe>,
    pub tie_embeddings: bool,
    pub init_std: f64,
}

impl ModelConfig {
    /// Decides everything: this section over its preset over plain defaults.
    ///
    /// `tokenizer_vocab` is the tokenizer's number of tokens; `seq_len` the window length.
    ///
    /// # Errors
    /// A size that nothing gives; sizes that do not divide; a vocabulary smaller than the
    /// tokenizer's; a window longer than the position table; a mixture without a layer; more
    /// parameters than can be addressed.
    pub fn resolve(
        &self,
        tokenizer_vocab: usize,
        seq_len: usize,
    ) -> Result<Architecture, ModelError> {
        let base = self.preset.map(Preset::config).unwrap_or_default();
        let need = |value: Option<usize>, key| {
            let hint = "set it, or start from a preset with model.preset";
            value.ok_or(ModelError::Missing { key, hint })
        };
        let d_model = need(self.d_model.or(base.d_model), "d_model")?;
        let heads = need(self.heads.or(base.heads), "heads")?;
        // A preset's head width belongs to its own width and heads.
        let inherited = base.head_dim.filter(|_| self.d_model.is_none() && self.heads.is_none());
        let given = self.head_dim.or(inherited);
        let moe = self.moe(&base)?;
        let d_ff = self.d_ff.or(base.d_ff);
        let all_experts = moe.as_ref().is_some_and(|moe| moe.first_dense_layers == 0);
        let architecture = Architecture {
            names: self.names.or(base.names).unwrap_or(Names::Llama),
            vocab_size: self
                .vocab_size
                .or(base.vocab_size)
                .unwrap_or(tokenizer_vocab.next_multiple_of(64)),
            layers: need(self.layers.or(base.layers), "layers")?,
            d_model,
            heads,
            kv_heads: self.kv_heads.or(base.kv_heads).unwrap_or(heads),
            head_dim: given.unwrap_or(0),
            norm: self.norm.or(base.norm).unwrap_or(Norm::Rms),
            norm_eps: self.norm_eps.or(base.norm_eps).unwrap_or(1e-5),
            positions: self
                .positions
                .or(base.positions)
                .unwrap_or(Positions::Rotary { theta: 10_000.0 }),
            qk_norm: self.qk_norm.or(base.qk_norm).unwrap_or(QkNorm::None),
            attention_bias: self.attention_bias.or(base.attention_bias).unwrap_or(false),
            mlp_bias: self.mlp_bias.or(base.mlp_bias).unwrap_or(false),
            activation: self.activation.or(base.activation).unwrap_or(Activation::Swiglu),
            d_ff: if all_experts { d_ff.unwrap_or(0) } else { need(d_ff, "d_ff")? },
            moe,
            tie_embeddings: self.tie_embeddings.or(base.tie_embeddings).unwrap_or(false),
            init_std: self.init_std.or(base.init_std).unwrap_or(0.02),
        };
        let mut draft = Draft {
            architecture,
            gives_head_dim: self.head_dim.is_some(),
            head_dim_follows: given.is_none(),
            tokenizer_vocab,
            seq_len,
        };
        draft.follow();
        draft.check()
    }

    fn moe(&self, base: &ModelConfig) -> Result<Option<Moe>, ModelError> {
        let empty = MoeConfig::default();
        let (own, base) = match (&self.moe, &base.moe) {
            (None, None) => return Ok(None),
            (own, base) => (own.as_ref().unwrap_or(&empty), base.as_ref().unwrap_or(&empty)),
        };
        let need = |value: Option<usize>, key| {
            let hint = "a mixture of experts needs it";
            value.ok_or(ModelError::Missing { key, hint })
        };
        Ok(Some(Moe {
            experts: need(own.experts.or(base.experts), "moe.experts")?,
            top_k: need(own.top_k.or(base.top_k), "moe.top_k")?,
            d_ff: need(own.d_ff.or(base.d_ff), "moe.d_ff")?,
            scores: own.scores.or(base.scores).unwrap_or(Scores::Softmax),
            normalize_top_k: own.normalize_top_k.or(base.normalize_top_k).unwrap_or(true),
            route_scale: own.route_scale.or(base.route_scale).unwrap_or(1.0),
            balance_rate: own.balance_rate.or(base.balance_rate).unwrap_or(0.0),
            aux_loss: own.aux_loss.or(base.aux_loss).unwrap_or(0.0),
            z_loss: own.z_loss.or(base.z_loss).unwrap_or(0.0),
            shared_experts: own.shared_experts.or(base.shared_experts).unwrap_or(0),
            first_dense_layers: own.first_dense_layers.or(base.first_dense_layers).unwrap_or(0),
        }))
    }
}

impl Architecture {
    /// What layer `layer` has after attention.
    pub fn feed(&self, layer: usize) -> Feed {
        match &self.moe {
            Some(moe) if layer >= moe.first_dense_layers => Feed::Experts,
            _ => Feed::Dense,
        }
    }

    /// Layers with experts.
    pub fn moe_layers(&self) -> usize {
        (0..self.layers).filter(|&layer| self.feed(layer) == Feed::Experts).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_preset_can_be_narrowed() {
        let config = ModelConfig {
            preset: Some(Preset::Qwen3Moe30b),
            layers: Some(2),
            vocab_size: Some(512),
            ..ModelConfig::default()
        };
        let architecture = config.resolve(257, 64).unwrap();
        assert_eq!((architecture.layers, architecture.head_dim), (2, 128));
        assert_eq!(architecture.moe.unwrap().experts, 128);
    }

    #[test]
    fn refusals_name_what_would_divide() {
        let config = ModelConfig {
            preset: Some(Preset::TinyMoe),
            d_model: Some(100),
            heads: Some(6),
            ..ModelConfig::default()
        };
        let error = config.resolve(257, 64).unwrap_err();
        assert_eq!(
            error.to_string(),
            "model.d_model = 100: heads = 6 does not divide it; use heads = 2, or d_model = 96"
        );
    }

    #[test]
    fn a_mixture_needs_a_layer() {
        let moe = MoeConfig { first_dense_layers: Some(4), ..MoeConfig::default() };
        let config =
            ModelConfig { preset: Some(Preset::TinyMoe), moe: Some(moe), ..ModelConfig::default() };
        // The preset has four layers, all of them with experts, and so no width of a dense MLP.
        let config = ModelConfig { d_ff: Some(128), ..config };
        assert_eq!(
            config.resolve(257, 64).unwrap_err().to_string(),
            "model.moe.first_dense_layers = 4: layers = 4 leaves no layer with experts; \
             use at most 3"
        );
    }

    #[test]
    fn a_model_too_large_to_address_is_counted() {
        let wide = |layers, experts, d_ff| ModelConfig {
            preset: Some(Preset::Mixtral8x7b),
            layers: Some(layers),
            moe: Some(MoeConfig { experts: Some(experts), d_ff, ..MoeConfig::default() }),
            ..ModelConfig::default()
        };
        let message = |config: ModelConfig| config.resolve(257, 64).unwrap_err().to_string();
        // 10 000 layers of 8·3·4096·16 777 216 in experts, 32 768 in the router, 41 943 040 in
        // attention and 8192 in norms; twice 32 000·4096 outside, and a norm.
        let error = message(wide(10_000, 8, Some(16_777_216)));
        assert!(error.contains("16493094518788096"), "{error}");
        let error = message(wide(10_000, 65_536, Some(1)));
        assert!(error.contains("tensors"), "{error}");
    }

    #[test]
    fn a_vocabulary_smaller_than_the_tokenizers_is_refused() {
        let config = ModelConfig {
            preset: Some(Preset::TinyMoe),
            vocab_size: Some(256),
            ..ModelConfig::default()
        };
        let error = config.resolve(257, 64).unwrap_err().to_string();
        assert!(error.contains("the tokenizer has 257 tokens; use 320 or more"), "{error}");
    }
}
