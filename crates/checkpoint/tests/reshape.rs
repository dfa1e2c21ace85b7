//! A reshape gives the same tensors in other boxes, whatever the machine does meanwhile.

mod support;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use checkpoint::{
    Attempt, Checkpoint, Dtype, Error, Region, Reshape, ReshapeOptions, Reshaped, Store,
    WriteOptions,
};
use layout::Schema;
use proptest::prelude::*;
use support::mem_disk::{Fault, MemDisk, Model};
use support::{Rng, State, contents, save, small_model, wanted};

const FROM: &str = "/runs/a";
const TO: &str = "/runs/b";
const AT: Attempt = Attempt { step: 20, generation: 1 };

/// One thread, so that operations have an order; waves of a few bytes, so that there are several.
const ORDERED: ReshapeOptions = ReshapeOptions { threads: 1, wave_bytes: 100 };

fn store(disk: &MemDisk, root: &str) -> Store {
    Store::on(Arc::new(disk.clone()), root)
}

/// A disk with a checkpoint of `model` under [`FROM`].
fn disk_with(model: &(Schema, Vec<State>)) -> MemDisk {
    let disk = MemDisk::new();
    let from = store(&disk, FROM);
    from.claim_generation().unwrap();
    let world = model.1.iter().flat_map(|state| &state.boxes).map(|(rank, _)| rank + 1).max();
    save(&from, AT, world.unwrap(), model, &WriteOptions::default()).unwrap();
    disk.survivor(Model::SyncedOnly)
}

fn source(disk: &MemDisk) -> Checkpoint {
    store(disk, FROM).open(AT).unwrap()
}

fn reshape(
    disk: &MemDisk,
    ranks: &[Vec<(usize, Region)>],
    options: ReshapeOptions,
) -> Result<Reshaped, Error> {
    let (source, to) = (store(disk, FROM).open(AT)?, store(disk, TO));
    Reshape::new(&source, &to, ranks, options).run(&|_| ())
}

/// The newest checkpoint under [`TO`], if there is one.
fn reshaped(disk: &MemDisk) -> Option<Checkpoint> {
    store(disk, TO).newest().unwrap().checkpoint
}

/// The small model on three ranks: rows here where columns were there.
fn three_ranks() -> Vec<Vec<(usize, Region)>> {
    let whole = |shape: &[usize]| Region::whole(shape);
    vec![
        vec![(0, Region::new(&[0, 0], &[6, 3])), (2, whole(&[5]))],
        vec![(1, Region::new(&[0, 0], &[5, 4])), (3, whole(&[]))],
        vec![(0, Region::new(&[0, 3], &[6, 1])), (1, Region::new(&[5, 0], &[1, 4]))],
    ]
}

/// Cuts every tensor into boxes by chance and gives each to a rank by chance.
fn by_chance(shapes: &[Vec<usize>], world: usize, rng: &mut Rng) -> Vec<Vec<(usize, Region)>> {
    let mut ranks = vec![Vec::new(); world];
    for (number, shape) in shapes.iter().enumerate() {
        let mut boxes = vec![Region::whole(shape)];
        if shape.contains(&0) {
            continue;
        }
        for _ in 0..rng.below(6) {
            let at = rng.below(boxes.len());
            let axis = rng.below(shape.len().max(1));
            let extent = boxes[at].shape.get(axis).copied().unwrap_or(1);
            if extent > 1 {
                let cut = 1 + rng.below(extent - 1);
                let mut later = boxes[at].clone();
                later.offset[axis] += cut;
                later.shape[axis] -= cut;
                boxes[at].shape[axis] = cut;
                boxes.push(later);
            }
        }
        for region in boxes {
            ranks[rng.below(world)].push((number, region));
        }
    }
    ranks
}

