//! A reshape beside a plain copy of the same bytes on the same disk, both ending with fsync:
//! `cargo run --release -p checkpoint --example reshape -- DIRECTORY [GB] [ROUNDS]`.
//!
//! A mixture of experts with its optimizer's state, saved by eight data-parallel ranks, is cut for
//! dp 3 · ep 2 · tp 2. What the disk allows is the copy: the files read by 8 MiB and written again
//! by as many threads. The source is dropped from the page cache before each. The last line is the
//! most memory that the process has had.

mod measured;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use checkpoint::{
    Attempt, Checkpoint, Chunk, ChunkData, Dtype, ExpectedTensor, Reshape, ReshapeOptions, Source,
    Store, TensorKey, WriteOptions, verify,
};
use layout::{HeadRows, LogicalTensor, Mesh, Placements, Role, Schema, Written, write_plan};
use measured::{Outcome, forget, report, run_state};

const HEADS: usize = 16;
const WIDTH: usize = 2048;
const INNER: usize = 1024;
const EXPERTS: u32 = 8;
const SLOTS: [&str; 2] = ["param", "momentum"];
const PIECE: usize = 8 << 20;

fn main() -> Outcome<()> {
    let mut args = std::env::args().skip(1);
    let root = args.next().ok_or("which directory?")?;
    let gb: f64 = args.next().map_or(Ok(2.0), |text| text.parse())?;
    let rounds: usize = args.next().map_or(Ok(3), |text| text.parse())?;
    let threads = std::thread::available_parallelism()?.get();
    let root = Path::new(&root).join("muster-reshape");
    fs::create_dir_all(&root)?;
    let schema = schema(gb)?;
    let source = Store::new(root.join("source"));
    save(&source, &schema, Mesh::data_parallel(8))?;
    let path = source.newest()?.checkpoint.ok_or("nothing was saved")?.path().to_path_buf();
    for round in 0..rounds {
        let (mut plain, mut ours) = (0.0, 0.0);
        for turn in 0..2 {
            forget_all(&path)?;
            if (round + turn) % 2 == 0 {
                plain = copy(&path, &root.join("plain"), threads)?;
            } else {
                ours = reshape(&path, &root.join("target"), threads)?;
            }
        }
        println!("  of plain: {:.3}", ours / plain);
    }
    fs::remove_dir_all(&root)?;
    let status = fs::read_to_string("/proc/self/status")?;
    print!("{}", status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or_default());
    println!();
    Ok(())
}

/// Layers until there are so many bytes of weights and momentum.
fn schema(gb: f64) -> Outcome<Schema> {
    let mut tensors =
        vec![LogicalTensor::new("model.embed_tokens.weight", &[32_000, WIDTH], Role::Embedding)];
    let bytes = |tensors: &[LogicalTensor]| {
        tensors.iter().map(|t| t.shape.iter().product::<usize>() * 8).sum::<usize>() as f64
    };
    let mut layer = 0;
    while bytes(&tensors) < gb * 1e9 {
        let name = |what: &str| format!("model.layers.{layer}.{what}.weight");
        for what in ["q_proj", "k_proj", "v_proj", "o_proj"] {
            let name = name(&format!("self_attn.{what}"));
            tensors.push(LogicalTensor::new(name, &[WIDTH, WIDTH], Role::Matrix));
        }
        for index in 0..EXPERTS {
            let role = Role::Expert { index, of: EXPERTS };
            let expert = |what: &str| name(&format!("mlp.experts.{index}.{what}"));
            for what in ["gate_proj", "up_proj"] {
                tensors.push(LogicalTensor::new(expert(what), &[INNER, WIDTH], role));
            }
            tensors.push(LogicalTensor::new(expert("down_proj"), &[WIDTH, INNER], role));
        }
        tensors.push(LogicalTensor::new(name("input_layernorm"), &[WIDTH], Role::Vector));
        layer += 1;
    }
    Ok(Schema::new(tensors)?)
}

/// The boxes that each rank of a mesh writes, of each tensor and slot by turns.
fn boxes(schema: &Schema, mesh: Mesh) -> Outcome<Vec<Vec<(usize, checkpoint::Region)>>> {
    let placements = Placements::new(schema, HeadRows::of(WIDTH / HEADS), mesh)?;
    let of = |(index, tensor): (usize, &LogicalTensor)| {
        let like = Some(index);
        let written = Written { shape: tensor.shape.clone(), element_bytes: 4, like };
        vec![written; SLOTS.len()]
    };
    let written: Vec<Written> = schema.tensors.iter().enumerate().flat_map(of).collect();
    Ok(write_plan(&placements, &written)?)
}

