//! A candle model on ranks: the same bits at every number of them, across saves, resumes at another
//! width and kills; and the same numbers as the native engine's.

mod small;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};
use candle_engine::{Builder, Tokens};
use candle_nn::{VarBuilder, VarMap};
use checkpoint::Store;
use small::{Gpt2, QKV, VOCAB, config, dataset, engine, trainer};
use train::{Config, Engine, NativeEngine, Parts, RunPlan, TrainError, Trainer, Wants};

const STEPS: u64 = 6;

/// A file that says that a run went on from a checkpoint.
const RESUMED: &str = "resumed";

/// Trains up to `steps` steps on `count` ranks, from the newest checkpoint of `store` if there is
/// one, saving each `every` steps; the digests of all ranks.
fn run(
    config: &Config,
    dir: &Path,
    count: usize,
    steps: u64,
    store: Option<(&Path, u64)>,
) -> Result<Vec<String>, TrainError> {
    train::here::ranks(count, |world| {
        let device = device::Device::cpu(1)?;
        let mut trainer = trainer(config, dir, world, &device, engine(config, &device, 7)?)?;
        let mut generation = 0;
        let store = store.map(|(path, every)| (Store::new(path), every));
        if let Some((store, _)) = &store {
            generation = trainer.claim(store)?;
            if trainer.resume(store)?.is_some() {
                std::fs::write(dir.join(RESUMED), "").unwrap();
            }
        }
        while trainer.steps_taken() < steps {
            trainer.take_step(Wants::default())?;
            if let Some((store, every)) = &store
                && trainer.steps_taken().is_multiple_of(*every)
            {
                trainer.save(store, generation)?;
            }
        }
        trainer.weights_digest()
    })
}

#[test]
fn any_number_of_ranks_gives_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), 4);
    let one = run(&config, dir.path(), 1, STEPS, None).unwrap();
    for count in 2..=4 {
        let all = run(&config, dir.path(), count, STEPS, None).unwrap();
        assert!(all.iter().all(|digest| *digest == one[0]), "{count} ranks");
    }
}

#[test]
fn a_checkpoint_goes_on_at_another_width() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), 4);
    let straight = run(&config, dir.path(), 1, STEPS, None).unwrap();
    let store = dir.path().join("checkpoints");
    run(&config, dir.path(), 3, 4, Some((&store, 2))).unwrap();
    let resumed = run(&config, dir.path(), 2, STEPS, Some((&store, 2))).unwrap();
    assert_eq!(resumed, [straight[0].clone(), straight[0].clone()]);
}

/// Names the directory of a run, its ranks, and its steps.
const CHILD: &str = "CANDLE_ENGINE_CHILD";

#[test]
#[ignore = "the body of a process: `killed_at_any_moment…` starts it, in every run"]
fn child() {
    let words = std::env::var(CHILD).unwrap();
    let mut words = words.splitn(3, ' ');
    let mut number = || words.next().unwrap().parse::<u64>().unwrap();
    let (count, steps) = (number() as usize, number());
    let dir = Path::new(words.next().unwrap());
    let config = config(dir, 4);
    let digests = run(&config, dir, count, steps, Some((&dir.join("checkpoints"), 2))).unwrap();
    std::fs::write(dir.join("digest"), &digests[0]).unwrap();
}

