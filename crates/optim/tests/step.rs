//! The sharded step against plain f64 loops, across rank counts, devices, saves and skips.

mod cluster;

use cluster::{Cluster, Setup, TOKENS, fill, newton_schulz, noise, schema};
use device::{DType, Device};
use kernels::newton_schulz::Iteration;
use layout::{LogicalTensor, Part, Role, Schema};
use optim::{Clip, NonFinite, OptimizerConfig, Update, Verdict};
use proptest::prelude::*;

fn config(clip: Clip) -> OptimizerConfig {
    let mut config = OptimizerConfig { clip, non_finite: NonFinite::Skip, ..Default::default() };
    config.rules[1].adamw.as_mut().unwrap().weight_decay = 0.2;
    config
}

fn run(setup: &Setup, device: &Device, world: usize, steps: u64) -> Cluster {
    let mut cluster = Cluster::new(setup, device, world);
    for step in 1..=steps {
        cluster.step(step, &noise(setup.flat.len, 100 + step));
    }
    cluster
}

/// All weights in f64, updated by the definitions of Muon and AdamW.
struct Reference {
    weights: Vec<f64>,
    first: Vec<f64>,
    second: Vec<f64>,
}

impl Reference {
    fn new(setup: &Setup) -> Reference {
        let weights: Vec<f64> = setup.initial().into_iter().map(f64::from).collect();
        let zeros = vec![0.0; weights.len()];
        Reference { weights, first: zeros.clone(), second: zeros }
    }

    fn step(&mut self, setup: &Setup, step: i32, grads: &[f32], most: f64) {
        let inside = (0..setup.schema.tensors.len()).flat_map(|index| setup.flat.range(index));
        let norm = inside.map(|i| f64::from(grads[i]).powi(2)).sum::<f64>().sqrt();
        let factor = (most / (norm / TOKENS as f64)).min(1.0) / TOKENS as f64;
        for plan in &setup.plans {
            let offset = setup.flat.offsets[plan.tensor];
            for part in &plan.parts {
                let range =
                    offset + part.rows.start * part.cols..offset + part.rows.end * part.cols;
                let g = grads[range.clone()].iter().map(|&g| f64::from(g) * factor).collect();
                match &plan.update {
                    Update::Muon(muon) => self.muon(muon, range, part.rows.len(), g),
                    Update::AdamW(adamw) => self.adamw(adamw, range, step, g),
                    other => unreachable!("{other:?}"),
                }
            }
        }
    }

    fn muon(
        &mut self,
        muon: &optim::MuonConfig,
        range: std::ops::Range<usize>,
        rows: usize,
        g: Vec<f64>,
    ) {
        let (lr, mu, cols) = (0.5 * muon.lr, muon.momentum, g.len() / rows);
        let momentum = &mut self.first[range.clone()];
        momentum.iter_mut().zip(&g).for_each(|(m, g)| *m = mu * *m + (1.0 - mu) * g);
        let u: Vec<f64> = momentum.iter().zip(&g).map(|(m, g)| mu * m + (1.0 - mu) * g).collect();
        let iteration = Iteration::new(&muon.method()).unwrap();
        let o = newton_schulz(&iteration, &u, rows, cols);
        let scale = 0.2 * (rows.max(cols) as f64).sqrt();
        for (w, o) in self.weights[range].iter_mut().zip(o) {
            *w -= lr * (scale * o + muon.weight_decay * *w);
        }
    }

    fn adamw(
        &mut self,
        adamw: &optim::AdamWConfig,
        range: std::ops::Range<usize>,
        step: i32,
        g: Vec<f64>,
    ) {
        let lr = 0.5 * adamw.lr;
        for (i, g) in range.zip(g) {
            self.first[i] = adamw.beta1 * self.first[i] + (1.0 - adamw.beta1) * g;
            self.second[i] = adamw.beta2 * self.second[i] + (1.0 - adamw.beta2) * g * g;
            let first = self.first[i] / (1.0 - adamw.beta1.powi(step));
            let second = self.second[i] / (1.0 - adamw.beta2.powi(step));
            let w = &mut self.weights[i];
            *w -= lr * (first / (second.sqrt() + adamw.eps) + adamw.weight_decay * *w);
        }
    }
}

/// Also the proof that q, k and v, and the experts, are orthogonalized each by itself.
#[test]
fn several_steps_follow_the_definitions() {
    let setup = Setup::new(schema(), config(Clip::Global(0.5)), DType::F32);
    let device = Device::cpu(2).unwrap();
    let mut cluster = Cluster::new(&setup, &device, 3);
    let mut reference = Reference::new(&setup);
    for step in 1..=5 {
        let grads = noise(setup.flat.len, 100 + step);
        cluster.step(step, &grads);
        reference.step(&setup, step as i32, &grads, 0.5);
    }
    assert!(cluster.decision.factors[0] < 1.0, "the test clips");
    let start = setup.initial();
    let bits = cluster.bits(0);
    for (index, tensor) in setup.schema.tensors.iter().enumerate() {
        let (mut difference, mut moved) = (0.0_f64, 0.0_f64);
        for i in setup.flat.range(index) {
            let got = f64::from(f32::from_bits(bits[i]));
            difference += (got - reference.weights[i]).powi(2);
            moved += (reference.weights[i] - f64::from(start[i])).powi(2);
        }
        assert!(moved > 0.0 && (difference / moved).sqrt() < 1e-4, "{}", tensor.name);
    }
}

