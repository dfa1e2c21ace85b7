//! Presets narrowed to what a test can compute.

use model::config::{LatentConfig, MoeConfig};
use model::{ModelConfig, Preset};

/// A small model.
pub fn small() -> ModelConfig {
    ModelConfig {
        vocab_size: Some(96),
        layers: Some(2),
        d_model: Some(24),
        heads: Some(4),
        kv_heads: Some(4),
        head_dim: Some(8),
        d_ff: Some(40),
        init_std: Some(0.25),
        ..ModelConfig::default()
    }
}

/// No two of its widths are equal.
pub const LATENT: LatentConfig = LatentConfig {
    q_rank: Some(20),
    kv_rank: Some(12),
    nope_dim: Some(8),
    rope_dim: Some(6),
    value_dim: Some(10),
    // Another than elsewhere, and one that no two experts tie with.
    norm_eps: Some(0.01),
};

/// Two layers of a preset with every feature it has, with mixtures as `experts` makes them.
pub fn narrowed(preset: Preset, experts: fn(&MoeConfig) -> MoeConfig) -> ModelConfig {
    let full = preset.config();
    let grouped = full.kv_heads.is_some_and(|kv_heads| Some(kv_heads) != full.heads);
    ModelConfig {
        preset: Some(preset),
        kv_heads: Some(if grouped { 2 } else { 4 }),
        head_dim: full.latent.is_none().then_some(8),
        latent: full.latent.as_ref().map(|_| LATENT),
        moe: full.moe.as_ref().map(experts),
        ..small()
    }
}
