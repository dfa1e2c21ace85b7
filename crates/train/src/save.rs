//! Between the state of the ranks and a checkpoint.
//!
//! State tensors: `param` of every tensor, `momentum` or `adam_m` and `adam_v` by its update, and
//! `router_bias` per mixture. A rank writes the pieces it owns; rank 0 writes the router biases
//! and commits.

use checkpoint::{
    Attempt, Checkpoint, Chunk, ChunkData, Committed, Dtype, ExpectedTensor, RankReport, Region,
    RunState, Source, Store, TensorKey, WriteOptions,
};
use comm::Control;
use device::{DType, Stream, Tensor};
use model::Parameters;
use optim::Update;

use crate::optimizer::Optimizer;
use crate::{RunPlan, TrainError};

/// What was loaded.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    pub state: RunState,
    /// Ranks that wrote it.
    pub written_by: usize,
}

/// Device memory as the bytes of a chunk.
struct DeviceBytes {
    stream: Stream,
    /// f32.
    tensor: Tensor,
}

impl ChunkData for DeviceBytes {
    fn len(&self) -> u64 {
        (self.tensor.len() * 4) as u64
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<(), Source> {
        // Pieces end at multiples of 4 MiB of the file, which may cut an f32.
        let (first, end) = (offset as usize / 4, (offset as usize + out.len()).div_ceil(4));
        let part = self.tensor.reshape(&[self.tensor.len()])?.flat(first..end)?;
        let skip = offset as usize - 4 * first;
        if !self.stream.device().kind().is_host() {
            let values = self.stream.to_vec::<f32>(&part)?;
            out.copy_from_slice(&bytemuck::cast_slice(&values)[skip..skip + out.len()]);
            return Ok(());
        }
        self.stream.with_memory("save", |k| {
            let bytes: &[u8] = bytemuck::cast_slice(k.read::<f32>(&part)?);
            out.copy_from_slice(&bytes[skip..skip + out.len()]);
            Ok(())
        })?;
        Ok(())
    }
}

/// The router biases of a model: name and row of each.
fn router_biases(params: &Parameters) -> Vec<(String, usize)> {
    params.router_biases.iter().cloned().zip(0..).collect()
}

fn key(name: &str, slot: &str) -> TensorKey {
    TensorKey { name: name.to_owned(), slot: slot.to_owned() }
}

/// Every state tensor of a whole checkpoint.
pub(crate) fn expected(plan: &RunPlan, params: &Parameters) -> Vec<ExpectedTensor> {
    let mut expected = Vec::new();
    let mut add = |name: &str, slot: &str, shape: &[usize]| {
        let global_shape = shape.to_vec();
        expected.push(ExpectedTensor { key: key(name, slot), dtype: Dtype::F32, global_shape });
    };
    for (tensor, update) in plan.schema.tensors.iter().zip(&plan.updates) {
        add(&tensor.name, "param", &tensor.shape);
        match update.update {
            Update::Muon(_) => add(&tensor.name, "momentum", &tensor.shape),
            Update::AdamW(_) => {
                add(&tensor.name, "adam_m", &tensor.shape);
                add(&tensor.name, "adam_v", &tensor.shape);
            }
        }
    }
    let experts = plan.architecture.moe.as_ref().map_or(0, |moe| moe.experts);
    for (name, _) in router_biases(params) {
        add(&name, "router_bias", &[experts]);
    }
    expected
}

/// Rows of a tensor, as a box of its shape.
fn rows_region(shape: &[usize], rows: &std::ops::Range<usize>) -> Region {
    let mut offset = vec![0; shape.len()];
    let mut extent = shape.to_vec();
    if let (Some(offset), Some(extent)) = (offset.first_mut(), extent.first_mut()) {
        (*offset, *extent) = (rows.start, rows.len());
    }
    Region::new(&offset, &extent)
}

/// What a save needs to see.
pub struct Saver<'a> {
    pub plan: &'a RunPlan,
    pub params: &'a Parameters,
    pub rank: usize,
    pub world: usize,
    pub control: &'a dyn Control,
    pub stream: &'a Stream,
    pub(crate) optimizer: &'a Optimizer,
    pub weights: &'a Tensor,
    /// `[MoE layers, experts]` f32.
    pub router_bias: &'a Tensor,
}

