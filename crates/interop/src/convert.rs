//! Elements made of others: rows of several, transposed, of another type.

use std::cell::RefCell;
use std::ops::Range;

use half::{bf16, f16};
use layout::Dtype;

use crate::fp8::e4m3;
use crate::{Elements, Error};

/// How values may be changed.
#[derive(Debug, Clone, Copy)]
pub struct Types {
    /// Of the parameters.
    pub dtype: Dtype,
    /// Whether values may be rounded to it.
    pub may_round: bool,
}

/// Elements `first..first + len` of another tensor.
pub(crate) struct Part<'a> {
    pub of: Box<dyn Elements + 'a>,
    pub first: usize,
    pub len: usize,
}

impl Elements for Part<'_> {
    fn dtype(&self) -> Dtype {
        self.of.dtype()
    }

    fn len(&self) -> usize {
        self.len
    }

    fn read(&self, start: usize, out: &mut [u8]) -> Result<(), Error> {
        self.of.read(self.first + start, out)
    }
}

/// Several, one after another.
pub(crate) struct Joined<'a> {
    pub dtype: Dtype,
    pub parts: Vec<Box<dyn Elements + 'a>>,
}

impl Elements for Joined<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn len(&self) -> usize {
        self.parts.iter().map(|part| part.len()).sum()
    }

    fn read(&self, start: usize, out: &mut [u8]) -> Result<(), Error> {
        let size = self.dtype.size_bytes();
        let (mut skip, mut rest) = (start, out);
        for part in &self.parts {
            if rest.is_empty() {
                break;
            }
            if skip >= part.len() {
                skip -= part.len();
                continue;
            }
            let (now, after) = rest.split_at_mut(rest.len().min((part.len() - skip) * size));
            part.read(skip, now)?;
            (skip, rest) = (0, after);
        }
        Ok(())
    }
}

/// The mean of several, each of as many numbers: summed in f64, in their order.
pub(crate) struct Mean<'a> {
    pub dtype: Dtype,
    pub parts: Vec<Box<dyn Elements + 'a>>,
}

impl Elements for Mean<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn len(&self) -> usize {
        self.parts.first().map_or(0, |part| part.len())
    }

    fn read(&self, start: usize, out: &mut [u8]) -> Result<(), Error> {
        let size = self.dtype.size_bytes();
        let mut sums = vec![0.0; out.len() / size];
        for part in &self.parts {
            part.read(start, out)?;
            for (sum, bytes) in sums.iter_mut().zip(out.chunks_exact(size)) {
                *sum += decode(self.dtype, bytes);
            }
        }
        for (out, sum) in out.chunks_exact_mut(size).zip(sums) {
            encode(self.dtype, sum / self.parts.len() as f64, out);
        }
        Ok(())
    }
}

/// Rows that are read at once for some of their columns.
const ROWS_BYTES: usize = 4 << 20;

/// Some columns of a matrix.
pub(crate) struct Columns<'a> {
    of: Box<dyn Elements + 'a>,
    of_columns: usize,
    columns: Range<usize>,
    /// First row that is held, and whole rows from there on.
    held: RefCell<(usize, Vec<u8>)>,
}

impl<'a> Columns<'a> {
    pub fn new(of: Box<dyn Elements + 'a>, of_columns: usize, columns: Range<usize>) -> Self {
        Columns { of, of_columns, columns, held: RefCell::default() }
    }
}

impl Elements for Columns<'_> {
    fn dtype(&self) -> Dtype {
        self.of.dtype()
    }

    fn len(&self) -> usize {
        self.of.len() / self.of_columns.max(1) * self.columns.len()
    }

    fn read(&self, start: usize, out: &mut [u8]) -> Result<(), Error> {
        let size = self.dtype().size_bytes();
        let row_bytes = self.of_columns * size;
        let rows = self.of.len() / self.of_columns;
        let mut held = self.held.borrow_mut();
        let (mut at, mut rest) = (start, out);
        while !rest.is_empty() {
            let (row, column) = (at / self.columns.len(), at % self.columns.len());
            let (first, bytes) = &mut *held;
            if !(*first..*first + bytes.len() / row_bytes).contains(&row) {
                let count = (ROWS_BYTES / row_bytes).clamp(1, rows - row);
                (*first, *bytes) = (row, vec![0; count * row_bytes]);
                self.of.read(row * self.of_columns, bytes)?;
            }
            let count = (self.columns.len() - column).min(rest.len() / size);
            let (now, after) = rest.split_at_mut(count * size);
            let from = (row - *first) * row_bytes + (self.columns.start + column) * size;
            now.copy_from_slice(&bytes[from..from + count * size]);
            (at, rest) = (at + count, after);
        }
        if at == self.len() {
            *held = (0, Vec::new());
        }
        Ok(())
    }
}

