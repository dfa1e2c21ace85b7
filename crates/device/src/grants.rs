//! Which memory the running kernels of a host device have been given: the borrow checker between
//! kernels.
//!
//! Invariant: of two ranges that overlap and are granted at the same time, none is writable. So
//! the slices of kernels are sound by construction, whatever order the streams have.

use crate::sync::Mutex;

/// Most memory ranges that one kernel may ask for.
pub(crate) const GRANTS: usize = 32;

/// Kernels that run at once without an allocation.
const KERNELS: usize = 8;

/// Bytes from `start` up to `end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) start: usize,
    pub(crate) end: usize,
    pub(crate) writes: bool,
}

impl Range {
    const NONE: Range = Range { start: 0, end: 0, writes: false };

    fn conflicts(&self, other: &Range) -> bool {
        (self.writes || other.writes) && self.start < other.end && other.start < self.end
    }
}

/// Why a range is not granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Denied {
    /// The kernel itself has it.
    Own,
    /// This kernel, which runs at the same time, has it.
    Other(&'static str),
    /// More than [`GRANTS`].
    Full,
}

/// A running kernel's entry; the last range of a free one is empty.
struct Entry {
    kernel: &'static str,
    count: usize,
    ranges: [Range; GRANTS],
}

/// The grants of a device.
pub(crate) struct Grants {
    entries: Mutex<Vec<Entry>>,
}

impl Grants {
    pub(crate) fn new() -> Grants {
        Grants { entries: Mutex::new(Vec::with_capacity(KERNELS)) }
    }

    /// Grants `range`, which is not empty, to `kernel`, whose entry is `own` from its second range
    /// on; returns the entry.
    pub(crate) fn claim(
        &self,
        own: Option<usize>,
        kernel: &'static str,
        range: Range,
    ) -> Result<usize, Denied> {
        let mut entries = self.lock();
        for (index, entry) in entries.iter().enumerate() {
            if entry.ranges[..entry.count].iter().any(|held| held.conflicts(&range)) {
                let is_own = own == Some(index);
                return Err(if is_own { Denied::Own } else { Denied::Other(entry.kernel) });
            }
        }
        let free = || entries.iter().position(|entry| entry.count == 0);
        let index = own.or_else(free).unwrap_or(entries.len());
        if index == entries.len() {
            entries.push(Entry { kernel, count: 0, ranges: [Range::NONE; GRANTS] });
        }
        let entry = &mut entries[index];
        if entry.count == GRANTS {
            return Err(Denied::Full);
        }
        entry.kernel = kernel;
        entry.ranges[entry.count] = range;
        entry.count += 1;
        Ok(index)
    }

    /// Takes back what the entry was granted.
    pub(crate) fn release(&self, own: usize) {
        self.lock()[own].count = 0;
    }

    /// Memory that is freed: no slice of it is left, though its kernel may not have ended.
    pub(crate) fn forget(&self, start: usize, end: usize) {
        for entry in self.lock().iter_mut() {
            let ranges = entry.ranges[..entry.count].iter_mut();
            ranges.filter(|held| start <= held.start && held.end <= end).for_each(|held| {
                *held = Range::NONE;
            });
        }
    }

    fn lock(&self) -> impl std::ops::DerefMut<Target = Vec<Entry>> {
        // Every change is one assignment away from the next whole state.
        self.entries.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: usize, end: usize, writes: bool) -> Range {
        Range { start, end, writes }
    }

    #[test]
    fn kernels_share_what_they_read_and_nothing_that_one_writes() {
        let grants = Grants::new();
        let a = grants.claim(None, "a", range(0, 8, false)).unwrap();
        let b = grants.claim(None, "b", range(4, 12, false)).unwrap();
        assert_ne!(a, b);
        assert_eq!(grants.claim(Some(b), "b", range(9, 10, true)), Err(Denied::Own));
        assert_eq!(grants.claim(None, "c", range(11, 20, true)), Err(Denied::Other("b")));
        assert_eq!(grants.claim(Some(a), "a", range(12, 16, true)), Ok(a));
        assert_eq!(grants.claim(None, "c", range(15, 20, false)), Err(Denied::Other("a")));
        grants.release(a);
        let c = grants.claim(None, "c", range(12, 20, true)).unwrap();
        assert_eq!(c, a, "an entry is used again");
        for start in 0..GRANTS - 1 {
            grants.claim(Some(c), "c", range(100 + start, 101 + start, true)).unwrap();
        }
        assert_eq!(grants.claim(Some(c), "c", range(99, 100, false)), Err(Denied::Full));
        grants.forget(12, 20);
        assert_eq!(grants.claim(Some(b), "b", range(12, 20, true)), Ok(b), "freed, and new");
    }
}
