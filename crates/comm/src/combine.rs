//! Sums inputs over one segment exactly as a [`Program`] says, element by element.
//!
//! The accumulator stack of a tile lives in the first-level cache, except its bottom, which is
//! the output itself:
//!
//! ```text
//! inputs  a b c d ──┐  Push a, AddInput b     level 0 (= out tile)  a+b
//!                   ├─ Push c, AddInput d     level 1 (scratch)     c+d
//!                   └─ Fold                   level 0               (a+b)+(c+d)
//! ```
//!
//! An input may be the output's own old contents (an in-place reduction). As the first input it
//! is already where it belongs; as a later one it is set aside before the bottom is written.
//! Tiles and threads split elements, never a sum, so the bits depend on the program alone.

use std::ops::{Add, Range};
use std::sync::atomic::{AtomicU64, Ordering};

use device::{Device, Element, Kernel, Tensor};
use layout::{Program, ReduceOp};

use crate::CommError;

/// Elements in the scratch of one thread: 16 KiB of f32, half of a first-level cache.
const SCRATCH: usize = 4096;
/// Elements that one thread takes at a time.
const BLOCK: usize = 16 * SCRATCH;
/// Inputs of one kernel; kernels may ask for 32 memory ranges.
const STAGE_INPUTS: usize = 24;
/// Elements of a chunk when a program takes several kernels.
const STAGED_CHUNK: usize = 1024;
/// Elements that pass through all kernels of such a program before the next ones do.
const STAGED_TILE: usize = 64 * STAGED_CHUNK;

/// Deepest stack that fits the scratch in tiles of a useful size.
const DEEPEST: usize = SCRATCH / 32;

/// A type that sums are made in.
pub(crate) trait Number: Element + Add<Output = Self> {
    /// The memory that carries a program's stack from kernel to kernel.
    fn carry(carry: &mut Carry) -> &mut Vec<Self>;
}

impl Number for f32 {
    fn carry(carry: &mut Carry) -> &mut Vec<f32> {
        &mut carry.of_f32
    }
}

impl Number for f64 {
    fn carry(carry: &mut Carry) -> &mut Vec<f64> {
        &mut carry.of_f64
    }
}

/// What a group keeps between operations so that they need not allocate.
#[derive(Default)]
pub(crate) struct Carry {
    of_f32: Vec<f32>,
    of_f64: Vec<f64>,
}

/// Where an input's elements of the present range lie.
pub(crate) enum Located<'a, T> {
    /// Device memory.
    Memory(Tensor),
    /// A peer's device memory, and where the bytes that are read of it are counted.
    Peer(Tensor, &'a AtomicU64),
    /// Host memory, received from a peer.
    Host(&'a [T]),
    /// The output's old contents.
    Out,
}

impl<T> Located<'_, T> {
    fn is_out(&self) -> bool {
        matches!(self, Located::Out)
    }
}

/// A checked program, cut into stages that one kernel can run.
pub(crate) struct Stages {
    stages: Vec<Stage>,
    ops: Vec<ReduceOp>,
    depth: usize,
}

#[derive(Clone, Copy)]
struct Stage {
    ops: (usize, usize),
    inputs: (usize, usize),
    /// Stack height before the first operation.
    height: usize,
}

impl Stages {
    /// Those of `program`.
    ///
    /// # Errors
    /// A program that does not read each of `inputs` once and in order, or whose stack does not
    /// end with the one sum.
    pub(crate) fn new(program: &Program, inputs: usize) -> Result<Stages, CommError> {
        let mut stages = Vec::new();
        let (mut next, mut height, mut depth) = (0, 0_usize, 1);
        let mut open = Stage { ops: (0, 0), inputs: (0, 0), height: 0 };
        let wrong = |problem: String| Err(CommError::Program { problem });
        for (index, op) in program.ops.iter().enumerate() {
            if next - open.inputs.0 == STAGE_INPUTS && !matches!(op, ReduceOp::Fold) {
                stages.push(Stage { ops: (open.ops.0, index), ..open });
                open = Stage { ops: (index, index), inputs: (next, next), height };
            }
            match *op {
                ReduceOp::Push(input) | ReduceOp::AddInput(input) if input != next => {
                    return wrong(format!("reads input {input} where input {next} comes next"));
                }
                ReduceOp::Push(_) => (next, height) = (next + 1, height + 1),
                ReduceOp::AddInput(_) if height > 0 => next += 1,
                ReduceOp::Fold if height > 1 => height -= 1,
                ReduceOp::AddInput(_) | ReduceOp::Fold => {
                    return wrong(format!("adds to nothing at operation {index}"));
                }
            }
            depth = depth.max(height);
            open.inputs.1 = next;
        }
        if next != inputs {
            return wrong(format!("reads {next} inputs where there are {inputs} partials"));
        }
        if height != 1 {
            return wrong(format!("ends with {height} sums"));
        }
        stages.push(Stage { ops: (open.ops.0, program.ops.len()), ..open });
        Ok(Stages { stages, ops: program.ops.clone(), depth })
    }

