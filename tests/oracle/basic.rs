//! Parts of a transformer on candle's basic operations, differentiable by its autograd.

use candle_core::{D, DType, Device, Result, Tensor};
use kernels::rope::Pairs;
use model::{Moe, RotaryScaling, Scores};

/// The columns of `parts`, one after another; of some there may be none.
pub fn join(parts: &[Tensor], axis: usize) -> Result<Tensor> {
    let some: Vec<&Tensor> = parts.iter().filter(|part| part.elem_count() > 0).collect();
    Tensor::cat(&some, axis)
}

/// Along the last axis.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    let e = x.broadcast_sub(&x.max_keepdim(D::Minus1)?.detach())?.exp()?;
    e.broadcast_div(&e.sum_keepdim(D::Minus1)?)
}

/// Along the last axis, which disappears.
pub fn logsumexp(x: &Tensor) -> Result<Tensor> {
    let most = x.max_keepdim(D::Minus1)?.detach();
    let total = x.broadcast_sub(&most)?.exp()?.sum_keepdim(D::Minus1)?;
    (total.log()? + most)?.squeeze(D::Minus1)
}

pub fn sigmoid(x: &Tensor) -> Result<Tensor> {
    (x.neg()?.exp()? + 1.0)?.recip()
}

/// `x / √(mean(x²) + eps) · gain` along the last axis.
pub fn rms_norm(x: &Tensor, gain: &Tensor, eps: f64) -> Result<Tensor> {
    let rms = (x.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?;
    x.broadcast_div(&rms)?.broadcast_mul(gain)
}

/// `(x − mean) / √(var + eps) · gain + bias` along the last axis.
pub fn layer_norm(x: &Tensor, gain: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    rms_norm(&centred, gain, eps)?.broadcast_add(bias)
}

/// `x·Wᵀ`: `x [n, in]`, `w [out, in]`.
pub fn linear(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    x.matmul(&w.t()?)
}

pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gate * sigmoid(gate)? * up
}

/// In the tanh form.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    let cube = (x * x)?.mul(x)?;
    let inner = ((x + (cube * 0.044715)?)? * (2.0 / std::f64::consts::PI).sqrt())?;
    x * 0.5 * (inner.tanh()? + 1.0)?
}

/// How fast the planes of `width` elements turn: `theta^(−2j/C)`, and with YaRN as DeepSeek's
/// inference code has it (`precompute_freqs_cis`), which divides those of slow planes by a factor.
pub fn frequencies(theta: f64, scaling: Option<RotaryScaling>, width: usize) -> Vec<f64> {
    let dim = width as f64;
    let plain = (0..width / 2).map(|j| theta.powf(-2.0 * j as f64 / dim));
    let Some(scaling) = scaling else { return plain.collect() };
    let RotaryScaling::Yarn { factor, original_max_positions, beta_fast, beta_slow, .. } = scaling
    else {
        panic!("no preset has {scaling:?}")
    };
    let window = original_max_positions as f64;
    let correction = |turns: f64| {
        dim * (window / (turns * 2.0 * std::f64::consts::PI)).ln() / (2.0 * theta.ln())
    };
    let low = correction(beta_fast).floor().max(0.0);
    let mut high = correction(beta_slow).ceil().min(dim - 1.0);
    if low == high {
        high += 0.001;
    }
    let smooth = |j: usize| 1.0 - ((j as f64 - low) / (high - low)).clamp(0.0, 1.0);
    let blend = |(j, f): (usize, f64)| f / factor * (1.0 - smooth(j)) + f * smooth(j);
    plain.enumerate().map(blend).collect()
}

/// The factor of scores in DeepSeek's inference code, beside the root of their width.
pub fn sharpness(scaling: Option<RotaryScaling>) -> f64 {
    match scaling {
        None => 1.0,
        // Equal ones stretch neither queries nor keys.
        Some(RotaryScaling::Yarn { factor, mscale: Some(by), mscale_all_dim, .. })
            if mscale_all_dim == Some(by) =>
        {
            (0.1 * by * factor.ln() + 1.0).powi(2)
        }
        Some(other) => panic!("no preset has {other:?}"),
    }
}

