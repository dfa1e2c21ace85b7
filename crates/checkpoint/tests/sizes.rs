//! No size that a file claims takes memory before it is found true, and what a load or a reshape
//! takes does not grow with the largest tensor.
//!
//! The tests hold a lock, because they look at what all threads have allocated.

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use checkpoint::{
    Attempt, Checkpoint, Digest, Dtype, Error, RANGE_BYTES, Region, Reshape, ReshapeOptions, Store,
    Wanted, WriteOptions, verify,
};
use layout::{LogicalTensor, Role, Schema};
use serde_json::{Value, json};
use support::{Rng, State, save, small_model};

/// Bytes allocated now, and the most since the last look.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged; counting touches no memory of its
// own.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        MOST.fetch_max(now, Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The most bytes that `act` has allocated at a time, beyond those of before.
fn taken<T>(act: impl FnOnce() -> T) -> (T, usize) {
    let before = NOW.load(Ordering::Relaxed);
    MOST.store(before, Ordering::Relaxed);
    let result = act();
    (result, MOST.load(Ordering::Relaxed).saturating_sub(before))
}

const AT: Attempt = Attempt { step: 7, generation: 1 };
/// Enough for a small manifest and some buffers of ranges.
const LITTLE: usize = 48 << 20;

fn saved() -> (tempfile::TempDir, PathBuf) {
    let root = tempfile::tempdir().unwrap();
    let store = Store::new(root.path());
    store.claim_generation().unwrap();
    save(&store, AT, 2, &small_model(1), &WriteOptions::default()).unwrap();
    let dir = root.path().join(AT.dir_name());
    (root, dir)
}

/// Writes a `COMMIT` that claims this of the manifest, with a right sum of its own.
fn commit(dir: &Path, bytes: u64, digest: Digest) {
    let lines = format!("muster-checkpoint 1\nmanifest-bytes {bytes}\nmanifest-blake3 {digest}\n");
    let sum = crc_fast::crc32_iscsi(lines.as_bytes());
    fs::write(dir.join("COMMIT"), format!("{lines}crc32c {sum:08x}\n")).unwrap();
}

/// Changes the manifest, and lets all that vouches for it agree.
fn rewrite(dir: &Path, change: impl FnOnce(&mut Value)) {
    let path = dir.join("manifest.json");
    let mut manifest: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut manifest);
    let bytes = serde_json::to_vec(&manifest).unwrap();
    commit(dir, bytes.len() as u64, Digest::of(&bytes));
    fs::write(path, bytes).unwrap();
}

fn opened(dir: &Path) -> String {
    let (error, bytes) = taken(|| Checkpoint::open(dir).unwrap_err());
    assert!(bytes < 1 << 20, "{bytes} bytes: {error}");
    assert!(error.is_damage(), "{error}");
    error.to_string().replace(dir.to_str().unwrap(), "DIR")
}

#[test]
fn a_commit_that_claims_an_endless_manifest() {
    let _alone = alone();
    let (_root, dir) = saved();
    let real = fs::metadata(dir.join("manifest.json")).unwrap().len();
    for claimed in [1 << 40, u64::MAX] {
        commit(&dir, claimed, Digest::of(b""));
        let told = format!("DIR/manifest.json has {real} bytes instead of {claimed}");
        assert_eq!(opened(&dir), told);
    }
}

#[test]
fn a_manifest_that_claims_endless_shards_and_tensors() {
    let _alone = alone();
    let huge = 1_u64 << 50;
    type Change = fn(&mut Value, u64);
    let cases: [(Change, &str); 5] = [
        (|m, huge| m["files"][0]["bytes"] = json!(huge), "shard-000.safetensors has "),
        (|m, huge| m["tensors"][0]["shape"][0] = json!(huge), "no chunk holds "),
        (|m, _| m["tensors"][0]["shape"][0] = json!(u64::MAX), "is too large"),
        (|m, huge| m["tensors"][0]["chunks"][0]["shape"][0] = json!(huge), "is empty or outside"),
        (|m, huge| m["tensors"][0]["chunks"][0]["range"][1] = json!(huge), "cannot be bytes "),
    ];
    for (change, told) in cases {
        let (_root, dir) = saved();
        rewrite(&dir, |manifest| change(manifest, huge));
        let error = opened(&dir);
        assert!(error.contains(told), "{told}: {error}");
    }
    // Of no elements, whatever its other extents say.
    let (_root, dir) = saved();
    rewrite(&dir, |manifest| {
        let last = manifest["tensors"].as_array().unwrap().len() - 1;
        manifest["tensors"][last]["shape"] = json!([0, huge]);
        manifest["schema"] = json!([]);
    });
    let checkpoint = Checkpoint::open(&dir).unwrap();
    let key = checkpoint.tensors().last().unwrap().key();
    let (read, bytes) = taken(|| checkpoint.read_tensor(&key).unwrap());
    assert!(read.is_empty() && bytes < 1 << 20, "{bytes}");
}

#[test]
fn a_table_of_sums_that_claims_an_endless_shard() {
    let _alone = alone();
    let (_root, dir) = saved();
    let path = dir.join("rank-00000/shard-000.sums");
    let mut table = fs::read(&path).unwrap();
    table[16..24].copy_from_slice(&u64::MAX.to_le_bytes());
    fs::write(&path, &table).unwrap();
    let digest = Digest::of(&table);
    rewrite(&dir, |manifest| manifest["files"][0]["sums_blake3"] = json!(digest));
    let told = opened(&dir);
    assert!(told.starts_with("DIR/rank-00000/shard-000.sums is not a sums table: "), "{told}");
}

