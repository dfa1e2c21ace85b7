//! The host's executor: lanes of threads, each with a workspace of its own.

use std::sync::atomic::{AtomicUsize, Ordering};

use device::Parallel;

use super::norm::{Norm, norm};
use super::twin::{self, Caller};
use super::{Algorithm, Batch, Method, Program};
use super::{STATUS_FINITE, STATUS_NON_FINITE, STATUS_UNSOLVED, exact};
use crate::Real;
use crate::shared_slice::SharedSlice;

/// Lanes, each with a workspace of its own, take the matrices one by one.
pub(super) fn run<T: Real>(
    parallel: &Parallel,
    batch: &Batch,
    input: &[T],
    output: &mut [T],
    work: &mut [T],
    status: &mut [u32],
) {
    let (lane_elements, matrices) = (batch.least_workspace_elements(), batch.matrices());
    let lanes = match lane_elements {
        0 => 1,
        lane => (work.len() / lane).clamp(1, matrices.len().max(1)),
    };
    let (output, work) = (SharedSlice::new(output), SharedSlice::new(work));
    let status = SharedSlice::new(status);
    let next = AtomicUsize::new(0);
    parallel.each(lanes, |lane| {
        // SAFETY: lane `lane` alone uses this part.
        let work = unsafe { work.part(lane * lane_elements..(lane + 1) * lane_elements) };
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(&matrix) = matrices.get(index) else { return };
            // `Batch::new` refused overlapping outputs and `index` is taken once.
            let caller = Caller {
                x: &input[matrix.input..matrix.input + matrix.span(matrix.input_stride)],
                x_stride: matrix.input_stride,
                out: &output,
                offset: matrix.output,
                stride: matrix.output_stride,
                rows: matrix.rows,
                cols: matrix.cols,
                scale: matrix.scale,
            };
            let result = one(parallel, batch, batch.program(index), &caller, work);
            // SAFETY: `index` is taken once.
            let status = unsafe { status.part(index..index + 1) };
            status[0] = result;
        }
    });
}

/// Orthogonalizes one matrix and returns its status.
fn one<T: Real>(
    parallel: &Parallel,
    batch: &Batch,
    program: &Program,
    caller: &Caller<T>,
    work: &mut [T],
) -> u32 {
    let Method { least_norm, storage, input_roundoff, .. } = *batch.iteration().method();
    let zero = |status| {
        caller.fill(T::ZERO);
        status
    };
    let scale = match norm(caller.x, caller.cols, caller.x_stride, least_norm) {
        Norm::Positive(scale) => scale,
        Norm::Zero => return zero(STATUS_FINITE),
        Norm::NonFinite => return zero(STATUS_NON_FINITE),
    };
    if program.algorithm != Algorithm::Svd {
        twin::run(parallel, program, storage, caller, scale, work);
        return STATUS_FINITE;
    }
    device::work::mark();
    match exact::polar(caller, scale.share, input_roundoff, |x| scale.apply(x)) {
        true => STATUS_FINITE,
        false => zero(STATUS_UNSOLVED),
    }
}
