//! Layouts of real meshes and of flat buckets: from any to any and back, the files are the same to
//! the bit, and where values say what layer or row they are of, each rank's files hold its own.

mod support;

use std::collections::BTreeSet;
use std::sync::Arc;

use checkpoint::{
    Attempt, Checkpoint, Dtype, Region, Reshape, ReshapeOptions, Store, WriteOptions,
};
use layout::region::interval;
use layout::{
    Demands, FlatLayout, HeadRows, LogicalTensor, Mesh, Part, Placements, Role, Schema, Written,
    write_plan,
};
use proptest::prelude::*;
use support::mem_disk::MemDisk;
use support::{Rng, State, contents, save, wanted};

const AT: Attempt = Attempt { step: 20, generation: 1 };
/// Rows of an attention head.
const HEAD: usize = 3;

/// Of each rank the boxes that it has, as (number of the tensor, box).
type Ranks = Vec<Vec<(usize, Region)>>;

fn store(disk: &MemDisk, root: &str) -> Store {
    Store::on(Arc::new(disk.clone()), root)
}

fn reshape(disk: &MemDisk, from: &Checkpoint, to: &str, ranks: &Ranks) -> Checkpoint {
    let to = store(disk, to);
    let options = ReshapeOptions { threads: 2, wave_bytes: 700 };
    Reshape::new(from, &to, ranks, options).run(&|_| ()).unwrap();
    to.newest().unwrap().checkpoint.unwrap()
}

/// The files below a root, by their names there.
fn files(disk: &MemDisk, root: &str) -> Vec<(String, Vec<u8>)> {
    let below = |(path, bytes): (String, Vec<u8>)| {
        path.strip_prefix(&format!("{root}/")).map(|path| (path.to_owned(), bytes))
    };
    let mut files: Vec<_> = disk.files().into_iter().filter_map(below).collect();
    // It names the layout's source.
    files.retain(|(path, _)| path != "reshape");
    files
}

/// The sizes of a model.
#[derive(Debug, Clone)]
struct Sizes {
    layers: usize,
    heads: usize,
    width: usize,
    experts: usize,
    /// Rows of the embedding, of which the last are padding.
    rows: usize,
    padding: usize,
    is_tied: bool,
}

fn sizes() -> impl Strategy<Value = Sizes> {
    let numbers = (1_usize..4, 1_usize..3, 1_usize..3, 1_usize..3, 5_usize..30, 0_usize..4);
    (numbers, any::<bool>()).prop_map(
        |((layers, heads, width, experts, rows, padding), is_tied)| {
            let (heads, width, experts) = (2 * heads, 6 * width, 2 * experts);
            Sizes { layers, heads, width, experts, rows: rows + padding, padding, is_tied }
        },
    )
}

/// A model of all kinds of tensors; the states of each are random, or in padding zero.
fn model(sizes: &Sizes, rng: &mut Rng) -> (Schema, Vec<State>) {
    let Sizes { layers, heads, width, experts, rows, padding, is_tied } = *sizes;
    let (columns, mut tensors) = (heads * HEAD, Vec::new());
    let mut add = |name: String, shape: &[usize], role: Role| {
        tensors.push(LogicalTensor::new(name, shape, role));
    };
    add("model.embed_tokens.weight".into(), &[rows, columns], Role::Embedding);
    for layer in 0..layers {
        let named = |what: &str| format!("model.layers.{layer}.{what}.weight");
        for what in ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"] {
            add(named(what), &[columns, columns], Role::Matrix);
        }
        add(named("self_attn.o_proj"), &[columns, columns], Role::Matrix);
        add(named("input_layernorm"), &[columns], Role::Vector);
        add(named("mlp.gate"), &[experts, columns], Role::Router);
        for index in 0..experts {
            let role = Role::Expert { index: index as u32, of: experts as u32 };
            add(named(&format!("mlp.experts.{index}.up_proj")), &[width, columns], role);
            add(named(&format!("mlp.experts.{index}.down_proj")), &[columns, width], role);
        }
        add(named("mlp.up_proj"), &[2 * width, columns], Role::Matrix);
    }
    add("model.norm.weight".into(), &[columns], Role::Vector);
    if !is_tied {
        add("lm_head.weight".into(), &[rows, columns], Role::Head);
    }
    for tensor in tensors.iter_mut().filter(|tensor| tensor.name.ends_with("mlp.up_proj.weight")) {
        if !matches!(tensor.role, Role::Expert { .. }) {
            tensor.parts = fused(width);
        }
    }
    let schema = Schema::new(tensors).unwrap();
    let mut states = Vec::new();
    for tensor in &schema.tensors {
        let slots: &[(&str, Dtype)] = match tensor.role {
            Role::Matrix => &[("param", Dtype::F32), ("momentum", Dtype::Bf16)],
            Role::Expert { .. } => &[("param", Dtype::F32), ("momentum", Dtype::F8E4M3)],
            Role::Router => &[("param", Dtype::F32), ("router_bias", Dtype::F32)],
            _ => &[("param", Dtype::F32), ("adam_m", Dtype::F32), ("updates", Dtype::U64)],
        };
        for (slot, dtype) in slots {
            let shape: &[usize] = match *slot {
                "router_bias" => &[experts],
                "updates" => &[],
                _ => &tensor.shape,
            };
            states.push(State::new(&tensor.name, slot, *dtype, shape, rng));
        }
    }
    let of_rows = |state: &&mut State| state.shape == [rows, columns];
    for state in states.iter_mut().filter(of_rows) {
        let end = state.bytes.len();
        state.bytes[end - padding * columns * state.dtype.size_bytes()..].fill(0);
    }
    // Of no elements, and of a name that is no tensor's.
    states.push(State::new("model.nothing", "param", Dtype::F16, &[0, 4], rng));
    (schema, states)
}

