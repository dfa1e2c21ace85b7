//! Whatever lies where a checkpoint's files should be, a reader ends, says what it is, and takes
//! nothing for damaged that it only could not read.

mod support;

#[allow(dead_code)] // The one on the disk is another test's.
#[path = "support/fixture.rs"]
mod fixture;

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use checkpoint::disk::Free;
use checkpoint::{
    Attempt, Checkpoint, Error, Proof, Status, Store, TensorKey, WriteOptions, verify, verify_on,
};
use support::mem_disk::{Fault, MemDisk};
use support::{State, save, small_model};

const FIRST: Attempt = Attempt { step: 7, generation: 1 };
const SECOND: Attempt = Attempt { step: 9, generation: 1 };

/// Far more than a reader needs that does not wait for anything.
const PATIENCE: Duration = Duration::from_secs(120);

/// A store on the real file system with the fixture in it, and the fixture's directory.
fn real() -> (tempfile::TempDir, Store, PathBuf) {
    let root = tempfile::tempdir().unwrap();
    let store = Store::new(root.path());
    fixture::write(&store).unwrap();
    let dir = root.path().join(fixture::ATTEMPT.dir_name());
    (root, store, dir)
}

/// Opens, lists and verifies, and panics where that hangs.
fn look(store: &Store, dir: &Path) -> (Error, Status, Vec<Error>) {
    let (tell, told) = mpsc::channel();
    let (store, dir) = (store.clone(), dir.to_owned());
    std::thread::spawn(move || {
        let error = Checkpoint::open(&dir).unwrap_err();
        let status = store.list().unwrap().pop().unwrap().status;
        let _ = tell.send((error, status, verify(&dir, true).unwrap().problems));
    });
    told.recv_timeout(PATIENCE).expect("the reader hangs, or has failed")
}

const FILES: [&str; 4] =
    ["COMMIT", "manifest.json", "rank-00000/shard-000.safetensors", "rank-00000/shard-000.sums"];

#[test]
fn what_is_no_file_is_named_and_not_waited_for() {
    for file in FILES {
        for kind in ["pipe", "directory", "device"] {
            let (_root, store, dir) = real();
            let path = dir.join(file);
            fs::remove_file(&path).unwrap();
            match kind {
                "pipe" => assert!(Command::new("mkfifo").arg(&path).status().unwrap().success()),
                "directory" => fs::create_dir(&path).unwrap(),
                _ => symlink("/dev/zero", &path).unwrap(),
            }
            let (error, status, problems) = look(&store, &dir);
            assert_eq!(error.to_string(), format!("{} is a {kind}, not a file", path.display()));
            assert!(error.is_damage() && matches!(status, Status::Corrupt(_)), "{status:?}");
            assert_eq!(problems.len(), 1);
        }
    }
}

#[test]
fn endless_files_are_not_read() {
    for file in FILES {
        let (_root, store, dir) = real();
        let path = dir.join(file);
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        if file.set_len(1 << 42).is_err() {
            // Not every file system holds so long a hole.
            file.set_len(1 << 33).unwrap();
        }
        let (error, ..) = look(&store, &dir);
        assert!(matches!(error, Error::Commit { .. } | Error::FileLength { .. }), "{error}");
    }
}

#[test]
fn a_link_to_nowhere_may_lead_somewhere_again() {
    for file in FILES.iter().copied().chain(["rank-00000"]) {
        let (root, store, dir) = real();
        let (path, elsewhere) = (dir.join(file), root.path().join("elsewhere"));
        fs::rename(&path, &elsewhere).unwrap();
        symlink(&elsewhere, &path).unwrap();
        let report = verify(&dir, true).unwrap();
        assert!(report.is_whole() && report.strangers.is_empty(), "{report:?}");
        let bytes = store.list().unwrap()[0].bytes;
        fs::rename(&elsewhere, root.path().join("gone")).unwrap();
        let (error, status, problems) = look(&store, &dir);
        let text = error.to_string();
        let expected = format!("{} is a link to {}, which", path.display(), elsewhere.display());
        assert!(text.starts_with(&expected), "{text}");
        assert!(!error.is_damage() && matches!(status, Status::Unreadable(_)), "{status:?}");
        assert!(!problems[0].is_damage());
        assert!(store.list().unwrap()[0].bytes < bytes);
        assert!(matches!(store.newest(), Err(Error::DanglingLink { .. })));
        assert!(store.retain(1, Proof::EveryByte).unwrap().is_empty());
        fs::rename(root.path().join("gone"), &elsewhere).unwrap();
        assert!(verify(&dir, true).unwrap().is_whole());
    }
}

