//! Names of the parts of a model in published checkpoints: one table per family.

use crate::config::Names;

/// A block's own word for one of its parameters, whatever its family calls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Embedding,
    Positions,
    AttentionNorm,
    Query,
    Key,
    Value,
    /// The three as one tensor.
    QueryKeyValue,
    QueryNorm,
    KeyNorm,
    /// Of latent attention: to the short vectors, their norms, and from them to heads.
    QueryDown,
    QueryDownNorm,
    QueryUp,
    KeyValueDown,
    KeyValueDownNorm,
    KeyValueUp,
    AttentionOut,
    FeedNorm,
    /// Of an MLP with a gate.
    Gate,
    Up,
    Down,
    /// Of one without.
    Widen,
    Narrow,
    Router,
    RouterBias,
    ExpertGate,
    ExpertUp,
    ExpertDown,
    SharedGate,
    SharedUp,
    SharedDown,
    FinalNorm,
    Head,
}

impl Part {
    /// How a part of a fused tensor is labelled.
    pub fn label(self) -> &'static str {
        match self {
            Part::Query => "q",
            Part::Key => "k",
            Part::Value => "v",
            _ => "",
        }
    }
}

/// The names of a family: without the `.weight` or `.bias` that follows, `{l}` for the layer and
/// `{e}` for the expert.
#[derive(Debug)]
pub(crate) struct Family {
    /// Where the rows are that it does not have itself.
    base: Option<&'static Family>,
    rows: &'static [(Part, &'static str)],
    /// Matrices that are published as `[in, out]`.
    transposed: &'static [Part],
}

impl Family {
    pub fn of(names: Names) -> &'static Family {
        match names {
            Names::Gpt2 => &GPT2,
            Names::Llama => &LLAMA,
            Names::Qwen3Moe => &QWEN3_MOE,
            Names::Olmoe => &OLMOE,
            Names::Mixtral => &MIXTRAL,
            Names::DeepseekV3 => &DEEPSEEK_V3,
        }
    }

    /// The pattern of a part, if the family has it.
    fn pattern(&self, part: Part) -> Option<&'static str> {
        let own = self.rows.iter().find(|(row, _)| *row == part).map(|(_, pattern)| *pattern);
        own.or_else(|| self.base.and_then(|base| base.pattern(part)))
    }

    pub fn has(&self, part: Part) -> bool {
        self.pattern(part).is_some()
    }

    pub(crate) fn is_transposed(&self, part: Part) -> bool {
        self.transposed.contains(&part)
    }

    /// The name of a part of `layer`, of its expert `expert`.
    pub fn name(&self, part: Part, layer: usize, expert: usize) -> Option<String> {
        let numbered = |pattern: &str| {
            let of_layer = pattern.replace("{l}", &layer.to_string());
            of_layer.replace("{e}", &expert.to_string())
        };
        self.pattern(part).map(numbered)
    }
}

/// OpenAI's GPT-2; what it never had is named as its readers would.
static GPT2: Family = Family {
    base: None,
    rows: &[
        (Part::Embedding, "wte"),
        (Part::Positions, "wpe"),
        (Part::AttentionNorm, "h.{l}.ln_1"),
        (Part::QueryKeyValue, "h.{l}.attn.c_attn"),
        (Part::QueryNorm, "h.{l}.attn.q_norm"),
        (Part::KeyNorm, "h.{l}.attn.k_norm"),
        (Part::AttentionOut, "h.{l}.attn.c_proj"),
        (Part::FeedNorm, "h.{l}.ln_2"),
        (Part::Gate, "h.{l}.mlp.gate_proj"),
        (Part::Up, "h.{l}.mlp.up_proj"),
        (Part::Down, "h.{l}.mlp.down_proj"),
        (Part::Widen, "h.{l}.mlp.c_fc"),
        (Part::Narrow, "h.{l}.mlp.c_proj"),
        (Part::Router, "h.{l}.mlp.gate"),
        (Part::RouterBias, "h.{l}.mlp.gate.e_score_correction_bias"),
        (Part::ExpertGate, "h.{l}.mlp.experts.{e}.gate_proj"),
        (Part::ExpertUp, "h.{l}.mlp.experts.{e}.up_proj"),
        (Part::ExpertDown, "h.{l}.mlp.experts.{e}.down_proj"),
        (Part::SharedGate, "h.{l}.mlp.shared_experts.gate_proj"),
        (Part::SharedUp, "h.{l}.mlp.shared_experts.up_proj"),
        (Part::SharedDown, "h.{l}.mlp.shared_experts.down_proj"),
        (Part::FinalNorm, "ln_f"),
        (Part::Head, "lm_head"),
    ],
    transposed: &[Part::QueryKeyValue, Part::AttentionOut, Part::Widen, Part::Narrow],
};

