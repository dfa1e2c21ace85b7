//! Tensors in meshes, through the crate's public face: what every coordinate holds together is
//! everything, and everything that is held has one owner among its replicas.

use layout::region::{CoverFault, prove_cover};
use layout::{
    Axes, CostTable, FlatLayout, GroupPlan, HeadRows, LayoutError, LogicalTensor, Mesh, Ownership,
    Part, Piece, Placements, Region, Role, Schema, Shard, Treatment,
};
use proptest::prelude::*;

const HEAD_DIM: usize = 4;

/// Of latent attention.
const LATENT: HeadRows = HeadRows { query: 5, key_value: 7, value: 3 };

/// A decoder in the names of either family, small enough to look at every element.
#[derive(Debug, Clone)]
struct Model {
    layers: usize,
    heads: usize,
    kv_heads: usize,
    vocabulary: usize,
    width: usize,
    experts: u32,
    gpt2: bool,
    /// Attention, in the other names.
    latent: bool,
    tied: bool,
    muon: bool,
}

impl Model {
    fn heads(&self) -> HeadRows {
        if self.latent && !self.gpt2 { LATENT } else { HeadRows::of(HEAD_DIM) }
    }

    fn schema(&self) -> Schema {
        let d = 12;
        let (q, kv) = (self.heads * HEAD_DIM, self.kv_heads * HEAD_DIM);
        let mut tensors = Vec::new();
        let mut add = |name: String, shape: &[usize], role, fused| {
            let tensor = LogicalTensor::new(name, shape, role);
            tensors.push(LogicalTensor { fused, ..tensor });
        };
        let table = if self.gpt2 { "wte" } else { "model.embed_tokens" };
        add(format!("{table}.weight"), &[self.vocabulary, d], Role::Embedding, false);
        for layer in 0..self.layers {
            let at = |what: &str| match self.gpt2 {
                true => format!("h.{layer}.{what}"),
                false => format!("model.layers.{layer}.{what}"),
            };
            add(at("ln_1.weight"), &[d], Role::Vector, false);
            if self.gpt2 {
                add(at("attn.c_attn.weight"), &[q + 2 * kv, d], Role::Matrix, false);
                add(at("attn.c_attn.bias"), &[q + 2 * kv], Role::Vector, false);
                add(at("attn.c_proj.weight"), &[d, q], Role::Matrix, false);
                add(at("attn.c_proj.bias"), &[d], Role::Vector, false);
            } else if self.latent {
                let HeadRows { query, key_value, value } = LATENT;
                let mut matrix = |name: &str, shape: [usize; 2]| {
                    add(at(&format!("self_attn.{name}.weight")), &shape, Role::Matrix, false);
                };
                matrix("q_a_proj", [9, d]);
                matrix("q_b_proj", [self.heads * query, 9]);
                matrix("kv_a_proj_with_mqa", [8, d]);
                matrix("kv_b_proj", [self.heads * key_value, 6]);
                matrix("o_proj", [d, self.heads * value]);
                add(at("self_attn.kv_a_layernorm.weight"), &[6], Role::Vector, false);
            } else {
                for (name, rows) in [("q", q), ("k", kv), ("v", kv)] {
                    let fused = name != "q";
                    let name = at(&format!("self_attn.{name}_proj.weight"));
                    add(name, &[rows, d], Role::Matrix, fused);
                }
                add(at("self_attn.q_norm.weight"), &[HEAD_DIM], Role::Vector, false);
                add(at("self_attn.o_proj.weight"), &[d, q], Role::Matrix, false);
            }
            if self.experts > 0 {
                let of = self.experts;
                add(at("mlp.gate.weight"), &[of as usize, d], Role::Router, false);
                for index in 0..of {
                    for (what, fused) in [("gate", index > 0), ("up", true)] {
                        let name = at(&format!("mlp.experts.{index}.{what}_proj.weight"));
                        add(name, &[self.width, d], Role::Expert { index, of }, fused);
                    }
                }
                for index in 0..of {
                    let name = at(&format!("mlp.experts.{index}.down_proj.weight"));
                    add(name, &[d, self.width], Role::Expert { index, of }, index > 0);
                }
            } else {
                add(at("mlp.up_proj.weight"), &[self.width, d], Role::Matrix, false);
                add(at("mlp.down_proj.weight"), &[d, self.width], Role::Matrix, false);
            }
        }
        add("model.norm.weight".into(), &[d], Role::Vector, false);
        if !self.tied {
            add("lm_head.weight".into(), &[self.vocabulary, d], Role::Head, false);
        }
        for tensor in tensors.iter_mut().filter(|t| t.name.ends_with("c_attn.weight")) {
            let part = |label: &str, rows| Part { label: label.into(), rows };
            let parts = [part("q", 0..q), part("k", q..q + kv), part("v", q + kv..q + 2 * kv)];
            tensor.parts = parts.into();
        }
        Schema::new(tensors).unwrap()
    }

