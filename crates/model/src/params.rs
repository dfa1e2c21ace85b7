//! The parameters of an architecture: published names, and where the engine finds them.
//!
//! Declared in forward order. Members of a fused matrix (q, k, v; gate, up; all experts) follow
//! one another, so that one [`Weight`] spans them.

use layout::{FlatLayout, LogicalTensor, Part, Role, Schema};

use crate::ModelError;
use crate::architecture::{Architecture, Feed, Moe};
use crate::config::{Activation, Names, Norm, Positions, QkNorm};

/// A view `[rows, cols]` of the flat buffers; `cols` is 1 for vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weight {
    /// First tensor of the group, an index into the schema.
    pub tensor: usize,
    pub rows: usize,
    pub cols: usize,
}

impl Weight {
    /// Number of elements.
    pub fn len(self) -> usize {
        self.rows * self.cols
    }

    /// True for a weight of no elements.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }
}

/// Gain and, for LayerNorm, bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NormWeights {
    pub gain: Weight,
    pub bias: Option<Weight>,
}

/// A projection and its bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Linear {
    pub weight: Weight,
    pub bias: Option<Weight>,
}

/// An MLP: `up` is gate and up fused for SwiGLU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mlp {
    pub up: Linear,
    pub down: Linear,
}

/// Router, expert stacks `[E·2F, D]` and `[E·D, F]`, shared experts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Experts {
    pub router: Weight,
    pub gate_up: Weight,
    pub down: Weight,
    pub shared: Option<Mlp>,
    /// Name of the balancing bias, a state that no gradient trains.
    pub bias_name: String,
}

/// What follows attention.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FeedWeights {
    Dense(Mlp),
    Experts(Experts),
}

/// One block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    pub attention_norm: NormWeights,
    pub qkv: Linear,
    /// Gains of query and key normalization.
    pub qk_norm: Option<(Weight, Weight)>,
    pub out: Linear,
    pub feed_norm: NormWeights,
    pub feed: FeedWeights,
}

impl Layer {
    fn experts(&self) -> Option<&Experts> {
        match &self.feed {
            FeedWeights::Experts(experts) => Some(experts),
            FeedWeights::Dense(_) => None,
        }
    }

    /// Of attention and of the dense MLP or the shared experts.
    fn linears(&self) -> impl Iterator<Item = Linear> {
        let mlp = match &self.feed {
            FeedWeights::Dense(mlp) => Some(*mlp),
            FeedWeights::Experts(experts) => experts.shared,
        };
        [self.qkv, self.out].into_iter().chain(mlp.into_iter().flat_map(|mlp| [mlp.up, mlp.down]))
    }
}

/// Where everything is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameters {
    pub embedding: Weight,
    pub positions: Option<Weight>,
    pub layers: Vec<Layer>,
    pub final_norm: NormWeights,
    /// None when the embedding serves as the head.
    pub head: Option<Weight>,
}

impl Parameters {
    /// The output projection.
    pub fn output(&self) -> Weight {
        self.head.unwrap_or(self.embedding)
    }

    /// The layers with experts, in order.
    pub fn expert_layers(&self) -> impl Iterator<Item = (usize, &Experts)> {
        self.layers.iter().enumerate().filter_map(|(i, layer)| Some((i, layer.experts()?)))
    }

    /// Every weight that is used as a matrix.
    pub(crate) fn matrices(&self) -> impl Iterator<Item = Weight> {
        let layers = self.layers.iter().flat_map(|layer| {
            let experts = layer.experts().map(|e| [e.router, e.gate_up, e.down]);
            layer.linears().map(|linear| linear.weight).chain(experts.into_iter().flatten())
        });
        [self.embedding].into_iter().chain(self.positions).chain(self.head).chain(layers)
    }

    /// Every weight that is used as a vector.
    pub(crate) fn vectors(&self) -> impl Iterator<Item = Weight> {
        let norm = |norm: NormWeights| [norm.gain].into_iter().chain(norm.bias);
        let layers = self.layers.iter().flat_map(move |layer| {
            let norms = norm(layer.attention_norm).chain(norm(layer.feed_norm));
            let gains = layer.qk_norm.into_iter().flat_map(|(q, k)| [q, k]);
            norms.chain(gains).chain(layer.linears().filter_map(|linear| linear.bias))
        });
        norm(self.final_norm).chain(layers)
    }

    /// The first flat element of each layer.
    pub fn layer_start(&self, flat: &FlatLayout, layer: usize) -> usize {
        flat.offsets[self.layers[layer].attention_norm.gain.tensor]
    }
}

/// The f32 weights of more would not fit the 2^47 bytes that a process can address.
pub(crate) const PARAMETERS_MAX: u128 = 1 << 45;

