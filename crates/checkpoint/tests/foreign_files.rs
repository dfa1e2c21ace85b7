//! Files that are cut, longer, exchanged, doubled, of another save or of another program: each is
//! told by its name, and none is read as the checkpoint's own.

mod support;

use std::path::Path;
use std::sync::Arc;

use checkpoint::{
    Attempt, Checkpoint, Committed, Dtype, Error, RANGE_BYTES, Region, Store, WriteOptions,
    verify_on,
};
use layout::{LogicalTensor, Role, Schema};
use support::mem_disk::MemDisk;
use support::{Rng, State, contents, save};

const OLDER: Attempt = Attempt { step: 7, generation: 1 };
const NEWER: Attempt = Attempt { step: 9, generation: 1 };
/// The same step again, after a restart.
const AGAIN: Attempt = Attempt { step: 9, generation: 2 };

/// A tensor on each of two ranks, of one length and more than a range, so that their shards are
/// alike but for the values.
fn alike(seed: u64) -> (Schema, Vec<State>) {
    let mut rng = Rng(seed);
    let shape = [1100, 1000];
    let states = ["a", "b"].into_iter().zip(0..).map(|(name, rank)| {
        let mut state = State::new(name, "param", Dtype::F32, &shape, &mut rng);
        state.boxes = vec![(rank, Region::whole(&shape))];
        state
    });
    let states = states.collect();
    let logical = ["a", "b"].map(|name| LogicalTensor::new(name, &shape, Role::Matrix));
    (Schema::new(logical.into()).unwrap(), states)
}

fn save_on(disk: &MemDisk, attempt: Attempt, seed: u64) -> Committed {
    let store = Store::on(Arc::new(disk.clone()), "/runs");
    while store.claim_generation().unwrap() < attempt.generation {}
    save(&store, attempt, 2, &alike(seed), &WriteOptions::default()).unwrap()
}

/// Three attempts with different values.
fn three_saves() -> MemDisk {
    let disk = MemDisk::new();
    let store = Store::on(Arc::new(disk.clone()), "/runs");
    store.claim_generation().unwrap();
    for (attempt, seed) in [(OLDER, 1), (NEWER, 2), (AGAIN, 3)] {
        save(&store, attempt, 2, &alike(seed), &WriteOptions::default()).unwrap();
    }
    disk
}

fn path(attempt: Attempt, file: &str) -> String {
    format!("/runs/{}/{file}", attempt.dir_name())
}

fn bytes_of(disk: &MemDisk, path: &str) -> Vec<u8> {
    disk.files().into_iter().find(|(name, _)| name == path).unwrap().1
}

/// Puts one file's bytes in the place of another's.
fn put(disk: &MemDisk, to: &str, from: &str) {
    let bytes = bytes_of(disk, from);
    disk.tamper(to, |old| *old = bytes);
}

/// The error of opening and reading all of [`NEWER`], which is damage, after a change, with digests
/// left out. `verify` must find what a reader finds.
fn told(disk: &MemDisk, change: impl FnOnce(&MemDisk)) -> String {
    let disk = disk.fork();
    change(&disk);
    let dir = format!("/runs/{}", NEWER.dir_name());
    let open = Checkpoint::open_on(Arc::new(disk.clone()), &dir);
    let error = open.and_then(|checkpoint| contents(&checkpoint)).unwrap_err();
    assert!(error.is_damage(), "{error}");
    let report = verify_on(Arc::new(disk), &dir, false).unwrap();
    let found = report.problems.iter().map(Error::to_string).collect::<Vec<_>>();
    let text = error.to_string();
    assert!(found.contains(&text), "{text}: {found:?}");
    let is_digest = |word: &str| word.len() >= 8 && word.chars().all(|c| c.is_ascii_hexdigit());
    let words = text.split(' ').map(|word| match is_digest(word.trim_end_matches(',')) {
        true => "#",
        false => word,
    });
    words.collect::<Vec<_>>().join(" ").replace(&dir, "DIR")
}

const SHARD_0: &str = "rank-00000/shard-000.safetensors";
const SHARD_1: &str = "rank-00001/shard-000.safetensors";
const SUMS_0: &str = "rank-00000/shard-000.sums";
const SUMS_1: &str = "rank-00001/shard-000.sums";

const RANGE_OF_A: &str = "DIR/rank-00000/shard-000.safetensors is damaged in bytes 0..4194304, \
                          which hold a:param (elements 0..1047552 of [0, 0]+[1100, 1000]): CRC32C \
                          is # recorded is #";

#[test]
fn shards_that_are_cut_or_longer() {
    let disk = three_saves();
    let shard = path(NEWER, SHARD_1);
    let resized = |bytes: usize| told(&disk, |d| d.tamper(&shard, |old| old.resize(bytes, 0)));
    let whole = bytes_of(&disk, &shard).len();
    for bytes in [0, RANGE_BYTES as usize, whole - 1, whole + 1, 2 * RANGE_BYTES as usize] {
        let expected = format!("DIR/{SHARD_1} has {bytes} bytes instead of {whole}");
        assert_eq!(resized(bytes), expected);
    }
    // Cut after it was opened, which no look at lengths finds.
    let cut = disk.fork();
    let open =
        Checkpoint::open_on(Arc::new(cut.clone()), Path::new("/runs").join(NEWER.dir_name()));
    cut.tamper(&shard, |old| old.truncate(RANGE_BYTES as usize));
    let error = contents(&open.unwrap()).unwrap_err().to_string();
    assert!(error.ends_with(&format!("has 4194304 bytes instead of {whole}")), "{error}");
}

