//! How long it takes to open a checkpoint of very many chunks, to find those of every box of
//! another layout, and to plan a reshape, before any data is read:
//! `cargo run --release -p checkpoint --example plan -- DIRECTORY [TENSORS] [RANKS]`.
//!
//! Each rank has a row of each tensor, which is a chunk of 64 bytes; by default there are 10⁶. The
//! last line is the most memory that the process has had.

mod measured;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use checkpoint::{
    Attempt, Checkpoint, Chunk, Dtype, ExpectedTensor, Region, Reshape, ReshapeOptions, Store,
    TensorKey, Wanted, WriteOptions,
};
use layout::{HeadRows, LogicalTensor, Mesh, Placements, Role, Schema, Written, write_plan};
use measured::{Outcome, run_state};

const COLUMNS: usize = 16;

fn main() -> Outcome<()> {
    let mut args = std::env::args().skip(1);
    let root = args.next().ok_or("which directory?")?;
    let tensors: usize = args.next().map_or(Ok(10_000), |text| text.parse())?;
    let ranks: usize = args.next().map_or(Ok(100), |text| text.parse())?;
    let root = Path::new(&root).join("muster-plan");
    fs::create_dir_all(&root)?;
    let path = match std::env::var("MUSTER_PLAN_CHILD") {
        // Memory of the writing is not to be counted.
        Ok(path) => path.into(),
        Err(_) => {
            let path = save(&root, tensors, ranks)?;
            let mut child = Command::new(std::env::current_exe()?);
            child.args(std::env::args().skip(1)).env("MUSTER_PLAN_CHILD", &path);
            assert!(child.status()?.success());
            fs::remove_dir_all(&root)?;
            return Ok(());
        }
    };
    measure(path, &root, tensors * ranks)
}

fn schema(tensors: usize, ranks: usize) -> Outcome<Schema> {
    let tensor = |number: usize| {
        let name = format!("model.layers.{}.matrix.{number}.weight", number / 100);
        LogicalTensor::new(name, &[ranks, COLUMNS], Role::Matrix)
    };
    Ok(Schema::new((0..tensors).map(tensor).collect())?)
}

fn save(root: &Path, tensors: usize, ranks: usize) -> Outcome<PathBuf> {
    let (store, schema) = (Store::new(root.join("source")), schema(tensors, ranks)?);
    let attempt = Attempt { step: 1, generation: store.claim_generation()? };
    let row = vec![0_u8; 4 * COLUMNS];
    let shape = [ranks, COLUMNS];
    let mut reports = Vec::new();
    for rank in 0..ranks {
        let chunk = |tensor: &LogicalTensor| {
            let (key, region) =
                (TensorKey::new(&*tensor.name, "param"), Region::new(&[rank, 0], &[1, COLUMNS]));
            Chunk::new(key, Dtype::F32, &shape, region, row.clone())
        };
        let chunks: Vec<Chunk> = schema.tensors.iter().map(chunk).collect();
        let (of, options) = ((rank as u32, ranks as u32), WriteOptions::default());
        reports.push(store.write_rank(attempt, of.0, of.1, &chunks, &options)?);
    }
    let expected = schema.tensors.iter().map(|tensor| ExpectedTensor {
        key: TensorKey::new(&*tensor.name, "param"),
        dtype: Dtype::F32,
        global_shape: tensor.shape.clone(),
    });
    let expected: Vec<ExpectedTensor> = expected.collect();
    Ok(store.commit(attempt, &schema, &expected, &reports, &run_state(1))?.path)
}

fn measure(path: PathBuf, root: &Path, chunks: usize) -> Outcome<()> {
    let manifest = fs::metadata(path.join("manifest.json"))?.len();
    let start = Instant::now();
    let checkpoint = Checkpoint::open(&path)?;
    let opened = start.elapsed().as_secs_f64();
    let schema = checkpoint.schema();
    let written = checkpoint.tensors().iter().map(|tensor| {
        let element_bytes = tensor.dtype.size_bytes();
        Written { shape: tensor.shape.clone(), element_bytes, like: schema.find(&tensor.name) }
    });
    let written: Vec<Written> = written.collect();
    let mesh = Mesh { pp: 2, dp: 6, ep: 1, tp: 1 };
    let start = Instant::now();
    let ranks = write_plan(&Placements::new(&schema, HeadRows::of(1), mesh)?, &written)?;
    let store = Store::new(root.join("target"));
    let options = ReshapeOptions { threads: 1, wave_bytes: 1 << 30 };
    let reshape = Reshape::new(&checkpoint, &store, &ranks, options);
    let planned = start.elapsed().as_secs_f64();
    let all = checkpoint.tensors().iter().map(|tensor| Wanted {
        key: tensor.key(),
        dtype: tensor.dtype,
        region: Region::whole(&tensor.shape),
    });
    let all: Vec<Wanted> = all.collect();
    let start = Instant::now();
    checkpoint.read_boxes::<checkpoint::Error>(&all, 1, |_, _, _| Ok(()))?;
    let read = start.elapsed().as_secs_f64();
    let status = fs::read_to_string("/proc/self/status")?;
    let memory = status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or_default();
    println!(
        "{chunks} chunks in a manifest of {:.1} MB: opened and proved whole in {opened:.2} s; \
         planned for {} ranks in {planned:.2} s ({} bytes to write); every chunk found, read and \
         verified in {read:.2} s; {}",
        manifest as f64 / 1e6,
        ranks.len(),
        reshape.bytes(),
        memory.split_whitespace().collect::<Vec<_>>().join(" "),
    );
    Ok(())
}
