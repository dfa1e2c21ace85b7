//! Loss and gradients of whole models beside the reference, in f64 and f32.

use device::DType;
use kernels::loss::IGNORE;
use model::config::{Activation, LatentConfig, MoeConfig, Names};
use model::{
    Architecture, Inputs, MicroBatch, ModelConfig, Norm, Positions, Preset, QkNorm, Scores,
};
use proptest::prelude::*;

use super::engine::Engine;
use super::random::Random;
use super::reference::{Reference, host};
use super::{norm, relative_error};

const VOCABULARY: usize = 96;
/// More than one block of attention scores, and the second one not whole.
const BATCH: MicroBatch = MicroBatch { windows: 2, positions: 75 };

/// Both sides round the same sums in another order; measured: at most 2e-14 and 7e-6.
fn tolerance(dtype: DType) -> f64 {
    if dtype == DType::F64 { 1e-11 } else { 1e-4 }
}

/// Two layers of a preset with every feature it has, and its auxiliary losses large enough to
/// show in the gradients.
fn narrowed(preset: Preset) -> ModelConfig {
    let full = preset.config();
    let grouped = full.kv_heads.is_some_and(|kv_heads| Some(kv_heads) != full.heads);
    let raised = |weight: Option<f64>| weight.map(|w| if w == 0.0 { 0.0 } else { 0.3 });
    ModelConfig {
        preset: Some(preset),
        moe: full.moe.as_ref().map(|moe| MoeConfig {
            aux_loss: raised(moe.aux_loss),
            z_loss: raised(moe.z_loss),
            ..experts(moe)
        }),
        ..match full.latent {
            Some(_) => latent(Some(20)),
            None => small(if grouped { 2 } else { 4 }),
        }
    }
}

/// Latent attention of which no two widths are equal.
fn latent(q_rank: Option<usize>) -> ModelConfig {
    let sizes = LatentConfig {
        q_rank,
        kv_rank: Some(12),
        nope_dim: Some(8),
        rope_dim: Some(6),
        value_dim: Some(10),
        // Large enough to be seen.
        norm_eps: Some(0.25),
    };
    ModelConfig { head_dim: None, latent: Some(sizes), ..small(4) }
}

fn small(kv_heads: usize) -> ModelConfig {
    ModelConfig {
        vocab_size: Some(VOCABULARY),
        layers: Some(2),
        d_model: Some(24),
        heads: Some(4),
        kv_heads: Some(kv_heads),
        head_dim: Some(8),
        d_ff: Some(40),
        init_std: Some(0.25),
        ..ModelConfig::default()
    }
}

fn experts(moe: &MoeConfig) -> MoeConfig {
    MoeConfig {
        experts: Some(if moe.groups.is_some() { 8 } else { 6 }),
        top_k: Some(3),
        groups: moe.groups.map(|_| 4),
        top_groups: moe.top_groups.map(|_| 2),
        d_ff: Some(16),
        first_dense_layers: moe.first_dense_layers.map(|_| 1),
        ..moe.clone()
    }
}

fn resolve(config: &ModelConfig) -> Architecture {
    config.resolve(VOCABULARY, BATCH.positions).unwrap()
}

/// The extremes of a comparison that passed.
struct Seen {
    /// The largest relative error of a tensor's gradient.
    worst: f64,
    /// The balancing bias changed a choice.
    biased: bool,
}

