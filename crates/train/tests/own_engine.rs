//! An engine that the trainer knows nothing of: two parameters, a state and a count. It is planned,
//! trained, saved and loaded like any other, and its buckets move when they may.

mod rank;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use checkpoint::Store;
use data::Dataset;
use device::{DType, Device, Stream, Tensor};
use kernels::Onto;
use layout::{Absent, FlatLayout, LogicalTensor, Role, Schema, Sharing, StateDecl};
use train::{
    Config, Declared, Engine, Gradients, Hooks, Inputs, MicroBatch, Parts, RunPlan, TrainError,
    Trainer, Wants,
};

const WIDTH: usize = 32;

/// Long enough for a loaded machine; waited for only by a trainer that waits where it must not.
const PATIENCE: Duration = Duration::from_secs(20);

/// Pulls each weight towards a number that the tokens name.
struct Pull<'a> {
    declared: Declared,
    stream: Stream,
    /// Applied steps, a state.
    applied: Tensor,
    /// Micro-batches since the step began.
    count: u32,
    watch: Watch<'a>,
}

/// Calls between hooks.
#[derive(Clone, Copy)]
struct Watch<'a> {
    /// A forward pass begins, of which nothing was needed yet.
    before_need: &'a (dyn Fn() + Sync),
    /// The gradients of the last bucket are ready, those of the first are not.
    between_ready: &'a (dyn Fn() + Sync),
    /// An update was applied, and no weights were sent yet.
    after_step: &'a (dyn Fn() + Sync),
}

const NOTHING: Watch = Watch { before_need: &|| (), between_ready: &|| (), after_step: &|| () };

impl<'a> Pull<'a> {
    fn new(config: &Config, device: &Device, watch: Watch<'a>) -> Pull<'a> {
        let schema = Schema::new(vec![
            LogicalTensor::new("first", &[WIDTH, WIDTH], Role::Matrix),
            LogicalTensor::new("second", &[WIDTH], Role::Vector),
        ]);
        let (schema, bucket_elements) = (schema.unwrap(), 1);
        let applied = StateDecl::f32("applied", "steps", &[1], Sharing::Replicated);
        let (windows, positions) = (config.batch.micro_batch, config.batch.seq_len);
        let declared = Declared {
            flat: FlatLayout::new(&schema, bucket_elements),
            bucket_elements,
            batch: MicroBatch { windows, positions },
            weights: DType::F32,
            states: vec![applied.absent(Absent::Refuse)],
            counts: 1,
            memory: vec![("nothing to speak of".to_owned(), 4)],
            numeric: BTreeMap::from([("engine".to_owned(), "pull".to_owned())]),
            active_parameters: schema.parameters() as u64,
            schema,
        };
        assert_eq!(declared.flat.buckets.len(), 2);
        let (stream, applied) = (device.stream(), device.zeros(&[1], DType::F32).unwrap());
        Pull { declared, stream, applied, count: 0, watch }
    }

    fn range(&self, tensor: usize) -> Range<usize> {
        // In backward order.
        self.declared.flat.buckets[1 - tensor].range.clone()
    }
}

impl Engine for Pull<'_> {
    /// The number that the weights are pulled to.
    type Stash = f32;

    fn declared(&self) -> &Declared {
        &self.declared
    }

    fn stream(&self) -> &Stream {
        &self.stream
    }

    fn initialize(&mut self, seed: u64, weights: &Tensor) -> Result<(), TrainError> {
        let value = |i: usize| ((i as u64 * 37 + seed) % 101) as f32 / 50.0 - 1.0;
        let values: Vec<f32> = (0..weights.len()).map(value).collect();
        self.stream.copy_in(&self.applied, &[0_f32])?;
        Ok(self.stream.copy_in(weights, &values)?)
    }

    fn begin_step(&mut self) -> Result<(), TrainError> {
        self.count = 0;
        Ok(())
    }

    fn forward(
        &mut self,
        inputs: &Inputs,
        _weights: &Tensor,
        hooks: &mut dyn Hooks,
    ) -> Result<f32, TrainError> {
        (self.watch.before_need)();
        for tensor in [0, 1] {
            hooks.need(self.range(tensor)).map_err(TrainError::of_hook)?;
        }
        self.count += 1;
        Ok(inputs.tokens[0] as f32 / 256.0)
    }

    fn backward(
        &mut self,
        to_value: f32,
        weights: &Tensor,
        to: Gradients,
        hooks: &mut dyn Hooks,
    ) -> Result<(), TrainError> {
        let mut loss = 0.0;
        for tensor in [1, 0] {
            let range = self.range(tensor);
            let (weights, grads) = (weights.flat(range.clone())?, to.flat.flat(range.clone())?);
            let now: Vec<f32> = self.stream.to_vec(&weights)?;
            let mut sums: Vec<f32> = self.stream.to_vec(&grads)?;
            for (sum, weight) in sums.iter_mut().zip(now) {
                let away = weight - to_value;
                let before = if to.onto == Onto::Add { *sum } else { 0.0 };
                *sum = before + away * to.tokens as f32;
                loss += f64::from(away * away) * to.tokens;
            }
            self.stream.copy_in(&grads, &sums)?;
            hooks.ready(range).map_err(TrainError::of_hook)?;
            if tensor == 1 {
                (self.watch.between_ready)();
            }
        }
        Ok(self.stream.copy_in(to.loss, &[loss])?)
    }

