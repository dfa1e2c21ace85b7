//! Reductions of many tensors, element by element, in the order that a program says; a sum, if
//! nothing else is asked for ([`RedOp`]).
//!
//! ```text
//! inputs  a b c d ──┐  Push a, AddInput b     a+b
//!                   ├─ Push c, AddInput d     a+b, c+d
//!                   └─ Fold                   (a+b)+(c+d)  ─▶ out
//! ```
//!
//! Threads, blocks and launches split elements, never a sum: the bits depend on the program alone,
//! and are the same on the host and on every device (but for the payload of a NaN).
//!
//! ```text
//! inputs           computed in      out
//! f32              f32              f32
//! bf16, f16        f32              f32, or that of the inputs: rounded once
//! f32, of those    f32              that of those: rounded once
//! f64, i32, i64, u8                 the same
//! ```
//!
//! Kernels take 24 inputs at a time. A program of more becomes several **stages**, and
//! the stack of sums stays in a workspace between them, for a tile of elements at a time.

mod device;
mod host;
mod redop;
mod stages;

use std::ops::Range;

use ::device::{DType, Device, DeviceError, Kernel, Stream, Tensor};

pub use redop::{RedOp, can_give, computed_in};
pub use stages::OrderedSum;

use crate::KernelError;
use crate::op::{self, Inside, Op};
use redop::can_end;
use stages::{Limits, STAGE_INPUTS, Stage};

const KERNEL: &str = "ordered_sum";

/// One reduction's operands.
///
/// It is several launches, one for each stage and tile, and so no [`crate::Op`] itself; and it
/// borrows a list of any length, because nothing is allocated on the host devices.
#[derive(Clone, Copy)]
pub struct Summation<'a> {
    pub sum: &'a OrderedSum,
    /// One for each input of the program, all of the length of `out`.
    pub inputs: &'a [Tensor],
    /// Written. It may be one of the inputs, exactly; it overlaps no other.
    pub out: &'a Tensor,
    /// Of the type of [`computed_in`], [`OrderedSum::workspace_elements`]: none for ordinary
    /// programs.
    pub workspace: &'a Tensor,
}

impl Summation<'_> {
    /// Checks the operands and enqueues the sum where the stream is.
    ///
    /// # Errors
    /// Another number of inputs; other lengths; types that are not combined to that of `out`;
    /// memory that overlaps; too little workspace; on a device, a stack deeper than its kernels
    /// have.
    pub fn launch(self, stream: &Stream) -> Result<(), KernelError> {
        self.check(stream.device())?;
        let Summation { sum, out, .. } = self;
        let tile = Limits::of(stream.device()).tile(sum, out.len()).max(1);
        for start in (0..out.len()).step_by(tile) {
            let tile = start..(start + tile).min(out.len());
            for stage in 0..sum.stages().len() {
                StageSum::new(self, stage, &tile)?.launch(stream)?;
            }
        }
        Ok(())
    }

    /// Checks the operands of a sum that the host makes again and again. None where it is more than
    /// one kernel of the host.
    ///
    /// # Errors
    /// As [`Summation::launch`].
    pub fn ready(self, device: &Device) -> Result<Option<ReadySum>, KernelError> {
        let Summation { sum, out, .. } = self;
        let is_whole = Limits::of(device).tile(sum, out.len()) >= out.len();
        // Several stages also need a workspace.
        let is_one = op::choose(device, is_whole && sum.stages().len() == 1, false);
        if !is_one {
            return Ok(None);
        }
        self.check(device)?;
        StageSum::new(self, 0, &(0..out.len())).map(|sum| Some(ReadySum(sum)))
    }

    fn check(&self, device: &Device) -> Result<(), KernelError> {
        let Summation { sum, inputs, out, workspace } = *self;
        if inputs.len() != sum.inputs() {
            let (operand, got, expected) = ("the list of inputs", inputs.len(), sum.inputs());
            return Err(KernelError::Operand { kernel: KERNEL, operand, got, expected });
        }
        self.check_types()?;
        for input in inputs {
            crate::error::expect(KERNEL, "an input", input, out.len())?;
            let is_apart = !overlap(input, out) || is_same(input, out);
            if !is_apart || overlap(input, workspace) {
                return Err(DeviceError::Overlap { kernel: KERNEL }.into());
            }
        }
        if overlap(out, workspace) {
            return Err(DeviceError::Overlap { kernel: KERNEL }.into());
        }
        let (got, expected) = (workspace.len(), sum.workspace_elements(device, out.len()));
        if got < expected {
            let operand = "workspace";
            return Err(KernelError::Operand { kernel: KERNEL, operand, got, expected });
        }
        Ok(())
    }

    fn check_types(&self) -> Result<(), KernelError> {
        let Summation { inputs, out, workspace, .. } = *self;
        let input = inputs.first().map_or(out.dtype(), Tensor::dtype);
        let other = inputs.iter().find(|other| other.dtype() != input).map(Tensor::dtype);
        let is_mixed = || (!can_end(input, out.dtype())).then_some(input);
        if let Some(dtype) = other.or_else(is_mixed) {
            return Err(KernelError::Dtype { kernel: KERNEL, dtype });
        }
        if computed_in(input) != Some(workspace.dtype()) && !workspace.is_empty() {
            return Err(KernelError::Dtype { kernel: KERNEL, dtype: workspace.dtype() });
        }
        Ok(())
    }
}

