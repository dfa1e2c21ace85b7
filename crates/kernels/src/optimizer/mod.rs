//! Elementwise optimizer kernels: one pass over memory each, in fixed chunks shared by threads.
//!
//! Three kinds of storage meet here, and a [`Span`] says where a run of elements lies in each:
//!
//! ```text
//! flat    all parameters of the model      gradients, weights          Span::flat
//! local   what this rank keeps             moments, masters, scratch   Span::local
//! unit    one number per piece             gradient factors            Span::unit
//! ```
//!
//! Weights are f32 and updated in place, or bf16 copies of f32 masters ([`Weights`]). An element's
//! new value depends on that element alone, so neither chunks nor threads change a bit.

use std::sync::Arc;

use device::{DType, Kernel, Parallel, Stream, Tensor};
use half::bf16;

use crate::shared_slice::SharedSlice;
use crate::{KernelError, math};

/// A run of elements, by its places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Start in flat tensors (gradients, weights).
    pub flat: usize,
    /// Start in the rank's own tensors (moments, masters, scratch).
    pub local: usize,
    pub len: usize,
    /// Which gradient factor applies.
    pub unit: usize,
}

/// Elements that a thread takes at a time: four f32 operands of it fit a level-2 cache.
const CHUNK: usize = 1 << 13;

/// Spans that do not overlap, cut into chunks; clones share them.
#[derive(Debug, Clone)]
pub struct Spans {
    chunks: Arc<[Span]>,
    flat_end: usize,
    local_end: usize,
    units: usize,
    elements: usize,
}

impl Spans {
    /// # Errors
    /// Two spans that overlap, in the flat tensors or in the rank's own.
    pub fn new(spans: &[Span]) -> Result<Spans, KernelError> {
        let flat_end = disjoint("flat", spans.iter().map(|span| (span.flat, span.len)))?;
        let local_end = disjoint("local", spans.iter().map(|span| (span.local, span.len)))?;
        let units = spans.iter().map(|span| span.unit + 1).max().unwrap_or(0);
        let elements = spans.iter().map(|span| span.len).sum();
        let chunks = spans.iter().flat_map(|&span| {
            (0..span.len).step_by(CHUNK).map(move |start| Span {
                flat: span.flat + start,
                local: span.local + start,
                len: CHUNK.min(span.len - start),
                unit: span.unit,
            })
        });
        Ok(Spans { chunks: chunks.collect(), flat_end, local_end, units, elements })
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.chunks.iter().map(|span| span.len).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    fn check_flat(&self, operand: &'static str, tensor: &Tensor) -> Result<(), KernelError> {
        at_least("optimizer", operand, tensor, self.flat_end)
    }

    fn check_local(&self, operand: &'static str, tensor: &Tensor) -> Result<(), KernelError> {
        at_least("optimizer", operand, tensor, self.local_end)
    }
}

fn at_least(
    kernel: &'static str,
    operand: &'static str,
    tensor: &Tensor,
    expected: usize,
) -> Result<(), KernelError> {
    if tensor.len() >= expected {
        return Ok(());
    }
    Err(KernelError::Operand { kernel, operand, got: tensor.len(), expected })
}

/// One past the last element of runs that must not overlap.
fn disjoint(what: &str, runs: impl Iterator<Item = (usize, usize)>) -> Result<usize, KernelError> {
    let mut runs: Vec<(usize, usize)> = runs.filter(|&(_, len)| len > 0).collect();
    runs.sort_unstable();
    for pair in runs.windows(2) {
        if pair[0].0 + pair[0].1 > pair[1].0 {
            let message = format!("{what} spans {:?} and {:?} overlap", pair[0], pair[1]);
            return Err(KernelError::Argument { kernel: "optimizer", message });
        }
    }
    Ok(runs.last().map_or(0, |&(start, len)| start + len))
}

/// Where the weights are.
#[derive(Debug, Clone)]
pub enum Weights {
    /// f32, flat, updated in place.
    InPlace(Tensor),
    /// f32 masters, local, are updated; the flat bf16 weights become their rounded copy.
    Mastered { masters: Tensor, flat: Tensor },
}

impl Weights {
    fn check(&self, spans: &Spans) -> Result<(), KernelError> {
        let dtype = |operand: &'static str, tensor: &Tensor, expected: DType| {
            if tensor.dtype() == expected {
                return Ok(());
            }
            let message = format!("{operand} are {}, not {expected}", tensor.dtype());
            Err(KernelError::Argument { kernel: "optimizer", message })
        };
        match self {
            Weights::InPlace(flat) => {
                dtype("weights", flat, DType::F32)?;
                spans.check_flat("weights", flat)
            }
            Weights::Mastered { masters, flat } => {
                dtype("masters", masters, DType::F32)?;
                dtype("weights", flat, DType::Bf16)?;
                spans.check_local("masters", masters)?;
                spans.check_flat("weights", flat)
            }
        }
    }
}