/// A model with tensors of any shape and type, saved by `world` ranks in boxes of chance.
fn any_model(seed: u64, world: usize) -> (Schema, Vec<State>) {
    let (schema, _) = small_model(seed);
    let mut rng = Rng(seed);
    let dtypes = [Dtype::F32, Dtype::Bf16, Dtype::F8E4M3, Dtype::U64, Dtype::U8];
    let mut states = vec![
        State::new("layers.0.weight", "param", Dtype::F32, &[6, 4], &mut rng),
        State::new("norm", "param", Dtype::Bf16, &[5], &mut rng),
        State::new("none", "param", Dtype::F32, &[0, 3], &mut rng),
    ];
    for number in 0..6 {
        let axes = rng.below(4);
        let shape: Vec<usize> = (0..axes).map(|_| 1 + rng.below(9)).collect();
        let dtype = dtypes[rng.below(dtypes.len())];
        states.push(State::new("norm", &format!("extra_{number}"), dtype, &shape, &mut rng));
    }
    let shapes: Vec<Vec<usize>> = states.iter().map(|state| state.shape.clone()).collect();
    states.iter_mut().for_each(|state| state.boxes.clear());
    for (rank, boxes) in by_chance(&shapes, world, &mut rng).into_iter().enumerate() {
        for (number, region) in boxes {
            states[number].boxes.push((rank as u32, region));
        }
    }
    // A rank beyond the last box still saves.
    if let Some(state) = states.iter_mut().find(|state| state.shape.contains(&0)) {
        state.boxes.push((world as u32 - 1, Region::whole(&state.shape)));
    }
    (schema, states)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(120))]
    #[test]
    fn any_boxes_to_any_boxes_and_back(
        seed in any::<u64>(),
        (from, to) in (1_usize..6, 1_usize..6),
        threads in 1_usize..4,
        wave_bytes in 1_u64..600,
    ) {
        let model = any_model(seed, from);
        let disk = disk_with(&model);
        let mut rng = Rng(seed ^ 1);
        let shapes: Vec<Vec<usize>> = model.1.iter().map(|state| state.shape.clone()).collect();
        let options = ReshapeOptions { threads, wave_bytes };
        let written = AtomicU64::new(0);
        let source = source(&disk);
        let there = store(&disk, TO);
        let ranks = by_chance(&shapes, to, &mut rng);
        let reshape = Reshape::new(&source, &there, &ranks, options);
        let count = |bytes| {
            written.fetch_add(bytes, Ordering::Relaxed);
        };
        let done = reshape.run(&count).unwrap();
        prop_assert_eq!(done.taken_over_bytes, 0);
        prop_assert_eq!(written.into_inner(), reshape.bytes());
        let middle = reshaped(&disk).unwrap();
        prop_assert_eq!(contents(&middle).unwrap(), wanted(&model.1));
        prop_assert_eq!(middle.run_state(), source.run_state());
        prop_assert_eq!(middle.manifest().world as usize, to);
        // Its boxes are those that were asked for.
        for (number, tensor) in middle.tensors().iter().enumerate() {
            let mut asked: Vec<Region> = ranks.iter().flatten()
                .filter(|(of, _)| *of == number)
                .map(|(_, region)| region.clone())
                .collect();
            asked.sort();
            let got: Vec<Region> = tensor.chunks.iter().map(|chunk| chunk.region()).collect();
            prop_assert_eq!(got, asked);
        }
        let back = store(&disk, "/runs/c");
        let ranks = by_chance(&shapes, from, &mut rng);
        Reshape::new(&middle, &back, &ranks, options).run(&|_| ()).unwrap();
        let last = back.newest().unwrap().checkpoint.unwrap();
        prop_assert_eq!(contents(&last).unwrap(), wanted(&model.1));
        let report = checkpoint::verify_on(Arc::new(disk.clone()), last.path(), true).unwrap();
        prop_assert!(report.is_whole() && report.strangers.is_empty(), "{:?}", report);
    }
}

fn models() -> Vec<Model> {
    let mut models = vec![Model::Everything, Model::SyncedOnly, Model::NamesWithoutBytes];
    models.extend((0..8).map(Model::Coins));
    models
}

#[test]
fn a_crash_at_any_operation_leaves_nothing_or_all_and_the_next_goes_on() {
    let model = small_model(3);
    let base = disk_with(&model);
    let clean = base.fork();
    reshape(&clean, &three_ranks(), ORDERED).unwrap();
    let operations = clean.operations();
    let mut taken_over = 0;
    for operation in 0..operations {
        let crashed = base.fork();
        crashed.inject(operation, Fault::Crash);
        // A failure after the commit is not told.
        let is_done = reshape(&crashed, &three_ranks(), ORDERED).is_ok();
        for kind in models() {
            let disk = crashed.survivor(kind);
            let context = format!("operation {operation}, {kind:?}");
            assert_eq!(contents(&source(&disk)).unwrap(), wanted(&model.1), "{context}");
            if let Some(whole) = reshaped(&disk) {
                assert_eq!(contents(&whole).unwrap(), wanted(&model.1), "{context}");
                continue;
            }
            assert!(!is_done, "{context}: what was committed is gone");
            let again = reshape(&disk, &three_ranks(), ORDERED)
                .unwrap_or_else(|error| panic!("{context}: {error}"));
            taken_over += usize::from(again.taken_over_bytes > 0);
            let whole = reshaped(&disk).unwrap();
            assert_eq!(contents(&whole).unwrap(), wanted(&model.1), "{context}");
            // Nothing of the earlier attempt is left.
            let attempt = whole.attempt();
            let is_left = |(path, _): &(String, Vec<u8>)| {
                path.starts_with(TO)
                    && !path.contains(&attempt.dir_name())
                    && !path.contains("generation-")
                    && !path.ends_with("/reshape")
            };
            assert_eq!(disk.files().iter().find(|file| is_left(file)), None, "{context}");
        }
    }
    assert!(taken_over > 100, "{taken_over} went on from a whole wave");
}

