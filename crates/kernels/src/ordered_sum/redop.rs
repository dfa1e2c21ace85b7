//! By what inputs are combined, and what that means for each type; the one place that says so.
//!
//! ```text
//!            f32, f64                    bf16, f16                  i32, i64, u8
//! sum, prod  rounded after every step    in f32, and rounded once   modulo 2^bits
//!                                        where the result is 16-bit
//! min, max   exact; a NaN wins; −0 < +0  as f32                     exact
//! avg        the sum times 1/n, rounded  as f32, and rounded once   the sum modulo 2^bits over n,
//!            to the type before                                     rounded toward zero
//! ```
//!
//! *n* is the number of inputs. Steps are taken in the order of the program. Results are the same,
//! bit for bit, on every device, but for the payload and the sign of a NaN.

use device::{DType, Element};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::math::{round_out, vectorize};

/// By what the values of several inputs are combined.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum RedOp {
    #[default]
    Sum,
    Prod,
    Min,
    Max,
    /// The sum over the number of inputs.
    Avg,
}

impl RedOp {
    pub const ALL: [RedOp; 5] = [RedOp::Sum, RedOp::Prod, RedOp::Min, RedOp::Max, RedOp::Avg];

    /// Its name in messages.
    pub const fn word(self) -> &'static str {
        match self {
            RedOp::Sum => "sum",
            RedOp::Prod => "prod",
            RedOp::Min => "min",
            RedOp::Max => "max",
            RedOp::Avg => "avg",
        }
    }
}

impl std::fmt::Display for RedOp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.word())
    }
}

/// The type in which inputs of this type are combined, if they can be.
pub fn computed_in(input: DType) -> Option<DType> {
    match input {
        DType::F32 | DType::Bf16 | DType::F16 => Some(DType::F32),
        DType::F64 | DType::I32 | DType::I64 | DType::U8 => Some(input),
        DType::U32 | DType::U64 => None,
    }
}

/// Whether inputs of this type are combined to a result of that one: the type that is computed in,
/// or that of the inputs.
pub fn can_give(input: DType, result: DType) -> bool {
    computed_in(input).is_some_and(|computed| result == computed || result == input)
}

/// As [`can_give`]; or the inputs are f32 since they are themselves combined from 16-bit ones, and
/// are rounded to those' type in the end.
pub(super) fn can_end(input: DType, result: DType) -> bool {
    can_give(input, result) || (input == DType::F32 && computed_in(result) == Some(DType::F32))
}

/// A type that is computed in.
pub(super) trait Number: Element {
    fn plus(self, other: Self) -> Self;
    fn times(self, other: Self) -> Self;
    fn lesser(self, other: Self) -> Self;
    fn greater(self, other: Self) -> Self;
    /// Makes averages of sums of `count` inputs.
    fn average(sums: &mut [Self], count: usize);
}

macro_rules! float {
    ($type:ty) => {
        impl Number for $type {
            #[inline(always)]
            fn plus(self, other: Self) -> Self {
                self + other
            }
            #[inline(always)]
            fn times(self, other: Self) -> Self {
                self * other
            }
            // Both without branches, so that loops over them become vector code. Numbers that are
            // equal differ in the sign of a zero at most.
            #[inline(always)]
            fn lesser(self, other: Self) -> Self {
                let either = if (self < other) | self.is_nan() { self } else { other };
                let equal = <$type>::from_bits(self.to_bits() | other.to_bits());
                if self == other { equal } else { either }
            }
            #[inline(always)]
            fn greater(self, other: Self) -> Self {
                let either = if (self > other) | self.is_nan() { self } else { other };
                let equal = <$type>::from_bits(self.to_bits() & other.to_bits());
                if self == other { equal } else { either }
            }
            fn average(sums: &mut [Self], count: usize) {
                // Rounded to f64 first, which changes no f32: 53 bits are 2 · 24 + 2 and more.
                let factor = (1.0 / count as f64) as $type;
                sums.iter_mut().for_each(|sum| *sum *= factor);
            }
        }
    };
}
float!(f32);
float!(f64);

macro_rules! integer {
    ($type:ty) => {
        impl Number for $type {
            #[inline(always)]
            fn plus(self, other: Self) -> Self {
                self.wrapping_add(other)
            }
            #[inline(always)]
            fn times(self, other: Self) -> Self {
                self.wrapping_mul(other)
            }
            #[inline(always)]
            fn lesser(self, other: Self) -> Self {
                self.min(other)
            }
            #[inline(always)]
            fn greater(self, other: Self) -> Self {
                self.max(other)
            }
            fn average(sums: &mut [Self], count: usize) {
                // The count may be beyond the type; the quotient is not.
                sums.iter_mut().for_each(|sum| *sum = (*sum as i64 / count as i64) as $type);
            }
        }
    };
}
integer!(i32);
integer!(i64);
integer!(u8);

/// How two numbers become one.
pub(super) trait Combine {
    fn combine<N: Number>(a: N, b: N) -> N;
}

