//! Tensors saved in any boxes by any number of ranks are read back in any other boxes, and every
//! damaged byte is noticed.

mod support;

use std::io::ErrorKind;
use std::sync::{Arc, Mutex};

use checkpoint::{
    Attempt, Checkpoint, Distance, Dtype, Error, FileRange, Proof, RANGE_BYTES, Region, Status,
    Store, TensorKey, Wanted, WriteOptions, diff, slabs, verify_on,
};
use layout::Schema;
use proptest::prelude::*;
use support::mem_disk::{Fault, MemDisk};
use support::{Rng, State, contents, cut, random_model, save, small_model, wanted};

const FIRST: Attempt = Attempt { step: 7, generation: 1 };

fn store(disk: &MemDisk) -> Store {
    let store = Store::on(Arc::new(disk.clone()), "/checkpoints");
    store.claim_generation().unwrap();
    store
}

fn random_box(shape: &[usize], rng: &mut Rng) -> Region {
    let offset: Vec<usize> = shape.iter().map(|&extent| rng.below(extent + 1)).collect();
    let extents = shape.iter().zip(&offset).map(|(&e, &o)| rng.below(e - o + 1)).collect();
    Region { offset, shape: extents }
}

fn read(checkpoint: &Checkpoint, state: &State, region: &Region) -> Result<Vec<u8>, Error> {
    let count: usize = region.shape.iter().product();
    let mut out = vec![0; count * state.dtype.size_bytes()];
    checkpoint.read_box(&state.key, state.dtype, region, &mut out).map(|()| out)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn any_boxes_in_any_boxes_out(
        seed in any::<u64>(),
        tensors in 0_usize..5,
        world in 1_u32..5,
        max_shard_bytes in 1_u64..2000,
        max_transfer in 1_usize..3000,
        digest_data in any::<bool>(),
    ) {
        let mut rng = Rng(seed);
        let model = random_model(&mut rng, tensors, world);
        let disk = MemDisk::new();
        disk.limit_transfers(max_transfer);
        let options = WriteOptions { max_shard_bytes, digest_data };
        let store = store(&disk);
        save(&store, FIRST, world, &model, &options).unwrap();
        let checkpoint = store.open(FIRST).unwrap();
        prop_assert_eq!(contents(&checkpoint).unwrap(), wanted(&model.1));
        prop_assert_eq!(checkpoint.schema(), model.0);
        for state in &model.1 {
            for _ in 0..8 {
                let region = random_box(&state.shape, &mut rng);
                prop_assert_eq!(read(&checkpoint, state, &region).unwrap(), state.cut(&region));
            }
        }
        let report = verify_on(Arc::new(disk), checkpoint.path(), true).unwrap();
        prop_assert!(report.is_whole(), "{:?}", report.problems);
        prop_assert_eq!(report.digests_compared, if digest_data { report.shards } else { 0 });
        prop_assert!(report.strangers.is_empty());
    }

    #[test]
    fn a_missing_doubled_or_strange_box_is_never_committed(seed in any::<u64>()) {
        let mut rng = Rng(seed);
        let (schema, mut states) = random_model(&mut rng, 3, 2);
        let expected: Vec<_> = states.iter().map(State::expected).collect();
        let held: Vec<usize> = (0..states.len()).filter(|&n| !states[n].bytes.is_empty()).collect();
        prop_assume!(!held.is_empty());
        let number = held[rng.below(held.len())];
        let boxes = &mut states[number].boxes;
        let which = rng.below(boxes.len());
        let (missing, doubled) = (rng.coin(), boxes[which].clone());
        match missing {
            true => drop(boxes.remove(which)),
            false => boxes.push((1 - doubled.0, doubled.1)),
        }
        let disk = MemDisk::new();
        let store = store(&disk);
        let options = WriteOptions::default();
        let reports: Vec<_> = (0..2)
            .map(|rank| support::save_rank(&store, FIRST, (rank, 2), &states, &options).unwrap())
            .collect();
        let run_state = support::run_state(7);
        let error = store.commit(FIRST, &schema, &expected, &reports, &run_state).unwrap_err();
        match (&error, missing) {
            (Error::Gap { key, .. }, true) | (Error::Overlap { key, .. }, false) => {
                prop_assert_eq!(key, &states[number].key);
            }
            _ => prop_assert!(false, "{error}"),
        }
        prop_assert!(store.newest().unwrap().checkpoint.is_none());
    }

    #[test]
    fn slabs_tile_in_order(
        shape in proptest::collection::vec(0_usize..6, 0..4),
        max in 1_usize..40,
    ) {
        let slabs = slabs(&shape, max);
        let state = State::new("x", "param", Dtype::U8, &shape, &mut Rng(1));
        let bytes: Vec<u8> = slabs.iter().flat_map(|slab| state.cut(slab)).collect();
        prop_assert_eq!(bytes, state.bytes);
        prop_assert!(slabs.iter().all(|slab| slab.elements().unwrap() <= max));
    }
}

