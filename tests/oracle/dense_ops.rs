//! The kernels of a dense transformer.

use candle_core::{Result, Tensor};
use kernels::attention::{self, Heads};
use kernels::gemm::{Layout, matmul};
use kernels::loss::{IGNORE, cross_entropy};
use kernels::norm::{self, Rows};
use kernels::{elementwise, embedding, rope};

use super::basic;
use super::op::{Kernels, Op, each_case};

const EPS: f64 = 1e-5;

/// RMSNorm of whole rows.
struct Rms {
    rows: usize,
    cols: usize,
    /// `dx` is added to.
    add: bool,
    accumulate: bool,
}

impl Op for Rms {
    fn name(&self) -> String {
        let Rms { rows, cols, add, accumulate } = self;
        format!("rms {rows}×{cols}, add {add}, accumulate {accumulate}")
    }

    fn shapes(&self) -> Vec<Vec<usize>> {
        vec![vec![self.rows, self.cols], vec![self.cols]]
    }

    fn forward(&self, k: &Kernels, x: &[Vec<f64>]) -> Vec<f64> {
        let rows = Rows::dense(self.rows, self.cols);
        let (y, rstd) = (k.stale(&[self.rows, self.cols]), k.stale(&[self.rows]));
        let (x, gain) = (k.tensor(&[self.rows, self.cols], &x[0]), k.tensor(&[self.cols], &x[1]));
        norm::rms_forward(&k.stream, (&x, rows), &gain, EPS, (&y, rows), &rstd).unwrap();
        k.read(&y)
    }

    fn backward(&self, k: &Kernels, x: &[Vec<f64>], dout: &[f64]) -> Vec<Vec<f64>> {
        let (shape, rows) = ([self.rows, self.cols], Rows::dense(self.rows, self.cols));
        let (y, rstd) = (k.stale(&shape), k.stale(&[self.rows]));
        let (x, gain) = (k.tensor(&shape, &x[0]), k.tensor(&[self.cols], &x[1]));
        norm::rms_forward(&k.stream, (&x, rows), &gain, EPS, (&y, rows), &rstd).unwrap();
        let (dy, dx, dgain) = (k.tensor(&shape, dout), k.stale(&shape), k.stale(&[self.cols]));
        let (dy, x, to) = ((&dy, rows), (&x, rows), (&dx, rows, self.add));
        norm::rms_backward(&k.stream, dy, x, &gain, &rstd, to, &dgain, self.accumulate).unwrap();
        vec![k.read_added(&dx, self.add), k.read_added(&dgain, self.accumulate)]
    }

    fn reference(&self, x: &[Tensor]) -> Result<Tensor> {
        basic::rms_norm(&x[0], &x[1], EPS)
    }
}

#[test]
fn rms_norm() {
    each_case(|random| {
        let (rows, cols) = (random.size(1..=40), random.size(1..=150));
        let (add, accumulate) = (random.flag(), random.flag());
        Box::new(Rms { rows, cols, add, accumulate })
    });
}

/// RMSNorm of the heads inside wider rows, whose other columns stay.
struct RmsHeads {
    rows: usize,
    before: usize,
    heads: usize,
    len: usize,
    after: usize,
    accumulate: bool,
}

impl RmsHeads {
    fn stride(&self) -> usize {
        self.before + self.heads * self.len + self.after
    }

    fn run(&self, k: &Kernels, x: &[Vec<f64>]) -> [device::Tensor; 4] {
        let shape = [self.rows, self.stride()];
        let (from, y) = (k.tensor(&shape, &x[0]), k.tensor(&shape, &x[0]));
        let (gain, rstd) = (k.tensor(&[self.len], &x[1]), k.stale(&[self.rows * self.heads]));
        let rows = self.vectors();
        norm::rms_forward(&k.stream, (&from, rows), &gain, EPS, (&y, rows), &rstd).unwrap();
        [from, gain, y, rstd]
    }

    fn vectors(&self) -> Rows {
        Rows::heads(self.rows, self.stride(), self.before, self.heads, self.len)
    }
}