    fn treatments(&self, schema: &Schema) -> Vec<Treatment> {
        let of = |tensor: &LogicalTensor| {
            let matrix = matches!(tensor.role, Role::Matrix | Role::Expert { .. });
            match matrix && self.muon {
                true => {
                    let flops = |rows: std::ops::Range<usize>| (rows.len() * 1000) as f64;
                    let flops = tensor.row_ranges().into_iter().map(flops).collect();
                    Treatment::WholeMatrix { flops }
                }
                false => Treatment::Elementwise,
            }
        };
        schema.tensors.iter().map(of).collect()
    }
}

fn model() -> impl Strategy<Value = Model> {
    let sizes = (1_usize..5, 1_usize..4, 1_usize..3, 5_usize..800, 1_usize..4);
    let kinds = (0_u32..3, any::<bool>(), any::<bool>(), any::<bool>());
    (sizes, kinds, any::<bool>()).prop_map(|(sizes, (experts, gpt2, tied, muon), latent)| {
        let (layers, kv_heads, group, vocabulary, width) = sizes;
        Model {
            layers,
            heads: 2 * kv_heads * group,
            kv_heads: 2 * kv_heads,
            vocabulary,
            width: 2 * width,
            experts: 2 * experts,
            gpt2,
            latent,
            tied,
            muon,
        }
    })
}

/// A model, and a mesh that it allows.
fn placed() -> impl Strategy<Value = (Model, Schema, Placements)> {
    (model(), 1_usize..4, 1_usize..4, 1_usize..3, 1_usize..3).prop_filter_map(
        "the model does not allow the mesh",
        |(model, pp, dp, ep, tp)| {
            let schema = model.schema();
            let placements =
                Placements::new(&schema, model.heads(), Mesh { pp, dp, ep, tp }).ok()?;
            Some((model, schema, placements))
        },
    )
}

