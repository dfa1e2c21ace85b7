//! The ordered reduction, tile by tile, whatever moves the bytes: where the inputs of an owner's
//! sum lie, in the order of the program.
//!
//! An owner's segments are laid end to end and cut into tiles. A transport brings the peers'
//! partials of a tile within reach; [`sum_tile`] then adds them to this member's own
//! (`kernels::ordered_sum`): where the inputs lie, or on another device (`elsewhere`).

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use device::{DType, Device, Stream, Tensor};
use kernels::ordered_sum::{OrderedSum, ReadySum, Summation, computed_in};

use crate::Result;
use crate::copies::Joined;
use crate::elsewhere::{AllLanes, Elsewhere};
use crate::primitives::OrderedReduce;
use crate::source::{Source, Wanted};

/// A checked ordered reduction.
pub(crate) struct Reduction {
    pub op: OrderedReduce,
    pub sums: Sums,
    pub digest: u64,
}

/// The sums of one reduction and their memory, made once.
pub(crate) struct Sums {
    sum: OrderedSum,
    site: Site,
}

/// Where sums are made.
enum Site {
    /// Where the inputs lie.
    Here(Mutex<Scratch>),
    Elsewhere(Elsewhere),
}

/// Used by one operation at a time, and kept.
struct Scratch {
    stream: Stream,
    inputs: Vec<Tensor>,
    workspace: Option<Tensor>,
}

impl Scratch {
    fn new(op: &OrderedReduce, inputs: usize) -> Result<Scratch> {
        let stream = op.out.buffer().device().new_stream()?;
        let inputs = Vec::with_capacity(inputs);
        Ok(Scratch { stream, inputs, workspace: None })
    }
}

impl Sums {
    /// The sum that is computed: its inputs, and their order.
    pub(crate) fn program(&self) -> &OrderedSum {
        &self.sum
    }

    /// Whether sums are made on another device than where the inputs lie.
    pub(crate) fn is_elsewhere(&self) -> bool {
        matches!(self.site, Site::Elsewhere(_))
    }

    /// Those of `op`, which has `inputs` partials, for the member at `place` of a group with these
    /// `lanes`.
    ///
    /// # Errors
    /// A program that does not add each of them once and in order; the device refuses a stream or
    /// memory.
    pub(crate) fn new(
        op: &OrderedReduce,
        inputs: usize,
        place: usize,
        lanes: &AllLanes,
    ) -> Result<Sums> {
        Sums::of(op, OrderedSum::new(&op.program, inputs, op.redop)?, (place, false), lanes)
    }

    /// As [`Sums::new`], by a sum of the program of `op` that is there, and of sources that have
    /// this member's own partials or have not ([`Source::HAS_OWN`]).
    ///
    /// # Errors
    /// As there, of the device.
    pub(crate) fn of(
        op: &OrderedReduce,
        sum: OrderedSum,
        (place, has_own): (usize, bool),
        lanes: &AllLanes,
    ) -> Result<Sums> {
        let site = match Elsewhere::of(op, &sum, (place, has_own), lanes)? {
            Some(elsewhere) => Site::Elsewhere(elsewhere),
            None => Site::Here(Mutex::new(Scratch::new(op, sum.inputs())?)),
        };
        Ok(Sums { sum, site })
    }

    /// Returns when the sums of all tiles are done.
    ///
    /// # Errors
    /// The device's.
    pub(crate) fn finish(&self) -> Result<()> {
        match &self.site {
            Site::Here(_) => Ok(()),
            Site::Elsewhere(elsewhere) => elsewhere.finish(),
        }
    }
}

/// After a panic there is at most something stale in it.
fn locked(scratch: &Mutex<Scratch>) -> MutexGuard<'_, Scratch> {
    scratch.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `kept` if it is large enough, or new memory in its place.
pub(crate) fn at_least(
    kept: &mut Option<Tensor>,
    device: &Device,
    dtype: DType,
    len: usize,
) -> Result<Tensor> {
    if let Some(tensor) = kept.as_ref().filter(|tensor| tensor.len() >= len) {
        return Ok(tensor.clone());
    }
    let new = device.zeros(&[len], dtype)?;
    Ok(kept.insert(new).clone())
}

