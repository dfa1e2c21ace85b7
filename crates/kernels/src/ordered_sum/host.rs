//! The host's code. The stack of a tile lies in the first-level cache, except its bottom, which is
//! the output itself:
//!
//! ```text
//! inputs  a b c d ──┐  Push a, AddInput b     level 0 (= out tile)  a+b
//!                   ├─ Push c, AddInput d     level 1 (scratch)     c+d
//!                   └─ Fold                   level 0               (a+b)+(c+d)
//! ```
//!
//! An input may be the output's own old contents. As the first input it is already where it
//! belongs; as a later one it is set aside before the bottom is written. Where the output is
//! rounded, the bottom is scratch, too, and the old contents stay until all is combined.

use device::{DType, DeviceError, Element, Kernel};
use half::{bf16, f16};
use layout::ReduceOp;

use super::redop::{Combine, Input, Max, Min, Number, Prod, RedOp, Rounded, Sum};
use super::stages::Limits;
use super::{STAGE_INPUTS, StageSum};

/// Elements in the scratch of one thread: 16 KiB of f32, half of a first-level cache.
const SCRATCH: usize = 4096;
/// Elements that a small sum has instead.
const LITTLE: usize = 256;
/// Elements that one thread takes at a time.
const BLOCK: usize = 16 * SCRATCH;
/// Elements of a chunk when a program takes several kernels.
pub(super) const CHUNK: usize = 1024;
/// The deepest stack fits the scratch in tiles of a useful size, and the tile of several kernels
/// what the threads keep in their caches.
pub(super) const LIMITS: Limits = Limits { depth: SCRATCH / 32, tile: 64 * CHUNK };

/// The inputs of a stage; `None` is the output's old contents.
type Inputs<'a, I> = [Option<&'a [I]>; STAGE_INPUTS];

impl StageSum {
    pub(super) fn run(&self, k: &Kernel) -> Result<(), DeviceError> {
        match self.sum.redop() {
            RedOp::Sum | RedOp::Avg => self.run_by::<Sum>(k),
            RedOp::Prod => self.run_by::<Prod>(k),
            RedOp::Min => self.run_by::<Min>(k),
            RedOp::Max => self.run_by::<Max>(k),
        }
    }

    fn run_by<R: Combine>(&self, k: &Kernel) -> Result<(), DeviceError> {
        match (self.dtype(), self.out.dtype()) {
            (DType::F64, _) => self.run_as::<f64, f64, R>(k),
            (DType::I32, _) => self.run_as::<i32, i32, R>(k),
            (DType::I64, _) => self.run_as::<i64, i64, R>(k),
            (DType::U8, _) => self.run_as::<u8, u8, R>(k),
            (DType::Bf16, DType::Bf16) => self.run_rounded::<bf16, bf16, R>(k, |old| old),
            (DType::F16, DType::F16) => self.run_rounded::<f16, f16, R>(k, |old| old),
            (DType::Bf16, _) => self.run_as::<f32, bf16, R>(k),
            (DType::F16, _) => self.run_as::<f32, f16, R>(k),
            // No input has the bytes of `out`, so none is its old contents.
            (_, DType::Bf16) => self.run_rounded::<f32, bf16, R>(k, |_| &[]),
            (_, DType::F16) => self.run_rounded::<f32, f16, R>(k, |_| &[]),
            _ => self.run_as::<f32, f32, R>(k),
        }
    }

    /// The result has the type that is computed in.
    fn run_as<N: Number, I: Input<N>, R: Combine>(&self, k: &Kernel) -> Result<(), DeviceError> {
        let inputs = self.open::<I>(k)?;
        let is_first = self.stage.inputs.0 == 0;
        let set_aside = is_first && (self.own_comes_later || self.own.is_some_and(|own| own > 0));
        let tiles = self.tiles(&inputs);
        self.each_tile(k, |at, out: &mut [N], scratch: &mut [N]| {
            let (own, levels) = scratch.split_at_mut(out.len());
            if set_aside {
                own.copy_from_slice(out);
            }
            tiles.evaluate::<N, R>(at, out, levels, Values::Own(own));
            self.finish(out);
        })
    }

    /// The result is rounded to `O`; `as_input` gives its old contents as an input.
    fn run_rounded<I: Input<f32>, O: Rounded, R: Combine>(
        &self,
        k: &Kernel,
        as_input: impl Fn(&[O]) -> &[I] + Sync + Send,
    ) -> Result<(), DeviceError> {
        let inputs = self.open::<I>(k)?;
        let tiles = self.tiles(&inputs);
        self.each_tile(k, |at, out: &mut [O], scratch: &mut [f32]| {
            let (bottom, levels) = scratch.split_at_mut(out.len());
            tiles.evaluate::<f32, R>(at, bottom, levels, Values::Read(as_input(out)));
            self.finish(bottom);
            if self.is_last() {
                O::round(bottom, out);
            }
        })
    }

    fn open<'k, I: Element>(&'k self, k: &'k Kernel) -> Result<Inputs<'k, I>, DeviceError> {
        k.streams();
        let mut inputs: Inputs<I> = [None; STAGE_INPUTS];
        for (index, (values, input)) in inputs.iter_mut().zip(&self.inputs).enumerate() {
            if let (Some(input), false) = (input, self.own == Some(index)) {
                *values = Some(k.read::<I>(input)?);
            }
        }
        Ok(inputs)
    }

