//! Every single flipped bit is told, wherever it lies: a hundred thousand places of data, tables
//! of sums, manifest and `COMMIT` of a checkpoint with all kinds of tensors.
//!
//! ```text
//! COMMIT, sums tables, first and last KiB of the manifest ─▶ every bit
//! rest of the manifest, shards                            ─▶ places of a seed
//! ```
//! A reader that gives out all tensors reads all of a checkpoint's bytes but the padding of a
//! header whose range holds no data, and there is none: data begin in the range in which the
//! header ends. So there is no bit whose flip is legal: even a header's blanks lie under a sum.

mod support;

use std::ops::Range;
use std::sync::Arc;

use checkpoint::{
    Attempt, Checkpoint, Dtype, Error, RANGE_BYTES, Region, Store, TensorKey, WriteOptions,
    verify_on,
};
use layout::{LogicalTensor, Role, Schema};
use support::mem_disk::MemDisk;
use support::{Rng, State, contents, cut, save, wanted};

const AT: Attempt = Attempt { step: 7, generation: 1 };
const DIR: &str = "/checkpoints/step-00000007.g0001";

/// Places in small shards, in the one of several ranges, and in the middle of the manifest.
const SMALL_FLIPS: usize = 60_000;
const LARGE_FLIPS: usize = 1500;
const MANIFEST_FLIPS: usize = 20_000;

/// Tensors of every kind on three ranks. The last rank holds a tensor of several ranges, and
/// nothing else, so that the others' shards are read in no time.
fn every_kind() -> (Schema, Vec<State>) {
    let mut rng = Rng(12);
    let mut logical = Vec::new();
    let mut states = Vec::new();
    let mut add = |name: &str, role: Role, shape: &[usize], slots: &[(&str, Dtype)]| {
        logical.push(LogicalTensor::new(name, shape, role));
        for (slot, dtype) in slots {
            let mut state = State::new(name, slot, *dtype, shape, &mut rng);
            let boxes = cut(Region::whole(shape), 2, &mut rng);
            state.boxes = boxes.into_iter().zip([0, 1, 0]).map(|(b, rank)| (rank, b)).collect();
            states.push(state);
        }
    };
    let master = ("param", Dtype::F32);
    add("embed", Role::Embedding, &[61, 7], &[master, ("adam_m", Dtype::F32)]);
    for index in 0..3 {
        let role = Role::Expert { index, of: 3 };
        let slots = [master, ("momentum", Dtype::Bf16)];
        add(&format!("experts.{index}.up"), role, &[9, 5], &slots);
    }
    add("quantized", Role::Matrix, &[33, 4], &[("param", Dtype::F8E4M3), ("scale", Dtype::U8)]);
    add("half", Role::Matrix, &[12, 6], &[("param", Dtype::F8E5M2), ("copy", Dtype::F16)]);
    add("norm", Role::Vector, &[5], &[("param", Dtype::Bf16)]);
    add("updates", Role::Vector, &[], &[("param", Dtype::F32), ("count", Dtype::U64)]);
    add("none", Role::Matrix, &[0, 3], &[master]);
    add("large", Role::Matrix, &[1100, 2053], &[master]);
    states.last_mut().unwrap().boxes = vec![(2, Region::whole(&[1100, 2053]))];
    (Schema::new(logical).unwrap(), states)
}

/// The checkpoint on a disk in memory, and what it holds.
struct Saved {
    disk: MemDisk,
    states: Vec<State>,
    files: Vec<(String, usize)>,
}

fn saved() -> Saved {
    let model = every_kind();
    let disk = MemDisk::new();
    let store = Store::on(Arc::new(disk.clone()), "/checkpoints");
    store.claim_generation().unwrap();
    let options = WriteOptions { max_shard_bytes: 900, digest_data: false };
    save(&store, AT, 3, &model, &options).unwrap();
    let files = disk.files().into_iter().map(|(path, bytes)| (path, bytes.len()));
    let files = files.filter(|(path, _)| path.starts_with(DIR)).collect();
    Saved { disk, states: model.1, files }
}

impl Saved {
    fn open(&self) -> Result<Checkpoint, Error> {
        Checkpoint::open_on(Arc::new(self.disk.clone()), DIR)
    }

    fn bytes_of(&self, end: &str) -> usize {
        self.files.iter().find(|(path, _)| path.ends_with(end)).unwrap().1
    }

    /// The outcome of `act` while one bit is flipped.
    fn flipped<T>(&self, path: &str, bit: usize, act: impl FnOnce() -> T) -> T {
        let flip = |bytes: &mut Vec<u8>| bytes[bit / 8] ^= 1 << (bit % 8);
        self.disk.tamper(path, flip);
        let outcome = act();
        self.disk.tamper(path, flip);
        outcome
    }

    /// Flips bits of a file that is read when a checkpoint is opened; all must be errors of it.
    fn flip_structure(&self, path: &str, bits: impl Iterator<Item = usize>) -> usize {
        let check = |bit: usize| {
            let error = self.flipped(path, bit, || self.open()).expect_err(path);
            let place = format!("bit {} of byte {} of {path}", bit % 8, bit / 8);
            assert!(error.is_damage(), "{place}: {error}");
            assert!(error.to_string().contains(path), "{place}: {error}");
        };
        bits.map(check).count()
    }
}

