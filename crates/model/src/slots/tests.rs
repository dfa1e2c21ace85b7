use std::ops::Range;

use device::Device;

use super::*;
use crate::{Architecture, ModelConfig, Preset, parameters};

fn architecture(preset: Preset) -> Architecture {
    let config = ModelConfig { preset: Some(preset), layers: Some(3), ..ModelConfig::default() };
    config.resolve(96, 20).unwrap()
}

const BATCH: MicroBatch = MicroBatch { windows: 2, positions: 20 };

const F32: Types = Types { compute: DType::F32, weights: DType::F32 };
const WIDENED: Types = Types { compute: DType::F32, weights: DType::Bf16 };
const F64: Types = Types { compute: DType::F64, weights: DType::F64 };

fn plan_for(a: &Architecture, types: Types) -> Plan {
    Plan::new(a, &parameters(a).unwrap().0, BATCH, types)
}

/// The slots that are a layer's own.
fn places(s: &LayerSlots<Slot>) -> Vec<Slot> {
    let own =
        [s.x, s.stats1, s.h1, s.qkv, s.attention, s.lse, s.x_mid, s.stats2, s.h2, s.up, s.act];
    let norm = s.qk_norm.iter().flat_map(|s| [s.raw, s.q_rstd, s.k_rstd]);
    let experts = s.experts.iter().flat_map(|s| {
        let routing = [s.logits, s.scores, s.chosen, s.weights, s.slots, s.sources, s.offsets];
        routing.into_iter().chain([s.gate_up, s.act, s.y])
    });
    own.into_iter().chain(norm).chain(experts).collect()
}

fn range(slot: &Slot) -> Range<usize> {
    slot.offset_bytes..slot.offset_bytes + slot.shape.len() * slot.dtype.bytes()
}

/// But for those that share a place on purpose; and none lies outside.
#[test]
fn slots_lie_apart_in_the_arena() {
    for preset in Preset::ALL {
        for types in [WIDENED, F64] {
            let a = architecture(preset);
            let plan = plan_for(&a, types);
            let s = &plan.slots;
            let mut all: Vec<Slot> = s.layers.iter().flat_map(places).collect();
            all.extend([s.tokens, s.targets, s.doc_start, s.x_final, s.stats_final, s.h_final]);
            all.extend([s.losses, s.dx, s.dh, s.dqkv, s.dattention, s.logits, s.widened]);
            all.extend([s.widened_vectors, s.backward_workspace]);
            all.extend(s.layers.first().map(|layer| layer.dact));
            all.extend(
                s.experts
                    .iter()
                    .flat_map(|s| [s.grouped, s.dgrouped, s.dact, s.dweights, s.drouter]),
            );
            let mut ranges: Vec<_> =
                all.iter().map(range).filter(|range| !range.is_empty()).collect();
            ranges.sort_by_key(|range| range.start);
            assert!(ranges.windows(2).all(|pair| pair[0].end <= pair[1].start), "{preset:?}");
            assert!(ranges.last().is_some_and(|last| last.end <= plan.bytes), "{preset:?}");
        }
    }
}

/// The passes take their tensors from here, under the shapes that the plan gave them.
#[test]
fn views_have_the_shapes_of_the_plan() {
    let a = architecture(Preset::TinyMoe);
    let plan = plan_for(&a, F32);
    let arena = Device::cpu(1).unwrap().alloc(plan.bytes, &device::Placement::Private).unwrap();
    let views = plan.slots.views(&arena).unwrap();
    let layer = &views.layers[1];
    let width = (a.heads + 2 * a.kv_heads) * a.head_dim;
    assert_eq!(layer.qkv.dims(), [40, width]);
    assert_eq!(layer.lse.dims(), [2, a.heads, 20]);
    assert_eq!(layer.dact.dims(), layer.act.dims());
    assert_eq!(views.targets.dtype(), DType::U32);
    let moe = a.moe.as_ref().unwrap();
    let experts = layer.experts.as_ref().unwrap();
    assert_eq!(experts.offsets.dims(), [moe.experts + 1]);
    assert_eq!(experts.gate_up.dims(), [40 * moe.top_k, 2 * moe.d_ff]);
    let dense = plan_for(&architecture(Preset::Llama3_8b), F32);
    assert!(dense.slots.experts.is_none() && dense.slots.layers[0].experts.is_none());
}

/// Before there is memory, and by name.
#[test]
fn weights_that_are_widened_have_room() {
    for preset in Preset::ALL {
        let a = architecture(preset);
        let (_, mut params) = parameters(&a).unwrap();
        let plan = plan_for(&a, WIDENED);
        plan.check_widened(&params).unwrap();
        params.embedding.rows = 1 << 30;
        let refused = plan.check_widened(&params).unwrap_err();
        assert!(matches!(refused, ModelError::Slot { slot: "widened", .. }), "{refused}");
        assert!(refused.to_string().contains("1073741824"), "{refused}");
    }
    let a = architecture(Preset::Gpt2124m);
    let (_, mut params) = parameters(&a).unwrap();
    let plan = plan_for(&a, WIDENED);
    params.final_norm.gain.rows = 1 << 20;
    let refused = plan.check_widened(&params).unwrap_err();
    assert!(matches!(refused, ModelError::Slot { slot: "widened vectors", .. }), "{refused}");
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
        ("the largest weight as f32", 4096 * 128 * 4 + 2 * 256 * 4),
    ];
    let schema = parameters(&a).unwrap().0;
    assert_eq!(memory_plan(&a, &schema, batch, DType::Bf16), expected);
    assert_eq!(memory_plan(&a, &schema, batch, DType::F32), expected[..3]);
}