/// A writable tensor, handed out in the chunks of one [`Spans`].
///
/// Kernels of this module ask for a chunk once, on the one thread that [`each_chunk`] gave it to.
struct Parts<'a, T>(SharedSlice<'a, T>);

#[allow(clippy::mut_from_ref)] // The chunks of a `Spans` overlap neither by `flat` nor by `local`.
impl<'a, T: device::Element> Parts<'a, T> {
    fn of(k: &'a Kernel, tensor: &'a Tensor) -> Result<Parts<'a, T>, device::DeviceError> {
        Ok(Parts(SharedSlice::new(k.write::<T>(tensor)?)))
    }

    fn flat(&self, span: &Span) -> &mut [T] {
        // SAFETY: `Spans::new` refused flat ranges that overlap, and one thread has this one.
        unsafe { self.0.part(span.flat..span.flat + span.len) }
    }

    fn local(&self, span: &Span) -> &mut [T] {
        // SAFETY: as `flat`, for local ranges.
        unsafe { self.0.part(span.local..span.local + span.len) }
    }
}

/// Calls `body` with each chunk, on one thread each.
fn each_chunk(parallel: &Parallel, spans: &Spans, body: impl Fn(&Span) + Sync + Send) {
    parallel.each(spans.chunks.len(), |index| body(&spans.chunks[index]));
}

/// The weights of a running kernel.
enum OpenWeights<'a> {
    InPlace(Parts<'a, f32>),
    Mastered { masters: Parts<'a, f32>, flat: Parts<'a, bf16> },
}

impl<'a> OpenWeights<'a> {
    fn of(k: &'a Kernel, weights: &'a Weights) -> Result<OpenWeights<'a>, device::DeviceError> {
        Ok(match weights {
            Weights::InPlace(flat) => OpenWeights::InPlace(Parts::of(k, flat)?),
            Weights::Mastered { masters, flat } => {
                let (masters, flat) = (Parts::of(k, masters)?, Parts::of(k, flat)?);
                OpenWeights::Mastered { masters, flat }
            }
        })
    }

    /// Runs `update` on the f32 weights of a chunk, then rounds them out where there is a copy.
    #[inline(always)]
    fn update(&self, span: &Span, update: impl FnOnce(&mut [f32])) {
        match self {
            OpenWeights::InPlace(flat) => math::vectorize!(|| update(flat.flat(span))),
            OpenWeights::Mastered { masters, flat } => {
                let (masters, flat) = (masters.local(span), flat.flat(span));
                math::vectorize!(|| {
                    update(masters);
                    round_out(masters, flat);
                });
            }
        }
    }
}

/// Rounds to nearest, ties to even; NaN stays NaN.
#[inline(always)]
fn round_out(from: &[f32], to: &mut [bf16]) {
    for (to, from) in to.iter_mut().zip(from) {
        let bits = from.to_bits();
        let rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
        // A quiet bit keeps the payload from rounding to infinity.
        let nan = (bits >> 16) | 0x40;
        let half = if bits & 0x7fff_ffff > 0x7f80_0000 { nan } else { rounded };
        *to = bf16::from_bits(half as u16);
    }
}

/// One range of the gradients whose squares are summed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotRange {
    /// Start in the flat gradients.
    pub flat: usize,
    pub len: usize,
    /// Where the sum goes.
    pub slot: usize,
}