/// Boxes by chance, several of each tensor, by several threads.
fn many_boxes_at_once(checkpoint: &Checkpoint, states: &[State], rng: &mut Rng) {
    for threads in 1..5 {
        let wanted = states.iter().flat_map(|state| {
            let boxes = (0..3).map(|_| random_box(&state.shape, rng)).collect::<Vec<_>>();
            boxes.into_iter().map(move |region| {
                let wanted = Wanted { key: state.key.clone(), dtype: state.dtype, region };
                (wanted, state)
            })
        });
        let (wanted, of): (Vec<Wanted>, Vec<&State>) = wanted.unzip();
        let got: Vec<Vec<u8>> =
            wanted.iter().map(|w| vec![0; 4 * w.region.elements().unwrap()]).collect();
        let got = Mutex::new((got, 0));
        let take = |number: usize, start: usize, bytes: &[u8]| {
            let mut got = got.lock().unwrap();
            got.0[number][4 * start..4 * start + bytes.len()].copy_from_slice(bytes);
            got.1 += bytes.len();
            Ok::<(), Error>(())
        };
        if threads == 1 {
            // Every other range comes from elsewhere.
            let reads = checkpoint.reads(&wanted[..]).unwrap();
            let is_read = |at: FileRange| (at.file + at.number).is_multiple_of(2);
            reads.read(2, is_read, &take).unwrap();
            let mut bytes = Vec::new();
            for at in reads.ranges().filter(|at| !is_read(*at)) {
                checkpoint.read_file_range(at, &mut bytes).unwrap();
                let crc = crc_fast::crc32_iscsi(&bytes);
                reads.give(at, &bytes, crc, &take).unwrap();
                bytes[0] ^= 1;
                let damaged = reads
                    .give(at, &bytes, crc, &|_: usize, _: usize, _: &[u8]| Ok::<(), Error>(()));
                assert!(matches!(damaged, Err(Error::Range { .. })), "{damaged:?}");
            }
        } else {
            checkpoint.read_boxes::<Error>(&wanted, threads, take).unwrap();
        }
        let (got, count) = got.into_inner().unwrap();
        assert_eq!(count, got.iter().map(Vec::len).sum::<usize>(), "every byte once");
        for ((got, wanted), state) in got.iter().zip(&wanted).zip(of) {
            assert!(*got == state.cut(&wanted.region), "{threads} threads, {}", wanted.region);
        }
        let stop = checkpoint.read_boxes(&wanted, threads, |_, _, _| {
            Err(Error::NotCommitted { path: "enough".into() })
        });
        assert!(matches!(stop, Err(Error::NotCommitted { .. })), "{stop:?}");
    }
}

#[test]
fn a_rank_reads_no_table_that_it_does_not_need() {
    let disk = MemDisk::new();
    let (store, model) = (store(&disk), small_model(1));
    save(&store, FIRST, 2, &model, &WriteOptions::default()).unwrap();
    let path = format!("/checkpoints/{}", FIRST.dir_name());
    disk.remove(&format!("{path}/rank-00001/shard-000.sums"));
    let whole = Checkpoint::open_on(Arc::new(disk.clone()), &path).unwrap_err();
    assert!(matches!(whole, Error::MissingFile { .. }), "{whole}");
    let part = Checkpoint::open_lazily_on(Arc::new(disk), &path, &[]).unwrap();
    let state = &model.1[0];
    for (rank, region) in &state.boxes {
        match read(&part, state, region) {
            Ok(bytes) => assert!(*rank == 0 && bytes == state.cut(region)),
            Err(error) => {
                assert!(*rank == 1 && matches!(error, Error::MissingFile { .. }), "{error}");
            }
        }
    }
}

