//! Matrices of FP8 (e4m3) with an f32 factor for each block of them, as DeepSeek-V3 publishes them:
//! `weight` and `weight_scale_inv`.
//!
//! ```text
//! read     value = code · factor of its block, as f32
//! written  factor = largest magnitude of the block / 448,  code = value / factor, to nearest
//! ```
//! Both directions stream: whoever writes holds as many rows as a block has.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use layout::Dtype;

use crate::{Elements, Error};

/// Rows and columns of a block that is written: those of all published models.
pub(crate) const BLOCK: usize = 128;

/// The largest number there is; infinities there are none (OCP's e4m3fn).
const LARGEST: f64 = 448.0;

/// The least exponent; numbers below are multiples of its step.
const LEAST_EXPONENT: i32 = -6;

/// FP8 of four exponent and three mantissa bits.
pub(crate) fn e4m3(byte: u8) -> f64 {
    let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f64::from(byte & 7));
    let magnitude = match (exponent, byte & 7) {
        (15, 7) => f64::NAN,
        (0, _) => mantissa / 8.0 * 2.0_f64.powi(-6),
        _ => (1.0 + mantissa / 8.0) * 2.0_f64.powi(exponent - 7),
    };
    if byte & 0x80 == 0 { magnitude } else { -magnitude }
}

/// The code nearest to a number, ties to even; of a number beyond the largest, the largest's.
fn to_e4m3(value: f64) -> u8 {
    let magnitude = value.abs().min(LARGEST);
    let exponent = ((magnitude.to_bits() >> 52) as i32 - 1023).max(LEAST_EXPONENT);
    // Of three bits after the first: 8 to 16 of them, fewer at the least exponent. Sixteen are the
    // next exponent's eight, and that code is the next one.
    let per_one = f64::from_bits(((1023 + 3 - exponent) as u64) << 52);
    let steps = (magnitude * per_one).round_ties_even() as i32;
    let code = ((exponent - LEAST_EXPONENT) * 8 + steps) as u8;
    code | if value.is_sign_negative() { 0x80 } else { 0 }
}

/// The factor of a block whose largest magnitude this is. One of zeros only has 1, as
/// transformers writes it. A normal number, so that none of a block is beyond the largest code.
fn factor(largest: f32) -> f32 {
    match largest {
        0.0 => 1.0,
        largest => ((f64::from(largest) / LARGEST) as f32).max(f32::MIN_POSITIVE),
    }
}

/// The factors of the blocks of a band: of at most [`BLOCK`] rows of so many columns.
fn factors(band: &[f32], columns: usize) -> Vec<f32> {
    let mut largest = vec![0.0_f32; columns.div_ceil(BLOCK)];
    for row in band.chunks_exact(columns) {
        for (most, part) in largest.iter_mut().zip(row.chunks(BLOCK)) {
            *most = part.iter().fold(*most, |most, value| most.max(value.abs()));
        }
    }
    largest.into_iter().map(factor).collect()
}

/// The codes of a band.
fn codes(band: &[f32], columns: usize, factors: &[f32]) -> Vec<u8> {
    let mut codes = Vec::with_capacity(band.len());
    for row in band.chunks_exact(columns) {
        for (part, factor) in row.chunks(BLOCK).zip(factors) {
            let factor = f64::from(*factor);
            codes.extend(part.iter().map(|value| to_e4m3(f64::from(*value) / factor)));
        }
    }
    codes
}

/// A matrix `[rows, columns]` of f32, read a band of [`BLOCK`] rows at a time.
struct Bands<'a> {
    name: String,
    of: Box<dyn Elements + 'a>,
    columns: usize,
}

impl Bands<'_> {
    /// Rows `first..` of the matrix, as many as a block has or there are.
    ///
    /// # Errors
    /// A value that no factor times a code is: an infinity, or none.
    fn read(&self, first: usize) -> Result<Vec<f32>, Error> {
        let start = first * self.columns;
        let len = (BLOCK * self.columns).min(self.of.len() - start);
        let mut bytes = vec![0; len * 4];
        self.of.read(start, &mut bytes)?;
        let values = bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
        let values: Vec<f32> = values.collect();
        match values.iter().position(|value| !value.is_finite()) {
            None => Ok(values),
            Some(at) => {
                let (name, value) = (self.name.clone(), values[at]);
                let reason = format!(
                    "has {value} at element {}, which FP8 in blocks cannot hold; leave out --fp8",
                    start + at
                );
                Err(Error::Tensor { name, reason })
            }
        }
    }
}

/// Factors of matrices whose codes have been written, until they are written themselves: without
/// them a matrix is read twice.
#[derive(Debug, Default)]
pub(crate) struct Known(Mutex<HashMap<String, Vec<f32>>>);