/// A matrix `[rows, columns]` as its transpose. All of it is in memory while it is read.
pub(crate) struct Transposed<'a> {
    pub of: Box<dyn Elements + 'a>,
    /// Of the matrix that is given.
    pub rows: usize,
    pub columns: usize,
    pub held: RefCell<Vec<u8>>,
}

impl<'a> Transposed<'a> {
    pub fn new(of: Box<dyn Elements + 'a>, [rows, columns]: [usize; 2]) -> Transposed<'a> {
        Transposed { of, rows, columns, held: RefCell::default() }
    }
}

impl Elements for Transposed<'_> {
    fn dtype(&self) -> Dtype {
        self.of.dtype()
    }

    fn len(&self) -> usize {
        self.of.len()
    }

    fn read(&self, start: usize, out: &mut [u8]) -> Result<(), Error> {
        let size = self.dtype().size_bytes();
        let mut held = self.held.borrow_mut();
        if held.is_empty() {
            held.resize(self.len() * size, 0);
            self.of.read(0, &mut held)?;
        }
        let end = start + out.len() / size;
        for (to, element) in out.chunks_exact_mut(size).zip(start..) {
            let (column, row) = (element / self.rows, element % self.rows);
            to.copy_from_slice(&held[(row * self.columns + column) * size..][..size]);
        }
        if end == self.len() {
            *held = Vec::new();
        }
        Ok(())
    }
}

/// Numbers as another type of floating point, rounded to the nearest where it is coarser.
pub(crate) struct Cast<'a> {
    name: String,
    of: Box<dyn Elements + 'a>,
    to: Dtype,
    scratch: RefCell<Vec<u8>>,
}

/// Whether every value of a type is one of the other.
pub(crate) fn holds(from: Dtype, to: Dtype) -> bool {
    use Dtype::{Bf16, F8E4M3, F8E5M2, F16, F32, F64};
    from == to
        || match to {
            F64 => matches!(from, F32 | F16 | Bf16 | F8E4M3 | F8E5M2),
            F32 => matches!(from, F16 | Bf16 | F8E4M3 | F8E5M2),
            F16 => matches!(from, F8E4M3 | F8E5M2),
            Bf16 => matches!(from, F8E4M3 | F8E5M2),
            _ => false,
        }
}

/// Types that can be read as numbers, and written from them.
const READ: [Dtype; 6] =
    [Dtype::F64, Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::F8E4M3, Dtype::F8E5M2];
const WRITTEN: [Dtype; 4] = [Dtype::F64, Dtype::F32, Dtype::F16, Dtype::Bf16];

/// `of` as another type.
///
/// # Errors
/// A type that is no number here; values that would be rounded, unless they may be.
pub(crate) fn cast<'a>(
    name: &str,
    of: Box<dyn Elements + 'a>,
    Types { dtype: to, may_round }: Types,
) -> Result<Box<dyn Elements + 'a>, Error> {
    let from = of.dtype();
    if from == to {
        return Ok(of);
    }
    let name = name.to_owned();
    if !READ.contains(&from) || !WRITTEN.contains(&to) {
        let reason = format!("is {from}, which is not turned into {to}");
        return Err(Error::Tensor { name, reason });
    }
    if !holds(from, to) && !may_round {
        return Err(Error::Rounds { name, from, to });
    }
    Ok(Box::new(Cast { name, of, to, scratch: RefCell::default() }))
}

impl Elements for Cast<'_> {
    fn dtype(&self) -> Dtype {
        self.to
    }

    fn len(&self) -> usize {
        self.of.len()
    }

    fn read(&self, start: usize, out: &mut [u8]) -> Result<(), Error> {
        let (from, to) = (self.of.dtype(), self.to);
        let (size, size_to) = (from.size_bytes(), to.size_bytes());
        let mut scratch = self.scratch.borrow_mut();
        scratch.resize(out.len() / size_to * size, 0);
        self.of.read(start, &mut scratch)?;
        let all = out.chunks_exact_mut(size_to).zip(scratch.chunks_exact(size));
        for (element, (out, bytes)) in (start..).zip(all) {
            let value = decode(from, bytes);
            encode(to, value, out);
            if value.is_finite() && !decode(to, out).is_finite() {
                let name = self.name.clone();
                let reason = format!("has {value:e} at element {element}, too large for {to}");
                return Err(Error::Tensor { name, reason });
            }
        }
        if start + out.len() / size_to == self.len() {
            *scratch = Vec::new();
        }
        Ok(())
    }
}

