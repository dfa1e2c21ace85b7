//! The kernels of a mixture of experts.

use candle_core::{Result, Tensor};
use device::DType;
use kernels::moe::{self, Router, Routing};
use model::{Moe, Scores};

use super::basic;
use super::op::{Kernels, Op, each_case, onto};
use super::random::Random;

/// Choices of random tokens, and how they group.
struct Choices {
    tokens: usize,
    experts: usize,
    top_k: usize,
    /// `[tokens · top_k]`.
    chosen: Vec<u32>,
}

impl Choices {
    /// Some experts may get no token.
    fn random(random: &mut Random) -> Choices {
        let (tokens, experts) = (random.size(1..=60), random.size(1..=9));
        let top_k = random.size(1..=experts);
        let mut chosen = Vec::new();
        for _ in 0..tokens {
            let first = random.size(0..=experts - 1);
            chosen.extend((0..top_k).map(|a| ((first + a) % experts) as u32));
        }
        Choices { tokens, experts, top_k, chosen }
    }

    /// Grouped row of each choice, token of each grouped row, first row of each expert.
    fn grouping(&self) -> (Vec<u32>, Vec<u32>, Vec<u32>) {
        let mut order: Vec<usize> = (0..self.chosen.len()).collect();
        order.sort_by_key(|&choice| self.chosen[choice]);
        let mut grouped = vec![0; order.len()];
        order.iter().enumerate().for_each(|(row, &choice)| grouped[choice] = row as u32);
        let sources = order.iter().map(|choice| (choice / self.top_k) as u32).collect();
        let before = |expert| self.chosen.iter().filter(|&&chosen| chosen < expert).count();
        let offsets = (0..=self.experts as u32).map(|expert| before(expert) as u32).collect();
        (grouped, sources, offsets)
    }

    /// On the device, with these weights.
    fn routing(&self, k: &Kernels, weights: &[f64]) -> Routing {
        let (grouped, sources, offsets) = self.grouping();
        Routing {
            scores: k.stale(&[self.tokens, self.experts]),
            chosen: k.integers(&[self.tokens, self.top_k], &self.chosen),
            weights: k.tensor(&[self.tokens, self.top_k], weights),
            grouped: k.integers(&[grouped.len()], &grouped),
            sources: k.integers(&[sources.len()], &sources),
            offsets: k.integers(&[offsets.len()], &offsets),
        }
    }

    fn index(&self, of: &[u32]) -> Result<Tensor> {
        Tensor::new(of, &candle_core::Device::Cpu)
    }
}

/// From logits to the chosen weights, and the auxiliary losses as one output more.
struct Route {
    moe: Moe,
    tokens: usize,
    bias: Vec<f64>,
    /// Scale of the auxiliary losses.
    targets: f64,
}

impl Route {
    fn router(&self) -> Router {
        let m = &self.moe;
        Router {
            experts: m.experts,
            top_k: m.top_k,
            groups: m.groups,
            top_groups: m.top_groups,
            scores: match m.scores {
                Scores::Softmax => moe::Scores::Softmax,
                Scores::Sigmoid => moe::Scores::Sigmoid,
            },
            shares: match m.normalize_top_k {
                true => moe::Shares::Normalized,
                false => moe::Shares::Scores,
            },
            scale: m.route_scale,
            aux_loss: m.aux_loss,
            z_loss: m.z_loss,
        }
    }

    fn run(&self, k: &Kernels, x: &[Vec<f64>]) -> (device::Tensor, Routing) {
        let Moe { experts, top_k, .. } = self.moe;
        let stale = |len: usize| k.integers(&[len], &vec![7; len]);
        let routing = Routing {
            scores: k.stale(&[self.tokens, experts]),
            chosen: stale(self.tokens * top_k).reshape(&[self.tokens, top_k]).unwrap(),
            weights: k.stale(&[self.tokens, top_k]),
            grouped: stale(self.tokens * top_k),
            sources: stale(self.tokens * top_k),
            offsets: stale(experts + 1),
        };
        let logits = k.tensor(&[self.tokens, experts], &x[0]);
        let bias = k.tensor(&[experts], &self.bias);
        let loads = k.device.zeros(&[experts], DType::U32).unwrap();
        k.launch(moe::Route {
            router: self.router(),
            logits: logits.clone(),
            bias,
            routing: routing.clone(),
            loads: loads.clone(),
        });
        self.check_grouping(k, &routing, &loads);
        (logits, routing)
    }

