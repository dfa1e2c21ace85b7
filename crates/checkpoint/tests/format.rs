//! The format itself: shards that any safetensors reader loads, a fixture that never changes,
//! versions that are refused, and the real file system.

#[path = "support/fixture.rs"]
mod fixture;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use checkpoint::{Checkpoint, Error, Proof, Store, verify};
use safetensors::SafeTensors;

/// Every file below a directory, by relative path.
fn files(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut pending = vec![root.to_path_buf()];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                pending.push(path);
            } else {
                files.insert(
                    path.strip_prefix(root).unwrap().to_path_buf(),
                    fs::read(&path).unwrap(),
                );
            }
        }
    }
    files
}

fn committed_fixture() -> PathBuf {
    Path::new(fixture::ROOT).join(fixture::ATTEMPT.dir_name())
}

#[test]
fn the_fixture_of_version_1_reads_exactly() {
    let checkpoint = Checkpoint::open(committed_fixture()).unwrap();
    assert_eq!(checkpoint.attempt(), fixture::ATTEMPT);
    assert_eq!(checkpoint.manifest().format_version, 1);
    assert_eq!(checkpoint.schema(), fixture::schema());
    assert_eq!(checkpoint.run_state(), &fixture::run_state());
    let tensors = fixture::tensors();
    assert_eq!(checkpoint.tensors().len(), tensors.len());
    for kept in tensors {
        let stored = checkpoint.tensor(&kept.key).unwrap();
        assert_eq!((stored.dtype, &stored.shape), (kept.dtype, &kept.shape));
        assert_eq!(checkpoint.read_tensor(&kept.key).unwrap(), kept.bytes, "{}", kept.key);
    }
    let report = verify(committed_fixture(), true).unwrap();
    assert!(report.is_whole(), "{:?}", report.problems);
    assert_eq!((report.shards, report.digests_compared, report.strangers.len()), (3, 3, 0));
}

#[test]
fn todays_writer_makes_the_bytes_of_the_fixture() {
    let root = tempfile::tempdir().unwrap();
    fixture::write(&Store::new(root.path())).unwrap();
    let written = files(&root.path().join(fixture::ATTEMPT.dir_name()));
    let kept = files(&committed_fixture());
    assert_eq!(written.keys().collect::<Vec<_>>(), kept.keys().collect::<Vec<_>>());
    for (path, bytes) in &kept {
        assert!(written[path] == *bytes, "{} differs", path.display());
    }
}

#[test]
fn every_shard_is_a_safetensors_file_with_large_chunks_on_pages() {
    let checkpoint = Checkpoint::open(committed_fixture()).unwrap();
    let manifest = checkpoint.manifest();
    let mut seen = 0;
    for (number, file) in manifest.files.iter().enumerate() {
        let bytes = fs::read(committed_fixture().join(&file.path)).unwrap();
        let (header_bytes, _) = SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!((header_bytes + 8) % 4096, 0);
        let shard = SafeTensors::deserialize(&bytes).unwrap();
        for tensor in &manifest.tensors {
            for chunk in tensor.chunks.iter().filter(|chunk| chunk.file as usize == number) {
                let view = shard.tensor(&tensor.key().chunk_name(&chunk.region())).unwrap();
                assert_eq!(view.shape(), chunk.shape);
                assert_eq!(view.dtype().to_string(), tensor.dtype.name());
                let [start, end] = chunk.range.map(|at| at as usize);
                assert_eq!(view.data(), &bytes[start..end]);
                assert_eq!(start % tensor.dtype.size_bytes(), 0);
                if (end - start) % 4096 == 0 {
                    assert_eq!(start % 4096, 0);
                }
                seen += 1;
            }
        }
        assert_eq!(
            shard.len(),
            manifest
                .tensors
                .iter()
                .flat_map(|t| &t.chunks)
                .filter(|chunk| chunk.file as usize == number)
                .count()
        );
    }
    assert_eq!(seen, 7);
}

