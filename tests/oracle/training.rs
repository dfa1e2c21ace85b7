//! Fifty steps of real text on both sides, in f32, from the same weights and in the same order.

use std::collections::BTreeSet;
use std::io::Write;

use device::{DType, Tensor};
use layout::{CostTable, Ownership};
use model::config::{Activation, LatentConfig, MoeConfig, Names};
use model::{Architecture, Inputs, MicroBatch, ModelConfig, Norm, Positions, Preset};
use optim::config::ConstantSchedule;
use optim::{
    AdamWConfig, Clip, ClipDecision, Clipper, Coefficients, Match, MuonConfig, OptimizerConfig,
    RoleWord, Rule, Scale, Schedule, ShardedOptimizer, StepScalars, Verdict,
};

use super::engine::Engine;
use super::norm;
use super::optimizers::{Muon, Numbers, Optimizer};
use super::reference::{Pass, Reference, host};
use super::text::{Sample, Text};

const STEPS: usize = 50;
/// A mixture's choices must not differ before, so that there is something to compare.
const EARLIEST_FLIP: usize = 10;
/// Of the weights at the start. Of seven seeds none flips before step 26; this one, where it was
/// measured, not at all.
const SEED: u64 = 1;
const BATCH: MicroBatch = MicroBatch { windows: 4, positions: 64 };
/// Relative difference of the losses of one step. Measured: at most 2e-6.
const TOLERANCE: f64 = 1e-4;
/// Difference of the weights, relative to how far training moved them. Measured: at most 1e-4.
const DRIFT: f64 = 1e-3;
/// How near to a tie a choice may be that another rounding makes otherwise. Measured, with other
/// seeds: 4e-6.
const TIE: f64 = 5e-5;

const ADAMW: Numbers = Numbers {
    adamw_lr: 0.003,
    beta1: 0.9,
    beta2: 0.95,
    eps: 1e-8,
    adamw_decay: 0.1,
    muon: None,
    clip: 1.0,
    warmup_steps: 5,
};

const MODERN: Muon = Muon { lr: 0.003, momentum: 0.95, decay: 0.1, steps: 5, modern: true };
const MUON: Numbers = Numbers { muon: Some(MODERN), ..ADAMW };
const JORDAN: Numbers =
    Numbers { muon: Some(Muon { lr: 0.02, decay: 0.0, modern: false, ..MODERN }), ..ADAMW };

/// The engine's optimizer for one rank that owns everything.
struct Trainer {
    engine: Engine,
    config: OptimizerConfig,
    optimizer: ShardedOptimizer,
    clipper: Clipper,
    sums: Tensor,
    decision: ClipDecision,
}

fn config(n: Numbers) -> OptimizerConfig {
    let adamw = AdamWConfig {
        lr: n.adamw_lr,
        beta1: n.beta1,
        beta2: n.beta2,
        eps: n.eps,
        weight_decay: n.adamw_decay,
    };
    let rest = Rule { adamw: Some(adamw), ..Rule::default() };
    let hidden = n.muon.map(|muon| Rule {
        matches: Match { roles: Some(vec![RoleWord::Matrix, RoleWord::Expert]), names: None },
        muon: Some(MuonConfig {
            lr: muon.lr,
            momentum: muon.momentum,
            nesterov: true,
            coefficients: match muon.modern {
                true => Coefficients::PolarExpress,
                false => Coefficients::Jordan,
            },
            steps: muon.steps,
            scale: if muon.modern { Scale::Rms } else { Scale::Spectral },
            weight_decay: muon.decay,
            eps: 1e-7,
            ..MuonConfig::default()
        }),
        ..Rule::default()
    });
    OptimizerConfig {
        rules: hidden.into_iter().chain([rest]).collect(),
        schedule: Schedule::Constant(ConstantSchedule { warmup_steps: n.warmup_steps }),
        clip: Clip::Global(n.clip),
        require_muon: n.muon.is_some(),
        ..OptimizerConfig::default()
    }
}

