//! The published families: one table each. Keys and defaults are those of the configuration classes
//! of Hugging Face's transformers, and of the files that each model was published with.

use super::table::Lacking::{Is, Nothing, OfKey, Or, Refuse, Times};
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
/// The same, of classes whose default is a number that null is not.
const fn kv_heads(default: &'static str) -> Row {
    Same("num_key_value_heads", "kv_heads", Or(default, &OfKey("num_attention_heads")))
}
const HEAD_DIM: Row = Same("head_dim", "head_dim", Nothing);
const VOCABULARY: Row = Same("vocab_size", "vocab_size", Refuse);
const D_FF: Row = Same("intermediate_size", "d_ff", Refuse);
const UNTIED: Row = Same("tie_word_embeddings", "tie_embeddings", Is("false"));
const SPREAD: Row = Same("initializer_range", "init_std", Is("0.02"));
const NO_DROPOUT: Row = Only("attention_dropout", &["0.0"]);
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

const fn window(default: &'static str) -> Row {
    Same("max_position_embeddings", "seq_len", Is(default))
}

const fn aux_loss(default: &'static str) -> Row {
    Same("router_aux_loss_coef", "moe.aux_loss", Is(default))
}

/// Where a model's rotary base stands, by version of the files.
const fn theta(default: &'static str) -> Row {
    Same("rope_parameters.rope_theta|rope_theta", "positions.rotary.theta", Is(default))
}

const fn eps(default: &'static str) -> Row {
    Same("rms_norm_eps", "norm_eps", Is(default))
}

/// Rows of all that came after GPT-2.
const COMMON: &[Row] =
    &[VOCABULARY, LAYERS, WIDTH, HEADS, SILU, UNTIED, SPREAD, NO_DROPOUT, Rotary, RMS, REST];