/// How often each element of a tensor is in one of `boxes`.
fn counts(shape: &[usize], boxes: &[Region]) -> Vec<usize> {
    let cols: usize = shape[1..].iter().product();
    let mut counts = vec![0; shape[0] * cols];
    for region in boxes {
        assert!(region.fits(shape), "{region} sticks out of {shape:?}");
        let (first, width) = match shape.len() {
            1 => (0, 1),
            _ => (region.offset[1], region.shape[1]),
        };
        for row in region.offset[0]..region.offset[0] + region.shape[0] {
            counts[row * cols + first..][..width].iter_mut().for_each(|count| *count += 1);
        }
    }
    counts
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn every_element_is_held_as_often_as_there_are_copies((_, schema, placements) in placed()) {
        let mesh = placements.mesh;
        for (index, tensor) in schema.tensors.iter().enumerate() {
            let (mut all, mut first) = (Vec::new(), Vec::new());
            for (rank, at) in mesh.coordinates().enumerate() {
                let regions = placements.regions(index, at).unwrap();
                // Replicas, and they alone among those along dp and ep, hold the same.
                let replicas = mesh.replicas(rank, tensor.role).unwrap();
                for peer in mesh.members(rank, Axes::SAMPLES).unwrap() {
                    let theirs =
                        placements.regions(index, mesh.coordinate(peer).unwrap()).unwrap();
                    let replica = replicas.contains(&peer);
                    prop_assert!(theirs == regions || !replica);
                    prop_assert!(replica || theirs.is_empty() || regions.is_empty());
                }
                let one_of_replicas = replicas[0] == rank;
                if one_of_replicas && placements.is_first_copy(index, at) {
                    first.extend(regions.clone());
                }
                let held: usize = regions.iter().map(|r| r.elements().unwrap()).sum();
                prop_assert_eq!(placements.elements(index, at).unwrap(), held);
                all.extend(regions);
            }
            let copies = placements.copies(index);
            let held = counts(&tensor.shape, &all);
            prop_assert!(held.iter().all(|&n| n == copies), "{}: {copies}", tensor.name);
            prop_assert_eq!(prove_cover(&tensor.shape, &first), Ok::<(), CoverFault>(()));
        }
    }

    #[test]
    fn a_shard_is_the_boxes_of_its_coordinate((_, schema, placements) in placed()) {
        for at in placements.mesh.coordinates() {
            let shard = Shard::new(&schema, &placements, at, 256).unwrap();
            for (position, &index) in shard.tensors.iter().enumerate() {
                let (here, whole) = (&shard.schema.tensors[position], &schema.tensors[index]);
                let regions = placements.regions(index, at).unwrap();
                let held: usize = regions.iter().map(|r| r.elements().unwrap()).sum();
                prop_assert_eq!((&here.name, here.len()), (&whole.name, held));
                prop_assert_eq!(here.parts.len(), whole.parts.len());
                // A run that was laid out as one matrix still is.
                if whole.fused && shard.tensors.contains(&(index - 1)) {
                    prop_assert!(here.fused);
                }
            }
        }
    }

    #[test]
    fn what_a_group_holds_has_one_owner_each((model, schema, placements) in placed()) {
        let mesh = placements.mesh;
        let treatments = model.treatments(&schema);
        let cost = &CostTable::CPU;
        let flat = FlatLayout::new(&schema, 256);
        let alone = Ownership::new(&schema, &flat, &treatments, 1, cost).unwrap();
        let plans = GroupPlan::all(&schema, &placements, &treatments, 256, cost).unwrap();
        prop_assert_eq!(plans.len(), mesh.groups(Axes::SAMPLES).len());
        for plan in &plans {
            let ownership = &plan.ownership;
            prop_assert_eq!(ownership.statistics, alone.statistics);
            prop_assert_eq!(&ownership.tensor_statistics, &alone.tensor_statistics);
            let mut owned = vec![0; plan.shard.flat.len];
            for piece in &ownership.pieces {
                owned[piece.flat.clone()].iter_mut().for_each(|count| *count += 1);
                check_piece(&schema, &placements, &alone, plan, piece)?;
            }
            for position in 0..plan.shard.tensors.len() {
                let range = plan.shard.flat.range(position);
                prop_assert!(owned[range].iter().all(|&count| count == 1));
            }
            let load: f64 = ownership.load_s.iter().sum();
            let cost: f64 = ownership.pieces.iter().map(|piece| piece.cost_s).sum();
            prop_assert!((load - cost).abs() <= 1e-9 * cost);
        }
    }

    #[test]
    fn data_parallel_plans_are_those_without_a_mesh(model in model(), world in 1_usize..6) {
        let schema = model.schema();
        let treatments = model.treatments(&schema);
        let mesh = Mesh::data_parallel(world);
        let placements = Placements::new(&schema, model.heads(), mesh).unwrap();
        let cost = &CostTable::CPU;
        let plans = GroupPlan::all(&schema, &placements, &treatments, 256, cost).unwrap();
        let flat = FlatLayout::new(&schema, 256);
        let plain = Ownership::new(&schema, &flat, &treatments, world, cost).unwrap();
        prop_assert_eq!(plans.len(), 1);
        prop_assert_eq!(&plans[0].ownership, &plain);
        prop_assert_eq!(plans[0].ownership.digest(), plain.digest());
        prop_assert_eq!(&plans[0].shard.schema, &schema);
        prop_assert_eq!(&plans[0].shard.flat, &flat);
    }
}