#[test]
fn a_failure_of_any_operation_is_told_and_the_next_goes_on() {
    let model = small_model(4);
    let base = disk_with(&model);
    let clean = base.fork();
    reshape(&clean, &three_ranks(), ORDERED).unwrap();
    for kind in [io::ErrorKind::Other, io::ErrorKind::StorageFull, io::ErrorKind::PermissionDenied]
    {
        for operation in 0..clean.operations() {
            let disk = base.fork();
            disk.inject(operation, Fault::Fail(kind));
            let result = reshape(&disk, &three_ranks(), ORDERED);
            let context = format!("{kind:?} at operation {operation}");
            if result.is_err() && reshaped(&disk).is_none() {
                reshape(&disk, &three_ranks(), ORDERED)
                    .unwrap_or_else(|error| panic!("{context}: {error}"));
            }
            let whole = reshaped(&disk).unwrap();
            assert_eq!(contents(&whole).unwrap(), wanted(&model.1), "{context}");
        }
    }
}

#[test]
fn a_full_disk_is_told_and_only_whole_waves_are_left() {
    let model = small_model(5);
    let base = disk_with(&model);
    let mut taken_over = 0;
    for room in [0, 100, 5000, 9000, 14_000, 18_000, 22_000] {
        let disk = base.fork();
        disk.limit_capacity(room);
        let error = reshape(&disk, &three_ranks(), ORDERED).unwrap_err();
        assert!(matches!(error, Error::DiskFull { .. }), "{room}: {error}");
        let left: Vec<_> = disk.files().into_iter().map(|(path, _)| path).collect();
        let count = |what: &str| left.iter().filter(|path| path.contains(what)).count();
        let of_target = left.iter().filter(|path| path.starts_with(TO) && path.contains("/rank-"));
        // Each shard with its table, and none without a record.
        assert_eq!(of_target.count() > 0, count("/wave-") > 0, "{room}: {left:?}");
        disk.limit_capacity(u64::MAX / 2);
        let again = reshape(&disk, &three_ranks(), ORDERED).unwrap();
        assert_eq!(again.taken_over_bytes > 0, count("/wave-") > 0, "{room}: {left:?}");
        taken_over += usize::from(again.taken_over_bytes > 0);
        assert_eq!(contents(&reshaped(&disk).unwrap()).unwrap(), wanted(&model.1));
    }
    assert!(taken_over > 1, "{taken_over}");
}

#[test]
fn what_belongs_to_somebody_else_is_not_touched() {
    let model = small_model(9);
    let base = disk_with(&model);
    let holds = |disk: &MemDisk, ranks: &[Vec<(usize, Region)>]| {
        let before = disk.files();
        let error = reshape(disk, ranks, ORDERED).unwrap_err();
        assert_eq!(disk.files(), before, "{error}");
        match error {
            Error::TargetInUse { holds, .. } => holds,
            other => panic!("{other}"),
        }
    };
    // A run that has begun to save, or has saved.
    let disk = base.fork();
    let run = store(&disk, TO);
    assert_eq!(run.claim_generation().unwrap(), 1);
    assert_eq!(holds(&disk, &three_ranks()), "`generation-0001`, by which a run saves there");
    save(&run, Attempt { step: 20, generation: 1 }, 2, &model, &WriteOptions::default()).unwrap();
    assert_eq!(holds(&disk, &three_ranks()), "a checkpoint already");
    // An interrupted reshape into other boxes; the same one goes on.
    let disk = base.fork();
    disk.inject(120, Fault::Fail(io::ErrorKind::Other));
    reshape(&disk, &three_ranks(), ORDERED).unwrap_err();
    let whole = model.1.iter().enumerate().map(|(n, s)| (n, Region::whole(&s.shape)));
    let whole = vec![whole.filter(|(_, region)| !region.shape.contains(&0)).collect()];
    assert_eq!(holds(&disk, &whole), "an interrupted reshape of another source or layout");
    reshape(&disk, &three_ranks(), ORDERED).unwrap();
    assert_eq!(holds(&disk, &three_ranks()), "a checkpoint already");
}

