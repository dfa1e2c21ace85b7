//! Checkpoints on an object store: whatever becomes of whichever request, and of its answer, a
//! reader finds exactly the old checkpoint or the new one.

mod support;

use std::io::ErrorKind;
use std::path::Path;
use std::sync::{Arc, mpsc};

use checkpoint::disk::{Disk, Kind};
use checkpoint::objects::ObjectError;
use checkpoint::{Attempt, Dtype, Error, Proof, Status, Store, WriteOptions, verify_on};
use proptest::prelude::*;
use support::faulty::{FAULTS, Fault, Faulty, PART_BYTES};
use support::{Rng, State, contents, save, small_model, wanted};

const ROOT: &str = "s3://bucket/runs/quickstart";
const WORLD: u32 = 2;

type SavedModel = (layout::Schema, Vec<State>);

fn store(objects: &Faulty) -> Store {
    Store::on(Arc::new(objects.disk()), ROOT)
}

fn at(step: u64, generation: u32) -> Attempt {
    Attempt { step, generation }
}

/// Shards of several parts, two a rank.
fn options() -> WriteOptions {
    WriteOptions { max_shard_bytes: 80, ..WriteOptions::default() }
}

fn save_step(objects: &Faulty, attempt: Attempt, model: &SavedModel) -> Result<(), Error> {
    save(&store(objects), attempt, WORLD, model, &options()).map(|_| ())
}

/// A store with a commit of `old` at step 10.
fn objects_with(old: &SavedModel) -> Faulty {
    let objects = Faulty::new();
    assert_eq!(store(&objects).claim_generation().unwrap(), 1);
    save_step(&objects, at(10, 1), old).unwrap();
    objects.fork()
}

/// The step of the newest checkpoint, after comparing all of it with what was saved.
fn newest_step(objects: &Faulty, old: &SavedModel, new: &SavedModel, context: &str) -> u64 {
    let newest = store(objects).newest().unwrap_or_else(|error| panic!("{context}: {error}"));
    let checkpoint = newest.checkpoint.unwrap_or_else(|| panic!("{context}: nothing to open"));
    let step = checkpoint.run_state().step;
    let model = if step == 10 { old } else { new };
    let read = contents(&checkpoint).unwrap_or_else(|error| panic!("{context}: {error}"));
    assert_eq!(read, wanted(&model.1), "{context}");
    step
}

#[test]
fn a_fault_at_any_request_of_a_save_leaves_the_old_or_the_new() {
    let (old, new) = (small_model(1), small_model(2));
    let base = objects_with(&old);
    let clean = base.fork();
    save_step(&clean, at(20, 1), &new).unwrap();
    let requests = clean.requests();
    assert!(requests > 60, "{requests} requests are too few to be a save");
    let mut seen = [0, 0];
    for fault in FAULTS {
        for request in 0..requests {
            let context = format!("{fault:?} at request {request}");
            let objects = base.fork();
            objects.inject(request, fault);
            let saved = save_step(&objects, at(20, 1), &new);
            let survivor = objects.fork();
            let step = newest_step(&survivor, &old, &new, &context);
            // A save that is told to have succeeded is there.
            assert!(saved.is_err() || step == 20, "{context}");
            seen[usize::from(step == 20)] += 1;
            for entry in store(&survivor).list().unwrap() {
                assert!(!matches!(entry.status, Status::Corrupt(_)), "{context}: {entry:?}");
            }
            // Nobody else is here, so nobody else can have been quicker.
            let blamed =
                matches!(saved, Err(Error::AlreadyExists { .. } | Error::AlreadyCommitted { .. }));
            assert!(!blamed, "{context}: {saved:?}");
            go_on(&survivor, &old, &new, &context);
        }
    }
    assert!(seen[0] > 0 && seen[1] > 0, "both outcomes must occur: {seen:?}");
}

/// A restarted job claims the next generation, saves the same step and cleans up.
fn go_on(objects: &Faulty, old: &SavedModel, new: &SavedModel, context: &str) {
    let generation = store(objects).claim_generation().unwrap();
    assert!(generation >= 2, "{context}");
    save_step(objects, at(20, generation), new).unwrap_or_else(|e| panic!("{context}: {e}"));
    let store = store(objects);
    store.retain(1, Proof::EveryByte).unwrap_or_else(|error| panic!("{context}: {error}"));
    let entries = store.list().unwrap();
    assert_eq!(entries.len(), 1, "{context}");
    assert!(matches!(entries[0].status, Status::Committed), "{context}");
    assert_eq!(newest_step(objects, old, new, context), 20);
    let kept = entries[0].attempt.dir_name();
    let stray = |name: &&String| !name.contains(&kept) && name.contains("/step-");
    assert_eq!(objects.objects().keys().find(stray), None, "{context}");
}

