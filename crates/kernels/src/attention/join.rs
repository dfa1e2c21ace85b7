//! Keys of which one part is each head's own and the rest is the same for all heads, as latent
//! attention has them (DeepSeek-V2, arXiv 2405.04434, §2.1.3).
//!
//! ```text
//! per head [N, H] of Cn, shared [N] of Cr   ─JoinKeys─▶   keys [N, H] of Cn + Cr
//! ```

use device::{DType, DeviceError, Kernel, Tensor};

use crate::norm::{Rows, Vectors};
use crate::op::{Inside, Op, host_by_type};
use crate::operands::expect_real;
use crate::{KernelError, Real};

/// Rows of one parallel task.
const ROWS: usize = 16;

/// `keys[n, h] = [per_head[n, h] | shared[n]]`.
///
/// All are f32, or all are f64; each lies in the rows of its own `[N, …]`.
pub struct JoinKeys {
    /// `[N, H]` vectors of `Cn`.
    pub per_head: Vectors,
    /// `[N, 1]` vectors of `Cr`.
    pub shared: Vectors,
    /// Written, `[N, H]` vectors of `Cn + Cr`; other columns stay.
    pub keys: Vectors,
}

impl Op for JoinKeys {
    const NAME: &'static str = "attention_join_keys";

    fn operands(&self, _: Inside) -> impl Iterator<Item = &Tensor> {
        [&self.per_head.tensor, &self.shared.tensor, &self.keys.tensor].into_iter()
    }

    fn check(&self) -> Result<(), KernelError> {
        let keys = &self.keys;
        expect_real(Self::NAME, &keys.tensor)?;
        let operands = [("per_head", &self.per_head), ("shared", &self.shared), ("keys", keys)];
        check(Self::NAME, keys.tensor.dtype(), operands)
    }

    host_by_type!(keys.tensor);
}

/// Gradient of [`JoinKeys`]: `dper_head[n, h] = dkeys[n, h][.. Cn]`, and
/// `dshared[n] = Σ_h dkeys[n, h][Cn ..]`, heads in order.
///
/// All are f32, or all are f64; each lies in the rows of its own `[N, …]`.
pub struct JoinKeysBackward {
    /// `[N, H]` vectors of `Cn + Cr`.
    pub dkeys: Vectors,
    /// Written, `[N, H]` vectors of `Cn`; other columns stay.
    pub dper_head: Vectors,
    /// Written, `[N, 1]` vectors of `Cr`; other columns stay.
    pub dshared: Vectors,
}

impl Op for JoinKeysBackward {
    const NAME: &'static str = "attention_join_keys_backward";

    fn operands(&self, _: Inside) -> impl Iterator<Item = &Tensor> {
        [&self.dkeys.tensor, &self.dper_head.tensor, &self.dshared.tensor].into_iter()
    }

    fn check(&self) -> Result<(), KernelError> {
        let dper_head = &self.dper_head;
        expect_real(Self::NAME, &dper_head.tensor)?;
        let operands =
            [("dper_head", dper_head), ("dshared", &self.dshared), ("dkeys", &self.dkeys)];
        check(Self::NAME, dper_head.tensor.dtype(), operands)
    }

    host_by_type!(dper_head.tensor);
}

/// Refuses parts that are not those of the keys, which come last.
fn check(
    kernel: &'static str,
    dtype: DType,
    operands: [(&'static str, &Vectors); 3],
) -> Result<(), KernelError> {
    operands.into_iter().try_for_each(|(operand, x)| x.check_in_rows(kernel, operand, dtype))?;
    let [per_head, shared, keys] = operands.map(|(_, vectors)| vectors.rows);
    let counts = |rows: Rows| (rows.outer, rows.inner);
    if counts(per_head) == counts(keys)
        && counts(shared) == (keys.outer, 1)
        && per_head.len + shared.len == keys.len
    {
        return Ok(());
    }
    let message = format!("{keys:?} are not joined of {per_head:?} and {shared:?}");
    Err(KernelError::Argument { kernel, message })
}

impl JoinKeys {
    fn on_host<T: Real>(&self, k: &Kernel) -> Result<(), DeviceError> {
        let [at_head, at_shared, at_key] =
            [&self.per_head, &self.shared, &self.keys].map(|vectors| vectors.rows);
        let per_head = k.read::<T>(&self.per_head.tensor)?;
        let shared = k.read::<T>(&self.shared.tensor)?;
        let keys = k.write::<T>(&self.keys.tensor)?;
        k.parallel().chunks(keys, ROWS * at_key.stride, |task, rows| {
            for (i, keys) in rows.chunks_exact_mut(at_key.stride).enumerate() {
                let row = task * ROWS + i;
                let shared = &shared[at_shared.start(row)..][..at_shared.len];
                for head in 0..at_key.inner {
                    let from = at_head.start(row * at_head.inner + head);
                    let key = &mut keys[at_key.start(head)..][..at_key.len];
                    key[..at_head.len].copy_from_slice(&per_head[from..][..at_head.len]);
                    key[at_head.len..].copy_from_slice(shared);
                }
            }
        });
        Ok(())
    }
}

impl JoinKeysBackward {
    fn on_host<T: Real>(&self, k: &Kernel) -> Result<(), DeviceError> {
        let [at_head, at_shared, at_key] =
            [&self.dper_head, &self.dshared, &self.dkeys].map(|vectors| vectors.rows);
        let dkeys = k.read::<T>(&self.dkeys.tensor)?;
        let dper_head = (k.write::<T>(&self.dper_head.tensor)?, ROWS * at_head.stride);
        let dshared = (k.write::<T>(&self.dshared.tensor)?, ROWS * at_shared.stride);
        k.parallel().chunks2(dper_head, dshared, |task, dper_head, dshared| {
            let rows = dper_head.chunks_exact_mut(at_head.stride);
            let rows = rows.zip(dshared.chunks_exact_mut(at_shared.stride));
            for (i, (dper_head, dshared)) in rows.enumerate() {
                let dshared = &mut dshared[at_shared.start(0)..][..at_shared.len];
                dshared.fill(T::ZERO);
                for head in 0..at_key.inner {
                    let from = at_key.start((task * ROWS + i) * at_key.inner + head);
                    let (own, rest) = dkeys[from..][..at_key.len].split_at(at_head.len);
                    dper_head[at_head.start(head)..][..at_head.len].copy_from_slice(own);
                    dshared.iter_mut().zip(rest).for_each(|(sum, d)| *sum += *d);
                }
            }
        });
        Ok(())
    }
}