impl Known {
    fn put(&self, name: &str, factors: Vec<f32>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(name.to_owned(), factors);
    }

    fn take(&self, name: &str) -> Option<Vec<f32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(name)
    }
}

/// The codes of a matrix.
pub(crate) struct Codes<'a> {
    of: Bands<'a>,
    known: &'a Known,
    held: RefCell<Held>,
}

/// A band that has been read.
#[derive(Default)]
struct Held {
    first_row: usize,
    codes: Vec<u8>,
    /// Of all bands so far.
    factors: Vec<f32>,
}

impl<'a> Codes<'a> {
    /// Of a matrix of f32 with so many columns; its factors are left in `known`.
    pub fn new(
        name: String,
        of: Box<dyn Elements + 'a>,
        columns: usize,
        known: &'a Known,
    ) -> Codes<'a> {
        Codes { of: Bands { name, of, columns }, known, held: RefCell::default() }
    }

    fn fill(&self, held: &mut Held, first_row: usize) -> Result<(), Error> {
        let band = self.of.read(first_row)?;
        let own = factors(&band, self.of.columns);
        held.codes = codes(&band, self.of.columns, &own);
        held.first_row = first_row;
        held.factors.extend(own);
        Ok(())
    }
}

impl Elements for Codes<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F8E4M3
    }

    fn len(&self) -> usize {
        self.of.of.len()
    }

    fn read(&self, start: usize, out: &mut [u8]) -> Result<(), Error> {
        let columns = self.of.columns;
        let mut held = self.held.borrow_mut();
        let (mut at, mut rest) = (start, out);
        while !rest.is_empty() {
            let first = held.first_row * columns;
            if !(first..first + held.codes.len()).contains(&at) {
                self.fill(&mut held, at / columns / BLOCK * BLOCK)?;
                continue;
            }
            let from = at - first;
            let (now, after) = rest.split_at_mut(rest.len().min(held.codes.len() - from));
            now.copy_from_slice(&held.codes[from..from + now.len()]);
            (at, rest) = (at + now.len(), after);
        }
        if at == self.len() {
            let Held { factors, .. } = std::mem::take(&mut *held);
            // Whoever passed over a band knows not all.
            if factors.len() == blocks(self.len(), columns) {
                self.known.put(&self.of.name, factors);
            }
        }
        Ok(())
    }
}

/// Blocks of a matrix of so many elements in so many columns.
fn blocks(len: usize, columns: usize) -> usize {
    (len / columns.max(1)).div_ceil(BLOCK) * columns.div_ceil(BLOCK)
}

/// The factors of a matrix: `[⌈rows/128⌉, ⌈columns/128⌉]`.
pub(crate) struct Factors<'a> {
    of: Bands<'a>,
    known: &'a Known,
    held: RefCell<Vec<f32>>,
}

impl<'a> Factors<'a> {
    /// Of a matrix of f32 with so many columns.
    pub fn new(
        name: String,
        of: Box<dyn Elements + 'a>,
        columns: usize,
        known: &'a Known,
    ) -> Factors<'a> {
        Factors { of: Bands { name, of, columns }, known, held: RefCell::default() }
    }

    fn all(&self) -> Result<Vec<f32>, Error> {
        if let Some(known) = self.known.take(&self.of.name) {
            return Ok(known);
        }
        let rows = self.of.of.len() / self.of.columns.max(1);
        let mut all = Vec::with_capacity(self.len());
        for first in (0..rows).step_by(BLOCK) {
            all.extend(factors(&self.of.read(first)?, self.of.columns));
        }
        Ok(all)
    }
}

impl Elements for Factors<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn len(&self) -> usize {
        blocks(self.of.of.len(), self.of.columns)
    }

    fn read(&self, start: usize, out: &mut [u8]) -> Result<(), Error> {
        let mut held = self.held.borrow_mut();
        if held.is_empty() {
            *held = self.all()?;
        }
        for (out, factor) in out.chunks_exact_mut(4).zip(&held[start..]) {
            out.copy_from_slice(&factor.to_le_bytes());
        }
        Ok(())
    }
}

/// The products of codes and factors, as f32.
pub(crate) struct BlockScaled<'a> {
    of: Box<dyn Elements + 'a>,
    scales: Box<dyn Elements + 'a>,
    columns: usize,
    /// Rows and columns of a block.
    block: [usize; 2],
    /// All factors, `[⌈rows/block⌉, ⌈columns/block⌉]`.
    held: RefCell<Vec<f32>>,
}

impl<'a> BlockScaled<'a> {
    pub fn new(
        of: Box<dyn Elements + 'a>,
        scales: Box<dyn Elements + 'a>,
        columns: usize,
        block: [usize; 2],
    ) -> BlockScaled<'a> {
        BlockScaled { of, scales, columns, block, held: RefCell::default() }
    }
}

