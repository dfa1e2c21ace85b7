//! A 4-layer transformer trained by candle on the CPU: the peer of `benches/cpu/small.yaml`.
//!
//! The shape of `small_jax.py`: d 256, 4 layers, 4 heads, MLP 4d (GELU), sequence 128, batch 8,
//! vocabulary 4096, tied embedding, learned positions, LayerNorm, f32, AdamW without clipping.
//! Only operations with a gradient are used. Prints the median step time and tokens per second.
//!
//! It is built in this workspace, so that candle's products have AVX-512, which its own default
//! features leave out.
//!
//! ```text
//! RAYON_NUM_THREADS=2 cargo bench -p oracle --bench small_candle
//! ```

use std::time::Instant;

use candle_core::{D, DType, Device, Result, Tensor, Var};
use candle_nn::{AdamW, Optimizer, ParamsAdamW};

const VOCAB: usize = 4096;
const POSITIONS: usize = 128;
const BATCH: usize = 8;
const LAYERS: usize = 4;
const HEADS: usize = 4;
const WIDTH: usize = 256;
const STEPS: usize = 10;
const WARM_UP: usize = 3;

struct Norm {
    weight: Var,
    bias: Var,
}

struct Linear {
    /// `[in, out]`.
    weight: Var,
    bias: Var,
}

struct Layer {
    norms: [Norm; 2],
    qkv: Linear,
    out: Linear,
    up: Linear,
    down: Linear,
}

struct Model {
    tokens: Var,
    positions: Var,
    layers: Vec<Layer>,
    last: Norm,
    mask: Tensor,
}

fn normal(rows: usize, cols: usize) -> Result<Var> {
    Var::randn(0_f32, 0.02, (rows, cols), &Device::Cpu)
}

impl Norm {
    fn new() -> Result<Norm> {
        Ok(Norm {
            weight: Var::ones(WIDTH, DType::F32, &Device::Cpu)?,
            bias: Var::zeros(WIDTH, DType::F32, &Device::Cpu)?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let variance = x.sqr()?.mean_keepdim(D::Minus1)?;
        let x = x.broadcast_div(&(variance + 1e-5)?.sqrt()?)?;
        x.broadcast_mul(&self.weight)?.broadcast_add(&self.bias)
    }
}

impl Linear {
    fn new(inputs: usize, outputs: usize) -> Result<Linear> {
        let bias = Var::zeros(outputs, DType::F32, &Device::Cpu)?;
        Ok(Linear { weight: normal(inputs, outputs)?, bias })
    }

    /// `x` is `[rows, in]`.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.matmul(&self.weight)?.broadcast_add(&self.bias)
    }
}

impl Layer {
    fn new() -> Result<Layer> {
        Ok(Layer {
            norms: [Norm::new()?, Norm::new()?],
            qkv: Linear::new(WIDTH, 3 * WIDTH)?,
            out: Linear::new(WIDTH, WIDTH)?,
            up: Linear::new(WIDTH, 4 * WIDTH)?,
            down: Linear::new(4 * WIDTH, WIDTH)?,
        })
    }