    fn evaluate(
        &mut self,
        to_value: f32,
        weights: &Tensor,
        loss: &Tensor,
        _hooks: &mut dyn Hooks,
    ) -> Result<(), TrainError> {
        let now: Vec<f32> = self.stream.to_vec(weights)?;
        let sum = now.iter().map(|weight| f64::from(weight - to_value).powi(2)).sum::<f64>();
        Ok(self.stream.copy_in(loss, &[sum])?)
    }

    fn states(&self) -> Result<Vec<Tensor>, TrainError> {
        Ok(vec![self.applied.clone()])
    }

    fn counts(&mut self, into: &mut [u32]) -> Result<(), TrainError> {
        into[0] = self.count;
        Ok(())
    }

    fn after_step(&mut self, counts: &[u64]) -> Result<(), TrainError> {
        assert_eq!(counts, [8], "micro-batches of all ranks");
        let applied: Vec<f32> = self.stream.to_vec(&self.applied)?;
        self.stream.copy_in(&self.applied, &[applied[0] + 1.0])?;
        (self.watch.after_step)();
        Ok(())
    }
}

fn trainer<'a>(
    config: &Config,
    dir: &Path,
    world: comm::World,
    watch: Watch<'a>,
) -> Result<Trainer<Pull<'a>>, TrainError> {
    let device = Device::cpu(1)?;
    let engine = Pull::new(config, &device, watch);
    let plan = RunPlan::of(config, engine.declared().clone(), world.size(), 1)?;
    let prepared = data::prepare(&config.data, dir, "", &mut |_| ())?;
    let dataset = Dataset::open(&prepared, config.batch.seq_len, config.seed, 0.1)?;
    let (config, optimizer_device) = (config.clone(), None);
    Trainer::new(Parts { config, plan, world, device, optimizer_device, dataset, engine })
}

/// The config of a native model, whose section nobody looks at.
fn config(dir: &Path) -> Config {
    let mut config = rank::config(dir, 4);
    config.model = serde_json::from_value(serde_json::json!({"layers": 0})).unwrap();
    config
}

/// Trains up to `steps`, from what is saved, and saves; digests and losses of validation.
fn run(config: &Config, dir: &Path, store: &Store, ranks: usize, steps: u64) -> Vec<(String, u64)> {
    let all = train::here::ranks(ranks, |world| {
        let mut trainer = trainer(config, dir, world, NOTHING)?;
        let generation = trainer.claim(store)?;
        trainer.resume(store)?;
        while trainer.steps_taken() < steps {
            trainer.take_step(Wants::default())?;
        }
        let evaluation = trainer.evaluate()?;
        trainer.save(store, generation)?;
        Ok((trainer.weights_digest()?, evaluation.loss.to_bits()))
    });
    all.unwrap()
}

#[test]
fn it_trains_saves_and_loads_at_any_width() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    let store = |name: &str| Store::new(dir.path().join(name));
    let straight = run(&config, dir.path(), &store("straight"), 1, 6);
    run(&config, dir.path(), &store("saved"), 3, 4);
    let resumed = run(&config, dir.path(), &store("saved"), 2, 6);
    assert_eq!(resumed, [straight[0].clone(), straight[0].clone()]);
    // The state is in the checkpoint under its own name.
    let newest = store("saved").newest().unwrap().checkpoint.unwrap();
    let key = checkpoint::TensorKey { name: "applied".into(), slot: "steps".into() };
    let mut applied = [0; 4];
    let region = checkpoint::Region::whole(&[1]);
    newest.read_box(&key, checkpoint::Dtype::F32, &region, &mut applied).unwrap();
    assert_eq!(f32::from_le_bytes(applied), 6.0);
}

/// Something that one rank does and another waits for.
#[derive(Default)]
struct Signal {
    done: Mutex<usize>,
    changed: Condvar,
}

impl Signal {
    fn give(&self) {
        *self.done.lock().unwrap() += 1;
        self.changed.notify_all();
    }

    fn wait_for(&self, count: usize, what: &str) {
        let done = self.done.lock().unwrap();
        let waited = self.changed.wait_timeout_while(done, PATIENCE, |done| *done < count);
        assert!(!waited.unwrap().1.timed_out(), "{what}");
    }
}

