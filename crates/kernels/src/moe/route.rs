//! The host's code of routing and its gradient: threads take tokens; one thread groups them.

use device::{DeviceError, Kernel};

use super::choice::choose;
use super::{Route, RouteBackward, Router, Scores, Shares};
use crate::Real;
use crate::math::{most, sum};

/// Rows that one parallel task handles.
const ROWS: usize = 16;

impl Route {
    pub(super) fn on_host<T: Real>(&self, k: &Kernel) -> Result<(), DeviceError> {
        let Route { router, routing: to, .. } = self;
        let (experts, top_k) = (router.experts, router.top_k);
        let (logits, bias) = (k.read::<T>(&self.logits)?, k.read::<T>(&self.bias)?);
        let chosen = k.write::<u32>(&to.chosen)?;
        let outputs = (
            (k.write::<T>(&to.scores)?, ROWS * experts),
            (k.write::<T>(&to.weights)?, ROWS * top_k),
            (&mut *chosen, ROWS * top_k),
        );
        k.parallel().chunks3(outputs.0, outputs.1, outputs.2, |task, scores, weights, chosen| {
            let logits = &logits[task * ROWS * experts..][..scores.len()];
            scores.copy_from_slice(logits);
            let rows = scores.chunks_exact_mut(experts);
            let picks = weights.chunks_exact_mut(top_k).zip(chosen.chunks_exact_mut(top_k));
            for (scores, (weights, chosen)) in rows.zip(picks) {
                score(router, scores);
                choose(router, scores, bias, weights, chosen);
            }
        });
        let offsets = k.write::<u32>(&to.offsets)?;
        group(chosen, top_k, offsets, k.write(&to.grouped)?, k.write(&to.sources)?);
        for (e, load) in k.write::<u32>(&self.loads)?.iter_mut().enumerate() {
            *load += offsets[e + 1] - offsets[e];
        }
        Ok(())
    }
}

impl RouteBackward {
    pub(super) fn on_host<T: Real>(&self, k: &Kernel) -> Result<(), DeviceError> {
        let RouteBackward { router, routing: from, .. } = self;
        let (rows, experts, top_k) = (self.logits.dim(0), router.experts, router.top_k);
        let (logits, scores) = (k.read::<T>(&self.logits)?, k.read::<T>(&from.scores)?);
        let (chosen, dweights) = (k.read::<u32>(&from.chosen)?, k.read::<T>(&self.dweights)?);
        let offsets = k.read::<u32>(&from.offsets)?;
        let per_token = self.tokens / rows as f64;
        k.parallel().rows(k.write::<T>(&self.dlogits)?, experts, |row, d| {
            let scores = &scores[row * experts..][..experts];
            let chosen = &chosen[row * top_k..][..top_k];
            let dweights = &dweights[row * top_k..][..top_k];
            d.fill(T::ZERO);
            weights_backward(router, scores, chosen, dweights, d);
            if router.aux_loss != 0.0 {
                let unit = router.aux_loss * per_token * experts as f64 / (rows * top_k) as f64;
                aux_backward(router, scores, offsets, unit, d);
            }
            score_backward(router, scores, d);
            if router.z_loss != 0.0 {
                z_backward(&logits[row * experts..][..experts], router.z_loss * per_token, d);
            }
        });
        Ok(())
    }
}

fn score<T: Real>(router: &Router, scores: &mut [T]) {
    if router.scores == Scores::Sigmoid {
        scores.iter_mut().for_each(|s| *s = T::ONE / (T::ONE + (-*s).portable_exp()));
        return;
    }
    let most = most(scores);
    scores.iter_mut().for_each(|s| *s = (*s - most).portable_exp());
    let total = sum([&*scores], |[s]| s);
    scores.iter_mut().for_each(|s| *s /= total);
}

/// Counting sort of the choices by expert, tokens in order.
fn group(
    chosen: &[u32],
    top_k: usize,
    offsets: &mut [u32],
    grouped: &mut [u32],
    sources: &mut [u32],
) {
    offsets.fill(0);
    for &expert in chosen {
        offsets[expert as usize + 1] += 1;
    }
    for e in 1..offsets.len() {
        offsets[e] += offsets[e - 1];
    }
    // `offsets[e]` runs to the end of expert e, then everything moves back by one expert.
    for (choice, &expert) in chosen.iter().enumerate() {
        let at = offsets[expert as usize];
        grouped[choice] = at;
        sources[at as usize] = (choice / top_k) as u32;
        offsets[expert as usize] += 1;
    }
    for e in (1..offsets.len()).rev() {
        offsets[e] = offsets[e - 1];
    }
    offsets[0] = 0;
}

fn weights_backward<T: Real>(
    router: &Router,
    scores: &[T],
    chosen: &[u32],
    dweights: &[T],
    d: &mut [T],
) {
    let scale = T::of(router.scale);
    if router.shares == Shares::Scores {
        for (&e, &dw) in chosen.iter().zip(dweights) {
            d[e as usize] += scale * dw;
        }
        return;
    }
    let picks = || chosen.iter().zip(dweights);
    let total = chosen.iter().fold(T::ZERO, |sum, &e| sum + scores[e as usize]);
    let inner = picks().fold(T::ZERO, |sum, (&e, &dw)| sum + dw * scores[e as usize]) / total;
    for (&e, &dw) in picks() {
        d[e as usize] += scale * (dw - inner) / total;
    }
}

/// Adds `unit · load_e` to the gradient of expert e's share of the scores.
fn aux_backward<T: Real>(router: &Router, scores: &[T], offsets: &[u32], unit: f64, d: &mut [T]) {
    let slope = |e: usize| T::of(unit * f64::from(offsets[e + 1] - offsets[e]));
    if router.scores == Scores::Softmax {
        d.iter_mut().enumerate().for_each(|(e, d)| *d += slope(e));
        return;
    }
    let total = sum([scores], |[s]| s);
    let inner = scores.iter().enumerate().fold(T::ZERO, |sum, (e, &s)| sum + slope(e) * s) / total;
    d.iter_mut().enumerate().for_each(|(e, d)| *d += (slope(e) - inner) / total);
}

fn score_backward<T: Real>(router: &Router, scores: &[T], d: &mut [T]) {
    if router.scores == Scores::Sigmoid {
        d.iter_mut().zip(scores).for_each(|(d, &s)| *d *= s * (T::ONE - s));
        return;
    }
    let inner = sum([&*d, scores], |[d, s]| d * s);
    d.iter_mut().zip(scores).for_each(|(d, &s)| *d = s * (*d - inner));
}

fn z_backward<T: Real>(logits: &[T], weight: f64, d: &mut [T]) {
    let most = most(logits);
    let total = sum(
        [logits],
        #[inline(always)]
        |[x]| (x - most).portable_exp(),
    );
    let lse = most + total.portable_ln();
    let factor = T::of(2.0 * weight) * lse;
    for (d, &logit) in d.iter_mut().zip(logits) {
        *d += factor * (logit - lse).portable_exp();
    }
}