/// And of mixtures whose routers have no biases.
const MIXTURE: &[Row] = &[TOP_K, SOFTMAX];

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
        Same("n_embd", "d_model", Refuse),
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
        &[
            KV_HEADS,
            HEAD_DIM,
            D_FF,
            BIASED,
            window("2048"),
            Only("mlp_bias", &["false"]),
            eps("1e-6"),
            theta("10000.0"),
        ],
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
            Same("num_key_value_heads", "kv_heads", Is("4")),
            HEAD_DIM,
            window("32768"),
            aux_loss("0.001"),
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
            KV_HEADS,
            window("4096"),
            aux_loss("0.01"),
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
            kv_heads("8"),
            HEAD_DIM,
            window("131072"),
            aux_loss("0.001"),
            eps("1e-5"),
            theta("1000000.0"),
            Same("num_local_experts", "moe.experts", Refuse),
            Same("intermediate_size", "moe.d_ff", Refuse),
            Only("router_jitter_noise", &["0.0"]),
            Only("sliding_window", &["null"]),
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
            kv_heads("128"),
            window("4096"),
            D_FF,
            Only("attention_bias", &["false"]),
            eps("1e-6"),
            theta("10000.0"),
            // Null: queries are made by one matrix.
            Same("q_lora_rank", "latent.q_rank", Or("1536", &Is("0"))),
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
            // The code that was published, and transformers, leave the norms of short vectors at
            // the default of their class, whatever `rms_norm_eps` says.
            Ours("latent.norm_eps", "1e-6"),
        ],
    ],
    left_out: &["model.layers.*.self_attn.rotary_emb.inv_freq", "model.layers.{layers}.**"],
    fp8: &["model.layers.**_proj.weight", "model.layers.*.self_attn.kv_a_proj_with_mqa.weight"],
    not_fp8: &[],
};

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::hf::table::get;

    /// The values that the classes of transformers 5.24 have when they are made of nothing.
    static DEFAULTS: [(&Family, &str); 6] = [
        (
            &GPT2,
            r#"{"vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12,
            "n_head": 12, "n_inner": null, "activation_function": "gelu_new", "resid_pdrop":
            0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1, "layer_norm_epsilon": 1e-05,
            "initializer_range": 0.02, "scale_attn_weights": true,
            "scale_attn_by_inverse_layer_idx": false, "reorder_and_upcast_attn": false,
            "add_cross_attention": false, "tie_word_embeddings": true}"#,
        ),
        (
            &LLAMA,
            r#"{"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
            "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
            "hidden_act": "silu", "max_position_embeddings": 2048, "initializer_range":
            0.02, "rms_norm_eps": 1e-06, "tie_word_embeddings": false, "rope_parameters":
            {"rope_theta": 10000.0, "rope_type": "default"}, "attention_bias": false,
            "attention_dropout": 0.0, "mlp_bias": false, "head_dim": 128}"#,
        ),
        (
            &QWEN3_MOE,
            r#"{"vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144,
            "num_hidden_layers": 24, "num_attention_heads": 32, "num_key_value_heads": 4,
            "hidden_act": "silu", "max_position_embeddings": 32768, "initializer_range":
            0.02, "rms_norm_eps": 1e-06, "tie_word_embeddings": false, "rope_parameters":
            {"rope_theta": 10000.0, "rope_type": "default"}, "attention_bias": false,
            "use_sliding_window": false, "sliding_window": null, "attention_dropout": 0.0,
            "decoder_sparse_step": 1, "moe_intermediate_size": 768, "num_experts_per_tok":
            8, "num_local_experts": 128, "norm_topk_prob": false, "router_aux_loss_coef":
            0.001, "mlp_only_layers": []}"#,
        ),
        (
            &OLMOE,
            r#"{"vocab_size": 50304, "hidden_size": 2048, "intermediate_size": 2048,
            "num_hidden_layers": 16, "num_attention_heads": 16, "num_key_value_heads": 16,
            "hidden_act": "silu", "max_position_embeddings": 4096, "initializer_range":
            0.02, "rms_norm_eps": 1e-05, "tie_word_embeddings": false, "rope_parameters":
            {"rope_theta": 10000.0, "rope_type": "default"}, "attention_bias": false,
            "attention_dropout": 0.0, "clip_qkv": null, "num_experts_per_tok": 8,
            "num_experts": 64, "router_aux_loss_coef": 0.01, "norm_topk_prob": false}"#,
        ),
        (
            &MIXTRAL,
            r#"{"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336,
            "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
            "head_dim": null, "hidden_act": "silu", "max_position_embeddings": 131072,
            "initializer_range": 0.02, "rms_norm_eps": 1e-05, "tie_word_embeddings": false,
            "sliding_window": null, "attention_dropout": 0.0, "num_experts_per_tok": 2,
            "num_local_experts": 8, "router_aux_loss_coef": 0.001, "router_jitter_noise":
            0.0, "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"}}"#,
        ),
        (
            &DEEPSEEK_V3,
            r#"{"vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432,
            "moe_intermediate_size": 2048, "num_hidden_layers": 61, "num_attention_heads":
            128, "num_key_value_heads": 128, "n_shared_experts": 1, "n_routed_experts": 256,
            "routed_scaling_factor": 2.5, "kv_lora_rank": 512, "q_lora_rank": 1536,
            "qk_rope_head_dim": 64, "v_head_dim": 128, "qk_nope_head_dim": 128, "n_group":
            8, "topk_group": 4, "num_experts_per_tok": 8, "first_k_dense_replace": 3,
            "norm_topk_prob": true, "hidden_act": "silu", "max_position_embeddings": 4096,
            "initializer_range": 0.02, "rms_norm_eps": 1e-06, "tie_word_embeddings": false,
            "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
            "rope_interleave": true, "attention_bias": false, "attention_dropout": 0.0,
            "num_nextn_predict_layers": 1, "qk_head_dim": 192, "head_dim": 64}"#,
        ),
    ];

    /// Sizes that a file must tell, which no model is without.
    const SIZES: [&str; 15] = [
        "n_embd",
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_experts",
        "num_local_experts",
        "n_routed_experts",
        "num_experts_per_tok",
        "moe_intermediate_size",
        "kv_lora_rank",
        "qk_nope_head_dim",
        "qk_rope_head_dim",
        "v_head_dim",
    ];

    /// A file that lacks a key is read as transformers reads it.
    #[test]
    fn a_key_that_is_not_there_means_what_it_means_to_transformers() {
        for (family, text) in DEFAULTS {
            let all: Value = serde_json::from_str(text).unwrap();
            let all = all.as_object().unwrap();
            let whole = Value::Object(all.clone());
            let (wanted, unknown) = family.to_ours(&whole, &[]).unwrap();
            assert_eq!(unknown, Vec::<String>::new(), "{}", family.names);
            for key in all.keys() {
                let mut less = all.clone();
                less.remove(key);
                match family.to_ours(&Value::Object(less), &[]) {
                    Ok((ours, _)) => {
                        let of = |ours: &Value| {
                            let mut ours = ours.clone();
                            // Made of the other sizes, where no key tells it.
                            if get(&ours, "head_dim").is_none() && family.names != "qwen3_moe" {
                                let width = |path| get(&ours, path).and_then(Value::as_u64);
                                let made = width("d_model").zip(width("heads"));
                                ours["head_dim"] = json!(made.map(|(all, heads)| all / heads));
                            }
                            if key == "intermediate_size" {
                                ours["d_ff"] = Value::Null;
                            }
                            ours
                        };
                        assert_eq!(of(&ours), of(&wanted), "{} without {key}", family.names);
                    }
                    Err(misfit) => {
                        assert!(SIZES.contains(&&**key), "{}: {}", family.names, misfit.0);
                    }
                }
            }
        }
    }
}
