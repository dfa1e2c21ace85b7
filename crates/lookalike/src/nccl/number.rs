//! Elements of all types, and what a reduction makes of them.
//!
//! Floating-point elements are reduced in f64, in the order of ranks, and rounded once; integers
//! wrap around, as they do on a device.

use half::{bf16, f16};

/// Types by the numbers of `ncclDataType_t`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DataType(pub(crate) u8);

const NAMES: [(&str, usize); 12] = [
    ("i8", 1),
    ("u8", 1),
    ("i32", 4),
    ("u32", 4),
    ("i64", 8),
    ("u64", 8),
    ("f16", 2),
    ("f32", 4),
    ("f64", 8),
    ("bf16", 2),
    ("f8e4m3", 1),
    ("f8e5m2", 1),
];

/// Reductions by the numbers of `ncclRedOp_t`; all that were made have one number here.
pub(crate) mod op {
    #[cfg(test)]
    pub const SUM: u8 = 0;
    pub const PROD: u8 = 1;
    pub const MAX: u8 = 2;
    pub const MIN: u8 = 3;
    pub const AVG: u8 = 4;
    pub const PRE_MUL_SUM: u8 = 5;
    pub const NAMES: [&str; 6] = ["sum", "prod", "max", "min", "avg", "premul sum"];
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Number {
    Int(i128),
    Float(f64),
}

impl DataType {
    pub(crate) fn of(number: i32) -> Option<DataType> {
        u8::try_from(number).ok().filter(|&n| usize::from(n) < NAMES.len()).map(DataType)
    }

    pub(crate) fn is_f8(self) -> bool {
        self.0 >= 10
    }

    pub(crate) fn name(self) -> &'static str {
        NAMES[usize::from(self.0)].0
    }

    pub(crate) fn bytes(self) -> usize {
        NAMES[usize::from(self.0)].1
    }

    /// The number that an element's bytes stand for.
    fn read(self, bytes: &[u8]) -> Number {
        macro_rules! of {
            ($type:ty) => {
                <$type>::from_ne_bytes(bytes.try_into().expect("as many as an element has"))
            };
        }
        match self.0 {
            0 => Number::Int(of!(i8).into()),
            1 => Number::Int(of!(u8).into()),
            2 => Number::Int(of!(i32).into()),
            3 => Number::Int(of!(u32).into()),
            4 => Number::Int(of!(i64).into()),
            5 => Number::Int(of!(u64).into()),
            6 => Number::Float(of!(f16).into()),
            7 => Number::Float(of!(f32).into()),
            8 => Number::Float(of!(f64)),
            9 => Number::Float(of!(bf16).into()),
            10 => Number::Float(f8(bytes[0], 4)),
            _ => Number::Float(f8(bytes[0], 5)),
        }
    }

    /// Appends the element that is nearest to a number; integers wrap around.
    fn write(self, number: Number, to: &mut Vec<u8>) {
        match number {
            // The low bytes of a wider integer are the wrapped one.
            Number::Int(value) => to.extend(&value.to_le_bytes()[..self.bytes()]),
            Number::Float(value) => match self.0 {
                6 => to.extend(f16::from_f64(value).to_ne_bytes()),
                7 => to.extend((value as f32).to_ne_bytes()),
                8 => to.extend(value.to_ne_bytes()),
                9 => to.extend(bf16::from_f64(value).to_ne_bytes()),
                10 => to.push(nearest_f8(value, 4)),
                _ => to.push(nearest_f8(value, 5)),
            },
        }
    }

    /// As it would be after being stored.
    fn wrapped(self, number: Number) -> Number {
        match number {
            Number::Float(_) => number,
            Number::Int(_) => {
                let mut bytes = Vec::with_capacity(16);
                self.write(number, &mut bytes);
                self.read(&bytes)
            }
        }
    }
}

/// One rank's elements and, for a reduction that was made, its factor.
pub(crate) struct Part<'a> {
    pub(crate) elements: &'a [u8],
    pub(crate) factor: &'a [u8],
}

/// Reduces equally long parts, in their order.
pub(crate) fn reduce(dtype: DataType, op: u8, parts: &[Part<'_>]) -> Vec<u8> {
    let bytes = dtype.bytes();
    let len = parts.first().map_or(0, |part| part.elements.len());
    let mut to = Vec::with_capacity(len);
    for at in (0..len).step_by(bytes) {
        let element = |part: &Part<'_>| {
            let own = dtype.read(&part.elements[at..at + bytes]);
            match op {
                op::PRE_MUL_SUM => combine(op::PROD, own, dtype.read(&part.factor[..bytes])),
                _ => own,
            }
        };
        let all = parts.iter().map(|part| dtype.wrapped(element(part)));
        let reduced = all.reduce(|a, b| dtype.wrapped(combine(op, a, b)));
        let reduced = reduced.unwrap_or(Number::Int(0));
        let whole = match (op, reduced) {
            (op::AVG, Number::Int(sum)) => Number::Int(sum / parts.len() as i128),
            (op::AVG, Number::Float(sum)) => Number::Float(sum / parts.len() as f64),
            (_, reduced) => reduced,
        };
        dtype.write(whole, &mut to);
    }
    to
}

