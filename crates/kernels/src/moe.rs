//! Mixture of experts: routing, grouping tokens by expert, products per expert.
//!
//! ```text
//! logits [N, E] ─route─▶ chosen, weights [N, A] ─▶ slots: row of each (token, choice) in groups
//! x [N, D] ─group─▶ [N·A, D] ─grouped products─▶ y [N·A, D] ─combine─▶ out [N, D]
//! ```
//!
//! No token is dropped: expert `e` has rows `offsets[e] .. offsets[e+1]` of the grouped buffers,
//! tokens in order. All offsets stay on the device.

use device::{Stream, Tensor};

use crate::error::{dispatch, expect};
use crate::gemm::{Cut, Layout, serial_shared};
use crate::math::{dot, most, sum, vectorize};
use crate::shared_slice::SharedSlice;
use crate::{KernelError, Real};

/// Rows that one parallel task handles.
const ROWS: usize = 16;

/// How tokens choose experts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Router {
    pub experts: usize,
    pub top_k: usize,
    /// Scores are `sigmoid(logit)`; otherwise the softmax over experts.
    pub sigmoid: bool,
    /// Chosen scores are divided by their sum.
    pub normalize: bool,
    /// Factor on the weights.
    pub scale: f64,
    /// Weight of the load-balancing loss (Fedus et al. 2021), per token.
    pub aux_loss: f64,
    /// Weight of the router z-loss (Zoph et al. 2022), per token.
    pub z_loss: f64,
}

/// What routing decides, on the device.
#[derive(Debug, Clone)]
pub struct Routing {
    /// Scores `[N, E]`.
    pub scores: Tensor,
    /// Experts `[N, A]`, u32.
    pub chosen: Tensor,
    /// Their weights `[N, A]`.
    pub weights: Tensor,
    /// Grouped row of each choice `[N·A]`, u32.
    pub slots: Tensor,
    /// Token of each grouped row `[N·A]`, u32.
    pub sources: Tensor,
    /// First grouped row of each expert `[E + 1]`, u32.
    pub offsets: Tensor,
}

/// Routes every token: scores from `logits [N, E]`, the `top_k` largest of `scores + bias`
/// (ties: the lower expert; the bias, of loss-free balancing, Wang et al. 2024, only chooses),
/// weights from the scores alone, and the grouping. `loads [E]` u32 is added the tokens per expert.
///
/// # Errors
/// Operands of the wrong size or type.
pub fn route(
    stream: &Stream,
    router: Router,
    logits: &Tensor,
    bias: &Tensor,
    routing: &Routing,
    loads: &Tensor,
) -> Result<(), KernelError> {
    const NAME: &str = "moe_route";
    let Router { experts, top_k, .. } = router;
    let rows = logits.dim(0);
    for (operand, tensor, len) in [
        ("logits", logits, rows * experts),
        ("bias", bias, experts),
        ("scores", &routing.scores, rows * experts),
        ("chosen", &routing.chosen, rows * top_k),
        ("weights", &routing.weights, rows * top_k),
        ("slots", &routing.slots, rows * top_k),
        ("sources", &routing.sources, rows * top_k),
        ("offsets", &routing.offsets, experts + 1),
        ("loads", loads, experts),
    ] {
        expect(NAME, operand, tensor, len)?;
    }
    let (logits, bias, to, loads) = (logits.clone(), bias.clone(), routing.clone(), loads.clone());
    dispatch!(NAME, logits.dtype(), T => {
        stream.launch(NAME, move |k| {
            let (logits, bias) = (k.read::<T>(&logits)?, k.read::<T>(&bias)?);
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
                    score(&router, scores);
                    choose(&router, scores, bias, weights, chosen);
                }
            });
            let offsets = k.write::<u32>(&to.offsets)?;
            group(chosen, top_k, offsets, k.write(&to.slots)?, k.write(&to.sources)?);
            for (e, load) in k.write::<u32>(&loads)?.iter_mut().enumerate() {
                *load += offsets[e + 1] - offsets[e];
            }
            Ok(())
        })?;
        Ok(())
    })
}

fn score<T: Real>(router: &Router, scores: &mut [T]) {
    if router.sigmoid {
        scores.iter_mut().for_each(|s| *s = T::ONE / (T::ONE + (-*s).portable_exp()));
        return;
    }
    let most = most(scores);
    scores.iter_mut().for_each(|s| *s = (*s - most).portable_exp());
    let total = sum([&*scores], |[s]| s);
    scores.iter_mut().for_each(|s| *s /= total);
}

