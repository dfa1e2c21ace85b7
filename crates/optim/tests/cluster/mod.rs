//! Several ranks in one process: each with its own optimizer and copy of the weights, exchanging
//! what real ranks exchange (statistics, updated segments).

#![allow(dead_code)] // Each test program uses a part.

use device::{DType, Device, Stream, Tensor};
use half::bf16;
use kernels::newton_schulz::Iteration;
use layout::{CostTable, FlatLayout, LogicalTensor, Ownership, Part, Role, Schema};
use optim::{
    ClipDecision, Clipper, OptimizerConfig, ShardedOptimizer, StateView, StepScalars, TensorPlan,
    Verdict,
};

/// A model and how it is optimized; the same for every number of ranks.
pub struct Setup {
    pub schema: Schema,
    pub flat: FlatLayout,
    pub config: OptimizerConfig,
    pub plans: Vec<TensorPlan>,
    pub dtype: DType,
}

impl Setup {
    pub fn new(schema: Schema, config: OptimizerConfig, dtype: DType) -> Setup {
        let plans = optim::plan(&schema, &config).unwrap();
        Setup { flat: FlatLayout::new(&schema, 1 << 12), schema, config, plans, dtype }
    }

    pub fn initial(&self) -> Vec<f32> {
        noise(self.flat.len, 1)
    }

    pub fn ownership(&self, world: usize) -> Ownership {
        let treatments = optim::treatments(&self.plans).unwrap();
        Ownership::new(&self.schema, &self.flat, &treatments, world, &CostTable::CPU).unwrap()
    }
}

/// A small model with a fused matrix, experts, a table of several blocks, and vectors.
pub fn schema() -> Schema {
    let part = |label: &str, rows| Part { label: label.into(), rows };
    let mut qkv = LogicalTensor::new("layer.0.qkv", &[30, 10], Role::Matrix);
    qkv.parts = vec![part("q", 0..10), part("k", 10..15), part("v", 15..30)];
    let expert = |index: u32| {
        let role = Role::Expert { index, of: 3 };
        let mut tensor = LogicalTensor::new(format!("layer.0.expert.{index}"), &[24, 10], role);
        tensor.fused = index > 0;
        tensor
    };
    Schema::new(vec![
        LogicalTensor::new("embed", &[900, 10], Role::Embedding),
        LogicalTensor::new("layer.0.norm", &[10], Role::Vector),
        qkv,
        LogicalTensor::new("layer.0.out", &[10, 17], Role::Matrix),
        expert(0),
        expert(1),
        expert(2),
        LogicalTensor::new("layer.0.router", &[3, 10], Role::Router),
    ])
    .unwrap()
}

/// Reproducible values in -1..1.
pub fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let next = || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    std::iter::repeat_with(next).take(len).collect()
}

/// `[rows, cols]` products, as written in a textbook.
pub fn multiply(a: &[f64], b: &[f64], (n, k, m): (usize, usize, usize)) -> Vec<f64> {
    let at = |i: usize, j: usize| (0..k).map(|p| a[i * k + p] * b[p * m + j]).sum();
    (0..n * m).map(|index| at(index / m, index % m)).collect()
}

pub fn transposed(x: &[f64], rows: usize, cols: usize) -> Vec<f64> {
    (0..rows * cols).map(|at| x[(at % rows) * cols + at / rows]).collect()
}

pub fn newton_schulz(iteration: &Iteration, x: &[f64], rows: usize, cols: usize) -> Vec<f64> {
    let norm = x.iter().map(|x| x * x).sum::<f64>().sqrt();
    let mut x: Vec<f64> = x.iter().map(|x| x / norm).collect();
    for step in iteration.polynomials() {
        let [a, b, c] = *step.coefficients() else { panic!("{step:?} is no quintic") };
        let gram = multiply(&x, &transposed(&x, rows, cols), (rows, cols, rows));
        let cube = multiply(&gram, &x, (rows, rows, cols));
        let fifth = multiply(&gram, &cube, (rows, rows, cols));
        let terms = x.iter().zip(&cube).zip(&fifth);
        x = terms.map(|((x, y), z)| a * x + b * y + c * z).collect();
    }
    x
}

/// Tokens of a step; gradients are sums over them.
pub const TOKENS: u64 = 7;

/// Of states that begin with normal deviates.
pub const SEED: u64 = 5;

pub struct Cluster {
    pub device: Device,
    pub ownership: Ownership,
    pub ranks: Vec<ShardedOptimizer>,
    /// Each rank's copy of all weights.
    pub weights: Vec<Tensor>,
    pub clipper: Clipper,
    pub decision: ClipDecision,
    previous_norm: Option<f64>,
}

impl Cluster {
    pub fn new(setup: &Setup, device: &Device, world: usize) -> Cluster {
        let ownership = setup.ownership(world);
        let initial = device.tensor(&[setup.flat.len], &setup.initial()).unwrap();
        let optimizer = |rank| {
            let Setup { schema, flat, plans, dtype, .. } = setup;
            ShardedOptimizer::new(device, schema, flat, &ownership, rank, plans, *dtype).unwrap()
        };
        let mut ranks: Vec<_> = (0..world).map(optimizer).collect();
        let weights = (0..world).map(|_| {
            let values = setup.initial();
            match setup.dtype {
                DType::F32 => device.tensor(&[values.len()], &values).unwrap(),
                _ => {
                    let values: Vec<bf16> = values.iter().map(|&x| bf16::from_f32(x)).collect();
                    device.tensor(&[values.len()], &values).unwrap()
                }
            }
        });
        let weights = weights.collect();
        ranks.iter_mut().for_each(|rank| {
            rank.initialize(SEED).unwrap();
            rank.adopt(&initial).unwrap();
        });
        let clipper =
            Clipper::new(setup.config.clip, setup.config.non_finite, &setup.plans, &ownership);
        let (device, decision) = (device.clone(), ClipDecision::default());
        Cluster { device, ownership, ranks, weights, clipper, decision, previous_norm: None }
    }

