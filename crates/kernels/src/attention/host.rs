//! The host's code: threads take heads; backward, key/value heads with their group of heads.

use std::ops::Range;

use device::{DeviceError, Kernel};

use super::panels::Columns;
use super::{BLOCK, Backward, Forward, Heads, Panels};
use crate::Real;
use crate::gemm::{Layout, serial, serial_shared};
use crate::math::{dot, vectorize};
use crate::shared_slice::SharedSlice;

impl Forward {
    pub(super) fn on_host<T: Real>(&self, k: &Kernel) -> Result<(), DeviceError> {
        let h = self.heads;
        let qkv = read::<T>(k, h, &self.qkv)?;
        let doc_start = k.read::<u32>(&self.doc_start)?;
        let out = SharedSlice::new(k.write::<T>(&self.out)?);
        let per_task = h.forward_workspace() / (h.windows * h.heads).max(1);
        let lse = (k.write::<T>(&self.lse)?, h.positions);
        let workspace = (k.write::<T>(&self.workspace)?, per_task);
        k.parallel().chunks2(lse, workspace, |task, lse, workspace| {
            let (window, head) = (task / h.heads, task % h.heads);
            let doc_start = &doc_start[window * h.positions..][..h.positions];
            for start in (0..h.positions).step_by(BLOCK) {
                let rows = start..h.positions.min(start + BLOCK);
                let block = Block { h, window, head, rows };
                block.forward(&qkv, doc_start, &out, lse, workspace);
            }
        });
        Ok(())
    }
}

impl Backward {
    pub(super) fn on_host<T: Real>(&self, k: &Kernel) -> Result<(), DeviceError> {
        let h = self.heads;
        let qkv = read::<T>(k, h, &self.qkv)?;
        let doc_start = k.read::<u32>(&self.doc_start)?;
        let (out, lse) = (k.read::<T>(&self.out)?, k.read::<T>(&self.lse)?);
        let dout = k.read::<T>(&self.dout)?;
        let columns = self.dqkv.columns(h);
        let ([at_q, at_k, at_v], [dq, dk, dv]) = (columns, self.dqkv.tensors());
        let dq = k.write::<T>(dq)?;
        let of_one = self.dqkv.are_of_one();
        clear(k, dq, if of_one { &columns } else { &columns[..1] });
        let dq = SharedSlice::new(dq);
        let others = match of_one {
            true => None,
            false => {
                let (dk, dv) = (k.write::<T>(dk)?, k.write::<T>(dv)?);
                clear(k, dk, &[at_k]);
                clear(k, dv, &[at_v]);
                Some([SharedSlice::new(dk), SharedSlice::new(dv)])
            }
        };
        let [dk, dv] = others.as_ref().map_or([&dq, &dq], |[dk, dv]| [dk, dv]);
        let dqkv = [(&dq, at_q), (dk, at_k), (dv, at_v)];
        let per_task = h.backward_workspace() / (h.windows * h.kv_heads).max(1);
        k.parallel().chunks(k.write::<T>(&self.workspace)?, per_task, |task, workspace| {
            let (window, kv) = (task / h.kv_heads, task % h.kv_heads);
            let group = h.heads / h.kv_heads;
            let doc_start = &doc_start[window * h.positions..][..h.positions];
            for head in kv * group..(kv + 1) * group {
                let lse = &lse[(window * h.heads + head) * h.positions..][..h.positions];
                for start in (0..h.positions).step_by(BLOCK) {
                    let rows = start..h.positions.min(start + BLOCK);
                    let block = Block { h, window, head, rows };
                    block.backward(&qkv, doc_start, (out, lse, dout), &dqkv, workspace);
                }
            }
        });
        Ok(())
    }
}

/// Elements, and where in them the vectors of queries, of keys or of values lie.
type At<E> = (E, Columns);

/// Queries, keys and values.
fn read<'a, T: Real>(
    k: &'a Kernel,
    h: Heads,
    panels: &'a Panels,
) -> Result<[At<&'a [T]>; 3], DeviceError> {
    let ([q, k_, v], [at_q, at_k, at_v]) = (panels.tensors(), panels.columns(h));
    Ok([(k.read(q)?, at_q), (k.read(k_)?, at_k), (k.read(v)?, at_v)])
}

/// Sets the columns of all rows to zero.
fn clear<T: Real>(k: &Kernel, elements: &mut [T], columns: &[Columns]) {
    let stride = columns.first().map_or(1, |columns| columns.stride);
    k.parallel().chunks(elements, 64 * stride, |_, rows| {
        for row in rows.chunks_exact_mut(stride) {
            columns.iter().flat_map(|it| it.runs()).for_each(|run| row[run].fill(T::ZERO));
        }
    });
}

/// A block of query rows of one head of one window.
struct Block {
    h: Heads,
    window: usize,
    head: usize,
    rows: Range<usize>,
}

impl Block {
    fn kv(&self) -> usize {
        self.head / (self.h.heads / self.h.kv_heads)
    }

    /// The vectors of a head at some positions of the window.
    fn of<E>(&self, (elements, at): At<E>, head: usize, rows: &Range<usize>) -> (E, Layout) {
        (elements, at.rows(head, self.window * self.h.positions + rows.start, rows.len()))
    }

