//! Matrix products.
//!
//! The host's inner kernels are those of the `gemm` crate, called on blocks that depend on the
//! product's shape alone (`calls.rs`). Threads share the blocks of a coarser cut (`Cut`).

mod calls;
mod host;
mod layout;
mod transpose;

use device::Tensor;

pub(crate) use host::{Cut, serial_shared};
pub use host::{product, serial};
pub use layout::{Layout, Matrix};

use crate::KernelError;
use crate::op::{Inside, Op, host_by_type};
use crate::operands::{expect_dtype, expect_real};

/// The property of this CPU that decides how products round, beside their shapes: the instruction
/// set that the inner kernels use. All other arithmetic of this crate has the same bits on every
/// CPU.
pub fn arithmetic() -> String {
    format!("{} {}", std::env::consts::ARCH, instructions())
}

/// The set that `gemm` chooses.
#[cfg(target_arch = "x86_64")]
fn instructions() -> &'static str {
    if std::arch::is_x86_feature_detected!("avx512f") {
        "avx512f"
    } else if std::arch::is_x86_feature_detected!("fma") {
        "fma"
    } else {
        "sse2"
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn instructions() -> &'static str {
    "baseline"
}

/// Bytes that a thread keeps to pack operands in, whatever their shapes.
pub fn packing_bytes() -> usize {
    calls::THREAD_BYTES
}

/// `C = alpha·A·B + beta·C`; where `beta` is 0, `C` is not read.
///
/// All tensors are f32, or all are f64.
#[derive(Clone)]
pub struct Matmul {
    pub alpha: f64,
    /// `[m, k]`.
    pub a: Matrix,
    /// `[k, n]`.
    pub b: Matrix,
    pub beta: f64,
    /// Written, `[m, n]`: no two entries are one element.
    pub c: Matrix,
}

impl Op for Matmul {
    const NAME: &'static str = "matmul";

    fn operands(&self, _: Inside) -> impl Iterator<Item = &Tensor> {
        [&self.a.tensor, &self.b.tensor, &self.c.tensor].into_iter()
    }

    fn check(&self) -> Result<(), KernelError> {
        let Matmul { a, b, c, .. } = self;
        let place = |matrix: &Matrix| (matrix.tensor.len(), matrix.layout);
        check(Self::NAME, place(a), place(b), place(c))?;
        expect_real(Self::NAME, &c.tensor)?;
        expect_dtype(Self::NAME, "a", &a.tensor, c.tensor.dtype())?;
        expect_dtype(Self::NAME, "b", &b.tensor, c.tensor.dtype())
    }

    host_by_type!(c.tensor);
}

fn check(
    kernel: &'static str,
    (a_len, a): (usize, Layout),
    (b_len, b): (usize, Layout),
    (c_len, c): (usize, Layout),
) -> Result<(), KernelError> {
    if a.cols != b.rows || a.rows != c.rows || b.cols != c.cols {
        let message = format!("shapes do not chain: {a:?} · {b:?} -> {c:?}");
        return Err(KernelError::Argument { kernel, message });
    }
    if !c.is_injective() {
        let message = format!("entries of the result share elements: {c:?}");
        return Err(KernelError::Argument { kernel, message });
    }
    for (operand, len, layout) in [("a", a_len, a), ("b", b_len, b), ("c", c_len, c)] {
        if layout.end() > len {
            let (got, expected) = (len, layout.end());
            return Err(KernelError::Operand { kernel, operand, got, expected });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use device::Device;
    use proptest::prelude::*;

    use super::*;

    fn values(len: usize, seed: u64) -> Vec<f32> {
        calls::tests::values(len, seed).into_iter().map(|x| x as f32).collect()
    }

    fn run(threads: usize, (m, n, k): (usize, usize, usize), ta: bool, tb: bool) -> Vec<f32> {
        let device = Device::cpu(threads).unwrap();
        let a = device.tensor(&[m, k], &values(m * k, 1)).unwrap();
        let b = device.tensor(&[k, n], &values(k * n, 2)).unwrap();
        let c = device.tensor(&[m, n], &values(m * n, 3)).unwrap();
        let la = if ta { Layout::dense(k, m).t() } else { Layout::dense(m, k) };
        let lb = if tb { Layout::dense(n, k).t() } else { Layout::dense(k, n) };
        let stream = device.stream();
        let (a, b) = (Matrix { tensor: a, layout: la }, Matrix { tensor: b, layout: lb });
        let product = Matmul { alpha: 0.5, a, b, beta: 2.0, c: Matrix::of(c.clone()) };
        product.launch(&stream).unwrap();
        stream.to_vec(&c).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn matches_the_definition(
            m in 1_usize..70, n in 1_usize..70, k in 1_usize..70, ta: bool, tb: bool,
        ) {
            let (a, b, c) = (values(m * k, 1), values(k * n, 2), values(m * n, 3));
            let got = run(1, (m, n, k), ta, tb);
            for i in 0..m {
                for j in 0..n {
                    let at = |p: usize| if ta { a[p * m + i] } else { a[i * k + p] };
                    let bt = |p: usize| if tb { b[j * k + p] } else { b[p * n + j] };
                    let sum: f64 = (0..k).map(|p| f64::from(at(p)) * f64::from(bt(p))).sum();
                    let want = 0.5 * sum + 2.0 * f64::from(c[i * n + j]);
                    prop_assert!((f64::from(got[i * n + j]) - want).abs() < 1e-4);
                }
            }
        }
    }

    #[test]
    fn bits_do_not_depend_on_threads() {
        for shape in [(256, 700, 300), (1000, 70, 513), (64, 5000, 64), (333, 333, 333)] {
            let one = run(1, shape, false, true);
            for threads in 2..4 {
                let more = run(threads, shape, false, true);
                let same = one.iter().zip(&more).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same, "{shape:?} with {threads} threads");
            }
        }
    }

    #[test]
    fn a_view_outside_its_tensor_is_refused() {
        let device = Device::cpu(1).unwrap();
        let a = device.zeros(&[4, 4], device::DType::F32).unwrap();
        let c = device.zeros(&[4, 4], device::DType::F32).unwrap();
        let good = Layout::dense(4, 4);
        let bad = Layout::strided(1, 4, 4, 4);
        let product = |b: Layout, c_layout: Layout| {
            let b = Matrix { tensor: a.clone(), layout: b };
            let c = Matrix { tensor: c.clone(), layout: c_layout };
            let a = Matrix::of(a.clone());
            Matmul { alpha: 1.0, a, b, beta: 0.0, c }.launch(&device.stream())
        };
        let result = product(bad, good);
        assert!(matches!(result, Err(KernelError::Operand { operand: "b", .. })));
        let overlapping = Layout::strided(0, 4, 4, 3);
        let far = Layout { row_stride: usize::MAX / 2, ..good };
        for bad in [overlapping, Layout { col_stride: 0, ..good }, far] {
            assert!(product(good, bad).is_err(), "{bad:?}");
        }
    }
}
