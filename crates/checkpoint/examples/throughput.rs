//! Save and load beside plain writes and reads of the same bytes on the same disk:
//! `cargo run --release -p checkpoint --example throughput -- DIRECTORY [MIB]`.

mod measured;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use checkpoint::{
    Attempt, Chunk, Dtype, ExpectedTensor, Places, Region, StateTensor, Store, TensorKey, Wanted,
    WriteOptions, verify,
};
use device::{DType, Device, DeviceError, Tensor, copy_streaming};
use measured::{Outcome, forget, report, run_state};

const PIECE: usize = 4 << 20;
/// Bytes of one tensor.
const TENSOR: usize = 8 << 20;
const ROUNDS: u64 = 5;
/// Reads from the page cache in a round.
const TURNS: usize = 9;

fn main() -> Outcome<()> {
    let mut args = std::env::args().skip(1);
    let root = args.next().ok_or("which directory?")?;
    let mib: usize = args.next().map_or(Ok(512), |text| text.parse())?;
    let root = Path::new(&root).join("muster-throughput");
    fs::create_dir_all(&root)?;
    let data: Vec<u8> = (0..mib << 20).map(|i| ((i * 2_654_435_761) >> 7) as u8).collect();
    let device = Device::cpu(1)?;
    let to = Memory { all: device.zeros(&[data.len()], DType::U8)?, device };
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
        read(&root, round, &to)?;
        let start = Instant::now();
        assert!(verify(&saved, false)?.is_whole());
        report("verify, cached", data.len() as u64, start);
        fs::remove_file(plain)?;
        fs::remove_dir_all(saved)?;
    }
    fs::remove_dir_all(&root)?;
    Ok(())
}

/// From the disk once, then from the page cache in turns.
fn read(root: &Path, step: u64, to: &Memory) -> Outcome<()> {
    let (plain, bytes) = (root.join("plain"), to.all.len() as u64);
    let shard = Attempt { step, generation: 1 }.dir_name() + "/rank-00000/shard-000.safetensors";
    forget(&plain)?;
    let start = Instant::now();
    read_plain(&plain, to)?;
    let raw = report("pread", bytes, start);
    forget(&root.join(shard))?;
    let start = Instant::now();
    load(root, step, to)?;
    println!("  read: {:.3} of plain", report("load", bytes, start) / raw);
    let (mut raw, mut ours) = (Vec::new(), Vec::new());
    for turn in 0..2 * TURNS {
        let start = Instant::now();
        match turn % 2 == 0 {
            true => read_plain(&plain, to)?,
            false => load(root, step, to)?,
        }
        let rates = if turn % 2 == 0 { &mut raw } else { &mut ours };
        rates.push(bytes as f64 / start.elapsed().as_secs_f64() / 1e9);
    }
    let [raw, ours] = [raw, ours].map(|mut rates| {
        rates.sort_by(f64::total_cmp);
        rates[TURNS / 2]
    });
    println!("{:>22}: {raw:.3} GB/s, median of {TURNS} in turn", "pread, cached");
    println!("{:>22}: {ours:.3} GB/s, median of {TURNS} in turn", "load, cached");
    println!("  read: {:.3} of plain", ours / raw);
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

/// By as many threads as there are cores, each its own part, to where the loads go.
fn read_plain(path: &Path, to: &Memory) -> Outcome<()> {
    let file = File::open(path)?;
    Ok(to.device.with_memory("read", |k| Ok(read_parts(&file, k.write(&to.all)?)))??)
}

fn read_parts(file: &File, out: &mut [u8]) -> std::io::Result<()> {
    let threads = std::thread::available_parallelism()?.get();
    let part = out.len().div_ceil(threads);
    std::thread::scope(|scope| {
        for (number, part_of) in out.chunks_mut(part).enumerate() {
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

/// By as many threads as there are cores, into memory of the device, as a trainer does.
fn load(root: &Path, step: u64, to: &Memory) -> Outcome<()> {
    let checkpoint = Store::new(root).open(Attempt { step, generation: 1 })?;
    let whole = |tensor: &StateTensor| {
        let (dtype, region) = (tensor.dtype, Region::whole(&tensor.shape));
        Wanted { key: tensor.key(), dtype, region }
    };
    let wanted: Vec<Wanted> = checkpoint.tensors().iter().map(whole).collect();
    let threads = std::thread::available_parallelism()?.get();
    checkpoint.reads(wanted)?.read(threads, |_| true, to)?;
    Ok(())
}

/// Memory of the CPU, tensor after tensor.
struct Memory {
    device: Device,
    all: Tensor,
}

impl Memory {
    fn part(&self, of: usize, element: usize, bytes: usize) -> Result<Tensor, DeviceError> {
        let start = of * TENSOR + 4 * element;
        self.all.flat(start..start + bytes)
    }
}

impl Places for Memory {
    type Error = Failed;

    fn lend(
        &self,
        of: usize,
        element: usize,
        bytes: usize,
        fill: &mut dyn FnMut(&mut [u8]),
    ) -> Result<(), Failed> {
        let part = self.part(of, element, bytes)?;
        self.device.with_memory("load", |k| {
            fill(k.write(&part)?);
            Ok(())
        })?;
        Ok(())
    }

    fn put(&self, of: usize, element: usize, bytes: &[u8]) -> Result<(), Failed> {
        let part = self.part(of, element, bytes.len())?;
        self.device.with_memory("load", |k| {
            copy_streaming(bytes, k.write(&part)?);
            Ok(())
        })?;
        Ok(())
    }
}

#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error(transparent)]
    Load(#[from] checkpoint::Error),
    #[error(transparent)]
    Device(#[from] DeviceError),
}