    /// The head's columns of the output in this block.
    fn output(&self) -> Layout {
        let (width, stride) = (self.h.value_dim, self.h.heads * self.h.value_dim);
        let first = self.window * self.h.positions + self.rows.start;
        Layout::strided(first * stride + self.head * width, self.rows.len(), width, stride)
    }

    /// The key blocks that any row of this block attends to.
    fn key_blocks(&self, doc_start: &[u32]) -> impl Iterator<Item = Range<usize>> {
        let first = doc_start[self.rows.start] as usize / BLOCK * BLOCK;
        let end = self.rows.end;
        (first..end).step_by(BLOCK).map(move |start| start..end.min(start + BLOCK))
    }

    fn forward<T: Real>(
        &self,
        &[q, k, v]: &[At<&[T]>; 3],
        doc_start: &[u32],
        out: &SharedSlice<T>,
        lse: &mut [T],
        workspace: &mut [T],
    ) {
        let (h, rows) = (self.h, self.rows.clone());
        let (scores, rest) = workspace.split_at_mut(BLOCK * BLOCK);
        let (sums, rest) = rest.split_at_mut(BLOCK * h.value_dim);
        let (most, total) = rest.split_at_mut(BLOCK);
        most.fill(T::NEG_INFINITY);
        total.fill(T::ZERO);
        let scale = T::of(h.sharpness) / T::of(h.key_dim as f64).sqrt();
        let mut first = true;
        for keys in self.key_blocks(doc_start) {
            let layout = Layout::strided(0, rows.len(), keys.len(), BLOCK);
            let query = self.of(q, self.head, &rows);
            let (key, at_key) = self.of(k, self.kv(), &keys);
            serial(scale, query, (key, at_key.t()), T::ZERO, (scores, layout));
            vectorize!(|| {
                for (i, row) in rows.clone().enumerate() {
                    let scores = &mut scores[i * BLOCK..][..keys.len()];
                    mask(scores, &keys, doc_start[row] as usize, row);
                    let sums = &mut sums[i * h.value_dim..][..h.value_dim];
                    online_softmax(scores, sums, &mut most[i], &mut total[i]);
                }
            });
            let beta = if first { T::ZERO } else { T::ONE };
            let value = self.of(v, self.kv(), &keys);
            let to = Layout::dense(rows.len(), h.value_dim);
            serial(T::ONE, (scores, layout), value, beta, (sums, to));
            first = false;
        }
        let to = self.output();
        vectorize!(|| {
            for (i, row) in rows.clone().enumerate() {
                let inverse = T::ONE / total[i];
                let start = to.offset + i * to.row_stride;
                // SAFETY: each task has its own head's columns of its own window's rows.
                let out = unsafe { out.part(start..start + h.value_dim) };
                let sums = &sums[i * h.value_dim..][..h.value_dim];
                out.iter_mut().zip(sums).for_each(|(out, sum)| *out = *sum * inverse);
                lse[row] = most[i] + total[i].portable_ln();
            }
        });
    }
}

/// Sets the scores of keys outside `first ..= last` to −∞.
#[inline(always)]
fn mask<T: Real>(scores: &mut [T], keys: &Range<usize>, first: usize, last: usize) {
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
        &[q, k, v]: &[At<&[T]>; 3],
        doc_start: &[u32],
        (out, lse, dout): (&[T], &[T], &[T]),
        &[dq, dk, dv]: &[At<&SharedSlice<T>>; 3],
        workspace: &mut [T],
    ) {
        let (h, rows) = (self.h, self.rows.clone());
        let (probs, rest) = workspace.split_at_mut(BLOCK * BLOCK);
        let (dscores, delta) = rest.split_at_mut(BLOCK * BLOCK);
        let scale = T::of(h.sharpness) / T::of(h.key_dim as f64).sqrt();
        let o = self.output();
        for (i, delta) in delta.iter_mut().take(rows.len()).enumerate() {
            let start = o.offset + i * o.row_stride;
            let range = start..start + h.value_dim;
            *delta = vectorize!(|| dot(&dout[range.clone()], &out[range.clone()]));
        }
        let (q, dq) = (self.of(q, self.head, &rows), self.of(dq, self.head, &rows));
        for keys in self.key_blocks(doc_start) {
            let (k, v) = (self.of(k, self.kv(), &keys), self.of(v, self.kv(), &keys));
            let (dk, dv) = (self.of(dk, self.kv(), &keys), self.of(dv, self.kv(), &keys));
            let square = Layout::strided(0, rows.len(), keys.len(), BLOCK);
            serial(scale, q, (k.0, k.1.t()), T::ZERO, (probs, square));
            serial(T::ONE, (dout, o), (v.0, v.1.t()), T::ZERO, (dscores, square));
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
            // group of query heads, and heads lie apart (checked): no other task touches these
            // columns of these rows.
            unsafe {
                let one = T::ONE;
                serial_shared(one, (dscores, square), k, one, dq);
                serial_shared(one, (dscores, square.t()), q, one, dk);
                serial_shared(one, (probs, square.t()), (dout, o), one, dv);
            }
        }
    }
}