fn is_same(a: &Tensor, b: &Tensor) -> bool {
    a.address() == b.address() && a.bytes() == b.bytes()
}

fn overlap(a: &Tensor, b: &Tensor) -> bool {
    let (a, b) = ((a.address(), a.bytes() as u64), (b.address(), b.bytes() as u64));
    a.0 < b.0 + b.1 && b.0 < a.0 + a.1 && a.1 > 0 && b.1 > 0
}

/// A sum with its operands, for the host.
pub struct ReadySum(StageSum);

impl ReadySum {
    /// Makes the sum of what the inputs hold now, as a part of the kernel `k`.
    ///
    /// # Errors
    /// As [`Kernel::read`] and [`Kernel::write`].
    pub fn run(&self, k: &Kernel) -> Result<(), DeviceError> {
        self.0.run(k)
    }
}

/// One stage over one tile.
struct StageSum {
    sum: OrderedSum,
    stage: Stage,
    /// Of the tile; none beyond the stage's inputs.
    inputs: [Option<Tensor>; STAGE_INPUTS],
    /// Which of them, if any, is `out`.
    own: Option<usize>,
    /// Whether any input of a later stage is `out`.
    own_comes_later: bool,
    out: Tensor,
    workspace: Tensor,
}

impl StageSum {
    fn new(
        summation: Summation,
        index: usize,
        tile: &Range<usize>,
    ) -> Result<StageSum, KernelError> {
        let Summation { sum, inputs, out, workspace } = summation;
        let stage = sum.stages()[index];
        let mut parts = [const { None }; STAGE_INPUTS];
        let (start, end) = stage.inputs;
        for (part, input) in parts.iter_mut().zip(&inputs[start..end]) {
            *part = Some(input.flat(tile.clone())?);
        }
        let own = inputs[start..end].iter().position(|input| is_same(input, out));
        let own_comes_later = inputs[end..].iter().any(|input| is_same(input, out));
        let (sum, workspace) = (sum.clone(), workspace.clone());
        let out = out.flat(tile.clone())?;
        Ok(StageSum { sum, stage, inputs: parts, own, own_comes_later, out, workspace })
    }

    fn is_last(&self) -> bool {
        self.stage.inputs.1 == self.sum.inputs()
    }

    /// Whether results are rounded to 16 bits.
    fn is_rounded(&self) -> bool {
        computed_in(self.dtype()) != Some(self.out.dtype())
    }

    fn dtype(&self) -> DType {
        self.inputs[0].as_ref().map_or(self.out.dtype(), Tensor::dtype)
    }
}

impl Op for StageSum {
    const NAME: &'static str = KERNEL;

    fn operands(&self, _: Inside) -> impl Iterator<Item = &Tensor> {
        self.inputs.iter().flatten().chain([&self.out, &self.workspace])
    }

    /// [`Summation::check`] has seen the whole.
    fn check(&self) -> Result<(), KernelError> {
        Ok(())
    }

    op::on_both!();
}

impl Limits {
    fn of(device: &Device) -> Limits {
        op::choose(device, host::LIMITS, device::LIMITS)
    }
}

impl OrderedSum {
    /// Elements of workspace for sums of `len` elements on this device.
    pub fn workspace_elements(&self, device: &Device, len: usize) -> usize {
        let limits = Limits::of(device);
        if !limits.carry(self) {
            return 0;
        }
        limits.tile(self, len).min(len).next_multiple_of(host::CHUNK) * self.depth()
    }
}