/// Both sides on one random micro-batch.
fn compare(a: &Architecture, dtype: DType, seed: u64) -> Seen {
    let mut random = Random::new(seed);
    let engine = Engine::new(a, BATCH, dtype, seed);
    engine.unsettle(&mut random);
    let rows = BATCH.rows();
    let tokens = random.indices(rows, VOCABULARY);
    let mut targets = random.indices(rows, VOCABULARY);
    (0..9).for_each(|_| targets[random.size(0..=rows - 1)] = IGNORE);
    let doc_start = random.doc_start(BATCH.windows, BATCH.positions);
    let inputs = Inputs { tokens: &tokens, targets: &targets, doc_start: &doc_start };

    let candle =
        if dtype == DType::F64 { candle_core::DType::F64 } else { candle_core::DType::F32 };
    let (schema, values) = (engine.model.schema(), engine.per_tensor(&engine.weights));
    let mut reference = Reference::new(a, schema, candle, &values).unwrap();
    let unbiased = reference.pass(BATCH.windows, &inputs).unwrap().loads;
    for bias in reference.router_bias.iter_mut().flatten() {
        // Exact in f32.
        *bias = f64::from(random.value(0.2) as f32);
    }
    engine.set_router_bias(&reference.router_bias);

    let loss = engine.pass(&inputs, false);
    let pass = reference.pass(BATCH.windows, &inputs).unwrap();
    assert_eq!(engine.loads(), pass.loads, "{a:?}");
    let error = (loss - pass.loss).abs() / pass.loss;
    assert!(error < 0.1 * tolerance(dtype), "loss {loss} against {}: {a:?}", pass.loss);
    let evaluated = engine.evaluate(&inputs);
    assert!((loss - evaluated).abs() < 1e-6 * loss, "loss {loss}, evaluated {evaluated}: {a:?}");

    let expected: Vec<Vec<f64>> = pass
        .gradients
        .iter()
        .zip(&values)
        .map(|(gradient, value)| match gradient {
            // No token chose this expert.
            None => vec![0.0; value.len()],
            Some(gradient) => host(gradient),
        })
        .collect();
    let mut worst: f64 = 0.0;
    // Where symmetry makes a gradient zero (key biases without rotary positions) both sides have
    // nothing but rounding, so errors are measured against the whole gradient at the least.
    let floor = 1e-3 * norm(&expected.concat());
    let gradients = engine.per_tensor(&engine.gradients);
    check_accumulation(&engine, &inputs, &gradients);
    for ((tensor, got), expected) in schema.tensors.iter().zip(&gradients).zip(&expected) {
        let error = relative_error(got, expected, floor);
        assert!(error < tolerance(dtype), "{}: error {error:e} in {a:?}", tensor.name);
        worst = worst.max(error);
    }
    Seen { worst, biased: pass.loads != unbiased }
}

/// A pass that adds doubles the gradients; one that overwrites leaves no trace of what was there.
fn check_accumulation(engine: &Engine, inputs: &Inputs, once: &[Vec<f64>]) {
    engine.pass(inputs, true);
    let twice = engine.per_tensor(&engine.gradients).concat();
    let doubled: Vec<f64> = once.concat().iter().map(|x| 2.0 * x).collect();
    assert!(relative_error(&twice, &doubled, 0.0) < tolerance(engine.gradients.dtype()));
    engine.pass(inputs, false);
    assert!(engine.per_tensor(&engine.gradients) == once, "an old gradient shows in the new one");
}

/// Variants that no preset has.
fn variants() -> impl Iterator<Item = (String, ModelConfig)> {
    let mixture = MoeConfig {
        scores: Some(Scores::Sigmoid),
        aux_loss: Some(0.3),
        z_loss: Some(0.2),
        ..experts(&MoeConfig::default())
    };
    let shared = MoeConfig { shared_experts: Some(2), route_scale: Some(2.5), ..mixture.clone() };
    let grouped =
        MoeConfig { experts: Some(8), groups: Some(4), top_groups: Some(2), ..shared.clone() };
    let whole = ModelConfig { latent: latent(Some(0)).latent, ..narrowed(Preset::DeepseekV3) };
    let plain = MoeConfig { normalize_top_k: Some(false), ..mixture.clone() };
    let learned = Some(Positions::Learned { max: 80 });
    let variants = [
        ("sigmoid, normalized, shared", ModelConfig { moe: Some(shared.clone()), ..small(2) }),
        ("sigmoid, normalized, shared, in groups", ModelConfig { moe: Some(grouped), ..small(2) }),
        ("DeepseekV3, whole queries", whole),
        ("sigmoid, not normalized", ModelConfig { moe: Some(plain), ..small(2) }),
        (
            "LayerNorm, learned positions, biases",
            ModelConfig {
                norm: Some(Norm::Layer),
                positions: learned,
                attention_bias: Some(true),
                mlp_bias: Some(true),
                activation: Some(Activation::Gelu),
                ..small(2)
            },
        ),
        (
            "mixture after a dense layer, LayerNorm, learned positions, biases",
            ModelConfig {
                norm: Some(Norm::Layer),
                positions: learned,
                attention_bias: Some(true),
                moe: Some(MoeConfig { first_dense_layers: Some(1), ..shared }),
                ..small(4)
            },
        ),
    ];
    variants.into_iter().map(|(name, config)| (name.to_owned(), config))
}

