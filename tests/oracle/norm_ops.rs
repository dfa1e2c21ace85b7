//! The norms: of whole rows, of heads inside wider rows, and with a mean.

use candle_core::{Result, Tensor};
use kernels::norm::{self, Rows, Vectors};

use super::basic;
use super::op::{Kernels, Op, each_case, onto};

const EPS: f64 = 1e-5;

/// RMSNorm of whole rows.
struct Rms {
    rows: usize,
    cols: usize,
    /// `dx` is added to.
    add: bool,
    accumulate: bool,
}

impl Rms {
    fn run(&self, k: &Kernels, x: &[Vec<f64>]) -> [device::Tensor; 4] {
        let shape = [self.rows, self.cols];
        let (from, gain) = (k.tensor(&shape, &x[0]), k.tensor(&[self.cols], &x[1]));
        let (y, rstd) = (k.stale(&shape), k.stale(&[self.rows]));
        k.launch(norm::RmsForward {
            x: Vectors::rows_of(from.clone()),
            gain: gain.clone(),
            eps: EPS,
            y: Vectors::rows_of(y.clone()),
            rstd: rstd.clone(),
        });
        [from, gain, y, rstd]
    }
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
        let [_, _, y, _] = self.run(k, x);
        k.read(&y)
    }

    fn backward(&self, k: &Kernels, x: &[Vec<f64>], dout: &[f64]) -> Vec<Vec<f64>> {
        let [x, gain, _, rstd] = self.run(k, x);
        let (dx, dgain) = (k.stale(x.dims()), k.stale(&[self.cols]));
        k.launch(norm::RmsBackward {
            dy: Vectors::rows_of(k.tensor(x.dims(), dout)),
            x: Vectors::rows_of(x),
            gain,
            rstd,
            dx: Vectors::rows_of(dx.clone()),
            dx_onto: onto(self.add),
            dgain: dgain.clone(),
            dgain_onto: onto(self.accumulate),
        });
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
    /// Columns after each head.
    between: usize,
    after: usize,
    accumulate: bool,
}

impl RmsHeads {
    fn stride(&self) -> usize {
        self.before + self.heads * (self.len + self.between) + self.after
    }

    fn run(&self, k: &Kernels, x: &[Vec<f64>]) -> [device::Tensor; 4] {
        let shape = [self.rows, self.stride()];
        let (from, y) = (k.tensor(&shape, &x[0]), k.tensor(&shape, &x[0]));
        let (gain, rstd) = (k.tensor(&[self.len], &x[1]), k.stale(&[self.rows * self.heads]));
        let rows = self.vectors();
        k.launch(norm::RmsForward {
            x: Vectors { tensor: from.clone(), rows },
            gain: gain.clone(),
            eps: EPS,
            y: Vectors { tensor: y.clone(), rows },
            rstd: rstd.clone(),
        });
        [from, gain, y, rstd]
    }

    fn vectors(&self) -> Rows {
        let rows = Rows::heads(self.rows, self.stride(), self.before, self.heads, self.len);
        rows.apart(self.len + self.between)
    }
}

impl Op for RmsHeads {
    fn name(&self) -> String {
        let RmsHeads { rows, before, heads, len, between, after, accumulate } = self;
        format!(
            "rms of {heads}×{len} in {rows} rows, {before}, {between} and {after} around, \
             accumulate {accumulate}"
        )
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
        k.launch(norm::RmsBackwardInPlace {
            d: d.clone(),
            x,
            rows: self.vectors(),
            gain,
            rstd,
            dgain: dgain.clone(),
            dgain_onto: onto(self.accumulate),
        });
        vec![k.read(&d), k.read_added(&dgain, self.accumulate)]
    }

    fn reference(&self, x: &[Tensor]) -> Result<Tensor> {
        let (head_stride, len) = (self.len + self.between, self.len);
        let wide = self.heads * head_stride;
        let all = x[0].narrow(1, self.before, wide)?;
        let all = all.reshape((self.rows, self.heads, head_stride))?;
        let heads = basic::rms_norm(&all.narrow(2, 0, len)?, &x[1], EPS)?;
        let heads = basic::join(&[heads, all.narrow(2, len, self.between)?], 2)?;
        let heads = heads.reshape((self.rows, wide))?;
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
            between: random.size(0..=3),
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
        k.launch(norm::LayerForward {
            x: from.clone(),
            gain: gain.clone(),
            bias,
            eps: EPS,
            y: y.clone(),
            stats: stats.clone(),
        });
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
        let accumulate = self.accumulate;
        k.launch(norm::LayerBackward {
            dy,
            x,
            gain,
            stats,
            dx: dx.clone(),
            dx_onto: onto(self.add),
            dgain: dgain.clone(),
            dbias: dbias.clone(),
            weights_onto: onto(accumulate),
        });
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