#[test]
fn tensors_larger_than_a_range_are_read_in_any_boxes() {
    let mut rng = Rng(5);
    let range = RANGE_BYTES as usize;
    // The second one ends exactly at a range of the file; all straddle some.
    let shapes = [vec![3, range / 4 + 77], vec![range / 4], vec![1021, 1031], vec![3]];
    let mut states: Vec<State> = Vec::new();
    for (number, shape) in shapes.iter().enumerate() {
        let name = format!("t{number}");
        let mut state = State::new(&name, "param", Dtype::F32, shape, &mut rng);
        let boxes = cut(Region::whole(shape), 2, &mut rng);
        state.boxes = boxes.into_iter().zip([0, 1, 0]).map(|(b, rank)| (rank, b)).collect();
        states.push(state);
    }
    let disk = MemDisk::new();
    let store = store(&disk);
    save(&store, FIRST, 2, &(Schema::default(), states.clone()), &WriteOptions::default()).unwrap();
    let checkpoint = store.open(FIRST).unwrap();
    assert_eq!(contents(&checkpoint).unwrap(), wanted(&states));
    for state in &states {
        for _ in 0..6 {
            let region = random_box(&state.shape, &mut rng);
            assert_eq!(read(&checkpoint, state, &region).unwrap(), state.cut(&region));
        }
    }
    many_boxes_at_once(&checkpoint, &states, &mut rng);
    // A flipped bit in one range spares the others and is named with its place.
    let path = format!("/checkpoints/{}/rank-00000/shard-000.safetensors", FIRST.dir_name());
    disk.tamper(&path, |bytes| bytes[range + 5] ^= 1);
    let checkpoint = store.open(FIRST).unwrap();
    let (key, dtype, region) =
        (states[0].key.clone(), states[0].dtype, Region::whole(&states[0].shape));
    let whole = [Wanted { key, dtype, region }];
    for threads in 1..4 {
        let read = checkpoint.read_boxes::<Error>(&whole, threads, |_, _, _| Ok(()));
        assert!(matches!(read, Err(Error::Range { .. })), "{threads}: {read:?}");
    }
    let error = checkpoint.read_tensor(&states[0].key).unwrap_err();
    match &error {
        Error::Range { start, end, holds, .. } => {
            assert_eq!((*start, *end), (RANGE_BYTES, 2 * RANGE_BYTES));
            assert!(holds.contains("t0:param (elements "), "{error}");
        }
        _ => panic!("{error}"),
    }
    let report = verify_on(Arc::new(disk.clone()), checkpoint.path(), false).unwrap();
    assert_eq!(report.problems.len(), 1);
    // Threads read side by side, and tell in order.
    disk.tamper(&path, |bytes| bytes[5] ^= 1);
    let report = verify_on(Arc::new(disk), checkpoint.path(), false).unwrap();
    let starts = report.problems.iter().map(|problem| match problem {
        Error::Range { start, .. } => *start,
        other => panic!("{other}"),
    });
    assert_eq!(starts.collect::<Vec<_>>(), [0, RANGE_BYTES]);
}