fn compare_all(dtype: DType) {
    let presets = Preset::ALL.map(|preset| (format!("{preset:?}"), narrowed(preset)));
    for (name, config) in presets.into_iter().chain(variants()) {
        let a = resolve(&config);
        let seen = compare(&a, dtype, 3);
        assert_eq!(seen.biased, a.moe.is_some(), "{name}: the balancing bias chose nothing");
        println!("{dtype} {name}: {:.1e}", seen.worst);
    }
}

#[test]
fn every_preset_agrees_in_f64() {
    compare_all(DType::F64);
}

#[test]
fn every_preset_agrees_in_f32() {
    compare_all(DType::F32);
}

fn mixtures() -> impl Strategy<Value = Option<MoeConfig>> {
    // Of two layers, one at least has experts.
    let sizes = (2_usize..7, 1_usize..5, 0_usize..3, 0_usize..2);
    let groups = (1_usize..3, 1_usize..3);
    let flags = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    let all = (sizes, groups, flags, 0.5_f64..3.0);
    let mixture = all.prop_map(|(sizes, (groups, top_groups), flags, route_scale)| {
        let (in_group, top_k, shared_experts, first_dense_layers) = sizes;
        let (experts, top_groups) = (groups * in_group, top_groups.min(groups));
        let (sigmoid, normalize, aux, z) = flags;
        MoeConfig {
            experts: Some(experts),
            top_k: Some(top_k.min(top_groups * in_group)),
            groups: Some(groups),
            top_groups: Some(top_groups),
            d_ff: Some(12),
            scores: Some(if sigmoid { Scores::Sigmoid } else { Scores::Softmax }),
            normalize_top_k: Some(normalize),
            route_scale: Some(route_scale),
            aux_loss: Some(if aux { 0.4 } else { 0.0 }),
            z_loss: Some(if z { 0.2 } else { 0.0 }),
            shared_experts: Some(shared_experts),
            first_dense_layers: Some(first_dense_layers),
            balance_rate: None,
        }
    });
    prop::option::of(mixture)
}

prop_compose! {
    /// Any combination of features that an architecture may have.
    fn architectures()(
        moe in mixtures(),
        names in prop::sample::select(vec![Names::Gpt2, Names::Llama, Names::Mixtral]),
        qk_norm in prop::sample::select(vec![QkNorm::None, QkNorm::Head, QkNorm::Projection]),
        kv_heads in prop::sample::select(vec![1_usize, 2, 4]),
        (layer, learned, tied) in any::<(bool, bool, bool)>(),
        (attention_bias, mlp_bias, gelu) in any::<(bool, bool, bool)>(),
        latent in latents(),
    ) -> Architecture {
        let gelu = gelu && moe.is_none();
        let plain = ModelConfig {
            names: Some(names),
            norm: Some(if layer { Norm::Layer } else { Norm::Rms }),
            positions: Some(match learned {
                true => Positions::Learned { max: 80 },
                false => Positions::rotary(500.0),
            }),
            qk_norm: Some(qk_norm),
            attention_bias: Some(attention_bias),
            mlp_bias: Some(mlp_bias && gelu),
            activation: Some(if gelu { Activation::Gelu } else { Activation::Swiglu }),
            tie_embeddings: Some(tied),
            moe,
            ..small(kv_heads)
        };
        match latent {
            None => resolve(&plain),
            // Without what it excludes.
            latent => resolve(&ModelConfig {
                names: Some(Names::DeepseekV3),
                kv_heads: None,
                head_dim: None,
                positions: Some(Positions::rotary(500.0)),
                qk_norm: None,
                attention_bias: None,
                latent,
                ..plain
            }),
        }
    }
}

fn latents() -> impl Strategy<Value = Option<LatentConfig>> {
    let sizes = (0_usize..30, 1_usize..30, 1_usize..20, 1_usize..8, 1_usize..20);
    let sizes = sizes.prop_map(|(q_rank, kv_rank, nope_dim, pairs, value_dim)| LatentConfig {
        q_rank: Some(q_rank),
        kv_rank: Some(kv_rank),
        nope_dim: Some(nope_dim),
        rope_dim: Some(2 * pairs),
        value_dim: Some(value_dim),
        norm_eps: None,
    });
    prop::option::weighted(0.3, sizes)
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(32)
    })]
    #[test]
    fn any_architecture_agrees_in_f64(a in architectures(), seed in any::<u64>()) {
        println!("f64 {:.1e} {a:?}", compare(&a, DType::F64, seed).worst);
    }
}
