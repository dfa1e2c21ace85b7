//! The ordered reduction, tile by tile, whatever moves the bytes: where the inputs of an owner's
//! sum lie, in the order of the program.
//!
//! An owner's segments are laid end to end and cut into tiles. A transport brings the peers'
//! partials of a tile within reach of the device; [`sum_tile`] then has it add them to this
//! member's own (`kernels::ordered_sum`).

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use device::{Stream, Tensor};
use kernels::ordered_sum::{OrderedSum, Summation};

use crate::memory::Joined;
use crate::op::{OrderedReduce, Reduction};
use crate::{CommError, Result};

/// A part of a peer's partial.
pub(crate) struct Wanted {
    /// The member that holds it.
    pub holder: usize,
    /// Which of its partials.
    pub index: usize,
    /// Elements of that partial's slot.
    pub range: Range<usize>,
    /// Where they begin in the tile.
    pub at: usize,
}

/// Where a transport has brought the partials of peers.
pub(crate) trait Source {
    /// Memory of the device.
    fn locate(&self, wanted: Wanted) -> Result<Tensor>;
}

/// What the sums of one reduction need, made once.
pub(crate) struct Sums {
    sum: OrderedSum,
    scratch: Mutex<Scratch>,
}

/// Used by one operation at a time, and kept.
struct Scratch {
    stream: Stream,
    inputs: Vec<Tensor>,
    workspace: Option<Tensor>,
    received: Option<Tensor>,
}

impl Sums {
    /// Those of `op`, which has `inputs` partials.
    ///
    /// # Errors
    /// A program that does not add each of them once and in order; the device refuses a stream.
    pub(crate) fn new(op: &OrderedReduce, inputs: usize) -> Result<Sums> {
        let sum = OrderedSum::new(&op.program, inputs)?;
        let stream = op.out.buffer().device().new_stream()?;
        let inputs = Vec::with_capacity(inputs);
        let scratch = Scratch { stream, inputs, workspace: None, received: None };
        Ok(Sums { sum, scratch: Mutex::new(scratch) })
    }

    /// After a panic there is at most something stale in it.
    fn scratch(&self) -> MutexGuard<'_, Scratch> {
        self.scratch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Memory for `len` elements that come from peers, of the type and on the device of `out`.
    ///
    /// # Errors
    /// No memory.
    pub(crate) fn received(&self, out: &Tensor, len: usize) -> Result<Tensor> {
        at_least(&mut self.scratch().received, out, len)
    }
}

/// `kept` if it is large enough, or new memory in its place.
fn at_least(kept: &mut Option<Tensor>, like: &Tensor, len: usize) -> Result<Tensor> {
    if let Some(tensor) = kept.as_ref().filter(|tensor| tensor.len() >= len) {
        return Ok(tensor.clone());
    }
    let new = like.buffer().device().zeros(&[len], like.dtype())?;
    Ok(kept.insert(new).clone())
}

/// Sums tile `round` of the segments of the member at `place`, in tiles of `tile` elements; returns
/// when that is done.
pub(crate) fn sum_tile(
    reduction: &Reduction,
    (place, tile, round): (usize, usize, usize),
    source: &impl Source,
) -> Result<()> {
    let Reduction { op, sums, .. } = reduction;
    let Scratch { stream, inputs, workspace, .. } = &mut *sums.scratch();
    let mut at = 0;
    for piece in (Joined { segments: &op.segments[place] }).pieces(tile, round) {
        inputs.clear();
        for (holder, partials) in op.partials.iter().enumerate() {
            for (index, (_, slot)) in partials.iter().enumerate() {
                inputs.push(match holder == place {
                    true => op.slots[*slot].tensor(piece.start, &[piece.len()], op.out.dtype())?,
                    false => source.locate(Wanted { holder, index, range: piece.clone(), at })?,
                });
            }
        }
        at += piece.len();
        let out = op.out.flat(piece)?;
        let room = match sums.sum.workspace_elements(stream.device(), out.len()) {
            0 => out.flat(0..0)?,
            len => at_least(workspace, &out, len)?,
        };
        let sum = Summation { sum: &sums.sum, inputs, out: &out, workspace: &room };
        sum.launch(stream)?;
    }
    inputs.clear();
    Ok(stream.synchronize()?)
}

impl From<kernels::KernelError> for CommError {
    fn from(error: kernels::KernelError) -> CommError {
        match error {
            kernels::KernelError::Device(error) => CommError::Device(error),
            other => CommError::Sum(other),
        }
    }
}