/// A number of a type of [`READ`].
fn decode(dtype: Dtype, bytes: &[u8]) -> f64 {
    let [a, b, c, d] = [0, 1, 2, 3].map(|at| bytes.get(at).copied().unwrap_or(0));
    match dtype {
        Dtype::F64 => f64::from_le_bytes(bytes.try_into().unwrap_or([0; 8])),
        Dtype::F32 => f64::from(f32::from_le_bytes([a, b, c, d])),
        Dtype::F16 => f16::from_le_bytes([a, b]).to_f64(),
        Dtype::Bf16 => bf16::from_le_bytes([a, b]).to_f64(),
        // Its bits are the upper half of an f16's.
        Dtype::F8E5M2 => f16::from_bits(u16::from(a) << 8).to_f64(),
        _ => e4m3(a),
    }
}

/// Writes a number as a type of [`WRITTEN`], rounded to the nearest, ties to even.
fn encode(dtype: Dtype, value: f64, out: &mut [u8]) {
    match dtype {
        Dtype::F64 => out.copy_from_slice(&value.to_le_bytes()),
        Dtype::F32 => out.copy_from_slice(&(value as f32).to_le_bytes()),
        Dtype::F16 => out.copy_from_slice(&f16::from_f32(to_odd(value)).to_le_bytes()),
        _ => out.copy_from_slice(&bf16::from_f32(to_odd(value)).to_le_bytes()),
    }
}

/// The f32 beside a number whose last bit is odd, or the number if it is one. To round that once
/// more, to two bits less or fewer, is to round the number (Boldo & Melquiond 2008).
fn to_odd(value: f64) -> f32 {
    let nearest = value as f32;
    if f64::from(nearest) == value || nearest.is_nan() || value.is_infinite() {
        return nearest;
    }
    let bits = nearest.to_bits();
    // Towards zero, by the magnitude that the lower bits hold.
    let below = if f64::from(nearest).abs() > value.abs() { bits - 1 } else { bits };
    f32::from_bits(below | 1)
}

/// Zeros.
pub(crate) struct Zeros {
    pub dtype: Dtype,
    pub len: usize,
}

impl Elements for Zeros {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn len(&self) -> usize {
        self.len
    }

    fn read(&self, _: usize, out: &mut [u8]) -> Result<(), Error> {
        out.fill(0);
        Ok(())
    }
}

/// Normal deviates of mean 0, f32: a function of key and element.
pub(crate) struct Normal {
    pub key: u64,
    pub std: f64,
    pub len: usize,
}

impl Elements for Normal {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn len(&self) -> usize {
        self.len
    }

