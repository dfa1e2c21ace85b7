//! SGD, NorMuon and Dion against plain f64 loops of their papers' equations, and what holds for
//! every update: one result at any number of ranks and threads, after a save and a load at another
//! number, with f32 and bf16 weights.

mod cluster;

use cluster::{
    Cluster, SEED, Setup, TOKENS, fill, multiply, newton_schulz, noise, schema, transposed,
};
use device::{Arch, DType, Device, SimOptions};
use kernels::newton_schulz::Iteration;
use layout::{LogicalTensor, Part, Role, Schema};
use optim::{Clip, NonFinite, NorMuonConfig, OptimizerConfig, TensorPlan, Update};

/// Rules under which SGD updates everything, or an update of matrices what it can.
const RULES: [&str; 6] = [
    "[{match: {}, sgd: {lr: 1, weight_decay: 0.2}}]",
    "[{match: {}, sgd: {lr: 1, nesterov: true, momentum: 0.8}}]",
    "[{match: {roles: [matrix, expert]}, normuon: {}}, {match: {}, adamw: {}}]",
    "[{match: {roles: [matrix, expert]}, normuon: {scale: spectral, nesterov: true}}, \
      {match: {}, sgd: {lr: 1}}]",
    "[{match: {roles: [matrix, expert]}, dion: {}}, {match: {}, adamw: {}}]",
    // Two updates that share a slot of the checkpoint, and one that comes later.
    "[{match: {roles: [matrix]}, muon: {}}, {match: {names: ['*.1']}, normuon: {}}, \
      {match: {roles: [expert]}, dion: {rank: 2}}, {match: {}, adamw: {}}]",
];

fn config(rules: &str, clip: Clip) -> OptimizerConfig {
    let rules = serde_yaml::from_str(rules).unwrap();
    let non_finite = NonFinite::Skip;
    OptimizerConfig { rules, clip, non_finite, require_muon: false, ..OptimizerConfig::default() }
}

fn setup(rules: &str, dtype: DType) -> Setup {
    Setup::new(schema(), config(rules, Clip::Global(0.5)), dtype)
}

fn run(setup: &Setup, device: &Device, world: usize, steps: u64) -> Cluster {
    let mut cluster = Cluster::new(setup, device, world);
    (1..=steps).for_each(|step| cluster.step(step, &noise(setup.flat.len, 100 + step)));
    cluster
}

#[test]
fn ranks_threads_and_the_guarded_device_change_no_bit() {
    for rules in RULES {
        for dtype in [DType::F32, DType::Bf16] {
            let setup = setup(rules, dtype);
            let one = run(&setup, &Device::cpu(1).unwrap(), 1, 3);
            let devices = [Device::cpu(1), Device::cpu(3), Device::guarded(2)];
            for (device, world) in devices.into_iter().zip([4, 3, 2]) {
                let several = run(&setup, &device.unwrap(), world, 3);
                assert_eq!(several.decision, one.decision);
                for rank in 0..world {
                    assert!(several.bits(rank) == one.bits(0), "{rules} {dtype} {rank} of {world}");
                }
                assert!(several.state_rows() == one.state_rows(), "{rules} {dtype} {world}");
            }
        }
    }
}

#[test]
fn a_run_goes_on_at_another_rank_count() {
    for rules in RULES {
        for dtype in [DType::F32, DType::Bf16] {
            let setup = setup(rules, dtype);
            let device = Device::cpu(1).unwrap();
            let straight = run(&setup, &device, 1, 4);
            let saved = run(&setup, &device, 3, 2).state_rows();
            for world in [2, 4] {
                let mut resumed = Cluster::new(&setup, &device, world);
                let mut taken = 0;
                for (rank, weights) in resumed.ranks.iter().zip(&resumed.weights) {
                    taken += fill(&device.stream(), rank.states(weights).unwrap(), &saved);
                    rank.publish(weights).unwrap();
                }
                assert_eq!(taken, saved.iter().map(|row| row.2.len()).sum::<usize>());
                (3..=4).for_each(|step| resumed.step(step, &noise(setup.flat.len, 100 + step)));
                assert!(resumed.bits(1) == straight.bits(0), "{rules} {dtype} {world}");
                assert!(resumed.state_rows() == straight.state_rows(), "{rules} {dtype}");
            }
        }
    }
}