#[test]
fn every_flipped_bit_and_every_cut_is_noticed() {
    let disk = MemDisk::new();
    let model = small_model(3);
    let options = WriteOptions { max_shard_bytes: 100, digest_data: true };
    save(&store(&disk), FIRST, 2, &model, &options).unwrap();
    let root = format!("/checkpoints/{}", FIRST.dir_name());
    let files = disk.files();
    assert!(files.iter().filter(|(path, _)| path.starts_with(&root)).count() >= 8);
    let mut rng = Rng(9);
    for (path, bytes) in files.iter().filter(|(path, _)| path.starts_with(&root)) {
        let problems = |disk: &MemDisk| {
            let report = verify_on(Arc::new(disk.clone()), &root, false).unwrap();
            report.problems
        };
        for at in 0..bytes.len() {
            let bit = 1 << rng.below(8);
            disk.tamper(path, |bytes| bytes[at] ^= bit);
            assert!(!problems(&disk).is_empty(), "bit {bit} of byte {at} of {path}");
            // Shards are verified as they are read, everything else when it is opened.
            if !path.ends_with(".safetensors") {
                assert!(Checkpoint::open_on(Arc::new(disk.clone()), &root).is_err());
            } else if at >= 4096 {
                let checkpoint = Checkpoint::open_on(Arc::new(disk.clone()), &root).unwrap();
                assert!(contents(&checkpoint).is_err(), "byte {at} of {path}");
            }
            disk.tamper(path, |bytes| bytes[at] ^= bit);
        }
        for length in [0, 1, bytes.len() / 2, bytes.len() - 1] {
            disk.tamper(path, |bytes| bytes.truncate(length));
            assert_eq!(problems(&disk).len(), 1, "{path} cut to {length}");
            disk.tamper(path, |cut| cut.clone_from(bytes));
        }
        disk.tamper(path, |bytes| bytes.push(0));
        assert_eq!(problems(&disk).len(), 1, "{path} with a byte more");
        disk.tamper(path, |bytes| bytes.truncate(bytes.len() - 1));
        assert!(problems(&disk).is_empty());
    }
}

#[test]
fn damage_falls_back_to_an_older_commit_and_says_why() {
    let disk = MemDisk::new();
    let store = store(&disk);
    let (old, new) = (small_model(1), small_model(2));
    save(&store, FIRST, 2, &old, &WriteOptions::default()).unwrap();
    let second = Attempt { step: 9, generation: 1 };
    save(&store, second, 2, &new, &WriteOptions::default()).unwrap();
    let unfinished = Attempt { step: 11, generation: 1 };
    support::save_rank(&store, unfinished, (0, 2), &new.1, &WriteOptions::default()).unwrap();

    let newest = store.newest().unwrap();
    assert_eq!(newest.checkpoint.unwrap().attempt(), second);
    assert!(
        matches!(newest.skipped[..], [ref one] if matches!(one.reason, Error::NotCommitted { .. }))
    );

    disk.tamper("/checkpoints/step-00000009.g0001/manifest.json", |bytes| bytes[100] ^= 4);
    let newest = store.newest().unwrap();
    assert_eq!(newest.checkpoint.unwrap().attempt(), FIRST);
    let told: Vec<String> =
        newest.skipped.iter().map(|skipped| skipped.reason.to_string()).collect();
    assert_eq!(told.len(), 2);
    let older = store.newest_before(Some(second)).unwrap();
    assert_eq!((older.checkpoint.unwrap().attempt(), older.skipped.len()), (FIRST, 0));
    assert!(store.newest_before(Some(FIRST)).unwrap().checkpoint.is_none());
    assert!(told[0].contains("is not committed"), "{told:?}");
    assert!(told[1].contains("manifest.json is damaged: BLAKE3 is"), "{told:?}");
    // Nothing older than a damaged commit is deleted for its sake.
    assert!(store.retain(1, Proof::EveryByte).unwrap().is_empty());
    let statuses: Vec<Status> = store.list().unwrap().into_iter().map(|e| e.status).collect();
    assert!(matches!(statuses[..], [Status::Committed, Status::Corrupt(_), Status::Incomplete]));
}

#[test]
fn a_commit_that_cannot_be_read_is_an_error_and_not_passed_over() {
    let disk = MemDisk::new();
    let first = store(&disk);
    let (old, new) = (small_model(1), small_model(2));
    save(&first, FIRST, 2, &old, &WriteOptions::default()).unwrap();
    let second = Attempt { step: 9, generation: 1 };
    save(&first, second, 2, &new, &WriteOptions::default()).unwrap();
    let quiet = disk.fork();
    let before = quiet.operations();
    Store::on(Arc::new(quiet.clone()), "/checkpoints").newest().unwrap();
    let reads = before..quiet.operations();
    assert!(!reads.is_empty());
    for kind in [ErrorKind::PermissionDenied, ErrorKind::Other] {
        for operation in reads.clone() {
            let disk = disk.fork();
            disk.inject(operation, Fault::Fail(kind));
            let error = Store::on(Arc::new(disk), "/checkpoints").newest().unwrap_err();
            assert!(matches!(error, Error::Io { .. }), "{operation}: {error}");
            assert!(!error.is_damage());
        }
    }
}

