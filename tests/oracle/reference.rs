//! The model, from its architecture alone.

use std::collections::HashMap;

use candle_core::{DType, Device, Result, Tensor, Var};
use kernels::rope::Pairs;
use layout::Schema;
use model::config::{Activation, Names};
use model::{Architecture, Feed, Inputs, Latent, Moe, Norm, Positions, QkNorm};

use super::basic;

/// The model with its weights as variables.
pub struct Reference {
    a: Architecture,
    dtype: DType,
    /// In schema order.
    pub variables: Vec<Var>,
    index: HashMap<String, usize>,
    /// Balancing bias of each layer with experts.
    pub router_bias: Vec<Vec<f64>>,
}

/// The results of one pass over a micro-batch.
pub struct Pass {
    /// Summed cross-entropy.
    pub loss: f64,
    /// Per tensor of the schema; `None` where nothing depends on it.
    pub gradients: Vec<Option<Tensor>>,
    /// Tokens per expert of each layer with experts.
    pub loads: Vec<Vec<u32>>,
    /// Experts of each token, of each layer with experts, best first.
    pub chosen: Vec<Vec<Vec<usize>>>,
    /// How near each of these choices was to a tie.
    pub margins: Vec<Vec<f64>>,
}

/// A micro-batch on its way through the layers.
struct Run<'a> {
    windows: usize,
    positions: usize,
    inputs: &'a Inputs<'a>,
    mask: Tensor,
    auxiliary: Tensor,
    loads: Vec<Vec<u32>>,
    chosen: Vec<Vec<Vec<usize>>>,
    margins: Vec<Vec<f64>>,
}

/// The values of a tensor.
pub fn host(tensor: &Tensor) -> Vec<f64> {
    let values = tensor.flatten_all().and_then(|t| t.to_dtype(DType::F64)?.to_vec1());
    values.expect("any tensor can be copied to f64")
}

impl Reference {
    /// A model in `dtype` with the given values, one vector per tensor of the schema.
    pub fn new(
        a: &Architecture,
        schema: &Schema,
        dtype: DType,
        values: &[Vec<f64>],
    ) -> Result<Reference> {
        let (mut variables, mut index) = (Vec::new(), HashMap::new());
        for (tensor, values) in schema.tensors.iter().zip(values) {
            let value = Tensor::from_slice(values, tensor.shape.as_slice(), &Device::Cpu)?;
            index.insert(tensor.name.clone(), variables.len());
            variables.push(Var::from_tensor(&value.to_dtype(dtype)?)?);
        }
        let experts = a.moe.as_ref().map_or(0, |moe| moe.experts);
        let router_bias = vec![vec![0.0; experts]; a.moe_layers()];
        Ok(Reference { a: a.clone(), dtype, variables, index, router_bias })
    }

    /// Loss and gradients of the summed loss; the auxiliary losses count once per target.
    pub fn pass(&self, windows: usize, inputs: &Inputs) -> Result<Pass> {
        let positions = inputs.tokens.len() / windows;
        let mut run = Run {
            windows,
            positions,
            inputs,
            mask: basic::mask(inputs.doc_start, positions, self.dtype)?,
            auxiliary: Tensor::zeros((), self.dtype, &Device::Cpu)?,
            loads: Vec::new(),
            chosen: Vec::new(),
            margins: Vec::new(),
        };
        let losses = self.losses(&mut run)?;
        let targets = losses.dim(0)? as f64;
        let loss = losses.sum_all()?;
        let gradients = (&loss + (&run.auxiliary * targets)?)?.backward()?;
        let gradients = self.variables.iter().map(|v| gradients.get(v).cloned()).collect();
        let loss = loss.to_dtype(DType::F64)?.to_scalar()?;
        let Run { loads, chosen, margins, .. } = run;
        Ok(Pass { loss, gradients, loads, chosen, margins })
    }

    fn losses(&self, run: &mut Run) -> Result<Tensor> {
        let gpt2 = self.a.names == Names::Gpt2;
        let table = self.weight(if gpt2 { "wte" } else { "model.embed_tokens" });
        let mut x = table.index_select(&Tensor::new(run.inputs.tokens, &Device::Cpu)?, 0)?;
        if let Positions::Learned { .. } = self.a.positions {
            let table = self.weight(if gpt2 { "wpe" } else { "model.embed_positions" });
            let positions = (0..run.windows).flat_map(|_| 0..run.positions as u32);
            let positions = Tensor::new(positions.collect::<Vec<u32>>(), &Device::Cpu)?;
            x = (x + table.index_select(&positions, 0)?)?;
        }
        for layer in 0..self.a.layers {
            let (block, names) = match gpt2 {
                true => (format!("h.{layer}"), ["ln_1", "ln_2"]),
                false => (
                    format!("model.layers.{layer}"),
                    ["input_layernorm", "post_attention_layernorm"],
                ),
            };
            let h = self.norm(&x, &format!("{block}.{}", names[0]))?;
            let mixed = match self.a.latent {
                Some(latent) => self.latent_attention(&h, &block, latent, run)?,
                None => self.attention(&h, &block, run)?,
            };
            x = (&x + mixed)?;
            let h = self.norm(&x, &format!("{block}.{}", names[1]))?;
            let feed = match (self.a.feed(layer), &self.a.moe) {
                (Feed::Experts, Some(moe)) => self.experts(&h, &block, moe, run)?,
                _ => self.mlp(&h, &format!("{block}.mlp"))?,
            };
            x = (x + feed)?;
        }
        let h = self.norm(&x, if gpt2 { "ln_f" } else { "model.norm" })?;
        let head = if self.a.tie_embeddings { table } else { self.weight("lm_head") };
        basic::cross_entropy(&basic::linear(&h, head)?, run.inputs.targets)
    }