/// The owner holds the piece, all of it lies in what the group holds, and its statistics are those
/// that a plan without a mesh gives its rows.
fn check_piece(
    schema: &Schema,
    placements: &Placements,
    alone: &Ownership,
    plan: &GroupPlan,
    piece: &Piece,
) -> Result<(), TestCaseError> {
    let owner = placements.mesh.coordinate(plan.members[piece.owner]).unwrap();
    let regions = placements.regions(piece.tensor, owner).unwrap();
    let inside = |region: &&Region| {
        let end = region.offset[0] + region.shape[0];
        region.offset[0] <= piece.rows.start && piece.rows.end <= end
    };
    let region = regions.iter().find(inside);
    prop_assert!(region.is_some(), "{:?} in {regions:?}", piece.rows);
    let cols: usize = region.map_or(0, |region| region.shape[1..].iter().product());
    prop_assert_eq!(piece.flat.len(), piece.rows.len() * cols);
    let meets = |other: &&Piece| {
        other.tensor == piece.tensor
            && other.rows.start < piece.rows.end
            && piece.rows.start < other.rows.end
    };
    let whole = alone.pieces.iter().filter(meets);
    for other in whole {
        prop_assert!(
            other.statistics.start < piece.statistics.end
                && piece.statistics.start < other.statistics.end
        );
    }
    let statistics = &alone.tensor_statistics[piece.tensor];
    prop_assert!(
        statistics.start <= piece.statistics.start && piece.statistics.end <= statistics.end
    );
    let rows = layout::ownership::block_rows(schema.tensors[piece.tensor].row_len());
    if let layout::PieceKind::Matrix { .. } = piece.kind {
        let matrices = schema.tensors[piece.tensor].row_ranges();
        let number = matrices.iter().position(|rows| rows.contains(&piece.rows.start)).unwrap();
        prop_assert_eq!(
            &piece.statistics,
            &(statistics.start + number..statistics.start + number + 1)
        );
        prop_assert!(piece.rows.end <= matrices[number].end);
    } else {
        let first = statistics.start + piece.rows.start / rows;
        let last = statistics.start + (piece.rows.end - 1) / rows;
        prop_assert_eq!(&piece.statistics, &(first..last + 1));
        // Owners divide a part where blocks end, so that no statistic is divided among them.
        let end = region.map_or(0, |region| region.offset[0] + region.shape[0]);
        prop_assert!(piece.rows.end == end || piece.rows.end.is_multiple_of(rows));
    }
    Ok(())
}