/// Ranges with a slot each; clones share the list.
#[derive(Debug, Clone)]
pub struct SlotRanges {
    ranges: Arc<[SlotRange]>,
    flat_end: usize,
    slot_end: usize,
}

impl SlotRanges {
    /// # Errors
    /// Two ranges with one slot.
    pub fn new(ranges: Vec<SlotRange>) -> Result<SlotRanges, KernelError> {
        let slot_end = disjoint("slot", ranges.iter().map(|range| (range.slot, 1)))?;
        let flat_end = ranges.iter().map(|range| range.flat + range.len).max().unwrap_or(0);
        Ok(SlotRanges { ranges: ranges.into(), flat_end, slot_end })
    }
}

/// Writes the sum of squares of each range of `grads` (flat, f32) to its slot of `sums` (f64).
///
/// Squares are exact in f64 and summed there in an order that depends on the range's length
/// alone. A sum is infinite or NaN exactly if an element is. Other slots are left as they are.
///
/// # Errors
/// Tensors too small, or of another type.
pub fn sum_of_squares(
    stream: &Stream,
    ranges: &SlotRanges,
    grads: &Tensor,
    sums: &Tensor,
) -> Result<(), KernelError> {
    at_least("sum_of_squares", "grads", grads, ranges.flat_end)?;
    at_least("sum_of_squares", "sums", sums, ranges.slot_end)?;
    let (ranges, grads, sums) = (ranges.clone(), grads.clone(), sums.clone());
    stream.launch("sum_of_squares", move |k| {
        k.bytes(4 * ranges.ranges.iter().map(|range| range.len).sum::<usize>());
        let grads = k.read::<f32>(&grads)?;
        let sums = SharedSlice::new(k.write::<f64>(&sums)?);
        k.parallel().each(ranges.ranges.len(), |index| {
            let SlotRange { flat, len, slot } = ranges.ranges[index];
            let g = &grads[flat..flat + len];
            let sum = math::vectorize!(|| math::sum([g], |[x]| f64::from(x) * f64::from(x)));
            // SAFETY: `SlotRanges::new` gave each range a slot of its own.
            let out = unsafe { sums.part(slot..slot + 1) };
            out[0] = sum;
        });
        Ok(())
    })?;
    Ok(())
}

/// The numbers of one AdamW update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// Learning rate, schedule included.
    pub lr: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    pub weight_decay: f64,
    /// Number of this update, from 1; corrects the bias of the moments.
    pub step: u64,
}

/// [`AdamW`] as the inner loop needs it, rounded once.
#[derive(Clone, Copy)]
struct AdamWFactors {
    beta1: f32,
    one_minus_beta1: f32,
    beta2: f32,
    one_minus_beta2: f32,
    /// `1 / sqrt(1 - beta2^step)`.
    root_correction: f32,
    eps: f32,
    /// `1 - lr·weight_decay`.
    keep: f32,
    /// `lr / (1 - beta1^step)`.
    rate: f32,
}

impl AdamWFactors {
    fn new(adamw: &AdamW) -> AdamWFactors {
        let power = |beta: f64| libm::pow(beta, adamw.step.max(1) as f64);
        AdamWFactors {
            beta1: adamw.beta1 as f32,
            one_minus_beta1: (1.0 - adamw.beta1) as f32,
            beta2: adamw.beta2 as f32,
            one_minus_beta2: (1.0 - adamw.beta2) as f32,
            root_correction: (1.0 / (1.0 - power(adamw.beta2)).sqrt()) as f32,
            eps: adamw.eps as f32,
            keep: (1.0 - adamw.lr * adamw.weight_decay) as f32,
            rate: (adamw.lr / (1.0 - power(adamw.beta1))) as f32,
        }
    }