    fn tiles<'a, I>(&'a self, inputs: &'a Inputs<'a, I>) -> Tiles<'a, I> {
        let inputs = &inputs[..self.stage.inputs.1 - self.stage.inputs.0];
        let (ops, height) = (self.sum.ops(&self.stage), self.stage.height);
        Tiles { ops, inputs, height, is_first: self.stage.inputs.0 == 0 }
    }

    /// Divides the results of an average by its count, after the last stage.
    fn finish<N: Number>(&self, results: &mut [N]) {
        if self.sum.redop() == RedOp::Avg && self.is_last() {
            N::average(results, self.sum.count());
        }
    }

    /// Calls `run` for each tile of the output: where it begins, the tile, and scratch of as many
    /// elements for each number on the stack.
    fn each_tile<O: Element, N: Number>(
        &self,
        k: &Kernel,
        run: impl Fn(usize, &mut [O], &mut [N]) + Sync + Send,
    ) -> Result<(), DeviceError> {
        let (out, depth) = (k.write::<O>(&self.out)?, self.sum.depth());
        if LIMITS.carry(&self.sum) {
            let carry = (k.write::<N>(&self.workspace)?, depth * CHUNK);
            k.parallel().chunks2((out, CHUNK), carry, |chunk, out, scratch| {
                run(chunk * CHUNK, out, scratch);
            });
            return Ok(());
        }
        let tile = SCRATCH / depth;
        let run = |block: usize, out: &mut [O], scratch: &mut [N]| {
            for (index, out) in out.chunks_mut(tile).enumerate() {
                run(block * BLOCK + index * tile, out, scratch);
            }
        };
        k.parallel().chunks(out, BLOCK, |block, out| match out.len() * depth {
            // Zeroing the whole scratch takes longer than a small sum.
            0..=LITTLE => run(block, out, &mut [N::zeroed(); LITTLE]),
            _ => run(block, out, &mut [N::zeroed(); SCRATCH]),
        });
        Ok(())
    }
}

/// Elements of one input.
#[derive(Clone, Copy)]
enum Values<'a, N, I> {
    /// The output's old contents, set aside.
    Own(&'a [N]),
    Read(&'a [I]),
}

impl<N: Number, I: Input<N>> Values<'_, N, I> {
    fn copy_to(&self, to: &mut [N]) {
        match self {
            Values::Own(from) => to.copy_from_slice(from),
            Values::Read(from) => {
                for (to, &from) in to.iter_mut().zip(*from) {
                    *to = from.widened();
                }
            }
        }
    }

    fn combine_into<R: Combine>(&self, to: &mut [N]) {
        match self {
            Values::Own(from) => combine::<N, R>(to, from),
            Values::Read(from) => {
                for (to, &from) in to.iter_mut().zip(*from) {
                    *to = R::combine(*to, from.widened());
                }
            }
        }
    }

    fn combine_both_into<R: Combine>(&self, other: &Self, to: &mut [N]) {
        if let (Values::Read(a), Values::Read(b)) = (self, other) {
            for ((to, &a), &b) in to.iter_mut().zip(*a).zip(*b) {
                *to = R::combine(a.widened(), b.widened());
            }
            return;
        }
        self.copy_to(to);
        other.combine_into::<R>(to);
    }
}

/// One stage over one range: everything but the position.
struct Tiles<'a, I> {
    ops: &'a [ReduceOp],
    /// `None` is the output's old contents.
    inputs: &'a [Option<&'a [I]>],
    /// Stack height before the first operation.
    height: usize,
    is_first: bool,
}

impl<I: Element> Tiles<'_, I> {
    /// Runs the operations on elements `at..` of the inputs. `bottom` is level 0 of the stack,
    /// `levels` those above; `own` the old contents of the output, which may be an input.
    fn evaluate<N: Number, R: Combine>(
        &self,
        at: usize,
        bottom: &mut [N],
        levels: &mut [N],
        own: Values<N, I>,
    ) where
        I: Input<N>,
    {
        let len = bottom.len();
        let (mut next, mut index, mut height) = (0, 0, self.height);
        while let Some(op) = self.ops.get(index) {
            let mut take = || {
                next += 1;
                self.inputs[next - 1].map_or(own, |values| Values::Read(&values[at..at + len]))
            };
            match op {
                ReduceOp::Push(_) => {
                    let first = take();
                    let fused = matches!(self.ops.get(index + 1), Some(ReduceOp::AddInput(_)));
                    let second = fused.then(&mut take);
                    let level = at_level(bottom, levels, height);
                    // Only the first input can find itself in level 0 already.
                    let in_place = self.is_first && index == 0 && matches!(first, Values::Own(_));
                    match second {
                        None if in_place => {}
                        Some(second) if in_place => second.combine_into::<R>(level),
                        None => first.copy_to(level),
                        Some(second) => first.combine_both_into::<R>(&second, level),
                    }
                    height += 1;
                    index += usize::from(fused);
                }
                ReduceOp::AddInput(_) => {
                    take().combine_into::<R>(at_level(bottom, levels, height - 1));
                }
                ReduceOp::Fold if height == 2 => {
                    combine::<N, R>(bottom, &levels[..len]);
                    height = 1;
                }
                ReduceOp::Fold => {
                    let (below, top) = levels.split_at_mut((height - 2) * len);
                    combine::<N, R>(&mut below[(height - 3) * len..], &top[..len]);
                    height -= 1;
                }
            }
            index += 1;
        }
    }
}

fn at_level<'a, N>(bottom: &'a mut [N], levels: &'a mut [N], level: usize) -> &'a mut [N] {
    let len = bottom.len();
    match level {
        0 => bottom,
        _ => &mut levels[(level - 1) * len..level * len],
    }
}

fn combine<N: Number, R: Combine>(into: &mut [N], from: &[N]) {
    for (into, &from) in into.iter_mut().zip(from) {
        *into = R::combine(*into, from);
    }
}