/// The inputs of a part of a segment, in the order of the program. Those of the member at `own` are
/// in its buffers.
fn locate_all(
    op: &OrderedReduce,
    own: Option<usize>,
    piece: &Range<usize>,
    inputs: &mut Vec<Tensor>,
    locate: impl Fn(Wanted) -> Result<Tensor>,
) -> Result<()> {
    for (holder, partials) in op.partials.iter().enumerate() {
        for (index, (_, buffer)) in partials.iter().enumerate() {
            inputs.push(match own == Some(holder) {
                true => op.buffers[*buffer].tensor(piece.start, &[piece.len()], op.dtype)?,
                false => locate(Wanted { holder, index, range: piece.clone(), at: 0 })?,
            });
        }
    }
    Ok(())
}

/// Where the result goes of a part of a segment of the member at `place`.
fn out_of(
    op: &OrderedReduce,
    place: usize,
    segment: usize,
    piece: &Range<usize>,
) -> Result<Tensor> {
    let start = op.place_in_out(place, segment, piece.start);
    Ok(op.out.flat(start..start + piece.len())?)
}

/// The sums of the member at `place`, one of each segment, where all windows are mapped here and
/// each sum is one kernel of the host: so small ones take little more than the additions.
///
/// # Errors
/// Windows that are not mapped; operands that do not fit each other.
pub(crate) fn ready(reduction: &Reduction, place: usize) -> Result<Option<Vec<ReadySum>>> {
    let Reduction { op, sums, .. } = reduction;
    if sums.is_elsewhere() {
        return Ok(None);
    }
    let sum_of = |(segment, piece): (usize, &Range<usize>)| -> Result<Option<ReadySum>> {
        let (mut inputs, out) = (Vec::new(), out_of(op, place, segment, piece)?);
        locate_all(op, None, piece, &mut inputs, |wanted| {
            let buffer = &op.buffers[op.partials[wanted.holder][wanted.index].1];
            buffer.of_member(wanted.holder, piece.start, piece.len(), op.dtype)
        })?;
        let sum =
            Summation { sum: &sums.sum, inputs: &inputs, out: &out, workspace: &out.flat(0..0)? };
        Ok(sum.ready(out.buffer().device())?)
    };
    op.segments[place].iter().enumerate().map(sum_of).collect()
}

/// Sums tile `round` of the segments of the member at `place`, in tiles of `tile` elements. When
/// this returns the source may go; the sums are there after [`Sums::finish`].
pub(crate) fn sum_tile<S: Source>(
    reduction: &Reduction,
    (place, tile, round): (usize, usize, usize),
    source: &S,
) -> Result<()> {
    let Reduction { op, sums, .. } = reduction;
    let scratch = match &sums.site {
        Site::Here(scratch) => scratch,
        Site::Elsewhere(elsewhere) => {
            return elsewhere.sum_tile((op, &sums.sum), (place, tile, round), source);
        }
    };
    let Scratch { stream, inputs, workspace, .. } = &mut *locked(scratch);
    let mut at = 0;
    for (segment, piece) in (Joined { segments: &op.segments[place] }).pieces(tile, round) {
        inputs.clear();
        let own = (!S::HAS_OWN).then_some(place);
        locate_all(op, own, &piece, inputs, |wanted| source.locate(Wanted { at, ..wanted }))?;
        at += piece.len();
        let out = out_of(op, place, segment, &piece)?;
        let room = match sums.sum.workspace_elements(stream.device(), out.len()) {
            0 => out.flat(0..0)?,
            len => {
                let number = computed_in(op.dtype).unwrap_or(op.dtype);
                at_least(workspace, stream.device(), number, len)?
            }
        };
        let sum = Summation { sum: &sums.sum, inputs, out: &out, workspace: &room };
        sum.launch(stream)?;
    }
    inputs.clear();
    Ok(stream.synchronize()?)
}