    #[inline(always)]
    fn update(self, factor: f32, w: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
        let len = w.len();
        let (g, m, v) = (&g[..len], &mut m[..len], &mut v[..len]);
        for i in 0..len {
            let g = g[i] * factor;
            let first = self.beta1 * m[i] + self.one_minus_beta1 * g;
            let second = self.beta2 * v[i] + self.one_minus_beta2 * (g * g);
            m[i] = first;
            v[i] = second;
            let root = second.sqrt() * self.root_correction + self.eps;
            w[i] = w[i] * self.keep - self.rate * (first / root);
        }
    }
}

/// AdamW with decoupled weight decay (Loshchilov & Hutter, arXiv 1711.05101, algorithm 2):
///
/// ```text
/// g ← factors[unit]·g     m ← β1·m + (1-β1)·g     v ← β2·v + (1-β2)·g²
/// w ← (1 - lr·wd)·w - lr · m/(1-β1ᵗ) / (sqrt(v/(1-β2ᵗ)) + eps)
/// ```
///
/// `grads` is flat; `first` and `second` (the moments) are local; `factors` has one f32 per unit.
///
/// # Errors
/// Tensors too small, or of another type.
#[allow(clippy::too_many_arguments)] // Each is one operand of the formula.
pub fn adamw(
    stream: &Stream,
    spans: &Spans,
    adamw: &AdamW,
    weights: &Weights,
    grads: &Tensor,
    first: &Tensor,
    second: &Tensor,
    factors: &Tensor,
) -> Result<(), KernelError> {
    weights.check(spans)?;
    spans.check_flat("grads", grads)?;
    spans.check_local("first moments", first)?;
    spans.check_local("second moments", second)?;
    at_least("adamw", "factors", factors, spans.units)?;
    let numbers = AdamWFactors::new(adamw);
    let (spans, weights, grads) = (spans.clone(), weights.clone(), grads.clone());
    let (first, second, factors) = (first.clone(), second.clone(), factors.clone());
    stream.launch("adamw", move |k| {
        k.bytes(4 * 4 * spans.elements);
        let (weights, grads) = (OpenWeights::of(k, &weights)?, k.read::<f32>(&grads)?);
        let (first, second) = (Parts::of(k, &first)?, Parts::of(k, &second)?);
        let factors = k.read::<f32>(&factors)?;
        each_chunk(k.parallel(), &spans, |span| {
            let (g, factor) = (&grads[span.flat..span.flat + span.len], factors[span.unit]);
            let (m, v) = (first.local(span), second.local(span));
            weights.update(
                span,
                #[inline(always)]
                |w| numbers.update(factor, w, g, m, v),
            );
        });
        Ok(())
    })?;
    Ok(())
}

/// The momentum of Muon as an exponential moving average, as in K. Jordan's reference
/// implementation of Muon (`lerp`):
///
/// ```text
/// g ← factors[unit]·g     m ← mu·m + (1-mu)·g     u = nesterov ? mu·m + (1-mu)·g : m
/// ```
///
/// The heavy-ball form `m ← mu·m + g`, `u = g + mu·m` is this one times `1/(1-mu)`, which
/// orthogonalization removes: both give the same update.
///
/// `grads` is flat; `momentum` and `update` (`u`, written) are local.
///
/// # Errors
/// Tensors too small, or of another type.
#[allow(clippy::too_many_arguments)] // Each is one operand of the formula.
pub fn muon_momentum(
    stream: &Stream,
    spans: &Spans,
    mu: f64,
    nesterov: bool,
    grads: &Tensor,
    momentum: &Tensor,
    update: &Tensor,
    factors: &Tensor,
) -> Result<(), KernelError> {
    spans.check_flat("grads", grads)?;
    spans.check_local("momentum", momentum)?;
    spans.check_local("update", update)?;
    at_least("muon_momentum", "factors", factors, spans.units)?;
    let (spans, grads, momentum) = (spans.clone(), grads.clone(), momentum.clone());
    let (update, factors) = (update.clone(), factors.clone());
    let (keep, add) = (mu as f32, (1.0 - mu) as f32);
    stream.launch("muon_momentum", move |k| {
        k.bytes(3 * 4 * spans.elements);
        let (grads, factors) = (k.read::<f32>(&grads)?, k.read::<f32>(&factors)?);
        let (momentum, update) = (Parts::of(k, &momentum)?, Parts::of(k, &update)?);
        each_chunk(k.parallel(), &spans, |span| {
            let (g, factor) = (&grads[span.flat..span.flat + span.len], factors[span.unit]);
            let (m, u) = (momentum.local(span), update.local(span));
            let m = &mut m[..g.len()];
            let u = &mut u[..g.len()];
            math::vectorize!(|| {
                for i in 0..g.len() {
                    let g = add * (g[i] * factor);
                    let new: f32 = keep * m[i] + g;
                    m[i] = new;
                    u[i] = if nesterov { keep * new + g } else { new };
                }
            });
        });
        Ok(())
    })?;
    Ok(())
}