/// Values that follow from their place.
struct Made(u64);

impl ChunkData for Made {
    fn len(&self) -> u64 {
        self.0
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<(), Source> {
        for (index, byte) in out.iter_mut().enumerate() {
            *byte = ((offset as usize + index).wrapping_mul(2_654_435_761) >> 7) as u8;
        }
        Ok(())
    }
}

fn save(store: &Store, schema: &Schema, mesh: Mesh) -> Outcome<()> {
    let attempt = Attempt { step: 1, generation: store.claim_generation()? };
    let key = |tensor: usize| {
        let name = &schema.tensors[tensor / SLOTS.len()].name;
        TensorKey::new(name.as_str(), SLOTS[tensor % SLOTS.len()])
    };
    let shape = |tensor: usize| schema.tensors[tensor / SLOTS.len()].shape.clone();
    let mut reports = Vec::new();
    let ranks = boxes(schema, mesh)?;
    for (rank, boxes) in ranks.iter().enumerate() {
        let chunk = |(tensor, region): &(usize, checkpoint::Region)| {
            let data = Made(4 * region.elements().unwrap_or(0) as u64);
            Chunk::new(key(*tensor), Dtype::F32, &shape(*tensor), region.clone(), data)
        };
        let chunks: Vec<Chunk> = boxes.iter().map(chunk).collect();
        let of = (rank as u32, ranks.len() as u32);
        reports.push(store.write_rank(attempt, of.0, of.1, &chunks, &WriteOptions::default())?);
    }
    let expected = (0..schema.tensors.len() * SLOTS.len()).map(|tensor| ExpectedTensor {
        key: key(tensor),
        dtype: Dtype::F32,
        global_shape: shape(tensor),
    });
    let expected: Vec<ExpectedTensor> = expected.collect();
    store.commit(attempt, schema, &expected, &reports, &run_state(1))?;
    Ok(())
}

/// GB/s of a reshape; its result is verified afterwards, and removed.
fn reshape(source: &Path, target: &Path, threads: usize) -> Outcome<f64> {
    let start = Instant::now();
    let checkpoint = Checkpoint::open(source)?;
    let ranks = boxes(&checkpoint.schema(), Mesh { pp: 1, dp: 3, ep: 2, tp: 2 })?;
    let store = Store::new(target);
    let options = ReshapeOptions { threads, wave_bytes: 1 << 30 };
    let reshape = Reshape::new(&checkpoint, &store, &ranks, options);
    let done = reshape.run(&|_| ())?;
    let rate = report("reshape", reshape.bytes(), start);
    assert!(verify(&done.committed.path, false)?.is_whole());
    fs::remove_dir_all(target)?;
    Ok(rate)
}

/// The files of a directory, below it.
fn files(of: &Path) -> Outcome<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(of)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files(&path)?);
        } else {
            found.push(path);
        }
    }
    Ok(found)
}

/// GB/s of a copy of the shards, file by file, with an fsync of each.
fn copy(source: &Path, target: &Path, threads: usize) -> Outcome<f64> {
    fs::create_dir_all(target)?;
    let all = files(source)?;
    let bytes =
        all.iter().map(|path| path.metadata().map(|found| found.len())).sum::<Result<u64, _>>()?;
    let start = Instant::now();
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut buffer = vec![0; PIECE];
                while let Some(path) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let to = target.join(
                        path.strip_prefix(source).unwrap().to_str().unwrap().replace('/', "-"),
                    );
                    let (from, to) = (File::open(path).unwrap(), File::create_new(to).unwrap());
                    let bytes = from.metadata().unwrap().len() as usize;
                    for offset in (0..bytes).step_by(PIECE) {
                        let piece = &mut buffer[..PIECE.min(bytes - offset)];
                        from.read_exact_at(piece, offset as u64).unwrap();
                        to.write_all_at(piece, offset as u64).unwrap();
                    }
                    to.sync_all().unwrap();
                }
            });
        }
    });
    let rate = report("plain copy", bytes, start);
    fs::remove_dir_all(target)?;
    Ok(rate)
}

/// Drops the files below a directory from the page cache.
fn forget_all(dir: &Path) -> Outcome<()> {
    files(dir)?.iter().try_for_each(|path| forget(path))
}