fn choose<T: Real>(
    router: &Router,
    scores: &[T],
    bias: &[T],
    weights: &mut [T],
    chosen: &mut [u32],
) {
    for a in 0..chosen.len() {
        let mut best = usize::MAX;
        let mut most = T::NEG_INFINITY;
        for (e, &score) in scores.iter().enumerate() {
            let value = score + bias[e];
            let free = !chosen[..a].contains(&(e as u32));
            if free && (best == usize::MAX || value > most) {
                (best, most) = (e, value);
            }
        }
        chosen[a] = best as u32;
        weights[a] = scores[best];
    }
    let total = weights.iter().fold(T::ZERO, |a, &b| a + b);
    let factor = if router.normalize { T::of(router.scale) / total } else { T::of(router.scale) };
    weights.iter_mut().for_each(|w| *w *= factor);
}

/// Counting sort of the choices by expert, tokens in order.
fn group(
    chosen: &[u32],
    top_k: usize,
    offsets: &mut [u32],
    slots: &mut [u32],
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
        let slot = offsets[expert as usize];
        slots[choice] = slot;
        sources[slot as usize] = (choice / top_k) as u32;
        offsets[expert as usize] += 1;
    }
    for e in (1..offsets.len()).rev() {
        offsets[e] = offsets[e - 1];
    }
    offsets[0] = 0;
}

/// Gradient of the routing weights with respect to the logits, `dlogits [N, E]` (overwritten):
/// from `dweights [N, A]`, plus the auxiliary losses of this micro-batch scaled by `tokens`,
/// since gradients are those of a summed loss.
///
/// Load-balancing loss: `aux · E · Σ_e f_e·P_e` with `f_e` the fraction of choices that fell on
/// expert e and `P_e` the mean over tokens of its share of the scores. z-loss:
/// `z · mean_n logsumexp(logits_n)²`.
///
/// # Errors
/// Operands of the wrong size or type.
pub fn route_backward(
    stream: &Stream,
    router: Router,
    (logits, routing): (&Tensor, &Routing),
    dweights: &Tensor,
    tokens: f64,
    dlogits: &Tensor,
) -> Result<(), KernelError> {
    const NAME: &str = "moe_route_backward";
    let Router { experts, top_k, .. } = router;
    let rows = logits.dim(0);
    expect(NAME, "dweights", dweights, rows * top_k)?;
    expect(NAME, "dlogits", dlogits, rows * experts)?;
    let (logits, from) = (logits.clone(), routing.clone());
    let (dweights, dlogits) = (dweights.clone(), dlogits.clone());
    dispatch!(NAME, dlogits.dtype(), T => {
        stream.launch(NAME, move |k| {
            let (logits, scores) = (k.read::<T>(&logits)?, k.read::<T>(&from.scores)?);
            let (chosen, dweights) = (k.read::<u32>(&from.chosen)?, k.read::<T>(&dweights)?);
            let offsets = k.read::<u32>(&from.offsets)?;
            let per_token = tokens / rows as f64;
            k.parallel().rows(k.write::<T>(&dlogits)?, experts, |row, d| {
                let scores = &scores[row * experts..][..experts];
                let chosen = &chosen[row * top_k..][..top_k];
                let dweights = &dweights[row * top_k..][..top_k];
                d.fill(T::ZERO);
                weights_backward(&router, scores, chosen, dweights, d);
                if router.aux_loss != 0.0 {
                    let unit = router.aux_loss * per_token * experts as f64
                        / (rows * top_k) as f64;
                    aux_backward(&router, scores, offsets, unit, d);
                }
                score_backward(&router, scores, d);
                if router.z_loss != 0.0 {
                    z_backward(&logits[row * experts..][..experts], router.z_loss * per_token, d);
                }
            });
            Ok(())
        })?;
        Ok(())
    })
}

