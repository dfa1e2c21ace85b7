//! One slice, written by several threads in disjoint parts that no chunking describes.

use std::marker::PhantomData;

/// A mutable slice whose parts are handed out by index; the caller keeps them disjoint.
pub(crate) struct SharedSlice<'a, T> {
    start: *mut T,
    len: usize,
    borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: it is a `&mut [T]` in parts; `T: Send` may be written from another thread.
unsafe impl<T: Send> Send for SharedSlice<'_, T> {}
// SAFETY: `part` is unsafe and obliges its callers to keep parts disjoint.
unsafe impl<T: Send> Sync for SharedSlice<'_, T> {}

impl<'a, T> SharedSlice<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> SharedSlice<'a, T> {
        SharedSlice { start: slice.as_mut_ptr(), len: slice.len(), borrow: PhantomData }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn as_ptr(&self) -> *mut T {
        self.start
    }

    /// Elements `range`.
    ///
    /// # Safety
    /// While the result lives, no other part that overlaps it may be alive.
    #[allow(clippy::mut_from_ref)] // Disjointness is the caller's obligation.
    pub(crate) unsafe fn part(&self, range: std::ops::Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {}", self.len);
        // SAFETY: inside the borrowed slice; disjoint from other parts by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}