#[test]
fn the_boxes_that_ranks_keep_are_known_without_their_memory() {
    for rules in RULES {
        for dtype in [DType::F32, DType::Bf16] {
            let setup = setup(rules, dtype);
            for world in [1, 3] {
                let cluster = Cluster::new(&setup, &Device::cpu(1).unwrap(), world);
                let ownership = setup.ownership(world);
                let planned = optim::kept_boxes(&setup.schema, &ownership, &setup.plans).unwrap();
                let ranks = cluster.ranks.iter().zip(&cluster.weights);
                for ((rank, weights), mut planned) in ranks.zip(planned) {
                    let views = rank.states(weights).unwrap().into_iter();
                    let mut kept: Vec<_> = views.map(|view| (view.state, view.region)).collect();
                    kept.sort();
                    planned.sort();
                    assert_eq!(planned, kept, "{rules} {dtype} {world}");
                }
            }
        }
    }
}

#[test]
fn the_memory_plan_is_what_is_allocated() {
    for rules in RULES {
        for (dtype, threads) in [(DType::F32, 1), (DType::Bf16, 3)] {
            let (setup, device) = (setup(rules, dtype), Device::cpu(threads).unwrap());
            let Setup { schema, flat, plans, .. } = &setup;
            let ownership = setup.ownership(2);
            for rank in 0..2 {
                let plan = optim::memory_plan(schema, &ownership, rank, plans, dtype, threads);
                let plan = plan.unwrap();
                let before = device.allocated_bytes();
                let made = optim::ShardedOptimizer::new(
                    &device, schema, flat, &ownership, rank, plans, dtype,
                );
                let bytes: usize = plan.iter().map(|item| item.bytes()).sum();
                assert_eq!(device.allocated_bytes() - before, bytes);
                assert_eq!(made.unwrap().memory_plan(), plan);
            }
        }
    }
}

/// Of a fused parameter they are stacked.
#[test]
fn states_have_the_shapes_that_updates_say() {
    let shapes = |rules: &str, name: &str| -> Vec<(&'static str, Vec<usize>)> {
        let setup = setup(rules, DType::F32);
        let states = optim::declared(&setup.schema, &setup.plans).into_iter();
        states.filter(|s| s.name == name).skip(1).map(|s| (s.slot, s.shape)).collect()
    };
    let qkv = "layer.0.qkv";
    assert_eq!(shapes(RULES[0], "layer.0.norm"), [("sgd_momentum", vec![10])]);
    let momentum = ("momentum", vec![30, 10]);
    assert_eq!(shapes(RULES[2], qkv), [momentum, ("row_variance", vec![30, 1])]);
    // A quarter of 10, 5 and 10, rounded up.
    let momentum = ("dion_momentum", vec![30, 10]);
    assert_eq!(shapes(RULES[4], qkv), [momentum, ("dion_basis", vec![3 + 2 + 3, 10])]);
}

/// All weights in f64, and what an update keeps of each true matrix.
struct Reference {
    weights: Vec<f64>,
    kept: Vec<Vec<[Vec<f64>; 2]>>,
}

/// One true matrix, or all of a parameter.
struct Unit<'a> {
    w: &'a mut [f64],
    g: Vec<f64>,
    rows: usize,
    kept: &'a mut [Vec<f64>; 2],
}

impl Reference {
    fn new(setup: &Setup) -> Reference {
        let weights: Vec<f64> = setup.initial().into_iter().map(f64::from).collect();
        let kept = |plan: &TensorPlan| {
            let mut parts: Vec<[Vec<f64>; 2]> = Vec::new();
            for part in &plan.parts {
                let second = match &plan.update {
                    Update::NorMuon(_) => vec![0.0; part.rows.len()],
                    Update::Dion(dion) => {
                        let name = &setup.schema.tensors[plan.tensor].name;
                        let states = optim::declared(&setup.schema, &setup.plans);
                        let basis =
                            states.iter().find(|s| s.name == *name && s.slot == "dion_basis");
                        let first: usize = parts.iter().map(|p| p[1].len() / part.cols).sum();
                        let rank = dion.rank_of(part.rows.len(), part.cols);
                        let values = basis.unwrap().initial(SEED, first..first + rank);
                        values.into_iter().map(f64::from).collect()
                    }
                    _ => Vec::new(),
                };
                parts.push([vec![0.0; part.rows.len() * part.cols], second]);
            }
            parts
        };
        Reference { weights, kept: setup.plans.iter().map(kept).collect() }
    }

