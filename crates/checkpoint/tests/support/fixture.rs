//! The checkpoint that is kept as the fixture of format version 1. Its values follow from their
//! index, so that a reader in any language can check what it reads.

use checkpoint::{
    Attempt, Chunk, Digest, Dtype, Error, ExpectedTensor, Region, RunState, Store, TensorKey,
    WriteOptions,
};
use layout::{LogicalTensor, Part, Role, Schema};

/// Where the fixture lies, seen from this crate.
pub const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/checkpoint-v1");

pub const ATTEMPT: Attempt = Attempt { step: 12, generation: 3 };

/// A state tensor, its bytes, and the boxes of it that each of the two ranks saved.
pub struct Kept {
    pub key: TensorKey,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
    pub boxes: Vec<(u32, Region)>,
}

pub fn schema() -> Schema {
    let mut fused = LogicalTensor::new("h.0.qkv", &[6, 4], Role::Matrix);
    let part = |label: &str, rows| Part { label: label.to_string(), rows };
    fused.parts = vec![part("q", 0..2), part("k", 2..4), part("v", 4..6)];
    fused.published_transposed = true;
    let mut expert =
        LogicalTensor::new("h.0.expert.1", &[32, 32], Role::Expert { index: 1, of: 2 });
    expert.fused = true;
    let norm = LogicalTensor::new("norm", &[5], Role::Vector);
    let absent = LogicalTensor::new("no.rows", &[0, 4], Role::Matrix);
    Schema::new(vec![fused, expert, norm, absent]).expect("the fixture's schema is sound")
}

/// Element `i` is `i / 2 - 3`, as f32.
fn halves(count: usize) -> Vec<u8> {
    (0..count).flat_map(|i| (i as f32 / 2.0 - 3.0).to_le_bytes()).collect()
}

pub fn tensors() -> Vec<Kept> {
    let kept = |name: &str, slot: &str, dtype, shape: &[usize], bytes, boxes| Kept {
        key: TensorKey::new(name, slot),
        dtype,
        shape: shape.to_vec(),
        bytes,
        boxes,
    };
    let b = |rank: u32, offset: &[usize], shape: &[usize]| (rank, Region::new(offset, shape));
    // Bit patterns 0, 257, 514 … as bf16; 7 as u64.
    let patterns = (0..5_u16).flat_map(|i| (257 * i).to_le_bytes()).collect();
    let rows = vec![b(0, &[0, 0], &[4, 4]), b(1, &[4, 0], &[2, 4])];
    let columns = vec![b(0, &[0, 0], &[6, 1]), b(1, &[0, 1], &[6, 3])];
    vec![
        kept("h.0.qkv", "param", Dtype::F32, &[6, 4], halves(24), rows),
        kept("h.0.qkv", "momentum", Dtype::F32, &[6, 4], halves(24), columns),
        kept(
            "h.0.expert.1",
            "param",
            Dtype::F32,
            &[32, 32],
            halves(1024),
            vec![b(1, &[0, 0], &[32, 32])],
        ),
        kept("norm", "param", Dtype::Bf16, &[5], patterns, vec![b(0, &[0], &[5])]),
        kept(
            "norm",
            "updates",
            Dtype::U64,
            &[],
            7_u64.to_le_bytes().to_vec(),
            vec![b(0, &[], &[])],
        ),
        kept("no.rows", "param", Dtype::F32, &[0, 4], Vec::new(), vec![]),
    ]
}

pub fn run_state() -> RunState {
    RunState {
        muster_version: "0.1.0".to_string(),
        step: ATTEMPT.step,
        samples: 576,
        tokens: 73_728,
        seed: u64::MAX,
        rng_counter: 1 << 60,
        config_digest: Digest::of(b"config"),
        numeric_plan_digest: Digest::of(b"numeric plan"),
        schedule: serde_json::json!({"factor": 0.1, "phase": "stable"}),
        extra: serde_json::json!({"best_loss": 0.30000000000000004, "notes": ["größe", null]}),
    }
}

/// The row-major bytes of a box of at most two axes.
fn cut(kept: &Kept, region: &Region) -> Vec<u8> {
    let size = kept.dtype.size_bytes();
    let ([rows, columns], [top, left], width) = match (&region.shape[..], &region.offset[..]) {
        ([], _) => ([1, 1], [0, 0], 1),
        (&[count], &[first]) => ([1, count], [0, first], kept.shape[0]),
        (shape, offset) => ([shape[0], shape[1]], [offset[0], offset[1]], kept.shape[1]),
    };
    let row = |row: usize| {
        let start = (row * width + left) * size;
        &kept.bytes[start..start + columns * size]
    };
    (top..top + rows).flat_map(row).copied().collect()
}

/// Saves the fixture under a root.
pub fn write(store: &Store) -> Result<(), Error> {
    let tensors = tensors();
    // Small shards, so that rank 1 has two.
    let options = WriteOptions { max_shard_bytes: 4096, digest_data: true };
    let mut reports = Vec::new();
    for rank in 0..2 {
        let mut chunks = Vec::new();
        for kept in &tensors {
            for (_, region) in kept.boxes.iter().filter(|(owner, _)| *owner == rank) {
                let data = cut(kept, region);
                let (key, region) = (kept.key.clone(), region.clone());
                chunks.push(Chunk::new(key, kept.dtype, &kept.shape, region, data));
            }
        }
        reports.push(store.write_rank(ATTEMPT, rank, 2, &chunks, &options)?);
    }
    let expected: Vec<ExpectedTensor> = tensors
        .iter()
        .map(|kept| ExpectedTensor {
            key: kept.key.clone(),
            dtype: kept.dtype,
            global_shape: kept.shape.clone(),
        })
        .collect();
    store.commit(ATTEMPT, &schema(), &expected, &reports, &run_state()).map(|_| ())
}