/// Rotary positions of `x [B, heads, T, C]`: pair `j` is a plane that turns by `t` times its
/// frequency.
pub fn rotate(x: &Tensor, frequencies: &[f64], pairs: Pairs) -> Result<Tensor> {
    let (windows, heads, positions, width) = x.dims4()?;
    let half = width / 2;
    let angle = |i: usize| (i / half) as f64 * frequencies[i % half];
    let table = |f: fn(f64) -> f64| {
        let values: Vec<f64> = (0..positions * half).map(|i| f(angle(i))).collect();
        Tensor::from_vec(values, (positions, half), &Device::Cpu)?.to_dtype(x.dtype())
    };
    let (cos, sin) = (table(f64::cos)?, table(f64::sin)?);
    // Along one axis the pairs, along the other their two elements.
    let (planes, both) = match pairs {
        Pairs::Halves => (x.reshape((windows, heads, positions, 2, half))?, 3),
        Pairs::Neighbours => (x.reshape((windows, heads, positions, half, 2))?, 4),
    };
    let (a, b) = (planes.narrow(both, 0, 1)?, planes.narrow(both, 1, 1)?);
    let (a, b) = (a.squeeze(both)?, b.squeeze(both)?);
    let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
    let second = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
    Tensor::stack(&[first, second], both)?.reshape((windows, heads, positions, width))
}

/// `[B, 1, T, T]`: 0 where a query sees a key, −∞ elsewhere.
pub fn mask(doc_start: &[u32], positions: usize, dtype: DType) -> Result<Tensor> {
    let mut values = Vec::with_capacity(doc_start.len() * positions);
    for (row, &start) in doc_start.iter().enumerate() {
        let seen = start as usize..=row % positions;
        let value = |key| if seen.contains(&key) { 0.0 } else { f64::NEG_INFINITY };
        values.extend((0..positions).map(value));
    }
    let shape = (doc_start.len() / positions, 1, positions, positions);
    Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(dtype)
}

/// `q [B, H, T, C]`, `k [B, K, T, C]`, `v [B, K, T, Cv]`: query head `h` reads head `h / (H/K)`.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, mask: &Tensor) -> Result<Tensor> {
    let (windows, heads, positions, width) = q.dims4()?;
    let kv_heads = k.dim(1)?;
    let spread = |x: &Tensor| {
        let width = x.dim(3)?;
        let shape = (windows, kv_heads, heads / kv_heads, positions, width);
        x.unsqueeze(2)?.broadcast_as(shape)?.reshape((windows, heads, positions, width))
    };
    let scores = q.contiguous()?.matmul(&spread(k)?.t()?.contiguous()?)?;
    let scores = (scores / (width as f64).sqrt())?.broadcast_add(mask)?;
    softmax(&scores)?.matmul(&spread(v)?)
}

/// Cross-entropy of each row of `logits [N, V]` that has a target.
pub fn cross_entropy(logits: &Tensor, targets: &[u32]) -> Result<Tensor> {
    let live = |row: &usize| targets[*row] != kernels::loss::IGNORE;
    let rows: Vec<u32> = (0..targets.len()).filter(live).map(|row| row as u32).collect();
    let chosen: Vec<u32> = rows.iter().map(|&row| targets[row as usize]).collect();
    let rows = Tensor::new(rows, &Device::Cpu)?;
    let logits = logits.index_select(&rows, 0)?;
    let chosen = Tensor::new(chosen, &Device::Cpu)?.unsqueeze(1)?;
    logsumexp(&logits)? - logits.gather(&chosen, 1)?.squeeze(1)?
}