    /// The grouping is a stable sort of the choices by expert, and the loads are its sizes.
    fn check_grouping(&self, k: &Kernels, routing: &Routing, loads: &device::Tensor) {
        let integers = |tensor: &device::Tensor| k.stream.to_vec::<u32>(tensor).unwrap();
        let Moe { experts, top_k, .. } = self.moe;
        let chosen = integers(&routing.chosen);
        let choices = Choices { tokens: self.tokens, experts, top_k, chosen };
        let got = [&routing.grouped, &routing.sources, &routing.offsets].map(integers);
        let (grouped, sources, offsets) = choices.grouping();
        let sizes: Vec<u32> = offsets.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert_eq!(got, [grouped, sources, offsets]);
        assert_eq!(integers(loads), sizes);
    }
}

impl Op for Route {
    fn name(&self) -> String {
        format!("route {} tokens, {:?}", self.tokens, self.moe)
    }

    fn shapes(&self) -> Vec<Vec<usize>> {
        vec![vec![self.tokens, self.moe.experts]]
    }

    fn forward(&self, k: &Kernels, x: &[Vec<f64>]) -> Vec<f64> {
        let (logits, routing) = self.run(k, x);
        let (experts, tokens) = (self.moe.experts, self.tokens as f64);
        let (logits, scores) = (k.read(&logits), k.read(&routing.scores));
        let offsets: Vec<u32> = k.stream.to_vec(&routing.offsets).unwrap();
        let choices = tokens * self.moe.top_k as f64;
        let (mut balance, mut z) = (0.0, 0.0);
        for (logits, scores) in logits.chunks(experts).zip(scores.chunks(experts)) {
            let total: f64 = scores.iter().sum();
            for (e, score) in scores.iter().enumerate() {
                let fraction = f64::from(offsets[e + 1] - offsets[e]) / choices;
                balance += fraction * score / total / tokens;
            }
            z += logits.iter().map(|x| x.exp()).sum::<f64>().ln().powi(2) / tokens;
        }
        let auxiliary = self.moe.aux_loss * experts as f64 * balance + self.moe.z_loss * z;
        let mut out = k.read(&routing.weights);
        out.push(self.targets * auxiliary);
        out
    }

    /// The kernel takes the auxiliary losses with a factor of one.
    fn backward(&self, k: &Kernels, x: &[Vec<f64>], dout: &[f64]) -> Vec<Vec<f64>> {
        let (logits, routing) = self.run(k, x);
        let (auxiliary, dweights) = dout.split_last().unwrap();
        let dweights: Vec<f64> = dweights.iter().map(|d| d / auxiliary).collect();
        let dweights = k.tensor(routing.weights.dims(), &dweights);
        let dlogits = k.stale(logits.dims());
        k.launch(moe::RouteBackward {
            router: self.router(),
            logits,
            routing,
            dweights,
            tokens: self.targets,
            dlogits: dlogits.clone(),
        });
        vec![k.read(&dlogits).iter().map(|d| d * auxiliary).collect()]
    }

    fn reference(&self, x: &[Tensor]) -> Result<Tensor> {
        let routed = basic::route(&self.moe, &x[0], &self.bias)?;
        let auxiliary = (routed.auxiliary * self.targets)?.reshape(1)?;
        Tensor::cat(&[routed.weights.flatten_all()?, auxiliary], 0)
    }
}