    fn step(&mut self, setup: &Setup, grads: &[f32]) {
        let inside = (0..setup.schema.tensors.len()).flat_map(|index| setup.flat.range(index));
        let norm = inside.map(|i| f64::from(grads[i]).powi(2)).sum::<f64>().sqrt();
        let clip = match setup.config.clip {
            Clip::Global(most) => (most / (norm / TOKENS as f64)).min(1.0),
            _ => 1.0,
        };
        let factor = clip / TOKENS as f64;
        for plan in &setup.plans {
            let offset = setup.flat.offsets[plan.tensor];
            for (part, kept) in plan.parts.iter().zip(&mut self.kept[plan.tensor]) {
                let range =
                    offset + part.rows.start * part.cols..offset + part.rows.end * part.cols;
                let g = grads[range.clone()].iter().map(|&g| f64::from(g) * factor).collect();
                let unit = Unit { w: &mut self.weights[range], g, rows: part.rows.len(), kept };
                match &plan.update {
                    Update::Sgd(sgd) => unit.sgd(sgd),
                    Update::NorMuon(normuon) => unit.normuon(normuon),
                    Update::Dion(dion) => unit.dion(dion),
                    Update::AdamW(_) | Update::Muon(_) => {}
                }
            }
        }
    }
}

/// The schedule's factor in [`Cluster::step`].
const FACTOR: f64 = 0.5;

impl Unit<'_> {
    fn sgd(self, sgd: &optim::SgdConfig) {
        let (lr, mu) = (FACTOR * sgd.lr, sgd.momentum);
        for ((w, g), m) in self.w.iter_mut().zip(self.g).zip(&mut self.kept[0]) {
            *m = mu * *m + g;
            let u = if sgd.nesterov { g + mu * *m } else { *m };
            *w -= lr * (sgd.weight_decay * *w + u);
        }
    }

    /// Algorithm 1 of arXiv 2510.05491, line by line; with another scale as the authors' code.
    fn normuon(self, normuon: &NorMuonConfig) {
        let Unit { w, g, rows, kept: [m, v] } = self;
        let (cols, mu) = (g.len() / rows, normuon.momentum);
        m.iter_mut().zip(&g).for_each(|(m, g)| *m = mu * *m + (1.0 - mu) * g);
        let u: Vec<f64> = match normuon.nesterov {
            true => m.iter().zip(&g).map(|(m, g)| mu * m + (1.0 - mu) * g).collect(),
            false => m.clone(),
        };
        let o = newton_schulz(&Iteration::new(&normuon.muon().method()).unwrap(), &u, rows, cols);
        let mut hat = o.clone();
        for (i, v) in v.iter_mut().enumerate() {
            let row = &mut hat[i * cols..(i + 1) * cols];
            let mean = row.iter().map(|o| o * o).sum::<f64>() / cols as f64;
            *v = normuon.beta2 * *v + (1.0 - normuon.beta2) * mean;
            row.iter_mut().for_each(|o| *o /= v.sqrt() + 1e-8);
        }
        let norm = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt();
        let (r, c) = (rows as f64, cols as f64);
        let eta = match normuon.scale {
            optim::Scale::Rms => 0.2 * (r * c).sqrt() / norm(&hat),
            optim::Scale::Spectral => (r / c).max(1.0).sqrt() * norm(&o) / norm(&hat),
            optim::Scale::None => norm(&o) / norm(&hat),
        };
        let lr = FACTOR * normuon.lr;
        for (w, o) in w.iter_mut().zip(hat) {
            *w -= lr * (normuon.weight_decay * *w + eta * o);
        }
    }

    /// Algorithm 1 of arXiv 2504.05295, with columns as the paper has them.
    fn dion(self, dion: &optim::DionConfig) {
        let Unit { w, g, rows, kept: [m, basis] } = self;
        let cols = g.len() / rows;
        let rank = basis.len() / cols;
        m.iter_mut().zip(&g).for_each(|(m, g)| *m += g);
        let q = transposed(basis, rank, cols);
        let p = orthonormal(multiply(m, &q, (rows, cols, rank)), rows, rank);
        let r = multiply(&transposed(m, rows, cols), &p, (cols, rows, rank));
        let used = multiply(&p, &transposed(&r, cols, rank), (rows, rank, cols));
        m.iter_mut().zip(&used).for_each(|(m, used)| *m -= (1.0 - dion.momentum) * used);
        let mut q = r;
        for j in 0..rank {
            let column = |q: &[f64]| (0..cols).map(|i| q[i * rank + j].powi(2)).sum::<f64>().sqrt();
            let norm = column(&q) + 1e-8;
            (0..cols).for_each(|i| q[i * rank + j] /= norm);
        }
        let direction = multiply(&p, &transposed(&q, cols, rank), (rows, rank, cols));
        *basis = transposed(&q, cols, rank);
        let (lr, scale) = (FACTOR * dion.lr, (rows as f64 / cols as f64).sqrt());
        for (w, d) in w.iter_mut().zip(direction) {
            *w -= lr * (dion.weight_decay * *w + scale * d);
        }
    }
}

