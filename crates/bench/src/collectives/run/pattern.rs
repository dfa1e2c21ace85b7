//! Contents that say who wrote what: small whole numbers, of which every reduction is known to the
//! bit in every type, so that one wrong bit shows. Nothing wraps, and nothing is a NaN.
//!
//! Element `i` of what rank `r` gives in launch `s` is made of `(i + 13 r + s) mod 31`. So whatever
//! is a reduction or a copy of such elements repeats after 31 of them, and is written and compared
//! as bytes.
//!
//! ```text
//! given                                       result
//! sum, min, max   that number, below a bound  exact
//!                 for whole bytes             (a 16-bit sum is rounded once)
//! prod            2, 3 or 1                   of 31 ranks one gives 2 and one 3: 6 at most
//! avg             as the sum                  the sum times 1/n, rounded; over n for integers
//! ```

use half::{bf16, f16};

use super::super::{ElementType, RedOp};

/// A prime, so that parts and ranks do not fall together.
pub(crate) const PERIOD: usize = 31;
/// Periods that are written and compared at a time.
const TIMES: usize = 66;

/// The inputs of `ranks` ranks in launch `salt`, and their result.
#[derive(Clone, Copy)]
pub(crate) struct Contents {
    pub dtype: ElementType,
    /// `None` for what is only moved.
    pub redop: Option<RedOp>,
    pub ranks: usize,
    pub salt: u64,
}

impl Contents {
    /// Element `index` of what `rank` gives.
    pub fn given(&self, rank: usize, index: usize) -> u32 {
        let salt = (self.salt % PERIOD as u64) as usize;
        let number = ((index % PERIOD + 13 * rank + salt) % PERIOD) as u32;
        match self.redop {
            Some(RedOp::Prod) if rank < PERIOD => [2, 3].get(number as usize).copied().unwrap_or(1),
            Some(RedOp::Prod) => 1,
            // So that sums of all ranks stay below 256, of 127 ranks and fewer.
            Some(RedOp::Sum | RedOp::Avg) if self.dtype.bytes() == 1 => {
                number % (255 / self.ranks.max(1) as u32 + 1).max(2)
            }
            _ => number,
        }
    }

    /// Element `index` of the result of all.
    pub fn reduced(&self, index: usize) -> f64 {
        let all = (0..self.ranks).map(|rank| self.given(rank, index));
        let sum = || f64::from(all.clone().sum::<u32>());
        match self.redop {
            Some(RedOp::Prod) => f64::from(all.product::<u32>()),
            Some(RedOp::Min) => f64::from(all.min().unwrap_or(0)),
            Some(RedOp::Max) => f64::from(all.max().unwrap_or(0)),
            Some(RedOp::Avg) => self.average(sum()),
            _ => sum(),
        }
    }

    /// As `kernels::ordered_sum` says.
    fn average(&self, sum: f64) -> f64 {
        let ranks = self.ranks as f64;
        match self.dtype {
            ElementType::F64 => sum * (1.0 / ranks),
            ElementType::F32 | ElementType::F16 | ElementType::Bf16 => {
                f64::from(sum as f32 * (1.0 / ranks) as f32)
            }
            _ => (sum / ranks).trunc(),
        }
    }
}

/// Elements that repeat after [`PERIOD`].
pub struct Pattern {
    bytes: Vec<u8>,
    element_bytes: usize,
}

impl Pattern {
    /// Element `i` is `of(i)`.
    pub fn new(dtype: ElementType, of: impl Fn(usize) -> f64) -> Pattern {
        let period: Vec<u8> = (0..PERIOD).flat_map(|index| encode(dtype, of(index))).collect();
        // One more, so that it can be read from any element on.
        Pattern { bytes: period.repeat(TIMES + 1), element_bytes: dtype.bytes() as usize }
    }

    /// Elements from `start` on, as many as are asked for but at most [`TIMES`] periods.
    fn part(&self, start: usize, bytes: usize) -> &[u8] {
        let at = start % PERIOD * self.element_bytes;
        let most = TIMES * PERIOD * self.element_bytes;
        &self.bytes[at..at + bytes.min(most)]
    }

    /// Fills `to` with elements from `start` on.
    pub fn write(&self, start: usize, to: &mut [u8]) {
        for part in to.chunks_mut(TIMES * PERIOD * self.element_bytes) {
            let len = part.len();
            part.copy_from_slice(self.part(start, len));
        }
    }

    /// How many elements of `got` are not those from `start` on, and the first of them.
    pub fn compare(&self, start: usize, got: &[u8]) -> (u64, Option<usize>) {
        let (mut wrong, mut first) = (0, None);
        let chunk = TIMES * PERIOD * self.element_bytes;
        for (index, part) in got.chunks(chunk).enumerate() {
            let expected = self.part(start, part.len());
            if part == expected {
                continue;
            }
            let pairs = part.chunks(self.element_bytes).zip(expected.chunks(self.element_bytes));
            for (at, _) in pairs.enumerate().filter(|(_, (got, expected))| got != expected) {
                wrong += 1;
                first.get_or_insert(index * TIMES * PERIOD + at);
            }
        }
        (wrong, first)
    }

