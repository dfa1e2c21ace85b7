//! Save and load beside plain writes and reads of the same bytes on the same disk:
//! `cargo run --release -p checkpoint --example throughput -- DIRECTORY [MIB]`.

mod measured;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

use checkpoint::{
    Attempt, Chunk, Dtype, ExpectedTensor, Region, StateTensor, Store, TensorKey, Wanted,
    WriteOptions, verify,
};
use measured::{Outcome, forget, report, run_state};

const PIECE: usize = 4 << 20;
/// Bytes of one tensor.
const TENSOR: usize = 8 << 20;
const ROUNDS: u64 = 5;

fn main() -> Outcome<()> {
    let mut args = std::env::args().skip(1);
    let root = args.next().ok_or("which directory?")?;
    let mib: usize = args.next().map_or(Ok(512), |text| text.parse())?;
    let root = Path::new(&root).join("muster-throughput");
    fs::create_dir_all(&root)?;
    let data: Vec<u8> = (0..mib << 20).map(|i| ((i * 2_654_435_761) >> 7) as u8).collect();
    let mut out = vec![1; data.len()];
    let start = Instant::now();
    std::hint::black_box(data.chunks(PIECE).map(crc_fast::crc32_iscsi).fold(0, |a, b| a ^ b));
    report("crc32c alone", data.len() as u64, start);
    for round in 0..ROUNDS {
        let plain = root.join("plain");
        let saved = root.join(Attempt { step: round, generation: 1 }.dir_name());
        // Each is first in turn, so that both see the same neighbours.
        let (mut raw, mut ours) = (0.0, 0.0);
        for turn in 0..2 {
            let start = Instant::now();
            if (round + turn) % 2 == 0 {
                write_plain(&plain, &data)?;
                raw = report("plain write + fsync", data.len() as u64, start);
            } else {
                save(&root, round, &data)?;
                ours = report("save + commit", data.len() as u64, start);
            }
        }
        println!("  write: {:.3} of plain", ours / raw);
        for cached in [false, true] {
            let forget = |path: &Path| if cached { Ok(()) } else { forget(path) };
            forget(&plain)?;
            let start = Instant::now();
            read_plain(&plain, &mut out)?;
            let raw =
                report(if cached { "pread, cached" } else { "pread" }, data.len() as u64, start);
            forget(&saved.join("rank-00000/shard-000.safetensors"))?;
            let start = Instant::now();
            load(&root, round, &mut out)?;
            let ours =
                report(if cached { "load, cached" } else { "load" }, data.len() as u64, start);
            println!("  read: {:.3} of plain", ours / raw);
        }
        let start = Instant::now();
        assert!(verify(&saved, false)?.is_whole());
        report("verify, cached", data.len() as u64, start);
        fs::remove_file(plain)?;
        fs::remove_dir_all(saved)?;
    }
    fs::remove_dir_all(&root)?;
    Ok(())
}

fn write_plain(path: &Path, data: &[u8]) -> Outcome<()> {
    let mut file = File::create_new(path)?;
    let mut staging = vec![0; PIECE];
    for piece in data.chunks(PIECE) {
        // The copy stands for the one out of device memory, which every saver makes.
        staging[..piece.len()].copy_from_slice(piece);
        file.write_all(&staging[..piece.len()])?;
    }
    Ok(file.sync_all()?)
}

/// By as many threads as there are cores, each its own part.
fn read_plain(path: &Path, out: &mut [u8]) -> Outcome<()> {
    let (file, threads) = (File::open(path)?, std::thread::available_parallelism()?.get());
    let part = out.len().div_ceil(threads);
    std::thread::scope(|scope| {
        for (number, part_of) in out.chunks_mut(part).enumerate() {
            let file = &file;
            scope.spawn(move || {
                for (piece, bytes) in part_of.chunks_mut(PIECE).enumerate() {
                    file.read_exact_at(bytes, (number * part + piece * PIECE) as u64).unwrap();
                }
            });
        }
    });
    Ok(())
}

fn save(root: &Path, step: u64, data: &[u8]) -> Outcome<()> {
    let store = Store::new(root);
    let attempt = Attempt { step, generation: 1 };
    let mut expected = Vec::new();
    let mut chunks = Vec::new();
    for (number, bytes) in data.chunks(TENSOR).enumerate() {
        let (key, shape) = (TensorKey::new(format!("t{number}"), "param"), [bytes.len() / 4]);
        chunks.push(Chunk::new(key.clone(), Dtype::F32, &shape, Region::whole(&shape), bytes));
        expected.push(ExpectedTensor { key, dtype: Dtype::F32, global_shape: shape.to_vec() });
    }
    let reports = [store.write_rank(attempt, 0, 1, &chunks, &WriteOptions::default())?];
    store.commit(attempt, &layout::Schema::default(), &expected, &reports, &run_state(step))?;
    Ok(())
}

/// By as many threads as there are cores; the copy stands for the one into device memory.
fn load(root: &Path, step: u64, out: &mut [u8]) -> Outcome<()> {
    let checkpoint = Store::new(root).open(Attempt { step, generation: 1 })?;
    let whole = |tensor: &StateTensor| {
        let (dtype, region) = (tensor.dtype, Region::whole(&tensor.shape));
        Wanted { key: tensor.key(), dtype, region }
    };
    let wanted: Vec<Wanted> = checkpoint.tensors().iter().map(whole).collect();
    let threads = std::thread::available_parallelism()?.get();
    let tensors: Vec<Mutex<&mut [u8]>> = out.chunks_mut(TENSOR).map(Mutex::new).collect();
    checkpoint.read_boxes::<checkpoint::Error>(&wanted, threads, |number, start, bytes| {
        let mut tensor = tensors[number].lock().unwrap();
        device::copy_streaming(bytes, &mut tensor[4 * start..4 * start + bytes.len()]);
        Ok(())
    })?;
    Ok(())
}
