//! Named shapes: the quickstart's, and those of published models.

use crate::config::{
    Activation, LatentConfig, ModelConfig, MoeConfig, Names, Norm, Positions, Preset, QkNorm,
    RotaryScaling, Scores,
};

impl Preset {
    /// Every preset, for listings and tests.
    pub const ALL: [Preset; 7] = [
        Preset::TinyMoe,
        Preset::Gpt2124m,
        Preset::Llama3_8b,
        Preset::Qwen3Moe30b,
        Preset::Olmoe7b,
        Preset::Mixtral8x7b,
        Preset::DeepseekV3,
    ];

    /// The sizes, from each model's published configuration file.
    pub fn config(self) -> ModelConfig {
        match self {
            Preset::TinyMoe => tiny_moe(),
            Preset::Gpt2124m => gpt2_124m(),
            Preset::Llama3_8b => llama3_8b(),
            Preset::Qwen3Moe30b => qwen3_moe_30b(),
            Preset::Olmoe7b => olmoe_7b(),
            Preset::Mixtral8x7b => mixtral_8x7b(),
            Preset::DeepseekV3 => deepseek_v3(),
        }
    }
}

fn rotary(names: Names, theta: f64, norm_eps: f64) -> ModelConfig {
    ModelConfig {
        names: Some(names),
        norm: Some(Norm::Rms),
        norm_eps: Some(norm_eps),
        positions: Some(Positions::rotary(theta)),
        activation: Some(Activation::Swiglu),
        tie_embeddings: Some(false),
        ..ModelConfig::default()
    }
}

/// `aux` is the published `router_aux_loss_coef` as it stands; `MoeConfig::aux_loss` says how that
/// differs from the weight here.
fn experts(experts: usize, top_k: usize, d_ff: usize, aux: f64) -> MoeConfig {
    MoeConfig {
        experts: Some(experts),
        top_k: Some(top_k),
        d_ff: Some(d_ff),
        scores: Some(Scores::Softmax),
        normalize_top_k: Some(true),
        aux_loss: Some(aux),
        ..MoeConfig::default()
    }
}

fn tiny_moe() -> ModelConfig {
    ModelConfig {
        layers: Some(4),
        d_model: Some(128),
        heads: Some(4),
        kv_heads: Some(2),
        qk_norm: Some(QkNorm::Head),
        tie_embeddings: Some(true),
        moe: Some(MoeConfig {
            scores: Some(Scores::Sigmoid),
            shared_experts: Some(1),
            balance_rate: Some(0.001),
            ..experts(8, 2, 128, 0.0)
        }),
        ..rotary(Names::Qwen3Moe, 10_000.0, 1e-6)
    }
}

fn gpt2_124m() -> ModelConfig {
    ModelConfig {
        names: Some(Names::Gpt2),
        vocab_size: Some(50_257),
        layers: Some(12),
        d_model: Some(768),
        heads: Some(12),
        kv_heads: Some(12),
        norm: Some(Norm::Layer),
        norm_eps: Some(1e-5),
        positions: Some(Positions::Learned { max: 1024 }),
        attention_bias: Some(true),
        mlp_bias: Some(true),
        activation: Some(Activation::Gelu),
        d_ff: Some(3072),
        tie_embeddings: Some(true),
        ..ModelConfig::default()
    }
}

fn llama3_8b() -> ModelConfig {
    ModelConfig {
        vocab_size: Some(128_256),
        layers: Some(32),
        d_model: Some(4096),
        heads: Some(32),
        kv_heads: Some(8),
        d_ff: Some(14_336),
        ..rotary(Names::Llama, 500_000.0, 1e-5)
    }
}

fn qwen3_moe_30b() -> ModelConfig {
    ModelConfig {
        vocab_size: Some(151_936),
        layers: Some(48),
        d_model: Some(2048),
        heads: Some(32),
        kv_heads: Some(4),
        head_dim: Some(128),
        qk_norm: Some(QkNorm::Head),
        moe: Some(experts(128, 8, 768, 0.001)),
        ..rotary(Names::Qwen3Moe, 1_000_000.0, 1e-6)
    }
}

fn olmoe_7b() -> ModelConfig {
    ModelConfig {
        vocab_size: Some(50_304),
        layers: Some(16),
        d_model: Some(2048),
        heads: Some(16),
        kv_heads: Some(16),
        qk_norm: Some(QkNorm::Projection),
        moe: Some(MoeConfig {
            normalize_top_k: Some(false),
            z_loss: Some(0.001),
            ..experts(64, 8, 1024, 0.01)
        }),
        ..rotary(Names::Olmoe, 10_000.0, 1e-5)
    }
}

fn mixtral_8x7b() -> ModelConfig {
    ModelConfig {
        vocab_size: Some(32_000),
        layers: Some(32),
        d_model: Some(4096),
        heads: Some(32),
        kv_heads: Some(8),
        moe: Some(experts(8, 2, 14_336, 0.02)),
        ..rotary(Names::Mixtral, 1_000_000.0, 1e-5)
    }
}

/// The paper (arXiv 2412.19437, §4.2) initializes with 0.006, its readers' default is 0.02. The
/// loss that balances each sequence (weight 1e-4) is another one than `aux_loss`, which is off:
/// the biases balance. Frequencies are stretched as in the published file, which is of the model
/// whose windows had grown beyond 4096 (§4.3).
fn deepseek_v3() -> ModelConfig {
    let yarn = RotaryScaling::Yarn {
        factor: 40.0,
        original_max_positions: 4096,
        beta_fast: 32.0,
        beta_slow: 1.0,
        mscale: Some(1.0),
        mscale_all_dim: Some(1.0),
        attention_factor: None,
        truncate: true,
    };
    ModelConfig {
        vocab_size: Some(129_280),
        layers: Some(61),
        d_model: Some(7168),
        heads: Some(128),
        d_ff: Some(18_432),
        init_std: Some(0.006),
        latent: Some(LatentConfig {
            q_rank: Some(1536),
            kv_rank: Some(512),
            nope_dim: Some(128),
            rope_dim: Some(64),
            value_dim: Some(128),
            norm_eps: Some(1e-6),
        }),
        moe: Some(MoeConfig {
            scores: Some(Scores::Sigmoid),
            groups: Some(8),
            top_groups: Some(4),
            route_scale: Some(2.5),
            balance_rate: Some(0.001),
            shared_experts: Some(1),
            first_dense_layers: Some(3),
            ..experts(256, 8, 2048, 0.0)
        }),
        positions: Some(Positions::Rotary { theta: 10_000.0, scaling: Some(yarn) }),
        ..rotary(Names::DeepseekV3, 10_000.0, 1e-6)
    }
}