/// Columns made orthonormal in order (modified Gram–Schmidt).
fn orthonormal(mut p: Vec<f64>, rows: usize, rank: usize) -> Vec<f64> {
    for j in 0..rank {
        let dot = |p: &[f64], a: usize, b: usize| {
            (0..rows).map(|i| p[i * rank + a] * p[i * rank + b]).sum::<f64>()
        };
        for earlier in 0..j {
            let share = dot(&p, earlier, j);
            (0..rows).for_each(|i| p[i * rank + j] -= share * p[i * rank + earlier]);
        }
        let norm = dot(&p, j, j).sqrt();
        (0..rows).for_each(|i| p[i * rank + j] /= norm);
    }
    p
}

/// How far each parameter is from the reference, as a share of its way; those of other updates
/// are left out.
fn follows(setup: &Setup, cluster: &Cluster, reference: &Reference) {
    let (start, bits) = (setup.initial(), cluster.bits(0));
    for plan in &setup.plans {
        if matches!(plan.update, Update::AdamW(_) | Update::Muon(_)) {
            continue;
        }
        let (mut difference, mut moved) = (0.0_f64, 0.0_f64);
        for i in setup.flat.range(plan.tensor) {
            let got = f64::from(f32::from_bits(bits[i]));
            difference += (got - reference.weights[i]).powi(2);
            moved += (reference.weights[i] - f64::from(start[i])).powi(2);
        }
        let (share, name) = ((difference / moved).sqrt(), &setup.schema.tensors[plan.tensor].name);
        assert!(moved > 0.0 && share < 1e-4, "{} {name}: {share:.1e}", plan.update.word());
    }
}

#[test]
fn several_steps_follow_the_papers() {
    for rules in RULES {
        let setup = setup(rules, DType::F32);
        let mut cluster = Cluster::new(&setup, &Device::cpu(2).unwrap(), 3);
        let mut reference = Reference::new(&setup);
        for step in 1..=5 {
            let grads = noise(setup.flat.len, 100 + step);
            cluster.step(step, &grads);
            reference.step(&setup, &grads);
        }
        assert!(cluster.decision.factors[0] < 1.0, "the test clips");
        follows(&setup, &cluster, &reference);
    }
}

/// The variance of rows after five steps is the papers', and a zero matrix stays zero.
#[test]
fn the_variance_of_rows_is_that_of_the_paper() {
    let rules = RULES[2].replace("normuon: {}", "normuon: {weight_decay: 0}");
    let setup = Setup::new(schema(), config(&rules, Clip::None), DType::F32);
    let mut cluster = Cluster::new(&setup, &Device::cpu(1).unwrap(), 2);
    let mut reference = Reference::new(&setup);
    let quiet = setup.schema.find("layer.0.expert.1").unwrap();
    for step in 1..=5 {
        let mut grads = noise(setup.flat.len, 100 + step);
        grads[setup.flat.range(quiet)].fill(0.0);
        cluster.step(step, &grads);
        reference.step(&setup, &grads);
    }
    let states = cluster.ranks[0].declared();
    for (state, row, bits) in cluster.state_rows() {
        let state = &states[state];
        if state.slot != "row_variance" {
            continue;
        }
        let tensor = setup.schema.find(&state.name).unwrap();
        let (got, parts) = (f64::from(f32::from_bits(bits[0])), &reference.kept[tensor]);
        let want = parts.iter().flat_map(|kept| kept[1].clone()).nth(row).unwrap();
        if tensor == quiet {
            assert_eq!(got, 0.0);
        } else {
            assert!((got - want).abs() < 1e-4 * want, "{} {row}: {got} {want}", state.name);
        }
    }
    let (start, bits) = (setup.initial(), cluster.bits(0));
    assert!(setup.flat.range(quiet).all(|i| f32::from_bits(bits[i]) == start[i]));
}

