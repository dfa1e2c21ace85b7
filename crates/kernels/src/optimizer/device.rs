//! The devices' code: `kernels/optimizer`. The tables of spans and ranges lie on the device since
//! they were made, so that each operation is no more than its launches.

use device::{DType, Grid, Stream, Tensor};

use super::{AT, AdamWFactors, AdamWStep, Cast, CopyToMasters, Momentum, MuonApply, MuonMomentum};
use super::{RoundFromMasters, Spans, SumOfSquares, Weights};
use crate::KernelError;
use crate::gpu::abi;
use crate::gpu::modules::{Family, Kernels};

const THREADS: u32 = 256;
/// Blocks of a launch for each multiprocessor, at most.
const RESIDENT: u32 = 8;
/// Of the kernels that sum over a block.
const SUMS_BYTES: u32 = 8 * THREADS / 32;

type Done = Result<(), KernelError>;

/// Enqueues a kernel whose blocks share `units`.
///
/// # Safety
/// `args` is the kernel's argument, and its addresses are good for what the kernel does with them.
unsafe fn enqueue<Args: bytemuck::Pod>(
    (kernels, stream): (&Kernels, &Stream),
    (name, units, shared_bytes): (&'static str, u32, u32),
    args: &Args,
) -> Done {
    if units == 0 {
        return Ok(());
    }
    let blocks = units.min(kernels.multiprocessors() * RESIDENT);
    let grid = Grid { shared_bytes, ..Grid::linear(blocks, THREADS) };
    let function = kernels.function(Family::Optimizer, name)?;
    // SAFETY: the caller's.
    Ok(unsafe { stream.launch_module(&function, &grid, args) }?)
}

/// The table of a list that was made for a device.
fn made<T>(table: &Option<T>) -> Result<&T, KernelError> {
    table.as_ref().ok_or_else(|| {
        let message = "the list of spans or ranges was made for a host device".to_owned();
        KernelError::Argument { kernel: AT, message }
    })
}

/// Address and length of the table of chunks.
fn chunks(spans: &Spans) -> Result<(u64, u32), KernelError> {
    Ok((made(&spans.table)?.address(), spans.chunks.len() as u32))
}

/// Addresses of masters (0 where there are none) and flat weights.
fn places(weights: &Weights) -> (u64, u64) {
    match weights {
        Weights::InPlace(flat) => (0, flat.address()),
        Weights::Mastered { masters, flat } => (masters.address(), flat.address()),
    }
}

impl SumOfSquares {
    pub(super) fn enqueue(&self, kernels: &Kernels, stream: &Stream) -> Done {
        let tables = made(&self.ranges.tables)?;
        let args = abi::SquaresArgs {
            strips: tables.strips.address(),
            long_ranges: tables.long_ranges.address(),
            grads: self.grads.address(),
            partials: tables.partials.address(),
            sums: self.sums.address(),
            strip_count: tables.strip_count,
            long_range_count: tables.long_range_count,
        };
        let (strips, long_ranges) = (tables.strip_count, tables.long_range_count);
        // SAFETY: the tables are of ranges that end within `grads`, statistics that end within
        // `sums` and places within `partials`; all are of this device (`op::run`), and freed after
        // the work that was enqueued before.
        unsafe {
            let on = (kernels, stream);
            enqueue(on, ("optimizer_squares", strips, SUMS_BYTES), &args)?;
            enqueue(on, ("optimizer_sums", long_ranges, SUMS_BYTES), &args)
        }
    }
}

impl AdamWStep {
    pub(super) fn enqueue(&self, kernels: &Kernels, stream: &Stream) -> Done {
        let (spans, span_count) = chunks(&self.spans)?;
        let (masters, weights) = places(&self.weights);
        let numbers = AdamWFactors::new(&self.numbers);
        let args = abi::AdamWArgs {
            spans,
            masters,
            weights,
            grads: self.grads.address(),
            first: self.first.address(),
            second: self.second.address(),
            factors: self.factors.address(),
            span_count,
            beta1: numbers.beta1,
            one_minus_beta1: numbers.one_minus_beta1,
            beta2: numbers.beta2,
            one_minus_beta2: numbers.one_minus_beta2,
            root_correction: numbers.root_correction,
            eps: numbers.eps,
            keep: numbers.keep,
            rate: numbers.rate,
            reserved: 0,
        };
        // SAFETY: every span ends within its tensors and every unit within `factors`, by `check`;
        // all are of this device (`op::run`), and freed after the work that was enqueued before.
        unsafe { enqueue((kernels, stream), ("optimizer_adamw", span_count, 0), &args) }
    }
}

impl MuonMomentum {
    pub(super) fn enqueue(&self, kernels: &Kernels, stream: &Stream) -> Done {
        let (spans, span_count) = chunks(&self.spans)?;
        let args = abi::MomentumArgs {
            spans,
            grads: self.grads.address(),
            momentum: self.momentum.address(),
            update: self.update.address(),
            factors: self.factors.address(),
            span_count,
            nesterov: u32::from(self.form == Momentum::Nesterov),
            keep: self.mu as f32,
            add: (1.0 - self.mu) as f32,
        };
        // SAFETY: as for AdamW.
        unsafe { enqueue((kernels, stream), ("optimizer_momentum", span_count, 0), &args) }
    }
}

impl MuonApply {
    pub(super) fn enqueue(&self, kernels: &Kernels, stream: &Stream) -> Done {
        let (spans, span_count) = chunks(&self.spans)?;
        let (masters, weights) = places(&self.weights);
        let args = abi::ApplyArgs {
            spans,
            masters,
            weights,
            direction: self.direction.address(),
            span_count,
            keep: self.keep as f32,
            rate: self.rate as f32,
            reserved: 0,
        };
        // SAFETY: as for AdamW.
        unsafe { enqueue((kernels, stream), ("optimizer_apply", span_count, 0), &args) }
    }
}

fn masters_args(
    spans: &Spans,
    masters: &Tensor,
    flat: &Tensor,
) -> Result<abi::MastersArgs, KernelError> {
    let (spans, span_count) = chunks(spans)?;
    let is_f32 = u32::from(flat.dtype() == DType::F32);
    let (masters, weights) = (masters.address(), flat.address());
    Ok(abi::MastersArgs { spans, masters, weights, span_count, is_f32 })
}

impl CopyToMasters {
    pub(super) fn enqueue(&self, kernels: &Kernels, stream: &Stream) -> Done {
        let args = masters_args(&self.spans, &self.masters, &self.flat)?;
        // SAFETY: as for AdamW.
        unsafe { enqueue((kernels, stream), ("optimizer_adopt", args.span_count, 0), &args) }
    }
}

impl RoundFromMasters {
    pub(super) fn enqueue(&self, kernels: &Kernels, stream: &Stream) -> Done {
        let args = masters_args(&self.spans, &self.masters, &self.flat)?;
        // SAFETY: as for AdamW.
        unsafe { enqueue((kernels, stream), ("optimizer_publish", args.span_count, 0), &args) }
    }
}

impl Cast {
    pub(super) fn enqueue(&self, kernels: &Kernels, stream: &Stream) -> Done {
        let runs = self.from.len().div_ceil(abi::SPAN_LEN as usize);
        let args = abi::CastArgs {
            source: self.from.address(),
            target: self.to.address(),
            len: self.from.len() as u64,
            is_f16: u32::from(self.to.dtype() == DType::F16),
            reserved: 0,
        };
        let runs = u32::try_from(runs).unwrap_or(u32::MAX);
        // SAFETY: both tensors have `len` elements, by `check`; the rest as for AdamW.
        unsafe { enqueue((kernels, stream), ("optimizer_cast", runs, 0), &args) }
    }
}
