//! The kernels of a dense transformer, but for its norms and attention.

use candle_core::{Result, Tensor};
use kernels::gemm::{Matmul, Matrix};
use kernels::loss::{self, Becomes, IGNORE};
use kernels::{embedding, mlp};

use super::basic;
use super::op::{Kernels, Op, each_case, onto};

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
            true => k.launch(mlp::SwigluForward { gate_up: x, y: y.clone() }),
            false => k.launch(mlp::GeluForward { x, y: y.clone() }),
        }
        k.read(&y)
    }

    fn backward(&self, k: &Kernels, x: &[Vec<f64>], dout: &[f64]) -> Vec<Vec<f64>> {
        let x = k.tensor(&self.shapes()[0], &x[0]);
        let dy = k.tensor(&[self.rows, self.cols], dout);
        match self.swiglu {
            true => k.launch(mlp::SwigluBackward { dy, gate_up: x.clone() }),
            false => k.launch(mlp::GeluBackward { dy, x: x.clone() }),
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
    fn run(&self, k: &Kernels, x: &[Vec<f64>], logits_become: Becomes) -> [Vec<f64>; 2] {
        let rows = self.targets.len();
        let (logits, losses) = (k.tensor(&[rows, self.vocabulary], &x[0]), k.stale(&[rows]));
        let targets = k.integers(&[rows], &self.targets);
        k.launch(loss::CrossEntropy {
            logits: logits.clone(),
            logits_become,
            targets,
            losses: losses.clone(),
        });
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
        let [losses, _] = self.run(k, x, Becomes::Unchanged);
        let [with_gradient, _] = self.run(k, x, Becomes::Gradient);
        assert!(super::relative_error(&with_gradient, &losses, 1e-3) < 1e-14);
        let rows = losses.into_iter().zip(&self.targets);
        let (live, ignored): (Vec<_>, Vec<_>) = rows.partition(|(_, target)| **target != IGNORE);
        assert!(ignored.iter().all(|(loss, _)| *loss == 0.0));
        live.into_iter().map(|(loss, _)| loss).collect()
    }

    fn backward(&self, k: &Kernels, x: &[Vec<f64>], _: &[f64]) -> Vec<Vec<f64>> {
        let [_, gradient] = self.run(k, x, Becomes::Gradient);
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
        k.launch(embedding::Gather { tokens, table: tables.0, y: y.clone() });
        let (table, positions) = (tables.1, self.positions);
        k.launch(embedding::AddPositions { table, positions, y: y.clone() });
        k.read(&y)
    }

    fn backward(&self, k: &Kernels, _: &[Vec<f64>], dout: &[f64]) -> Vec<Vec<f64>> {
        let tokens = k.integers(&[self.tokens.len()], &self.tokens);
        let dy = k.tensor(&[self.tokens.len(), self.cols], dout);
        let (dtable, dplaces) = (k.stale(&self.shapes()[0]), k.stale(&self.shapes()[1]));
        k.launch(embedding::ScatterAdd { tokens, dy: dy.clone(), dtable: dtable.clone() });
        k.launch(embedding::PositionsBackward {
            dy,
            positions: self.positions,
            dtable: dplaces.clone(),
            dtable_onto: onto(self.accumulate),
        });
        vec![k.read_added(&dtable, true), k.read_added(&dplaces, self.accumulate)]
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
        let (a, b, c) = (Matrix::of(x), Matrix::of(w).t(), Matrix::of(y.clone()));
        k.launch(Matmul { alpha: 1.0, a, b, beta: 0.0, c });
        k.launch(mlp::AddBias { bias, y: y.clone() });
        k.read(&y)
    }

    fn backward(&self, k: &Kernels, x: &[Vec<f64>], dout: &[f64]) -> Vec<Vec<f64>> {
        let Linear { rows, out, input, accumulate } = *self;
        let w = Matrix::of(k.tensor(&[out, input], &x[1]));
        let x = Matrix::of(k.tensor(&[rows, input], &x[0]));
        let dy = k.tensor(&[rows, out], dout);
        let (dx, dw, db) = (k.stale(&[rows, input]), k.stale(&[out, input]), k.stale(&[out]));
        let beta = onto(accumulate).beta();
        let (a, c) = (Matrix::of(dy.clone()), Matrix::of(dx.clone()));
        k.launch(Matmul { alpha: 1.0, a: a.clone(), b: w, beta, c });
        k.launch(Matmul { alpha: 1.0, a: a.t(), b: x, beta, c: Matrix::of(dw.clone()) });
        let (dbias, dbias_onto) = (db.clone(), onto(accumulate));
        k.launch(mlp::BiasBackward { dy, dbias, dbias_onto });
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
