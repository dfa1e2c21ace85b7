//! The devices' code: `kernels/ordered_sum`. What a stage needs to know fits its argument.

use device::{DType, Grid, Stream};
use layout::ReduceOp;

use super::stages::Limits;
use super::{KERNEL, RedOp, StageSum};
use crate::KernelError;
use crate::gpu::abi;
use crate::gpu::modules::{Family, Kernels};

const THREADS: u32 = 256;
/// Bytes of what a thread computes at a time, in the type that is computed in.
const GROUP_BYTES: u32 = 16;
/// Blocks of a launch for each multiprocessor, at most.
const RESIDENT: u32 = 8;
/// A deeper stack than the shared memory has would gain nothing from workspace: it is refused.
pub(super) const LIMITS: Limits = Limits { depth: usize::MAX, tile: 1 << 22 };

impl StageSum {
    pub(super) fn enqueue(&self, kernels: &Kernels, stream: &Stream) -> Result<(), KernelError> {
        let depth = self.sum.depth();
        if depth > abi::SUM_DEPTH as usize {
            let most = abi::SUM_DEPTH;
            let message = format!(
                "the program keeps {depth} sums, and kernels of devices {most}: use a tree of at \
                 most {most} levels, or sum on the host"
            );
            return Err(KernelError::Argument { kernel: KERNEL, message });
        }
        if self.out.is_empty() {
            return Ok(());
        }
        let args = self.args();
        // The stack has its own type, where results are rounded.
        let number = if self.is_rounded() { DType::F32 } else { self.out.dtype() };
        let sums = GROUP_BYTES / number.bytes() as u32;
        let units = self.out.len().div_ceil((THREADS * sums) as usize);
        let most = kernels.multiprocessors() * RESIDENT;
        let blocks = u32::try_from(units).map_or(most, |units| units.min(most));
        let shared_bytes = GROUP_BYTES * THREADS * (depth as u32 - 1);
        let grid = Grid { shared_bytes, ..Grid::linear(blocks, THREADS) };
        let name = match (self.dtype(), self.out.dtype()) {
            (DType::F64, _) => "ordered_sum_f64",
            (DType::Bf16, _) => "ordered_sum_bf16",
            (DType::F16, _) => "ordered_sum_f16",
            (DType::I32, _) => "ordered_sum_i32",
            (DType::I64, _) => "ordered_sum_i64",
            (DType::U8, _) => "ordered_sum_u8",
            (_, DType::Bf16) => "ordered_sum_f32_bf16",
            (_, DType::F16) => "ordered_sum_f32_f16",
            _ => "ordered_sum_f32",
        };
        let function = kernels.function(Family::OrderedSum, name)?;
        // SAFETY: every input has the length of `out`; the stack is no deeper than the shared
        // memory and, where there are several stages, the workspace (`Summation` checked both);
        // all is memory of this device (`op::run`), freed after the work that was enqueued before.
        Ok(unsafe { stream.launch_module(&function, &grid, &args) }?)
    }

    fn args(&self) -> abi::ReduceArgs {
        let inputs = match (self.sum.redop(), self.is_last()) {
            (RedOp::Avg, true) => self.sum.count(),
            _ => 0,
        };
        let reduce = match self.sum.redop() {
            RedOp::Sum | RedOp::Avg => abi::REDUCE_SUM,
            RedOp::Prod => abi::REDUCE_PROD,
            RedOp::Min => abi::REDUCE_MIN,
            RedOp::Max => abi::REDUCE_MAX,
        };
        abi::ReduceArgs {
            stage: self.stage_args(),
            factor: 1.0 / inputs.max(1) as f64,
            inputs: inputs as u64,
            reduce,
            is_rounded: u32::from(self.is_rounded()),
        }
    }

    fn stage_args(&self) -> abi::SumArgs {
        let mut args = abi::SumArgs {
            out: if self.is_last() { self.out.address() } else { 0 },
            carry: self.workspace.address(),
            len: self.out.len() as u64,
            height: self.stage.height as u32,
            ..abi::SumArgs::default()
        };
        for (address, input) in args.inputs.iter_mut().zip(self.inputs.iter().flatten()) {
            *address = input.address();
        }
        // A stage folds no more than its inputs and the stack before it: at most 64 operations.
        for (index, op) in self.sum.ops(&self.stage).iter().enumerate() {
            let kind = match op {
                ReduceOp::Push(_) => abi::SUM_PUSH,
                ReduceOp::AddInput(_) => abi::SUM_ADD,
                ReduceOp::Fold => abi::SUM_FOLD,
            };
            args.ops[index / 32] |= u64::from(kind) << (index % 32 * 2);
            args.op_count += 1;
        }
        args
    }
}