impl Op for RmsHeads {
    fn name(&self) -> String {
        let RmsHeads { rows, before, heads, len, after, accumulate } = self;
        format!("rms of {heads}×{len} in {rows} rows, {before}+{after}, accumulate {accumulate}")
    }

    fn shapes(&self) -> Vec<Vec<usize>> {
        vec![vec![self.rows, self.stride()], vec![self.len]]
    }

    fn forward(&self, k: &Kernels, x: &[Vec<f64>]) -> Vec<f64> {
        let [_, _, y, _] = self.run(k, x);
        k.read(&y)
    }

    fn backward(&self, k: &Kernels, x: &[Vec<f64>], dout: &[f64]) -> Vec<Vec<f64>> {
        let [x, gain, _, rstd] = self.run(k, x);
        let (d, dgain) = (k.tensor(&[self.rows, self.stride()], dout), k.stale(&[self.len]));
        let to = (&dgain, self.accumulate);
        norm::rms_backward_in_place(&k.stream, &d, &x, self.vectors(), &gain, &rstd, to).unwrap();
        vec![k.read(&d), k.read_added(&dgain, self.accumulate)]
    }

    fn reference(&self, x: &[Tensor]) -> Result<Tensor> {
        let wide = self.heads * self.len;
        let heads = x[0].narrow(1, self.before, wide)?;
        let heads = heads.reshape((self.rows, self.heads, self.len))?;
        let heads = basic::rms_norm(&heads, &x[1], EPS)?.reshape((self.rows, wide))?;
        let before = x[0].narrow(1, 0, self.before)?;
        let after = x[0].narrow(1, self.before + wide, self.after)?;
        Tensor::cat(&[before, heads, after], 1)
    }
}

#[test]
fn rms_norm_of_heads() {
    each_case(|random| {
        Box::new(RmsHeads {
            rows: random.size(1..=30),
            before: random.size(1..=20),
            heads: random.size(1..=4),
            len: random.size(2..=80),
            after: random.size(1..=20),
            accumulate: random.flag(),
        })
    });
}

struct LayerNorm {
    rows: usize,
    cols: usize,
    add: bool,
    accumulate: bool,
}

impl LayerNorm {
    fn run(&self, k: &Kernels, x: &[Vec<f64>]) -> [device::Tensor; 4] {
        let shape = [self.rows, self.cols];
        let (from, gain) = (k.tensor(&shape, &x[0]), k.tensor(&[self.cols], &x[1]));
        let bias = k.tensor(&[self.cols], &x[2]);
        let (y, stats) = (k.stale(&shape), k.stale(&[self.rows, 2]));
        norm::layer_forward(&k.stream, &from, (&gain, &bias), EPS, &y, &stats).unwrap();
        [from, gain, y, stats]
    }
}

impl Op for LayerNorm {
    fn name(&self) -> String {
        let LayerNorm { rows, cols, add, accumulate } = self;
        format!("layer norm {rows}×{cols}, add {add}, accumulate {accumulate}")
    }

    fn shapes(&self) -> Vec<Vec<usize>> {
        vec![vec![self.rows, self.cols], vec![self.cols], vec![self.cols]]
    }

    fn forward(&self, k: &Kernels, x: &[Vec<f64>]) -> Vec<f64> {
        let [_, _, y, _] = self.run(k, x);
        k.read(&y)
    }

    fn backward(&self, k: &Kernels, x: &[Vec<f64>], dout: &[f64]) -> Vec<Vec<f64>> {
        let [x, gain, _, stats] = self.run(k, x);
        let shape = [self.rows, self.cols];
        let (dy, dx) = (k.tensor(&shape, dout), k.stale(&shape));
        let (dgain, dbias) = (k.stale(&[self.cols]), k.stale(&[self.cols]));
        let (to, gradients) = ((&dx, self.add), (&dgain, &dbias));
        let accumulate = self.accumulate;
        norm::layer_backward(&k.stream, &dy, &x, &gain, &stats, to, gradients, accumulate).unwrap();
        let [dgain, dbias] = [dgain, dbias].map(|d| k.read_added(&d, accumulate));
        vec![k.read_added(&dx, self.add), dgain, dbias]
    }