    /// Whether the stack outlives a kernel, or is too deep for a thread's scratch.
    fn is_carried(&self) -> bool {
        self.stages.len() > 1 || self.depth > DEEPEST
    }

    /// Sums into `out[range]`. `locate(input, range)` says where each input's elements lie;
    /// `carry` keeps the stack between the kernels of a long program and is reused.
    ///
    /// # Errors
    /// What `locate` or the device refuses.
    pub(crate) fn sum<'a, T: Number>(
        &self,
        device: &Device,
        out: &Tensor,
        range: Range<usize>,
        carry: &mut Vec<T>,
        locate: &dyn Fn(usize, Range<usize>) -> Result<Located<'a, T>, CommError>,
    ) -> Result<(), CommError> {
        let tile = if self.is_carried() { STAGED_TILE } else { range.len() };
        for start in range.clone().step_by(tile.max(1)) {
            let tile = start..(start + tile).min(range.end);
            let view = out.flat(tile.clone())?;
            for stage in &self.stages {
                self.run_stage(device, &view, tile.clone(), stage, carry, locate)?;
            }
        }
        Ok(())
    }

    fn run_stage<'a, T: Number>(
        &self,
        device: &Device,
        out: &Tensor,
        range: Range<usize>,
        stage: &Stage,
        carry: &mut Vec<T>,
        locate: &dyn Fn(usize, Range<usize>) -> Result<Located<'a, T>, CommError>,
    ) -> Result<(), CommError> {
        let mut located: [Located<'a, T>; STAGE_INPUTS] =
            std::array::from_fn(|_| Located::Host(&[]));
        let located = &mut located[..stage.inputs.1 - stage.inputs.0];
        for (index, place) in located.iter_mut().enumerate() {
            *place = locate(stage.inputs.0 + index, range.clone())?;
        }
        let carried = self.is_carried().then(|| {
            let chunks = range.len().div_ceil(STAGED_CHUNK);
            carry.resize(chunks * self.depth * STAGED_CHUNK, T::zeroed());
            &mut carry[..]
        });
        let is_first = stage.inputs.0 == 0;
        let later_out = self.stages.len() > 1 || located.iter().any(Located::is_out);
        let set_aside = is_first && later_out && !located.first().is_some_and(Located::is_out);
        device.with_memory("ordered_sum", |k| {
            let mut inputs = [Input { values: None, read: None }; STAGE_INPUTS];
            for (input, place) in inputs.iter_mut().zip(located.iter()) {
                (input.values, input.read) = match place {
                    Located::Memory(tensor) => (Some(k.read::<T>(tensor)?), None),
                    Located::Peer(tensor, read) => (Some(k.read::<T>(tensor)?), Some(*read)),
                    Located::Host(values) => (Some(*values), None),
                    Located::Out => (None, None),
                };
            }
            let ops = &self.ops[stage.ops.0..stage.ops.1];
            let inputs = &inputs[..located.len()];
            let tiles = Tiles { ops, inputs, height: stage.height, is_first, set_aside };
            self.run_tiles(k, k.write::<T>(out)?, &tiles, carried);
            Ok(())
        })?;
        Ok(())
    }

    fn run_tiles<T: Number>(
        &self,
        k: &Kernel,
        out: &mut [T],
        tiles: &Tiles<T>,
        carried: Option<&mut [T]>,
    ) {
        if let Some(carry) = carried {
            let carry = (carry, self.depth * STAGED_CHUNK);
            return k.parallel().chunks2((out, STAGED_CHUNK), carry, |chunk, out, scratch| {
                tiles.evaluate(chunk * STAGED_CHUNK, out, scratch);
            });
        }
        let tile = SCRATCH / self.depth;
        k.parallel().chunks(out, BLOCK, |block, out| {
            let mut scratch = [T::zeroed(); SCRATCH];
            for (index, out) in out.chunks_mut(tile).enumerate() {
                tiles.evaluate(block * BLOCK + index * tile, out, &mut scratch);
            }
        });
    }
}

