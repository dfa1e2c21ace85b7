//! The commit of a save by many ranks, from the last rank's digest to the durable `COMMIT`:
//! `cargo run --release -p checkpoint --example commit -- DIRECTORY [RANKS] [LAYERS] [EXPERTS]`.
//!
//! Ranks are simulated: each really writes its shards, of a mixture with as many tensors as asked
//! for and tiny matrices, since a commit never sees data. The coordinator plans once a run, before
//! the first save; three saves are committed. A line tells the numbers and the most memory that
//! the process has had, which is the coordinator's and one rank's at a time.

mod measured;

use std::fs;
use std::path::Path;
use std::time::Instant;

use checkpoint::{
    Attempt, Boxes, Chunk, Dtype, ExpectedTensor, RankDigest, Region, SavePlan, Store, TensorKey,
    WriteOptions,
};
use layout::{LogicalTensor, Role, Schema};
use measured::{Outcome, run_state};

const SHAPE: [usize; 2] = [16, 16];
const BYTES: usize = 4 * SHAPE[0] * SHAPE[1];
const ROUNDS: u64 = 3;

fn main() -> Outcome<()> {
    let mut args = std::env::args().skip(1);
    let root = args.next().ok_or("which directory?")?;
    let mut number = |or: usize| args.next().map_or(Ok(or), |text| text.parse());
    let (ranks, layers, experts) = (number(1024)?, number(61)?, number(256)?);
    let root = Path::new(&root).join("muster-commit");
    fs::create_dir_all(&root)?;
    let schema = schema(layers, experts)?;
    let expected: Vec<ExpectedTensor> = schema.tensors.iter().flat_map(states).collect();
    let boxes = boxes(schema.tensors.len(), ranks);
    let options = WriteOptions::default();
    let before = memory("VmRSS")?;
    let start = Instant::now();
    let mut plan = SavePlan::new(&schema, &expected, &boxes, &options)?;
    let planned = start.elapsed().as_secs_f64();
    let kept = memory("VmRSS")?.saturating_sub(before);
    let store = Store::new(&root);
    let generation = store.claim_generation()?;
    let (mut commits, mut message, mut manifest) = (Vec::new(), 0, 0);
    for step in 1..=ROUNDS {
        let attempt = Attempt { step, generation };
        let messages = write(&store, attempt, (&expected, &boxes), &options)?;
        message = messages.iter().map(Vec::len).max().unwrap_or(0);
        let start = Instant::now();
        let digests: Option<Vec<RankDigest>> =
            messages.iter().map(|message| RankDigest::decode(message)).collect();
        let digests = digests.ok_or("a message that is no digest")?;
        let committed = store.commit_planned(attempt, &mut plan, &digests, &run_state(step))?;
        commits.push(format!("{:.3}", start.elapsed().as_secs_f64()));
        manifest = fs::metadata(committed.path.join("manifest.json"))?.len();
    }
    let chunks: usize = boxes.iter().map(Vec::len).sum();
    println!(
        "{ranks} ranks, {} tensors, {chunks} chunks: planned once in {planned:.3} s; message {} \
         bytes; manifest {:.1} MB; commits {} s; the plan takes {} MiB, all {} MiB at most",
        expected.len(),
        message,
        manifest as f64 / 1e6,
        commits.join(", "),
        kept >> 10,
        memory("VmHWM")? >> 10,
    );
    fs::remove_dir_all(&root)?;
    Ok(())
}

/// As many tensors as a mixture of so many layers has.
fn schema(layers: usize, experts: usize) -> Outcome<Schema> {
    let mut tensors = Vec::new();
    for layer in 0..layers {
        let name = |what: &str| format!("model.layers.{layer}.{what}.weight");
        for what in ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"] {
            let name = name(&format!("self_attn.{what}"));
            tensors.push(LogicalTensor::new(name, &SHAPE, Role::Matrix));
        }
        for index in 0..experts {
            let role = Role::Expert { index: index as u32, of: experts as u32 };
            for what in ["gate_proj", "up_proj", "down_proj"] {
                let name = name(&format!("mlp.experts.{index}.{what}"));
                tensors.push(LogicalTensor::new(name, &SHAPE, role));
            }
        }
    }
    Ok(Schema::new(tensors)?)
}

fn states(tensor: &LogicalTensor) -> [ExpectedTensor; 2] {
    ["param", "momentum"].map(|slot| ExpectedTensor {
        key: TensorKey::new(&*tensor.name, slot),
        dtype: Dtype::F32,
        global_shape: SHAPE.to_vec(),
    })
}

/// Parameters are cut where the ranks' equal shares of them end; momenta lie at owners.
fn boxes(tensors: usize, ranks: usize) -> Vec<Boxes> {
    let mut boxes = vec![Boxes::new(); ranks];
    let rows = tensors * SHAPE[0];
    for (rank, boxes) in boxes.iter_mut().enumerate() {
        let share = layout::share(rows, ranks, rank);
        let mut at = share.start;
        while at < share.end {
            let (tensor, row) = (at / SHAPE[0], at % SHAPE[0]);
            let end = SHAPE[0].min(row + share.end - at);
            boxes.push((2 * tensor, Region::new(&[row, 0], &[end - row, SHAPE[1]])));
            at += end - row;
        }
    }
    for tensor in 0..tensors {
        boxes[tensor % ranks].push((2 * tensor + 1, Region::whole(&SHAPE)));
    }
    boxes
}

/// All ranks write, one after another; what they tell the coordinator.
fn write(
    store: &Store,
    attempt: Attempt,
    (expected, boxes): (&[ExpectedTensor], &[Boxes]),
    options: &WriteOptions,
) -> Outcome<Vec<Vec<u8>>> {
    let zeros = vec![0; BYTES];
    let mut messages = Vec::with_capacity(boxes.len());
    for (rank, mine) in boxes.iter().enumerate() {
        let chunk = |(state, region): &(usize, Region)| {
            let ExpectedTensor { key, dtype, global_shape } = &expected[*state];
            let data = &zeros[..4 * region.elements().unwrap_or(0)];
            Chunk::new(key.clone(), *dtype, global_shape, region.clone(), data)
        };
        let chunks: Vec<Chunk> = mine.iter().map(chunk).collect();
        let world = boxes.len() as u32;
        let report = store.write_rank(attempt, rank as u32, world, &chunks, options)?;
        messages.push(RankDigest::from(&report).encode());
    }
    Ok(messages)
}

/// KiB of this process.
fn memory(what: &str) -> Outcome<usize> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with(what)).ok_or("no such line")?;
    Ok(line.split_ascii_whitespace().nth(1).ok_or("no number")?.parse()?)
}