/// A copy of the fixture whose `COMMIT` has been replaced.
fn with_commit(text: &str, with_checksum: bool) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    fixture::write(&Store::new(root.path())).unwrap();
    let path = root.path().join(fixture::ATTEMPT.dir_name()).join("COMMIT");
    fs::remove_file(&path).unwrap();
    let sum = format!("crc32c {:08x}\n", crc_fast::crc32_iscsi(text.as_bytes()));
    fs::write(&path, format!("{text}{}", if with_checksum { &sum } else { "" })).unwrap();
    root
}

#[test]
fn a_later_version_is_refused_and_a_damaged_commit_is_not_taken_for_one() {
    // A later version may say what it likes between the first line and the last.
    let later = with_commit("muster-checkpoint 2\nsomething new\n", true);
    let error = Store::new(later.path()).newest().unwrap_err();
    assert!(matches!(error, Error::UnsupportedVersion { found: 2, .. }), "{error}");
    assert!(error.to_string().ends_with(
        "has checkpoint format version 2; this program reads version 1: use a later Muster"
    ));
    let store = Store::new(later.path());
    store.claim_generation().unwrap();
    assert!(store.retain(1, Proof::EveryByte).unwrap().is_empty(), "it is not ours to delete");
    for (text, sum) in [("muster-checkpoint 2\n", false), ("", true), ("", false), ("x\n", true)] {
        let damaged = with_commit(text, sum);
        let newest = Store::new(damaged.path()).newest().unwrap();
        assert!(newest.checkpoint.is_none());
        assert!(matches!(newest.skipped[0].reason, Error::Commit { .. }), "{newest:?}");
    }
}

#[test]
fn a_life_on_the_real_file_system() {
    let parent = tempfile::tempdir().unwrap();
    // Nothing exists yet, and asking is no error.
    let store = Store::new(parent.path().join("runs/first/checkpoints"));
    assert!(store.newest().unwrap().checkpoint.is_none());
    assert!(store.list().unwrap().is_empty());
    assert_eq!(store.claim_generation().unwrap(), 1);
    assert_eq!(store.claim_generation().unwrap(), 2);
    fixture::write(&store).unwrap();
    let commit = store.root().join(fixture::ATTEMPT.dir_name()).join("COMMIT");
    assert_eq!(fs::metadata(&commit).unwrap().nlink(), 1, "the temporary is gone");
    assert!(matches!(fixture::write(&store), Err(Error::AlreadyCommitted { .. })));
    let newest = store.newest().unwrap();
    assert_eq!(newest.checkpoint.unwrap().attempt(), fixture::ATTEMPT);

    let entry = &store.list().unwrap()[0];
    let on_disk: usize = files(&entry.path).values().map(Vec::len).sum();
    assert_eq!(entry.bytes, Some(on_disk as u64));
    assert!(store.retain(1, Proof::EveryByte).unwrap().is_empty());
    let names: Vec<_> =
        fs::read_dir(store.root()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names.len(), 1, "claims below generation 3 are gone: {names:?}");
    // The fixture's generation, 3, is the highest seen.
    assert_eq!(store.claim_generation().unwrap(), 4);

    let shard = entry.path.join("rank-00001/shard-000.safetensors");
    let length = fs::metadata(&shard).unwrap().len();
    fs::OpenOptions::new().write(true).open(&shard).unwrap().set_len(length - 1).unwrap();
    let report = verify(&entry.path, false).unwrap();
    assert!(matches!(report.problems[..], [Error::FileLength { .. }]), "{:?}", report.problems);
    fs::remove_file(&shard).unwrap();
    let report = verify(&entry.path, false).unwrap();
    assert_eq!(report.problems[0].to_string(), format!("{} is missing", shard.display()));
    let error = verify(parent.path().join("nowhere"), false).unwrap_err();
    assert!(matches!(error, Error::MissingFile { .. }), "{error}");
}

#[test]
fn two_processes_never_claim_one_generation() {
    let root = tempfile::tempdir().unwrap();
    let claim = || Store::new(root.path()).claim_generation().unwrap();
    let mut claimed: Vec<u32> = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..16).map(|_| scope.spawn(claim)).collect();
        handles.into_iter().map(|handle| handle.join().unwrap()).collect()
    });
    claimed.sort_unstable();
    assert_eq!(claimed, (1..=16).collect::<Vec<u32>>());
}