fn weights_backward<T: Real>(
    router: &Router,
    scores: &[T],
    chosen: &[u32],
    dweights: &[T],
    d: &mut [T],
) {
    let scale = T::of(router.scale);
    if !router.normalize {
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
    if !router.sigmoid {
        d.iter_mut().enumerate().for_each(|(e, d)| *d += slope(e));
        return;
    }
    let total = sum([scores], |[s]| s);
    let inner = scores.iter().enumerate().fold(T::ZERO, |sum, (e, &s)| sum + slope(e) * s) / total;
    d.iter_mut().enumerate().for_each(|(e, d)| *d += (slope(e) - inner) / total);
}

fn score_backward<T: Real>(router: &Router, scores: &[T], d: &mut [T]) {
    if router.sigmoid {
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

/// `y[r] = x[sources[r]]`: `x [N, D]`, `y [N·A, D]`.
///
/// # Errors
/// Operands of the wrong size or type.
pub fn group_rows(
    stream: &Stream,
    routing: &Routing,
    x: &Tensor,
    y: &Tensor,
) -> Result<(), KernelError> {
    const NAME: &str = "moe_group_rows";
    let cols = x.dim(1);
    expect(NAME, "y", y, routing.sources.len() * cols)?;
    let (sources, x, y) = (routing.sources.clone(), x.clone(), y.clone());
    dispatch!(NAME, y.dtype(), T => {
        stream.launch(NAME, move |k| {
            let (sources, x) = (k.read::<u32>(&sources)?, k.read::<T>(&x)?);
            k.parallel().chunks(k.write::<T>(&y)?, ROWS * cols, |task, y| {
                for (i, y) in y.chunks_exact_mut(cols).enumerate() {
                    y.copy_from_slice(&x[sources[task * ROWS + i] as usize * cols..][..cols]);
                }
            });
            Ok(())
        })?;
        Ok(())
    })
}

/// Gradient of [`group_rows`]: `dx[n] += Σ_a dy[slots[n, a]]`, choices in order.
///
/// # Errors
/// Operands of the wrong size or type.
pub fn group_rows_backward(
    stream: &Stream,
    routing: &Routing,
    dy: &Tensor,
    dx: &Tensor,
) -> Result<(), KernelError> {
    const NAME: &str = "moe_group_rows_backward";
    let (cols, top_k) = (dx.dim(1), routing.chosen.dim(1));
    expect(NAME, "dy", dy, routing.slots.len() * cols)?;
    let (slots, dy, dx) = (routing.slots.clone(), dy.clone(), dx.clone());
    dispatch!(NAME, dx.dtype(), T => {
        stream.launch(NAME, move |k| {
            let (slots, dy) = (k.read::<u32>(&slots)?, k.read::<T>(&dy)?);
            k.parallel().rows(k.write::<T>(&dx)?, cols, |row, dx| {
                vectorize!(|| {
                    for &slot in &slots[row * top_k..][..top_k] {
                        let dy = &dy[slot as usize * cols..][..cols];
                        dx.iter_mut().zip(dy).for_each(|(dx, dy)| *dx += *dy);
                    }
                });
            });
            Ok(())
        })?;
        Ok(())
    })
}

/// `out[n] += Σ_a weights[n, a] · y[slots[n, a]]`, choices in order.
///
/// # Errors
/// Operands of the wrong size or type.
pub fn combine(
    stream: &Stream,
    routing: &Routing,
    y: &Tensor,
    out: &Tensor,
) -> Result<(), KernelError> {
    const NAME: &str = "moe_combine";
    let (cols, top_k) = (out.dim(1), routing.chosen.dim(1));
    expect(NAME, "y", y, routing.slots.len() * cols)?;
    let (from, y, out) = (routing.clone(), y.clone(), out.clone());
    dispatch!(NAME, out.dtype(), T => {
        stream.launch(NAME, move |k| {
            let (slots, weights) = (k.read::<u32>(&from.slots)?, k.read::<T>(&from.weights)?);
            let y = k.read::<T>(&y)?;
            k.parallel().rows(k.write::<T>(&out)?, cols, |row, out| {
                vectorize!(|| {
                    for a in row * top_k..(row + 1) * top_k {
                        let y = &y[slots[a] as usize * cols..][..cols];
                        let weight = weights[a];
                        out.iter_mut().zip(y).for_each(|(out, y)| *out += weight * *y);
                    }
                });
            });
            Ok(())
        })?;
        Ok(())
    })
}

/// Gradient of [`combine`]: `dweights[n, a] = dout[n] · y[slots[n, a]]`, and `y` is overwritten by
/// its gradient `weights[n, a] · dout[n]`.
///
/// # Errors
/// Operands of the wrong size or type.
pub fn combine_backward(
    stream: &Stream,
    routing: &Routing,
    dout: &Tensor,
    y: &Tensor,
    dweights: &Tensor,
) -> Result<(), KernelError> {
    const NAME: &str = "moe_combine_backward";
    let (cols, top_k) = (dout.dim(1), routing.chosen.dim(1));
    expect(NAME, "y", y, routing.slots.len() * cols)?;
    expect(NAME, "dweights", dweights, routing.slots.len())?;
    let (from, dout) = (routing.clone(), dout.clone());
    let (y, dweights) = (y.clone(), dweights.clone());
    dispatch!(NAME, dout.dtype(), T => {
        stream.launch(NAME, move |k| {
            let (slots, weights) = (k.read::<u32>(&from.slots)?, k.read::<T>(&from.weights)?);
            let sources = k.read::<u32>(&from.sources)?;
            let dout = k.read::<T>(&dout)?;
            let y = k.write::<T>(&y)?;
            k.parallel().rows(k.write::<T>(&dweights)?, top_k, |row, dweights| {
                let dout = &dout[row * cols..][..cols];
                let slots = &slots[row * top_k..][..top_k];
                vectorize!(|| {
                    for (dweight, &slot) in dweights.iter_mut().zip(slots) {
                        *dweight = dot(dout, &y[slot as usize * cols..][..cols]);
                    }
                });
            });
            k.parallel().rows(y, cols, |grouped, y| {
                let row = sources[grouped] as usize;
                let choices = row * top_k..(row + 1) * top_k;
                let choice = choices.clone().find(|&choice| slots[choice] as usize == grouped);
                // Routing names every grouped row once, as a choice of its source.
                let weight = choice.map_or(T::ZERO, |choice| weights[choice]);
                let dout = &dout[row * cols..][..cols];
                vectorize!(|| y.iter_mut().zip(dout).for_each(|(y, d)| *y = weight * *d));
            });
            Ok(())
        })?;
        Ok(())
    })
}

/// Which product of an expert's three.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Product {
    /// `y = x · Wᵀ`: `a = x [R, In]`, `b = W [E, Out, In]`, `c = y [R, Out]`.
    Forward,
    /// `dx = dy · W`: `a = dy [R, Out]`, `b = W [E, Out, In]`, `c = dx [R, In]`.
    Input,
    /// `dW = dyᵀ · x` (added when `accumulate`): `a = dy [R, Out]`, `b = x [R, In]`,
    /// `c = dW [E, Out, In]`.
    Weight { accumulate: bool },
}

/// One product per expert over its rows (`offsets [E + 1]`), blocks of all experts shared out
/// over the threads.
///
/// # Errors
/// Operands of the wrong size or type.
pub fn grouped_product(
    stream: &Stream,
    product: Product,
    (out_width, in_width): (usize, usize),
    offsets: &Tensor,
    (a, b, c): (&Tensor, &Tensor, &Tensor),
) -> Result<(), KernelError> {
    const NAME: &str = "moe_grouped_product";
    let experts = offsets.len().saturating_sub(1);
    let rows = a.dim(0);
    let weights = experts * out_width * in_width;
    let sizes = match product {
        Product::Forward => [rows * in_width, weights, rows * out_width],
        Product::Input => [rows * out_width, weights, rows * in_width],
        Product::Weight { .. } => [rows * out_width, rows * in_width, weights],
    };
    for ((operand, tensor), len) in [("a", a), ("b", b), ("c", c)].into_iter().zip(sizes) {
        expect(NAME, operand, tensor, len)?;
    }
    let (offsets, a, b, c) = (offsets.clone(), a.clone(), b.clone(), c.clone());
    let layouts = move |offsets: &[u32], e: usize| {
        let (start, end) = (offsets[e] as usize, offsets[e + 1] as usize);
        let rows = |width| Layout::strided(start * width, end - start, width, width);
        let weight = Layout::strided(e * out_width * in_width, out_width, in_width, in_width);
        match product {
            Product::Forward => [rows(in_width), weight.t(), rows(out_width)],
            Product::Input => [rows(out_width), weight, rows(in_width)],
            Product::Weight { .. } => [rows(out_width).t(), rows(in_width), weight],
        }
    };
    dispatch!(NAME, c.dtype(), T => {
        stream.launch(NAME, move |k| {
            let offsets = k.read::<u32>(&offsets)?;
            if !offsets.is_sorted() || offsets.last().is_some_and(|&end| end as usize > rows) {
                return Err(k.error(format!("offsets {offsets:?} do not divide {rows} rows")));
            }
            let (a, b) = (k.read::<T>(&a)?, k.read::<T>(&b)?);
            let c = SharedSlice::new(k.write::<T>(&c)?);
            let routed = offsets.last().map_or(0, |&end| end as usize);
            k.flops(2 * routed * out_width * in_width);
            let cut = |e: usize| {
                let [a, _, c] = layouts(offsets, e);
                Cut::new(c.rows, c.cols, a.cols)
            };
            let beta = match product {
                Product::Weight { accumulate: true } => T::ONE,
                _ => T::ZERO,
            };
            let total: usize = (0..experts).map(|e| cut(e).count()).sum();
            k.parallel().each(total, |task| {
                let (mut e, mut block) = (0, task);
                while block >= cut(e).count() {
                    block -= cut(e).count();
                    e += 1;
                }
                let [la, lb, lc] = cut(e).narrow(block, layouts(offsets, e));
                // SAFETY: blocks of one expert are disjoint, and so are the experts' outputs.
                unsafe { serial_shared(T::ONE, (a, la), (b, lb), beta, (&c, lc)) };
            });
            Ok(())
        })?;
        Ok(())
    })
}