impl Trainer {
    fn new(a: &Architecture, numbers: Numbers) -> Trainer {
        let engine = Engine::new(a, BATCH, DType::F32, SEED);
        let (schema, flat) = (engine.model.schema(), engine.model.flat());
        let config = config(numbers);
        let plans = optim::plan(schema, &config).unwrap();
        let treatments = optim::treatments(&plans).unwrap();
        let ownership = Ownership::new(schema, flat, &treatments, 1, &CostTable::CPU).unwrap();
        let device = &engine.device;
        let optimizer =
            ShardedOptimizer::new(device, schema, flat, &ownership, 0, &plans, DType::F32).unwrap();
        let clipper = Clipper::new(config.clip, config.non_finite, &plans, &ownership);
        let sums = device.zeros(&[ownership.statistics], DType::F64).unwrap();
        let decision = ClipDecision::default();
        Trainer { engine, config, optimizer, clipper, sums, decision }
    }

    fn update(&mut self, tokens: usize, step: u64) {
        let Trainer { engine, optimizer, .. } = self;
        optimizer.statistics(&engine.gradients, &self.sums).unwrap();
        let sums = engine.read(&self.sums);
        self.clipper.decide(&sums, tokens as u64, None, &mut self.decision).unwrap();
        assert_eq!(self.decision.verdict, Verdict::Apply);
        let scalars = StepScalars {
            step,
            lr_factor: optim::factor(step, STEPS as u64, &self.config.schedule),
            inverse_tokens: 1.0 / tokens as f64,
            clip: &self.decision,
        };
        optimizer.apply(&engine.weights, &engine.gradients, &scalars).unwrap();
        optimizer.check_momentum().unwrap();
    }
}

/// Loss-free balancing (Wang et al. 2024): experts with less than the mean load become likelier.
fn balance(bias: &mut [Vec<f64>], loads: &[Vec<u32>], rate: f64) {
    for (bias, loads) in bias.iter_mut().zip(loads) {
        let mean = f64::from(loads.iter().sum::<u32>()) / loads.len() as f64;
        for (bias, &load) in bias.iter_mut().zip(loads) {
            let missing = mean - f64::from(load);
            let step = if missing == 0.0 { 0.0 } else { rate * missing.signum() };
            // The engine keeps f32.
            *bias = f64::from((*bias + step) as f32);
        }
    }
}

/// How the two sides compared.
struct Outcome {
    /// Mean loss of each step, and its relative difference.
    steps: Vec<(f64, f64)>,
    flip: Option<Flip>,
    /// Difference of the weights at the end, or when choices first differed, relative to how far
    /// training had moved them.
    drift: f64,
}

/// Where the choices of experts first differ.
struct Flip {
    /// From 1.
    step: usize,
    /// Tokens of the first such layer that go elsewhere.
    tokens: usize,
    /// How far from a tie the clearest of their choices was in the reference.
    margin: f64,
}

impl Flip {
    /// The difference in the first layer where there is one; those after it follow from it.
    fn find(step: usize, ours: &[Vec<Vec<u32>>], pass: &Pass) -> Option<Flip> {
        let layers = ours.iter().zip(&pass.chosen).zip(&pass.margins);
        layers.into_iter().find_map(|((ours, theirs), margins)| {
            assert_eq!(ours.len(), theirs.len());
            let goes_elsewhere = |token: &usize| {
                let ours: BTreeSet<usize> = ours[*token].iter().map(|&e| e as usize).collect();
                ours != theirs[*token].iter().copied().collect()
            };
            let differ: Vec<usize> = (0..ours.len()).filter(goes_elsewhere).collect();
            let margin = differ.iter().map(|&token| margins[token]).reduce(f64::max)?;
            Some(Flip { step, tokens: differ.len(), margin })
        })
    }
}

