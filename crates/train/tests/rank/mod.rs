//! Threads as the ranks of a small run.
#![allow(dead_code)] // Each test binary uses its part.

use std::path::Path;

use comm::{Backend, Settings, World};
use data::Dataset;
use device::Device;
use serde_json::{Value, json};
use train::{Config, NativeEngine, Parts, RunPlan, Trainer};

/// Long enough for a loaded machine.
const PATIENCE_MS: u64 = 60_000;

/// A small mixture of experts on a text in `dir`, with these leaves.
pub fn config(dir: &Path, leaves: usize) -> Config {
    let text = dir.join("text.txt");
    let words = (0..4000_u32).map(|i| format!("{} ", i.wrapping_mul(2_654_435_761) >> 20));
    std::fs::write(&text, words.collect::<String>()).unwrap();
    let value: Value = json!({
        "model": {
            "preset": "tiny-moe", "layers": 2, "d_model": 32,
            "moe": {"experts": 4, "d_ff": 24}
        },
        "data": {"tokenizer": "byte", "files": text},
        "batch": {"leaves": leaves, "micro_batches": 2, "micro_batch": 1, "seq_len": 32},
        "train": {"steps": 100},
    });
    serde_json::from_value(value).unwrap()
}

/// As [`config`], of a model without experts whose weights are bf16.
pub fn dense_bf16(dir: &Path, leaves: usize) -> Config {
    let mut config = config(dir, leaves);
    let model = json!({"layers": 2, "d_model": 32, "heads": 4, "d_ff": 48});
    config.model = serde_json::from_value(model).unwrap();
    config.train.weights = serde_json::from_value(json!("bf16")).unwrap();
    config
}

/// As [`config`], with latent attention, a dense layer and experts in groups.
pub fn latent(dir: &Path, leaves: usize) -> Config {
    let mut config = config(dir, leaves);
    let model = json!({
        "preset": "deepseek-v3", "layers": 2, "d_model": 32, "heads": 4, "d_ff": 48,
        "vocab_size": 320,
        "latent": {"q_rank": 12, "kv_rank": 8, "nope_dim": 8, "rope_dim": 4, "value_dim": 6},
        "moe": {
            "experts": 8, "top_k": 2, "groups": 4, "top_groups": 2, "d_ff": 16,
            "first_dense_layers": 1
        }
    });
    config.model = serde_json::from_value(model).unwrap();
    config
}

/// One rank.
pub fn trainer(
    config: &Config,
    cache: &Path,
    world: World,
    device: &Device,
) -> Trainer<NativeEngine> {
    let elsewhere = config.ranks.optimizer_device.kind();
    let elsewhere = elsewhere.map(|kind| Device::new(kind, 1).unwrap());
    trainer_with(config, cache, world, device, elsewhere)
}

/// One rank, with its optimizer on a device of its own, whatever the config says.
pub fn trainer_with(
    config: &Config,
    cache: &Path,
    world: World,
    device: &Device,
    optimizer_device: Option<Device>,
) -> Trainer<NativeEngine> {
    let prepared = data::prepare(&config.data, cache, "", &mut |_| ()).unwrap();
    let plan = RunPlan::new(config, prepared.vocab_size as usize, world.size(), device.threads());
    let plan = plan.unwrap();
    let fraction = config.data.validation_fraction;
    let dataset = Dataset::open(&prepared, config.batch.seq_len, config.seed, fraction).unwrap();
    let vocab = prepared.vocab_size as usize;
    let engine = NativeEngine::of_plan(device, config, vocab, &plan).unwrap();
    let (config, device) = (config.clone(), device.clone());
    let parts = Parts { config, plan, world, device, optimizer_device, dataset, engine };
    Trainer::new(parts).unwrap()
}

/// Runs `body` as every rank of a group and returns what each returned, in rank order. Of kind
/// `2 a host` they are on as many hosts, and go by them whatever the size of an operation.
pub fn with_group<R: Send>(kind: &str, world: usize, body: impl Fn(World) -> R + Sync) -> Vec<R> {
    let job = "ranks".to_owned();
    let bind = || comm::tcp::listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let listeners: Vec<_> = (0..world).map(|_| bind()).collect();
    let peers: Vec<_> = listeners.iter().map(|l| l.local_addr().unwrap()).collect();
    let each = if kind == "2 a host" { 2 } else { world };
    let made = |_| comm::shm::SharedMemory::create(&job, each).unwrap();
    let memory: Vec<_> = (0..world / each).map(made).collect();
    let body = &body;
    std::thread::scope(|scope| {
        let mut ranks = Vec::new();
        for (rank, listener) in listeners.into_iter().enumerate() {
            let (peers, job, memory) = (peers.clone(), job.clone(), memory[rank / each].clone());
            let backend = match kind {
                "shm" => Backend::Shm { memory },
                "tcp" => Backend::Tcp { listener, peers, job },
                _ => {
                    let host_of = (0..world).map(|rank| rank / each).collect();
                    Backend::Hosts { listener, peers, job, memory, host_of }
                }
            };
            let settings = Settings { by_hosts_bytes: 0, ..Settings::new(PATIENCE_MS) };
            let connect = move || comm::connect_with(backend, rank, world, settings).unwrap();
            ranks.push(scope.spawn(move || body(connect())));
        }
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}
