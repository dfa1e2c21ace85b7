//! Complaints of other trainers' checkpoints, each as a test of its own; the number of the report
//! stands at the test. Flipped bits are told in `flips`, files of others in `foreign_files`,
//! layouts in `layouts`, memory in `sizes`.

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use checkpoint::{
    Attempt, Dtype, Error, Region, Reshape, ReshapeOptions, Store, TensorKey, WriteOptions,
};
use layout::{LogicalTensor, Role, Schema};
use safetensors::SafeTensors;
use support::mem_disk::MemDisk;
use support::{Rng, State, contents, save, save_rank, small_model, wanted};

const FIRST: Attempt = Attempt { step: 7, generation: 1 };

fn store(disk: &MemDisk) -> Store {
    let store = Store::on(Arc::new(disk.clone()), "/runs");
    store.claim_generation().unwrap();
    store
}

/// A value for each element, as f32.
fn filled(name: &str, slot: &str, shape: &[usize], value: impl Fn(usize) -> f32) -> State {
    let mut state = State::new(name, slot, Dtype::F32, shape, &mut Rng(0));
    state.bytes = (0..shape.iter().product()).flat_map(|i| value(i).to_le_bytes()).collect();
    state
}

/// torch.distributed.checkpoint 2.15 reads rows of two steps, where a step was saved again into
/// its directory and a rank was killed before it wrote (vllm-project/speculators 739, metaseq 53).
#[test]
fn a_step_that_is_saved_again_and_torn_is_never_mixed_with_itself() {
    let disk = MemDisk::new();
    let (first, old, new) = (store(&disk), small_model(1), small_model(2));
    save(&first, FIRST, 2, &old, &WriteOptions::default()).unwrap();
    // By the same job: refused before a byte is written.
    let before = disk.files();
    let again = save_rank(&first, FIRST, (0, 2), &new.1, &WriteOptions::default());
    assert!(matches!(again, Err(Error::AlreadyCommitted { .. })), "{again:?}");
    assert_eq!(disk.files(), before);
    // By the next one, of which rank 1 is killed.
    let next = store(&disk);
    let torn = Attempt { generation: 2, ..FIRST };
    save_rank(&next, torn, (0, 2), &new.1, &WriteOptions::default()).unwrap();
    let newest = next.newest().unwrap();
    assert_eq!(contents(&newest.checkpoint.unwrap()).unwrap(), wanted(&old.1));
    let told = newest.skipped[0].reason.to_string();
    assert!(told.starts_with("/runs/step-00000007.g0002 is not committed"), "{told}");
}

/// HuggingFaceStorageReader infers the whole from what is there: without its first file a load
/// succeeds, and rows keep what was in memory.
#[test]
fn neither_the_first_nor_the_last_shard_may_be_missing() {
    let disk = MemDisk::new();
    let options = WriteOptions { max_shard_bytes: 100, digest_data: false };
    save(&store(&disk), FIRST, 2, &small_model(1), &options).unwrap();
    let dir = format!("/runs/{}", FIRST.dir_name());
    let shards = disk.files().into_iter().map(|(path, _)| path);
    let shards: Vec<String> =
        shards.filter(|path| path.starts_with(&dir) && path.ends_with(".safetensors")).collect();
    assert!(shards.len() > 1);
    for shard in [&shards[0], &shards[shards.len() - 1]] {
        let disk = disk.fork();
        disk.remove(shard);
        let error = Store::on(Arc::new(disk), "/runs").open(FIRST).unwrap_err();
        assert_eq!(error.to_string(), format!("{shard} is missing"));
    }
}

/// torch.distributed.checkpoint casts f32 to int64 without a word.
#[test]
fn another_type_is_neither_read_nor_saved() {
    let disk = MemDisk::new();
    let (store, (schema, mut states)) = (store(&disk), small_model(1));
    let expected: Vec<_> = states.iter().map(State::expected).collect();
    save(&store, FIRST, 2, &(schema.clone(), states.clone()), &WriteOptions::default()).unwrap();
    let checkpoint = store.open(FIRST).unwrap();
    let mut out = [7; 8 * 24];
    let whole = Region::whole(&[6, 4]);
    let error = checkpoint.read_box(&states[0].key, Dtype::I64, &whole, &mut out).unwrap_err();
    let told = "tensor layers.0.weight:param is stored as F32, not as I64; nothing is converted \
                silently";
    assert_eq!((error.to_string(), out), (told.to_owned(), [7; 8 * 24]));
    // A rank that saves another type than is expected.
    let second = Attempt { step: 8, generation: 1 };
    states[0].dtype = Dtype::U32;
    let reports = [0, 1].map(|rank| {
        save_rank(&store, second, (rank, 2), &states, &WriteOptions::default()).unwrap()
    });
    let run_state = support::run_state(8);
    let error = store.commit(second, &schema, &expected, &reports, &run_state).unwrap_err();
    let told = "tensor layers.0.weight:param: rank 0 saved U32, expected is F32";
    assert_eq!(error.to_string(), told);
}