fn combine(op: u8, a: Number, b: Number) -> Number {
    match (a, b) {
        (Number::Int(a), Number::Int(b)) => Number::Int(match op {
            op::PROD => a.wrapping_mul(b),
            op::MAX => a.max(b),
            op::MIN => a.min(b),
            _ => a.wrapping_add(b),
        }),
        (Number::Float(a), Number::Float(b)) => Number::Float(match op {
            op::PROD => a * b,
            op::MAX => a.max(b),
            op::MIN => a.min(b),
            _ => a + b,
        }),
        _ => unreachable!("both are of one type"),
    }
}

/// An 8-bit float with `exponent` bits of exponent; the one with 4 has no infinities (OCP 8-bit
/// Floating Point Specification, revision 1.0).
fn f8(bits: u8, exponent: i32) -> f64 {
    let mantissa = 7 - exponent;
    let sign = if bits & 0x80 == 0 { 1.0 } else { -1.0 };
    let (power, fraction) = (i32::from(bits & 0x7f) >> mantissa, bits & ((1 << mantissa) - 1));
    let bias = (1 << (exponent - 1)) - 1;
    let fraction = f64::from(fraction) / f64::from(1 << mantissa);
    let value = match power {
        0 => fraction * 2_f64.powi(1 - bias),
        _ if exponent == 4 && bits & 0x7f == 0x7f => f64::NAN,
        31 if exponent == 5 && fraction == 0.0 => f64::INFINITY,
        31 if exponent == 5 => f64::NAN,
        _ => (1.0 + fraction) * 2_f64.powi(power - bias),
    };
    sign * value
}

/// The nearest, the even one of two; what is too large becomes the largest.
fn nearest_f8(value: f64, exponent: i32) -> u8 {
    if value.is_nan() {
        return 0x7f;
    }
    let sign = if value.is_sign_negative() { 0x80 } else { 0 };
    let distance = |bits: &u8| (f8(*bits, exponent) - value.abs()).abs();
    let finite = (0..0x7f_u8).filter(|&bits| f8(bits, exponent).is_finite());
    let nearest =
        finite.min_by(|a, b| distance(a).total_cmp(&distance(b)).then((a & 1).cmp(&(b & 1))));
    sign | nearest.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reduced<T: Copy>(dtype: u8, op: u8, parts: &[Vec<u8>], read: fn(&[u8]) -> T) -> T {
        let parts: Vec<Part<'_>> =
            parts.iter().map(|elements| Part { elements, factor: &[0; 8] }).collect();
        read(&reduce(DataType(dtype), op, &parts))
    }

    #[test]
    fn eight_bit_floats_are_those_of_the_specification() {
        assert_eq!(
            (f8(0x7e, 4), f8(0x08, 4), f8(0x01, 4)),
            (448.0, 2_f64.powi(-6), 2_f64.powi(-9))
        );
        assert_eq!((f8(0x7b, 5), f8(0x7c, 5)), (57_344.0, f64::INFINITY));
        assert_eq!(f8(0xc0, 4), -2.0);
        for exponent in [4, 5] {
            for bits in (0..=0xff_u8).filter(|&bits| f8(bits, exponent).is_finite()) {
                assert_eq!(nearest_f8(f8(bits, exponent), exponent), bits, "{bits:#x}");
            }
        }
        assert_eq!(nearest_f8(1e9, 4), 0x7e);
        assert_eq!(f8(nearest_f8(17.0, 4), 4), 16.0, "of 16 and 18 the even one");
    }

    #[test]
    fn five_bits_of_exponent_are_the_upper_half_of_an_f16() {
        for bits in 0..=0xff_u8 {
            let wide = f64::from(f16::from_bits(u16::from(bits) << 8));
            let own = f8(bits, 5);
            assert!(wide == own || wide.is_nan() && own.is_nan(), "{bits:#x}");
        }
    }

    #[test]
    fn integers_wrap_and_averages_are_of_the_wrapped_sum() {
        let int = |value: i8| value.to_ne_bytes().to_vec();
        let parts = [int(100), int(100)];
        let read = |bytes: &[u8]| bytes[0].cast_signed();
        assert_eq!(reduced(0, op::SUM, &parts, read), -56);
        assert_eq!(reduced(0, op::AVG, &parts, read), -28);
        assert_eq!(reduced(0, op::MIN, &[int(-3), int(2)], read), -3);
    }
}