fn fused(width: usize) -> Vec<Part> {
    let part = |label: &str, rows| Part { label: label.to_owned(), rows };
    vec![part("gate", 0..width), part("up", width..2 * width)]
}

/// The boxes of a mesh, as `muster ckpt reshape` cuts them.
fn by_mesh(schema: &Schema, states: &[State], mesh: Mesh) -> Ranks {
    let placements = Placements::new(schema, HeadRows::of(HEAD), mesh).unwrap();
    let written = states.iter().map(|state| {
        let like = schema.find(&state.key.name);
        let like = like.filter(|&index| schema.tensors[index].shape == state.shape);
        Written { shape: state.shape.clone(), element_bytes: state.dtype.size_bytes(), like }
    });
    write_plan(&placements, &written.collect::<Vec<_>>()).unwrap()
}

/// The boxes of ranks that each have an equal piece of every one of so many flat buckets, wherever
/// tensors and rows begin.
fn by_buckets(states: &[State], buckets: usize, world: usize) -> Ranks {
    let flat = states.iter().enumerate().map(|(number, state)| {
        let elements = state.shape.iter().product();
        LogicalTensor::new(format!("t{number}"), &[elements], Role::Vector)
    });
    let flat = FlatLayout::new(&Schema::new(flat.collect()).unwrap(), usize::MAX);
    let pieces = buckets * world;
    let cut = |piece: usize| piece * flat.len / pieces;
    let mut ranks = vec![Vec::new(); world];
    for (number, state) in states.iter().enumerate() {
        let whole = flat.range(number);
        for piece in 0..pieces {
            let (start, end) = (cut(piece).max(whole.start), cut(piece + 1).min(whole.end));
            if start < end {
                let boxes = interval(&state.shape, start - whole.start, end - whole.start);
                ranks[piece % world].extend(boxes.into_iter().map(|region| (number, region)));
            }
        }
    }
    ranks
}

/// Any layout that the model allows.
#[derive(Debug, Clone, Copy)]
enum Layout {
    Mesh(Mesh),
    Buckets { buckets: usize, world: usize },
}

fn layouts() -> impl Strategy<Value = Layout> {
    let axes = (1_usize..4, 1_usize..4, prop::sample::select(vec![1_usize, 2]), 1_usize..4);
    let meshes = axes.prop_map(|(pp, dp, ep, tp)| Layout::Mesh(Mesh { pp, dp, ep, tp }));
    let buckets = prop::sample::select(vec![1_usize, 2, 7]);
    let flat =
        (buckets, 1_usize..6).prop_map(|(buckets, world)| Layout::Buckets { buckets, world });
    prop_oneof![meshes, flat]
}

impl Layout {
    /// `None` where the model does not allow it.
    fn ranks(self, schema: &Schema, states: &[State]) -> Option<Ranks> {
        match self {
            Layout::Buckets { buckets, world } => Some(by_buckets(states, buckets, world)),
            Layout::Mesh(mesh) => {
                let misfit = Demands::new(schema, HeadRows::of(HEAD)).problem(mesh);
                misfit.is_none().then(|| by_mesh(schema, states, mesh))
            }
        }
    }
}

/// A disk with the model's checkpoint under `/first`, all by one rank.
fn saved(model: &(Schema, Vec<State>)) -> (MemDisk, Checkpoint) {
    let disk = MemDisk::new();
    let first = store(&disk, "/first");
    first.claim_generation().unwrap();
    save(&first, AT, 1, model, &WriteOptions::default()).unwrap();
    let checkpoint = first.open(AT).unwrap();
    (disk, checkpoint)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn from_any_layout_to_any_and_back_the_files_are_the_same(
        seed in any::<u64>(),
        sizes in sizes(),
        (a, b) in (layouts(), layouts()),
    ) {
        let model = model(&sizes, &mut Rng(seed));
        let (schema, states) = &model;
        let (Some(in_a), Some(in_b)) = (a.ranks(schema, states), b.ranks(schema, states)) else {
            return Err(TestCaseError::reject("a layout that the model does not allow"));
        };
        let (disk, first) = saved(&model);
        let there = reshape(&disk, &first, "/a", &in_a);
        let between = reshape(&disk, &there, "/b", &in_b);
        let back = reshape(&disk, &between, "/c", &in_a);
        for checkpoint in [&there, &between, &back] {
            prop_assert_eq!(contents(checkpoint).unwrap(), wanted(states));
            prop_assert_eq!(checkpoint.schema(), schema.clone());
        }
        prop_assert_eq!(between.manifest().world as usize, in_b.len());
        let (before, after) = (files(&disk, "/a"), files(&disk, "/c"));
        prop_assert!(before.len() > 3);
        prop_assert!(before == after, "{:?}", before.iter().map(|(path, _)| path));
    }
}