/// Meta's Llama, as Hugging Face names it.
static LLAMA: Family = Family {
    base: None,
    rows: &[
        (Part::Embedding, "model.embed_tokens"),
        (Part::Positions, "model.embed_positions"),
        (Part::AttentionNorm, "model.layers.{l}.input_layernorm"),
        (Part::Query, "model.layers.{l}.self_attn.q_proj"),
        (Part::Key, "model.layers.{l}.self_attn.k_proj"),
        (Part::Value, "model.layers.{l}.self_attn.v_proj"),
        (Part::QueryNorm, "model.layers.{l}.self_attn.q_norm"),
        (Part::KeyNorm, "model.layers.{l}.self_attn.k_norm"),
        (Part::AttentionOut, "model.layers.{l}.self_attn.o_proj"),
        (Part::FeedNorm, "model.layers.{l}.post_attention_layernorm"),
        (Part::Gate, "model.layers.{l}.mlp.gate_proj"),
        (Part::Up, "model.layers.{l}.mlp.up_proj"),
        (Part::Down, "model.layers.{l}.mlp.down_proj"),
        (Part::Widen, "model.layers.{l}.mlp.up_proj"),
        (Part::Narrow, "model.layers.{l}.mlp.down_proj"),
        (Part::Router, "model.layers.{l}.mlp.gate"),
        (Part::RouterBias, "model.layers.{l}.mlp.gate.e_score_correction_bias"),
        (Part::ExpertGate, "model.layers.{l}.mlp.experts.{e}.gate_proj"),
        (Part::ExpertUp, "model.layers.{l}.mlp.experts.{e}.up_proj"),
        (Part::ExpertDown, "model.layers.{l}.mlp.experts.{e}.down_proj"),
        (Part::SharedGate, "model.layers.{l}.mlp.shared_experts.gate_proj"),
        (Part::SharedUp, "model.layers.{l}.mlp.shared_experts.up_proj"),
        (Part::SharedDown, "model.layers.{l}.mlp.shared_experts.down_proj"),
        (Part::FinalNorm, "model.norm"),
        (Part::Head, "lm_head"),
    ],
    transposed: &[],
};

/// Qwen3's mixtures.
static QWEN3_MOE: Family = Family { base: Some(&LLAMA), rows: &[], transposed: &[] };

/// Ai2's OLMoE.
static OLMOE: Family = Family { base: Some(&LLAMA), rows: &[], transposed: &[] };

/// Mistral's mixtures.
static MIXTRAL: Family = Family {
    base: Some(&LLAMA),
    rows: &[
        (Part::Router, "model.layers.{l}.block_sparse_moe.gate"),
        (Part::RouterBias, "model.layers.{l}.block_sparse_moe.gate.e_score_correction_bias"),
        (Part::ExpertGate, "model.layers.{l}.block_sparse_moe.experts.{e}.w1"),
        (Part::ExpertUp, "model.layers.{l}.block_sparse_moe.experts.{e}.w3"),
        (Part::ExpertDown, "model.layers.{l}.block_sparse_moe.experts.{e}.w2"),
        (Part::SharedGate, "model.layers.{l}.block_sparse_moe.shared_experts.gate_proj"),
        (Part::SharedUp, "model.layers.{l}.block_sparse_moe.shared_experts.up_proj"),
        (Part::SharedDown, "model.layers.{l}.block_sparse_moe.shared_experts.down_proj"),
    ],
    transposed: &[],
};

/// DeepSeek's V2 and V3.
static DEEPSEEK_V3: Family = Family {
    base: Some(&LLAMA),
    rows: &[
        (Part::QueryDown, "model.layers.{l}.self_attn.q_a_proj"),
        (Part::QueryDownNorm, "model.layers.{l}.self_attn.q_a_layernorm"),
        (Part::QueryUp, "model.layers.{l}.self_attn.q_b_proj"),
        (Part::KeyValueDown, "model.layers.{l}.self_attn.kv_a_proj_with_mqa"),
        (Part::KeyValueDownNorm, "model.layers.{l}.self_attn.kv_a_layernorm"),
        (Part::KeyValueUp, "model.layers.{l}.self_attn.kv_b_proj"),
    ],
    transposed: &[],
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_the_familys_own_or_its_bases() {
        let mixtral = Family::of(Names::Mixtral);
        let name = mixtral.name(Part::ExpertUp, 3, 12).unwrap();
        assert_eq!(name, "model.layers.3.block_sparse_moe.experts.12.w3");
        let name = mixtral.name(Part::Query, 3, 0).unwrap();
        assert_eq!(name, "model.layers.3.self_attn.q_proj");
        let gpt2 = Family::of(Names::Gpt2);
        assert!(gpt2.has(Part::QueryKeyValue) && !gpt2.has(Part::Query));
        assert_eq!(gpt2.name(Part::Value, 0, 0), None);
        assert!(gpt2.is_transposed(Part::Narrow) && !gpt2.is_transposed(Part::Down));
    }

    #[test]
    fn no_family_gives_one_part_two_names() {
        for family in [&GPT2, &LLAMA, &QWEN3_MOE, &OLMOE, &MIXTRAL, &DEEPSEEK_V3] {
            for (at, (part, _)) in family.rows.iter().enumerate() {
                assert!(family.rows[..at].iter().all(|(before, _)| before != part), "{part:?}");
            }
        }
    }
}
