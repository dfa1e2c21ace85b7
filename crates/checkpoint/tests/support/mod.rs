//! Shared parts of the tests: a disk that fails and crashes, and small model states to save.
#![allow(dead_code)] // Each test file uses its own part.

pub mod faulty;
pub mod mem_disk;

use std::collections::BTreeMap;

use checkpoint::{
    Attempt, Checkpoint, Chunk, Committed, Digest, Dtype, Error, ExpectedTensor, Region, RunState,
    Store, TensorKey, WriteOptions,
};
use layout::{LogicalTensor, Role, Schema};

/// SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): enough randomness for a test.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`; 0 where that is 0.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    pub fn coin(&mut self) -> bool {
        self.next() & 1 == 1
    }

    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next() as u8).collect()
    }
}

/// A tensor's whole value and the boxes that ranks save of it.
#[derive(Debug, Clone)]
pub struct State {
    pub key: TensorKey,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
    /// Rank and box.
    pub boxes: Vec<(u32, Region)>,
}

impl State {
    pub fn new(name: &str, slot: &str, dtype: Dtype, shape: &[usize], rng: &mut Rng) -> State {
        let count: usize = shape.iter().product();
        State {
            key: TensorKey::new(name, slot),
            dtype,
            shape: shape.to_vec(),
            bytes: rng.bytes(count * dtype.size_bytes()),
            boxes: vec![(0, Region::whole(shape))],
        }
    }

    /// The row-major bytes of a box, element by element.
    pub fn cut(&self, region: &Region) -> Vec<u8> {
        let size = self.dtype.size_bytes();
        let count: usize = region.shape.iter().product();
        let mut out = Vec::with_capacity(count * size);
        for number in 0..count {
            let (mut rest, mut at, mut stride) = (number, 0, 1);
            for axis in (0..self.shape.len()).rev() {
                at += (region.offset[axis] + rest % region.shape[axis]) * stride;
                rest /= region.shape[axis];
                stride *= self.shape[axis];
            }
            out.extend_from_slice(&self.bytes[at * size..(at + 1) * size]);
        }
        out
    }

    pub fn expected(&self) -> ExpectedTensor {
        let (key, global_shape) = (self.key.clone(), self.shape.clone());
        ExpectedTensor { key, dtype: self.dtype, global_shape }
    }

    pub fn chunk(&self, region: &Region) -> Chunk<'static> {
        Chunk::new(self.key.clone(), self.dtype, &self.shape, region.clone(), self.cut(region))
    }
}

/// Three logical tensors with state on two ranks: a matrix cut by rows, a momentum cut by
/// columns, a vector in bf16, a scalar and an empty tensor.
pub fn small_model(seed: u64) -> (Schema, Vec<State>) {
    let mut rng = Rng(seed);
    let mut weight = State::new("layers.0.weight", "param", Dtype::F32, &[6, 4], &mut rng);
    weight.boxes = vec![(0, Region::new(&[0, 0], &[4, 4])), (1, Region::new(&[4, 0], &[2, 4]))];
    let mut momentum = State::new("layers.0.weight", "momentum", Dtype::F32, &[6, 4], &mut rng);
    momentum.boxes = vec![(1, Region::new(&[0, 0], &[6, 1])), (0, Region::new(&[0, 1], &[6, 3]))];
    let mut norm = State::new("norm", "param", Dtype::Bf16, &[5], &mut rng);
    norm.boxes = vec![(1, Region::whole(&[5]))];
    let count = State::new("norm", "count", Dtype::U64, &[], &mut rng);
    let empty = State::new("none", "param", Dtype::F32, &[0, 3], &mut rng);
    let schema = Schema::new(vec![
        LogicalTensor::new("layers.0.weight", &[6, 4], Role::Matrix),
        LogicalTensor::new("norm", &[5], Role::Vector),
        LogicalTensor::new("none", &[0, 3], Role::Expert { index: 1, of: 2 }),
    ])
    .unwrap();
    (schema, vec![weight, momentum, norm, count, empty])
}