/// A shard of zeros but for its first bytes, which all vouch for.
fn shard_of(dir: &Path, header: u64, bytes: u64) {
    let path = dir.join("rank-00000/shard-000.safetensors");
    let file = fs::File::create(&path).unwrap();
    file.set_len(bytes).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &header.to_le_bytes(), 0).unwrap();
    let mut table = b"MUSTSUMS".to_vec();
    table.extend_from_slice(&1_u32.to_le_bytes());
    table.extend_from_slice(&(RANGE_BYTES as u32).to_le_bytes());
    table.extend_from_slice(&bytes.to_le_bytes());
    let mut range = vec![0; RANGE_BYTES as usize];
    range[..8].copy_from_slice(&header.to_le_bytes());
    for start in (0..bytes).step_by(RANGE_BYTES as usize) {
        let end = (bytes - start).min(RANGE_BYTES) as usize;
        table.extend_from_slice(&crc_fast::crc32_iscsi(&range[..end]).to_le_bytes());
        range[..8].fill(0);
    }
    fs::write(dir.join("rank-00000/shard-000.sums"), &table).unwrap();
    let digest = Digest::of(&table);
    rewrite(dir, |manifest| {
        manifest["files"][0]["bytes"] = json!(bytes);
        manifest["files"][0]["sums_blake3"] = json!(digest);
        manifest["files"][0]["data_blake3"] = Value::Null;
    });
}

#[test]
fn a_shard_that_claims_a_header_as_long_as_itself() {
    let _alone = alone();
    let bytes = 160 << 20;
    for header in [bytes - 8, u64::MAX - 8] {
        let (_root, dir) = saved();
        shard_of(&dir, header, bytes);
        let (report, taken) = taken(|| verify(&dir, false).unwrap());
        assert!(matches!(report.problems[..], [Error::ShardHeader { .. }]), "{report:?}");
        assert!(taken < LITTLE, "{taken}");
    }
}

/// A header that names a tensor twice, of which readers take one or the other, or neither.
#[test]
fn a_shard_whose_header_has_a_key_twice_is_told() {
    let _alone = alone();
    let (_root, dir) = saved();
    let path = dir.join("rank-00000/shard-000.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let text = String::from_utf8_lossy(&bytes[8..4096]).trim_end().to_owned();
    let entry = "\"layers.0.weight:param[0,0]\":";
    let start = text.find(entry).unwrap();
    let end = start + text[start..].find('}').unwrap() + 1;
    let header = format!("{},{}", text.strip_suffix('}').unwrap(), &text[start..end]) + "}";
    bytes[8..4096].fill(b' ');
    bytes[8..8 + header.len()].copy_from_slice(header.as_bytes());
    fs::write(&path, &bytes).unwrap();
    let table = dir.join("rank-00000/shard-000.sums");
    let mut sums = fs::read(&table).unwrap();
    sums[24..28].copy_from_slice(&crc_fast::crc32_iscsi(&bytes).to_le_bytes());
    fs::write(&table, &sums).unwrap();
    let digest = Digest::of(&sums);
    rewrite(&dir, |manifest| manifest["files"][0]["sums_blake3"] = json!(digest));
    let report = verify(&dir, false).unwrap();
    let told = report.problems[0].to_string();
    assert!(told.contains("`layers.0.weight:param[0,0]` is there twice"), "{told}");
}

/// Hosts ran out of memory while they saved or converted (bigcode 69, Megatron-Bridge 1783).
#[test]
fn memory_does_not_grow_with_the_largest_tensor() {
    let _alone = alone();
    let mut most = Vec::new();
    for rows in [4 << 10, 12 << 10] {
        let root = tempfile::tempdir().unwrap();
        let (from, to) = (Store::new(root.path().join("a")), Store::new(root.path().join("b")));
        let shape = [rows, 2 << 10];
        let tensor = LogicalTensor::new("w", &shape, Role::Matrix);
        let state = State::new("w", "param", Dtype::F32, &shape, &mut Rng(1));
        from.claim_generation().unwrap();
        let model = (Schema::new(vec![tensor]).unwrap(), vec![state]);
        save(&from, AT, 1, &model, &WriteOptions::default()).unwrap();
        drop(model);
        let checkpoint = from.open(AT).unwrap();
        let (key, whole) = (checkpoint.tensors()[0].key(), Region::whole(&shape));
        let wanted = [Wanted { key, dtype: Dtype::F32, region: whole }];
        let ((), loading) = taken(|| {
            checkpoint.read_boxes::<Error>(&wanted, 2, |_, _, _| Ok(())).unwrap();
        });
        // Rows become columns.
        let half = Region::new(&[0, 0], &[rows, 1 << 10]);
        let other = Region::new(&[0, 1 << 10], &[rows, 1 << 10]);
        let ranks = vec![vec![(0, half)], vec![(0, other)]];
        let options = ReshapeOptions { threads: 2, wave_bytes: 1 << 30 };
        let ((), cutting) = taken(|| {
            Reshape::new(&checkpoint, &to, &ranks, options).run(&|_| ()).unwrap();
        });
        assert!(loading < LITTLE && cutting < LITTLE, "{rows} rows: {loading}, {cutting}");
        most.push((loading, cutting));
    }
    // 32 and 96 MiB of data.
    let [(load, cut), (more_load, more_cut)] = most[..] else { panic!("{most:?}") };
    // Threads take their buffers when they like.
    let slack = 12 << 20;
    assert!(more_load < load + slack && more_cut < cut + slack, "{most:?}");
}