#[test]
fn killed_at_any_moment_it_comes_to_the_same_bits() {
    const STEPS: u64 = 16;
    let dir = tempfile::tempdir().unwrap();
    let straight = run(&config(dir.path(), 4), dir.path(), 1, STEPS, None).unwrap();
    let (mut kills, mut patience) = (0, Duration::from_millis(20));
    for attempt in 0.. {
        assert!(attempt < 50, "it never ends");
        let count = [2, 3, 1, 4][attempt % 4];
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--ignored", "--test-threads", "1"])
            .env(CHILD, format!("{count} {STEPS} {}", dir.path().display()))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let since = Instant::now();
        // Longer each time, by less than a whole run takes over its first checkpoint: so some die
        // between the two, on a machine of any speed.
        patience = patience * 6 / 5;
        let ended = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break Some(status);
            }
            if since.elapsed() > patience {
                child.kill().unwrap();
                child.wait().unwrap();
                break None;
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        match ended {
            Some(status) => {
                assert!(status.success(), "{status}");
                break;
            }
            None => kills += 1,
        }
    }
    assert!(kills > 0 && dir.path().join(RESUMED).exists(), "{kills} kills");
    assert_eq!(std::fs::read_to_string(dir.path().join("digest")).unwrap(), straight[0]);
}

/// The initial weights of the native engine, as variables of a candle model.
fn with_native_weights(config: &Config, vars: &VarMap) {
    let a = config.model.resolve(VOCAB, config.batch.seq_len).unwrap();
    let (schema, _) = model::parameters(&a).unwrap();
    let flat = layout::FlatLayout::new(&schema, 1 << 20);
    let device = device::Device::cpu(1).unwrap();
    let weights = device.zeros(&[flat.len], device::DType::F32).unwrap();
    model::initialize(&device.stream(), &a, &flat, config.seed, &weights).unwrap();
    let data = vars.data().lock().unwrap();
    assert_eq!(data.len(), schema.tensors.len());
    for (index, tensor) in schema.tensors.iter().enumerate() {
        let values = weights.flat(flat.range(index)).unwrap();
        let values: Vec<f32> = device.stream().to_vec(&values).unwrap();
        let values = Tensor::from_vec(values, tensor.shape.as_slice(), &Device::Cpu).unwrap();
        data[&tensor.name].set(&values).unwrap();
    }
}

fn losses<E: Engine>(mut trainer: Trainer<E>) -> Result<Vec<f64>, TrainError> {
    (0..50).map(|_| Ok(trainer.take_step(Wants::default())?.step.loss)).collect()
}

#[test]
fn its_losses_are_those_of_the_native_engine() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), 2);
    let native = train::here::ranks(1, |world| {
        let device = device::Device::cpu(1)?;
        let plan = RunPlan::new(&config, VOCAB, 1, 1)?;
        let engine = NativeEngine::of_plan(&device, &config, VOCAB, &plan)?;
        let (dataset, config) = (dataset(&config, dir.path()), config.clone());
        let optimizer_device = None;
        let parts = Parts { config, plan, world, device, optimizer_device, dataset, engine };
        losses(Trainer::new(parts)?)
    });
    let candle = train::here::ranks(1, |world| {
        let device = device::Device::cpu(1)?;
        let vars = VarMap::new();
        let model = Gpt2::new(VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu)).unwrap();
        with_native_weights(&config, &vars);
        let builder = Builder::new(&vars).parts("*c_attn.weight", &QKV);
        let engine = builder.build(&device, &config, move |of: &Tokens| model.loss(of))?;
        losses(trainer(&config, dir.path(), world, &device, engine)?)
    });
    let (native, candle) = (&native.unwrap()[0], &candle.unwrap()[0]);
    let worst = native.iter().zip(candle).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(worst < 1e-4, "{worst:.1e}\n{native:?}\n{candle:?}");
    assert!(native[49] < 0.8 * native[0], "it learns: {native:?}");
}

#[test]
fn ranks_that_begin_with_other_weights_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), 4);
    let refused = train::here::ranks(3, |world| {
        let device = device::Device::cpu(1)?;
        let of_rank = world.rank() as u64 / 2;
        trainer(&config, dir.path(), world, &device, engine(&config, &device, of_rank)?).map(|_| ())
    });
    let refused = refused.unwrap_err().to_string();
    assert!(refused.starts_with("rank 2 begins with other weights than rank 0"), "{refused}");
    assert!(refused.contains("`h.0.attn.c_attn.weight`"), "{refused}");
}