/// Cuts a box in two along a random axis, again and again.
pub fn cut(region: Region, cuts: usize, rng: &mut Rng) -> Vec<Region> {
    let mut boxes = vec![region];
    for _ in 0..cuts {
        let number = rng.below(boxes.len());
        let axes = boxes[number].shape.len();
        let axis = rng.below(axes);
        let extent = boxes[number].shape.get(axis).copied().unwrap_or(0);
        if extent < 2 {
            continue;
        }
        let at = 1 + rng.below(extent - 1);
        let mut upper = boxes[number].clone();
        upper.offset[axis] += at;
        upper.shape[axis] -= at;
        boxes[number].shape[axis] = at;
        boxes.push(upper);
    }
    boxes
}

/// Tensors of any shapes, types and names, cut into boxes of any of `world` ranks.
pub fn random_model(rng: &mut Rng, tensors: usize, world: u32) -> (Schema, Vec<State>) {
    let mut states = Vec::new();
    let mut logical = Vec::new();
    for number in 0..tensors {
        let shape: Vec<usize> = (0..rng.below(5)).map(|_| rng.below(8)).collect();
        // Names of people are not always polite to JSON or to our own punctuation.
        let name = ["w", "a.b[0]:c", "\"quoted\"\n", "größe"][rng.below(4)].to_string();
        let name = format!("{name}{number}");
        logical.push(LogicalTensor::new(&*name, &shape, Role::Matrix));
        for slot in ["param", "momentum"] {
            let dtype = Dtype::ALL[rng.below(Dtype::ALL.len())];
            let mut state = State::new(&name, slot, dtype, &shape, rng);
            let cuts = rng.below(6);
            let boxes = cut(Region::whole(&shape), cuts, rng);
            state.boxes =
                boxes.into_iter().map(|b| (rng.below(world as usize) as u32, b)).collect();
            states.push(state);
        }
    }
    (Schema::new(logical).unwrap(), states)
}

pub fn run_state(step: u64) -> RunState {
    RunState {
        muster_version: "0.1.0".to_string(),
        step,
        samples: step * 48,
        tokens: step * 48 * 128,
        seed: u64::MAX - 1,
        rng_counter: 7 * step,
        config_digest: Digest::of(b"config"),
        numeric_plan_digest: Digest::of(b"plan"),
        schedule: serde_json::json!({"lr": 0.1 + 0.2, "phase": "stable"}),
        extra: serde_json::Value::Null,
    }
}

pub fn save_rank(
    store: &Store,
    attempt: Attempt,
    (rank, world): (u32, u32),
    states: &[State],
    options: &WriteOptions,
) -> Result<checkpoint::RankReport, Error> {
    let of_rank = |state: &State| -> Vec<Chunk<'static>> {
        let boxes = state.boxes.iter().filter(|(owner, _)| *owner == rank);
        boxes.map(|(_, region)| state.chunk(region)).collect()
    };
    let chunks: Vec<Chunk> = states.iter().flat_map(of_rank).collect();
    store.write_rank(attempt, rank, world, &chunks, options)
}

/// Saves a model from `world` ranks, one after another, and commits.
pub fn save(
    store: &Store,
    attempt: Attempt,
    world: u32,
    (schema, states): &(Schema, Vec<State>),
    options: &WriteOptions,
) -> Result<Committed, Error> {
    let reports = (0..world)
        .map(|rank| save_rank(store, attempt, (rank, world), states, options))
        .collect::<Result<Vec<_>, Error>>()?;
    let expected: Vec<ExpectedTensor> = states.iter().map(State::expected).collect();
    store.commit(attempt, schema, &expected, &reports, &run_state(attempt.step))
}

/// Everything in a checkpoint, by key.
pub fn contents(checkpoint: &Checkpoint) -> Result<BTreeMap<TensorKey, Vec<u8>>, Error> {
    let read = |tensor: &checkpoint::StateTensor| {
        let key = tensor.key();
        checkpoint.read_tensor(&key).map(|bytes| (key, bytes))
    };
    checkpoint.tensors().iter().map(read).collect()
}

/// The expected [`contents`].
pub fn wanted(states: &[State]) -> BTreeMap<TensorKey, Vec<u8>> {
    states.iter().map(|state| (state.key.clone(), state.bytes.clone())).collect()
}
