//! Reductions.

use std::ffi::{c_int, c_void};
use std::fmt;
use std::sync::Arc;

use crate::shared::{Need, Shared};
use crate::wait::Deadline;
use crate::{Communicator, DataType, Error};

/// How elements of several ranks become one. The library chooses the order of additions.
#[derive(Debug, Clone, Copy)]
pub enum RedOp<'a> {
    Sum,
    Prod,
    Max,
    Min,
    /// The sum, divided by the number of ranks.
    Avg,
    /// Each rank's elements are multiplied by that rank's own factor before they are summed.
    PreMulSum(&'a PreMulSum),
}

impl RedOp<'_> {
    /// The number of `ncclRedOp_t`.
    ///
    /// # Errors
    /// A factor of another communicator or of another type.
    pub(crate) fn number(
        &self,
        call: &'static str,
        shared: &Arc<Shared>,
        dtype: DataType,
    ) -> Result<c_int, Error> {
        let of = match self {
            RedOp::Sum => return Ok(0),
            RedOp::Prod => return Ok(1),
            RedOp::Max => return Ok(2),
            RedOp::Min => return Ok(3),
            RedOp::Avg => return Ok(4),
            RedOp::PreMulSum(op) => op,
        };
        let op = self.name();
        if !Arc::ptr_eq(&of.shared, shared) {
            let what = "its factor was made for another communicator";
            return Err(Error::Reduction { call, op, dtype, what });
        }
        if of.dtype != dtype {
            let what = "its factor is of another type";
            return Err(Error::Reduction { call, op, dtype, what });
        }
        Ok(of.number)
    }

    /// The name in messages.
    const fn name(&self) -> &'static str {
        match self {
            RedOp::Sum => "sum",
            RedOp::Prod => "prod",
            RedOp::Max => "max",
            RedOp::Min => "min",
            RedOp::Avg => "avg",
            RedOp::PreMulSum(_) => "premul sum",
        }
    }
}

/// A factor for [`RedOp::PreMulSum`], which belongs to one communicator.
pub struct PreMulSum {
    shared: Arc<Shared>,
    number: c_int,
    dtype: DataType,
}

impl fmt::Debug for PreMulSum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PreMulSum({}, {})", self.shared.seat(), self.dtype)
    }
}

/// The factor lies on the host and is read in the call (`ncclScalarHostImmediate`).
const HOST_IMMEDIATE: c_int = 1;

impl Communicator {
    /// A reduction that multiplies this rank's elements by a factor first.
    ///
    /// `factor` is one element of `dtype`, in the machine's order of bytes.
    ///
    /// # Errors
    /// Its length is not an element's; the library refuses it, or has no such type.
    pub fn pre_mul_sum(&self, dtype: DataType, factor: &[u8]) -> Result<PreMulSum, Error> {
        let call = "ncclRedOpCreatePreMulSum";
        if factor.len() != dtype.bytes() {
            let (got, need) = (factor.len(), dtype.bytes());
            let what = format!("a factor of {got} bytes, and one of {dtype} has {need}");
            return Err(Error::Argument { call, what });
        }
        let table = self.library().table();
        table.require(dtype.name(), dtype.since())?;
        let lease = self.shared.enter(call, Need::Operation, Deadline::after(self.timeout()))?;
        // Aligned as any element is.
        let (mut number, mut element) = (0, [0_u64; 1]);
        // SAFETY: an element has 8 bytes at most, and `factor` as many as an element.
        unsafe {
            let to = element.as_mut_ptr().cast::<u8>();
            to.copy_from_nonoverlapping(factor.as_ptr(), factor.len());
        }
        let (place, factor) = (&raw mut number, element.as_ptr().cast::<c_void>());
        // SAFETY: the lease keeps the communicator; the factor is an element of `dtype`, which is
        // read in the call.
        let told = unsafe {
            table.pre_mul_sum(place, factor, dtype as c_int, HOST_IMMEDIATE, lease.handle())
        };
        self.library().check(told)?;
        Ok(PreMulSum { shared: Arc::clone(&self.shared), number, dtype })
    }
}

impl Drop for PreMulSum {
    fn drop(&mut self) {
        let (call, deadline) = ("ncclRedOpDestroy", Deadline::after(self.shared.timeout()));
        // A communicator that is over has taken it along.
        if let Ok(lease) = self.shared.enter(call, Need::Manage, deadline) {
            // SAFETY: the lease keeps the communicator, whose the reduction is.
            let told =
                unsafe { self.shared.library.table().destroy_op(self.number, lease.handle()) };
            let _ = self.shared.library.check(told);
        }
    }
}