/// The f32 values that each rank's own files hold, of one tensor, in order of their bytes.
fn values_by_rank(disk: &MemDisk, checkpoint: &Checkpoint, name: &str) -> Vec<Vec<f32>> {
    let files = disk.files();
    let manifest = checkpoint.manifest();
    let mut ranks = vec![Vec::new(); manifest.world as usize];
    let tensors = manifest.tensors.iter().filter(|tensor| tensor.name.contains(name));
    for chunk in tensors.flat_map(|tensor| &tensor.chunks) {
        let file = &manifest.files[chunk.file as usize];
        let path = checkpoint.path().join(&file.path);
        let (_, bytes) = files.iter().find(|(name, _)| Some(&**name) == path.to_str()).unwrap();
        let bytes = &bytes[chunk.range[0] as usize..chunk.range[1] as usize];
        let values = bytes.as_chunks().0.iter().map(|value| f32::from_le_bytes(*value));
        ranks[file.rank().unwrap() as usize].extend(values);
    }
    ranks
}

fn tagged(name: &str, shape: &[usize], tag: impl Fn(usize) -> usize) -> State {
    let mut state = State::new(name, "param", Dtype::F32, shape, &mut Rng(0));
    let columns = shape[1];
    let values = (0..shape[0] * columns).map(|i| tag(i / columns) as f32);
    state.bytes = values.flat_map(f32::to_le_bytes).collect();
    state
}

/// Megatron and others have given a stage the layers of another after such a change.
#[test]
fn layers_that_say_their_number_go_to_the_stage_that_has_them_and_back() {
    for layers in [2, 3, 5] {
        let name = |layer: usize| format!("model.layers.{layer}.mlp.up_proj.weight");
        let tensors = (0..layers).map(|n| LogicalTensor::new(name(n), &[6, 4], Role::Matrix));
        let schema = Schema::new(tensors.collect()).unwrap();
        let states: Vec<State> =
            (0..layers).map(|layer| tagged(&name(layer), &[6, 4], |_| layer)).collect();
        let model = (schema, states);
        let (disk, first) = saved(&model);
        let cut = |pp: usize| by_mesh(&model.0, &model.1, Mesh { pp, dp: 1, ep: 1, tp: 1 });
        let one = reshape(&disk, &first, "/one", &cut(1));
        let two = reshape(&disk, &one, "/two", &cut(2));
        let stages = values_by_rank(&disk, &two, "layers");
        let of = |stage: usize| -> BTreeSet<usize> {
            stages[stage].iter().map(|value| *value as usize).collect()
        };
        // Contiguous, the first stage not shorter.
        let half = layers.div_ceil(2);
        assert_eq!((of(0), of(1)), ((0..half).collect(), (half..layers).collect()), "{layers}");
        assert_eq!(stages.iter().map(Vec::len).sum::<usize>(), 24 * layers);
        let back = reshape(&disk, &two, "/back", &cut(1));
        assert_eq!(contents(&back).unwrap(), wanted(&model.1));
        assert!(files(&disk, "/one") == files(&disk, "/back"));
    }
}

/// A fused tensor that is cut in the middle gives one rank all gates and the other all ups.
#[test]
fn rows_of_fused_gate_and_up_go_to_every_width_in_pairs_and_back() {
    const WIDTH: usize = 12;
    let name = "model.layers.0.mlp.up_proj.weight";
    let mut tensor = LogicalTensor::new(name, &[2 * WIDTH, 3], Role::Matrix);
    tensor.parts = fused(WIDTH);
    let schema = Schema::new(vec![tensor]).unwrap();
    let model = (schema, vec![tagged(name, &[2 * WIDTH, 3], |row| row)]);
    let (disk, first) = saved(&model);
    let cut = |tp: usize| by_mesh(&model.0, &model.1, Mesh { pp: 1, dp: 1, ep: 1, tp });
    let mut before = reshape(&disk, &first, "/tp-1", &cut(1));
    for tp in [2, 3, 4, 6, 12, 6, 4, 3, 2, 1] {
        let root = format!("/tp-{tp}-of-{}", before.manifest().world);
        let now = reshape(&disk, &before, &root, &cut(tp));
        let part = WIDTH / tp;
        for (rank, values) in values_by_rank(&disk, &now, name).into_iter().enumerate() {
            let gate = rank * part..(rank + 1) * part;
            let up = WIDTH + gate.start..WIDTH + gate.end;
            let rows = gate.chain(up).flat_map(|row| [row as f32; 3]);
            assert_eq!(values, rows.collect::<Vec<_>>(), "rank {rank} of {tp}");
        }
        assert_eq!(contents(&now).unwrap(), wanted(&model.1));
        before = now;
    }
    assert!(files(&disk, "/tp-1") == files(&disk, "/tp-1-of-2"));
}