#[test]
fn every_bit_of_commit_and_sums_and_of_both_ends_of_the_manifest() {
    let saved = saved();
    assert_eq!(contents(&saved.open().unwrap()).unwrap(), wanted(&saved.states));
    let mut flips = 0;
    let tables = saved.files.iter().filter(|(path, _)| path.ends_with(".sums"));
    let commit = saved.files.iter().filter(|(path, _)| path.ends_with("/COMMIT"));
    for (path, bytes) in tables.chain(commit) {
        flips += saved.flip_structure(path, 0..8 * bytes);
    }
    let manifest = format!("{DIR}/manifest.json");
    let bits = 8 * saved.bytes_of("/manifest.json");
    assert!(bits > 3 * 8192, "the manifest has a middle");
    flips += saved.flip_structure(&manifest, (0..8192).chain(bits - 8192..bits));
    let mut rng = Rng(34);
    let middle = (0..MANIFEST_FLIPS).map(|_| 8192 + rng.below(bits - 2 * 8192));
    flips += saved.flip_structure(&manifest, middle);
    assert!(flips + SMALL_FLIPS + LARGE_FLIPS >= 100_000, "{flips}");
}

/// A chunk of a shard, in bytes of its file.
struct Held {
    key: TensorKey,
    dtype: Dtype,
    region: Region,
    bytes: Range<u64>,
}

/// The chunks of each shard, by the number of the file.
fn held(checkpoint: &Checkpoint) -> Vec<Vec<Held>> {
    let mut files: Vec<Vec<Held>> = checkpoint.manifest().files.iter().map(|_| vec![]).collect();
    for tensor in checkpoint.tensors() {
        for chunk in &tensor.chunks {
            let [start, end] = chunk.range;
            let (key, dtype, region) = (tensor.key(), tensor.dtype, chunk.region());
            files[chunk.file as usize].push(Held { key, dtype, region, bytes: start..end });
        }
    }
    files
}

/// Reads a chunk of the range in which a bit has been flipped.
fn read_flipped(saved: &Saved, checkpoint: &Checkpoint, path: &str, bit: usize, chunks: &[Held]) {
    let at = bit as u64 / 8;
    let range = at / RANGE_BYTES * RANGE_BYTES;
    let in_range =
        |chunk: &&Held| chunk.bytes.start < range + RANGE_BYTES && chunk.bytes.end > range;
    // The chunk itself, or for a bit of the header any that lies in the same range.
    let itself = chunks.iter().find(|chunk| chunk.bytes.contains(&at));
    let chunk = itself.or_else(|| chunks.iter().find(in_range)).expect("no range is without data");
    // Of a large one the rows in that range alone.
    let row =
        (chunk.bytes.end - chunk.bytes.start) / chunk.region.shape.first().map_or(1, |&n| n as u64);
    let mut region = chunk.region.clone();
    if itself.is_some() && !region.shape.is_empty() {
        region.offset[0] += ((at - chunk.bytes.start) / row) as usize;
        region.shape[0] = 1;
    }
    let mut out = vec![0; region.elements().unwrap() * chunk.dtype.size_bytes()];
    let read = || checkpoint.read_box(&chunk.key, chunk.dtype, &region, &mut out);
    let error = saved.flipped(path, bit, read).expect_err(path);
    let Error::Range { path: told, start, end, holds, .. } = &error else { panic!("{error}") };
    assert_eq!(told.to_str(), Some(path));
    assert!((*start..*end).contains(&at), "{error}");
    if chunks.iter().filter(in_range).count() <= 4 {
        assert!(holds.contains(&format!("{} (elements ", chunk.key)), "{error}");
    } else {
        assert!(holds.contains(" more"), "{error}");
    }
}

#[test]
fn bits_of_all_shards_by_tensor_file_and_range() {
    let saved = saved();
    let checkpoint = saved.open().unwrap();
    let held = held(&checkpoint);
    let paths: Vec<String> =
        checkpoint.manifest().files.iter().map(|file| format!("{DIR}/{}", file.path)).collect();
    let bits: Vec<usize> =
        checkpoint.manifest().files.iter().map(|file| 8 * file.bytes as usize).collect();
    let (large, small): (Vec<usize>, Vec<usize>) =
        (0..bits.len()).partition(|&file| bits[file] > 8 * RANGE_BYTES as usize);
    assert!(large.len() == 1 && small.len() > 6, "{bits:?}");
    let mut rng = Rng(56);
    for number in 0..SMALL_FLIPS {
        let file = small[number % small.len()];
        // Half of them among the data, which a header outweighs.
        let data = 8 * held[file].iter().map(|chunk| chunk.bytes.start).min().unwrap() as usize;
        let bit =
            if rng.coin() { data + rng.below(bits[file] - data) } else { rng.below(bits[file]) };
        read_flipped(&saved, &checkpoint, &paths[file], bit, &held[file]);
    }
    let file = large[0];
    let ends = [0, 8 * RANGE_BYTES as usize - 1, 8 * RANGE_BYTES as usize, bits[file] - 1];
    let places = (0..LARGE_FLIPS).map(|_| rng.below(bits[file]));
    for bit in places.collect::<Vec<_>>().into_iter().chain(ends) {
        read_flipped(&saved, &checkpoint, &paths[file], bit, &held[file]);
    }
    // All is as it was, and nothing of what was read meanwhile is kept as verified.
    assert_eq!(contents(&checkpoint).unwrap(), wanted(&saved.states));
    assert!(verify_on(Arc::new(saved.disk.clone()), DIR, true).unwrap().is_whole());
}
