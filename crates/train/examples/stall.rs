//! How long training stands still for a save beside it, next to one copy of as many bytes:
//! `cargo run --release -p train --example stall -- DIRECTORY [WIDTH] [ROUNDS]`.
//!
//! One rank of a dense model with Muon's and AdamW's state. In turn, the state is copied and handed
//! over ([`train::Trainer::begin_save`], which ends where the next step could begin) and as many
//! bytes are copied from one place in memory to another, both touched before.

use std::path::Path;
use std::time::Instant;

use checkpoint::Store;
use comm::shm::SharedMemory;
use comm::{Backend, Settings};
use data::Dataset;
use device::Device;
use serde_json::json;
use train::{Config, NativeEngine, Parts, RunPlan, Trainer, Wants};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Outcome<()> {
    let mut args = std::env::args().skip(1);
    let root = args.next().ok_or("which directory?")?;
    let width: usize = args.next().map_or(Ok(768), |text| text.parse())?;
    let rounds: usize = args.next().map_or(Ok(7), |text| text.parse())?;
    let root = Path::new(&root).join("muster-stall");
    std::fs::create_dir_all(&root)?;
    let mut trainer = trainer(&root, width)?;
    let bytes: u64 = trainer.plan().states.iter().map(layout::StateDecl::bytes).sum();
    let store = Store::new(root.join("checkpoints"));
    let generation = trainer.claim(&store)?;
    let from = vec![1.0_f32; bytes as usize / 4];
    let mut to = vec![2.0_f32; from.len()];
    println!("{:.1} MB of state", bytes as f64 / 1e6);
    let mut ratios = Vec::new();
    for round in 0..rounds {
        trainer.take_step(Wants::default())?;
        let (mut stall, mut copy) = (0.0, 0.0);
        for turn in 0..2 {
            let start = Instant::now();
            if (round + turn) % 2 == 0 {
                trainer.begin_save(&store, generation)?;
                stall = start.elapsed().as_secs_f64();
                trainer.finish_saves()?;
            } else {
                std::hint::black_box(&mut to).copy_from_slice(std::hint::black_box(&from));
                copy = start.elapsed().as_secs_f64();
            }
        }
        let gb_s = |seconds: f64| bytes as f64 / seconds / 1e9;
        println!(
            "stall {:.1} ms ({:.2} GB/s), copy {:.1} ms ({:.2} GB/s): {:.3}",
            stall * 1e3,
            gb_s(stall),
            copy * 1e3,
            gb_s(copy),
            stall / copy
        );
        ratios.push(stall / copy);
    }
    ratios.sort_by(f64::total_cmp);
    println!("median of the ratios: {:.3}", ratios[ratios.len() / 2]);
    drop(trainer);
    std::fs::remove_dir_all(&root)?;
    Ok(())
}

/// One rank of a run that saves in its middle.
fn trainer(root: &Path, width: usize) -> Outcome<Trainer<NativeEngine>> {
    let text = root.join("text.txt");
    let words = (0..4000_u32).map(|i| format!("{} ", i.wrapping_mul(2_654_435_761) >> 20));
    std::fs::write(&text, words.collect::<String>())?;
    let config: Config = serde_json::from_value(json!({
        "model": {"layers": 6, "d_model": width, "heads": 8, "d_ff": 4 * width},
        "data": {"tokenizer": "byte", "files": text},
        "batch": {"leaves": 1, "micro_batches": 1, "micro_batch": 1, "seq_len": 16},
        "train": {"steps": 1000},
        "checkpoint": {"every": 1},
    }))?;
    let device = Device::cpu(std::thread::available_parallelism()?.get())?;
    let prepared = data::prepare(&config.data, &root.join("cache"), "", &mut |_| ())?;
    let vocab = prepared.vocab_size as usize;
    let plan = RunPlan::new(&config, vocab, 1, device.threads())?;
    let fraction = config.data.validation_fraction;
    let dataset = Dataset::open(&prepared, config.batch.seq_len, config.seed, fraction)?;
    let engine = NativeEngine::of_plan(&device, &config, vocab, &plan)?;
    let backend = Backend::Shm { memory: SharedMemory::create("stall", 1)? };
    let world = comm::connect_with(backend, 0, 1, Settings::new(60_000))?;
    let parts = Parts { config, plan, world, device, optimizer_device: None, dataset, engine };
    Ok(Trainer::new(parts)?)
}