/// The elements of one input.
#[derive(Clone, Copy)]
struct Input<'a, T> {
    /// `None` is the output's old contents.
    values: Option<&'a [T]>,
    /// Counts bytes that are read, if they are a peer's.
    read: Option<&'a AtomicU64>,
}

impl<T> Input<'_, T> {
    /// Elements `range`, unless they are the output's.
    fn take(&self, range: Range<usize>) -> Option<&[T]> {
        let values = &self.values?[range];
        if let Some(read) = self.read {
            read.fetch_add(size_of_val(values) as u64, Ordering::Relaxed);
        }
        Some(values)
    }
}

/// One stage over one range: everything but the position.
struct Tiles<'a, T> {
    ops: &'a [ReduceOp],
    inputs: &'a [Input<'a, T>],
    /// Stack height before the first operation.
    height: usize,
    is_first: bool,
    /// Whether the old contents must be kept before level 0 is written.
    set_aside: bool,
}

impl<T: Number> Tiles<'_, T> {
    /// Runs the operations on elements `at..` of the inputs, into `out` (stack level 0).
    /// `scratch` holds the contents of `out` that were set aside, then levels 1 and up.
    fn evaluate(&self, at: usize, out: &mut [T], scratch: &mut [T]) {
        let len = out.len();
        let (own, levels) = scratch.split_at_mut(len);
        if self.set_aside {
            own.copy_from_slice(out);
        }
        let own = &*own;
        let (mut next, mut index, mut height) = (0, 0, self.height);
        while let Some(op) = self.ops.get(index) {
            let mut take = || {
                next += 1;
                self.inputs[next - 1].take(at..at + len)
            };
            match op {
                ReduceOp::Push(_) => {
                    let first = take();
                    let fused = matches!(self.ops.get(index + 1), Some(ReduceOp::AddInput(_)));
                    let second = fused.then(|| take().unwrap_or(own));
                    let level = at_level(out, levels, height);
                    // Only the first input can find itself in level 0 already.
                    let in_place = self.is_first && index == 0 && first.is_none();
                    match second {
                        None if in_place => {}
                        Some(b) if in_place => add(level, b),
                        None => level.copy_from_slice(first.unwrap_or(own)),
                        Some(b) => add_both(level, first.unwrap_or(own), b),
                    }
                    height += 1;
                    index += usize::from(fused);
                }
                ReduceOp::AddInput(_) => {
                    add(at_level(out, levels, height - 1), take().unwrap_or(own));
                }
                ReduceOp::Fold if height == 2 => {
                    add(out, &levels[..len]);
                    height = 1;
                }
                ReduceOp::Fold => {
                    let (below, top) = levels.split_at_mut((height - 2) * len);
                    add(&mut below[(height - 3) * len..], &top[..len]);
                    height -= 1;
                }
            }
            index += 1;
        }
    }
}

fn at_level<'a, T>(out: &'a mut [T], levels: &'a mut [T], level: usize) -> &'a mut [T] {
    let len = out.len();
    match level {
        0 => out,
        _ => &mut levels[(level - 1) * len..level * len],
    }
}

fn add<T: Number>(into: &mut [T], from: &[T]) {
    for (into, &from) in into.iter_mut().zip(from) {
        *into = *into + from;
    }
}

fn add_both<T: Number>(into: &mut [T], a: &[T], b: &[T]) {
    for ((into, &a), &b) in into.iter_mut().zip(a).zip(b) {
        *into = a + b;
    }
}
