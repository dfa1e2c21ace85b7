//! Parameters, sizes and passes of small models.

use device::DType;

use super::*;
use crate::{ModelConfig, Preset};

fn architecture(preset: Preset) -> Architecture {
    ModelConfig { preset: Some(preset), ..ModelConfig::default() }.resolve(257, 64).unwrap()
}

#[test]
fn published_sizes() {
    // Parameter counts of the published checkpoints.
    for (name, total) in [
        (Preset::Gpt2124m, 124_439_808),
        (Preset::Llama3_8b, 8_030_261_248),
        (Preset::Qwen3Moe30b, 30_532_122_624),
        (Preset::Olmoe7b, 6_919_161_856),
        (Preset::Mixtral8x7b, 46_702_792_704),
        // Without the layer of the second token, and without the 14 848 balancing biases.
        (Preset::DeepseekV3, 671_026_404_352),
    ] {
        let (schema, _) = parameters(&architecture(name)).unwrap();
        assert_eq!(schema.parameters(), total, "{name:?}");
    }
    for (name, active) in
        [(Preset::Qwen3Moe30b, 3_353_032_704), (Preset::DeepseekV3, 37_552_282_624)]
    {
        let a = architecture(name);
        let (schema, _) = parameters(&a).unwrap();
        assert_eq!(active_parameters(&a, &schema), active, "{name:?}");
    }
}

#[test]
fn fused_members_are_adjacent() {
    let (schema, _) = parameters(&architecture(Preset::TinyMoe)).unwrap();
    let flat = FlatLayout::new(&schema, 1 << 20);
    let start = |name: &str| flat.offsets[schema.find(name).unwrap()];
    let layer = "model.layers.1.mlp.experts";
    let gate = start(&format!("{layer}.0.gate_proj.weight"));
    assert_eq!(start(&format!("{layer}.0.up_proj.weight")), gate + 128 * 128);
    assert_eq!(start(&format!("{layer}.3.gate_proj.weight")), gate + 6 * 128 * 128);
}

#[test]
fn gpt2_names_its_fused_projection() {
    let (schema, _) = parameters(&architecture(Preset::Gpt2124m)).unwrap();
    let tensor = &schema.tensors[schema.find("h.11.attn.c_attn.weight").unwrap()];
    assert!(tensor.published_transposed);
    assert_eq!(tensor.shape, [2304, 768]);
    assert_eq!(tensor.row_ranges(), [0..768, 768..1536, 1536..2304]);
}

#[test]
fn a_layer_of_latent_attention() {
    let a = architecture(Preset::DeepseekV3);
    let (schema, states) = parameters(&a).unwrap();
    let of_layer = |tensor: &&LogicalTensor| tensor.name.starts_with("model.layers.60.self_attn.");
    let attention: Vec<(&str, &[usize])> = schema
        .tensors
        .iter()
        .filter(of_layer)
        .map(|tensor| (&tensor.name["model.layers.60.self_attn.".len()..], &tensor.shape[..]))
        .collect();
    let expected: [(&str, &[usize]); 7] = [
        ("q_a_proj.weight", &[1536, 7168]),
        ("q_a_layernorm.weight", &[1536]),
        ("q_b_proj.weight", &[24_576, 1536]),
        ("kv_a_proj_with_mqa.weight", &[576, 7168]),
        ("kv_a_layernorm.weight", &[512]),
        ("kv_b_proj.weight", &[32_768, 512]),
        ("o_proj.weight", &[7168, 16_384]),
    ];
    assert_eq!(attention, expected);
    let elements: usize = schema.tensors.iter().filter(of_layer).map(LogicalTensor::len).sum();
    assert_eq!(elements, 187_107_328);
    assert_eq!(states.router_biases.len() * 256, 14_848);
    assert_eq!(states.router_biases[0], "model.layers.3.mlp.gate.e_score_correction_bias");
    assert_eq!(a.head_dim, 192);
    let rows = layout::HeadRows { query: 192, key_value: 256, value: 128 };
    assert_eq!(a.head_rows(), rows);
}

/// Counted by hand from the shapes of the default preset.
#[test]
fn the_plan_has_the_bytes_of_its_shapes() {
    let config = ModelConfig { preset: Some(Preset::TinyMoe), ..ModelConfig::default() };
    let a = config.resolve(4096, 256).unwrap();
    let batch = MicroBatch { windows: 8, positions: 256 };
    let expected = [
        ("activations", 87_204_096),
        ("activation gradients and workspace", 13_467_648),
        ("logits chunk", 512 * 4096 * 4),
        // The embedding's table, and two gains of a norm.
        ("the largest weight as f32", 4096 * 128 * 4 + 2 * 128 * 4),
    ];
    assert_eq!(memory_plan(&a, batch, DType::Bf16, 1).unwrap(), expected);
    assert_eq!(memory_plan(&a, batch, DType::F32, 1).unwrap(), expected[..3]);
    // Of a second micro-batch the activations alone.
    let two = memory_plan(&a, batch, DType::F32, 2).unwrap();
    assert_eq!(two[0], ("activations", 2 * 87_204_096));
    assert_eq!(two[1..], expected[1..3]);
}
