//! The published families: one table each. Keys and defaults are those of the configuration classes
//! of Hugging Face's transformers, and of the files that each model was published with.

use super::table::Lacking::{Is, Nothing, OfKey, Refuse, Times};
use super::table::Row::{Any, Only, Ours, Read, Rotary, Same, Word};
use super::table::{Family, Row};

/// All of them.
pub(crate) static FAMILIES: [&Family; 6] =
    [&GPT2, &LLAMA, &QWEN3_MOE, &OLMOE, &MIXTRAL, &DEEPSEEK_V3];

const SILU: Row = Word("hidden_act", "activation", &[("silu", "swiglu")]);
const LAYERS: Row = Same("num_hidden_layers", "layers", Refuse);
const WIDTH: Row = Same("hidden_size", "d_model", Refuse);
const HEADS: Row = Same("num_attention_heads", "heads", Refuse);
const KV_HEADS: Row = Same("num_key_value_heads", "kv_heads", OfKey("num_attention_heads"));
const HEAD_DIM: Row = Same("head_dim", "head_dim", Nothing);
const VOCABULARY: Row = Same("vocab_size", "vocab_size", Refuse);
const D_FF: Row = Same("intermediate_size", "d_ff", Refuse);
const UNTIED: Row = Same("tie_word_embeddings", "tie_embeddings", Is("false"));
const WINDOW: Row = Same("max_position_embeddings", "seq_len", Nothing);
const SPREAD: Row = Same("initializer_range", "init_std", Is("0.02"));
const NO_DROPOUT: Row = Only("attention_dropout", &["0.0"]);
const AUX_LOSS: Row = Same("router_aux_loss_coef", "moe.aux_loss", Is("0.0"));
const TOP_K: Row = Same("num_experts_per_tok", "moe.top_k", Refuse);
const NORMALIZE: Row = Same("norm_topk_prob", "moe.normalize_top_k", Is("false"));
const BIASED: Row = Same("attention_bias", "attention_bias", Is("false"));
const RMS: Row = Ours("norm", "\"rms\"");
const SOFTMAX: Row = Ours("moe.scores", "\"softmax\"");
/// No part of the model: types of published files, of a cache, ids of special tokens.
const REST: Row =
    Any("torch_dtype|dtype|use_cache|transformers_version|bos_token_id|eos_token_id|pad_token_id|\
     pretraining_tp|output_router_logits|auto_map|_name_or_path|quantization_config|ep_size|\
     return_dict|output_hidden_states|output_attentions|is_decoder|chunk_size_feed_forward|\
     problem_type|id2label|label2id|is_encoder_decoder");

/// Where a model's rotary base stands, by version of the files.
const fn theta(default: &'static str) -> Row {
    Same("rope_parameters.rope_theta|rope_theta", "positions.rotary.theta", Is(default))
}

const fn eps(default: &'static str) -> Row {
    Same("rms_norm_eps", "norm_eps", Is(default))
}

/// Rows of all that came after GPT-2.
const COMMON: &[Row] = &[
    VOCABULARY, LAYERS, WIDTH, HEADS, KV_HEADS, SILU, UNTIED, WINDOW, SPREAD, NO_DROPOUT, Rotary,
    RMS, REST,
];

/// And of mixtures whose routers have no biases.
const MIXTURE: &[Row] = &[TOP_K, AUX_LOSS, SOFTMAX];

/// Matrices of attention and of MLPs, experts and all: what every FP8 model in blocks has so.
const PROJECTIONS: &[&str] = &["model.layers.**_proj.weight"];

/// Routers are linear modules of their own in some readers; Qwen3-MoE's FP8 files name them.
const GATES: &[&str] = &["lm_head", "model.layers.*.mlp.gate"];

static GPT2: Family = Family {
    names: "gpt2",
    model_type: "gpt2",
    architecture: "GPT2LMHeadModel",
    prefix: "transformer.",
    router_bias: false,
    rows: &[&[
        Same("vocab_size", "vocab_size", Is("50257")),
        Same("n_layer", "layers", Is("12")),
        Same("n_embd", "d_model", Is("768")),
        Same("n_head", "heads", Is("12")),
        Same("n_positions|n_ctx", "positions.learned.max", Is("1024")),
        Same("n_inner", "d_ff", Times(4, "n_embd")),
        Word("activation_function", "activation", &[("gelu_new", "gelu")]),
        Same("layer_norm_epsilon", "norm_eps", Is("1e-5")),
        Same("tie_word_embeddings", "tie_embeddings", Is("true")),
        SPREAD,
        Read("scale_attn_weights", &["true"]),
        Read("scale_attn_by_inverse_layer_idx", &["false"]),
        Read("add_cross_attention", &["false"]),
        // Of training.
        Only("attn_pdrop", &["0.0", "0.1"]),
        Only("embd_pdrop", &["0.0", "0.1"]),
        Only("resid_pdrop", &["0.0", "0.1"]),
        Any("reorder_and_upcast_attn|summary_type|summary_use_proj|summary_activation|\
             summary_proj_to_labels|summary_first_dropout|task_specific_params"),
        Ours("norm", "\"layer\""),
        Ours("attention_bias", "true"),
        Ours("mlp_bias", "true"),
        REST,
    ]],
    left_out: &[
        "transformer.h.*.attn.bias",
        "transformer.h.*.attn.masked_bias",
        "h.*.attn.bias",
        "h.*.attn.masked_bias",
    ],
    fp8: &[],
    not_fp8: &[],
};