#[test]
fn routing() {
    for (scores, normalize_top_k) in [
        (Scores::Softmax, true),
        (Scores::Softmax, false),
        (Scores::Sigmoid, true),
        (Scores::Sigmoid, false),
    ] {
        each_case(|random| {
            let tokens = random.size(1..=60);
            // One group as often as several.
            let groups = if random.flag() { 1 } else { random.size(2..=4) };
            let top_groups = random.size(1..=groups);
            let in_group = random.size(if groups == 1 { 1..=9 } else { 2..=4 });
            let experts = groups * in_group;
            let moe = Moe {
                experts,
                top_k: random.size(1..=top_groups * in_group),
                groups,
                top_groups,
                d_ff: 0,
                scores,
                normalize_top_k,
                route_scale: 1.0 + random.value(0.5),
                balance_rate: 0.0,
                aux_loss: random.size(0..=2) as f64,
                z_loss: random.size(0..=2) as f64,
                shared_experts: 0,
                first_dense_layers: 0,
            };
            let (bias, targets) = (random.values(experts, 0.3), random.size(1..=60) as f64);
            Box::new(Route { moe, tokens, bias, targets })
        });
    }
}

/// `out += Σ_a weights[n, a]·y[grouped[n, a]]`: operands are weights, y and out.
struct Combine {
    choices: Choices,
    cols: usize,
}

impl Op for Combine {
    fn name(&self) -> String {
        let Choices { tokens, experts, top_k, .. } = self.choices;
        format!("combine {tokens}×{}, {top_k} of {experts}", self.cols)
    }

    fn shapes(&self) -> Vec<Vec<usize>> {
        let Choices { tokens, top_k, .. } = self.choices;
        vec![vec![tokens, top_k], vec![tokens * top_k, self.cols], vec![tokens, self.cols]]
    }

    fn forward(&self, k: &Kernels, x: &[Vec<f64>]) -> Vec<f64> {
        let routing = self.choices.routing(k, &x[0]);
        let shapes = self.shapes();
        let (y, out) = (k.tensor(&shapes[1], &x[1]), k.tensor(&shapes[2], &x[2]));
        k.launch(moe::Combine { routing, y, out: out.clone() });
        k.read(&out)
    }

    fn backward(&self, k: &Kernels, x: &[Vec<f64>], dout: &[f64]) -> Vec<Vec<f64>> {
        let routing = self.choices.routing(k, &x[0]);
        let shapes = self.shapes();
        let (y, d) = (k.tensor(&shapes[1], &x[1]), k.tensor(&shapes[2], dout));
        let dweights = k.stale(&shapes[0]);
        k.launch(moe::CombineBackward {
            routing,
            dout: d,
            y: y.clone(),
            dweights: dweights.clone(),
        });
        vec![k.read(&dweights), k.read(&y), dout.to_vec()]
    }

    fn reference(&self, x: &[Tensor]) -> Result<Tensor> {
        let (grouped, ..) = self.choices.grouping();
        let y = x[1].index_select(&self.choices.index(&grouped)?, 0)?;
        let y = y.reshape((self.choices.tokens, self.choices.top_k, self.cols))?;
        y.broadcast_mul(&x[0].unsqueeze(2)?)?.sum(1)? + &x[2]
    }
}

#[test]
fn combination() {
    each_case(|random| {
        let choices = Choices::random(random);
        Box::new(Combine { choices, cols: random.size(1..=100) })
    });
}

/// `y[r] = x[sources[r]]`.
struct GroupRows {
    choices: Choices,
    cols: usize,
}

impl Op for GroupRows {
    fn name(&self) -> String {
        format!("group {}×{} by {}", self.choices.tokens, self.cols, self.choices.experts)
    }

    fn shapes(&self) -> Vec<Vec<usize>> {
        vec![vec![self.choices.tokens, self.cols]]
    }

    fn forward(&self, k: &Kernels, x: &[Vec<f64>]) -> Vec<f64> {
        let choices = self.choices.chosen.len();
        let routing = self.choices.routing(k, &vec![0.0; choices]);
        let (x, y) = (k.tensor(&self.shapes()[0], &x[0]), k.stale(&[choices, self.cols]));
        k.launch(moe::GroupRows { routing, x, y: y.clone() });
        k.read(&y)
    }

