//! Sums of many tensors, element by element, in the order that a program says.
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
//! inputs           sums and out
//! f32              f32
//! bf16, f16        f32
//! f64              f64
//! ```
//!
//! Kernels take 24 inputs at a time. A program of more becomes several **stages**, and
//! the stack of sums stays in a workspace between them, for a tile of elements at a time.

mod device;
mod host;
mod stages;

use std::ops::Range;

use ::device::{DType, Device, DeviceError, Stream, Tensor};

pub use stages::OrderedSum;

use crate::{KernelError, op};
use stages::{STAGE_INPUTS, Stage};

const KERNEL: &str = "ordered_sum";

/// Adds `inputs`, one for each input of the program, all of the length of `out`.
///
/// `out` may be one of the inputs, exactly; it overlaps no other. `workspace` has the type of `out`
/// and [`OrderedSum::workspace_elements`], which are none for ordinary programs. Nothing is
/// allocated on the host devices.
///
/// # Errors
/// Another number of inputs; other lengths; types that are not summed to that of `out`; memory that
/// overlaps; too little workspace; on a device, a stack deeper than its kernels have.
pub fn ordered_sum(
    stream: &Stream,
    sum: &OrderedSum,
    inputs: &[Tensor],
    out: &Tensor,
    workspace: &Tensor,
) -> Result<(), KernelError> {
    check(sum, inputs, out, workspace)?;
    let tile = sum.tile(stream.device(), out.len());
    let expected = sum.workspace_elements(stream.device(), out.len());
    if workspace.len() < expected {
        let (operand, got) = ("workspace", workspace.len());
        return Err(KernelError::Operand { kernel: KERNEL, operand, got, expected });
    }
    for start in (0..out.len()).step_by(tile.max(1)) {
        let tile = start..(start + tile).min(out.len());
        for stage in 0..sum.stages().len() {
            op::run(stream, StageSum::new(sum, stage, inputs, out, workspace, &tile)?)?;
        }
    }
    Ok(())
}

fn check(
    sum: &OrderedSum,
    inputs: &[Tensor],
    out: &Tensor,
    workspace: &Tensor,
) -> Result<(), KernelError> {
    if inputs.len() != sum.inputs() {
        let (operand, got, expected) = ("the list of inputs", inputs.len(), sum.inputs());
        return Err(KernelError::Operand { kernel: KERNEL, operand, got, expected });
    }
    let types = (inputs.first().map_or(out.dtype(), Tensor::dtype), out.dtype());
    let is_summed = matches!(
        types,
        (DType::F32 | DType::Bf16 | DType::F16, DType::F32) | (DType::F64, DType::F64)
    );
    let other = inputs.iter().find(|input| input.dtype() != types.0);
    if let Some(dtype) = other.map(Tensor::dtype).or((!is_summed).then_some(types.0)) {
        return Err(KernelError::Dtype { kernel: KERNEL, dtype });
    }
    if workspace.dtype() != out.dtype() && !workspace.is_empty() {
        return Err(KernelError::Dtype { kernel: KERNEL, dtype: workspace.dtype() });
    }
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
    Ok(())
}

fn is_same(a: &Tensor, b: &Tensor) -> bool {
    a.address() == b.address() && a.bytes() == b.bytes()
}

fn overlap(a: &Tensor, b: &Tensor) -> bool {
    let (a, b) = ((a.address(), a.bytes() as u64), (b.address(), b.bytes() as u64));
    a.0 < b.0 + b.1 && b.0 < a.0 + a.1 && a.1 > 0 && b.1 > 0
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
        sum: &OrderedSum,
        index: usize,
        inputs: &[Tensor],
        out: &Tensor,
        workspace: &Tensor,
        tile: &Range<usize>,
    ) -> Result<StageSum, KernelError> {
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

    fn dtype(&self) -> DType {
        self.inputs[0].as_ref().map_or(self.out.dtype(), Tensor::dtype)
    }
}

impl op::Op for StageSum {
    const NAME: &'static str = KERNEL;

    fn operands(&self) -> impl Iterator<Item = &Tensor> {
        self.inputs.iter().flatten().chain([&self.out, &self.workspace])
    }

    /// [`check`] has seen the whole.
    fn check(&self) -> Result<(), KernelError> {
        Ok(())
    }

    op::on_both!();
}

impl OrderedSum {
    /// Elements that pass through all stages before the next ones do; all of them, where there is
    /// one stage.
    fn tile(&self, device: &Device, len: usize) -> usize {
        match (self.is_carried(device), device.kind().is_host()) {
            (false, _) => len,
            // What the threads of a host keep in their caches.
            (true, true) => host::TILE,
            (true, false) => device::TILE,
        }
    }

    /// Whether sums lie in the workspace.
    fn is_carried(&self, device: &Device) -> bool {
        let deepest = if device.kind().is_host() { host::DEEPEST } else { usize::MAX };
        self.stages().len() > 1 || self.depth() > deepest
    }

    /// Elements of workspace for sums of `len` elements on this device.
    pub fn workspace_elements(&self, device: &Device, len: usize) -> usize {
        if !self.is_carried(device) {
            return 0;
        }
        let tile = self.tile(device, len).min(len);
        tile.next_multiple_of(host::CHUNK) * self.depth()
    }
}