    fn reference(&self, x: &[Tensor]) -> Result<Tensor> {
        basic::layer_norm(&x[0], &x[1], &x[2], EPS)
    }
}

#[test]
fn layer_norm() {
    each_case(|random| {
        // One column has no variance: its gradient is that of a constant.
        let (rows, cols) = (random.size(1..=40), random.size(2..=150));
        let (add, accumulate) = (random.flag(), random.flag());
        Box::new(LayerNorm { rows, cols, add, accumulate })
    });
}

/// Rotation of the first heads of wider rows.
struct Rope {
    windows: usize,
    positions: usize,
    heads: usize,
    head_dim: usize,
    after: usize,
    theta: f64,
}

impl Rope {
    fn run(&self, k: &Kernels, x: &[f64], inverse: bool) -> Vec<f64> {
        let stride = self.heads * self.head_dim + self.after;
        let x = k.tensor(&[self.windows * self.positions, stride], x);
        let (theta, dtype) = (self.theta, device::DType::F64);
        let table = rope::table(&k.device, self.positions, self.head_dim, theta, dtype).unwrap();
        rope::rotate(&k.stream, &table, &x, self.heads, inverse).unwrap();
        k.read(&x)
    }
}

impl Op for Rope {
    fn name(&self) -> String {
        let Rope { windows, positions, heads, head_dim, .. } = self;
        format!("rope of {heads}×{head_dim} at {windows}×{positions}")
    }

    fn shapes(&self) -> Vec<Vec<usize>> {
        vec![vec![self.windows * self.positions, self.heads * self.head_dim + self.after]]
    }

    fn forward(&self, k: &Kernels, x: &[Vec<f64>]) -> Vec<f64> {
        self.run(k, &x[0], false)
    }

    fn backward(&self, k: &Kernels, _: &[Vec<f64>], dout: &[f64]) -> Vec<Vec<f64>> {
        vec![self.run(k, dout, true)]
    }

    fn reference(&self, x: &[Tensor]) -> Result<Tensor> {
        let (rows, wide) = (self.windows * self.positions, self.heads * self.head_dim);
        let heads = x[0].narrow(1, 0, wide)?;
        let heads = heads.reshape((self.windows, self.positions, self.heads, self.head_dim))?;
        let heads = basic::rotate(&heads.transpose(1, 2)?.contiguous()?, self.theta)?;
        let heads = heads.transpose(1, 2)?.reshape((rows, wide))?;
        Tensor::cat(&[heads, x[0].narrow(1, wide, self.after)?], 1)
    }
}

#[test]
fn rotary_positions() {
    each_case(|random| {
        Box::new(Rope {
            windows: random.size(1..=3),
            positions: random.size(1..=30),
            heads: random.size(1..=4),
            head_dim: 2 * random.size(1..=12),
            after: random.size(1..=20),
            theta: 10f64.powi(random.size(1..=6) as i32),
        })
    });
}

struct Attention {
    h: Heads,
    doc_start: Vec<u32>,
}

impl Attention {
    fn run(&self, k: &Kernels, x: &[Vec<f64>]) -> [device::Tensor; 4] {
        let (h, rows) = (self.h, self.h.rows());
        let qkv = k.tensor(&[rows, h.stride()], &x[0]);
        let doc_start = k.integers(&[rows], &self.doc_start);
        let (out, lse) = (k.stale(&[rows, h.heads * h.head_dim]), k.stale(&[rows, h.heads]));
        let workspace = k.stale(&[h.forward_workspace()]);
        attention::forward(&k.stream, h, (&qkv, &doc_start), (&out, &lse), &workspace).unwrap();
        [qkv, doc_start, out, lse]
    }
}

impl Op for Attention {
    fn name(&self) -> String {
        format!("attention {:?}", self.h)
    }

    fn shapes(&self) -> Vec<Vec<usize>> {
        vec![vec![self.h.rows(), self.h.stride()]]
    }