#[test]
fn an_answer_that_is_lost_once_does_not_spoil_a_save_that_can_be_told_from_it() {
    let (old, new) = (small_model(1), small_model(2));
    let base = objects_with(&old);
    let clean = base.fork();
    save_step(&clean, at(20, 1), &new).unwrap();
    let saved = (0..clean.requests()).filter(|request| {
        let objects = base.fork();
        objects.inject(*request, Fault::After);
        save_step(&objects, at(20, 1), &new).is_ok()
    });
    // The commit, the claims of directories, manifest, tables and completions of shards.
    let saved = saved.count();
    assert!(saved >= 14, "only {saved} lost answers were survived");
}

#[test]
fn a_fault_at_any_request_of_a_removal_never_harms_what_is_kept() {
    let (old, new) = (small_model(1), small_model(2));
    let base = objects_with(&old);
    save_step(&base, at(11, 1), &old).unwrap();
    support::save_rank(&store(&base), at(15, 1), (0, WORLD), &new.1, &options()).unwrap();
    store(&base).claim_generation().unwrap();
    save_step(&base, at(20, 2), &new).unwrap();
    support::save_rank(&store(&base), at(30, 2), (0, WORLD), &new.1, &options()).unwrap();
    let clean = base.fork();
    let deleted = store(&clean).retain(1, Proof::EveryByte).unwrap();
    assert_eq!(deleted.len(), 3);
    assert_eq!(store(&clean).list().unwrap().len(), 2);
    for fault in FAULTS {
        for request in 0..clean.requests() {
            let context = format!("{fault:?} at request {request}");
            let objects = base.fork();
            objects.inject(request, fault);
            store(&objects).retain(1, Proof::EveryByte).ok();
            let survivor = objects.fork();
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
fn a_generation_is_given_once_whatever_answers_are_lost() {
    let base = objects_with(&small_model(1));
    let clean = base.fork();
    assert_eq!(store(&clean).claim_generation().unwrap(), 2);
    for fault in FAULTS {
        for request in 0..clean.requests() {
            let objects = base.fork();
            objects.inject(request, fault);
            let claimed = store(&objects).claim_generation();
            let next = store(&objects.fork()).claim_generation().unwrap();
            // One that is claimed is not given again; a lost answer costs none.
            match claimed {
                Ok(generation) => assert_eq!((generation, next), (2, 3), "{fault:?} {request}"),
                Err(_) => assert!(next == 2 || next == 3, "{fault:?} {request}"),
            }
        }
    }
}

#[test]
fn two_that_claim_at_once_get_two_generations() {
    let objects = Faulty::new();
    let claims: Vec<u32> = std::thread::scope(|scope| {
        let claim = || store(&objects).claim_generation().unwrap();
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(claim)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let mut sorted = claims.clone();
    sorted.sort_unstable();
    sorted.dedup();
    assert_eq!(sorted.len(), claims.len(), "{claims:?}");
}

#[test]
fn a_writer_that_slept_through_a_newer_commit_does_not_commit() {
    let (old, new) = (small_model(1), small_model(2));
    let objects = objects_with(&old);
    // Its last look at the claims has been; now it is stopped, and another incarnation goes on.
    let (other, model) = (objects.clone(), small_model(2));
    let (tell, told) = mpsc::channel();
    objects.before_put("step-00000030.g0001/COMMIT", move || {
        let generation = store(&other).claim_generation().unwrap();
        save_step(&other, at(20, generation), &model).unwrap();
        tell.send(generation).unwrap();
    });
    let late = save_step(&objects, at(30, 1), &old).unwrap_err();
    assert_eq!(told.try_recv().unwrap(), 2);
    assert!(matches!(late, Error::Fenced { ours: 1, newest: 2, .. }), "{late}");
    let entries = store(&objects).list().unwrap();
    let late = entries.iter().find(|entry| entry.attempt == at(30, 1)).unwrap();
    assert!(matches!(late.status, Status::Incomplete), "{late:?}");
    assert_eq!(newest_step(&objects, &old, &new, "after the late writer"), 20);
    // One that died before it took its commit back has not become the newest, either.
    let objects = objects_with(&old);
    save_step(&objects, at(30, 1), &old).unwrap();
    let generation = store(&objects).claim_generation().unwrap();
    save_step(&objects, at(20, generation), &new).unwrap();
    assert_eq!(newest_step(&objects, &old, &new, "with a late commit"), 20);
}

#[test]
fn a_store_that_overwrites_is_refused_before_anything_is_saved() {
    let error = store(&Faulty::careless()).claim_generation().unwrap_err();
    let Error::Io { source, .. } = &error else { panic!("{error}") };
    assert!(matches!(ObjectError::of(source), Some(ObjectError::Unsupported { .. })), "{error}");
    assert!(error.to_string().contains("If-None-Match"), "{error}");
}

#[test]
fn a_directory_of_a_rank_is_made_once() {
    let objects = Faulty::new();
    let model = small_model(1);
    let save = || support::save_rank(&store(&objects), at(5, 1), (0, WORLD), &model.1, &options());
    save().unwrap();
    let again = save().unwrap_err();
    assert!(matches!(again, Error::AlreadyExists { .. }), "{again}");
    let error = |result: std::io::Result<()>| result.unwrap_err().kind();
    let dir = Path::new("s3://bucket/dir");
    objects.disk().create_dir(dir).unwrap();
    assert_eq!(error(objects.disk().create_dir(dir)), ErrorKind::AlreadyExists);
    assert_eq!(objects.disk().list(dir).unwrap(), []);
    assert_eq!(objects.disk().stat(dir).unwrap().kind, Kind::Dir);
    write(&objects, "s3://bucket/dir/file", b"x").unwrap();
    assert_eq!(error(objects.disk().remove_dir(dir)), ErrorKind::DirectoryNotEmpty);
    objects.disk().remove_file(&dir.join("file")).unwrap();
    objects.disk().remove_dir(dir).unwrap();
    assert_eq!(error(objects.disk().list(dir).map(drop)), ErrorKind::NotFound);
}

fn write(objects: &Faulty, url: &str, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = objects.disk().create_new(Path::new(url))?;
    let mut done = 0;
    while done < bytes.len() {
        done += file.write(&bytes[done..])?;
    }
    file.sync()
}

#[test]
fn what_is_replaced_while_it_is_read_is_no_mixture() {
    let objects = Faulty::new();
    write(&objects, "s3://bucket/file", &[1; 100]).unwrap();
    let file = objects.disk().open(Path::new("s3://bucket/file")).unwrap();
    let mut out = [0; 60];
    assert_eq!(file.read_at(&mut out, 0).unwrap(), 60);
    objects.replace("file", &[2; 100]);
    let error = file.read_at(&mut out, 60).unwrap_err();
    assert_eq!(ObjectError::of(&error), Some(&ObjectError::Changed));
}

#[test]
fn a_second_name_is_given_once_to_short_and_long_objects() {
    for length in [10, PART_BYTES, PART_BYTES + 1, 900] {
        let objects = Faulty::new();
        let bytes = vec![5; length];
        write(&objects, "s3://bucket/a", &bytes).unwrap();
        let (disk, a, b) = (objects.disk(), Path::new("s3://bucket/a"), Path::new("s3://bucket/b"));
        disk.link(a, b).unwrap();
        assert_eq!(&objects.objects()["b"][..], &bytes[..]);
        assert_eq!(disk.link(a, b).unwrap_err().kind(), ErrorKind::AlreadyExists);
    }
}

#[test]
fn an_upload_that_is_dropped_leaves_nothing_and_is_given_back() {
    let objects = Faulty::new();
    let mut file = objects.disk().create_new(Path::new("s3://bucket/file")).unwrap();
    for _ in 0..3 {
        assert_eq!(file.write(&[7; PART_BYTES]).unwrap(), PART_BYTES);
    }
    let before = objects.requests();
    drop(file);
    assert!(objects.requests() > before, "nothing was asked to be given back");
    assert!(objects.objects().is_empty());
}

#[test]
fn a_whole_checkpoint_verifies_and_is_read_as_files_are() {
    let (old, new) = (small_model(1), small_model(2));
    let objects = objects_with(&old);
    save_step(&objects, at(20, 1), &new).unwrap();
    let path = format!("{ROOT}/step-00000020.g0001");
    let report = verify_on(Arc::new(objects.disk()), &path, true).unwrap();
    assert!(report.is_whole(), "{:?}", report.problems);
    assert_eq!(report.strangers, Vec::<std::path::PathBuf>::new());
    objects.replace("runs/quickstart/step-00000020.g0001/rank-00000/shard-000.sums", b"no");
    let report = verify_on(Arc::new(objects.disk()), &path, true).unwrap();
    assert!(!report.is_whole());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn writes_by_several_threads_in_any_order_give_the_bytes(
        length in 0_usize..2000,
        cuts in proptest::collection::btree_set(1_usize..2000, 0..20),
        order in any::<u64>(),
        front_to_back in any::<bool>(),
    ) {
        let objects = Faulty::new();
        let data: Vec<u8> = (0..length).map(|i| (i * 31 % 251) as u8).collect();
        let url = Path::new("s3://bucket/a/file");
        if front_to_back {
            write(&objects, "s3://bucket/a/file", &data).unwrap();
        } else {
            let inner = cuts.into_iter().filter(|cut| *cut < length);
            let ends: Vec<usize> = [0].into_iter().chain(inner).chain([length]).collect();
            let mut pieces: Vec<(usize, usize)> =
                ends.windows(2).map(|pair| (pair[0], pair[1])).collect();
            pieces.sort_by_key(|(start, _)| (*start as u64 ^ order).wrapping_mul(0x9e37_79b9));
            let mut file = objects.disk().create_new(url).unwrap();
            std::thread::scope(|scope| {
                for half in pieces.chunks(pieces.len().div_ceil(2)) {
                    let (file, data) = (&file, &data);
                    scope.spawn(move || {
                        for &(start, end) in half {
                            let mut at = start;
                            while at < end {
                                at += file.write_at(&data[at..end], at as u64).unwrap();
                            }
                        }
                    });
                }
            });
            file.sync().unwrap();
        }
        prop_assert_eq!(&objects.objects()["a/file"][..], &data[..]);
        let read = objects.disk().open(url).unwrap();
        let mut out = vec![0; length + 9];
        let mut done = 0;
        while let Ok(count @ 1..) = read.read_at(&mut out[done..], done as u64) {
            done += count;
        }
        prop_assert_eq!(&out[..done], &data[..]);
        // It is there, and so cannot be made again.
        let again = write(&objects, "s3://bucket/a/file", &data).unwrap_err();
        prop_assert_eq!(again.kind(), ErrorKind::AlreadyExists);
    }
}

#[test]
fn a_range_is_one_request() {
    let objects = Faulty::new();
    store(&objects).claim_generation().unwrap();
    // Less than a range, and more than is summed at a time.
    let shape = [600_000];
    let state = State::new("long", "param", Dtype::F32, &shape, &mut Rng(9));
    let model = (layout::Schema::default(), vec![state]);
    save(&store(&objects), at(10, 1), 1, &model, &WriteOptions::default()).unwrap();
    let checkpoint = store(&objects).open(at(10, 1)).unwrap();
    let before = objects.requests();
    assert_eq!(contents(&checkpoint).unwrap(), wanted(&model.1));
    // The head of the object, and its bytes.
    assert_eq!(objects.requests() - before, 2);
}

#[test]
fn of_many_files_the_first_that_is_wrong_is_told() {
    let (objects, model) = (Faulty::new(), small_model(3));
    store(&objects).claim_generation().unwrap();
    save_step(&objects, at(10, 1), &model).unwrap();
    let path = store(&objects).open(at(10, 1)).unwrap().path().to_path_buf();
    let shards = objects.objects().keys().filter(|name| name.ends_with(".safetensors")).count();
    assert!(shards > 2, "{shards} shards");
    let disk = objects.disk();
    for rank in (0..WORLD).rev() {
        let shard = path.join(format!("rank-{rank:05}/shard-000.safetensors"));
        disk.remove_file(&shard).unwrap();
        for _ in 0..8 {
            let error = store(&objects).open(at(10, 1)).unwrap_err();
            assert!(matches!(&error, Error::MissingFile { path } if *path == shard), "{error}");
        }
    }
}