/// Trains both sides.
fn train(a: &Architecture, numbers: Numbers) -> Outcome {
    let text = Text::pinned();
    let mut trainer = Trainer::new(a, numbers);
    let schema = trainer.engine.model.schema().clone();
    let values = trainer.engine.per_tensor(&trainer.engine.weights);
    let mut reference = Reference::new(a, &schema, candle_core::DType::F32, &values).unwrap();
    let mut optimizer = Optimizer::new(&schema, numbers).unwrap();
    let rate = a.moe.as_ref().map_or(0.0, |moe| moe.balance_rate);
    let mut bias = reference.router_bias.clone();
    let mut outcome = Outcome { steps: Vec::new(), flip: None, drift: 0.0 };
    for step in 1..=STEPS {
        let Sample { tokens, targets, doc_start } = text.sample(BATCH, step - 1);
        let inputs = Inputs { tokens: &tokens, targets: &targets, doc_start: &doc_start };
        let live = targets.iter().filter(|&&t| t != kernels::loss::IGNORE).count();
        trainer.engine.set_router_bias(&bias);
        let loss = trainer.engine.pass(&inputs, false);
        let loads = trainer.engine.loads();
        let pass = reference.pass(BATCH.windows, &inputs).unwrap();
        outcome.steps.push((loss / live as f64, (loss - pass.loss).abs() / pass.loss));
        if outcome.flip.is_none() {
            outcome.flip = Flip::find(step, &trainer.engine.chosen(), &pass);
            match outcome.flip {
                None => assert_eq!(loads, pass.loads, "step {step}: equal choices, other loads"),
                Some(_) => outcome.drift = drift(&trainer.engine, &reference, &values),
            }
        }
        balance(&mut bias, &loads, rate);
        balance(&mut reference.router_bias, &pass.loads, rate);
        trainer.update(live, step as u64);
        optimizer.update(&reference.variables, &pass.gradients, live, step as u64).unwrap();
    }
    if outcome.flip.is_none() {
        outcome.drift = drift(&trainer.engine, &reference, &values);
    }
    outcome
}

/// How far the two sides are apart, relative to their way from `start`.
fn drift(engine: &Engine, reference: &Reference, start: &[Vec<f64>]) -> f64 {
    let ours = engine.per_tensor(&engine.weights).concat();
    let theirs: Vec<f64> = reference.variables.iter().flat_map(|v| host(v)).collect();
    let apart: Vec<f64> = ours.iter().zip(&theirs).map(|(a, b)| a - b).collect();
    let moved: Vec<f64> = theirs.iter().zip(start.concat()).map(|(new, old)| new - old).collect();
    // At the first step nothing has moved.
    norm(&apart) / norm(&moved).max(f64::MIN_POSITIVE)
}

/// Trains both sides and asserts that they are equal, for a mixture until its choices differ.
fn check(name: &str, a: &Architecture, numbers: Numbers) {
    let outcome = train(a, numbers);
    for (step, (loss, difference)) in outcome.steps.iter().enumerate() {
        if (step + 1) % 10 == 0 || step == 0 {
            println!("{name}: step {} loss {loss:.4} difference {difference:.1e}", step + 1);
        }
    }
    let (first, last) = (outcome.steps[0].0, outcome.steps[STEPS - 1].0);
    assert!(last < first - 1.0, "{name}: the loss went from {first} to {last}");
    let equal = outcome.flip.as_ref().map_or(STEPS, |flip| flip.step - 1);
    let layers = a.moe_layers();
    if let Some(Flip { step, tokens, margin }) = outcome.flip {
        report(format!(
            "{name}: {layers} routers choose alike for {equal} steps; at step {step} the choice \
             of {tokens} of {} tokens differs, at most {margin:.1e} from a tie",
            BATCH.rows()
        ));
        assert!(margin < TIE, "{name}: step {step}: a clear choice went another way: {margin:e}");
        assert!(step >= EARLIEST_FLIP, "{name}: choices differ at step {step} already");
    } else if layers > 0 {
        report(format!("{name}: {layers} routers choose alike in all {STEPS} steps"));
    }
    for (i, (loss, difference)) in outcome.steps[..equal].iter().enumerate() {
        assert!(*difference < TOLERANCE, "{name}: step {}: {loss} ± {difference:e}", i + 1);
    }
    // Weights tell a wrong update from the rounding that turns a near tie, however soon it turns.
    println!("{name}: weights up to there differ by {:.1e} of their way", outcome.drift);
    assert!(outcome.drift < DRIFT, "{name}: weights differ by {:e}", outcome.drift);
}

/// Shows a line even of a test that passes: only the macros' output is held back then.
fn report(line: String) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

fn small() -> ModelConfig {
    ModelConfig {
        vocab_size: Some(Text::VOCABULARY),
        layers: Some(2),
        d_model: Some(64),
        heads: Some(4),
        kv_heads: Some(2),
        d_ff: Some(128),
        ..ModelConfig::default()
    }
}

fn resolve(config: &ModelConfig) -> Architecture {
    config.resolve(Text::VOCABULARY, BATCH.positions).unwrap()
}