static LLAMA: Family = Family {
    names: "llama",
    model_type: "llama",
    architecture: "LlamaForCausalLM",
    prefix: "",
    router_bias: false,
    rows: &[
        COMMON,
        &[HEAD_DIM, D_FF, BIASED, Only("mlp_bias", &["false"]), eps("1e-6"), theta("10000.0")],
    ],
    left_out: &["model.layers.*.self_attn.rotary_emb.inv_freq"],
    fp8: PROJECTIONS,
    not_fp8: &[],
};

static QWEN3_MOE: Family = Family {
    names: "qwen3_moe",
    model_type: "qwen3_moe",
    architecture: "Qwen3MoeForCausalLM",
    prefix: "",
    router_bias: false,
    rows: &[
        COMMON,
        MIXTURE,
        &[
            Same("head_dim", "head_dim", Is("128")),
            Same("intermediate_size", "d_ff", Nothing),
            BIASED,
            eps("1e-6"),
            theta("10000.0"),
            Same("num_experts|num_local_experts", "moe.experts", Refuse),
            Same("moe_intermediate_size", "moe.d_ff", Refuse),
            NORMALIZE,
            Only("decoder_sparse_step", &["1"]),
            Only("mlp_only_layers", &["[]"]),
            Only("use_sliding_window", &["false"]),
            Any("sliding_window|max_window_layers"),
            Ours("qk_norm", "\"head\""),
        ],
    ],
    left_out: &[],
    fp8: PROJECTIONS,
    not_fp8: GATES,
};

static OLMOE: Family = Family {
    names: "olmoe",
    model_type: "olmoe",
    architecture: "OlmoeForCausalLM",
    prefix: "",
    router_bias: false,
    rows: &[
        COMMON,
        MIXTURE,
        &[
            BIASED,
            eps("1e-5"),
            theta("10000.0"),
            Same("num_experts|num_local_experts", "moe.experts", Refuse),
            Same("intermediate_size", "moe.d_ff", Refuse),
            NORMALIZE,
            Read("clip_qkv", &["null"]),
            Any("norm_after_ffn"),
            Ours("qk_norm", "\"projection\""),
        ],
    ],
    left_out: &[],
    fp8: PROJECTIONS,
    not_fp8: GATES,
};

static MIXTRAL: Family = Family {
    names: "mixtral",
    model_type: "mixtral",
    architecture: "MixtralForCausalLM",
    prefix: "",
    router_bias: false,
    rows: &[
        COMMON,
        MIXTURE,
        &[
            HEAD_DIM,
            eps("1e-5"),
            theta("1000000.0"),
            Same("num_local_experts", "moe.experts", Refuse),
            Same("intermediate_size", "moe.d_ff", Refuse),
            Only("router_jitter_noise", &["0.0"]),
            Read("sliding_window", &["null"]),
            Ours("moe.normalize_top_k", "true"),
        ],
    ],
    left_out: &["model.layers.*.self_attn.rotary_emb.inv_freq"],
    fp8: &["model.layers.*.self_attn.*_proj.weight", "model.layers.*.block_sparse_moe.experts.**"],
    not_fp8: &["lm_head", "model.layers.*.block_sparse_moe.gate"],
};

static DEEPSEEK_V3: Family = Family {
    names: "deepseek_v3",
    model_type: "deepseek_v3",
    architecture: "DeepseekV3ForCausalLM",
    prefix: "",
    router_bias: true,
    rows: &[
        COMMON,
        &[
            D_FF,
            Only("attention_bias", &["false"]),
            eps("1e-6"),
            theta("10000.0"),
            Same("q_lora_rank", "latent.q_rank", Is("0")),
            Same("kv_lora_rank", "latent.kv_rank", Refuse),
            Same("qk_nope_head_dim", "latent.nope_dim", Refuse),
            Same("qk_rope_head_dim", "latent.rope_dim", Refuse),
            Same("v_head_dim", "latent.value_dim", Refuse),
            Same("n_routed_experts", "moe.experts", Refuse),
            TOP_K,
            Same("moe_intermediate_size", "moe.d_ff", Refuse),
            Same("n_shared_experts", "moe.shared_experts", Is("1")),
            Same("first_k_dense_replace", "moe.first_dense_layers", Is("3")),
            Same("n_group", "moe.groups", Is("8")),
            Same("topk_group", "moe.top_groups", Is("4")),
            Same("routed_scaling_factor", "moe.route_scale", Is("2.5")),
            Same("norm_topk_prob", "moe.normalize_top_k", Is("true")),
            Only("scoring_func", &["\"sigmoid\""]),
            Only("topk_method", &["\"noaux_tc\""]),
            Only("moe_layer_freq", &["1"]),
            Only("rope_interleave", &["true"]),
            // Layers that predict further tokens are left out; they follow the last one.
            Any("num_nextn_predict_layers|aux_loss_alpha|seq_aux|head_dim|qk_head_dim"),
            Ours("moe.scores", "\"sigmoid\""),
        ],
    ],
    left_out: &["model.layers.*.self_attn.rotary_emb.inv_freq", "model.layers.{layers}.**"],
    fp8: &["model.layers.**_proj.weight", "model.layers.*.self_attn.kv_a_proj_with_mqa.weight"],
    not_fp8: &[],
};
