//! States of a run: their names, shapes and element types, who writes them, and the choice of a
//! load where a checkpoint lacks one.
//!
//! Engines and optimizers declare states; saving, loading, the memory of a checkpoint and the
//! proof that one is whole derive from the declarations.

use crate::normal::{mix, normals};
use crate::{Dtype, Region};

/// The slot of parameters themselves.
pub const PARAM: &str = "param";

/// One state tensor in the logical space of its parameter: the parameter itself, a moment of the
/// optimizer, a bias that balances experts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateDecl {
    /// Name in the published checkpoint of the parameter or buffer that it belongs to.
    pub name: String,
    /// Kind of state, a word of the checkpoint format: `param`, `momentum`, `router_bias`, …
    pub slot: &'static str,
    /// Extent per axis of the whole, however ranks share it.
    pub shape: Vec<usize>,
    pub dtype: Dtype,
    pub sharing: Sharing,
    pub absent: Absent,
}

/// Distribution of a state over the ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// Every rank holds all of it, with equal bits; each part is written by one of them.
    Replicated,
    /// Each rank keeps the boxes that go with its pieces of parameter `tensor` of the schema, and
    /// writes them where no other rank holds them, too.
    Owned { tensor: usize },
}

/// Beginning of a state that a checkpoint does not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Absent {
    /// None: the load is refused.
    Refuse,
    /// Zero.
    Zero,
    /// As in a new run: normal deviates, a function of (seed, name and slot, element).
    Initial,
}

impl StateDecl {
    /// A state of f32 elements.
    pub fn f32(name: &str, slot: &'static str, shape: &[usize], sharing: Sharing) -> StateDecl {
        let (name, shape) = (name.to_owned(), shape.to_vec());
        StateDecl { name, slot, shape, dtype: Dtype::F32, sharing, absent: Absent::Zero }
    }

    /// The same, with another beginning where a checkpoint lacks it.
    #[must_use]
    pub fn absent(self, absent: Absent) -> StateDecl {
        StateDecl { absent, ..self }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// True for a state of no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes in a checkpoint.
    pub fn bytes(&self) -> u64 {
        (self.len() * self.dtype.size_bytes()) as u64
    }

    /// The beginning of rows `rows` of the first axis in a run with this seed.
    pub fn initial(&self, seed: u64, rows: std::ops::Range<usize>) -> Vec<f32> {
        let row_len: usize = self.shape.iter().skip(1).product();
        let (start, end) = (rows.start * row_len, rows.end * row_len);
        if self.absent != Absent::Initial {
            return vec![0.0; end - start];
        }
        let digest = blake3::hash(format!("{}\0{}", self.name, self.slot).as_bytes());
        let word = digest.as_bytes().first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let key = mix(seed ^ word);
        let element = |index: usize| {
            let (even, odd) = normals(key, index as u64 / 2);
            (if index.is_multiple_of(2) { even } else { odd }) as f32
        };
        (start..end).map(element).collect()
    }

    /// The box of rows `rows` of the first axis.
    pub fn rows(&self, rows: std::ops::Range<usize>) -> Region {
        let mut region = Region::whole(&self.shape);
        if let (Some(offset), Some(extent)) = (region.offset.first_mut(), region.shape.first_mut())
        {
            (*offset, *extent) = (rows.start, rows.len());
        }
        region
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beginning_depends_on_seed_name_and_slot_and_not_on_the_rows_asked_for() {
        let owned = Sharing::Owned { tensor: 0 };
        let state =
            |name: &str, slot| StateDecl::f32(name, slot, &[6, 3], owned).absent(Absent::Initial);
        let whole = state("w", "basis").initial(7, 0..6);
        assert_eq!(whole[6..15], state("w", "basis").initial(7, 2..5));
        assert!(whole.iter().all(|x| x.is_finite() && *x != 0.0));
        for other in [state("v", "basis"), state("w", "other")] {
            assert_ne!(whole, other.initial(7, 0..6));
        }
        assert_ne!(whole, state("w", "basis").initial(8, 0..6));
        assert_eq!(state("w", "basis").absent(Absent::Zero).initial(7, 1..3), [0.0; 6]);
    }

    #[test]
    fn rows_are_a_box_of_any_shape() {
        let state = |shape| StateDecl::f32("w", PARAM, shape, Sharing::Owned { tensor: 0 });
        assert_eq!(state(&[6, 3]).rows(2..5), Region::new(&[2, 0], &[3, 3]));
        assert_eq!(state(&[6]).rows(2..5), Region::new(&[2], &[3]));
        assert_eq!(state(&[]).rows(0..1), Region::whole(&[]));
        assert_eq!((state(&[6, 3]).bytes(), state(&[]).bytes(), state(&[0]).bytes()), (72, 4, 0));
    }
}