    fn read(&self, start: usize, out: &mut [u8]) -> Result<(), Error> {
        for (out, element) in out.chunks_exact_mut(4).zip(start..) {
            let (even, odd) = layout::normal::normals(self.key, element as u64 / 2);
            let deviate = if element.is_multiple_of(2) { even } else { odd };
            out.copy_from_slice(&((self.std * deviate) as f32).to_le_bytes());
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Elements in memory.
    pub struct Held(pub Dtype, pub Vec<u8>);

    impl Elements for Held {
        fn dtype(&self) -> Dtype {
            self.0
        }

        fn len(&self) -> usize {
            self.1.len() / self.0.size_bytes()
        }

        fn read(&self, start: usize, out: &mut [u8]) -> Result<(), Error> {
            let first = start * self.0.size_bytes();
            out.copy_from_slice(&self.1[first..first + out.len()]);
            Ok(())
        }
    }

    pub fn f32s(values: impl IntoIterator<Item = f32>) -> Box<Held> {
        Box::new(Held(Dtype::F32, values.into_iter().flat_map(f32::to_le_bytes).collect()))
    }

    /// Everything, read in steps of so many elements.
    pub fn read(elements: &dyn Elements, step: usize) -> Vec<u8> {
        let size = elements.dtype().size_bytes();
        let mut all = vec![0; elements.len() * size];
        for (number, part) in all.chunks_mut(step * size).enumerate() {
            elements.read(number * step, part).unwrap();
        }
        all
    }

    pub fn numbers(bytes: &[u8]) -> Vec<f32> {
        bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
    }

    fn to(dtype: Dtype, may_round: bool) -> Types {
        Types { dtype, may_round }
    }

    proptest! {
        #[test]
        fn numbers_are_rounded_once(bits in any::<u32>(), low in any::<u32>()) {
            // An f32 is rounded to bf16 by its upper half; an f64 by the distance to both sides.
            let value = f32::from_bits(bits);
            let mut out = [0; 2];
            encode(Dtype::Bf16, f64::from(value), &mut out);
            prop_assert!(value.is_nan() || out == bf16::from_f32(value).to_le_bytes());
            let wide = f64::from_bits(u64::from(bits & 0xbfff_ffff) << 32 | u64::from(low));
            encode(Dtype::Bf16, wide, &mut out);
            let near = bf16::from_le_bytes(out);
            let around = [-1_i32, 1].map(|step| {
                bf16::from_bits((i32::from(near.to_bits()) + step) as u16).to_f64()
            });
            let distance = |to: f64| (to - wide).abs();
            let own = distance(near.to_f64());
            let is_nearest = around.iter().all(|&to| to.is_nan() || distance(to) >= own);
            prop_assert!(is_nearest || !wide.is_finite() || !near.is_finite());
        }
    }

    #[test]
    fn values_too_large_are_refused() {
        let of = || f32s([1.0, 1e6]);
        let told = {
            let narrow = cast("w", of(), to(Dtype::F16, true)).unwrap();
            narrow.read(0, &mut [0; 4]).unwrap_err().to_string()
        };
        assert!(told.contains("1e6 at element 1, too large for F16"), "{told}");
        assert_eq!(to_odd(1e300), f32::MAX);
    }

    #[test]
    fn rounding_is_asked_for() {
        let one = || f32s([1.0 + 2.0_f32.powi(-9), -0.0, f32::INFINITY]);
        let error = cast("w", one(), to(Dtype::Bf16, false)).err().unwrap();
        assert!(matches!(error, Error::Rounds { .. }), "{error}");
        let bytes = read(&*cast("w", one(), to(Dtype::Bf16, true)).unwrap(), 2);
        let wanted = [bf16::ONE, bf16::NEG_ZERO, bf16::INFINITY];
        assert_eq!(bytes, wanted.map(bf16::to_le_bytes).concat());
        let whole = Box::new(Held(Dtype::I64, vec![0; 8]));
        assert!(cast("w", whole, to(Dtype::F32, true)).is_err());
    }

    proptest! {
        #[test]
        fn widening_and_back_keeps_every_bit(bits in any::<u16>(), wide in any::<bool>()) {
            for dtype in [Dtype::F16, Dtype::Bf16] {
                let of = Box::new(Held(dtype, bits.to_le_bytes().to_vec()));
                let through = if wide { Dtype::F64 } else { Dtype::F32 };
                let widened = cast("w", of, to(through, false)).unwrap();
                let back = read(&*cast("w", widened, to(dtype, true)).unwrap(), 1);
                let back = u16::from_le_bytes([back[0], back[1]]);
                let is_nan = decode(dtype, &bits.to_le_bytes()).is_nan();
                prop_assert!(back == bits || is_nan && decode(dtype, &back.to_le_bytes()).is_nan());
            }
        }

        #[test]
        fn a_matrix_transposed_twice_is_itself(
            rows in 1_usize..9, columns in 1_usize..9, step in 1_usize..20,
        ) {
            let values: Vec<f32> = (0..rows * columns).map(|i| i as f32).collect();
            let once = Transposed::new(f32s(values.clone()), [rows, columns]);
            let bytes = read(&once, step);
            let at = |i: usize| values[i % rows * columns + i / rows];
            let wanted: Vec<f32> = (0..values.len()).map(at).collect();
            prop_assert_eq!(numbers(&bytes), wanted);
            let twice = Transposed::new(Box::new(once), [columns, rows]);
            prop_assert_eq!(numbers(&read(&twice, step)), values);
        }

        #[test]
        fn stretches_follow_one_another(
            cuts in proptest::collection::vec((0_usize..5, 0_usize..5), 1..5), step in 1_usize..9,
        ) {
            let of = || f32s((0..10).map(|i| i as f32));
            let part = |&(first, len): &(usize, usize)| -> Box<dyn Elements> {
                Box::new(Part { of: of(), first, len })
            };
            let parts = cuts.iter().map(part).collect();
            let joined = Joined { dtype: Dtype::F32, parts };
            let wanted = cuts.iter().flat_map(|&(first, len)| first..first + len);
            let wanted: Vec<f32> = wanted.map(|i| i as f32).collect();
            prop_assert_eq!(numbers(&read(&joined, step)), wanted);
        }

        #[test]
        fn columns_are_those_of_each_row(
            rows in 1_usize..6, first in 0_usize..4, len in 1_usize..4, step in 1_usize..9,
        ) {
            let of = f32s((0..rows * 7).map(|i| i as f32));
            let columns = Columns::new(of, 7, first..first + len);
            let row = |row: usize| (first..first + len).map(move |c| (row * 7 + c) as f32);
            let wanted: Vec<f32> = (0..rows).flat_map(row).collect();
            prop_assert_eq!(numbers(&read(&columns, step)), wanted);
        }
    }

    #[test]
    fn a_mean_is_of_each_element() {
        let parts: Vec<Box<dyn Elements>> = vec![f32s([1.0, 2.0]), f32s([2.0, -2.0])];
        let mean = Mean { dtype: Dtype::F32, parts };
        assert_eq!(numbers(&read(&mean, 1)), [1.5, 0.0]);
    }
}