#[test]
fn retention_does_not_trust_a_newest_commit_with_damaged_data() {
    let disk = MemDisk::new();
    let store = store(&disk);
    let (old, new) = (small_model(1), small_model(2));
    save(&store, FIRST, 2, &old, &WriteOptions::default()).unwrap();
    let second = Attempt { step: 9, generation: 1 };
    save(&store, second, 2, &new, &WriteOptions::default()).unwrap();
    let shard = "/checkpoints/step-00000009.g0001/rank-00001/shard-000.safetensors";
    disk.tamper(shard, |bytes| *bytes.last_mut().unwrap() ^= 1);
    assert!(store.retain(1, Proof::EveryByte).unwrap().is_empty());
    disk.tamper(shard, |bytes| *bytes.last_mut().unwrap() ^= 1);
    assert_eq!(store.retain(1, Proof::EveryByte).unwrap().len(), 1);
    assert_eq!(store.list().unwrap().len(), 1);
}

#[test]
fn two_generations_at_one_step_never_touch_each_other() {
    let disk = MemDisk::new();
    let store = store(&disk);
    let (old, new) = (small_model(1), small_model(2));
    let zombie = Attempt { step: 9, generation: 1 };
    let report = |rank| {
        support::save_rank(&store, zombie, (rank, 2), &old.1, &WriteOptions::default()).unwrap()
    };
    let reports = [report(0), report(1)];
    let before = disk.files();
    assert_eq!(store.claim_generation().unwrap(), 2);
    let current = Attempt { step: 9, generation: 2 };
    save(&store, current, 2, &new, &WriteOptions::default()).unwrap();
    let after = disk.files();
    assert!(before.iter().all(|file| after.contains(file)));
    // The job that was replaced is told so when it tries to commit.
    let expected: Vec<_> = old.1.iter().map(State::expected).collect();
    let error =
        store.commit(zombie, &old.0, &expected, &reports, &support::run_state(9)).unwrap_err();
    assert!(matches!(error, Error::Fenced { ours: 1, newest: 2, .. }), "{error}");
    let newest = store.newest().unwrap().checkpoint.unwrap();
    assert_eq!(contents(&newest).unwrap(), wanted(&new.1));
}

#[test]
fn nothing_is_written_twice() {
    let disk = MemDisk::new();
    let store = store(&disk);
    let model = small_model(1);
    let options = WriteOptions::default();
    save(&store, FIRST, 2, &model, &options).unwrap();
    let error = save(&store, FIRST, 2, &model, &options).unwrap_err();
    assert!(matches!(error, Error::AlreadyCommitted { .. }), "{error}");
    assert!(matches!(store.discard(FIRST), Err(Error::AlreadyCommitted { .. })));
    let second = Attempt { step: 8, generation: 1 };
    support::save_rank(&store, second, (0, 2), &model.1, &options).unwrap();
    let error = support::save_rank(&store, second, (0, 2), &model.1, &options).unwrap_err();
    assert!(matches!(error, Error::AlreadyExists { .. }), "{error}");
}

#[test]
fn a_full_disk_is_told_with_numbers_and_cleared_away() {
    let disk = MemDisk::new();
    let store = store(&disk);
    let model = small_model(1);
    save(&store, FIRST, 2, &model, &WriteOptions::default()).unwrap();
    let clean = disk.fork();
    let second = Attempt { step: 8, generation: 1 };
    // Cut off anywhere in the second save.
    for capacity in (0..9000).step_by(97) {
        let disk = clean.fork();
        disk.limit_capacity(capacity);
        let store = Store::on(Arc::new(disk.clone()), "/checkpoints");
        let error = save(&store, second, 2, &model, &WriteOptions::default()).unwrap_err();
        match &error {
            Error::DiskFull { needed_bytes, .. } => assert!(*needed_bytes > 0),
            _ => panic!("{error}"),
        }
        assert!(error.to_string().contains("older checkpoints are intact"), "{error}");
        store.discard(second).unwrap();
        assert_eq!(disk.files(), clean.files());
    }
}