    fn forward(&self, k: &Kernels, x: &[Vec<f64>]) -> Vec<f64> {
        let [_, _, out, _] = self.run(k, x);
        k.read(&out)
    }

    fn backward(&self, k: &Kernels, x: &[Vec<f64>], dout: &[f64]) -> Vec<Vec<f64>> {
        let (h, [qkv, doc_start, out, lse]) = (self.h, self.run(k, x));
        let (dout, dqkv) = (k.tensor(out.dims(), dout), k.stale(qkv.dims()));
        let workspace = k.stale(&[h.backward_workspace()]);
        let saved = (&out, &lse, &dout);
        attention::backward(&k.stream, h, (&qkv, &doc_start), saved, &dqkv, &workspace).unwrap();
        vec![k.read(&dqkv)]
    }

    fn reference(&self, x: &[Tensor]) -> Result<Tensor> {
        let h = self.h;
        let part = |first: usize, heads: usize| {
            let part = x[0].narrow(1, first * h.head_dim, heads * h.head_dim)?;
            part.reshape((h.windows, h.positions, heads, h.head_dim))?.transpose(1, 2)?.contiguous()
        };
        let (q, keys) = (part(0, h.heads)?, part(h.heads, h.kv_heads)?);
        let values = part(h.heads + h.kv_heads, h.kv_heads)?;
        let mask = basic::mask(&self.doc_start, h.positions, q.dtype())?;
        let out = basic::attention(&q, &keys, &values, &mask)?.transpose(1, 2)?;
        out.reshape((h.rows(), h.heads * h.head_dim))
    }
}

#[test]
fn grouped_query_attention() {
    each_case(|random| {
        let (windows, positions) = (random.size(1..=2), random.size(1..=200));
        let (kv_heads, head_dim) = (random.size(1..=3), random.size(1..=20));
        let heads = kv_heads * random.size(1..=3);
        let doc_start = random.doc_start(windows, positions);
        Box::new(Attention {
            h: Heads { windows, positions, heads, kv_heads, head_dim },
            doc_start,
        })
    });
}

/// SwiGLU of `[rows, 2·cols]`, or GELU of `[rows, cols]`.
struct Activation {
    swiglu: bool,
    rows: usize,
    cols: usize,
}

impl Op for Activation {
    fn name(&self) -> String {
        let Activation { swiglu, rows, cols } = self;
        format!("{} {rows}×{cols}", if *swiglu { "swiglu" } else { "gelu" })
    }

    fn shapes(&self) -> Vec<Vec<usize>> {
        vec![vec![self.rows, if self.swiglu { 2 * self.cols } else { self.cols }]]
    }

    fn forward(&self, k: &Kernels, x: &[Vec<f64>]) -> Vec<f64> {
        let x = k.tensor(&self.shapes()[0], &x[0]);
        let y = k.stale(&[self.rows, self.cols]);
        match self.swiglu {
            true => elementwise::swiglu_forward(&k.stream, &x, &y).unwrap(),
            false => elementwise::gelu_forward(&k.stream, &x, &y).unwrap(),
        }
        k.read(&y)
    }

    fn backward(&self, k: &Kernels, x: &[Vec<f64>], dout: &[f64]) -> Vec<Vec<f64>> {
        let x = k.tensor(&self.shapes()[0], &x[0]);
        let dy = k.tensor(&[self.rows, self.cols], dout);
        match self.swiglu {
            true => elementwise::swiglu_backward(&k.stream, &dy, &x).unwrap(),
            false => elementwise::gelu_backward(&k.stream, &dy, &x).unwrap(),
        }
        vec![k.read(&x)]
    }

    fn reference(&self, x: &[Tensor]) -> Result<Tensor> {
        if !self.swiglu {
            return basic::gelu(&x[0]);
        }
        let (gate, up) = (x[0].narrow(1, 0, self.cols)?, x[0].narrow(1, self.cols, self.cols)?);
        basic::swiglu(&gate, &up)
    }
}