#[test]
fn the_guarded_device_and_threads_change_no_bit() {
    for dtype in [DType::F32, DType::Bf16] {
        let setup = Setup::new(schema(), config(Clip::PerMatrix(0.05)), dtype);
        let plain = run(&setup, &Device::cpu(1).unwrap(), 2, 3);
        for device in [Device::cpu(3).unwrap(), Device::guarded(2).unwrap()] {
            let other = run(&setup, &device, 2, 3);
            assert!(plain.bits(0) == other.bits(0) && plain.bits(0) == other.bits(1));
            assert!(plain.state_rows() == other.state_rows());
        }
    }
}

fn random_schema() -> impl Strategy<Value = Schema> {
    let tensor = (0_usize..5, 1_usize..40, 1_usize..40, 1_usize..6, any::<bool>());
    prop::collection::vec(tensor, 1..9).prop_map(|list| {
        let mut tensors = vec![LogicalTensor::new("first", &[9, 14], Role::Matrix)];
        tensors.push(LogicalTensor::new("gain", &[14], Role::Vector));
        for (index, (kind, rows, cols, parts, fused)) in list.into_iter().enumerate() {
            let (shape, role) = match kind {
                0 => (vec![rows * 200, cols], Role::Embedding),
                1 => (vec![rows * 100], Role::Vector),
                2 => (vec![rows, cols], Role::Expert { index: 0, of: 1 }),
                _ => (vec![rows * parts, cols], Role::Matrix),
            };
            let mut tensor = LogicalTensor::new(format!("t{index}"), &shape, role);
            tensor.fused = fused;
            if role == Role::Matrix && kind == 4 {
                let part = |i| Part { label: format!("p{i}"), rows: i * rows..(i + 1) * rows };
                tensor.parts = (0..parts).map(part).collect();
            }
            tensors.push(tensor);
        }
        Schema::new(tensors).unwrap()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn any_number_of_ranks_gives_the_same_bits(
        schema in random_schema(),
        clip in prop_oneof![
            Just(Clip::None),
            Just(Clip::Global(0.3)),
            Just(Clip::PreviousNorm(0.3)),
            Just(Clip::PerMatrix(0.3)),
        ],
        half: bool,
    ) {
        let dtype = if half { DType::Bf16 } else { DType::F32 };
        let setup = Setup::new(schema, config(clip), dtype);
        let device = Device::cpu(1).unwrap();
        let one = run(&setup, &device, 1, 3);
        let (bits, states) = (one.bits(0), one.state_rows());
        for world in 2..=5 {
            let several = run(&setup, &device, world, 3);
            prop_assert_eq!(&several.decision, &one.decision);
            for rank in 0..world {
                prop_assert!(several.bits(rank) == bits, "rank {rank} of {world}");
            }
            prop_assert!(several.state_rows() == states, "states at {world}");
        }
    }
}

#[test]
fn a_skipped_step_changes_no_bit() {
    let setup = Setup::new(schema(), config(Clip::Global(1.0)), DType::F32);
    let mut cluster = run(&setup, &Device::cpu(1).unwrap(), 2, 2);
    let (bits, states) = (cluster.bits(0), cluster.state_rows());
    let router = setup.schema.find("layer.0.router").unwrap();
    for bad in [f32::NAN, f32::INFINITY] {
        let mut grads = noise(setup.flat.len, 5);
        grads[setup.flat.range(router).end - 1] = bad;
        cluster.step(3, &grads);
        assert_eq!(cluster.decision.verdict, Verdict::Skip);
        assert_eq!(cluster.decision.non_finite, [router]);
        assert!(cluster.bits(0) == bits && cluster.state_rows() == states);
    }
    cluster.step(3, &noise(setup.flat.len, 5));
    assert!(cluster.bits(0) != bits, "the next step is applied");
}

/// As of an expert that gets no more tokens: without a least norm its momentum, however small,
/// would be blown up to a whole update for ever.
#[test]
fn the_momentum_of_zero_gradients_fades_away() {
    let mut config = config(Clip::None);
    config.rules[0].muon.as_mut().unwrap().weight_decay = 0.0;
    config.rules[1].adamw.as_mut().unwrap().weight_decay = 0.0;
    let setup = Setup::new(schema(), config, DType::F32);
    let mut cluster = run(&setup, &Device::cpu(1).unwrap(), 1, 2);
    let zero = vec![0.0; setup.flat.len];
    let expert = setup.flat.range(setup.schema.find("layer.0.expert.1").unwrap());
    let mut weights = cluster.bits(0)[expert.clone()].to_vec();
    let mut moved = Vec::new();
    for step in 3..=900 {
        cluster.step(step, &zero);
        let now = cluster.bits(0)[expert.clone()].to_vec();
        moved.push(now != weights);
        weights = now;
    }
    assert!(moved[0], "the momentum outlives the gradient");
    assert!(!moved[800..].contains(&true), "but not for ever");
}

#[test]
fn states_cover_every_row_once() {
    for dtype in [DType::F32, DType::Bf16] {
        let setup = Setup::new(schema(), config(Clip::None), dtype);
        let rows = run(&setup, &Device::cpu(1).unwrap(), 4, 1).state_rows();
        let declared = optim::declared(&setup.schema, &setup.plans);
        let tensors = setup.schema.tensors.iter().zip(&setup.plans);
        let slots = tensors.flat_map(|(tensor, plan)| {
            let slots: &[&str] = match &plan.update {
                Update::Muon(_) => &["param", "momentum"],
                Update::AdamW(_) => &["param", "adam_m", "adam_v"],
                other => unreachable!("{other:?}"),
            };
            slots.iter().map(|slot| (tensor.name.as_str(), *slot, &tensor.shape))
        });
        let words = declared.iter().map(|state| (state.name.as_str(), state.slot, &state.shape));
        assert!(words.eq(slots));
        let mut want = Vec::new();
        for (index, state) in declared.iter().enumerate() {
            let rows = state.shape[0];
            want.extend((0..rows).map(|row| (index, row, state.len() / rows)));
        }
        let got = rows.iter().map(|(index, row, bits)| (*index, *row, bits.len()));
        assert_eq!(got.collect::<Vec<_>>(), want);
    }
}

/// Saves at two ranks, loads at three in uneven runs of rows, and goes on.
#[test]
fn a_run_goes_on_at_another_rank_count() {
    for dtype in [DType::F32, DType::Bf16] {
        let setup = Setup::new(schema(), config(Clip::Global(0.5)), dtype);
        let device = Device::guarded(1).unwrap();
        let straight = run(&setup, &device, 1, 4);
        let saved = run(&setup, &device, 2, 2).state_rows();
        let mut resumed = Cluster::new(&setup, &device, 3);
        let mut taken = 0;
        for (optimizer, weights) in resumed.ranks.iter().zip(&resumed.weights) {
            taken += fill(&device.stream(), optimizer.states(weights).unwrap(), &saved);
        }
        assert_eq!(taken, saved.iter().map(|row| row.2.len()).sum::<usize>());
        for (optimizer, weights) in resumed.ranks.iter().zip(&resumed.weights) {
            optimizer.publish(weights).unwrap();
        }
        for step in 3..=4 {
            resumed.step(step, &noise(setup.flat.len, 100 + step));
        }
        assert!(resumed.bits(1) == straight.bits(0));
        assert!(resumed.state_rows() == straight.state_rows());
    }
}

#[test]
fn the_memory_plan_is_what_is_allocated() {
    for dtype in [DType::F32, DType::Bf16] {
        for threads in [1, 3] {
            let setup = Setup::new(schema(), config(Clip::None), dtype);
            let device = Device::cpu(threads).unwrap();
            let ownership = setup.ownership(2);
            for rank in 0..2 {
                let (schema, plans) = (&setup.schema, &setup.plans);
                let plan =
                    optim::memory_plan(schema, &ownership, rank, plans, dtype, threads).unwrap();
                let before = device.allocated_bytes();
                let optimizer = optim::ShardedOptimizer::new(
                    &device,
                    schema,
                    &setup.flat,
                    &ownership,
                    rank,
                    plans,
                    dtype,
                )
                .unwrap();
                let bytes: usize = plan.iter().map(|item| item.bytes()).sum();
                assert_eq!(device.allocated_bytes() - before, bytes);
                assert_eq!(optimizer.memory_plan(), plan);
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let setup = Setup::new(schema(), config(Clip::None), DType::F32);
    let device = Device::cpu(1).unwrap();
    let cluster = Cluster::new(&setup, &device, 1);
    let short = device.zeros(&[setup.flat.len - 1], DType::F32).unwrap();
    let sums = device.zeros(&[cluster.ownership.statistics], DType::F64).unwrap();
    let error = cluster.ranks[0].statistics(&short, &sums).unwrap_err().to_string();
    let len = setup.flat.len;
    assert_eq!(error, format!("gradients: {} entries for {len}", len - 1));
    let half = device.zeros(&[len], DType::Bf16).unwrap();
    assert!(cluster.ranks[0].states(&half).is_err());
    let integers = optim::ShardedOptimizer::new(
        &device,
        &setup.schema,
        &setup.flat,
        &cluster.ownership,
        0,
        &setup.plans,
        DType::I32,
    );
    assert!(integers.err().unwrap().to_string().contains("use f32 or bf16"));
}
