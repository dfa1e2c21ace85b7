//! The bytes of an object on their way into parts of one length.
//!
//! ```text
//! put at any place ─▶ part 0 ▓▓▓▓▓▓▓▓ whole: given out, and never written again
//!                     part 1 ▓▓░░▓░░░ waits for the rest
//! ```
//! Pure: nothing is sent here. What nobody has written is zero at the end, as in a file.

use std::collections::{BTreeMap, HashSet};

use super::error::ObjectError;

/// A part whose bytes are all there.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Whole {
    pub number: usize,
    pub bytes: Vec<u8>,
}

/// Parts that have begun.
pub(super) struct Parts {
    part_bytes: usize,
    begun: BTreeMap<usize, Part>,
    given: HashSet<usize>,
    /// One past the last byte written.
    end: u64,
}

struct Part {
    bytes: Vec<u8>,
    /// Runs of bytes that are there: first byte and one past the last, none touching another.
    runs: BTreeMap<usize, usize>,
}

impl Part {
    fn new(bytes: usize) -> Part {
        Part { bytes: vec![0; bytes], runs: BTreeMap::new() }
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        let (mut start, mut end) = (at, at + bytes.len());
        // Runs that touch become one with it.
        while let Some((&before, &until)) = self.runs.range(..=end).next_back()
            && until >= start
        {
            self.runs.remove(&before);
            (start, end) = (start.min(before), end.max(until));
        }
        self.runs.insert(start, end);
    }

    fn is_whole(&self) -> bool {
        self.runs.get(&0) == Some(&self.bytes.len())
    }
}

impl Parts {
    pub(super) fn new(part_bytes: usize) -> Parts {
        Parts { part_bytes, begun: BTreeMap::new(), given: HashSet::new(), end: 0 }
    }

    /// One past the last byte that was written.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// Takes some first bytes of `bytes`, within one part, and says how many; gives out that part
    /// if it is whole now.
    ///
    /// # Errors
    /// The part has been given out.
    pub(super) fn put(
        &mut self,
        bytes: &[u8],
        offset: u64,
    ) -> Result<(usize, Option<Whole>), ObjectError> {
        let part_bytes = self.part_bytes as u64;
        let (number, at) = ((offset / part_bytes) as usize, (offset % part_bytes) as usize);
        let count = bytes.len().min(self.part_bytes - at);
        if count == 0 {
            return Ok((0, None));
        }
        let end = offset + count as u64;
        if self.given.contains(&number) {
            return Err(ObjectError::Rewritten { start: offset, end });
        }
        let part = self.begun.entry(number).or_insert_with(|| Part::new(self.part_bytes));
        part.put(at, &bytes[..count]);
        let is_whole = part.is_whole();
        self.end = self.end.max(end);
        let whole = if is_whole { self.begun.remove(&number) } else { None };
        Ok((
            count,
            whole.map(|part| {
                self.given.insert(number);
                Whole { number, bytes: part.bytes }
            }),
        ))
    }

    /// Parts of the whole object, as many as have begun or lie before one that has.
    pub(super) fn count(&self) -> usize {
        self.end.div_ceil(self.part_bytes as u64) as usize
    }

    /// The next part that was not given out, although not all of it was written; none once all
    /// were.
    pub(super) fn next_left(&mut self) -> Option<Whole> {
        let number = (0..self.count()).find(|number| !self.given.contains(number))?;
        let begun = self.begun.remove(&number);
        let mut part = begun.unwrap_or_else(|| Part::new(self.part_bytes));
        let left = self.end - (number * self.part_bytes) as u64;
        part.bytes.truncate(left.min(self.part_bytes as u64) as usize);
        self.given.insert(number);
        Some(Whole { number, bytes: part.bytes })
    }

    /// True where no part was given out, and all that was written fits into one.
    pub(super) fn is_single(&self) -> bool {
        self.given.is_empty() && self.count() <= 1
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The object that the parts make.
    fn joined(mut parts: Parts, mut given: Vec<Whole>) -> Vec<u8> {
        while let Some(whole) = parts.next_left() {
            given.push(whole);
        }
        given.sort_by_key(|whole| whole.number);
        assert!(given.iter().enumerate().all(|(number, whole)| whole.number == number));
        given.into_iter().flat_map(|whole| whole.bytes).collect()
    }

    proptest! {
        #[test]
        fn writes_in_any_order_give_the_bytes_of_a_file(
            part_bytes in 1_usize..40,
            length in 0_usize..300,
            cuts in proptest::collection::btree_set(1_usize..300, 0..12),
            left_out in any::<u16>(),
            order in any::<u64>(),
        ) {
            let data: Vec<u8> = (0..length).map(|i| (i * 31 % 251) as u8 | 1).collect();
            let inner = cuts.into_iter().filter(|cut| *cut < length);
            let ends: Vec<usize> = [0].into_iter().chain(inner).chain([length]).collect();
            let pieces = ends.windows(2).enumerate();
            let mut pieces: Vec<(usize, usize)> = pieces
                .filter(|(number, _)| left_out & (1 << (number % 16)) == 0)
                .map(|(_, pair)| (pair[0], pair[1]))
                .collect();
            pieces.sort_by_key(|(start, _)| (*start as u64 ^ order).wrapping_mul(0x9e37_79b9));
            let (mut parts, mut given) = (Parts::new(part_bytes), Vec::new());
            let mut file = vec![0; pieces.iter().map(|(_, end)| *end).max().unwrap_or(0)];
            for (start, end) in pieces {
                file[start..end].copy_from_slice(&data[start..end]);
                let mut at = start;
                while at < end {
                    let (count, whole) = parts.put(&data[at..end], at as u64).unwrap();
                    at += count;
                    given.extend(whole);
                }
            }
            prop_assert_eq!(parts.end(), file.len() as u64);
            prop_assert_eq!(joined(parts, given), file);
        }

        #[test]
        fn a_part_is_given_out_when_its_last_byte_comes(
            order in proptest::sample::subsequence((0_usize..16).collect::<Vec<_>>(), 16),
            twice in 0_usize..16,
        ) {
            let mut parts = Parts::new(16);
            prop_assert!(parts.put(&[9], twice as u64).unwrap().1.is_none());
            let mut seen = vec![twice];
            for at in order.into_iter().rev() {
                if !seen.contains(&at) {
                    seen.push(at);
                }
                let whole = match parts.put(&[at as u8], at as u64) {
                    Ok((_, whole)) => whole,
                    // Its last byte was the one that had been written before.
                    Err(_) => break,
                };
                prop_assert_eq!(whole.is_some(), seen.len() == 16);
            }
        }
    }

    #[test]
    fn what_is_on_its_way_is_not_written_again() {
        let mut parts = Parts::new(4);
        assert!(parts.put(&[1; 4], 0).unwrap().1.is_some());
        assert!(matches!(parts.put(&[1], 2), Err(ObjectError::Rewritten { start: 2, end: 3 })));
        assert!(!parts.is_single());
        assert_eq!(parts.next_left(), None);
    }
}