#[test]
fn activations() {
    for swiglu in [true, false] {
        each_case(|random| {
            // The last case is more than one parallel task.
            let (rows, cols) = (random.size(1..=120), random.size(1..=200));
            Box::new(Activation { swiglu, rows, cols })
        });
    }
}

/// The kernel gives the gradient of the summed loss alone.
struct CrossEntropy {
    vocabulary: usize,
    targets: Vec<u32>,
}

impl CrossEntropy {
    fn run(&self, k: &Kernels, x: &[Vec<f64>], gradient: bool) -> [Vec<f64>; 2] {
        let rows = self.targets.len();
        let (logits, losses) = (k.tensor(&[rows, self.vocabulary], &x[0]), k.stale(&[rows]));
        let targets = k.integers(&[rows], &self.targets);
        cross_entropy(&k.stream, &logits, &targets, &losses, gradient).unwrap();
        [k.read(&losses), k.read(&logits)]
    }
}

impl Op for CrossEntropy {
    fn name(&self) -> String {
        format!("cross-entropy {}×{}", self.targets.len(), self.vocabulary)
    }

    fn shapes(&self) -> Vec<Vec<usize>> {
        vec![vec![self.targets.len(), self.vocabulary]]
    }

    /// The losses of the rows that have a target.
    fn forward(&self, k: &Kernels, x: &[Vec<f64>]) -> Vec<f64> {
        let [losses, _] = self.run(k, x, false);
        let [with_gradient, _] = self.run(k, x, true);
        assert!(super::relative_error(&with_gradient, &losses, 1e-3) < 1e-14);
        let rows = losses.into_iter().zip(&self.targets);
        let (live, ignored): (Vec<_>, Vec<_>) = rows.partition(|(_, target)| **target != IGNORE);
        assert!(ignored.iter().all(|(loss, _)| *loss == 0.0));
        live.into_iter().map(|(loss, _)| loss).collect()
    }

    fn backward(&self, k: &Kernels, x: &[Vec<f64>], _: &[f64]) -> Vec<Vec<f64>> {
        let [_, gradient] = self.run(k, x, true);
        vec![gradient]
    }

    fn reference(&self, x: &[Tensor]) -> Result<Tensor> {
        basic::cross_entropy(&x[0], &self.targets)
    }

    fn sum_only(&self) -> bool {
        true
    }
}

#[test]
fn cross_entropy_with_its_gradient() {
    each_case(|random| {
        let (rows, vocabulary) = (random.size(3..=40), random.size(2..=300));
        let mut targets = random.indices(rows, vocabulary);
        targets[rows / 2] = IGNORE;
        Box::new(CrossEntropy { vocabulary, targets })
    });
}

/// Token and position tables, looked up and added.
struct Embedding {
    count: usize,
    max: usize,
    positions: usize,
    cols: usize,
    tokens: Vec<u32>,
    accumulate: bool,
}

impl Op for Embedding {
    fn name(&self) -> String {
        let Embedding { count, max, positions, cols, accumulate, .. } = self;
        format!("embedding {count}×{cols}, {positions} of {max}, accumulate {accumulate}")
    }

    fn shapes(&self) -> Vec<Vec<usize>> {
        vec![vec![self.count, self.cols], vec![self.max, self.cols]]
    }

    fn forward(&self, k: &Kernels, x: &[Vec<f64>]) -> Vec<f64> {
        let tokens = k.integers(&[self.tokens.len()], &self.tokens);
        let y = k.stale(&[self.tokens.len(), self.cols]);
        let tables = (k.tensor(&self.shapes()[0], &x[0]), k.tensor(&self.shapes()[1], &x[1]));
        embedding::gather(&k.stream, &tokens, &tables.0, &y).unwrap();
        embedding::add_positions(&k.stream, &tables.1, self.positions, &y).unwrap();
        k.read(&y)
    }

