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
//! belongs; as a later one it is set aside before the bottom is written.

use std::ops::{Add, Range};

use device::{DType, DeviceError, Element, Kernel};
use half::{bf16, f16};
use layout::ReduceOp;

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

/// A type that sums are made in.
trait Number: Element + Add<Output = Self> {}
impl Number for f32 {}
impl Number for f64 {}

/// A type of inputs that are summed as `S`.
trait Input<S>: Element {
    fn widened(self) -> S;
}

impl Input<f32> for f32 {
    #[inline(always)]
    fn widened(self) -> f32 {
        self
    }
}
impl Input<f64> for f64 {
    #[inline(always)]
    fn widened(self) -> f64 {
        self
    }
}
impl Input<f32> for bf16 {
    #[inline(always)]
    fn widened(self) -> f32 {
        self.to_f32()
    }
}
impl Input<f32> for f16 {
    #[inline(always)]
    fn widened(self) -> f32 {
        self.to_f32()
    }
}

impl StageSum {
    pub(super) fn run(&self, k: &Kernel) -> Result<(), DeviceError> {
        match self.dtype() {
            DType::F64 => self.run_as::<f64, f64>(k),
            DType::Bf16 => self.run_as::<f32, bf16>(k),
            DType::F16 => self.run_as::<f32, f16>(k),
            _ => self.run_as::<f32, f32>(k),
        }
    }

    fn run_as<S: Number, I: Input<S>>(&self, k: &Kernel) -> Result<(), DeviceError> {
        k.streams();
        let mut inputs: [Option<&[I]>; STAGE_INPUTS] = [None; STAGE_INPUTS];
        for (index, (values, input)) in inputs.iter_mut().zip(&self.inputs).enumerate() {
            if let (Some(input), false) = (input, self.own == Some(index)) {
                *values = Some(k.read::<I>(input)?);
            }
        }
        let is_first = self.stage.inputs.0 == 0;
        let set_aside = is_first && (self.own_comes_later || self.own.is_some_and(|own| own > 0));
        let (ops, height) = (self.sum.ops(&self.stage), self.stage.height);
        let inputs = &inputs[..self.stage.inputs.1 - self.stage.inputs.0];
        let tiles = Tiles { ops, inputs, height, is_first, set_aside };
        let (out, depth) = (k.write::<S>(&self.out)?, self.sum.depth());
        if LIMITS.carry(&self.sum) {
            let carry = (k.write::<S>(&self.workspace)?, depth * CHUNK);
            k.parallel().chunks2((out, CHUNK), carry, |chunk, out, scratch| {
                tiles.evaluate(chunk * CHUNK, out, scratch);
            });
            return Ok(());
        }
        let tile = SCRATCH / depth;
        let run = |block: usize, out: &mut [S], scratch: &mut [S]| {
            for (index, out) in out.chunks_mut(tile).enumerate() {
                tiles.evaluate(block * BLOCK + index * tile, out, scratch);
            }
        };
        k.parallel().chunks(out, BLOCK, |block, out| match out.len() * depth {
            // Zeroing the whole scratch takes longer than a small sum.
            0..=LITTLE => run(block, out, &mut [S::zeroed(); LITTLE]),
            _ => run(block, out, &mut [S::zeroed(); SCRATCH]),
        });
        Ok(())
    }
}

/// Elements of one input.
enum Values<'a, S, I> {
    /// The output's old contents, set aside.
    Own(&'a [S]),
    Read(&'a [I]),
}

impl<S: Number, I: Input<S>> Values<'_, S, I> {
    fn copy_to(&self, to: &mut [S]) {
        match self {
            Values::Own(from) => to.copy_from_slice(from),
            Values::Read(from) => {
                for (to, &from) in to.iter_mut().zip(*from) {
                    *to = from.widened();
                }
            }
        }
    }

    fn add_to(&self, to: &mut [S]) {
        match self {
            Values::Own(from) => add(to, from),
            Values::Read(from) => {
                for (to, &from) in to.iter_mut().zip(*from) {
                    *to = *to + from.widened();
                }
            }
        }
    }

    fn add_both_to(&self, other: &Self, to: &mut [S]) {
        if let (Values::Read(a), Values::Read(b)) = (self, other) {
            for ((to, &a), &b) in to.iter_mut().zip(*a).zip(*b) {
                *to = a.widened() + b.widened();
            }
            return;
        }
        self.copy_to(to);
        other.add_to(to);
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
    /// Whether the old contents must be kept before level 0 is written.
    set_aside: bool,
}

impl<I: Element> Tiles<'_, I> {
    fn values<'s, S>(
        &'s self,
        input: usize,
        range: Range<usize>,
        own: &'s [S],
    ) -> Values<'s, S, I> {
        self.inputs[input].map_or(Values::Own(own), |values| Values::Read(&values[range]))
    }

    /// Runs the operations on elements `at..` of the inputs, into `out` (stack level 0).
    /// `scratch` holds the contents of `out` that were set aside, then levels 1 and up.
    fn evaluate<S: Number>(&self, at: usize, out: &mut [S], scratch: &mut [S])
    where
        I: Input<S>,
    {
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
                self.values(next - 1, at..at + len, own)
            };
            match op {
                ReduceOp::Push(_) => {
                    let first = take();
                    let fused = matches!(self.ops.get(index + 1), Some(ReduceOp::AddInput(_)));
                    let second = fused.then(&mut take);
                    let level = at_level(out, levels, height);
                    // Only the first input can find itself in level 0 already.
                    let in_place = self.is_first && index == 0 && matches!(first, Values::Own(_));
                    match second {
                        None if in_place => {}
                        Some(second) if in_place => second.add_to(level),
                        None => first.copy_to(level),
                        Some(second) => first.add_both_to(&second, level),
                    }
                    height += 1;
                    index += usize::from(fused);
                }
                ReduceOp::AddInput(_) => take().add_to(at_level(out, levels, height - 1)),
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

fn at_level<'a, S>(out: &'a mut [S], levels: &'a mut [S], level: usize) -> &'a mut [S] {
    let len = out.len();
    match level {
        0 => out,
        _ => &mut levels[(level - 1) * len..level * len],
    }
}

fn add<S: Number>(into: &mut [S], from: &[S]) {
    for (into, &from) in into.iter_mut().zip(from) {
        *into = *into + from;
    }
}