macro_rules! combine {
    ($name:ident, $method:ident) => {
        pub(super) struct $name;
        impl Combine for $name {
            #[inline(always)]
            fn combine<N: Number>(a: N, b: N) -> N {
                a.$method(b)
            }
        }
    };
}
combine!(Sum, plus);
combine!(Prod, times);
combine!(Min, lesser);
combine!(Max, greater);

/// A type of inputs that are combined as `N`.
pub(super) trait Input<N>: Element {
    fn widened(self) -> N;
}

macro_rules! input {
    ($($type:ty as $number:ty: $widened:expr),*) => {
        $(impl Input<$number> for $type {
            #[inline(always)]
            fn widened(self) -> $number {
                $widened(self)
            }
        })*
    };
}
input!(f32 as f32: |x| x, f64 as f64: |x| x, bf16 as f32: bf16::to_f32, f16 as f32: f16::to_f32,
    i32 as i32: |x| x, i64 as i64: |x| x, u8 as u8: |x| x);

/// A 16-bit type, to which f32 is rounded to nearest, ties to even.
pub(super) trait Rounded: Input<f32> {
    fn round(from: &[f32], to: &mut [Self]);
}

impl Rounded for bf16 {
    fn round(from: &[f32], to: &mut [bf16]) {
        vectorize!(|| round_out(from, to));
    }
}

impl Rounded for f16 {
    fn round(from: &[f32], to: &mut [f16]) {
        to.convert_from_f32_slice(from);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bits<N: Number + PartialEq>(pairs: &[(N, N)]) -> bool {
        pairs.iter().all(|(a, b)| bytemuck::bytes_of(a) == bytemuck::bytes_of(b))
    }

    #[test]
    fn a_nan_wins_and_zeros_have_an_order() {
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        for (a, b) in [(nan, 1.0), (1.0, nan), (nan, -inf), (inf, nan), (nan, nan)] {
            assert!(a.lesser(b).is_nan() && a.greater(b).is_nan(), "{a} {b}");
            let (a, b) = (f64::from(a), f64::from(b));
            assert!(a.lesser(b).is_nan() && a.greater(b).is_nan(), "{a} {b}");
        }
        assert!(bits(&[
            (0.0_f32.lesser(-0.0), -0.0),
            ((-0.0_f32).lesser(0.0), -0.0),
            (0.0_f32.greater(-0.0), 0.0),
            ((-0.0_f32).greater(0.0), 0.0),
            ((-0.0_f32).greater(-0.0), -0.0),
            ((-3.0_f32).lesser(-3.0), -3.0),
            (inf.lesser(-inf), -inf),
            (1.0_f32.greater(-2.0), 1.0),
        ]));
        assert!(bits(&[(0.0_f64.lesser(-0.0), -0.0), ((-0.0_f64).greater(0.0), 0.0)]));
    }

    #[test]
    fn integers_wrap_and_averages_round_toward_zero() {
        assert_eq!((i32::MAX.plus(1), i32::MIN.plus(-1)), (i32::MIN, i32::MAX));
        assert_eq!((i64::MAX.plus(1), 200_u8.plus(100)), (i64::MIN, 44));
        assert_eq!(((1_i32 << 30).times(4), 16_u8.times(17)), (0, 16));
        assert_eq!((i64::MIN.times(-1), (-5_i32).lesser(3)), (i64::MIN, -5));
        let averaged = |mut sums: Vec<i32>, count| {
            i32::average(&mut sums, count);
            sums
        };
        assert_eq!(averaged(vec![7, -7, 8, -1, i32::MIN], 2), [3, -3, 4, 0, i32::MIN / 2]);
        // More inputs than the type has numbers.
        let mut sums = [255_u8, 3];
        u8::average(&mut sums, 300);
        assert_eq!(sums, [0, 0]);
        let mut sums = [10.0_f32];
        f32::average(&mut sums, 3);
        assert_eq!(sums, [10.0 * (1.0 / 3.0_f32)]);
    }

    #[test]
    fn results_are_of_the_type_of_inputs_or_of_computing() {
        use DType::*;
        let all = [F32, F64, Bf16, F16, I32, I64, U32, U64, U8];
        let given =
            |input| all.into_iter().filter(move |&r| can_give(input, r)).collect::<Vec<_>>();
        assert_eq!((given(F32), given(F64)), (vec![F32], vec![F64]));
        assert_eq!((given(Bf16), given(F16)), (vec![F32, Bf16], vec![F32, F16]));
        assert_eq!((given(I32), given(I64), given(U8)), (vec![I32], vec![I64], vec![U8]));
        assert_eq!((given(U32), given(U64)), (vec![], vec![]));
        let ends = |input| all.into_iter().filter(move |&r| can_end(input, r)).collect::<Vec<_>>();
        assert_eq!((ends(F32), ends(F64)), (vec![F32, Bf16, F16], vec![F64]));
        assert_eq!((ends(Bf16), ends(U8)), (vec![F32, Bf16], vec![U8]));
    }
}