/// The owner of each element of `shape` among `world` ranks: rows, columns, or experts one by one.
fn by_rows(shape: &[usize], world: usize) -> Vec<(u32, Region)> {
    let share = |rank: usize| rank * shape[0] / world;
    let boxes = (0..world).map(|rank| {
        let (start, end) = (share(rank), share(rank + 1));
        let mut region = Region::whole(shape);
        (region.offset[0], region.shape[0]) = (start, end - start);
        (rank as u32, region)
    });
    boxes.filter(|(_, region)| region.shape[0] > 0).collect()
}

/// Experts' momentum was that of an older step after another width of expert parallelism
/// (DeepSpeed 8147), and moments began anew (6691, Fast-LLM 436).
#[test]
fn experts_keep_their_momentum_of_this_step_at_every_width() {
    const EXPERTS: usize = 4;
    let name = |expert: usize| format!("layers.0.experts.{expert}.up");
    let tensors = (0..EXPERTS).map(|index| {
        let role = Role::Expert { index: index as u32, of: EXPERTS as u32 };
        LogicalTensor::new(name(index), &[3, 2], role)
    });
    let schema = Schema::new(tensors.collect()).unwrap();
    // Step and expert, in every element.
    let states = |step: u64, world: usize| -> Vec<State> {
        let of = |expert: usize, slot: &str| {
            let value =
                (10 * step) as f32 + expert as f32 + if slot == "param" { 0.5 } else { 0.0 };
            let mut state = filled(&name(expert), slot, &[3, 2], |_| value);
            state.boxes[0].0 = (expert * world / EXPERTS) as u32;
            state
        };
        (0..EXPERTS).flat_map(|expert| ["param", "momentum"].map(|slot| of(expert, slot))).collect()
    };
    let disk = MemDisk::new();
    let root = |step: u64| Store::on(Arc::new(disk.clone()), format!("/width-{step}"));
    for (step, width) in [(1, 1), (2, 2), (3, 4), (4, 1)] {
        let run = root(0);
        run.claim_generation().unwrap();
        let attempt = Attempt { step, generation: step as u32 };
        let now = states(step, width);
        let model = (schema.clone(), now.clone());
        save(&run, attempt, width as u32, &model, &WriteOptions::default()).unwrap();
        let newest = run.newest().unwrap().checkpoint.unwrap();
        assert_eq!(contents(&newest).unwrap(), wanted(&now), "step {step}");
        // Cut for another width, as a file of its own.
        let other = states(step, EXPERTS + 1 - width);
        let mut ranks = vec![Vec::new(); EXPERTS + 1 - width];
        for (number, state) in other.iter().enumerate() {
            ranks[state.boxes[0].0 as usize].push((number, Region::whole(&[3, 2])));
        }
        let to = root(step);
        let options = ReshapeOptions { threads: 1, wave_bytes: 1 << 20 };
        Reshape::new(&newest, &to, &ranks, options).run(&|_| ()).unwrap();
        let cut = to.newest().unwrap().checkpoint.unwrap();
        assert_eq!(contents(&cut).unwrap(), wanted(&now), "step {step}");
    }
}

/// Muon's momentum in files by owner, overwritten by each save (Megatron-Bridge 2307), refused at
/// another width of tensor parallelism (torchtitan 3353), in another type (DeepSpeed 8433).
#[test]
fn muons_momentum_is_a_matrix_like_its_parameter_at_every_width() {
    let shape = [7, 5];
    let (name, disk) = ("layers.0.q_proj.weight", MemDisk::new());
    let schema = Schema::new(vec![LogicalTensor::new(name, &shape, Role::Matrix)]).unwrap();
    let store = store(&disk);
    let mut listed = Vec::new();
    for (step, world) in [(1, 1), (2, 2), (3, 3), (4, 7)] {
        // The parameter is all rank 0's; the momentum is cut among all, as its owners have it.
        let param = filled(name, "param", &shape, |i| i as f32);
        let mut momentum = filled(name, "momentum", &shape, |i| -(i as f32));
        momentum.boxes = by_rows(&shape, world);
        let model = (schema.clone(), vec![param, momentum]);
        let attempt = Attempt { step, generation: 1 };
        save(&store, attempt, world as u32, &model, &WriteOptions::default()).unwrap();
        let checkpoint = store.open(attempt).unwrap();
        // Any column of it, for whoever holds columns.
        let key = TensorKey::new(name, "momentum");
        for column in 0..5 {
            let mut out = [0; 28];
            let region = Region::new(&[0, column], &[7, 1]);
            checkpoint.read_box(&key, Dtype::F32, &region, &mut out).unwrap();
            let values = out.as_chunks().0.iter().map(|value| f32::from_le_bytes(*value));
            let of_column = (0..7).map(|row| -((row * 5 + column) as f32));
            assert!(values.eq(of_column), "column {column} of {world} ranks");
        }
        let tensors = checkpoint.tensors().iter();
        let row = |t: &checkpoint::StateTensor| {
            (t.name.clone(), t.slot.clone(), t.dtype, t.shape.clone())
        };
        listed.push(tensors.map(row).collect::<Vec<_>>());
    }
    // One entry for each state, alike at all widths: nothing is named by rank.
    assert!(listed.iter().all(|rows| rows.len() == 2 && *rows == listed[0]), "{listed:?}");
}