fn llama() -> Architecture {
    resolve(&small())
}

fn gpt2() -> Architecture {
    resolve(&ModelConfig {
        names: Some(Names::Gpt2),
        kv_heads: Some(4),
        norm: Some(Norm::Layer),
        positions: Some(Positions::Learned { max: 64 }),
        attention_bias: Some(true),
        mlp_bias: Some(true),
        activation: Some(Activation::Gelu),
        tie_embeddings: Some(true),
        ..small()
    })
}

/// The quickstart's mixture with all its losses on.
fn mixture() -> Architecture {
    let full = Preset::TinyMoe.config();
    let moe = full.moe.map(|moe| MoeConfig {
        d_ff: Some(48),
        aux_loss: Some(0.01),
        z_loss: Some(0.001),
        ..moe
    });
    resolve(&ModelConfig { preset: Some(Preset::TinyMoe), moe, ..small() })
}

/// A published mixture, narrowed, with what sets it apart: its norms of queries and keys, its
/// scores and losses.
fn published(preset: Preset) -> Architecture {
    let full = preset.config();
    let grouped = full.kv_heads.is_some_and(|kv_heads| Some(kv_heads) != full.heads);
    let moe =
        full.moe.map(|moe| MoeConfig { experts: Some(8), top_k: Some(2), d_ff: Some(48), ..moe });
    resolve(&ModelConfig {
        preset: Some(preset),
        kv_heads: Some(if grouped { 2 } else { 4 }),
        head_dim: Some(16),
        moe,
        init_std: Some(0.02),
        ..small()
    })
}

/// DeepSeek-V3, narrowed: a dense layer, and one of experts in groups.
fn deepseek() -> Architecture {
    let full = Preset::DeepseekV3.config();
    let moe = full.moe.map(|moe| MoeConfig {
        experts: Some(8),
        top_k: Some(2),
        groups: Some(4),
        top_groups: Some(2),
        d_ff: Some(48),
        first_dense_layers: Some(1),
        ..moe
    });
    let latent = LatentConfig {
        q_rank: Some(48),
        kv_rank: Some(32),
        nope_dim: Some(16),
        rope_dim: Some(8),
        value_dim: Some(16),
        norm_eps: None,
    };
    resolve(&ModelConfig {
        preset: Some(Preset::DeepseekV3),
        kv_heads: None,
        latent: Some(latent),
        moe,
        init_std: Some(0.02),
        ..small()
    })
}

#[test]
fn dense_models_train_alike_under_adamw() {
    check("llama adamw", &llama(), ADAMW);
    check("gpt2 adamw", &gpt2(), ADAMW);
}

#[test]
fn dense_models_train_alike_under_muon() {
    check("llama muon", &llama(), MUON);
    check("gpt2 muon", &gpt2(), MUON);
    check("llama muon, jordan", &llama(), JORDAN);
}

#[test]
fn mixtures_train_alike_until_a_choice_flips() {
    check("mixture adamw", &mixture(), ADAMW);
    check("mixture muon", &mixture(), MUON);
    for preset in [Preset::Qwen3Moe30b, Preset::Olmoe7b, Preset::Mixtral8x7b] {
        check(&format!("{preset:?} adamw"), &published(preset), ADAMW);
        check(&format!("{preset:?} muon"), &published(preset), MUON);
    }
    check("deepseek adamw", &deepseek(), ADAMW);
    check("deepseek muon", &deepseek(), MUON);
}

#[test]
fn the_clearest_choice_that_goes_elsewhere_is_found() {
    let pass = Pass {
        loss: 0.0,
        gradients: Vec::new(),
        loads: Vec::new(),
        chosen: vec![vec![vec![0, 1], vec![2, 0], vec![1, 2]]; 2],
        margins: vec![vec![0.9, 1e-7, 0.3]; 2],
    };
    let alike = vec![vec![1, 0], vec![2, 0], vec![1, 2]];
    assert!(Flip::find(3, &[alike.clone(), alike.clone()], &pass).is_none());
    let other = vec![vec![1, 0], vec![2, 1], vec![0, 2]];
    let flip = Flip::find(3, &[alike, other], &pass).unwrap();
    assert_eq!((flip.step, flip.tokens, flip.margin), (3, 2, 0.3));
}