#[test]
fn a_fused_projection_is_cut_by_heads_within_each_part() {
    let model = Model {
        layers: 1,
        heads: 4,
        kv_heads: 2,
        vocabulary: 7,
        width: 4,
        experts: 0,
        gpt2: true,
        latent: false,
        tied: true,
        muon: true,
    };
    let schema = model.schema();
    let mesh = Mesh { pp: 1, dp: 1, ep: 1, tp: 2 };
    let placements = Placements::new(&schema, model.heads(), mesh).unwrap();
    let regions = |name: &str, rank: usize| {
        let index = schema.find(name).unwrap();
        let regions = placements.regions(index, mesh.coordinate(rank).unwrap()).unwrap();
        regions.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let fused = regions("h.0.attn.c_attn.weight", 1);
    assert_eq!(fused, ["[8, 0]+[8, 12]", "[20, 0]+[4, 12]", "[28, 0]+[4, 12]"]);
    assert_eq!(regions("h.0.attn.c_attn.bias", 0), ["[0]+[8]", "[16]+[4]", "[24]+[4]"]);
    assert_eq!(regions("h.0.attn.c_proj.weight", 1), ["[0, 8]+[12, 8]"]);
    // Seven rows of the vocabulary: uneven, larger part first.
    assert_eq!(regions("wte.weight", 0), ["[0, 0]+[4, 12]"]);
    assert_eq!(regions("wte.weight", 1), ["[4, 0]+[3, 12]"]);
    let index = schema.find("h.0.attn.c_attn.weight").unwrap();
    assert_eq!(placements.region(index, mesh.coordinate(0).unwrap()).unwrap(), None);
}

#[test]
fn latent_attention_is_cut_by_heads_of_several_widths() {
    let model = Model {
        layers: 1,
        heads: 4,
        kv_heads: 4,
        vocabulary: 8,
        width: 4,
        experts: 0,
        gpt2: false,
        latent: true,
        tied: true,
        muon: true,
    };
    let schema = model.schema();
    let mesh = Mesh { pp: 1, dp: 1, ep: 1, tp: 2 };
    let placements = Placements::new(&schema, model.heads(), mesh).unwrap();
    let region = |what: &str, rank: usize| {
        let index = schema.find(&format!("model.layers.0.self_attn.{what}.weight")).unwrap();
        let region = placements.region(index, mesh.coordinate(rank).unwrap()).unwrap();
        region.expect("one box").to_string()
    };
    for (what, second) in [
        ("q_a_proj", "[0, 0]+[9, 12]"),
        ("q_b_proj", "[10, 0]+[10, 9]"),
        ("kv_a_proj_with_mqa", "[0, 0]+[8, 12]"),
        ("kv_a_layernorm", "[0]+[6]"),
        ("kv_b_proj", "[14, 0]+[14, 6]"),
        ("o_proj", "[0, 6]+[12, 6]"),
    ] {
        assert_eq!(region(what, 1), second, "{what}");
    }
}

#[test]
fn stages_hold_contiguous_layers_and_a_tied_table_twice() {
    let model = Model {
        layers: 3,
        heads: 2,
        kv_heads: 2,
        vocabulary: 8,
        width: 4,
        experts: 4,
        gpt2: false,
        latent: false,
        tied: true,
        muon: true,
    };
    let schema = model.schema();
    let mesh = Mesh { pp: 2, dp: 1, ep: 2, tp: 1 };
    let placements = Placements::new(&schema, model.heads(), mesh).unwrap();
    let holders = |name: &str| {
        let index = schema.find(name).unwrap();
        let holds = |rank: &usize| {
            placements.region(index, mesh.coordinate(*rank).unwrap()).unwrap().is_some()
        };
        (0..mesh.ranks()).filter(holds).collect::<Vec<_>>()
    };
    assert_eq!(holders("model.embed_tokens.weight"), [0, 1, 2, 3]);
    assert_eq!(holders("model.layers.1.self_attn.o_proj.weight"), [0, 1]);
    assert_eq!(holders("model.layers.2.self_attn.o_proj.weight"), [2, 3]);
    assert_eq!(holders("model.layers.1.mlp.experts.1.up_proj.weight"), [0]);
    assert_eq!(holders("model.layers.2.mlp.experts.2.up_proj.weight"), [3]);
    assert_eq!(holders("model.norm.weight"), [2, 3]);
    assert_eq!(placements.copies(0), 4);
}

#[test]
fn a_mesh_that_the_model_does_not_allow_is_refused() {
    let schema = Schema::new(vec![LogicalTensor::new("w.weight", &[2, 2], Role::Matrix)]).unwrap();
    let error =
        Placements::new(&schema, HeadRows::of(1), Mesh { pp: 1, dp: 1, ep: 1, tp: 2 }).unwrap_err();
    assert!(matches!(error, LayoutError::Mesh { .. }), "{error}");
}