#[test]
fn reading_the_wrong_thing_is_refused_with_the_right_thing_named() {
    let disk = MemDisk::new();
    let store = store(&disk);
    let (schema, states) = small_model(1);
    save(&store, FIRST, 2, &(schema, states.clone()), &WriteOptions::default()).unwrap();
    let checkpoint = store.open(FIRST).unwrap();
    let mut out = [0; 16];
    let mut ask = |name: &str, dtype, region: Region| {
        let key = TensorKey::new(name, "param");
        checkpoint.read_box(&key, dtype, &region, &mut out).unwrap_err().to_string()
    };
    let row = Region::new(&[0, 0], &[1, 4]);
    assert_eq!(
        ask("layers.0.wieght", Dtype::F32, row.clone()),
        "the checkpoint holds no tensor layers.0.wieght:param; the nearest is \
         layers.0.weight:param"
    );
    assert_eq!(
        ask("layers.0.weight", Dtype::Bf16, row),
        "tensor layers.0.weight:param is stored as F32, not as BF16; nothing is converted silently"
    );
    assert_eq!(
        ask("layers.0.weight", Dtype::F32, Region::new(&[6, 0], &[1, 4])),
        "tensor layers.0.weight:param has shape [6, 4]; the box [6, 0]+[1, 4] is not inside it"
    );
    assert_eq!(
        ask("layers.0.weight", Dtype::F32, Region::new(&[0, 0], &[2, 4])),
        "tensor layers.0.weight:param: the box [0, 0]+[2, 4] has 32 bytes, the output 16"
    );
}

#[test]
fn a_diff_names_what_differs_and_by_how_much() {
    let disk = MemDisk::new();
    let store = store(&disk);
    let (schema, mut states) = small_model(1);
    let values: Vec<f32> = (0..24).map(|n| n as f32).collect();
    states[0].bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    save(&store, FIRST, 2, &(schema.clone(), states.clone()), &WriteOptions::default()).unwrap();
    let same = Attempt { step: 7, generation: 2 };
    // Another cut of the same values is no difference.
    let mut recut = states.clone();
    recut[0].boxes = vec![(0, Region::whole(&[6, 4]))];
    save(&store, same, 1, &(schema.clone(), single_rank(recut)), &WriteOptions::default()).unwrap();
    let [a, b] = [FIRST, same].map(|attempt| store.open(attempt).unwrap());
    assert!(diff(&a, &b).unwrap().is_equal());

    states[0].bytes[9 * 4..10 * 4].copy_from_slice(&9.5_f32.to_le_bytes());
    states.remove(3);
    let other = Attempt { step: 8, generation: 2 };
    save(&store, other, 2, &(schema, states), &WriteOptions::default()).unwrap();
    let difference = diff(&a, &store.open(other).unwrap()).unwrap();
    use checkpoint::TensorDifference::{Equal, OnlyInA, Values};
    let kinds: Vec<_> = difference.tensors.into_iter().map(|tensor| tensor.difference).collect();
    let values = Values {
        elements: 1,
        first: vec![2, 1],
        by: Some(Distance {
            max_absolute: 0.5,
            max_relative: 0.5 / 9.5,
            norm: 0.5,
            norm_of_a: 4324_f64.sqrt(),
        }),
    };
    assert_eq!(kinds, [values, Equal, Equal, OnlyInA, Equal]);
    let fields: Vec<&str> = difference.run_state.iter().map(|d| d.field.as_str()).collect();
    assert_eq!(fields, ["rng_counter", "samples", "step", "tokens"]);
}

fn single_rank(mut states: Vec<State>) -> Vec<State> {
    states.iter_mut().flat_map(|state| &mut state.boxes).for_each(|(rank, _)| *rank = 0);
    states
}