    /// One step with the given gradients; each rank sees its own segments only, the rest is NaN.
    pub fn step(&mut self, step: u64, grads: &[f32]) {
        let stream = self.device.stream();
        let mut sums = vec![0.0_f64; self.ownership.statistics];
        let mut seen = Vec::new();
        for (rank, optimizer) in self.ranks.iter().enumerate() {
            let mut own = vec![f32::NAN; grads.len()];
            for segment in self.ownership.segments(rank) {
                own[segment.clone()].copy_from_slice(&grads[segment]);
            }
            let own = self.device.tensor(&[own.len()], &own).unwrap();
            let statistics = self.device.zeros(&[sums.len()], DType::F64).unwrap();
            optimizer.statistics(&own, &statistics).unwrap();
            let statistics = stream.to_vec::<f64>(&statistics).unwrap();
            for statistic in self.ownership.owned(rank).flat_map(|piece| piece.statistics.clone()) {
                sums[statistic] = statistics[statistic];
            }
            seen.push(own);
        }
        self.clipper.decide(&sums, TOKENS, self.previous_norm, &mut self.decision).unwrap();
        let scalars = StepScalars {
            step,
            lr_factor: 0.5,
            inverse_tokens: 1.0 / TOKENS as f64,
            clip: &self.decision,
        };
        for (rank, optimizer) in self.ranks.iter_mut().enumerate() {
            optimizer.apply(&self.weights[rank], &seen[rank], &scalars).unwrap();
            optimizer.check_momentum().unwrap();
        }
        if self.decision.verdict == Verdict::Apply {
            self.previous_norm = Some(self.decision.norm);
        }
        self.gather();
    }

    /// Every rank gets every segment from its owner.
    fn gather(&self) {
        let stream = self.device.stream();
        for owner in 0..self.ranks.len() {
            for segment in self.ownership.segments(owner) {
                let from = self.weights[owner].flat(segment.clone()).unwrap();
                for to in &self.weights {
                    let to = to.flat(segment.clone()).unwrap();
                    match from.dtype() {
                        DType::F32 => {
                            let values = stream.to_vec::<f32>(&from).unwrap();
                            stream.copy_in(&to, &values).unwrap();
                        }
                        _ => {
                            let values = stream.to_vec::<bf16>(&from).unwrap();
                            stream.copy_in(&to, &values).unwrap();
                        }
                    }
                }
            }
        }
    }

    /// Bits of the weights of one rank, widened.
    pub fn bits(&self, rank: usize) -> Vec<u32> {
        let stream = self.device.stream();
        match self.weights[rank].dtype() {
            DType::F32 => {
                let values = stream.to_vec::<f32>(&self.weights[rank]).unwrap();
                values.iter().map(|x| x.to_bits()).collect()
            }
            _ => {
                let values = stream.to_vec::<bf16>(&self.weights[rank]).unwrap();
                values.iter().map(|x| u32::from(x.to_bits())).collect()
            }
        }
    }

    /// Every state of every rank, row by row: position of the state, row, bits; sorted.
    pub fn state_rows(&self) -> Vec<StateRow> {
        let ranks = self.ranks.iter().zip(&self.weights);
        let views = ranks.flat_map(|(rank, weights)| rank.states(weights).unwrap());
        rows_of(&self.device.stream(), views)
    }
}

/// Position of the state, row of its first axis, bits.
pub type StateRow = (usize, usize, Vec<u32>);

/// The rows of `views`, sorted.
pub fn rows_of(stream: &Stream, views: impl IntoIterator<Item = StateView>) -> Vec<StateRow> {
    let mut rows = Vec::new();
    for state in views {
        for index in 0..state.view.dim(0) {
            let values = state.view.rows(index..index + 1).unwrap();
            let values = stream.to_vec::<f32>(&values).unwrap();
            let bits = values.into_iter().map(f32::to_bits).collect();
            rows.push((state.state, first_row(&state) + index, bits));
        }
    }
    rows.sort();
    rows
}

/// Fills `views` from `rows`, and says how many elements they took.
pub fn fill(stream: &Stream, views: Vec<StateView>, rows: &[StateRow]) -> usize {
    let mut taken = 0;
    for (state, row, bits) in rows {
        let values: Vec<f32> = bits.iter().map(|&bits| f32::from_bits(bits)).collect();
        for view in views.iter().filter(|view| view.state == *state) {
            let index = row.wrapping_sub(first_row(view));
            if index < view.view.dim(0) {
                stream.copy_in(&view.view.rows(index..index + 1).unwrap(), &values).unwrap();
                taken += values.len();
            }
        }
    }
    taken
}

fn first_row(state: &StateView) -> usize {
    state.region.offset.first().copied().unwrap_or(0)
}