    fn forward(&self, x: &Tensor, mask: &Tensor) -> Result<Tensor> {
        let width = WIDTH / HEADS;
        let qkv = self.qkv.forward(&self.norms[0].forward(x)?)?;
        let head = |i: usize| {
            qkv.narrow(1, i * WIDTH, WIDTH)?
                .reshape((BATCH, POSITIONS, HEADS, width))?
                .transpose(1, 2)?
                .contiguous()
        };
        let (q, k, v) = (head(0)?, head(1)?, head(2)?);
        let scores = (q.matmul(&k.t()?)? / (width as f64).sqrt())?.broadcast_add(mask)?;
        let scores = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?.exp()?;
        let scores = scores.broadcast_div(&scores.sum_keepdim(D::Minus1)?)?;
        let y = scores.matmul(&v)?.transpose(1, 2)?.reshape((BATCH * POSITIONS, WIDTH))?;
        let x = (x + self.out.forward(&y)?)?;
        let h = self.up.forward(&self.norms[1].forward(&x)?)?.gelu()?;
        x + self.down.forward(&h)?
    }
}

impl Model {
    fn new() -> Result<Model> {
        let above = |i: usize, j: usize| if j > i { f32::NEG_INFINITY } else { 0.0 };
        let mask = (0..POSITIONS * POSITIONS).map(|n| above(n / POSITIONS, n % POSITIONS));
        Ok(Model {
            tokens: normal(VOCAB, WIDTH)?,
            positions: normal(POSITIONS, WIDTH)?,
            layers: (0..LAYERS).map(|_| Layer::new()).collect::<Result<_>>()?,
            last: Norm::new()?,
            mask: Tensor::from_iter(mask, &Device::Cpu)?.reshape((POSITIONS, POSITIONS))?,
        })
    }

    fn variables(&self) -> Vec<Var> {
        let mut all = vec![self.tokens.clone(), self.positions.clone()];
        let norms = self.layers.iter().flat_map(|layer| &layer.norms);
        for norm in norms.chain([&self.last]) {
            all.extend([norm.weight.clone(), norm.bias.clone()]);
        }
        for layer in &self.layers {
            for linear in [&layer.qkv, &layer.out, &layer.up, &layer.down] {
                all.extend([linear.weight.clone(), linear.bias.clone()]);
            }
        }
        all
    }

    /// Mean cross-entropy.
    fn loss(&self, tokens: &Tensor, targets: &Tensor) -> Result<Tensor> {
        let x = self.tokens.index_select(tokens, 0)?.reshape((BATCH, POSITIONS, WIDTH))?;
        let x = x.broadcast_add(&self.positions)?;
        let mut x = x.reshape((BATCH * POSITIONS, WIDTH))?;
        for layer in &self.layers {
            x = layer.forward(&x, &self.mask)?;
        }
        let logits = self.last.forward(&x)?.matmul(&self.tokens.t()?)?;
        let logits = logits.broadcast_sub(&logits.max_keepdim(1)?.detach())?;
        let normalizer = logits.exp()?.sum_keepdim(1)?.log()?;
        let picked = logits.gather(&targets.unsqueeze(1)?, 1)?;
        (normalizer - picked)?.mean_all()
    }
}

/// Token ids of step `step`; splitmix64.
fn random_tokens(step: usize) -> Result<(Tensor, Tensor)> {
    let id = |n: usize| {
        let mut z =
            ((step * (BATCH * POSITIONS + 1) + n) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % VOCAB as u64) as u32
    };
    let part =
        |from: usize| Tensor::from_iter((from..from + BATCH * POSITIONS).map(id), &Device::Cpu);
    Ok((part(0)?, part(1)?))
}

fn main() -> Result<()> {
    let model = Model::new()?;
    let settings = ParamsAdamW { lr: 3e-4, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1 };
    let mut optimizer = AdamW::new(model.variables(), settings)?;
    let mut times_ms = Vec::new();
    let mut last = 0.0;
    for step in 0..WARM_UP + STEPS {
        let (tokens, targets) = random_tokens(step)?;
        let started = Instant::now();
        let loss = model.loss(&tokens, &targets)?;
        let gradients = loss.backward()?;
        optimizer.step(&gradients)?;
        last = loss.to_scalar::<f32>()?;
        if step >= WARM_UP {
            times_ms.push(started.elapsed().as_secs_f64() * 1e3);
        }
    }
    times_ms.sort_by(f64::total_cmp);
    let median = times_ms[STEPS / 2];
    let rate = (BATCH * POSITIONS) as f64 / median * 1e3;
    println!("candle loss {last:.4}: median {median:.0} ms, {rate:.0} tok/s");
    Ok(())
}
