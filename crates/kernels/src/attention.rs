//! Causal grouped-query attention with document masks, in blocks: no `T × T` matrix is kept.
//!
//! Forward is the online softmax (Milakov & Gimelshein 2018) over blocks of keys; backward
//! recomputes the probabilities from the saved logsumexp (Dao et al. 2022). Position `i` of a
//! window attends to positions `doc_start[i] ..= i`.
//!
//! `qkv [B·T, (H + 2K)·C]` holds, per row, H query heads, then K key heads, then K value heads.

use device::{Stream, Tensor};

use crate::error::{dispatch, expect};
use crate::gemm::{Layout, serial_shared};
use crate::math::{dot, vectorize};
use crate::shared_slice::SharedSlice;
use crate::{KernelError, Real};

/// Rows and columns of a block of scores.
const BLOCK: usize = 64;

/// Sizes of an attention call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    pub windows: usize,
    pub positions: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
}

impl Heads {
    /// Elements of one row of `qkv`.
    pub fn stride(self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Rows: windows times positions.
    pub fn rows(self) -> usize {
        self.windows * self.positions
    }

    /// Elements of workspace that [`forward`] needs.
    pub fn forward_workspace(self) -> usize {
        self.windows * self.heads * (BLOCK * BLOCK + BLOCK * self.head_dim + 2 * BLOCK)
    }

    /// Elements of workspace that [`backward`] needs.
    pub fn backward_workspace(self) -> usize {
        self.windows * self.kv_heads * (2 * BLOCK * BLOCK + BLOCK)
    }

    fn query(self, window: usize, head: usize, rows: std::ops::Range<usize>) -> Layout {
        let offset = (window * self.positions + rows.start) * self.stride() + head * self.head_dim;
        Layout::strided(offset, rows.len(), self.head_dim, self.stride())
    }

    fn key(self, window: usize, kv: usize, rows: std::ops::Range<usize>) -> Layout {
        self.query(window, self.heads + kv, rows)
    }

    fn value(self, window: usize, kv: usize, rows: std::ops::Range<usize>) -> Layout {
        self.query(window, self.heads + self.kv_heads + kv, rows)
    }

    fn output(self, window: usize, head: usize, rows: std::ops::Range<usize>) -> Layout {
        let stride = self.heads * self.head_dim;
        let offset = (window * self.positions + rows.start) * stride + head * self.head_dim;
        Layout::strided(offset, rows.len(), self.head_dim, stride)
    }
}

fn check(
    kernel: &'static str,
    h: Heads,
    operands: &[(&'static str, &Tensor, usize)],
) -> Result<(), KernelError> {
    if h.kv_heads == 0 || !h.heads.is_multiple_of(h.kv_heads) {
        let message = format!("{} heads over {} key/value heads", h.heads, h.kv_heads);
        return Err(KernelError::Argument { kernel, message });
    }
    operands.iter().try_for_each(|&(operand, tensor, len)| expect(kernel, operand, tensor, len))
}

/// `out [B·T, H·C] = softmax(q·kᵀ/√C + mask)·v` and `lse [B, H, T]`, its logsumexp.
/// `doc_start [B·T]` u32 is the window position where each position's document begins.
///
/// # Errors
/// Operands of the wrong size or type; heads that key/value heads do not divide.
pub fn forward(
    stream: &Stream,
    h: Heads,
    (qkv, doc_start): (&Tensor, &Tensor),
    (out, lse): (&Tensor, &Tensor),
    workspace: &Tensor,
) -> Result<(), KernelError> {
    const NAME: &str = "attention_forward";
    let sizes = [
        ("qkv", qkv, h.rows() * h.stride()),
        ("doc_start", doc_start, h.rows()),
        ("out", out, h.rows() * h.heads * h.head_dim),
        ("lse", lse, h.rows() * h.heads),
        ("workspace", workspace, h.forward_workspace()),
    ];
    check(NAME, h, &sizes)?;
    let (qkv, doc_start) = (qkv.clone(), doc_start.clone());
    let (out, lse, workspace) = (out.clone(), lse.clone(), workspace.clone());
    dispatch!(NAME, out.dtype(), T => {
        stream.launch(NAME, move |k| {
            let (qkv, doc_start) = (k.read::<T>(&qkv)?, k.read::<u32>(&doc_start)?);
            let out = SharedSlice::new(k.write::<T>(&out)?);
            let per_task = h.forward_workspace() / (h.windows * h.heads).max(1);
            let outputs = (
                (k.write::<T>(&lse)?, h.positions),
                (k.write::<T>(&workspace)?, per_task),
            );
            k.parallel().chunks2(outputs.0, outputs.1, |task, lse, workspace| {
                let (window, head) = (task / h.heads, task % h.heads);
                let doc_start = &doc_start[window * h.positions..][..h.positions];
                for start in (0..h.positions).step_by(BLOCK) {
                    let rows = start..h.positions.min(start + BLOCK);
                    let block = Block { h, window, head, rows };
                    block.forward(qkv, doc_start, &out, lse, workspace);
                }
            });
            Ok(())
        })?;
        Ok(())
    })
}

/// A block of query rows of one head of one window.
struct Block {
    h: Heads,
    window: usize,
    head: usize,
    rows: std::ops::Range<usize>,
}

impl Block {
    fn kv(&self) -> usize {
        self.head / (self.h.heads / self.h.kv_heads)
    }

    /// The key blocks that any row of this block attends to.
    fn key_blocks(&self, doc_start: &[u32]) -> impl Iterator<Item = std::ops::Range<usize>> {
        let first = doc_start[self.rows.start] as usize / BLOCK * BLOCK;
        let end = self.rows.end;
        (first..end).step_by(BLOCK).map(move |start| start..end.min(start + BLOCK))
    }

    fn forward<T: Real>(
        &self,
        qkv: &[T],
        doc_start: &[u32],
        out: &SharedSlice<T>,
        lse: &mut [T],
        workspace: &mut [T],
    ) {
        let (h, rows) = (self.h, self.rows.clone());
        let (scores, rest) = workspace.split_at_mut(BLOCK * BLOCK);
        let (sums, rest) = rest.split_at_mut(BLOCK * h.head_dim);
        let (most, total) = rest.split_at_mut(BLOCK);
        most.fill(T::NEG_INFINITY);
        total.fill(T::ZERO);
        let scale = T::ONE / T::of(h.head_dim as f64).sqrt();
        let mut first = true;
        for keys in self.key_blocks(doc_start) {
            let layout = Layout::strided(0, rows.len(), keys.len(), BLOCK);
            let query = (qkv, h.query(self.window, self.head, rows.clone()));
            let key = (qkv, h.key(self.window, self.kv(), keys.clone()).t());
            crate::gemm::serial(scale, query, key, T::ZERO, (scores, layout));
            vectorize!(|| {
                for (i, row) in rows.clone().enumerate() {
                    let scores = &mut scores[i * BLOCK..][..keys.len()];
                    mask(scores, &keys, doc_start[row] as usize, row);
                    let sums = &mut sums[i * h.head_dim..][..h.head_dim];
                    online_softmax(scores, sums, &mut most[i], &mut total[i]);
                }
            });
            let beta = if first { T::ZERO } else { T::ONE };
            let value = (qkv, h.value(self.window, self.kv(), keys.clone()));
            let to = Layout::dense(rows.len(), h.head_dim);
            crate::gemm::serial(T::ONE, (scores, layout), value, beta, (sums, to));
            first = false;
        }
        let to = h.output(self.window, self.head, rows.clone());
        vectorize!(|| {
            for (i, row) in rows.clone().enumerate() {
                let inverse = T::ONE / total[i];
                let start = to.offset + i * to.row_stride;
                // SAFETY: each task has its own head's columns of its own window's rows.
                let out = unsafe { out.part(start..start + h.head_dim) };
                let sums = &sums[i * h.head_dim..][..h.head_dim];
                out.iter_mut().zip(sums).for_each(|(out, sum)| *out = *sum * inverse);
                lse[row] = most[i] + total[i].portable_ln();
            }
        });
    }
}

/// Sets the scores of keys outside `first ..= last` to −∞.
#[inline(always)]
fn mask<T: Real>(scores: &mut [T], keys: &std::ops::Range<usize>, first: usize, last: usize) {
    let from = first.clamp(keys.start, keys.end) - keys.start;
    let to = (last + 1).clamp(keys.start, keys.end) - keys.start;
    scores[..from].fill(T::NEG_INFINITY);
    scores[to.max(from)..].fill(T::NEG_INFINITY);
}

/// Turns a row of scores into probabilities relative to the running maximum, rescaling what was
/// summed so far.
#[inline(always)]
fn online_softmax<T: Real>(scores: &mut [T], sums: &mut [T], most: &mut T, total: &mut T) {
    let row_most = crate::math::most(scores);
    let new_most = most.max(row_most);
    if new_most == T::NEG_INFINITY {
        scores.fill(T::ZERO);
        return;
    }
    for score in scores.iter_mut() {
        *score = (*score - new_most).portable_exp();
    }
    let row_total = crate::math::sum([&*scores], |[s]| s);
    if *most != new_most {
        let keep = (*most - new_most).portable_exp();
        *total *= keep;
        if keep == T::ZERO {
            sums.fill(T::ZERO);
        } else {
            sums.iter_mut().for_each(|sum| *sum *= keep);
        }
        *most = new_most;
    }
    *total += row_total;
}

/// Gradient of [`forward`] with respect to `qkv`, written to `dqkv` (overwritten).
///
/// # Errors
/// As [`forward`].
pub fn backward(
    stream: &Stream,
    h: Heads,
    (qkv, doc_start): (&Tensor, &Tensor),
    (out, lse, dout): (&Tensor, &Tensor, &Tensor),
    dqkv: &Tensor,
    workspace: &Tensor,
) -> Result<(), KernelError> {
    const NAME: &str = "attention_backward";
    let width = h.heads * h.head_dim;
    let sizes = [
        ("qkv", qkv, h.rows() * h.stride()),
        ("doc_start", doc_start, h.rows()),
        ("out", out, h.rows() * width),
        ("dout", dout, h.rows() * width),
        ("lse", lse, h.rows() * h.heads),
        ("dqkv", dqkv, h.rows() * h.stride()),
        ("workspace", workspace, h.backward_workspace()),
    ];
    check(NAME, h, &sizes)?;
    let (qkv, doc_start, dqkv) = (qkv.clone(), doc_start.clone(), dqkv.clone());
    let (out, lse, dout, workspace) = (out.clone(), lse.clone(), dout.clone(), workspace.clone());
    dispatch!(NAME, dqkv.dtype(), T => {
        stream.launch(NAME, move |k| {
            let (qkv, doc_start) = (k.read::<T>(&qkv)?, k.read::<u32>(&doc_start)?);
            let (out, lse, dout) = (k.read::<T>(&out)?, k.read::<T>(&lse)?, k.read::<T>(&dout)?);
            let dqkv = k.write::<T>(&dqkv)?;
            k.parallel().chunks(dqkv, 64 * h.stride(), |_, rows| rows.fill(T::ZERO));
            let dqkv = SharedSlice::new(dqkv);
            let per_task = h.backward_workspace() / (h.windows * h.kv_heads).max(1);
            k.parallel().chunks(k.write::<T>(&workspace)?, per_task, |task, workspace| {
                let (window, kv) = (task / h.kv_heads, task % h.kv_heads);
                let group = h.heads / h.kv_heads;
                let doc_start = &doc_start[window * h.positions..][..h.positions];
                for head in kv * group..(kv + 1) * group {
                    let lse = &lse[(window * h.heads + head) * h.positions..][..h.positions];
                    for start in (0..h.positions).step_by(BLOCK) {
                        let rows = start..h.positions.min(start + BLOCK);
                        let block = Block { h, window, head, rows };
                        block.backward(qkv, doc_start, (out, lse, dout), &dqkv, workspace);
                    }
                }
            });
            Ok(())
        })?;
        Ok(())
    })
}

impl Block {
    fn backward<T: Real>(
        &self,
        qkv: &[T],
        doc_start: &[u32],
        (out, lse, dout): (&[T], &[T], &[T]),
        dqkv: &SharedSlice<T>,
        workspace: &mut [T],
    ) {
        let (h, rows) = (self.h, self.rows.clone());
        let (probs, rest) = workspace.split_at_mut(BLOCK * BLOCK);
        let (dscores, delta) = rest.split_at_mut(BLOCK * BLOCK);
        let scale = T::ONE / T::of(h.head_dim as f64).sqrt();
        let o = h.output(self.window, self.head, rows.clone());
        for (i, delta) in delta.iter_mut().take(rows.len()).enumerate() {
            let start = o.offset + i * o.row_stride;
            let range = start..start + h.head_dim;
            *delta = vectorize!(|| dot(&dout[range.clone()], &out[range.clone()]));
        }
        let q = h.query(self.window, self.head, rows.clone());
        for keys in self.key_blocks(doc_start) {
            let k = h.key(self.window, self.kv(), keys.clone());
            let v = h.value(self.window, self.kv(), keys.clone());
            let square = Layout::strided(0, rows.len(), keys.len(), BLOCK);
            crate::gemm::serial(scale, (qkv, q), (qkv, k.t()), T::ZERO, (probs, square));
            crate::gemm::serial(T::ONE, (dout, o), (qkv, v.t()), T::ZERO, (dscores, square));
            vectorize!(|| {
                for (i, row) in rows.clone().enumerate() {
                    let probs = &mut probs[i * BLOCK..][..keys.len()];
                    let dscores = &mut dscores[i * BLOCK..][..keys.len()];
                    mask(probs, &keys, doc_start[row] as usize, row);
                    for (p, ds) in probs.iter_mut().zip(dscores.iter_mut()) {
                        *p = (*p - lse[row]).portable_exp();
                        *ds = *p * (*ds - delta[i]) * scale;
                    }
                }
            });
            // SAFETY: a task has its own window and key/value head, and with it that head's
            // group of query heads: no other task touches these columns of these rows.
            unsafe {
                let one = T::ONE;
                serial_shared(one, (dscores, square), (qkv, k), one, (dqkv, q));
                serial_shared(one, (dscores, square.t()), (qkv, q), one, (dqkv, k));
                serial_shared(one, (probs, square.t()), (dout, o), one, (dqkv, v));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use device::{DType, Device};

    /// Straight from the definition, in f64.
    fn reference(h: Heads, qkv: &[f64], doc_start: &[u32]) -> Vec<f64> {
        let (c, stride) = (h.head_dim, h.stride());
        let mut out = vec![0.0; h.rows() * h.heads * c];
        for b in 0..h.windows {
            for head in 0..h.heads {
                let kv = head / (h.heads / h.kv_heads);
                for i in 0..h.positions {
                    let at = |row: usize, column: usize| {
                        &qkv[(b * h.positions + row) * stride + column * c..][..c]
                    };
                    let first = doc_start[b * h.positions + i] as usize;
                    let scores: Vec<f64> = (first..=i)
                        .map(|j| dot(at(i, head), at(j, h.heads + kv)) / (c as f64).sqrt())
                        .collect();
                    let total: f64 = scores.iter().map(|s| s.exp()).sum();
                    for (j, score) in (first..=i).zip(&scores) {
                        for (x, v) in at(j, h.heads + h.kv_heads + kv).iter().enumerate() {
                            out[((b * h.positions + i) * h.heads + head) * c + x] +=
                                score.exp() / total * v;
                        }
                    }
                }
            }
        }
        out
    }

    fn inputs(h: Heads) -> (Vec<f64>, Vec<u32>) {
        let wave = |i: usize| ((i * 7919 % 1009) as f64 / 504.5 - 1.0) * 1.5;
        let qkv = (0..h.rows() * h.stride()).map(wave).collect();
        let starts = (0..h.rows()).map(|row| (row % h.positions / 50 * 50) as u32).collect();
        (qkv, starts)
    }

    fn run(h: Heads, qkv: &[f64], starts: &[u32], threads: usize) -> (Vec<f64>, Tensor, Tensor) {
        let device = Device::cpu(threads).unwrap();
        let stream = device.stream();
        let qkv = device.tensor(&[h.rows(), h.stride()], qkv).unwrap();
        let starts = device.tensor(&[h.rows()], starts).unwrap();
        let out = device.zeros(&[h.rows(), h.heads * h.head_dim], DType::F64).unwrap();
        let lse = device.zeros(&[h.windows, h.heads, h.positions], DType::F64).unwrap();
        let workspace = device.zeros(&[h.forward_workspace()], DType::F64).unwrap();
        forward(&stream, h, (&qkv, &starts), (&out, &lse), &workspace).unwrap();
        (stream.to_vec(&out).unwrap(), out, lse)
    }

    const CASES: [Heads; 3] = [
        Heads { windows: 2, positions: 130, heads: 4, kv_heads: 2, head_dim: 8 },
        Heads { windows: 1, positions: 64, heads: 2, kv_heads: 2, head_dim: 16 },
        Heads { windows: 3, positions: 7, heads: 3, kv_heads: 1, head_dim: 4 },
    ];

    #[test]
    fn forward_matches_the_definition() {
        for h in CASES {
            let (qkv, starts) = inputs(h);
            let (out, ..) = run(h, &qkv, &starts, 2);
            for (got, want) in out.iter().zip(reference(h, &qkv, &starts)) {
                assert!((got - want).abs() < 1e-12, "{h:?}: {got} {want}");
            }
        }
    }

    #[test]
    fn backward_matches_finite_differences() {
        for h in CASES {
            let (qkv, starts) = inputs(h);
            let weight = |i: usize| ((i * 31 % 17) as f64 - 8.0) / 8.0;
            let objective = |qkv: &[f64]| -> f64 {
                let out = reference(h, qkv, &starts);
                out.iter().enumerate().map(|(i, o)| o * weight(i)).sum()
            };
            let (_, out, lse) = run(h, &qkv, &starts, 1);
            let device = out.buffer().device().clone();
            let stream = device.stream();
            let dout: Vec<f64> = (0..out.len()).map(weight).collect();
            let dout = device.tensor(out.dims(), &dout).unwrap();
            let x = device.tensor(&[h.rows(), h.stride()], &qkv).unwrap();
            let starts_tensor = device.tensor(&[h.rows()], &starts).unwrap();
            let dx = device.zeros(&[h.rows(), h.stride()], DType::F64).unwrap();
            let workspace = device.zeros(&[h.backward_workspace()], DType::F64).unwrap();
            let saved = (&out, &lse, &dout);
            backward(&stream, h, (&x, &starts_tensor), saved, &dx, &workspace).unwrap();
            let dx: Vec<f64> = stream.to_vec(&dx).unwrap();
            for i in (0..qkv.len()).step_by(qkv.len() / 37 + 1) {
                let step = 1e-6;
                let mut moved = qkv.clone();
                moved[i] += step;
                let plus = objective(&moved);
                moved[i] -= 2.0 * step;
                let slope = (plus - objective(&moved)) / (2.0 * step);
                assert!((dx[i] - slope).abs() < 1e-7, "{h:?} element {i}: {} {slope}", dx[i]);
            }
        }
    }
}
