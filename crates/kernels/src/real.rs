//! The types that host code computes in. `exp` and `ln` are this workspace's own, so that their
//! bits are the same on every machine.

use std::ops::{Add, AddAssign, Div, DivAssign, Mul, MulAssign, Neg, Sub, SubAssign};

use device::Element;

/// The computing types: f32, and f64 for gradient checks.
pub trait Real:
    Element
    + Copy
    + PartialOrd
    + Default
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + SubAssign
    + MulAssign
    + DivAssign
    + 'static
{
    const ZERO: Self;
    const ONE: Self;
    const NEG_INFINITY: Self;
    /// The most that rounding to this type changes a number, relative to it.
    const ROUNDOFF: f64;
    fn of(value: f64) -> Self;
    fn to_f64(self) -> f64;
    fn sqrt(self) -> Self;
    /// These two are named apart from the methods of f32 and f64, which would win where the type
    /// is known, and call the host's C library: slowly, and with bits that differ between hosts.
    fn portable_exp(self) -> Self;
    fn portable_ln(self) -> Self;
    fn abs(self) -> Self;
    fn max(self, other: Self) -> Self;
    fn is_finite(self) -> bool;
}

macro_rules! real {
    ($type:ty, $exp:path, $ln:path) => {
        impl Real for $type {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            const NEG_INFINITY: Self = <$type>::NEG_INFINITY;
            const ROUNDOFF: f64 = <$type>::EPSILON as f64 / 2.0;
            #[inline(always)]
            fn of(value: f64) -> Self {
                value as $type
            }
            #[inline(always)]
            fn to_f64(self) -> f64 {
                f64::from(self)
            }
            #[inline(always)]
            fn sqrt(self) -> Self {
                <$type>::sqrt(self)
            }
            #[inline(always)]
            fn portable_exp(self) -> Self {
                $exp(self)
            }
            #[inline(always)]
            fn portable_ln(self) -> Self {
                $ln(self)
            }
            #[inline(always)]
            fn abs(self) -> Self {
                <$type>::abs(self)
            }
            #[inline(always)]
            fn max(self, other: Self) -> Self {
                if self > other { self } else { other }
            }
            #[inline(always)]
            fn is_finite(self) -> bool {
                <$type>::is_finite(self)
            }
        }
    };
}

real!(f32, crate::exp::exp_f32, libm::logf);
real!(f64, libm::exp, libm::log);
