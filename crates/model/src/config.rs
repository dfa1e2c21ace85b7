//! The `model` section of a config: all keys optional, over a preset.
//!
//! `ModelConfig` ──resolve──▶ `Architecture` (all decided).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The ranges of these keys.
pub(crate) const HEADS_MAX: usize = 65_536;
pub(crate) const D_MODEL_MAX: usize = 1_048_576;
pub(crate) const HEAD_DIM_MAX: usize = 65_536;

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
    /// Width of a head; by default `d_model / heads`, and with latent attention
    /// `latent.nope_dim + latent.rope_dim`.
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
    /// How positions enter: `learned: {max: 1024}` or `rotary: {theta: 10000.0}`, whose frequencies
    /// may be stretched by `scaling: {llama3: {…}}` or `scaling: {yarn: {…}}`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub positions: Option<Positions>,
    /// Normalization of queries and keys before attention.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub qk_norm: Option<QkNorm>,
    /// Biases on the attention projections.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attention_bias: Option<bool>,
    /// Multi-head latent attention in place of heads of `head_dim`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latent: Option<LatentConfig>,
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

/// The `model.latent` section: queries, and keys with values, are made of short vectors of each
/// token. Every head has keys and values of its own.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LatentConfig {
    /// Width of the vector that queries are made of; 0, the default, makes them by one matrix.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = D_MODEL_MAX))]
    pub q_rank: Option<usize>,
    /// Width of the vector that keys and values are made of.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = D_MODEL_MAX))]
    pub kv_rank: Option<usize>,
    /// Columns of a query and a key that positions do not turn.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = HEAD_DIM_MAX))]
    pub nope_dim: Option<usize>,
    /// Columns that positions turn, an even number; those of keys are the same for all heads.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 2, max = HEAD_DIM_MAX))]
    pub rope_dim: Option<usize>,
    /// Width of a value.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = HEAD_DIM_MAX))]
    pub value_dim: Option<usize>,
    /// As `model.norm_eps`, which it is by default, for the norms of the two short vectors;
    /// DeepSeek-V3 has 1e-6 there whatever its other norms have.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0))]
    pub norm_eps: Option<f64>,
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
    /// Groups of neighbouring experts; each token chooses in the best of them alone. A divisor of
    /// `experts` that leaves two or more in a group; 1 is no groups.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 32_768))]
    pub groups: Option<usize>,
    /// Groups that each token chooses in: those whose two largest scores have the largest sum.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 32_768))]
    pub top_groups: Option<usize>,
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
    DeepseekV3,
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
    /// Rotation of queries and keys (RoPE), paired as in the published checkpoints: by halves, in
    /// latent attention by neighbours.
    Rotary {
        /// Base of the geometric frequencies.
        #[schemars(range(min = 1.0, max = 1e15))]
        theta: f64,
        /// How the frequencies are stretched for windows longer than those of before.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        scaling: Option<RotaryScaling>,
    },
}

impl Positions {
    /// Rotary positions whose frequencies are not stretched.
    pub const fn rotary(theta: f64) -> Positions {
        Positions::Rotary { theta, scaling: None }
    }
}

/// Windows of positions that a model may have had before its frequencies were stretched.
pub(crate) const WINDOW_MAX: usize = 1 << 30;
/// The largest of the other numbers of a scaling.
pub(crate) const SCALING_MAX: f64 = 1e6;

/// How rotary frequencies are stretched, so that a model of short windows reads longer ones.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum RotaryScaling {
    /// Llama 3.1: planes that turn fewer than `low_freq_factor` times in the window of before turn
    /// `factor` times slower, those that turn more than `high_freq_factor` times stay.
    Llama3 {
        #[schemars(range(min = 1.0, max = SCALING_MAX))]
        factor: f64,
        #[schemars(range(min = 0.0, max = SCALING_MAX))]
        low_freq_factor: f64,
        /// Greater than `low_freq_factor`.
        #[schemars(range(min = 0.0, max = SCALING_MAX))]
        high_freq_factor: f64,
        /// The window of before, in positions.
        #[schemars(range(min = 1, max = WINDOW_MAX))]
        original_max_positions: usize,
    },
    /// YaRN (Peng et al. 2023), of DeepSeek-V3 and others.
    Yarn {
        #[schemars(range(min = 1.0, max = SCALING_MAX))]
        factor: f64,
        /// The window of before, in positions.
        #[schemars(range(min = 1, max = WINDOW_MAX))]
        original_max_positions: usize,
        /// Planes that turn more often in the window of before stay; greater than `beta_slow`.
        #[serde(default = "beta_fast")]
        #[schemars(range(min = 0.0, max = SCALING_MAX))]
        beta_fast: f64,
        /// Planes that turn less often turn `factor` times slower.
        #[serde(default = "beta_slow")]
        #[schemars(range(min = 0.0, max = SCALING_MAX))]
        beta_slow: f64,
        /// Weighs the logarithm of `factor` in what stretches queries and keys; with
        /// `mscale_all_dim` alone.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schemars(range(min = 0.0, max = SCALING_MAX))]
        mscale: Option<f64>,
        /// Weighs it in what divides that; in latent attention its square sharpens the scores.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schemars(range(min = 0.0, max = SCALING_MAX))]
        mscale_all_dim: Option<f64>,
        /// Stretches queries and keys, in the place of all that.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schemars(range(min = 0.0, max = SCALING_MAX))]
        attention_factor: Option<f64>,
        /// Whether the planes between which frequencies blend are rounded outwards to whole ones.
        #[serde(default = "truncate")]
        truncate: bool,
    },
}

fn beta_fast() -> f64 {
    32.0
}

fn beta_slow() -> f64 {
    1.0
}

fn truncate() -> bool {
    true
}

impl RotaryScaling {
    /// The window of before.
    pub fn original(self) -> usize {
        match self {
            RotaryScaling::Llama3 { original_max_positions, .. }
            | RotaryScaling::Yarn { original_max_positions, .. } => original_max_positions,
        }
    }
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

/// A named shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Preset {
    /// About 2 M parameters: eight experts of which each token visits two, one shared expert.
    TinyMoe,
    /// GPT-2 small, 124 M.
    #[serde(rename = "gpt2-124m")]
    Gpt2124m,
    /// Llama 3 8B, of windows of 8192, without scaling; 3.1 has `positions.rotary.scaling` besides:
    /// `llama3` with factor 8, low_freq_factor 1, high_freq_factor 4, original_max_positions 8192.
    #[serde(rename = "llama3-8b")]
    Llama3_8b,
    /// Qwen3-30B-A3B: 128 experts, 8 per token.
    #[serde(rename = "qwen3-moe-30b")]
    Qwen3Moe30b,
    /// OLMoE-1B-7B: 64 experts, 8 per token.
    #[serde(rename = "olmoe-7b")]
    Olmoe7b,
    /// Mixtral 8x7B.
    #[serde(rename = "mixtral-8x7b")]
    Mixtral8x7b,
    /// DeepSeek-V3, 671 B: latent attention; 256 experts in groups, 8 per token, one shared expert.
    /// Positions are scaled (`yarn`) from windows of 4096, as published; it was trained on those
    /// first, with `positions: {rotary: {theta: 10000}}`. Without the layer that predicts a second
    /// token and the balancing loss of each sequence, which are not there.
    DeepseekV3,
}
