//! A small GPT-2 as one writes it with candle, and runs of it.
#![allow(dead_code)] // Each test binary uses its part.

use std::path::Path;

use candle_core::{D, DType, Device, Result, Tensor};
use candle_engine::{Builder, CandleEngine, Init, Tokens, cross_entropy, seed};
use candle_nn::ops::{layer_norm_slow, softmax};
use candle_nn::{VarBuilder, VarMap};
use comm::World;
use data::Dataset;
use serde_json::json;
use train::{Config, Engine, Parts, RunPlan, TrainError, Trainer};

pub const VOCAB: usize = 257;
pub const LAYERS: usize = 2;
pub const WIDTH: usize = 32;
const HEADS: usize = 4;
const WINDOW: usize = 32;
const EPS: f64 = 1e-5;

pub struct Norm {
    gain: Tensor,
    bias: Tensor,
}

impl Norm {
    fn new(vb: VarBuilder) -> Result<Norm> {
        Ok(Norm { gain: vb.get(WIDTH, "weight")?, bias: vb.get(WIDTH, "bias")? })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        layer_norm_slow(x, &self.gain, &self.bias, EPS as f32)
    }
}

struct Linear {
    weight: Tensor,
    bias: Tensor,
}

impl Linear {
    fn new(out: usize, into: usize, vb: VarBuilder) -> Result<Linear> {
        Ok(Linear { weight: vb.get((out, into), "weight")?, bias: vb.get(out, "bias")? })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.broadcast_matmul(&self.weight.t()?)?.broadcast_add(&self.bias)
    }
}

struct Block {
    norms: [Norm; 2],
    attention: [Linear; 2],
    mlp: [Linear; 2],
}

/// The tanh form, with as many digits as the constants have.
fn gelu(x: &Tensor) -> Result<Tensor> {
    let cube = (x * x)?.mul(x)?;
    let inner = ((x + (cube * 0.044715)?)? * (2.0 / std::f64::consts::PI).sqrt())?;
    (x * 0.5)? * (inner.tanh()? + 1.0)?
}

impl Block {
    fn new(vb: &VarBuilder) -> Result<Block> {
        Ok(Block {
            norms: [Norm::new(vb.pp("ln_1"))?, Norm::new(vb.pp("ln_2"))?],
            attention: [
                Linear::new(3 * WIDTH, WIDTH, vb.pp("attn.c_attn"))?,
                Linear::new(WIDTH, WIDTH, vb.pp("attn.c_proj"))?,
            ],
            mlp: [
                Linear::new(4 * WIDTH, WIDTH, vb.pp("mlp.c_fc"))?,
                Linear::new(WIDTH, 4 * WIDTH, vb.pp("mlp.c_proj"))?,
            ],
        })
    }

    fn forward(&self, x: &Tensor, mask: &Tensor) -> Result<Tensor> {
        let (windows, positions, _) = x.dims3()?;
        let qkv = self.attention[0].forward(&self.norms[0].forward(x)?)?;
        let head = |at: usize| {
            let rows = qkv.narrow(D::Minus1, at * WIDTH, WIDTH)?;
            rows.reshape((windows, positions, HEADS, WIDTH / HEADS))?.transpose(1, 2)?.contiguous()
        };
        let (q, k, v) = (head(0)?, head(1)?, head(2)?);
        let scores = (q.matmul(&k.t()?)? / ((WIDTH / HEADS) as f64).sqrt())?;
        let p = softmax(&scores.broadcast_add(mask)?, D::Minus1)?;
        let o = p.matmul(&v)?.transpose(1, 2)?.reshape((windows, positions, WIDTH))?;
        let x = (x + self.attention[1].forward(&o)?)?;
        let h = gelu(&self.mlp[0].forward(&self.norms[1].forward(&x)?)?)?;
        x + self.mlp[1].forward(&h)?
    }
}

pub struct Gpt2 {
    tokens: Tensor,
    positions: Tensor,
    blocks: Vec<Block>,
    norm: Norm,
}

impl Gpt2 {
    pub fn new(vb: VarBuilder) -> Result<Gpt2> {
        Ok(Gpt2 {
            tokens: vb.get((VOCAB, WIDTH), "wte.weight")?,
            positions: vb.get((WINDOW, WIDTH), "wpe.weight")?,
            blocks: (0..LAYERS).map(|l| Block::new(&vb.pp("h").pp(l))).collect::<Result<_>>()?,
            norm: Norm::new(vb.pp("ln_f"))?,
        })
    }

