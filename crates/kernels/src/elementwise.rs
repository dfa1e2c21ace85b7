//! Loops over single elements: zeros, copies, sums, other types.

use device::{DType, DeviceError, Element, Kernel, Tensor};
use half::bf16;

use crate::error::expect;
use crate::math::vectorize;
use crate::op::{Inside, Op, host_by_type};
use crate::operands::{expect_all, expect_dtype, expect_real};
use crate::{KernelError, Real};

/// Elements of one parallel task.
const TASK: usize = 1 << 14;

type Done = Result<(), DeviceError>;

/// Sets every element to zero.
pub struct Zero {
    /// Written: f32, f64 or u32, of any shape.
    pub y: Tensor,
}

impl Op for Zero {
    const NAME: &'static str = "zero";

    fn operands(&self, _: Inside) -> impl Iterator<Item = &Tensor> {
        [&self.y].into_iter()
    }

    fn check(&self) -> Result<(), KernelError> {
        match self.y.dtype() {
            DType::U32 => Ok(()),
            _ => expect_real(Self::NAME, &self.y),
        }
    }

    fn host(self) -> Result<impl FnOnce(&Kernel) -> Done + Send + 'static, KernelError> {
        Ok(move |k: &Kernel| match self.y.dtype() {
            DType::U32 => self.on_host::<u32>(k),
            DType::F64 => self.on_host::<f64>(k),
            _ => self.on_host::<f32>(k),
        })
    }
}

impl Zero {
    fn on_host<T: Element>(&self, k: &Kernel) -> Done {
        k.streams();
        k.parallel().chunks(k.write::<T>(&self.y)?, TASK, |_, y| y.fill(T::zeroed()));
        Ok(())
    }
}

/// `y = x`.
///
/// Both tensors are f32, or both are f64.
pub struct Copy {
    pub x: Tensor,
    /// Written: as many elements as `x`.
    pub y: Tensor,
}

impl Op for Copy {
    const NAME: &'static str = "copy";

    fn operands(&self, _: Inside) -> impl Iterator<Item = &Tensor> {
        [&self.x, &self.y].into_iter()
    }

    fn check(&self) -> Result<(), KernelError> {
        expect_real(Self::NAME, &self.y)?;
        expect_all(Self::NAME, self.y.dtype(), [("x", &self.x, self.y.len())])
    }

    host_by_type!(y);
}

impl Copy {
    fn on_host<T: Real>(&self, k: &Kernel) -> Done {
        k.streams();
        let x = k.read::<T>(&self.x)?;
        k.parallel().chunks(k.write::<T>(&self.y)?, TASK, |task, y| {
            y.copy_from_slice(&x[task * TASK..][..y.len()]);
        });
        Ok(())
    }
}

/// `y += x`: one fold of the summation tree, or a residual connection.
///
/// Both tensors are f32, or both are f64.
pub struct Add {
    pub x: Tensor,
    /// Added to: as many elements as `x`.
    pub y: Tensor,
}

impl Op for Add {
    const NAME: &'static str = "add";

    fn operands(&self, _: Inside) -> impl Iterator<Item = &Tensor> {
        [&self.x, &self.y].into_iter()
    }

    fn check(&self) -> Result<(), KernelError> {
        expect_real(Self::NAME, &self.y)?;
        expect_all(Self::NAME, self.y.dtype(), [("x", &self.x, self.y.len())])
    }

    host_by_type!(y);
}

impl Add {
    fn on_host<T: Real>(&self, k: &Kernel) -> Done {
        k.streams();
        let x = k.read::<T>(&self.x)?;
        k.parallel().chunks(k.write::<T>(&self.y)?, TASK, |task, y| {
            vectorize!(|| {
                let x = &x[task * TASK..][..y.len()];
                y.iter_mut().zip(x).for_each(|(y, x)| *y += *x);
            });
        });
        Ok(())
    }
}

/// `y = x`, exactly, in a wider type.
pub struct Widen {
    /// bf16.
    pub x: Tensor,
    /// Written: as many elements as `x`, f32.
    pub y: Tensor,
}

impl Op for Widen {
    const NAME: &'static str = "widen";

    fn operands(&self, _: Inside) -> impl Iterator<Item = &Tensor> {
        [&self.x, &self.y].into_iter()
    }

    fn check(&self) -> Result<(), KernelError> {
        expect_dtype(Self::NAME, "y", &self.y, DType::F32)?;
        expect_all(Self::NAME, DType::Bf16, [("x", &self.x, self.y.len())])
    }

    fn host(self) -> Result<impl FnOnce(&Kernel) -> Done + Send + 'static, KernelError> {
        Ok(move |k: &Kernel| self.on_host(k))
    }
}

impl Widen {
    fn on_host(&self, k: &Kernel) -> Done {
        k.streams();
        let x = k.read::<bf16>(&self.x)?;
        k.parallel().chunks(k.write::<f32>(&self.y)?, TASK, |task, y| {
            vectorize!(|| {
                let x = &x[task * TASK..][..y.len()];
                for (y, x) in y.iter_mut().zip(x) {
                    *y = f32::from_bits(u32::from(x.to_bits()) << 16);
                }
            });
        });
        Ok(())
    }
}

/// Whether every element is finite, written as 1 or 0.
pub struct AllFinite {
    /// f32 or f64, of any shape.
    pub x: Tensor,
    /// Written, `[1]`, u32.
    pub flag: Tensor,
}

impl Op for AllFinite {
    const NAME: &'static str = "all_finite";

    fn operands(&self, _: Inside) -> impl Iterator<Item = &Tensor> {
        [&self.x, &self.flag].into_iter()
    }

    fn check(&self) -> Result<(), KernelError> {
        expect_real(Self::NAME, &self.x)?;
        expect(Self::NAME, "flag", &self.flag, 1)?;
        expect_dtype(Self::NAME, "flag", &self.flag, DType::U32)
    }

    host_by_type!(x);
}

impl AllFinite {
    fn on_host<T: Real>(&self, k: &Kernel) -> Done {
        let finite = k.read::<T>(&self.x)?.iter().all(|x| x.is_finite());
        k.write::<u32>(&self.flag)?[0] = u32::from(finite);
        Ok(())
    }
}