#[test]
fn tables_manifest_and_commit_that_are_cut_or_longer() {
    let disk = three_saves();
    for file in [SUMS_0, "manifest.json"] {
        let whole = bytes_of(&disk, &path(NEWER, file)).len();
        for bytes in [0, 1, whole - 1, whole + 1] {
            let resize = |d: &MemDisk| d.tamper(&path(NEWER, file), |old| old.resize(bytes, b' '));
            let expected = format!("DIR/{file} has {bytes} bytes instead of {whole}");
            assert_eq!(told(&disk, resize), expected);
        }
    }
    let whole = bytes_of(&disk, &path(NEWER, "COMMIT")).len();
    for bytes in [0, 1, whole - 1, whole + 1] {
        let resize = |d: &MemDisk| d.tamper(&path(NEWER, "COMMIT"), |old| old.resize(bytes, b' '));
        let text = told(&disk, resize);
        assert!(text.starts_with("DIR/COMMIT is damaged: "), "{text}");
    }
}

#[test]
fn shards_of_one_length_that_are_exchanged() {
    let disk = three_saves();
    let swap = |d: &MemDisk, one: &str, other: &str| {
        let [one, other] = [one, other].map(|file| path(NEWER, file));
        let kept = bytes_of(d, &one);
        put(d, &one, &other);
        d.tamper(&other, |old| *old = kept);
    };
    assert_eq!(told(&disk, |d| swap(d, SHARD_0, SHARD_1)), RANGE_OF_A);
    // With their tables, so that each shard fits its table.
    let both = told(&disk, |d| {
        swap(d, SHARD_0, SHARD_1);
        swap(d, SUMS_0, SUMS_1);
    });
    assert_eq!(both, format!("DIR/{SUMS_0} is damaged: BLAKE3 is # recorded is #"));
}

#[test]
fn a_shard_in_the_place_of_another() {
    let disk = three_saves();
    let double = |d: &MemDisk| put(d, &path(NEWER, SHARD_0), &path(NEWER, SHARD_1));
    assert_eq!(told(&disk, double), RANGE_OF_A);
}

#[test]
fn files_of_another_step_or_generation() {
    let disk = three_saves();
    for stale in [OLDER, AGAIN] {
        let from = |files: &[&str]| {
            told(&disk, |d| {
                files.iter().for_each(|file| put(d, &path(NEWER, file), &path(stale, file)));
            })
        };
        assert_eq!(from(&[SHARD_0]), RANGE_OF_A);
        let digest = |file: &str| format!("DIR/{file} is damaged: BLAKE3 is # recorded is #");
        assert_eq!(from(&[SUMS_0]), digest(SUMS_0));
        assert_eq!(from(&[SHARD_0, SUMS_0]), digest(SUMS_0));
        assert_eq!(from(&["manifest.json"]), digest("manifest.json"));
        assert_eq!(from(&["COMMIT"]), digest("manifest.json"));
        // A whole pair is another attempt, whatever lies beside it.
        let pair = ["COMMIT", "manifest.json"];
        let holds = format!(
            "DIR holds step {} of generation {}: it was renamed, or copied under another name; \
             rename it to {}, or remove it if that is there",
            stale.step,
            stale.generation,
            stale.dir_name()
        );
        assert_eq!(from(&pair), holds);
        assert_eq!(from(&[pair[0], pair[1], SHARD_0, SUMS_0]), holds);
    }
}

#[test]
fn another_attempts_manifest_in_a_directory_of_any_name() {
    let disk = three_saves();
    disk.copy(&format!("/runs/{}", NEWER.dir_name()), "/runs/best");
    for file in ["COMMIT", "manifest.json"] {
        put(&disk, &format!("/runs/best/{file}"), &path(OLDER, file));
    }
    let error = Checkpoint::open_on(Arc::new(disk), "/runs/best").unwrap_err();
    let text = error.to_string();
    let expected = "/runs/best/rank-00000/shard-000.sums is damaged: BLAKE3 is ";
    assert!(text.starts_with(expected), "{text}");
}

#[test]
fn a_safetensors_file_of_another_program_under_our_name() {
    let disk = three_saves();
    let shard = path(NEWER, SHARD_0);
    let whole = bytes_of(&disk, &shard).len();
    let header = br#"{"a":{"dtype":"U8","shape":[16],"data_offsets":[0,16]}}"#;
    let mut foreign = (header.len() as u64).to_le_bytes().to_vec();
    foreign.extend_from_slice(header);
    foreign.resize(foreign.len() + 16, 0);
    let short = told(&disk, |d| d.tamper(&shard, |old| old.clone_from(&foreign)));
    let expected = format!("DIR/{SHARD_0} has {} bytes instead of {whole}", foreign.len());
    assert_eq!(short, expected);
    foreign.resize(whole, 0);
    assert_eq!(told(&disk, |d| d.tamper(&shard, |old| *old = foreign)), RANGE_OF_A);
}

#[test]
fn a_run_that_saves_a_step_again_goes_on_from_the_later_one() {
    let disk = MemDisk::new();
    save_on(&disk, NEWER, 2);
    save_on(&disk, AGAIN, 3);
    let store = Store::on(Arc::new(disk.clone()), "/runs");
    assert_eq!(store.newest().unwrap().checkpoint.unwrap().attempt(), AGAIN);
    // The later one's shard lost: the earlier one is whole, and of its own values alone.
    disk.remove(&path(AGAIN, SHARD_1));
    let newest = store.newest().unwrap();
    assert_eq!(newest.checkpoint.as_ref().unwrap().attempt(), NEWER);
    assert_eq!(contents(&newest.checkpoint.unwrap()).unwrap(), support::wanted(&alike(2).1));
    let told = newest.skipped[0].reason.to_string();
    assert_eq!(told, format!("{} is missing", path(AGAIN, SHARD_1)));
}
