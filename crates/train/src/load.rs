//! The states of a rank from a checkpoint, whatever boxes it was saved in.
//!
//! ```text
//! declared states ─▶ boxes wanted ─▶ ranges of files ─▶ read here, or handed on by another rank
//!   ─▶ verified ─▶ memory of the device
//! ```
//! Where that is memory of the host, files are read straight into it, and the threads that read
//! write what has to be rounded or cut; elsewhere they take turns.

use std::sync::{Mutex, PoisonError};

use checkpoint::{Checkpoint, FileRange, Places, Reads, Region, Wanted};
use device::{DType, Device, DeviceError, Kernel, Stream, Tensor, copy_streaming};
use layout::StateDecl;
use layout::state::PARAM;
use optim::StateView;

use crate::save::{Saver, check_model, check_shape, lacks};
use crate::save_boxes::key;
use crate::{RunPlan, TrainError};

/// The states that a load takes from a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Taken {
    /// All: the run goes on.
    All,
    /// The parameters, and what the engine keeps: a run begins with them.
    Parameters,
}

/// The boxes of states that this rank holds, and the engine's states; weights still have to be
/// gathered. Those that the checkpoint lacks begin at once: see [`crate::save::begun_anew`].
///
/// # Errors
/// A checkpoint of another model.
pub(crate) fn wanted_states<'a>(
    checkpoint: &'a Checkpoint,
    saver: &Saver,
    taken: Taken,
) -> Result<Loading<'a>, TrainError> {
    let (stream, views) = saver.optimizer.states(saver.stream, saver.weights)?;
    let mut loads = Loads::new(checkpoint, saver.seed);
    let states = &saver.plan.states;
    let is_taken = |of: &StateView| taken == Taken::All || states[of.state].slot == PARAM;
    for StateView { state, region, view } in views.into_iter().filter(is_taken) {
        loads.add(&stream, &states[state], region, view)?;
    }
    for (state, to) in saver.plan.engine_states().iter().zip(&saver.engine) {
        loads.add(saver.stream, state, Region::whole(&state.shape), to.clone())?;
    }
    loads.planned()
}

/// Loads all weights (flat, f32 or bf16) and the engine's states, for use without an optimizer.
///
/// # Errors
/// Damaged or missing data; a checkpoint of another model.
pub(crate) fn load_weights(
    checkpoint: &Checkpoint,
    (plan, seed): (&RunPlan, u64),
    stream: &Stream,
    weights: &Tensor,
    engine: &[Tensor],
) -> Result<(), TrainError> {
    check_model(checkpoint, plan)?;
    let mut loads = Loads::new(checkpoint, seed);
    let params = plan.states.iter().filter(|state| state.slot == PARAM);
    for (index, state) in params.enumerate() {
        let to = weights.flat(plan.flat.range(index))?;
        loads.add(stream, state, Region::whole(&state.shape), to)?;
    }
    for (state, to) in plan.engine_states().iter().zip(engine) {
        loads.add(stream, state, Region::whole(&state.shape), to.clone())?;
    }
    loads.planned()?.read(plan.threads, |_| true)
}

/// Boxes to be loaded, and where to.
struct Loads<'a> {
    checkpoint: &'a Checkpoint,
    seed: u64,
    wanted: Vec<Wanted>,
    to: Vec<(Stream, Tensor)>,
}

impl<'a> Loads<'a> {
    fn new(checkpoint: &'a Checkpoint, seed: u64) -> Loads<'a> {
        Loads { checkpoint, seed, wanted: Vec::new(), to: Vec::new() }
    }

    /// A box of a state; one that the checkpoint lacks begins at once.
    fn add(
        &mut self,
        stream: &Stream,
        state: &StateDecl,
        region: Region,
        to: Tensor,
    ) -> Result<(), TrainError> {
        if lacks(self.checkpoint, state) {
            // Even if it has begun: a checkpoint that turned out damaged may have left something
            // there.
            let first = region.offset.first().copied().unwrap_or(0);
            let rows = first..first + region.shape.first().copied().unwrap_or(1);
            return Ok(stream.copy_in(&to, &state.initial(self.seed, rows))?);
        }
        check_shape(self.checkpoint, state)?;
        self.wanted.push(Wanted { key: key(state), dtype: state.dtype, region });
        self.to.push((stream.clone(), to));
        Ok(())
    }

    /// Finds the ranges of files that hold them.
    ///
    /// # Errors
    /// As [`Checkpoint::reads`].
    fn planned(self) -> Result<Loading<'a>, TrainError> {
        let to = Tensors { to: self.to, turn: Mutex::new(()) };
        Ok(Loading { reads: self.checkpoint.reads(self.wanted)?, to })
    }
}

