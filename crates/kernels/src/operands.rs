//! The demands of all families' operations on their operands, and how results meet old contents.

use device::{DType, Tensor};

use crate::KernelError;
use crate::error::expect;

/// The treatment of the values that a result finds in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Onto {
    /// They are replaced, and not read.
    Overwrite,
    /// The result is added to them.
    Add,
}

impl Onto {
    /// As the factor `beta` of a product's old values.
    pub fn beta(self) -> f64 {
        match self {
            Onto::Overwrite => 0.0,
            Onto::Add => 1.0,
        }
    }

    pub(crate) fn adds(self) -> bool {
        self == Onto::Add
    }
}

/// Which entries of a product are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entries {
    All,
    /// Of a symmetric result: those of the lower triangle, which are mirrored.
    Triangle,
}

/// Refuses what is not f32 or f64, the types that the loops compute in.
pub(crate) fn expect_real(kernel: &'static str, tensor: &Tensor) -> Result<(), KernelError> {
    match tensor.dtype() {
        DType::F32 | DType::F64 => Ok(()),
        dtype => Err(KernelError::Dtype { kernel, dtype }),
    }
}

/// Refuses an operand of another type.
pub(crate) fn expect_dtype(
    kernel: &'static str,
    operand: &'static str,
    tensor: &Tensor,
    expected: DType,
) -> Result<(), KernelError> {
    if tensor.dtype() == expected {
        return Ok(());
    }
    let message = format!("{operand} is {}, not {expected}", tensor.dtype());
    Err(KernelError::Argument { kernel, message })
}

/// Refuses operands of another number of elements or another type.
pub(crate) fn expect_all<const COUNT: usize>(
    kernel: &'static str,
    dtype: DType,
    operands: [(&'static str, &Tensor, usize); COUNT],
) -> Result<(), KernelError> {
    operands.into_iter().try_for_each(|(operand, tensor, len)| {
        expect(kernel, operand, tensor, len)?;
        expect_dtype(kernel, operand, tensor, dtype)
    })
}