/// The decision of a router.
pub struct Routed {
    /// Experts of each token, best first.
    pub chosen: Vec<Vec<usize>>,
    /// `[N, A]`.
    pub weights: Tensor,
    /// Load-balancing and z-loss, per token.
    pub auxiliary: Tensor,
    /// Tokens per expert.
    pub loads: Vec<u32>,
    /// Of each token, the difference between its last chosen and its first refused expert, or
    /// group where that is less: near a tie another rounding may choose otherwise. Infinite where
    /// nothing is refused.
    pub margins: Vec<f64>,
}

/// The `count` of largest value, best first and equals in order, and how much more the last of
/// them has than the first that is refused.
fn best(mut of: Vec<usize>, count: usize, value: impl Fn(usize) -> f64) -> (Vec<usize>, f64) {
    of.sort_by(|&a, &b| value(b).total_cmp(&value(a)));
    let refused = of.get(count).map_or(f64::NEG_INFINITY, |&first| value(first));
    of.truncate(count);
    let margin = of.last().map_or(f64::INFINITY, |&last| value(last) - refused);
    (of, margin)
}

/// Routes by `logits [N, E]`; `bias` takes part in the choice alone.
pub fn route(moe: &Moe, logits: &Tensor, bias: &[f64]) -> Result<Routed> {
    let tokens = logits.dim(0)?;
    let scores = match moe.scores {
        Scores::Softmax => softmax(logits)?,
        Scores::Sigmoid => sigmoid(logits)?,
    };
    let (mut chosen, mut loads, mut margins) = (Vec::new(), vec![0; moe.experts], Vec::new());
    for row in scores.to_dtype(DType::F64)?.to_vec2::<f64>()? {
        let value = |e: usize| row[e] + bias[e];
        let group_len = moe.experts / moe.groups;
        let group_value = |group: usize| {
            let experts = (0..group_len).map(|i| group * group_len + i).collect();
            best(experts, 2, value).0.into_iter().map(value).sum()
        };
        let (groups, of_groups) = best((0..moe.groups).collect(), moe.top_groups, group_value);
        let experts = (0..moe.experts).filter(|e| groups.contains(&(e / group_len))).collect();
        let (order, of_experts) = best(experts, moe.top_k, value);
        margins.push(of_groups.min(of_experts));
        order.iter().for_each(|&e| loads[e] += 1);
        chosen.push(order);
    }
    let flat: Vec<u32> = chosen.iter().flatten().map(|&e| e as u32).collect();
    let index = Tensor::from_vec(flat, (tokens, moe.top_k), &Device::Cpu)?;
    let mut weights = scores.gather(&index, 1)?;
    if moe.normalize_top_k {
        weights = weights.broadcast_div(&weights.sum_keepdim(1)?)?;
    }
    let weights = (weights * moe.route_scale)?;
    let auxiliary = auxiliary(moe, logits, &scores, &loads)?;
    Ok(Routed { chosen, weights, auxiliary, loads, margins })
}

/// `aux · E · Σ_e f_e·P_e + z · mean(logsumexp²)`, where `f_e` is the fraction of all choices and
/// `P_e` the mean share of the scores that expert e has.
fn auxiliary(moe: &Moe, logits: &Tensor, scores: &Tensor, loads: &[u32]) -> Result<Tensor> {
    let share = scores.broadcast_div(&scores.sum_keepdim(1)?)?.mean(0)?;
    let choices: u32 = loads.iter().sum();
    let fraction = loads.iter().map(|&load| f64::from(load) / f64::from(choices));
    let fraction: Vec<f64> = fraction.collect();
    let fraction = Tensor::new(fraction, &Device::Cpu)?.to_dtype(logits.dtype())?;
    let balance = ((share * fraction)?.sum_all()? * (moe.aux_loss * moe.experts as f64))?;
    let z = (logsumexp(logits)?.sqr()?.mean_all()? * moe.z_loss)?;
    balance + z
}