/// Data loaders' state by rank was dropped (Megatron-Bridge 5637) or refused (torchtitan 816) at
/// another width of data parallelism.
#[test]
fn the_place_in_the_data_is_one_number_at_every_width() {
    let disk = MemDisk::new();
    let (store, model) = (store(&disk), small_model(1));
    let mut seen = BTreeMap::new();
    for world in [2, 3, 5] {
        let attempt = Attempt { step: u64::from(world), generation: 1 };
        let (schema, states) = model.clone();
        let reports: Vec<_> = (0..world)
            .map(|rank| save_rank(&store, attempt, (rank, world), &states, &Default::default()))
            .collect::<Result<_, _>>()
            .unwrap();
        let expected: Vec<_> = states.iter().map(State::expected).collect();
        let run_state = checkpoint::RunState { samples: 4711, ..support::run_state(attempt.step) };
        store.commit(attempt, &schema, &expected, &reports, &run_state).unwrap();
        let mut kept = store.open(attempt).unwrap().run_state().clone();
        assert_eq!(kept, run_state);
        (kept.step, kept.tokens, kept.rng_counter) = (0, 0, 0);
        seen.insert(world, kept);
    }
    assert!(seen.values().all(|kept| *kept == seen[&2]), "{seen:?}");
}

/// Exports failed on integer tensors (PyTorch 192485).
#[test]
fn integers_of_all_widths_are_kept_and_other_readers_read_them() {
    let integers = [
        (Dtype::U8, safetensors::Dtype::U8),
        (Dtype::I8, safetensors::Dtype::I8),
        (Dtype::U16, safetensors::Dtype::U16),
        (Dtype::I16, safetensors::Dtype::I16),
        (Dtype::U32, safetensors::Dtype::U32),
        (Dtype::I32, safetensors::Dtype::I32),
        (Dtype::U64, safetensors::Dtype::U64),
        (Dtype::I64, safetensors::Dtype::I64),
        (Dtype::Bool, safetensors::Dtype::BOOL),
    ];
    let mut rng = Rng(4);
    let states = integers.iter().map(|(dtype, _)| {
        let mut state = State::new(&dtype.to_string(), "param", *dtype, &[3, 5], &mut rng);
        if *dtype == Dtype::Bool {
            state.bytes.iter_mut().for_each(|byte| *byte &= 1);
        }
        state
    });
    let model = (Schema::default(), states.collect::<Vec<_>>());
    let disk = MemDisk::new();
    let store = store(&disk);
    save(&store, FIRST, 1, &model, &WriteOptions::default()).unwrap();
    assert_eq!(contents(&store.open(FIRST).unwrap()).unwrap(), wanted(&model.1));
    let shard = format!("/runs/{}/rank-00000/shard-000.safetensors", FIRST.dir_name());
    let (_, bytes) = disk.files().into_iter().find(|(path, _)| *path == shard).unwrap();
    let read = SafeTensors::deserialize(&bytes).unwrap();
    for (state, (dtype, theirs)) in model.1.iter().zip(integers) {
        let view = read.tensor(&format!("{dtype}:param[0,0]")).unwrap();
        assert_eq!((view.dtype(), view.shape(), view.data()), (theirs, &[3, 5][..], &*state.bytes));
    }
}

/// Keys that a checkpoint lacked were left as they were (PyTorch 126881).
#[test]
fn a_key_that_is_missing_is_an_error_when_it_is_saved_and_when_it_is_read() {
    let disk = MemDisk::new();
    let (store, (schema, mut states)) = (store(&disk), small_model(1));
    let expected: Vec<_> = states.iter().map(State::expected).collect();
    let lost = states.remove(1);
    let options = WriteOptions::default();
    let reports =
        [0, 1].map(|rank| save_rank(&store, FIRST, (rank, 2), &states, &options).unwrap());
    let run_state = support::run_state(7);
    let error = store.commit(FIRST, &schema, &expected, &reports, &run_state).unwrap_err();
    let told = "tensor layers.0.weight:momentum: no rank saved the elements [0, 0]+[6, 4]";
    assert_eq!(error.to_string(), told);
    // One that nobody expects is told, too.
    let fewer: Vec<_> = expected.iter().filter(|e| e.key.slot != "count").cloned().collect();
    let fewer: Vec<_> = fewer.into_iter().filter(|e| e.key != lost.key).collect();
    let error = store.commit(FIRST, &schema, &fewer, &reports, &run_state).unwrap_err();
    assert!(matches!(&error, Error::Stranger { key, .. } if key.slot == "count"), "{error}");
    let all: Vec<_> = expected.into_iter().filter(|e| e.key != lost.key).collect();
    store.commit(FIRST, &schema, &all, &reports, &run_state).unwrap();
    let error = store.open(FIRST).unwrap().read_tensor(&lost.key).unwrap_err();
    let told = "the checkpoint holds no tensor layers.0.weight:momentum; the nearest is \
                layers.0.weight:param";
    assert_eq!(error.to_string(), told);
}
