//! How tensor parallelism divides a layer, as data: by the ends of published names, then by role.
//!
//! A projection into heads or into an MLP's inner width is cut by rows (its outputs), the one back
//! by columns (its inputs), so that a pair needs one sum over tp at its end (Shoeybi et al. 2019,
//! Megatron-LM). Its own bias goes with rows; after a cut by columns it is added once, to the sum,
//! and is replicated. Embedding and head are cut over the vocabulary.

use crate::{LogicalTensor, Role};

/// How many rows or columns of the attention projections belong to one head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct HeadRows {
    /// Rows that make its query.
    pub query: usize,
    /// Rows that make its key, its value, or both where one tensor makes them.
    pub key_value: usize,
    /// Columns that read its output.
    pub value: usize,
}

impl HeadRows {
    /// Where queries, keys and values are of one width, each made by a tensor of its own.
    pub fn of(head_dim: usize) -> HeadRows {
        HeadRows { query: head_dim, key_value: head_dim, value: head_dim }
    }
}

/// The unit that stays together where a tensor is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Split {
    /// Whole heads of queries.
    Heads,
    /// Whole heads of keys and values.
    KeyValueHeads,
    /// Whole heads of what attention gives.
    HeadOutputs,
    /// Single rows or columns of the inner width of an MLP.
    Width,
    /// Single rows of the vocabulary; parts may be uneven.
    Vocabulary,
}

impl Split {
    /// The name of what is counted, for messages.
    pub fn word(self) -> &'static str {
        match self {
            Split::Heads | Split::HeadOutputs => "heads",
            Split::KeyValueHeads => "key/value heads",
            Split::Width => "inner width",
            Split::Vocabulary => "vocabulary",
        }
    }

    /// Rows or columns that stay together.
    pub fn unit(self, heads: &HeadRows) -> usize {
        match self {
            Split::Heads => heads.query.max(1),
            Split::KeyValueHeads => heads.key_value.max(1),
            Split::HeadOutputs => heads.value.max(1),
            Split::Width | Split::Vocabulary => 1,
        }
    }

    /// Whether parts of unequal size are allowed.
    pub(crate) fn may_be_uneven(self) -> bool {
        self == Split::Vocabulary
    }
}

/// How tensor parallelism cuts a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cut {
    /// Not at all: every rank has a copy.
    Whole,
    /// By its first axis: outputs.
    Rows(Split),
    /// By its second axis: inputs.
    Columns(Split),
}

/// Which tensors a rule is about.
#[derive(Debug, Clone, Copy)]
pub enum Matches {
    /// Names whose module, `….MODULE.weight` or `….MODULE.bias`, ends so at a dot.
    Modules(&'static [&'static str]),
    /// A role, by its word.
    Role(&'static str),
}

/// One line of the table.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    pub matches: Matches,
    pub weight: Cut,
    pub bias: Cut,
}

const fn modules(names: &'static [&'static str], weight: Cut, bias: Cut) -> Rule {
    Rule { matches: Matches::Modules(names), weight, bias }
}

const fn role(word: &'static str, cut: Cut) -> Rule {
    Rule { matches: Matches::Role(word), weight: cut, bias: cut }
}

/// The first line that matches decides.
pub const RULES: [Rule; 13] = [
    // Gains of as many values as a projection are cut with it, those of one head are not.
    modules(
        &["q_proj", "q_norm", "q_b_proj", "attn.c_attn"],
        Cut::Rows(Split::Heads),
        Cut::Rows(Split::Heads),
    ),
    modules(
        &["k_proj", "v_proj", "k_norm", "kv_b_proj"],
        Cut::Rows(Split::KeyValueHeads),
        Cut::Rows(Split::KeyValueHeads),
    ),
    // Short vectors, of which all heads are made.
    modules(&["q_a_proj", "kv_a_proj_with_mqa"], Cut::Whole, Cut::Whole),
    modules(&["o_proj", "attn.c_proj"], Cut::Columns(Split::HeadOutputs), Cut::Whole),
    modules(
        &["gate_proj", "up_proj", "w1", "w3", "mlp.c_fc"],
        Cut::Rows(Split::Width),
        Cut::Rows(Split::Width),
    ),
    modules(&["down_proj", "w2", "mlp.c_proj"], Cut::Columns(Split::Width), Cut::Whole),
    modules(&["embed_tokens", "wte"], Cut::Rows(Split::Vocabulary), Cut::Whole),
    // A table of positions, which is small and read by every rank.
    modules(&["embed_positions", "wpe"], Cut::Whole, Cut::Whole),
    modules(&["lm_head"], Cut::Rows(Split::Vocabulary), Cut::Whole),
    role("head", Cut::Rows(Split::Vocabulary)),
    role("embedding", Cut::Rows(Split::Vocabulary)),
    role("vector", Cut::Whole),
    role("router", Cut::Whole),
];