#[test]
fn a_linked_checkpoint_counts_and_only_its_link_is_removed() {
    let (root, store, dir) = real();
    let elsewhere = root.path().join("elsewhere");
    fs::rename(&dir, &elsewhere).unwrap();
    symlink(&elsewhere, &dir).unwrap();
    assert!(matches!(store.list().unwrap()[0].status, Status::Committed));
    assert_eq!(store.newest().unwrap().checkpoint.unwrap().attempt(), fixture::ATTEMPT);
    let newer = Attempt { step: fixture::ATTEMPT.step + 1, ..fixture::ATTEMPT };
    save(&store, newer, 2, &small_model(1), &WriteOptions::default()).unwrap();
    assert_eq!(store.retain(1, Proof::EveryByte).unwrap(), std::slice::from_ref(&dir));
    assert!(dir.symlink_metadata().is_err());
    assert!(verify(&elsewhere, true).unwrap().is_whole());
}

#[test]
fn a_checkpoint_under_another_ones_name_is_not_that_one() {
    let disk = MemDisk::new();
    let store = Store::on(Arc::new(disk.clone()), "/checkpoints");
    store.claim_generation().unwrap();
    save(&store, FIRST, 2, &small_model(1), &WriteOptions::default()).unwrap();
    for claims in [SECOND, Attempt { generation: 2, ..FIRST }] {
        let disk = disk.fork();
        let (from, to) = (FIRST.dir_name(), claims.dir_name());
        disk.copy(&format!("/checkpoints/{from}"), &format!("/checkpoints/{to}"));
        let store = Store::on(Arc::new(disk.clone()), "/checkpoints");
        let newest = store.newest().unwrap();
        assert_eq!(newest.checkpoint.unwrap().attempt(), FIRST);
        assert_eq!(
            newest.skipped[0].reason.to_string(),
            format!(
                "/checkpoints/{to} holds step 7 of generation 1: it was renamed, or copied under \
                 another name; rename it to step-00000007.g0001, or remove it if that is there"
            )
        );
        assert!(matches!(store.list().unwrap()[1].status, Status::Corrupt(_)));
        // Somebody's only copy, perhaps.
        save(&store, Attempt { step: 11, generation: 2 }, 2, &small_model(2), &Default::default())
            .unwrap();
        let deleted = store.retain(1, Proof::EveryByte).unwrap();
        assert_eq!(deleted, [Path::new("/checkpoints").join(&from)]);
        // A name that is no attempt's says nothing.
        disk.copy(&format!("/checkpoints/{to}"), "/checkpoints/best");
        let best = Checkpoint::open_on(Arc::new(disk), "/checkpoints/best").unwrap();
        assert_eq!(best.attempt(), FIRST);
    }
}

/// Two checkpoints of one model, on a disk in memory.
fn two_saved() -> (MemDisk, Store) {
    let disk = MemDisk::new();
    let store = Store::on(Arc::new(disk.clone()), "/checkpoints");
    store.claim_generation().unwrap();
    let model = small_model(1);
    save(&store, FIRST, 2, &model, &WriteOptions::default()).unwrap();
    save(&store, SECOND, 2, &model, &WriteOptions::default()).unwrap();
    (disk, store)
}

#[test]
fn what_cannot_be_read_is_not_damaged() {
    let (disk, _) = two_saved();
    let newer = Path::new("/checkpoints").join(SECOND.dir_name());
    let count = |act: &dyn Fn(&Store, MemDisk)| {
        let disk = disk.fork();
        act(&Store::on(Arc::new(disk.clone()), "/checkpoints"), disk.clone());
        disk.operations()
    };
    type Act<'a> = &'a dyn Fn(&Store, MemDisk);
    let list: Act = &|store, _| {
        let Ok(entries) = store.list() else { return };
        assert_eq!(entries.len(), 2);
        assert!(!entries.iter().any(|entry| matches!(entry.status, Status::Corrupt(_))));
    };
    let verify: Act = &|_, disk| {
        let Ok(report) = verify_on(Arc::new(disk), &newer, true) else { return };
        assert!(!report.problems.iter().any(Error::is_damage), "{:?}", report.problems);
    };
    // Of two that are whole, what cannot be read is kept, and the older one then, too.
    let retain: Act = &|store, disk| {
        let _ = store.retain(1, Proof::EveryByte);
        assert!(disk.files().iter().any(|(path, _)| Path::new(path) == newer.join("COMMIT")));
    };
    for act in [list, verify, retain] {
        let operations = count(act);
        assert!(operations > 10);
        for kind in [ErrorKind::PermissionDenied, ErrorKind::Other, ErrorKind::TimedOut] {
            for operation in 0..operations {
                let disk = disk.fork();
                disk.inject(operation, Fault::Fail(kind));
                act(&Store::on(Arc::new(disk.clone()), "/checkpoints"), disk.clone());
            }
        }
    }
}

