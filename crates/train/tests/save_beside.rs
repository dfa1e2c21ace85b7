//! Saves beside the training hold the state of the step after which they were begun, come in
//! order, fail everywhere at once, and do not pile up. The disk stands still until the test lets it
//! go on, so that nothing depends on time.

mod rank;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};

use checkpoint::disk::{DirEntry, Disk, Free, OsDisk, ReadFile, Stat, WriteFile};
use checkpoint::{Checkpoint, Store, TensorDifference, diff};
use comm::World;
use device::Device;
use train::{Config, Event, NativeEngine, Outcome, TrainError, Trainer, Wants};

type Make = fn(&Path, usize) -> Config;

const MODELS: [(&str, Make); 3] = [
    ("mixture f32", rank::config),
    ("dense bf16", rank::dense_bf16),
    ("latent attention f32", rank::latent),
];

/// A disk on which no shard is begun while the gate is closed.
#[derive(Clone, Default)]
struct Gated {
    closed: Arc<(Mutex<bool>, Condvar)>,
    /// No shard is begun at all.
    is_full: bool,
}

impl Gated {
    fn set(&self, closed: bool) {
        *self.closed.0.lock().unwrap() = closed;
        self.closed.1.notify_all();
    }
}

impl Disk for Gated {
    fn create_new(&self, path: &Path) -> io::Result<Box<dyn WriteFile>> {
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            if self.is_full {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let closed = self.closed.0.lock().unwrap();
            drop(self.closed.1.wait_while(closed, |closed| *closed).unwrap());
        }
        OsDisk.create_new(path)
    }
    fn open(&self, path: &Path) -> io::Result<Box<dyn ReadFile>> {
        OsDisk.open(path)
    }
    fn stat(&self, path: &Path) -> io::Result<Stat> {
        OsDisk.stat(path)
    }
    fn link_target(&self, path: &Path) -> Option<PathBuf> {
        OsDisk.link_target(path)
    }
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        OsDisk.create_dir(path)
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        OsDisk.sync_dir(path)
    }
    fn link(&self, existing: &Path, new: &Path) -> io::Result<()> {
        OsDisk.link(existing, new)
    }
    fn remove_file(&self, path: &Path) -> io::Result<()> {
        OsDisk.remove_file(path)
    }
    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        OsDisk.remove_dir(path)
    }
    fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        OsDisk.list(path)
    }
    fn free(&self, path: &Path) -> Option<Free> {
        OsDisk.free(path)
    }
}

/// Saves midway, so that there is memory for it.
fn midway(mut config: Config) -> Config {
    config.checkpoint.every = 50;
    config
}

fn trainer(config: &Config, dir: &Path, world: World) -> Trainer<NativeEngine> {
    let cache = dir.join(world.rank().to_string());
    rank::trainer(config, &cache, world, &Device::cpu(1).unwrap())
}

#[test]
fn what_changes_after_a_save_has_begun_is_not_in_it() {
    for (model, make) in MODELS {
        for (kind, world) in [("shm", 1), ("shm", 2), ("tcp", 3)] {
            let dir = tempfile::tempdir().unwrap();
            let config = midway(make(dir.path(), 6));
            let paths = rank::with_group(kind, world, |world| {
                let disk = Gated::default();
                let store = Store::on(Arc::new(disk.clone()), dir.path().join("checkpoints"));
                let mut trainer = trainer(&config, dir.path(), world);
                assert!(trainer.plan().saves_beside);
                let step = |trainer: &mut Trainer<_>| {
                    trainer.take_step(Wants::default()).unwrap();
                };
                step(&mut trainer);
                let mut paths = Vec::new();
                let generation = trainer.claim(&store).unwrap();
                paths.push(trainer.save(&store, generation).unwrap().path);
                let generation = trainer.claim(&store).unwrap();
                // Both buffers, and both are overtaken by steps before anything is written.
                disk.set(true);
                assert_eq!(trainer.begin_save(&store, generation).unwrap(), None);
                step(&mut trainer);
                assert_eq!(trainer.begin_save(&store, generation).unwrap(), None);
                step(&mut trainer);
                step(&mut trainer);
                let digest = trainer.weights_digest().unwrap();
                disk.set(false);
                let ended = trainer.finish_saves().unwrap();
                assert_eq!(ended.iter().map(|saved| saved.step).collect::<Vec<_>>(), [1, 2]);
                paths.extend(ended.into_iter().map(|saved| saved.path));
                // From the second, two steps lead to the same weights.
                trainer.load(Path::new(&paths[2])).unwrap();
                step(&mut trainer);
                step(&mut trainer);
                assert_eq!(trainer.weights_digest().unwrap(), digest, "{model} {kind}");
                paths
            });
            assert!(paths.iter().all(|of| *of == paths[0]), "{paths:?}");
            let [at_once, beside, later] =
                [0, 1, 2].map(|index| Checkpoint::open(&paths[0][index]).unwrap());
            let is_equal = |a: &Checkpoint, b: &Checkpoint| {
                let tensors = diff(a, b).unwrap().tensors;
                tensors.iter().all(|tensor| tensor.difference == TensorDifference::Equal)
            };
            assert!(is_equal(&at_once, &beside), "{model} {kind}");
            assert!(!is_equal(&beside, &later), "{model} {kind}");
        }
    }
}