/// More names than this are a slip of the keyboard, and would take minutes to build.
pub(crate) const TENSORS_MAX: u128 = 1 << 20;

/// Refuses a model that is too large, without building it: one layer of each kind is counted.
pub(crate) fn check_size(a: &Architecture) -> Result<(), ModelError> {
    let mut b = Builder { a, tensors: Vec::new() };
    b.before_layers();
    b.after_layers();
    let (mut parameters, mut tensors) = b.count_and_forget();
    let dense = a.layers - a.moe_layers();
    for (layer, count) in [(0, dense), (dense, a.layers - dense)] {
        if count > 0 {
            b.layer(layer);
            let (inside, names) = b.count_and_forget();
            parameters = parameters.saturating_add(inside.saturating_mul(count as u128));
            tensors = tensors.saturating_add(names.saturating_mul(count as u128));
        }
    }
    if parameters <= PARAMETERS_MAX && tensors <= TENSORS_MAX {
        return Ok(());
    }
    // In words: 128-bit fields would widen every error.
    let (parameters, tensors) = (parameters.to_string(), tensors.to_string());
    Err(ModelError::TooLarge { parameters, tensors })
}

/// The schema of an architecture, and where its parts are.
///
/// # Errors
/// Never for a checked architecture; a duplicate name would be reported.
pub fn parameters(a: &Architecture) -> Result<(Schema, Parameters), ModelError> {
    let mut b = Builder { a, tensors: Vec::new() };
    let (embedding, positions) = b.before_layers();
    let layers = (0..a.layers).map(|layer| b.layer(layer)).collect();
    let (final_norm, head) = b.after_layers();
    let schema = Schema::new(b.tensors)?;
    Ok((schema, Parameters { embedding, positions, layers, final_norm, head }))
}

/// Parameters that one token meets: all but the experts it does not visit.
pub fn active_parameters(a: &Architecture, schema: &Schema) -> usize {
    let Some(moe) = &a.moe else { return schema.parameters() };
    let experts = schema.tensors.iter().filter(|t| matches!(t.role, Role::Expert { .. }));
    let experts: usize = experts.map(LogicalTensor::len).sum();
    schema.parameters() - experts + experts / moe.experts * moe.top_k
}

struct Builder<'a> {
    a: &'a Architecture,
    tensors: Vec<LogicalTensor>,
}