#[test]
fn what_is_removed_while_it_is_read_is_said_to_be() {
    let (disk, store) = two_saved();
    let older = store.open(FIRST).unwrap();
    assert_eq!(store.retain(1, Proof::EveryByte).unwrap().len(), 1);
    let key: &TensorKey = &small_model(1).1[0].key;
    let error = older.read_tensor(key).unwrap_err();
    assert_eq!(
        error.to_string(),
        "/checkpoints/step-00000007.g0001 was removed while it was being read; a run keeps its \
         newest checkpoints only (checkpoint.keep)"
    );
    // Without a shard, a commit that stands is damaged.
    let newer = store.open(SECOND).unwrap();
    disk.remove("/checkpoints/step-00000009.g0001/rank-00001/shard-000.safetensors");
    let error = newer.read_tensor(key).unwrap_err();
    assert!(matches!(error, Error::MissingFile { .. }), "{error}");
}

#[test]
fn the_highest_generation_is_not_counted_beyond() {
    for name in ["generation-4294967295", "step-00000007.g4294967295"] {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join(name)).unwrap();
        let error = Store::new(root.path()).claim_generation().unwrap_err();
        assert!(matches!(error, Error::LastGeneration { .. }), "{error}");
        assert!(error.to_string().contains(name), "{error}");
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
    }
}

#[test]
fn a_generation_claimed_at_the_last_moment_still_fences() {
    let disk = MemDisk::new();
    let store = Store::on(Arc::new(disk.clone()), "/checkpoints");
    store.claim_generation().unwrap();
    save(&store, FIRST, 2, &small_model(1), &WriteOptions::default()).unwrap();
    disk.make_before_link("/checkpoints/generation-0002");
    let error = save(&store, SECOND, 2, &small_model(2), &WriteOptions::default()).unwrap_err();
    assert!(matches!(error, Error::Fenced { ours: 1, newest: 2, .. }), "{error}");
    assert_eq!(store.newest().unwrap().checkpoint.unwrap().attempt(), FIRST);
}

#[test]
fn a_full_disk_says_what_has_run_out() {
    let disk = MemDisk::new();
    let store = Store::on(Arc::new(disk.clone()), "/checkpoints");
    store.claim_generation().unwrap();
    let model = small_model(1);
    let told = |free: Option<Free>, kind: ErrorKind| {
        let disk = disk.fork();
        if let Some(free) = free {
            disk.say_free(free);
        }
        // The rank's directory.
        disk.inject(2, Fault::Fail(kind));
        let store = Store::on(Arc::new(disk.clone()), "/checkpoints");
        let boxes: Vec<State> = model.1.clone();
        let error = support::save_rank(&store, FIRST, (0, 1), &boxes, &WriteOptions::default());
        let text = error.unwrap_err().to_string();
        let text = text.strip_prefix("disk full writing /checkpoints/step-00000007.g0001/rank-");
        let (_, text) = text.unwrap().split_once(": ").unwrap();
        let (reason, rest) = text.split_once("; older").unwrap();
        assert!(rest.starts_with(" checkpoints are intact"), "{rest}");
        let (start, end) = reason.split_once(" more bytes are needed").unwrap();
        let start = start.trim_end_matches(|c: char| c.is_ascii_digit());
        format!("{start}N more bytes are needed{end}")
    };
    let full = ErrorKind::StorageFull;
    let free = |bytes, files| Some(Free { bytes, files });
    let all = [
        told(None, full),
        told(free(100_000_000, Some(0)), full),
        told(free(100_000_000, Some(9)), full),
        told(free(100_000_000, None), ErrorKind::QuotaExceeded),
        told(free(100, Some(9)), full),
    ];
    let expected = [
        "N more bytes are needed and an unknown number are free",
        "no more files can be made there, as all inodes of the file system are in use; N more \
         bytes are needed, and 100000000 bytes are free",
        "it takes no more although 100000000 bytes are free and N more bytes are needed: a limit \
         of its own, or of this user, is reached",
        "this user's quota is used up; N more bytes are needed, and 100000000 bytes of the disk \
         are free for others",
        "N more bytes are needed and 100 are free",
    ];
    assert_eq!(all, expected);
}