impl Saver<'_> {
    /// Saves: every rank writes, rank 0 proves the cover and commits. All ranks learn the outcome.
    ///
    /// # Errors
    /// The first rank that could not write, or why the commit failed; the attempt is then removed
    /// as far as possible, and no older checkpoint is touched.
    pub fn save(
        &self,
        store: &Store,
        attempt: Attempt,
        state: &RunState,
    ) -> Result<Committed, TrainError> {
        let rank = self.rank;
        let written = self.write(store, attempt);
        let message = match &written {
            Ok(report) => serde_json::to_vec(&Ok::<_, String>(report)),
            Err(error) => serde_json::to_vec(&Err::<RankReport, _>(error.to_string())),
        };
        let messages = self.control.all_gather_bytes(&message.unwrap_or_default())?;
        let mut reports = Vec::with_capacity(messages.len());
        let mut failed = written.err().map(|error| (rank, error));
        for (peer, message) in messages.iter().enumerate() {
            match serde_json::from_slice::<Result<RankReport, String>>(message) {
                Ok(Ok(report)) => reports.push(report),
                Ok(Err(reason)) => {
                    let step = attempt.step;
                    failed.get_or_insert((peer, TrainError::PeerSave { step, rank: peer, reason }));
                }
                Err(error) => {
                    let (step, reason) = (attempt.step, error.to_string());
                    failed.get_or_insert((peer, TrainError::PeerSave { step, rank: peer, reason }));
                }
            }
        }
        if let Some((_, error)) = failed {
            self.control.barrier()?;
            if rank == 0 {
                // The reason for the failure matters more than leftovers.
                let _ = store.discard(attempt);
            }
            return Err(error);
        }
        self.commit(store, attempt, &reports, state)
    }

    fn write(&self, store: &Store, attempt: Attempt) -> Result<RankReport, TrainError> {
        let (rank, world) = (self.rank as u32, self.world as u32);
        let mut chunks = Vec::new();
        let (stream, views) = self.optimizer.states(self.stream, self.weights)?;
        for view in views {
            let tensor = &self.plan.schema.tensors[view.tensor];
            let region = rows_region(&tensor.shape, &view.rows);
            let data = DeviceBytes { stream: stream.clone(), tensor: view.view };
            let key = key(&tensor.name, view.slot);
            chunks.push(Chunk::new(key, Dtype::F32, &tensor.shape, region, data));
        }
        for (name, row) in router_biases(self.params).into_iter().filter(|_| rank == 0) {
            let tensor = self.router_bias.rows(row..row + 1)?;
            let shape = [tensor.len()];
            let data = DeviceBytes { stream: self.stream.clone(), tensor };
            let key = key(&name, "router_bias");
            chunks.push(Chunk::new(key, Dtype::F32, &shape, Region::whole(&shape), data));
        }
        Ok(store.write_rank(attempt, rank, world, &chunks, &WriteOptions::default())?)
    }

    fn commit(
        &self,
        store: &Store,
        attempt: Attempt,
        reports: &[RankReport],
        state: &RunState,
    ) -> Result<Committed, TrainError> {
        let mut outcome = Vec::new();
        let mut result = None;
        if self.rank == 0 {
            let expected = expected(self.plan, self.params);
            let done = store.commit(attempt, &self.plan.schema, &expected, reports, state);
            let told = match &done {
                Ok(c) => Ok((c.path.clone(), c.bytes, c.shards, c.state_tensors)),
                Err(error) => Err(error.to_string()),
            };
            outcome = serde_json::to_vec(&told).unwrap_or_default();
            result = Some(done);
        }
        self.control.broadcast_bytes(0, &mut outcome)?;
        if let Some(result) = result {
            return Ok(result?);
        }
        type Told = Result<(std::path::PathBuf, u64, usize, usize), String>;
        let refuse = |reason| TrainError::PeerSave { step: attempt.step, rank: 0, reason };
        let told: Told = serde_json::from_slice(&outcome).map_err(|e| refuse(e.to_string()))?;
        let (path, bytes, shards, state_tensors) = told.map_err(refuse)?;
        let manifest_blake3 = checkpoint::Digest([0; 32]);
        Ok(Committed { path, bytes, shards, state_tensors, manifest_blake3 })
    }
}