#[test]
fn each_byte_of_the_source_is_read_once_however_it_is_cut() {
    let model = small_model(10);
    for threads in 1..4 {
        let disk = disk_with(&model);
        let (source, to) = (source(&disk), store(&disk, TO));
        let shards: u64 = source.manifest().files.iter().map(|file| file.bytes).sum();
        let before = disk.read_bytes();
        // Rows of one tensor become columns, and the other way round.
        let options = ReshapeOptions { threads, wave_bytes: u64::MAX };
        Reshape::new(&source, &to, &three_ranks(), options).run(&|_| ()).unwrap();
        assert_eq!(disk.read_bytes() - before, shards, "{threads} threads");
    }
}

#[test]
fn what_is_sealed_outlives_a_failure_of_the_next_wave() {
    let model = small_model(11);
    let base = disk_with(&model);
    let clean = base.fork();
    reshape(&clean, &three_ranks(), ORDERED).unwrap();
    let threaded = ReshapeOptions { threads: 2, ..ORDERED };
    let mut taken_over = 0;
    for operation in 0..clean.operations() {
        let disk = base.fork();
        disk.inject(operation, Fault::Fail(io::ErrorKind::Other));
        if reshape(&disk, &three_ranks(), threaded).is_ok() || reshaped(&disk).is_some() {
            continue;
        }
        let recorded = disk.files().iter().filter(|(path, _)| path.contains("/wave-")).count();
        let again = reshape(&disk, &three_ranks(), threaded).unwrap();
        assert_eq!(again.taken_over_bytes > 0, recorded > 0, "operation {operation}");
        taken_over += usize::from(recorded > 0);
        assert_eq!(contents(&reshaped(&disk).unwrap()).unwrap(), wanted(&model.1));
    }
    assert!(taken_over > 10, "{taken_over}");
}

#[test]
fn a_damaged_source_is_named_and_not_copied() {
    let model = small_model(6);
    let disk = disk_with(&model);
    let shard = format!("{FROM}/{}/rank-00001/shard-000.safetensors", AT.dir_name());
    disk.tamper(&shard, |bytes| *bytes.last_mut().unwrap() ^= 4);
    let error = reshape(&disk, &three_ranks(), ORDERED).unwrap_err();
    assert!(matches!(&error, Error::Range { holds, .. } if !holds.is_empty()), "{error}");
    assert!(reshaped(&disk).is_none());
}

#[test]
fn boxes_that_leave_a_gap_or_overlap_are_refused() {
    let model = small_model(7);
    for change in [
        |ranks: &mut Vec<Vec<(usize, Region)>>| drop(ranks[2].pop()),
        |ranks: &mut Vec<Vec<(usize, Region)>>| ranks[2][1].1 = Region::new(&[4, 0], &[2, 4]),
    ] {
        let disk = disk_with(&model);
        let mut ranks = three_ranks();
        change(&mut ranks);
        let error = reshape(&disk, &ranks, ORDERED).unwrap_err();
        assert!(matches!(error, Error::Gap { .. } | Error::Overlap { .. }), "{error}");
        // Before anything is made.
        assert!(disk.files().iter().all(|(path, _)| !path.starts_with(TO)));
    }
}

#[test]
fn a_later_reshape_fences_off_a_paused_one() {
    let model = small_model(8);
    let disk = disk_with(&model);
    let (source, to) = (source(&disk), store(&disk, TO));
    let (ranks, once) = (three_ranks(), AtomicU64::new(0));
    let paused = Reshape::new(&source, &to, &ranks, ORDERED);
    let error = paused.run(&|_| {
        // While it copies, another one begins and ends.
        if once.fetch_add(1, Ordering::Relaxed) == 1 {
            reshape(&disk, &three_ranks(), ORDERED).unwrap();
        }
    });
    let error = error.unwrap_err();
    assert!(matches!(error, Error::Fenced { .. }), "{error}");
    assert_eq!(contents(&reshaped(&disk).unwrap()).unwrap(), wanted(&model.1));
}
