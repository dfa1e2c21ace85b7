//! A model, all decided: what a config resolves to.

use layout::HeadRows;
use serde::Serialize;

use crate::config::{Activation, Names, Norm, Positions, QkNorm, Scores};

/// A mixture of experts, all decided.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Moe {
    pub experts: usize,
    pub top_k: usize,
    pub groups: usize,
    pub top_groups: usize,
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

/// Latent attention, all decided.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Latent {
    /// `None`: queries are made by one matrix.
    pub q_rank: Option<usize>,
    pub kv_rank: usize,
    pub nope_dim: usize,
    pub rope_dim: usize,
    pub value_dim: usize,
    /// Of the norms of the short vectors; `None`: as all others have it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub norm_eps: Option<f64>,
}

impl Latent {
    /// Width of queries and keys.
    pub fn key_dim(self) -> usize {
        self.nope_dim + self.rope_dim
    }
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
    /// Width of queries and keys; of values too, unless attention is latent.
    pub head_dim: usize,
    pub norm: Norm,
    pub norm_eps: f64,
    pub positions: Positions,
    pub qk_norm: QkNorm,
    pub attention_bias: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latent: Option<Latent>,
    pub mlp_bias: bool,
    pub activation: Activation,
    pub d_ff: usize,
    pub moe: Option<Moe>,
    pub tie_embeddings: bool,
    pub init_std: f64,
}

impl Architecture {
    /// The block that follows attention in layer `layer`.
    pub fn feed(&self, layer: usize) -> Feed {
        match &self.moe {
            Some(moe) if layer >= moe.first_dense_layers => Feed::Experts,
            _ => Feed::Dense,
        }
    }

    /// Rows and columns of the attention projections that belong to one head.
    pub fn head_rows(&self) -> HeadRows {
        let Some(latent) = self.latent else { return HeadRows::of(self.head_dim) };
        let key_value = latent.nope_dim + latent.value_dim;
        HeadRows { query: latent.key_dim(), key_value, value: latent.value_dim }
    }

    /// Layers with experts.
    pub fn moe_layers(&self) -> usize {
        (0..self.layers).filter(|&layer| self.feed(layer) == Feed::Experts).count()
    }
}