    fn backward(&self, k: &Kernels, _: &[Vec<f64>], dout: &[f64]) -> Vec<Vec<f64>> {
        let tokens = k.integers(&[self.tokens.len()], &self.tokens);
        let dy = k.tensor(&[self.tokens.len(), self.cols], dout);
        let (dtable, dplaces) = (k.stale(&self.shapes()[0]), k.stale(&self.shapes()[1]));
        embedding::scatter_add(&k.stream, &tokens, &dy, &dtable).unwrap();
        let (positions, add) = (self.positions, self.accumulate);
        embedding::positions_backward(&k.stream, &dy, positions, &dplaces, add).unwrap();
        vec![k.read_added(&dtable, true), k.read_added(&dplaces, add)]
    }

    fn reference(&self, x: &[Tensor]) -> Result<Tensor> {
        let cpu = &candle_core::Device::Cpu;
        let places = (0..self.tokens.len()).map(|row| (row % self.positions) as u32);
        let places = x[1].index_select(&Tensor::new(places.collect::<Vec<_>>(), cpu)?, 0)?;
        x[0].index_select(&Tensor::new(self.tokens.as_slice(), cpu)?, 0)? + places
    }
}

#[test]
fn embeddings() {
    each_case(|random| {
        let (windows, positions) = (random.size(1..=3), random.size(1..=30));
        let (count, cols) = (random.size(1..=40), random.size(1..=150));
        let tokens = random.indices(windows * positions, count);
        let (max, accumulate) = (positions + random.size(0..=5), random.flag());
        Box::new(Embedding { count, max, positions, cols, tokens, accumulate })
    });
}

/// `y = x·Wᵀ + bias` and its gradients, by the products that the model uses.
struct Linear {
    rows: usize,
    out: usize,
    input: usize,
    accumulate: bool,
}

impl Op for Linear {
    fn name(&self) -> String {
        let Linear { rows, out, input, accumulate } = self;
        format!("linear {rows}×{input} to {out}, accumulate {accumulate}")
    }

    fn shapes(&self) -> Vec<Vec<usize>> {
        vec![vec![self.rows, self.input], vec![self.out, self.input], vec![self.out]]
    }

    fn forward(&self, k: &Kernels, x: &[Vec<f64>]) -> Vec<f64> {
        let Linear { rows, out, input, .. } = *self;
        let (w, bias) = (k.tensor(&[out, input], &x[1]), k.tensor(&[out], &x[2]));
        let (x, y) = (k.tensor(&[rows, input], &x[0]), k.stale(&[rows, out]));
        let (a, b) = ((&x, Layout::dense(rows, input)), (&w, Layout::dense(out, input).t()));
        matmul(&k.stream, 1.0, a, b, 0.0, (&y, Layout::dense(rows, out))).unwrap();
        elementwise::add_bias(&k.stream, &bias, &y).unwrap();
        k.read(&y)
    }

    fn backward(&self, k: &Kernels, x: &[Vec<f64>], dout: &[f64]) -> Vec<Vec<f64>> {
        let Linear { rows, out, input, accumulate } = *self;
        let w = (&k.tensor(&[out, input], &x[1]), Layout::dense(out, input));
        let x = (&k.tensor(&[rows, input], &x[0]), Layout::dense(rows, input));
        let (dy, ldy) = (&k.tensor(&[rows, out], dout), Layout::dense(rows, out));
        let (dx, dw, db) = (k.stale(&[rows, input]), k.stale(&[out, input]), k.stale(&[out]));
        let beta = if accumulate { 1.0 } else { 0.0 };
        matmul(&k.stream, 1.0, (dy, ldy), w, beta, (&dx, x.1)).unwrap();
        matmul(&k.stream, 1.0, (dy, ldy.t()), x, beta, (&dw, w.1)).unwrap();
        elementwise::bias_backward(&k.stream, dy, &db, accumulate).unwrap();
        [dx, dw, db].iter().map(|d| k.read_added(d, accumulate)).collect()
    }

    fn reference(&self, x: &[Tensor]) -> Result<Tensor> {
        basic::linear(&x[0], &x[1])?.broadcast_add(&x[2])
    }
}

#[test]
fn linear_layers() {
    each_case(|random| {
        let (rows, out, input) = (random.size(1..=200), random.size(1..=200), random.size(1..=200));
        Box::new(Linear { rows, out, input, accumulate: random.flag() })
    });
}