impl Builder<'_> {
    /// Token and position embedding.
    fn before_layers(&mut self) -> (Weight, Option<Weight>) {
        let (a, gpt2) = (self.a, self.a.names == Names::Gpt2);
        let name = if gpt2 { "wte.weight" } else { "model.embed_tokens.weight" };
        let embedding = self.add(name, &[a.vocab_size, a.d_model], Role::Embedding);
        let positions = match a.positions {
            Positions::Learned { max } => {
                let name = if gpt2 { "wpe.weight" } else { "model.embed_positions.weight" };
                Some(self.add(name, &[max, a.d_model], Role::Embedding))
            }
            Positions::Rotary { .. } => None,
        };
        (embedding, positions)
    }

    /// Final norm and head.
    fn after_layers(&mut self) -> (NormWeights, Option<Weight>) {
        let (a, gpt2) = (self.a, self.a.names == Names::Gpt2);
        let final_norm = self.norm(if gpt2 { "ln_f" } else { "model.norm" });
        let head = (!a.tie_embeddings)
            .then(|| self.add("lm_head.weight", &[a.vocab_size, a.d_model], Role::Head));
        (final_norm, head)
    }

    /// Elements and number of the tensors since the last call, in numbers that cannot wrap.
    fn count_and_forget(&mut self) -> (u128, u128) {
        let elements = |t: &LogicalTensor| {
            t.shape.iter().fold(1_u128, |all, &extent| all.saturating_mul(extent as u128))
        };
        let sum = self.tensors.iter().map(elements).fold(0_u128, u128::saturating_add);
        let count = self.tensors.len() as u128;
        self.tensors.clear();
        (sum, count)
    }

    fn add(&mut self, name: &str, shape: &[usize], role: Role) -> Weight {
        let tensor = LogicalTensor::new(name, shape, role);
        let (rows, cols) = (tensor.rows(), tensor.row_len());
        self.tensors.push(tensor);
        Weight { tensor: self.tensors.len() - 1, rows, cols }
    }

    /// A tensor as the next member of a fused matrix, `whole`, or as its first.
    fn join(&mut self, whole: &mut Option<Weight>, name: &str, shape: &[usize], role: Role) {
        let weight = self.add(name, shape, role);
        self.tensors[weight.tensor].fused = whole.is_some();
        let rows = whole.map_or(0, |whole| whole.rows) + weight.rows;
        *whole = Some(Weight { rows, ..whole.unwrap_or(weight) });
    }

    /// Several tensors, stored as one matrix: `(name, rows)` each.
    fn fuse(&mut self, members: &[(String, usize)], cols: &[usize], role: Role) -> Weight {
        let mut whole = None;
        for (name, rows) in members {
            self.join(&mut whole, name, &[&[*rows], cols].concat(), role);
        }
        whole.expect("a fused matrix has members")
    }

    fn norm(&mut self, name: &str) -> NormWeights {
        let width = [self.a.d_model];
        let gain = self.add(&format!("{name}.weight"), &width, Role::Vector);
        let bias = (self.a.norm == Norm::Layer)
            .then(|| self.add(&format!("{name}.bias"), &width, Role::Vector));
        NormWeights { gain, bias }
    }

    /// A GPT-2 projection, published as `[in, out]`.
    fn conv1d(&mut self, name: &str, out: usize, input: usize, bias: bool) -> Linear {
        let weight = self.add(&format!("{name}.weight"), &[out, input], Role::Matrix);
        self.tensors[weight.tensor].published_transposed = true;
        let bias = bias.then(|| self.add(&format!("{name}.bias"), &[out], Role::Vector));
        Linear { weight, bias }
    }

    fn linear(&mut self, name: &str, out: usize, input: usize, bias: bool) -> Linear {
        let weight = self.add(&format!("{name}.weight"), &[out, input], Role::Matrix);
        let bias = bias.then(|| self.add(&format!("{name}.bias"), &[out], Role::Vector));
        Linear { weight, bias }
    }

    fn layer(&mut self, layer: usize) -> Layer {
        let a = self.a;
        let gpt2 = a.names == Names::Gpt2;
        let prefix = if gpt2 { format!("h.{layer}") } else { format!("model.layers.{layer}") };
        let name = if gpt2 { "ln_1" } else { "input_layernorm" };
        let attention_norm = self.norm(&format!("{prefix}.{name}"));
        let (q, kv) = (a.heads * a.head_dim, a.kv_heads * a.head_dim);
        let qkv = match gpt2 {
            true => self.fused_qkv(&format!("{prefix}.attn.c_attn"), q, kv),
            false => self.separate_qkv(&format!("{prefix}.self_attn"), q, kv),
        };
        let qk_norm = match a.qk_norm {
            QkNorm::None => None,
            QkNorm::Head => Some((a.head_dim, a.head_dim)),
            QkNorm::Projection => Some((q, kv)),
        };
        let qk_norm = qk_norm.map(|(q, k)| {
            let attention = if gpt2 { "attn" } else { "self_attn" };
            let mut gain = |what, width: usize| {
                let name = format!("{prefix}.{attention}.{what}_norm.weight");
                self.add(&name, &[width], Role::Vector)
            };
            (gain("q", q), gain("k", k))
        });
        let out = match gpt2 {
            true => self.conv1d(&format!("{prefix}.attn.c_proj"), a.d_model, q, a.attention_bias),
            false => {
                self.linear(&format!("{prefix}.self_attn.o_proj"), a.d_model, q, a.attention_bias)
            }
        };
        let name = if gpt2 { "ln_2" } else { "post_attention_layernorm" };
        let feed_norm = self.norm(&format!("{prefix}.{name}"));
        let feed = match (a.feed(layer), &a.moe) {
            (Feed::Experts, Some(moe)) => FeedWeights::Experts(self.experts(&prefix, moe)),
            _ => FeedWeights::Dense(self.mlp(&format!("{prefix}.mlp"), a.d_ff)),
        };
        Layer { attention_norm, qkv, qk_norm, out, feed_norm, feed }
    }

    fn fused_qkv(&mut self, name: &str, q: usize, kv: usize) -> Linear {
        let linear = self.conv1d(name, q + 2 * kv, self.a.d_model, self.a.attention_bias);
        let part = |label: &str, rows| Part { label: label.into(), rows };
        self.tensors[linear.weight.tensor].parts =
            vec![part("q", 0..q), part("k", q..q + kv), part("v", q + kv..q + 2 * kv)];
        linear
    }

    fn separate_qkv(&mut self, name: &str, q: usize, kv: usize) -> Linear {
        let members = |what: &str| {
            [("q", q), ("k", kv), ("v", kv)].map(|(x, n)| (format!("{name}.{x}_proj.{what}"), n))
        };
        let weight = self.fuse(&members("weight"), &[self.a.d_model], Role::Matrix);
        let bias = self.a.attention_bias.then(|| self.fuse(&members("bias"), &[], Role::Vector));
        Linear { weight, bias }
    }

    fn mlp(&mut self, name: &str, width: usize) -> Mlp {
        let (a, d) = (self.a, self.a.d_model);
        match (a.activation, a.names) {
            (Activation::Gelu, Names::Gpt2) => Mlp {
                up: self.conv1d(&format!("{name}.c_fc"), width, d, a.mlp_bias),
                down: self.conv1d(&format!("{name}.c_proj"), d, width, a.mlp_bias),
            },
            (Activation::Gelu, _) => Mlp {
                up: self.linear(&format!("{name}.up_proj"), width, d, a.mlp_bias),
                down: self.linear(&format!("{name}.down_proj"), d, width, a.mlp_bias),
            },
            (Activation::Swiglu, _) => {
                let members = ["gate", "up"].map(|x| (format!("{name}.{x}_proj.weight"), width));
                let up = self.fuse(&members, &[d], Role::Matrix);
                let down = self.add(&format!("{name}.down_proj.weight"), &[d, width], Role::Matrix);
                let plain = |weight| Linear { weight, bias: None };
                Mlp { up: plain(up), down: plain(down) }
            }
        }
    }

    fn experts(&mut self, prefix: &str, moe: &Moe) -> Experts {
        let (d, mixtral) = (self.a.d_model, self.a.names == Names::Mixtral);
        let block = if mixtral { "block_sparse_moe" } else { "mlp" };
        let base = format!("{prefix}.{block}");
        let router = self.add(&format!("{base}.gate.weight"), &[moe.experts, d], Role::Router);
        let names =
            if mixtral { ["w1", "w3", "w2"] } else { ["gate_proj", "up_proj", "down_proj"] };
        let name = |e: usize, i: usize| format!("{base}.experts.{e}.{}.weight", names[i]);
        let of = moe.experts as u32;
        let mut gate_up = None;
        for e in 0..moe.experts {
            for i in 0..2 {
                let role = Role::Expert { index: e as u32, of };
                self.join(&mut gate_up, &name(e, i), &[moe.d_ff, d], role);
            }
        }
        let mut down = None;
        for e in 0..moe.experts {
            let role = Role::Expert { index: e as u32, of };
            self.join(&mut down, &name(e, 2), &[d, moe.d_ff], role);
        }
        let shared = (moe.shared_experts > 0)
            .then(|| self.mlp(&format!("{base}.shared_experts"), moe.shared_experts * moe.d_ff));
        Experts {
            router,
            gate_up: gate_up.expect("a mixture has experts"),
            down: down.expect("a mixture has experts"),
            shared,
            bias_name: format!("{base}.gate.e_score_correction_bias"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ModelConfig, Preset};

    fn preset(preset: Preset) -> (Architecture, Schema) {
        let config = ModelConfig { preset: Some(preset), ..ModelConfig::default() };
        let a = config.resolve(257, 64).unwrap();
        let (schema, _) = parameters(&a).unwrap();
        (a, schema)
    }

    #[test]
    fn published_sizes() {
        // Parameter counts of the published checkpoints.
        for (name, total) in [
            (Preset::Gpt2124m, 124_439_808),
            (Preset::Llama3_8b, 8_030_261_248),
            (Preset::Qwen3Moe30b, 30_532_122_624),
            (Preset::Olmoe7b, 6_919_161_856),
            (Preset::Mixtral8x7b, 46_702_792_704),
        ] {
            assert_eq!(preset(name).1.parameters(), total, "{name:?}");
        }
        let (a, schema) = preset(Preset::Qwen3Moe30b);
        assert_eq!(active_parameters(&a, &schema), 3_353_032_704);
    }

    #[test]
    fn fused_members_are_adjacent() {
        let (_, schema) = preset(Preset::TinyMoe);
        let flat = FlatLayout::new(&schema, 1 << 20);
        let start = |name: &str| flat.offsets[schema.find(name).unwrap()];
        let layer = "model.layers.1.mlp.experts";
        let gate = start(&format!("{layer}.0.gate_proj.weight"));
        assert_eq!(start(&format!("{layer}.0.up_proj.weight")), gate + 128 * 128);
        assert_eq!(start(&format!("{layer}.3.gate_proj.weight")), gate + 6 * 128 * 128);
    }

    #[test]
    fn gpt2_names_its_fused_projection() {
        let (_, schema) = preset(Preset::Gpt2124m);
        let index = schema.find("h.11.attn.c_attn.weight").unwrap();
        let tensor = &schema.tensors[index];
        assert!(tensor.published_transposed);
        assert_eq!(tensor.shape, [2304, 768]);
        assert_eq!(tensor.row_ranges(), [0..768, 768..1536, 1536..2304]);
    }
}