impl Elements for BlockScaled<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn len(&self) -> usize {
        self.of.len()
    }

    fn read(&self, start: usize, out: &mut [u8]) -> Result<(), Error> {
        let mut held = self.held.borrow_mut();
        if held.is_empty() {
            let mut bytes = vec![0; self.scales.len() * 4];
            self.scales.read(0, &mut bytes)?;
            *held = bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        }
        let across = self.columns.div_ceil(self.block[1]);
        let mut values = vec![0; out.len() / 4];
        self.of.read(start, &mut values)?;
        for ((out, byte), element) in out.chunks_exact_mut(4).zip(values).zip(start..) {
            let (row, column) = (element / self.columns, element % self.columns);
            let scale = held[row / self.block[0] * across + column / self.block[1]];
            out.copy_from_slice(&(e4m3(byte) as f32 * scale).to_le_bytes());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::convert::tests::{Held as Bytes, f32s, numbers, read};

    #[test]
    fn every_e4m3_value_is_the_published_one() {
        // Extremes and neighbours of OCP's table.
        let known = [
            (0x00, 0.0),
            (0x01, 2.0_f64.powi(-9)),
            (0x07, 7.0 * 2.0_f64.powi(-9)),
            (0x08, 2.0_f64.powi(-6)),
            (0x38, 1.0),
            (0x7e, 448.0),
            (0xfe, -448.0),
            (0xb9, -1.125),
        ];
        assert!(known.iter().all(|&(byte, value)| e4m3(byte) == value));
        assert!(e4m3(0x7f).is_nan() && e4m3(0xff).is_nan());
        assert!((0..0x7e).all(|byte| e4m3(byte) < e4m3(byte + 1)));
    }

    #[test]
    fn codes_are_the_nearest_and_ties_are_even() {
        let codes = (0..=255_u8).filter(|code| code & 0x7f != 0x7f);
        assert!(codes.clone().all(|code| to_e4m3(e4m3(code)) == code));
        for code in (0..0x7e_u8).chain(0x80..0xfe) {
            let [low, high] = [code, code + 1].map(e4m3);
            let middle = (low + high) / 2.0;
            assert_eq!(to_e4m3(middle), if code % 2 == 0 { code } else { code + 1 });
            let near = |part: f64| to_e4m3(low + (high - low) * part);
            assert_eq!([near(0.499), near(0.501)], [code, code + 1]);
        }
        assert_eq!([464.1, 1e30, -449.0].map(to_e4m3), [0x7e, 0x7e, 0xfe]);
        assert_eq!([0.0, -0.0].map(to_e4m3), [0x00, 0x80]);
    }

    #[test]
    fn blocks_have_factors() {
        // 3 by 5 in blocks of 2 by 4: four factors.
        let of = Box::new(Bytes(Dtype::F8E4M3, vec![0x38; 15]));
        let scales = f32s([2.0, 3.0, 5.0, 7.0]);
        let scaled = BlockScaled::new(of, scales, 5, [2, 4]);
        let row = |a, b| [a, a, a, a, b];
        let wanted = [row(2.0, 3.0), row(2.0, 3.0), row(5.0, 7.0)].concat();
        assert_eq!(numbers(&read(&scaled, 4)), wanted);
    }

    /// Codes and factors of a matrix, read in steps; the factors before and after the codes.
    fn written(values: &[f32], columns: usize, step: usize) -> (Vec<u8>, Vec<f32>) {
        let (known, of) = (Known::default(), || f32s(values.iter().copied()));
        let early = Factors::new("w".to_owned(), of(), columns, &known);
        let early = numbers(&read(&early, step));
        let codes = read(&Codes::new("w".to_owned(), of(), columns, &known), step);
        assert_eq!(known.0.lock().unwrap()["w"], early);
        // They are taken from there, and nothing is left.
        let empty = f32s(values.iter().map(|_| f32::NAN));
        let late = numbers(&read(&Factors::new("w".to_owned(), empty, columns, &known), step));
        assert_eq!((late, known.0.lock().unwrap().len()), (early.clone(), 0));
        (codes, early)
    }

    fn products(codes: &[u8], factors: &[f32], columns: usize) -> Vec<f32> {
        let of = Box::new(Bytes(Dtype::F8E4M3, codes.to_vec()));
        let factors = f32s(factors.iter().copied());
        numbers(&read(&BlockScaled::new(of, factors, columns, [BLOCK; 2]), 1000))
    }

    /// Numbers of all magnitudes, of which blocks have a range of their own.
    fn number(seed: u64, block: usize, element: usize) -> f32 {
        let word = |by: u64| layout::normal::mix(seed ^ by);
        let of_block = word(block as u64 + 1) % 250;
        let bits = word(element as u64 + (1 << 40));
        let exponent = (of_block + bits % 24).min(254) as u32;
        f32::from_bits(((bits >> 32) as u32 & 0x807f_ffff) | exponent << 23)
    }

    fn matrix(seed: u64, rows: usize, columns: usize) -> Vec<f32> {
        let across = columns.div_ceil(BLOCK);
        let at = |element: usize| {
            let (row, column) = (element / columns, element % columns);
            number(seed, row / BLOCK * across + column / BLOCK, element)
        };
        (0..rows * columns).map(at).collect()
    }

    /// The distance of neighbours among the numbers of e4m3, at this magnitude.
    fn step(at: f64) -> f64 {
        let exponent = (-6..=8).rev().find(|e| at.abs() >= 2.0_f64.powi(*e)).unwrap_or(-6);
        2.0_f64.powi(exponent - 3)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn values_are_within_half_a_step(
            seed in any::<u64>(), rows in 1_usize..300, columns in 1_usize..300,
            by in 1_usize..40_000,
        ) {
            let values = matrix(seed, rows, columns);
            let (codes, factors) = written(&values, columns, by);
            let across = columns.div_ceil(BLOCK);
            prop_assert_eq!(factors.len(), rows.div_ceil(BLOCK) * across);
            let back = products(&codes, &factors, columns);
            let mut largest = vec![0.0_f64; factors.len()];
            for (element, value) in values.iter().enumerate() {
                let block = element / columns / BLOCK * across + element % columns / BLOCK;
                let (value, factor) = (f64::from(*value), f64::from(factors[block]));
                largest[block] = largest[block].max(value.abs());
                let product = e4m3(codes[element]) * factor;
                let half = step(value / factor) / 2.0 * factor;
                prop_assert!((value - product).abs() <= half, "{value:e}: {product:e}");
                prop_assert_eq!(back[element], product as f32);
            }
            for (factor, largest) in factors.iter().zip(largest) {
                let exact = if largest == 0.0 { 1.0 } else { largest / 448.0 };
                let near = (f64::from(*factor) - exact).abs() <= exact * 2.0_f64.powi(-24);
                prop_assert!(near || *factor == f32::MIN_POSITIVE && exact < f64::from(*factor));
            }
        }

        #[test]
        fn exact_values_keep_every_bit(
            seed in any::<u64>(), rows in 1_usize..200, columns in 1_usize..200,
        ) {
            // Factors are powers of two, and each block has the largest code: products are exact.
            let across = columns.div_ceil(BLOCK);
            let factors: Vec<f32> = (0..rows.div_ceil(BLOCK) * across)
                .map(|block| 2.0_f32.powi((layout::normal::mix(seed ^ block as u64) % 60) as i32))
                .collect();
            let code = |element: usize| {
                let is_corner = (element / columns).is_multiple_of(BLOCK)
                    && (element % columns).is_multiple_of(BLOCK);
                let code = (layout::normal::mix(seed ^ (element as u64) << 20) % 254) as u8;
                if is_corner || code & 0x7f == 0x7f { 0x7e } else { code }
            };
            let codes: Vec<u8> = (0..rows * columns).map(code).collect();
            let values = products(&codes, &factors, columns);
            prop_assert_eq!(written(&values, columns, 777), (codes, factors));
        }
    }

    #[test]
    fn blocks_of_zeros_and_of_the_least_numbers_have_normal_factors() {
        let (codes, factors) = written(&[0.0, -0.0, 0.0], 3, 2);
        assert_eq!((codes, factors), (vec![0x00, 0x80, 0x00], vec![1.0]));
        let least = f32::from_bits(1);
        let (codes, factors) = written(&[least, 1e-37], 2, 2);
        assert_eq!(factors, [f32::MIN_POSITIVE]);
        assert_eq!(codes, [0x00, to_e4m3(1e-37 / f64::from(f32::MIN_POSITIVE))]);
        let (codes, factors) = written(&[f32::MAX, 1.0], 2, 2);
        assert_eq!(products(&codes, &factors, 2)[0], f32::MAX);
    }

    #[test]
    fn infinities_are_refused_by_their_place() {
        let mut values = vec![1.0; BLOCK * 3];
        values[BLOCK * 2 + 1] = f32::NEG_INFINITY;
        let known = Known::default();
        let codes = Codes::new("w".to_owned(), f32s(values), 2, &known);
        let told = codes.read(0, &mut vec![0; BLOCK * 3]).unwrap_err().to_string();
        let wanted = format!("tensor `w`: has -inf at element {}, which FP8", BLOCK * 2 + 1);
        assert!(told.contains(&wanted), "{told}");
    }
}
