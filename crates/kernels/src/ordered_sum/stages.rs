//! A program, checked and cut into what one kernel can run.

use std::sync::Arc;

use layout::{ReduceOp, SumProgram};

use super::{KERNEL, RedOp};
use crate::KernelError;
use crate::gpu::abi;

/// Inputs of one kernel; those of the host may ask for 32 memory ranges.
pub(super) const STAGE_INPUTS: usize = abi::SUM_INPUTS;

/// How to combine inputs: made once for a program, and shared by its clones.
#[derive(Debug, Clone)]
pub struct OrderedSum {
    plan: Arc<Plan>,
}

#[derive(Debug)]
struct Plan {
    ops: Vec<ReduceOp>,
    stages: Vec<Stage>,
    inputs: usize,
    /// The number of values that averages are over.
    count: usize,
    depth: usize,
    redop: RedOp,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Stage {
    pub ops: (usize, usize),
    pub inputs: (usize, usize),
    /// Stack height before the first operation.
    pub height: usize,
}

/// The limits of the code of a place.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Sums of the deepest stack that needs no workspace, where there is one stage.
    pub depth: usize,
    /// Elements of a tile, where sums lie in the workspace.
    pub tile: usize,
}

impl Limits {
    /// Whether the sums of this program lie in the workspace.
    pub fn carry(self, sum: &OrderedSum) -> bool {
        sum.stages().len() > 1 || sum.depth() > self.depth
    }

    /// Elements that pass through all stages before the next ones do; all of `len`, where there is
    /// one stage.
    pub fn tile(self, sum: &OrderedSum, len: usize) -> usize {
        if self.carry(sum) { self.tile } else { len }
    }
}

impl OrderedSum {
    /// `inputs` inputs, combined by `redop` in the order of `program`, whose additions stand for
    /// whatever that does.
    ///
    /// # Errors
    /// A program that does not read each input once and in order, or whose stack does not end with
    /// the one sum.
    pub fn new(
        program: &SumProgram,
        inputs: usize,
        redop: RedOp,
    ) -> Result<OrderedSum, KernelError> {
        OrderedSum::of_parts(program, inputs, redop, inputs)
    }

    /// As [`OrderedSum::new`], of inputs that are themselves combined from `count` others in all,
    /// over which averages are; those are sums then.
    ///
    /// # Errors
    /// As [`OrderedSum::new`].
    pub fn of_parts(
        program: &SumProgram,
        inputs: usize,
        redop: RedOp,
        count: usize,
    ) -> Result<OrderedSum, KernelError> {
        let plan = Plan::new(program, inputs, redop).map_err(|problem| {
            let message = format!("the program {problem}");
            KernelError::Argument { kernel: KERNEL, message }
        })?;
        Ok(OrderedSum { plan: Arc::new(Plan { count, ..plan }) })
    }

    /// Whether it was made from this program.
    pub fn is_of(&self, program: &SumProgram) -> bool {
        self.plan.ops == program.ops
    }

    /// By what inputs are combined.
    pub fn redop(&self) -> RedOp {
        self.plan.redop
    }

    /// Number of inputs.
    pub fn inputs(&self) -> usize {
        self.plan.inputs
    }

    /// How many numbers an average is over.
    pub(super) fn count(&self) -> usize {
        self.plan.count
    }

    /// Sums on the stack, at most.
    pub fn depth(&self) -> usize {
        self.plan.depth
    }

    pub(super) fn stages(&self) -> &[Stage] {
        &self.plan.stages
    }

    pub(super) fn ops(&self, stage: &Stage) -> &[ReduceOp] {
        &self.plan.ops[stage.ops.0..stage.ops.1]
    }
}

impl Plan {
    fn new(program: &SumProgram, inputs: usize, redop: RedOp) -> Result<Plan, String> {
        let mut stages = Vec::new();
        let (mut next, mut height, mut depth) = (0, 0_usize, 1);
        let mut open = Stage { ops: (0, 0), inputs: (0, 0), height: 0 };
        for (index, op) in program.ops.iter().enumerate() {
            if next - open.inputs.0 == STAGE_INPUTS && !matches!(op, ReduceOp::Fold) {
                stages.push(Stage { ops: (open.ops.0, index), ..open });
                open = Stage { ops: (index, index), inputs: (next, next), height };
            }
            match *op {
                ReduceOp::Push(input) | ReduceOp::AddInput(input) if input != next => {
                    return Err(format!("reads input {input} where input {next} comes next"));
                }
                ReduceOp::Push(_) => (next, height) = (next + 1, height + 1),
                ReduceOp::AddInput(_) if height > 0 => next += 1,
                ReduceOp::Fold if height > 1 => height -= 1,
                ReduceOp::AddInput(_) | ReduceOp::Fold => {
                    return Err(format!("adds to nothing at operation {index}"));
                }
            }
            depth = depth.max(height);
            open.inputs.1 = next;
        }
        if next != inputs {
            return Err(format!("reads {next} inputs where there are {inputs}"));
        }
        if height != 1 {
            return Err(format!("ends with {height} sums"));
        }
        stages.push(Stage { ops: (open.ops.0, program.ops.len()), ..open });
        Ok(Plan { ops: program.ops.clone(), stages, inputs, count: inputs, depth, redop })
    }
}