/// Gradients of one matrix `[rows, cols]`, the same in every step, under one rule; calls `each`
/// with the number of the step and the weights' change in it, for a whole learning rate.
fn constant(
    rule: &str,
    (rows, cols): (usize, usize),
    gradient: &[f32],
    steps: u64,
    mut each: impl FnMut(u64, &[f64], &Cluster),
) {
    let schema = Schema::new(vec![LogicalTensor::new("w", &[rows, cols], Role::Matrix)]).unwrap();
    let setup = Setup::new(schema, config(rule, Clip::None), DType::F32);
    let mut cluster = Cluster::new(&setup, &Device::cpu(1).unwrap(), 1);
    let mut grads = vec![0.0; setup.flat.len];
    grads[..gradient.len()].copy_from_slice(gradient);
    let mut before = cluster.bits(0);
    for step in 1..=steps {
        cluster.step(step, &grads);
        let now = cluster.bits(0);
        let value = |bits: u32| f64::from(f32::from_bits(bits));
        let change = before.iter().zip(&now).map(|(&b, &a)| (value(b) - value(a)) / FACTOR);
        each(step, &change.take(rows * cols).collect::<Vec<_>>(), &cluster);
        before = now;
    }
}

const WHOLE: &str = "lr: 1, weight_decay: 0, scale: none";

#[test]
fn dion_at_full_rank_approaches_muon_on_a_constant_matrix() {
    for seed in 0..3 {
        let gradient = noise(400, seed);
        let mut polar = Vec::new();
        let muon = format!("[{{match: {{}}, muon: {{{WHOLE}, algorithm: svd}}}}]");
        constant(&muon, (20, 20), &gradient, 1, |_, change, _| polar = change.to_vec());
        let norm = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt();
        let mut errors = Vec::new();
        let dion = format!("[{{match: {{}}, dion: {{{WHOLE}, rank_fraction: 1}}}}]");
        constant(&dion, (20, 20), &gradient, 101, |step, change, _| {
            let error: Vec<f64> = change.iter().zip(&polar).map(|(a, b)| a - b).collect();
            if [2, 11, 101].contains(&step) {
                errors.push(norm(&error) / norm(&polar));
            }
        });
        let small = errors[0] < 0.4 && errors[1] < 0.06 && errors[2] < 1e-3;
        assert!(small && errors[0] > errors[2], "{errors:?}");
    }
}

#[test]
fn zero_and_rank_one_gradients_leave_a_basis_alive() {
    let dion = format!("[{{match: {{}}, dion: {{{WHOLE}, rank: 3}}}}]");
    let basis = |cluster: &Cluster| -> Vec<Vec<u32>> {
        let states = cluster.ranks[0].declared();
        let rows = cluster.state_rows().into_iter();
        rows.filter(|row| states[row.0].slot == "dion_basis").map(|row| row.2).collect()
    };
    let mut first = Vec::new();
    constant(&dion, (8, 5), &[0.0; 40], 3, |_, change, cluster| {
        assert!(change.iter().all(|&x| x == 0.0));
        let now = basis(cluster);
        assert!(first.is_empty() || first == now);
        first = now;
    });
    assert_eq!(first.len(), 3);
    assert!(first.iter().flatten().all(|&bits| f32::from_bits(bits) != 0.0));
    let (u, v) = (noise(8, 1), noise(5, 2));
    let outer: Vec<f32> = u.iter().flat_map(|u| v.iter().map(move |v| u * v)).collect();
    constant(&dion, (8, 5), &outer, 4, |_, change, cluster| {
        let norm = change.iter().map(|x| x * x).sum::<f64>().sqrt();
        assert!((norm - 1.0).abs() < 1e-5, "{norm}");
        let alive = basis(cluster).iter().zip(&first).filter(|(now, old)| now != old).count();
        assert_eq!(alive, 1, "the others keep their vectors");
    });
}