#[test]
fn a_bucket_is_reduced_while_backward_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    let ranks = train::here::ranks(2, |world| {
        let reduced = || {
            let timings = world.timings();
            timings.of(comm::Operation::ReduceScatterOrdered).calls
        };
        // Micro-batches of a rank in a step: two leaves of two.
        let (passes, before) = (Mutex::new(0), reduced());
        let between_ready = || {
            let mut passes = passes.lock().unwrap();
            *passes += 1;
            if *passes % 4 != 0 {
                return;
            }
            let since = std::time::Instant::now();
            // Both ranks are inside their last backward pass, and yet one bucket is reduced.
            while reduced() - before < 2 * (*passes / 4) - 1 {
                assert!(since.elapsed() < PATIENCE, "the first bucket waits for the second");
                std::thread::yield_now();
            }
        };
        let watch = Watch { between_ready: &between_ready, ..NOTHING };
        let mut trainer = trainer(&config, dir.path(), world.clone(), watch)?;
        for _ in 0..3 {
            trainer.take_step(Wants::default())?;
        }
        trainer.weights_digest()
    });
    let ranks = ranks.unwrap();
    assert_eq!(ranks[0], ranks[1]);
}

#[test]
fn weights_are_waited_for_where_they_are_needed_and_not_before() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    let begun = Signal::default();
    let ranks = train::here::ranks(2, |world| {
        let (rank, applied) = (world.rank(), Mutex::new(0));
        // Rank 1 sends no weights before rank 0 has begun its next forward pass.
        let before_need = || {
            if rank == 0 {
                begun.give()
            }
        };
        let after_step = || {
            let mut applied = applied.lock().unwrap();
            *applied += 1;
            if rank == 1 && *applied < 3 {
                begun.wait_for(4 * *applied + 1, "rank 0 waits for weights that it does not need");
            }
        };
        let watch = Watch { before_need: &before_need, after_step: &after_step, ..NOTHING };
        let mut trainer = trainer(&config, dir.path(), world, watch)?;
        for _ in 0..3 {
            trainer.take_step(Wants::default())?;
        }
        trainer.weights_digest()
    });
    let ranks = ranks.unwrap();
    assert_eq!(ranks[0], ranks[1]);
}

/// Flips a bit at the end of every shard of a checkpoint.
fn damage(checkpoint: &Path) {
    for rank in std::fs::read_dir(checkpoint).unwrap().map(|entry| entry.unwrap().path()) {
        for file in std::fs::read_dir(rank).into_iter().flatten().map(|entry| entry.unwrap().path())
        {
            if file.extension().is_some_and(|ending| ending == "safetensors") {
                let mut bytes = std::fs::read(&file).unwrap();
                *bytes.last_mut().unwrap() ^= 1;
                std::fs::write(&file, bytes).unwrap();
            }
        }
    }
}

#[test]
fn damaged_checkpoints_are_passed_over_and_none_whole_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    let store = Store::new(dir.path().join("checkpoints"));
    let straight = run(&config, dir.path(), &Store::new(dir.path().join("straight")), 1, 6);
    run(&config, dir.path(), &store, 2, 2);
    run(&config, dir.path(), &store, 2, 4);
    damage(store.newest().unwrap().checkpoint.unwrap().path());
    let resumed = |ranks| {
        train::here::ranks(ranks, |world| {
            let mut trainer = trainer(&config, dir.path(), world, NOTHING)?;
            let resumed = trainer.resume(&store)?;
            Ok((trainer.steps_taken(), resumed.unwrap().1))
        })
    };
    let (step, warnings) = resumed(3).unwrap().pop().unwrap();
    assert_eq!(step, 2, "the older one");
    assert!(warnings.iter().any(|text| text.starts_with("passed over: ")), "{warnings:?}");
    assert_eq!(run(&config, dir.path(), &store, 2, 6)[0], straight[0]);
    // That of step 4 is damaged already, and a bit that is flipped twice is right.
    for entry in store.list().unwrap().into_iter().filter(|entry| entry.attempt.step != 4) {
        damage(&entry.path);
    }
    for ranks in [1, 2] {
        let refused = resumed(ranks).unwrap_err().to_string();
        assert!(refused.starts_with("no checkpoint in "), "{refused}");
        assert!(refused.contains(" is whole: "), "{refused}");
    }
}

#[test]
fn a_plan_of_another_engine_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    let prepared = data::prepare(&config.data, dir.path(), "", &mut |_| ()).unwrap();
    let refused = train::here::ranks(1, |world| {
        let device = Device::cpu(1)?;
        let engine = Pull::new(&config, &device, NOTHING);
        let mut other = engine.declared().clone();
        other.counts += 1;
        let plan = RunPlan::of(&config, other, 1, 1)?;
        let dataset = Dataset::open(&prepared, config.batch.seq_len, config.seed, 0.1)?;
        let (config, optimizer_device) = (config.clone(), None);
        let parts = Parts { config, plan, world, device, optimizer_device, dataset, engine };
        Trainer::new(parts).map(|_| ())
    });
    let refused = refused.unwrap_err().to_string();
    assert!(refused.starts_with("the plan was made for another engine; make it from"), "{refused}");
}