/// The outcome and the events of rank 0.
type Ended = (Result<Outcome, TrainError>, Vec<Event>);

/// Runs two ranks, each on a disk of its own; `see` is shown the events of rank 0.
fn run(
    config: &Config,
    dir: &Path,
    disks: &[Gated; 2],
    see: &(dyn Fn(&Event) + Sync),
) -> Vec<Ended> {
    rank::with_group("shm", 2, |world| {
        let rank = world.rank();
        let store = Store::on(Arc::new(disks[rank].clone()), dir.join("checkpoints"));
        let mut trainer = trainer(config, dir, world);
        let generation = trainer.claim(&store).unwrap();
        let mut events = Vec::new();
        let mut emit = |event: Event| {
            if rank == 0 {
                see(&event);
                events.push(event);
            }
            Ok(())
        };
        let wants = &mut |_| Wants::default();
        (trainer.run(&store, generation, Some(9), wants, &mut emit), events)
    })
}

fn saved(events: &[Event]) -> Vec<u64> {
    let of = |event: &Event| match event {
        Event::Saved(saved) => Some(saved.step),
        _ => None,
    };
    events.iter().filter_map(of).collect()
}

#[test]
fn a_save_that_finds_both_buffers_in_use_is_left_out_and_told() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = rank::config(dir.path(), 6);
    (config.checkpoint.every, config.checkpoint.keep) = (2, 0);
    // One rank's disk is slow; the other knows it by the votes.
    let disks = [Gated::default(), Gated::default()];
    disks[1].set(true);
    let open = |event: &Event| {
        if matches!(event, Event::Step(step) if step.step == 7) {
            disks[1].set(false);
        }
    };
    let ended = run(&config, dir.path(), &disks, &open);
    let (outcome, events) = &ended[0];
    let warnings = events.iter().filter_map(|event| match event {
        Event::Warning { message } => Some(message.as_str()),
        _ => None,
    });
    let warnings: Vec<&str> = warnings.collect();
    assert!(
        warnings[0].starts_with(
            "the save of step 6 is left out: those of steps 2 and 4 are still being written; \
             save more rarely (checkpoint.every)"
        ),
        "{warnings:?}"
    );
    // The save of step 8 may find a buffer free or not.
    let steps = saved(events);
    assert!(steps == [2, 4, 9] && warnings.len() == 2 || steps == [2, 4, 8, 9], "{steps:?}");
    assert_eq!(ended[0].0.as_ref().unwrap(), ended[1].0.as_ref().unwrap());
    let newest = outcome.as_ref().unwrap().checkpoint.clone().unwrap();
    assert!(newest.contains("step-00000009"), "{newest}");
    let committed = Store::new(dir.path().join("checkpoints")).committed().unwrap();
    assert_eq!(committed, steps.len());
}

#[test]
fn a_save_that_fails_ends_the_run_of_every_rank_after_the_same_step() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = rank::config(dir.path(), 6);
    config.checkpoint.every = 2;
    let disks = [Gated::default(), Gated { is_full: true, ..Gated::default() }];
    let ended = run(&config, dir.path(), &disks, &|_| ());
    let errors = ended.iter().map(|(ended, _)| ended.as_ref().unwrap_err().to_string());
    let errors: Vec<String> = errors.collect();
    let full = "disk full writing ";
    assert!(errors[0].starts_with(&format!("step 2 was not saved: rank 1: {full}")), "{errors:?}");
    assert!(errors[1].starts_with(full), "{errors:?}");
    assert_eq!(saved(&ended[0].1), [0; 0]);
    let store = Store::new(dir.path().join("checkpoints"));
    // Nothing of the attempt is left. The threads may be at the next save, which fails, too.
    assert!(store.list().unwrap().iter().all(|entry| entry.attempt.step > 2));
    assert_eq!(store.committed().unwrap(), 0);
}

#[test]
fn a_run_that_saves_at_its_end_alone_keeps_no_copies() {
    let dir = tempfile::tempdir().unwrap();
    let plan = |change: fn(&mut Config)| {
        let mut config = rank::config(dir.path(), 6);
        change(&mut config);
        train::RunPlan::new(&config, 320, 2, 1).unwrap()
    };
    let copies = |plan: &train::RunPlan| -> Option<u64> {
        let items = plan.memory(0).unwrap();
        items.into_iter().find(|(name, _)| name.starts_with("copies to be saved")).map(|of| of.1)
    };
    let with = plan(|config| config.checkpoint.every = 50);
    let bytes: u64 = with.states.iter().map(layout::StateDecl::bytes).sum();
    let planned = copies(&with).unwrap();
    // Of two ranks, each of which writes half.
    assert!(planned.abs_diff(bytes) < bytes / 8 + 16_384, "{planned} of {bytes}");
    assert_eq!(copies(&plan(|config| config.checkpoint.every = 100)), None);
    assert_eq!(copies(&plan(|config| config.checkpoint.every = 0)), None);
    let sync = |config: &mut Config| {
        config.checkpoint.every = 50;
        config.checkpoint.mode = train::config::SaveMode::Sync;
    };
    assert_eq!(copies(&plan(sync)), None);
}
