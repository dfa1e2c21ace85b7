//! Errors of an operation: the kernel, the operand and the value at fault. What shapes and types
//! can tell is refused before anything is launched; values are judged where they are computed.

use device::{DType, DeviceError, DeviceKind};

use crate::newton_schulz::Range;

/// Errors of an operation.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error(transparent)]
    Image(#[from] crate::modules::ImageError),
    #[error("{kernel}: {operand} has {got} elements, the shapes given need {expected}")]
    Operand { kernel: &'static str, operand: &'static str, got: usize, expected: usize },
    #[error("{kernel}: {dtype} is not supported")]
    Dtype { kernel: &'static str, dtype: DType },
    #[error(
        "coefficients {set}: {steps} step{} maps singular values of 0 to 1 to {range}; use \
         polynomials that stay in 0 to 2",
        if *.steps == 1 { "" } else { "s" }
    )]
    Coefficients { set: &'static str, steps: usize, range: Range },
    #[error("matrix {index} ({name}) holds an infinity or NaN")]
    NonFinite { index: usize, name: String },
    #[error("matrix {index} ({name}): the singular value decomposition did not converge")]
    Unsolved { index: usize, name: String },
    #[error(
        "{kernel} has no code for {device}: it runs on host devices; use `cpu` for what needs it"
    )]
    NoDeviceCode { kernel: &'static str, device: DeviceKind },
    #[error("{kernel}: {message}")]
    Argument { kernel: &'static str, message: String },
}

/// Checks that an operand has the number of elements that the shapes need.
pub(crate) fn expect(
    kernel: &'static str,
    operand: &'static str,
    tensor: &device::Tensor,
    expected: usize,
) -> Result<(), KernelError> {
    if tensor.len() == expected {
        return Ok(());
    }
    Err(KernelError::Operand { kernel, operand, got: tensor.len(), expected })
}

/// Calls `$body` with `$T` bound to the Rust type of a floating-point dtype.
macro_rules! dispatch {
    ($kernel:expr, $dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            device::DType::F32 => {
                type $T = f32;
                $body
            }
            device::DType::F64 => {
                type $T = f64;
                $body
            }
            dtype => Err($crate::KernelError::Dtype { kernel: $kernel, dtype }),
        }
    };
}
pub(crate) use dispatch;
