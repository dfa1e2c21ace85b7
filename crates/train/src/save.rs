//! Between the states of the ranks and a checkpoint.
//!
//! The states to save are declared ([`RunPlan::states`]): the parameters and what their updates
//! keep, then the engine's states. Each rank writes its part of them ([`RunPlan::save_boxes`]) and
//! tells rank 0 a digest of it; rank 0, which has computed what all ranks write, commits.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use checkpoint::{
    Attempt, Boxes, Checkpoint, Chunk, ChunkData, Committed, RankDigest, Region, RunState,
    SavePlan, Source, Store, WriteOptions,
};
use comm::Control;
use device::{Stream, Tensor, copy_streaming};
use layout::{Absent, Schema, Sharing, StateDecl};
use optim::StateView;

use crate::optimizer::Optimizer;
use crate::save_boxes::key;
use crate::save_outcome::conclude;
use crate::{RunPlan, TrainError};

/// Elements that a thread copies at a time.
const COPIED: usize = 1 << 18;

/// A checkpoint that was loaded.
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

/// Everything that a save reads.
pub(crate) struct Saver<'a> {
    pub plan: &'a RunPlan,
    /// Of the run: states that a checkpoint lacks may begin with it.
    pub seed: u64,
    pub rank: usize,
    pub world: usize,
    pub control: &'a dyn Control,
    pub stream: &'a Stream,
    pub(crate) optimizer: &'a Optimizer,
    pub weights: &'a Tensor,
    /// Of the engine, as [`RunPlan::engine_states`] declares them.
    pub(crate) engine: Vec<Tensor>,
}

/// The boxes of all saves of a run; made once.
pub(crate) struct Planned {
    /// This rank's.
    boxes: Boxes,
    /// Of rank 0. Locked while one save commits, and for that alone.
    all: Option<Mutex<SavePlan>>,
}

impl Planned {
    /// As rank `rank` needs it.
    ///
    /// # Errors
    /// Never for a rank of the plan.
    pub(crate) fn new(plan: &RunPlan, rank: usize) -> Result<Planned, TrainError> {
        let mut ranks = plan.save_boxes()?;
        let all = match rank {
            0 => Some(plan.save_plan(&ranks, &WriteOptions::default())?.into()),
            _ => None,
        };
        Ok(Planned { boxes: ranks.swap_remove(rank), all })
    }

    /// The boxes of this rank.
    pub(crate) fn boxes(&self) -> &Boxes {
        &self.boxes
    }

    /// The plan of all ranks, where this is rank 0.
    pub(crate) fn all(&self) -> Option<MutexGuard<'_, SavePlan>> {
        let all = self.all.as_ref()?;
        Some(all.lock().unwrap_or_else(PoisonError::into_inner))
    }
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
        planned: &Planned,
        state: &RunState,
    ) -> Result<Committed, TrainError> {
        let written = self.write(store, attempt, &planned.boxes);
        conclude(self.control, (store, attempt), planned.all().as_deref_mut(), written, state)
    }

    fn write(
        &self,
        store: &Store,
        attempt: Attempt,
        boxes: &Boxes,
    ) -> Result<RankDigest, TrainError> {
        let (rank, world) = (self.rank as u32, self.world as u32);
        let data = self.data(boxes)?.into_iter();
        let chunks: Vec<Chunk> = boxes
            .iter()
            .zip(data)
            .map(|((state, region), data)| {
                let StateDecl { dtype, ref shape, .. } = self.plan.states[*state];
                Chunk::new(key(&self.plan.states[*state]), dtype, shape, region.clone(), data)
            })
            .collect();
        let report = store.write_rank(attempt, rank, world, &chunks, &WriteOptions::default())?;
        Ok(RankDigest::from(&report))
    }

    /// Copies these boxes, one after another, into memory that has their size.
    ///
    /// # Errors
    /// Device errors.
    pub(crate) fn copy(&self, boxes: &Boxes, mut to: &mut [f32]) -> Result<(), TrainError> {
        for DeviceBytes { stream, tensor } in self.data(boxes)? {
            let (part, rest) = to.split_at_mut(tensor.len());
            if stream.device().kind().is_host() {
                copy_on_host(&stream, &tensor, part)?;
            } else {
                stream.copy_out(&tensor, part)?;
            }
            to = rest;
        }
        Ok(())
    }

    /// Where the data of boxes lie.
    fn data(&self, boxes: &Boxes) -> Result<Vec<DeviceBytes>, TrainError> {
        let (stream, views) = self.optimizer.states(self.stream, self.weights)?;
        let views = views.into_iter();
        let kept: HashMap<(usize, Region), Tensor> =
            views.map(|StateView { state, region, view }| ((state, region), view)).collect();
        let mut data = Vec::with_capacity(boxes.len());
        for of @ (state, region) in boxes {
            let declared = &self.plan.states[*state];
            data.push(if self.plan.is_everywhere(declared) {
                let tensor = rows(&self.everywhere(*state)?, declared, region)?;
                DeviceBytes { stream: self.stream.clone(), tensor }
            } else {
                let view = kept.get(of).expect("boxes of a rank are planned from what it keeps");
                DeviceBytes { stream: stream.clone(), tensor: view.clone() }
            });
        }
        Ok(data)
    }

    /// The whole of a state that every rank holds.
    fn everywhere(&self, state: usize) -> Result<Tensor, TrainError> {
        if let Sharing::Owned { tensor } = self.plan.states[state].sharing {
            return Ok(self.weights.flat(self.plan.flat.range(tensor))?);
        }
        let first = self.plan.states.len() - self.engine.len();
        Ok(self.engine[state - first].clone())
    }
}

