//! Whatever the machine does at whichever file-system operation, a reader finds exactly the old
//! checkpoint or the new one.

mod support;

use std::io;
use std::sync::Arc;

use checkpoint::{Attempt, Error, Proof, Status, Store, WriteOptions};
use support::mem_disk::{Fault, MemDisk, Model};
use support::{State, contents, save, small_model, wanted};

const ROOT: &str = "/runs/quickstart/checkpoints";
const WORLD: u32 = 2;

type SavedModel = (layout::Schema, Vec<State>);

fn store(disk: &MemDisk) -> Store {
    Store::on(Arc::new(disk.clone()), ROOT)
}

fn at(step: u64, generation: u32) -> Attempt {
    Attempt { step, generation }
}

fn options() -> WriteOptions {
    // Two shards a rank, so that there is a between.
    WriteOptions { max_shard_bytes: 80, ..WriteOptions::default() }
}

fn save_step(disk: &MemDisk, attempt: Attempt, model: &SavedModel) -> Result<(), Error> {
    save(&store(disk), attempt, WORLD, model, &options()).map(|_| ())
}

/// A disk with a commit of `old` at step 10.
fn disk_with(old: &SavedModel) -> MemDisk {
    let disk = MemDisk::new();
    assert_eq!(store(&disk).claim_generation().unwrap(), 1);
    save_step(&disk, at(10, 1), old).unwrap();
    disk.survivor(Model::SyncedOnly)
}

/// Every way in which what was not fsynced may be lost.
fn models() -> Vec<Model> {
    let mut models = vec![Model::Everything, Model::SyncedOnly, Model::NamesWithoutBytes];
    models.extend((0..24).map(Model::Coins));
    models
}

/// The step of the newest checkpoint, after comparing all of it with what was saved.
fn newest_step(disk: &MemDisk, old: &SavedModel, new: &SavedModel, context: &str) -> u64 {
    let newest = store(disk).newest().unwrap_or_else(|error| panic!("{context}: {error}"));
    let checkpoint = newest.checkpoint.unwrap_or_else(|| panic!("{context}: nothing to open"));
    let step = checkpoint.run_state().step;
    let model = if step == 10 { old } else { new };
    let read = contents(&checkpoint).unwrap_or_else(|error| panic!("{context}: {error}"));
    assert_eq!(read, wanted(&model.1), "{context}");
    assert_eq!(checkpoint.run_state(), &support::run_state(step), "{context}");
    step
}

fn is_linked(disk: &MemDisk, attempt: Attempt) -> bool {
    let path = format!("{ROOT}/{}/COMMIT", attempt.dir_name());
    disk.files().iter().any(|(name, _)| *name == path)
}

#[test]
fn a_crash_at_any_operation_of_a_save_leaves_the_old_or_the_new() {
    let (old, new) = (small_model(1), small_model(2));
    let base = disk_with(&old);
    let clean = base.fork();
    save_step(&clean, at(20, 1), &new).unwrap();
    let operations = clean.operations();
    assert!(operations > 40, "{operations} operations are too few to be a save");
    for model in models() {
        let step = newest_step(&clean.survivor(model), &old, &new, "after the save");
        assert_eq!(step, 20, "a finished save is durable: {model:?}");
    }
    let mut seen = [0, 0];
    for operation in 0..operations {
        let disk = base.fork();
        disk.inject(operation, Fault::Crash);
        let saved = save_step(&disk, at(20, 1), &new);
        let linked = is_linked(&disk, at(20, 1));
        // One operation may fail unnoticed: the removal of the second name of COMMIT.
        assert!(saved.is_err(), "crash at {operation} went unnoticed");
        for model in models() {
            let context = format!("crash at operation {operation}, {model:?}");
            let survivor = disk.survivor(model);
            let step = newest_step(&survivor, &old, &new, &context);
            match (model, linked) {
                (_, false) => assert_eq!(step, 10, "{context}: committed before its time"),
                (Model::Everything, true) => assert_eq!(step, 20, "{context}"),
                _ => assert!(step == 10 || step == 20, "{context}"),
            }
            seen[usize::from(step == 20)] += 1;
            let store = store(&survivor);
            // Stronger than falling back: COMMIT is never there without all it vouches for.
            for entry in store.list().unwrap() {
                assert!(!matches!(entry.status, Status::Corrupt(_)), "{context}: {entry:?}");
            }
            assert_eq!(contents(&store.open(at(10, 1)).unwrap()).unwrap(), wanted(&old.1));
            go_on(&survivor, &old, &new, &context);
        }
    }
    assert!(seen[0] > 0 && seen[1] > 0, "both outcomes must occur: {seen:?}");
}

