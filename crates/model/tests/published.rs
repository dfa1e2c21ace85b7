//! Pins for checkpoints, digests and initial weights: every tensor of each family, where it lies,
//! what it begins with, and the memory of a pass. A change here breaks old runs.

mod narrow;

use std::fmt::Write;

use device::{DType, Device};
use layout::{FlatLayout, LogicalTensor};
use model::config::{Activation, LatentConfig, MoeConfig};
use model::{
    Architecture, MicroBatch, ModelConfig, Norm, Positions, Preset, QkNorm, Scores, initialize,
    memory_plan, parameters,
};
use narrow::{LATENT, narrowed, small};

const BATCH: MicroBatch = MicroBatch { windows: 2, positions: 20 };

fn experts(moe: &MoeConfig) -> MoeConfig {
    MoeConfig {
        experts: Some(if moe.groups.is_some() { 4 } else { 3 }),
        top_k: Some(2),
        groups: moe.groups.map(|_| 2),
        top_groups: moe.top_groups.map(|_| 1),
        d_ff: Some(16),
        first_dense_layers: moe.first_dense_layers.map(|_| 1),
        ..moe.clone()
    }
}

/// Configs with what no preset has, by name.
fn variants() -> Vec<(&'static str, ModelConfig)> {
    let mixture = MoeConfig {
        scores: Some(Scores::Sigmoid),
        shared_experts: Some(2),
        route_scale: Some(2.5),
        first_dense_layers: Some(1),
        ..experts(&MoeConfig::default())
    };
    let learned = Some(Positions::Learned { max: 80 });
    vec![
        ("a dense layer and one of experts", ModelConfig { moe: Some(mixture), ..small() }),
        (
            "LayerNorm, learned positions, biases",
            ModelConfig {
                norm: Some(Norm::Layer),
                positions: learned,
                attention_bias: Some(true),
                mlp_bias: Some(true),
                activation: Some(Activation::Gelu),
                ..small()
            },
        ),
        (
            "latent attention of whole queries",
            ModelConfig {
                head_dim: None,
                latent: Some(LatentConfig { q_rank: None, ..LATENT }),
                ..small()
            },
        ),
        (
            "names of GPT-2, a gate and norms of projections",
            ModelConfig {
                names: Some(model::config::Names::Gpt2),
                qk_norm: Some(QkNorm::Projection),
                ..small()
            },
        ),
    ]
}

/// A hash of f32 bits (Fowler, Noll and Vo's, of words).
fn hash(values: &[f32]) -> u64 {
    let step = |hash: u64, x: &f32| (hash ^ u64::from(x.to_bits())).wrapping_mul(0x100_0000_01b3);
    values.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

fn line(tensor: &LogicalTensor, offset: usize, weights: &[f32]) -> String {
    let LogicalTensor { name, shape, role, parts, .. } = tensor;
    let mut line = format!("{offset:>7} {name} {shape:?} {role:?}");
    for part in parts {
        write!(line, " {}={:?}", part.label, part.rows).unwrap();
    }
    line += if tensor.published_transposed { " transposed" } else { "" };
    line += if tensor.fused { " fused" } else { "" };
    writeln!(line, " {:016x}", hash(weights)).unwrap();
    line
}

/// All that a run of an architecture takes from its declaration.
fn described(a: &Architecture) -> String {
    let (schema, _) = parameters(a).unwrap();
    let flat = FlatLayout::new(&schema, 1 << 10);
    let mut text = String::new();
    let device = Device::cpu(1).unwrap();
    let stream = device.stream();
    let weights = device.zeros(&[flat.len], DType::F32).unwrap();
    initialize(&stream, a, &flat, 7, &weights).unwrap();
    let weights = stream.to_vec::<f32>(&weights).unwrap();
    for (index, tensor) in schema.tensors.iter().enumerate() {
        text += &line(tensor, flat.offsets[index], &weights[flat.range(index)]);
    }
    writeln!(text, "{:>7} elements in {} buckets", flat.len, flat.buckets.len()).unwrap();
    text + &memory(a)
}

/// Bytes of a pass.
fn memory(a: &Architecture) -> String {
    let of = |weights: DType| {
        let plan = memory_plan(a, BATCH, weights, 1).unwrap().into_iter();
        let parts: Vec<String> = plan.map(|(name, bytes)| format!("{name} {bytes}")).collect();
        format!("weights in {weights}: {}\n", parts.join(", "))
    };
    of(DType::F32) + &of(DType::Bf16)
}

#[test]
fn every_tensor_is_where_it_was() {
    let mut settings = insta::Settings::clone_current();
    settings.set_omit_expression(true);
    let presets = Preset::ALL.map(|preset| (format!("{preset:?}"), narrowed(preset, experts)));
    let variants = variants().into_iter().map(|(name, config)| (name.to_owned(), config));
    for (name, config) in presets.into_iter().chain(variants) {
        let a = config.resolve(96, BATCH.positions).unwrap();
        settings.bind(|| insta::assert_snapshot!(name.replace([',', ' '], "_"), described(&a)));
    }
}