/// Copies f32 values in parallel.
fn copy_on_host(stream: &Stream, from: &Tensor, to: &mut [f32]) -> Result<(), TrainError> {
    Ok(stream.with_memory("copy", |k| {
        let from = k.read::<f32>(from)?;
        k.parallel().chunks(to, COPIED, |index, to| {
            let start = index * COPIED;
            let from = &from[start..start + to.len()];
            copy_streaming(bytemuck::cast_slice(from), bytemuck::cast_slice_mut(to));
        });
        Ok(())
    })?)
}

/// The part of a whole state that is a box of whole rows.
fn rows(whole: &Tensor, state: &StateDecl, region: &Region) -> Result<Tensor, TrainError> {
    let row_len = state.len() / state.shape.first().copied().unwrap_or(1).max(1);
    let start = region.offset.first().map_or(0, |first| first * row_len);
    let flat = whole.reshape(&[whole.len()])?;
    Ok(flat.flat(start..start + region.elements().unwrap_or(0))?)
}

/// Tensors that are told of another model.
const TOLD: usize = 8;

/// Refuses a checkpoint of another model, with a table of what differs.
pub(crate) fn check_model(checkpoint: &Checkpoint, plan: &RunPlan) -> Result<(), TrainError> {
    let (theirs, ours) = (checkpoint.schema(), &plan.schema);
    let of = |schema: &Schema| -> BTreeMap<String, Vec<usize>> {
        schema.tensors.iter().map(|t| (t.name.clone(), t.shape.clone())).collect()
    };
    let (there, here) = (of(&theirs), of(ours));
    let mut names: Vec<&String> = ours.tensors.iter().map(|tensor| &tensor.name).collect();
    names.extend(theirs.tensors.iter().map(|t| &t.name).filter(|name| !here.contains_key(*name)));
    let unlike: Vec<&String> =
        names.into_iter().filter(|name| there.get(*name) != here.get(*name)).collect();
    if unlike.is_empty() {
        return Ok(());
    }
    let word = |shape: Option<&Vec<usize>>| shape.map_or("none".into(), |s| format!("{s:?}"));
    let row = |name: &&String| {
        let (there, here) = (word(there.get(*name)), word(here.get(*name)));
        format!("\n  `{name}`: {there} there, {here} here")
    };
    let mut difference: String = unlike.iter().take(TOLD).map(row).collect();
    if unlike.len() > TOLD {
        difference += &format!("\n  and {} more tensors", unlike.len() - TOLD);
    }
    Err(TrainError::OtherModel { path: checkpoint.path().to_owned(), difference })
}

/// States of one slot that begin anew, though the run goes on from a checkpoint: their update was
/// another when it was saved.
pub(crate) struct Anew {
    slot: &'static str,
    absent: Absent,
    /// The checkpoint has it in another shape.
    is_there: bool,
    names: Vec<String>,
}

/// As a warning tells it.
impl std::fmt::Display for Anew {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let (slot, names) = (self.slot, self.names.join(", "));
        match self.is_there {
            false => write!(f, "the checkpoint has no {slot} of {names}; ")?,
            true => write!(f, "the checkpoint has {slot} of {names} in another shape; ")?,
        }
        let start = if self.absent == Absent::Initial { "from the seed" } else { "at zero" };
        write!(f, "it starts {start}")
    }
}

/// The states that a checkpoint lacks, or has in another shape, though a run can begin without.
pub(crate) fn begun_anew(checkpoint: &Checkpoint, states: &[StateDecl]) -> Vec<Anew> {
    let mut anew: Vec<Anew> = Vec::new();
    for state in states.iter().filter(|state| lacks(checkpoint, state)) {
        let StateDecl { name, slot, absent, .. } = state;
        let is_there = checkpoint.tensor(&key(state)).is_ok();
        match anew.iter_mut().find(|of| (of.slot, of.is_there) == (slot, is_there)) {
            Some(of) => of.names.push(name.clone()),
            None => {
                let names = vec![name.clone()];
                anew.push(Anew { slot, absent: *absent, is_there, names });
            }
        }
    }
    anew
}

/// Whether a checkpoint does not hold a state, or one of another shape (of an update with other
/// numbers), and need not.
pub(crate) fn lacks(checkpoint: &Checkpoint, state: &StateDecl) -> bool {
    let has = checkpoint.tensor(&key(state)).is_ok_and(|there| there.shape == state.shape);
    state.absent != Absent::Refuse && !has
}

/// Refuses a state of another shape than this run's.
pub(crate) fn check_shape(checkpoint: &Checkpoint, state: &StateDecl) -> Result<(), TrainError> {
    let there = &checkpoint.tensor(&key(state))?.shape;
    if *there == state.shape {
        return Ok(());
    }
    let StateDecl { name, slot, shape, .. } = state;
    let difference = format!("`{name}:{slot}` is {there:?} there and {shape:?} here");
    Err(TrainError::OtherModel { path: checkpoint.path().to_owned(), difference })
}