/// The cut of a tensor; `None` where no rule is about it, or its shape lacks the axis.
pub fn cut(tensor: &LogicalTensor, heads: &HeadRows) -> Option<Cut> {
    let (module, is_bias) = module(&tensor.name);
    let found = RULES.iter().find(|rule| match rule.matches {
        Matches::Modules(ends) => ends.iter().any(|end| ends_at_dot(module, end)),
        Matches::Role(word) => tensor.role.word() == word,
    })?;
    let cut = if is_bias { found.bias } else { found.weight };
    match cut {
        // All heads share a vector that is as long as one.
        Cut::Rows(split @ (Split::Heads | Split::KeyValueHeads))
            if tensor.role == Role::Vector && tensor.rows() == split.unit(heads) =>
        {
            Some(Cut::Whole)
        }
        Cut::Rows(_) if tensor.shape.is_empty() => None,
        Cut::Columns(_) if tensor.shape.len() < 2 => None,
        cut => Some(cut),
    }
}

/// A name without its last word, and whether that is `bias`.
pub(crate) fn module(name: &str) -> (&str, bool) {
    match (name.strip_suffix(".weight"), name.strip_suffix(".bias")) {
        (Some(module), _) => (module, false),
        (_, Some(module)) => (module, true),
        _ => (name, false),
    }
}

fn ends_at_dot(module: &str, end: &str) -> bool {
    module.strip_suffix(end).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

/// The layer that a published name belongs to: its first number.
pub(crate) fn layer(name: &str) -> Option<usize> {
    name.split('.').find_map(|word| word.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_matches_whole_words() {
        let tensor = |name: &str, role| LogicalTensor::new(name, &[64, 64], role);
        let cut_of = |name: &str| cut(&tensor(name, Role::Matrix), &HeadRows::of(16));
        assert_eq!(cut_of("h.0.attn.c_proj.weight"), Some(Cut::Columns(Split::HeadOutputs)));
        assert_eq!(cut_of("h.0.mlp.c_proj.weight"), Some(Cut::Columns(Split::Width)));
        assert_eq!(cut_of("h.0.mlp.c_proj.bias"), Some(Cut::Whole));
        assert_eq!(cut_of("h.0.mlp.c_fc.bias"), Some(Cut::Rows(Split::Width)));
        assert_eq!(cut_of("model.layers.0.mlp.gate.weight"), None);
        assert_eq!(cut_of("model.layers.0.mlp.qq_proj.weight"), None);
    }

    #[test]
    fn a_gain_of_one_head_is_replicated() {
        let gain = |width| {
            let name = "model.layers.0.self_attn.q_norm.weight";
            cut(&LogicalTensor::new(name, &[width], Role::Vector), &HeadRows::of(16))
        };
        assert_eq!(gain(16), Some(Cut::Whole));
        assert_eq!(gain(64), Some(Cut::Rows(Split::Heads)));
    }

    #[test]
    fn latent_attention_is_cut_by_the_heads_of_each_projection() {
        let heads = HeadRows { query: 24, key_value: 32, value: 16 };
        let cut_of = |what: &str, shape: &[usize], role| {
            let name = format!("model.layers.0.self_attn.{what}.weight");
            cut(&LogicalTensor::new(name, shape, role), &heads)
        };
        let matrix = |what, shape: [usize; 2]| cut_of(what, &shape, Role::Matrix);
        assert_eq!(matrix("q_a_proj", [24, 64]), Some(Cut::Whole));
        assert_eq!(cut_of("q_a_layernorm", &[24], Role::Vector), Some(Cut::Whole));
        assert_eq!(matrix("q_b_proj", [96, 24]), Some(Cut::Rows(Split::Heads)));
        assert_eq!(matrix("kv_a_proj_with_mqa", [40, 64]), Some(Cut::Whole));
        assert_eq!(cut_of("kv_a_layernorm", &[32], Role::Vector), Some(Cut::Whole));
        assert_eq!(matrix("kv_b_proj", [128, 32]), Some(Cut::Rows(Split::KeyValueHeads)));
        assert_eq!(matrix("o_proj", [64, 64]), Some(Cut::Columns(Split::HeadOutputs)));
        let units = [Split::Heads, Split::KeyValueHeads, Split::HeadOutputs];
        assert_eq!(units.map(|split| split.unit(&heads)), [24, 32, 16]);
    }

    #[test]
    fn the_first_number_is_the_layer() {
        assert_eq!(layer("model.layers.12.mlp.experts.3.up_proj.weight"), Some(12));
        assert_eq!(layer("h.0.ln_1.weight"), Some(0));
        assert_eq!(layer("wte.weight"), None);
    }
}