    /// Element `index`, as a number.
    pub fn text(&self, dtype: ElementType, index: usize) -> String {
        let at = index % PERIOD * self.element_bytes;
        decode(dtype, &self.bytes[at..at + self.element_bytes])
    }
}

/// A number in the bytes of a type; of 8-bit floats the byte itself, since they are only moved.
fn encode(dtype: ElementType, value: f64) -> Vec<u8> {
    match dtype {
        ElementType::F32 => (value as f32).to_le_bytes().to_vec(),
        ElementType::F64 => value.to_le_bytes().to_vec(),
        ElementType::Bf16 => bf16::from_f32(value as f32).to_le_bytes().to_vec(),
        ElementType::F16 => f16::from_f32(value as f32).to_le_bytes().to_vec(),
        _ => (value as u64).to_le_bytes()[..dtype.bytes() as usize].to_vec(),
    }
}

/// An element as a number that tells it from every other.
pub fn decode(dtype: ElementType, bytes: &[u8]) -> String {
    let mut word = [0_u8; 8];
    word[..bytes.len()].copy_from_slice(bytes);
    let bits = u64::from_le_bytes(word);
    match dtype {
        ElementType::F32 => format!("{:?}", f32::from_bits(bits as u32)),
        ElementType::F64 => format!("{:?}", f64::from_bits(bits)),
        ElementType::Bf16 => format!("{:?}", bf16::from_bits(bits as u16)),
        ElementType::F16 => format!("{:?}", f16::from_bits(bits as u16)),
        ElementType::I8 => (bits as i8).to_string(),
        ElementType::I32 => (bits as i32).to_string(),
        ElementType::I64 => (bits as i64).to_string(),
        _ => bits.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_was_written_compares_equal_and_one_bit_shows(
            start in 0_usize..100, len in 1_usize..9000, salt in 0_u64..1000, at in 0_usize..9000,
            kind in 0_usize..ElementType::ALL.len(),
        ) {
            let dtype = ElementType::ALL[kind];
            let size = dtype.bytes() as usize;
            let contents = Contents { dtype, redop: None, ranks: 2, salt };
            let value = |index| f64::from(contents.given(1, index));
            let pattern = Pattern::new(dtype, value);
            let mut bytes = vec![0xFF; len * size];
            pattern.write(start, &mut bytes);
            let element = |index| encode(dtype, value(start + index));
            let expected: Vec<u8> = (0..len).flat_map(element).collect();
            prop_assert_eq!(&bytes, &expected);
            prop_assert_eq!(pattern.compare(start, &bytes), (0, None));
            let at = at % bytes.len();
            bytes[at] ^= 1;
            prop_assert_eq!(pattern.compare(start, &bytes), (1, Some(at / size)));
        }
    }

    #[test]
    fn numbers_of_every_type_are_read_back() {
        for dtype in ElementType::ALL {
            let text = decode(dtype, &encode(dtype, 30.0));
            assert!(text == "30" || text == "30.0", "{dtype:?}: {text}");
        }
    }

    #[test]
    fn results_are_known_and_nothing_wraps() {
        for redop in [RedOp::Sum, RedOp::Prod, RedOp::Min, RedOp::Max, RedOp::Avg] {
            for ranks in [1, 2, 3, 8, 9, 31, 40, 127] {
                let of = |dtype| Contents { dtype, redop: Some(redop), ranks, salt: 5 };
                let all = |dtype| (0..PERIOD).map(move |index| of(dtype).reduced(index));
                let bytes: Vec<f64> = all(ElementType::U8).collect();
                assert!(bytes.iter().all(|x| *x <= 255.0 && x.fract() == 0.0), "{redop} {ranks}");
                // Every reduction tells elements apart.
                assert!(ranks > 9 || bytes.iter().any(|x| x != &bytes[0]), "{redop} {ranks}");
            }
        }
        let of = |dtype, redop| Contents { dtype, redop: Some(redop), ranks: 3, salt: 0 };
        // 1, 14 and 27.
        let [sum, least, most] = [RedOp::Sum, RedOp::Min, RedOp::Max];
        let at = |redop| of(ElementType::F32, redop).reduced(1);
        assert_eq!([at(sum), at(least), at(most), at(RedOp::Prod)], [42.0, 1.0, 27.0, 3.0]);
        assert_eq!(of(ElementType::I32, RedOp::Avg).reduced(2), 15.0);
        assert_eq!(at(RedOp::Avg), f64::from(42.0 * (1.0 / 3.0_f32)));
    }
}