    fn backward(&self, k: &Kernels, _: &[Vec<f64>], dout: &[f64]) -> Vec<Vec<f64>> {
        let choices = self.choices.chosen.len();
        let routing = self.choices.routing(k, &vec![0.0; choices]);
        let (dy, dx) = (k.tensor(&[choices, self.cols], dout), k.stale(&self.shapes()[0]));
        k.launch(moe::GroupRowsBackward { routing, dy, dx: dx.clone() });
        vec![k.read_added(&dx, true)]
    }

    fn reference(&self, x: &[Tensor]) -> Result<Tensor> {
        let (_, sources, _) = self.choices.grouping();
        x[0].index_select(&self.choices.index(&sources)?, 0)
    }
}

#[test]
fn grouping() {
    each_case(|random| {
        let choices = Choices::random(random);
        Box::new(GroupRows { choices, cols: random.size(1..=100) })
    });
}

/// `y = x·W_eᵀ` over the rows of each expert.
struct Grouped {
    choices: Choices,
    out: usize,
    input: usize,
    accumulate: bool,
}

impl Grouped {
    fn offsets(&self, k: &Kernels) -> device::Tensor {
        let (.., offsets) = self.choices.grouping();
        k.integers(&[offsets.len()], &offsets)
    }
}

impl Op for Grouped {
    fn name(&self) -> String {
        let Grouped { choices, out, input, accumulate } = self;
        let (rows, experts) = (choices.chosen.len(), choices.experts);
        format!("{rows} rows to {experts} of {out}×{input}, accumulate {accumulate}")
    }

    fn shapes(&self) -> Vec<Vec<usize>> {
        let (rows, experts) = (self.choices.chosen.len(), self.choices.experts);
        vec![vec![rows, self.input], vec![experts, self.out, self.input]]
    }

    fn forward(&self, k: &Kernels, x: &[Vec<f64>]) -> Vec<f64> {
        let shapes = self.shapes();
        let (x, w) = (k.tensor(&shapes[0], &x[0]), k.tensor(&shapes[1], &x[1]));
        let y = k.stale(&[self.choices.chosen.len(), self.out]);
        k.launch(moe::ProductForward { offsets: self.offsets(k), x, w, y: y.clone() });
        k.read(&y)
    }

    fn backward(&self, k: &Kernels, x: &[Vec<f64>], dout: &[f64]) -> Vec<Vec<f64>> {
        let shapes = self.shapes();
        let (x, w) = (k.tensor(&shapes[0], &x[0]), k.tensor(&shapes[1], &x[1]));
        let dy = k.tensor(&[self.choices.chosen.len(), self.out], dout);
        let (dx, dw) = (k.stale(&shapes[0]), k.stale(&shapes[1]));
        let offsets = self.offsets(k);
        let (input, written) = (dy.clone(), dx.clone());
        k.launch(moe::ProductInput { offsets: offsets.clone(), dy: input, w, dx: written });
        let dw_onto = onto(self.accumulate);
        k.launch(moe::ProductWeight { offsets, dy, x, dw: dw.clone(), dw_onto });
        vec![k.read(&dx), k.read_added(&dw, self.accumulate)]
    }

    fn reference(&self, x: &[Tensor]) -> Result<Tensor> {
        let (.., offsets) = self.choices.grouping();
        let mut parts = Vec::new();
        for (e, rows) in offsets.windows(2).enumerate() {
            if rows[0] < rows[1] {
                let rows = x[0].narrow(0, rows[0] as usize, (rows[1] - rows[0]) as usize)?;
                parts.push(basic::linear(&rows, &x[1].get(e)?)?);
            }
        }
        Tensor::cat(&parts, 0)
    }
}

#[test]
fn grouped_products() {
    each_case(|random| {
        let choices = Choices::random(random);
        let (out, input) = (random.size(1..=150), random.size(1..=100));
        Box::new(Grouped { choices, out, input, accumulate: random.flag() })
    });
}
