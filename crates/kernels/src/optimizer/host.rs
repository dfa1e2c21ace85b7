//! The host's code: chunks are shared by threads. Each `host` below gives the body of a launch.

use device::{Element, Kernel, Parallel, Tensor};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::{AdamWFactors, AdamWStep, Cast, CopyToMasters, Momentum, MuonApply, MuonMomentum};
use super::{RoundFromMasters, Span, Spans, StatisticRange, SumOfSquares, Weights};
use crate::math::{self, round_out};
use crate::shared_slice::SharedSlice;

type Done = Result<(), device::DeviceError>;

/// A writable tensor, handed out in the chunks of one [`Spans`].
///
/// Kernels of this module ask for a chunk once, on the one thread that [`each_chunk`] gave it to.
pub(super) struct Parts<'a, T>(SharedSlice<'a, T>);

#[allow(clippy::mut_from_ref)] // The chunks of a `Spans` overlap neither by `flat` nor by `local`.
impl<'a, T: Element> Parts<'a, T> {
    pub(super) fn of(
        k: &'a Kernel,
        tensor: &'a Tensor,
    ) -> Result<Parts<'a, T>, device::DeviceError> {
        Ok(Parts(SharedSlice::new(k.write::<T>(tensor)?)))
    }

    fn flat(&self, span: &Span) -> &mut [T] {
        // SAFETY: `Spans::new` refused flat ranges that overlap, and one thread has this one.
        unsafe { self.0.part(span.flat..span.flat + span.len) }
    }

    pub(super) fn local(&self, span: &Span) -> &mut [T] {
        // SAFETY: as `flat`, for local ranges.
        unsafe { self.0.part(span.local..span.local + span.len) }
    }
}

/// Calls `body` with each chunk, on one thread each.
pub(super) fn each_chunk(parallel: &Parallel, spans: &Spans, body: impl Fn(&Span) + Sync + Send) {
    parallel.each(spans.chunks.len(), |index| body(&spans.chunks[index]));
}

/// The weights of a running kernel.
pub(super) enum OpenWeights<'a> {
    InPlace(Parts<'a, f32>),
    Mastered { masters: Parts<'a, f32>, flat: Parts<'a, bf16> },
}

impl<'a> OpenWeights<'a> {
    pub(super) fn of(
        k: &'a Kernel,
        weights: &'a Weights,
    ) -> Result<OpenWeights<'a>, device::DeviceError> {
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
    pub(super) fn update(&self, span: &Span, update: impl FnOnce(&mut [f32])) {
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

impl SumOfSquares {
    pub(super) fn run(&self, k: &Kernel) -> Done {
        let ranges = &self.ranges.ranges;
        k.bytes(4 * ranges.iter().map(|range| range.len).sum::<usize>());
        let grads = k.read::<f32>(&self.grads)?;
        let sums = SharedSlice::new(k.write::<f64>(&self.sums)?);
        k.parallel().each(ranges.len(), |index| {
            let StatisticRange { flat, len, statistic } = ranges[index];
            let g = &grads[flat..flat + len];
            let sum = math::vectorize!(|| math::sum([g], |[x]| f64::from(x) * f64::from(x)));
            // SAFETY: `StatisticRanges::new` gave each range a statistic of its own.
            let out = unsafe { sums.part(statistic..statistic + 1) };
            out[0] = sum;
        });
        Ok(())
    }
}

impl AdamWFactors {
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

impl AdamWStep {
    pub(super) fn run(&self, k: &Kernel) -> Done {
        let AdamWStep { spans, .. } = self;
        let numbers = AdamWFactors::new(&self.numbers);
        k.bytes(4 * 4 * spans.elements);
        let (weights, grads) = (OpenWeights::of(k, &self.weights)?, k.read::<f32>(&self.grads)?);
        let (first, second) = (Parts::of(k, &self.first)?, Parts::of(k, &self.second)?);
        let factors = k.read::<f32>(&self.factors)?;
        each_chunk(k.parallel(), spans, |span| {
            let (g, factor) = (&grads[span.flat..span.flat + span.len], factors[span.unit]);
            let (m, v) = (first.local(span), second.local(span));
            weights.update(
                span,
                #[inline(always)]
                |w| numbers.update(factor, w, g, m, v),
            );
        });
        Ok(())
    }
}

impl MuonMomentum {
    pub(super) fn run(&self, k: &Kernel) -> Done {
        let &MuonMomentum { ref spans, mu, form, .. } = self;
        let nesterov = form == Momentum::Nesterov;
        let (keep, add) = (mu as f32, (1.0 - mu) as f32);
        k.bytes(3 * 4 * spans.elements);
        let (grads, factors) = (k.read::<f32>(&self.grads)?, k.read::<f32>(&self.factors)?);
        let (momentum, update) = (Parts::of(k, &self.momentum)?, Parts::of(k, &self.update)?);
        each_chunk(k.parallel(), spans, |span| {
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
    }
}

impl MuonApply {
    pub(super) fn run(&self, k: &Kernel) -> Done {
        let MuonApply { spans, .. } = self;
        let (keep, rate) = (self.keep as f32, self.rate as f32);
        k.bytes(2 * 4 * spans.elements);
        let weights = OpenWeights::of(k, &self.weights)?;
        let direction = k.read::<f32>(&self.direction)?;
        each_chunk(k.parallel(), spans, |span| {
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
    }
}

impl CopyToMasters {
    pub(super) fn run(&self, k: &Kernel) -> Done {
        let masters = Parts::of(k, &self.masters)?;
        let range = |span: &Span| span.flat..span.flat + span.len;
        if self.flat.dtype() == device::DType::F32 {
            let flat = k.read::<f32>(&self.flat)?;
            let copy = |span: &Span| masters.local(span).copy_from_slice(&flat[range(span)]);
            each_chunk(k.parallel(), &self.spans, copy);
            return Ok(());
        }
        let flat = k.read::<bf16>(&self.flat)?;
        each_chunk(k.parallel(), &self.spans, |span| {
            let to = masters.local(span).iter_mut();
            to.zip(&flat[range(span)]).for_each(|(to, from)| *to = from.to_f32());
        });
        Ok(())
    }
}

impl RoundFromMasters {
    pub(super) fn run(&self, k: &Kernel) -> Done {
        let (masters, flat) = (self.masters.clone(), self.flat.clone());
        let weights = Weights::Mastered { masters, flat };
        let weights = OpenWeights::of(k, &weights)?;
        each_chunk(k.parallel(), &self.spans, |span| weights.update(span, |_| ()));
        Ok(())
    }
}

/// Elements of a cast that a thread takes at a time.
const CAST_CHUNK: usize = 1 << 13;

impl Cast {
    pub(super) fn run(&self, k: &Kernel) -> Done {
        k.streams();
        let from = k.read::<f32>(&self.from)?;
        let part = |index: usize, len: usize| &from[index * CAST_CHUNK..index * CAST_CHUNK + len];
        if self.to.dtype() == device::DType::Bf16 {
            k.parallel().chunks(k.write::<bf16>(&self.to)?, CAST_CHUNK, |index, to| {
                let from = part(index, to.len());
                math::vectorize!(|| round_out(from, to));
            });
            return Ok(());
        }
        k.parallel().chunks(k.write::<f16>(&self.to)?, CAST_CHUNK, |index, to| {
            to.convert_from_f32_slice(part(index, to.len()));
        });
        Ok(())
    }
}