/// Refuses a checkpoint of another model, naming the first difference.
pub fn check_model(checkpoint: &Checkpoint, plan: &RunPlan) -> Result<(), TrainError> {
    let theirs = checkpoint.schema();
    let refuse =
        |difference| Err(TrainError::OtherModel { path: checkpoint.path().to_owned(), difference });
    for (ours, theirs) in plan.schema.tensors.iter().zip(&theirs.tensors) {
        if ours.name != theirs.name {
            return refuse(format!("it has `{}` where this has `{}`", theirs.name, ours.name));
        }
        if ours.shape != theirs.shape {
            let (a, b) = (&theirs.shape, &ours.shape);
            return refuse(format!("`{}` is {a:?} there and {b:?} here", ours.name));
        }
    }
    let (a, b) = (theirs.tensors.len(), plan.schema.tensors.len());
    if a != b {
        return refuse(format!("it has {a} tensors and this has {b}"));
    }
    Ok(())
}

/// Per slot of the optimizer, the tensors whose state a checkpoint lacks, as their rule was another
/// then: those of every rank. They start at zero.
pub fn missing_states(
    checkpoint: &Checkpoint,
    plan: &RunPlan,
    params: &Parameters,
) -> Vec<(String, Vec<String>)> {
    let mut missing: Vec<(String, Vec<String>)> = Vec::new();
    for ExpectedTensor { key, .. } in expected(plan, params) {
        if !may_start_at_zero(&key) || checkpoint.tensor(&key).is_ok() {
            continue;
        }
        match missing.iter_mut().find(|(slot, _)| *slot == key.slot) {
            Some((_, names)) => names.push(key.name),
            None => missing.push((key.slot, vec![key.name])),
        }
    }
    missing
}

/// The model itself must be there; the optimizer's state can be made up for.
fn may_start_at_zero(key: &TensorKey) -> bool {
    !["param", "router_bias"].contains(&key.slot.as_str())
}

/// Loads the states of this rank's pieces and the router biases; weights still have to be
/// gathered. A state that the checkpoint lacks starts at zero: see [`missing_states`].
///
/// # Errors
/// Damaged or missing data.
pub fn load_states(checkpoint: &Checkpoint, saver: &Saver) -> Result<(), TrainError> {
    let (stream, views) = saver.optimizer.states(saver.stream, saver.weights)?;
    for view in views {
        let tensor = &saver.plan.schema.tensors[view.tensor];
        let key = key(&tensor.name, view.slot);
        if may_start_at_zero(&key) && checkpoint.tensor(&key).is_err() {
            // A checkpoint that turned out damaged may have left something there.
            stream.copy_in(&view.view, &vec![0_f32; view.view.len()])?;
            continue;
        }
        let region = rows_region(&tensor.shape, &view.rows);
        read_into(checkpoint, &stream, &key, &region, &view.view)?;
    }
    load_router_biases(checkpoint, saver.params, saver.stream, saver.router_bias)
}

fn load_router_biases(
    checkpoint: &Checkpoint,
    params: &Parameters,
    stream: &Stream,
    router_bias: &Tensor,
) -> Result<(), TrainError> {
    for (name, row) in router_biases(params) {
        let to = router_bias.rows(row..row + 1)?;
        let region = Region::whole(&[to.len()]);
        read_into(checkpoint, stream, &key(&name, "router_bias"), &region, &to)?;
    }
    Ok(())
}

fn read_into(
    checkpoint: &Checkpoint,
    stream: &Stream,
    key: &TensorKey,
    region: &Region,
    to: &Tensor,
) -> Result<(), TrainError> {
    let mut values = vec![0_f32; to.len()];
    let bytes = bytemuck::cast_slice_mut(&mut values);
    checkpoint.read_box(key, Dtype::F32, region, bytes)?;
    if to.dtype() == DType::Bf16 {
        let rounded: Vec<half::bf16> = values.iter().map(|&x| half::bf16::from_f32(x)).collect();
        return Ok(stream.copy_in(to, &rounded)?);
    }
    Ok(stream.copy_in(to, &values)?)
}

/// Loads all weights (flat, f32 or bf16) and router biases, for use without an optimizer.
///
/// # Errors
/// Damaged or missing data; a checkpoint of another model.
pub fn load_weights(
    checkpoint: &Checkpoint,
    plan: &RunPlan,
    params: &Parameters,
    stream: &Stream,
    (weights, router_bias): (&Tensor, &Tensor),
) -> Result<(), TrainError> {
    check_model(checkpoint, plan)?;
    for (index, tensor) in plan.schema.tensors.iter().enumerate() {
        let to = weights.flat(plan.flat.range(index))?;
        let region = Region::whole(&tensor.shape);
        read_into(checkpoint, stream, &key(&tensor.name, "param"), &region, &to)?;
    }
    load_router_biases(checkpoint, params, stream, router_bias)
}