    fn attention(&self, h: &Tensor, block: &str, run: &Run) -> Result<Tensor> {
        let a = &self.a;
        let (wide, narrow) = (a.heads * a.head_dim, a.kv_heads * a.head_dim);
        let name = match a.names {
            Names::Gpt2 => format!("{block}.attn"),
            _ => format!("{block}.self_attn"),
        };
        let project = |what: &str| self.project(h, &format!("{name}.{what}"), a.attention_bias);
        let [mut q, mut k, v] = match a.names {
            Names::Gpt2 => {
                let fused = project("c_attn")?;
                let part = |start, len| fused.narrow(1, start, len);
                [part(0, wide)?, part(wide, narrow)?, part(wide + narrow, narrow)?]
            }
            _ => [project("q_proj")?, project("k_proj")?, project("v_proj")?],
        };
        let gained = |x: &Tensor, what: &str| {
            basic::rms_norm(x, self.weight(&format!("{name}.{what}_norm")), a.norm_eps)
        };
        if a.qk_norm == QkNorm::Projection {
            (q, k) = (gained(&q, "q")?, gained(&k, "k")?);
        }
        let cut = |x: Tensor, heads: usize| {
            let x = x.reshape((run.windows, run.positions, heads, a.head_dim))?;
            x.transpose(1, 2)?.contiguous()
        };
        let (mut q, mut k, v) = (cut(q, a.heads)?, cut(k, a.kv_heads)?, cut(v, a.kv_heads)?);
        if a.qk_norm == QkNorm::Head {
            (q, k) = (gained(&q, "q")?, gained(&k, "k")?);
        }
        if let Positions::Rotary { theta, scaling } = a.positions {
            assert!(scaling.is_none(), "no preset has {scaling:?} here");
            let frequencies = basic::frequencies(theta, scaling, a.head_dim);
            let turned = |x: &Tensor| basic::rotate(x, &frequencies, Pairs::Halves);
            (q, k) = (turned(&q)?, turned(&k)?);
        }
        let out = basic::attention(&q, &k, &v, &run.mask)?;
        let out = out.transpose(1, 2)?.reshape((run.windows * run.positions, wide))?;
        let what = if a.names == Names::Gpt2 { "c_proj" } else { "o_proj" };
        self.project(&out, &format!("{name}.{what}"), a.attention_bias)
    }

    /// DeepSeek's, with keys and values written out, as their inference code has it (naive `MLA`).
    fn latent_attention(
        &self,
        h: &Tensor,
        block: &str,
        latent: Latent,
        run: &Run,
    ) -> Result<Tensor> {
        let (a, name) = (&self.a, format!("{block}.self_attn"));
        let Latent { q_rank, kv_rank, nope_dim, rope_dim, value_dim, norm_eps } = latent;
        let Positions::Rotary { theta, scaling } = a.positions else {
            panic!("latent attention rotates")
        };
        let project = |x: &Tensor, what: &str| self.project(x, &format!("{name}.{what}"), false);
        let normed = |x: &Tensor, what: &str| {
            let eps = norm_eps.unwrap_or(a.norm_eps);
            basic::rms_norm(x, self.weight(&format!("{name}.{what}")), eps)
        };
        // `[B, heads, T, width]`.
        let cut = |x: &Tensor, heads: usize| {
            let width = x.dim(1)? / heads;
            let x = x.reshape((run.windows, run.positions, heads, width))?;
            x.transpose(1, 2)?.contiguous()
        };
        let frequencies = basic::frequencies(theta, scaling, rope_dim);
        let turned = |x: &Tensor| basic::rotate(&x.contiguous()?, &frequencies, Pairs::Neighbours);
        let q = match q_rank {
            Some(_) => project(&normed(&project(h, "q_a_proj")?, "q_a_layernorm")?, "q_b_proj")?,
            None => project(h, "q_proj")?,
        };
        let q = cut(&q, a.heads)?;
        let q_rope = turned(&q.narrow(3, nope_dim, rope_dim)?)?;
        let q = Tensor::cat(&[&q.narrow(3, 0, nope_dim)?, &q_rope], 3)?;
        let q = (q * basic::sharpness(scaling))?;
        let short = project(h, "kv_a_proj_with_mqa")?;
        let k_rope = turned(&cut(&short.narrow(1, kv_rank, rope_dim)?, 1)?)?;
        let shape = (run.windows, a.heads, run.positions, rope_dim);
        let k_rope = k_rope.broadcast_as(shape)?.contiguous()?;
        let kv = project(&normed(&short.narrow(1, 0, kv_rank)?, "kv_a_layernorm")?, "kv_b_proj")?;
        let kv = cut(&kv, a.heads)?;
        let k = Tensor::cat(&[&kv.narrow(3, 0, nope_dim)?, &k_rope], 3)?;
        let v = kv.narrow(3, nope_dim, value_dim)?.contiguous()?;
        let out = basic::attention(&q, &k, &v, &run.mask)?;
        let rows = run.windows * run.positions;
        let out = out.transpose(1, 2)?.reshape((rows, a.heads * value_dim))?;
        project(&out, "o_proj")
    }