/// `w ← keep·w - rate·o`, with `keep = 1 - lr·weight_decay` and `rate = lr·scale`; `direction`
/// (`o`) is local.
///
/// # Errors
/// Tensors too small, or of another type.
pub fn muon_apply(
    stream: &Stream,
    spans: &Spans,
    keep: f64,
    rate: f64,
    weights: &Weights,
    direction: &Tensor,
) -> Result<(), KernelError> {
    weights.check(spans)?;
    spans.check_local("direction", direction)?;
    let (spans, weights, direction) = (spans.clone(), weights.clone(), direction.clone());
    let (keep, rate) = (keep as f32, rate as f32);
    stream.launch("muon_apply", move |k| {
        k.bytes(2 * 4 * spans.elements);
        let (weights, direction) = (OpenWeights::of(k, &weights)?, k.read::<f32>(&direction)?);
        each_chunk(k.parallel(), &spans, |span| {
            let o = &direction[span.local..span.local + span.len];
            weights.update(
                span,
                #[inline(always)]
                |w| {
                    for (w, &o) in w.iter_mut().zip(o) {
                        *w = keep * *w - rate * o;
                    }
                },
            );
        });
        Ok(())
    })?;
    Ok(())
}

/// Sets the f32 masters (local) from flat weights, f32 or bf16.
///
/// # Errors
/// Tensors too small, or of another type.
pub fn copy_to_masters(
    stream: &Stream,
    spans: &Spans,
    flat: &Tensor,
    masters: &Tensor,
) -> Result<(), KernelError> {
    spans.check_flat("weights", flat)?;
    spans.check_local("masters", masters)?;
    let dtype = flat.dtype();
    if !matches!(dtype, DType::F32 | DType::Bf16) {
        return Err(KernelError::Dtype { kernel: "copy_to_masters", dtype });
    }
    let (spans, flat, masters) = (spans.clone(), flat.clone(), masters.clone());
    stream.launch("copy_to_masters", move |k| {
        let masters = Parts::of(k, &masters)?;
        let range = |span: &Span| span.flat..span.flat + span.len;
        if dtype == DType::F32 {
            let flat = k.read::<f32>(&flat)?;
            let copy = |span: &Span| masters.local(span).copy_from_slice(&flat[range(span)]);
            each_chunk(k.parallel(), &spans, copy);
            return Ok(());
        }
        let flat = k.read::<bf16>(&flat)?;
        each_chunk(k.parallel(), &spans, |span| {
            let to = masters.local(span).iter_mut();
            to.zip(&flat[range(span)]).for_each(|(to, from)| *to = from.to_f32());
        });
        Ok(())
    })?;
    Ok(())
}

/// Rounds the f32 masters (local) to the flat bf16 weights.
///
/// # Errors
/// Tensors too small, or of another type.
pub fn round_from_masters(
    stream: &Stream,
    spans: &Spans,
    masters: &Tensor,
    flat: &Tensor,
) -> Result<(), KernelError> {
    let weights = Weights::Mastered { masters: masters.clone(), flat: flat.clone() };
    weights.check(spans)?;
    let spans = spans.clone();
    stream.launch("round_from_masters", move |k| {
        let weights = OpenWeights::of(k, &weights)?;
        each_chunk(k.parallel(), &spans, |span| weights.update(span, |_| ()));
        Ok(())
    })?;
    Ok(())
}

#[cfg(test)]
mod tests;
