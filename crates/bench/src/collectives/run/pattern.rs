//! Contents that say who wrote what: small whole numbers, of which every sum is exact in every type
//! and order, so that one wrong bit shows.
//!
//! Element `i` of what rank `r` gives in launch `s` is `(i + 13 r + s) mod 31`. So whatever is a sum
//! or a copy of such elements repeats after 31 of them, and is written and compared as bytes.

use half::{bf16, f16};

use super::super::ElementType;

/// A prime, so that parts and ranks do not fall together.
pub const PERIOD: usize = 31;
/// Periods that are written and compared at a time.
const TIMES: usize = 66;

/// What element `index` of what `rank` gives in launch `salt` is.
pub fn value(rank: usize, index: usize, salt: u64) -> u32 {
    let salt = (salt % PERIOD as u64) as usize;
    ((index % PERIOD + 13 * rank + salt) % PERIOD) as u32
}

/// Elements that repeat after [`PERIOD`].
pub struct Pattern {
    bytes: Vec<u8>,
    element_bytes: usize,
}

impl Pattern {
    /// Element `i` is `of(i)`.
    pub fn new(dtype: ElementType, of: impl Fn(usize) -> u32) -> Pattern {
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
fn encode(dtype: ElementType, value: u32) -> Vec<u8> {
    match dtype {
        ElementType::F32 => (value as f32).to_le_bytes().to_vec(),
        ElementType::F64 => f64::from(value).to_le_bytes().to_vec(),
        ElementType::Bf16 => bf16::from_f32(value as f32).to_le_bytes().to_vec(),
        ElementType::F16 => f16::from_f32(value as f32).to_le_bytes().to_vec(),
        _ => u64::from(value).to_le_bytes()[..dtype.bytes() as usize].to_vec(),
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
            let pattern = Pattern::new(dtype, |index| value(1, index, salt));
            let mut bytes = vec![0xFF; len * size];
            pattern.write(start, &mut bytes);
            let element = |index| encode(dtype, value(1, start + index, salt));
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
            let text = decode(dtype, &encode(dtype, 30));
            assert!(text == "30" || text == "30.0", "{dtype:?}: {text}");
        }
    }
}