    fn mlp(&self, h: &Tensor, name: &str) -> Result<Tensor> {
        let project =
            |x: &Tensor, what: &str| self.project(x, &format!("{name}.{what}"), self.a.mlp_bias);
        match (self.a.activation, self.a.names) {
            (Activation::Swiglu, _) => {
                let act = basic::swiglu(&project(h, "gate_proj")?, &project(h, "up_proj")?)?;
                project(&act, "down_proj")
            }
            (Activation::Gelu, Names::Gpt2) => {
                project(&basic::gelu(&project(h, "c_fc")?)?, "c_proj")
            }
            (Activation::Gelu, _) => project(&basic::gelu(&project(h, "up_proj")?)?, "down_proj"),
        }
    }

    /// Each expert takes its tokens, and the weighted results go back to where they came from.
    fn experts(&self, h: &Tensor, block: &str, moe: &Moe, run: &mut Run) -> Result<Tensor> {
        let mixtral = self.a.names == Names::Mixtral;
        let name = format!("{block}.{}", if mixtral { "block_sparse_moe" } else { "mlp" });
        let [gate, up, down] = match mixtral {
            true => ["w1", "w3", "w2"],
            false => ["gate_proj", "up_proj", "down_proj"],
        };
        let logits = basic::linear(h, self.weight(&format!("{name}.gate")))?;
        let routed = basic::route(moe, &logits, &self.router_bias[run.loads.len()])?;
        let weights = routed.weights.flatten_all()?;
        let mut out = h.zeros_like()?;
        if moe.shared_experts > 0 {
            out = self.mlp(h, &format!("{name}.shared_experts"))?;
        }
        for expert in 0..moe.experts {
            let choices = routed.chosen.iter().flatten().enumerate();
            let choices = choices.filter(|(_, chosen)| **chosen == expert).map(|(i, _)| i);
            let choices: Vec<u32> = choices.map(|i| i as u32).collect();
            if choices.is_empty() {
                continue;
            }
            let rows: Vec<u32> = choices.iter().map(|&i| i / moe.top_k as u32).collect();
            let (rows, choices) =
                (Tensor::new(rows, &Device::Cpu)?, Tensor::new(choices, &Device::Cpu)?);
            let weight = |what: &str| self.weight(&format!("{name}.experts.{expert}.{what}"));
            let x = h.index_select(&rows, 0)?;
            let gate = basic::linear(&x, weight(gate))?;
            let act = basic::swiglu(&gate, &basic::linear(&x, weight(up))?)?;
            let y = basic::linear(&act, weight(down))?;
            let share = weights.index_select(&choices, 0)?.unsqueeze(1)?;
            out = out.index_add(&rows, &y.broadcast_mul(&share)?, 0)?;
        }
        run.auxiliary = (&run.auxiliary + routed.auxiliary)?;
        run.loads.push(routed.loads);
        run.chosen.push(routed.chosen);
        run.margins.push(routed.margins);
        Ok(out)
    }

    fn norm(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        let gain = self.weight(name);
        match self.a.norm {
            Norm::Rms => basic::rms_norm(x, gain, self.a.norm_eps),
            Norm::Layer => {
                let bias = self.find(&format!("{name}.bias"));
                basic::layer_norm(x, gain, bias, self.a.norm_eps)
            }
        }
    }

    fn project(&self, x: &Tensor, name: &str, bias: bool) -> Result<Tensor> {
        let y = basic::linear(x, self.weight(name))?;
        if bias { y.broadcast_add(self.find(&format!("{name}.bias"))) } else { Ok(y) }
    }

    fn weight(&self, name: &str) -> &Tensor {
        self.find(&format!("{name}.weight"))
    }

    fn find(&self, name: &str) -> &Tensor {
        let index = self.index.get(name);
        &self.variables[*index.unwrap_or_else(|| panic!("the schema has no `{name}`"))]
    }
}
