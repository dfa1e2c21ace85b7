//! Where a gradient stopped being finite: the leaves of the step are run again, one by one. The
//! weights have not changed and samples are a pure function of their index, so the same numbers
//! appear; the normal path pays nothing for it.

use device::{DType, Tensor};
use kernels::Op;
use kernels::elementwise::AllFinite;
use layout::FlatLayout;

use crate::TrainError;

/// Most places that are named.
pub const MOST: usize = 8;

/// The tensors of `grads` with an infinite or NaN element, at most [`MOST`].
pub(crate) fn non_finite_tensors(
    stream: &device::Stream,
    flat: &FlatLayout,
    grads: &Tensor,
) -> Result<Vec<usize>, TrainError> {
    let flag = stream.device().zeros(&[1], DType::U32)?;
    let mut found = Vec::new();
    for tensor in 0..flat.lens.len() {
        let x = grads.flat(flat.range(tensor))?;
        AllFinite { x, flag: flag.clone() }.launch(stream)?;
        if stream.to_vec::<u32>(&flag)?[0] == 0 {
            found.push(tensor);
        }
        if found.len() == MOST {
            break;
        }
    }
    Ok(found)
}