/// Boxes to be loaded, where they lie, and where to.
pub(crate) struct Loading<'a> {
    pub(crate) reads: Reads<'a>,
    to: Tensors,
}

impl Loading<'_> {
    /// Loads what lies in the ranges that `is_read` picks, read and verified by `threads` threads.
    ///
    /// # Errors
    /// Damaged or missing data; device errors.
    pub(crate) fn read(
        &self,
        threads: usize,
        is_read: impl Fn(FileRange) -> bool,
    ) -> Result<(), TrainError> {
        for (stream, _) in &self.to.to {
            stream.synchronize()?;
        }
        self.reads.read(threads, is_read, &self.to)
    }

    /// Loads what lies in a range whose bytes another rank has sent.
    ///
    /// # Errors
    /// Damaged data; device errors.
    pub(crate) fn give(&self, at: FileRange, (bytes, crc): (&[u8], u32)) -> Result<(), TrainError> {
        self.reads.give(at, bytes, crc, &self.to)
    }
}

/// The tensors that boxes go to, f32 or bf16, and the streams that copy to them where the host
/// cannot. Nothing is queued on those that touches them.
struct Tensors {
    to: Vec<(Stream, Tensor)>,
    turn: Mutex<()>,
}

impl Tensors {
    /// The device, and the elements from one on that so many bytes of f32 fill.
    fn part(&self, of: usize, start: usize, bytes: usize) -> Result<(&Device, Tensor), TrainError> {
        let (stream, to) = &self.to[of];
        let len = bytes / size_of::<f32>();
        Ok((stream.device(), to.reshape(&[to.len()])?.flat(start..start + len)?))
    }
}

impl Places for Tensors {
    type Error = TrainError;

    fn lend(
        &self,
        of: usize,
        start: usize,
        bytes: usize,
        fill: &mut dyn FnMut(&mut [u8]),
    ) -> Result<(), TrainError> {
        let (device, part) = self.part(of, start, bytes)?;
        if !device.kind().is_host() || part.dtype() != DType::F32 {
            return Ok(());
        }
        device.with_memory("load", |k| {
            fill(k.write::<u8>(&part.as_bytes())?);
            Ok(())
        })?;
        Ok(())
    }

    fn put(&self, of: usize, start: usize, bytes: &[u8]) -> Result<(), TrainError> {
        let (device, part) = self.part(of, start, bytes.len())?;
        if device.kind().is_host() {
            return Ok(device.with_memory("load", |k| write(k, &part, bytes))?);
        }
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        // Bytes of a file are not aligned to numbers.
        let mut values = vec![0.0_f32; bytes.len() / size_of::<f32>()];
        bytemuck::cast_slice_mut(&mut values).copy_from_slice(bytes);
        let stream = &self.to[of].0;
        if part.dtype() == DType::Bf16 {
            let rounded: Vec<half::bf16> =
                values.iter().map(|&x| half::bf16::from_f32(x)).collect();
            return Ok(stream.copy_in(&part, &rounded)?);
        }
        Ok(stream.copy_in(&part, &values)?)
    }
}

/// Writes f32 numbers to a tensor in memory of the host, beside other threads that write others.
fn write(k: &Kernel, to: &Tensor, bytes: &[u8]) -> Result<(), DeviceError> {
    if to.dtype() == DType::Bf16 {
        let numbers = bytes.as_chunks::<{ size_of::<f32>() }>().0.iter();
        for (to, bytes) in k.write::<half::bf16>(to)?.iter_mut().zip(numbers) {
            *to = half::bf16::from_f32(f32::from_le_bytes(*bytes));
        }
        return Ok(());
    }
    copy_streaming(bytes, k.write::<u8>(&to.as_bytes())?);
    Ok(())
}