    pub fn loss(&self, of: &Tokens) -> Result<Tensor> {
        let (windows, positions) = of.inputs.dims2()?;
        let x = self.tokens.index_select(&of.inputs.flatten_all()?, 0)?;
        let x = x.reshape((windows, positions, WIDTH))?;
        let mut x = x.broadcast_add(&self.positions.narrow(0, 0, positions)?)?;
        let mask = mask(&of.doc_start)?;
        for block in &self.blocks {
            x = block.forward(&x, &mask)?;
        }
        let h = self.norm.forward(&x)?;
        cross_entropy(&h.broadcast_matmul(&self.tokens.t()?)?, &of.targets)
    }
}

/// `[B, 1, T, T]`: zero where a position sees another, of its document and not later.
fn mask(doc_start: &Tensor) -> Result<Tensor> {
    let (windows, positions) = doc_start.dims2()?;
    let starts = doc_start.to_vec2::<u32>()?;
    let sees = |start: u32, at: usize, other: usize| other <= at && other >= start as usize;
    let mut values = Vec::with_capacity(windows * positions * positions);
    for window in &starts {
        for (at, &start) in window.iter().enumerate() {
            let row = (0..positions).map(|other| if sees(start, at, other) { 0.0 } else { -1e30 });
            values.extend(row.map(|value| value as f32));
        }
    }
    Tensor::from_vec(values, (windows, 1, positions, positions), doc_start.device())
}

/// A run on a text in `dir`, which is also what the native engine needs to know of the model.
pub fn config(dir: &Path, leaves: usize) -> Config {
    let text = dir.join("text.txt");
    let words = (0..6000_u32).map(|i| format!("{} ", i.wrapping_mul(2_654_435_761) >> 21));
    std::fs::write(&text, words.collect::<String>()).unwrap();
    let value = json!({
        "model": {
            "names": "gpt2", "vocab_size": VOCAB, "layers": LAYERS, "d_model": WIDTH,
            "heads": HEADS, "d_ff": 4 * WIDTH,
            "norm": "layer", "norm_eps": EPS, "positions": {"learned": {"max": WINDOW}},
            "attention_bias": true, "mlp_bias": true, "activation": "gelu",
            "tie_embeddings": true,
        },
        "data": {"tokenizer": "byte", "files": text},
        "batch": {"leaves": leaves, "micro_batches": 2, "micro_batch": 2, "seq_len": WINDOW},
        "train": {"steps": 50},
    });
    serde_json::from_value(value).unwrap()
}

pub fn dataset(config: &Config, cache: &Path) -> Dataset {
    let prepared = data::prepare(&config.data, cache, "", &mut |_| ()).unwrap();
    let fraction = config.data.validation_fraction;
    Dataset::open(&prepared, config.batch.seq_len, config.seed, fraction).unwrap()
}

pub fn init(name: &str, shape: &[usize]) -> Init {
    match shape.len() {
        1 if name.ends_with(".weight") => Init::Const(1.0),
        1 => Init::Const(0.0),
        _ => Init::Normal { std: 0.05 },
    }
}

/// The three matrices that a fused one is.
pub const QKV: [(&str, usize); 3] = [("q", WIDTH), ("k", WIDTH), ("v", WIDTH)];

/// An engine whose variables begin as `seed` says.
pub fn engine(
    config: &Config,
    device: &device::Device,
    from: u64,
) -> std::result::Result<
    CandleEngine<impl FnMut(&Tokens) -> Result<Tensor> + use<>>,
    candle_engine::CandleError,
> {
    let vars = VarMap::new();
    let model = Gpt2::new(VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu))?;
    seed(&vars, from, init)?;
    let builder = Builder::new(&vars).parts("*c_attn.weight", &QKV);
    builder.build(device, config, move |tokens: &Tokens| model.loss(tokens))
}

/// One rank of any engine.
pub fn trainer<E: Engine>(
    config: &Config,
    cache: &Path,
    world: World,
    device: &device::Device,
    engine: E,
) -> std::result::Result<Trainer<E>, TrainError> {
    let plan = RunPlan::of(config, engine.declared().clone(), world.size(), device.threads())?;
    let dataset = dataset(config, cache);
    let (config, device) = (config.clone(), device.clone());
    Trainer::new(Parts { config, plan, world, device, optimizer_device: None, dataset, engine })
}