/// A restarted job claims the next generation, saves the same step and cleans up.
fn go_on(disk: &MemDisk, old: &SavedModel, new: &SavedModel, context: &str) {
    let store = store(disk);
    let generation = store.claim_generation().unwrap();
    assert!(generation >= 2, "{context}");
    save_step(disk, at(20, generation), new).unwrap_or_else(|e| panic!("{context}: {e}"));
    store.retain(1, Proof::EveryByte).unwrap_or_else(|error| panic!("{context}: {error}"));
    let entries = store.list().unwrap();
    assert_eq!(entries.len(), 1, "{context}");
    assert!(matches!(entries[0].status, Status::Committed), "{context}");
    assert_eq!(newest_step(disk, old, new, context), 20);
}

#[test]
fn a_failure_at_any_operation_of_a_save_is_told_and_leaves_the_old() {
    let (old, new) = (small_model(1), small_model(2));
    let base = disk_with(&old);
    let clean = base.fork();
    save_step(&clean, at(20, 1), &new).unwrap();
    let mut unnoticed = 0;
    for kind in [io::ErrorKind::Other, io::ErrorKind::StorageFull] {
        for operation in 0..clean.operations() {
            let context = format!("{kind:?} at operation {operation}");
            let disk = base.fork();
            disk.inject(operation, Fault::Fail(kind));
            match save_step(&disk, at(20, 1), &new) {
                Ok(()) => {
                    unnoticed += 1;
                    assert_eq!(newest_step(&disk, &old, &new, &context), 20);
                }
                Err(_) => {
                    assert_eq!(newest_step(&disk, &old, &new, &context), 10);
                    store(&disk).discard(at(20, 1)).unwrap();
                    assert_eq!(store(&disk).list().unwrap().len(), 1, "{context}");
                    save_step(&disk, at(21, 1), &new).unwrap();
                }
            }
            let survivor = disk.survivor(Model::SyncedOnly);
            assert!(newest_step(&survivor, &old, &new, &context) >= 20);
        }
    }
    // Only the removal of the second name of COMMIT may fail without a word.
    assert_eq!(unnoticed, 2);
}

#[test]
fn a_crash_while_deleting_never_harms_what_is_kept() {
    let (old, new) = (small_model(1), small_model(2));
    let base = disk_with(&old);
    save_step(&base, at(11, 1), &old).unwrap();
    // A save that did not finish, of a generation that is over.
    support::save_rank(&store(&base), at(15, 1), (0, WORLD), &new.1, &options()).unwrap();
    store(&base).claim_generation().unwrap();
    save_step(&base, at(20, 2), &new).unwrap();
    // One under way, of this generation.
    support::save_rank(&store(&base), at(30, 2), (0, WORLD), &new.1, &options()).unwrap();

    let clean = base.fork();
    let deleted = store(&clean).retain(1, Proof::EveryByte).unwrap();
    let operations = clean.operations();
    let names: Vec<&str> =
        deleted.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, ["step-00000010.g0001", "step-00000011.g0001", "step-00000015.g0001"]);
    assert_eq!(store(&clean).list().unwrap().len(), 2);
    for operation in 0..operations {
        let disk = base.fork();
        disk.inject(operation, Fault::Crash);
        store(&disk).retain(1, Proof::EveryByte).unwrap_err();
        for model in models() {
            let context = format!("crash at operation {operation}, {model:?}");
            let survivor = disk.survivor(model);
            assert_eq!(newest_step(&survivor, &old, &new, &context), 20);
            for entry in store(&survivor).list().unwrap() {
                assert!(!matches!(entry.status, Status::Corrupt(_)), "{context}: {entry:?}");
                if matches!(entry.status, Status::Committed) && entry.attempt.step < 20 {
                    let checkpoint = store(&survivor).open(entry.attempt).unwrap();
                    assert_eq!(contents(&checkpoint).unwrap(), wanted(&old.1), "{context}");
                }
            }
        }
    }
}

#[test]
fn a_crash_while_claiming_never_gives_a_generation_twice() {
    let base = disk_with(&small_model(1));
    let clean = base.fork();
    assert_eq!(store(&clean).claim_generation().unwrap(), 2);
    for operation in 0..clean.operations() {
        let disk = base.fork();
        disk.inject(operation, Fault::Crash);
        store(&disk).claim_generation().unwrap_err();
        for model in models() {
            assert!(store(&disk.survivor(model)).claim_generation().unwrap() >= 2);
        }
    }
    for model in models() {
        assert_eq!(store(&clean.survivor(model)).claim_generation().unwrap(), 3);
    }
}
