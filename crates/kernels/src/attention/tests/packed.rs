//! The loops as they were while queries, keys and values were one tensor of one width, on the
//! calling thread: what the loops of today must equal to the bit on such tensors.

use crate::Real;
use crate::attention::BLOCK;
use crate::gemm::{Layout, serial, serial_shared};
use crate::math::{dot, vectorize};
use crate::shared_slice::SharedSlice;

/// Sizes of a call.
#[derive(Clone, Copy)]
pub struct Heads {
    pub windows: usize,
    pub positions: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
}

impl Heads {
    fn stride(self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
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

/// The output and the logsumexps.
pub fn forward<T: Real>(h: Heads, qkv: &[T], doc_start: &[u32]) -> [Vec<T>; 2] {
    let rows = h.windows * h.positions;
    let mut out = vec![T::ZERO; rows * h.heads * h.head_dim];
    let mut lse = vec![T::ZERO; rows * h.heads];
    let mut workspace = vec![T::ONE; BLOCK * BLOCK + BLOCK * h.head_dim + 2 * BLOCK];
    let shared = SharedSlice::new(&mut out);
    for (task, lse) in lse.chunks_mut(h.positions).enumerate() {
        let (window, head) = (task / h.heads, task % h.heads);
        let doc_start = &doc_start[window * h.positions..][..h.positions];
        for start in (0..h.positions).step_by(BLOCK) {
            let rows = start..h.positions.min(start + BLOCK);
            let block = Block { h, window, head, rows };
            block.forward(qkv, doc_start, &shared, lse, &mut workspace);
        }
    }
    [out, lse]
}

/// The gradient.
pub fn backward<T: Real>(
    h: Heads,
    qkv: &[T],
    doc_start: &[u32],
    (out, lse, dout): (&[T], &[T], &[T]),
) -> Vec<T> {
    let mut dqkv = vec![T::ZERO; qkv.len()];
    let shared = SharedSlice::new(&mut dqkv);
    let mut workspace = vec![T::ONE; 2 * BLOCK * BLOCK + BLOCK];
    for (window, head) in (0..h.windows).flat_map(|w| (0..h.heads).map(move |head| (w, head))) {
        let doc_start = &doc_start[window * h.positions..][..h.positions];
        let lse = &lse[(window * h.heads + head) * h.positions..][..h.positions];
        for start in (0..h.positions).step_by(BLOCK) {
            let rows = start..h.positions.min(start + BLOCK);
            let block = Block { h, window, head, rows };
            block.backward(qkv, doc_start, (out, lse, dout), &shared, &mut workspace);
        }
    }
    dqkv
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
            serial(scale, query, key, T::ZERO, (scores, layout));
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
            serial(T::ONE, (scores, layout), value, beta, (sums, to));
            first = false;
        }
        let to = h.output(self.window, self.head, rows.clone());
        vectorize!(|| {
            for (i, row) in rows.clone().enumerate() {
                let inverse = T::ONE / total[i];
                let start = to.offset + i * to.row_stride;
                // SAFETY: one thread writes one part at a time.
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
            serial(scale, (qkv, q), (qkv, k.t()), T::ZERO, (probs, square));
            serial(T::ONE, (dout, o), (qkv, v.t()), T::ZERO, (dscores, square));
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
            // SAFETY: one thread writes one part at a time.
            unsafe {
                let one = T::ONE;
                serial_shared(one, (dscores, square), (qkv, k), one, (dqkv, q));
                serial_shared(one, (dscores, square.t()), (qkv, q), one, (dqkv, k));
                serial_shared(one, (probs, square.t()), (dout, o), one, (dqkv, v));
            }
        }
    }
}
