//! The ordered reduction, tile by tile, whatever moves the bytes: where the inputs of an owner's
//! sum lie, in the order of the program.
//!
//! An owner's segments are laid end to end and cut into tiles. A transport brings the peers'
//! partials of a tile within reach; [`sum_tile`] then adds them to this member's own.

use std::ops::Range;

use device::{DType, Device};

use crate::combine::{Carry, Located, Number};
use crate::memory::Joined;
use crate::op::Reduction;
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
    fn locate<T: Number>(&self, wanted: Wanted) -> Result<Located<'_, T>>;
}

/// Sums tile `round` of the segments of the member at `place`, in tiles of `tile` elements.
pub(crate) fn sum_tile(
    device: &Device,
    reduction: &Reduction,
    (place, tile, round): (usize, usize, usize),
    carry: &mut Carry,
    source: &impl Source,
) -> Result<()> {
    let place = (place, tile, round);
    match reduction.op.out.dtype() {
        DType::F32 => sum::<f32>(device, reduction, place, carry, source),
        DType::F64 => sum::<f64>(device, reduction, place, carry, source),
        dtype => Err(CommError::SumType { dtype }),
    }
}

fn sum<T: Number>(
    device: &Device,
    reduction: &Reduction,
    (place, tile, round): (usize, usize, usize),
    carry: &mut Carry,
    source: &impl Source,
) -> Result<()> {
    let Reduction { op, stages, in_place, .. } = reduction;
    let joined = Joined { segments: &op.segments[place] };
    let mut done = 0;
    for piece in joined.pieces(tile, round) {
        let (start, before) = (piece.start, done);
        done += piece.len();
        stages.sum(device, &op.out, piece, T::carry(carry), &|input, range| {
            if *in_place == Some(input) {
                return Ok(Located::Out);
            }
            let (holder, index) = op.holder(input).expect("the program was checked");
            if holder != place {
                let at = before + range.start - start;
                return source.locate::<T>(Wanted { holder, index, range, at });
            }
            let slot = &op.slots[op.partials[place][index].1];
            Ok(Located::Memory(slot.tensor(range.start, &[range.len()], T::DTYPE)?))
        })?;
    }
    Ok(())
}