/// Its momentum is used up, and nothing else.
#[test]
fn an_expert_without_tokens_follows_the_paper() {
    let setup = setup(RULES[4], DType::F32);
    let mut cluster = Cluster::new(&setup, &Device::cpu(1).unwrap(), 2);
    let mut reference = Reference::new(&setup);
    let expert = setup.flat.range(setup.schema.find("layer.0.expert.1").unwrap());
    for step in 1..=8 {
        let mut grads = noise(setup.flat.len, 100 + step);
        if step > 3 {
            grads[expert.clone()].fill(0.0);
        }
        cluster.step(step, &grads);
        reference.step(&setup, &grads);
    }
    follows(&setup, &cluster, &reference);
}

#[test]
fn what_does_not_fit_is_refused() {
    let part = |label: &str, rows| Part { label: label.into(), rows };
    let mut qk = LogicalTensor::new("qk", &[96, 64], Role::Matrix);
    qk.parts = vec![part("q", 0..64), part("k", 64..96)];
    let schema = Schema::new(vec![qk, LogicalTensor::new("norm", &[64], Role::Vector)]).unwrap();
    let refused =
        |rules: &str| optim::plan(&schema, &config(rules, Clip::None)).unwrap_err().to_string();
    assert_eq!(
        refused("[{match: {roles: [matrix]}, dion: {rank: 48}}, {match: {}, adamw: {}}]"),
        "optimizer.rules[0].dion.rank = 48 does not fit k of `qk` [32, 64]: its basis would be \
         [48, 64]; use at most 32"
    );
    // The value that is named fits every matrix of the rule, not the first alone.
    let sides = [[96, 64], [64, 48], [16, 64], [24, 64]];
    let names = ["a", "b", "c", "d"].into_iter().zip(sides);
    let several = names.map(|(name, shape)| LogicalTensor::new(name, &shape, Role::Matrix));
    let several = Schema::new(several.collect()).unwrap();
    let rules =
        |rank: usize| config(&format!("[{{match: {{}}, dion: {{rank: {rank}}}}}]"), Clip::None);
    let error = optim::plan(&several, &rules(80)).unwrap_err().to_string();
    assert!(error.contains("`c` [16, 64]") && error.ends_with("use at most 16"), "{error}");
    assert!(optim::plan(&several, &rules(16)).is_ok());
    assert!(refused("[{match: {}, dion: {}}]").contains("Dion updates two-dimensional"));
    assert!(refused("[{match: {}, normuon: {beta2: 1}}]").contains("normuon.beta2 is 1; it must"));
    let fraction = refused("[{match: {}, dion: {rank_fraction: 1.5}}]");
    assert!(fraction.contains("a number above 0 and at most 1: use 1"), "{fraction}");
    assert!(refused("[{match: {}, dion: {rank_fraction: 0}}]").contains("use 0.25"));
    assert!(refused("[{match: {}, dion: {rank: 0}}]").contains("use 1"));
    assert!(
        refused("[{match: {}, sgd: {lr: -1}}]").contains("sgd.lr is -1; it must be a positive")
    );
    assert!(refused("[{match: {}, sgd: {}, dion: {}}]").contains("both `sgd` and `dion`"));
    assert!(refused("[{match: {}}]").contains("one of muon, adamw, sgd, normuon, dion (as"));
    let strict =
        OptimizerConfig { require_muon: true, ..config("[{match: {}, sgd: {}}]", Clip::None) };
    let error = optim::plan(&schema, &strict).unwrap_err().to_string();
    assert!(error.contains("or its like (muon, normuon, dion)"), "{error}");
    let dion = "[{match: {roles: [matrix]}, dion: {}}, {match: {}, adamw: {}}]";
    let dion = OptimizerConfig { require_muon: true, ..config(dion, Clip::None) };
    assert!(optim::plan(&schema, &dion).is_ok());
}

#[test]
fn a_device_without_code_is_refused_by_name_when_memory_is_planned() {
    let device = Device::sim(Arch::Sm90a, 1, SimOptions::default()).unwrap();
    for (rules, word) in [(RULES[0], "sgd"), (RULES[2], "normuon"), (RULES[4], "dion")] {
        let setup = setup(rules, DType::F32);
        let Setup { schema, plans, dtype, .. } = &setup;
        let plan = optim::memory_plan_on(&device, schema, &setup.ownership(1), 0, plans, *dtype);
        let error = plan.unwrap_err().to_string();
        assert!(error.starts_with(&format!("{word} has no code for sim:sm_90a")), "{error}");
    }
}
