//! Parallel loops over outputs.
//!
//! Each index or chunk is computed by one thread, whole; sums are never split. So results do not
//! depend on the number of threads.

use std::marker::PhantomData;

use crate::DeviceError;
use crate::pool::Pool;

/// The threads of a device: that of the caller and those of a pool.
pub struct Parallel {
    pool: Option<Pool>,
    threads: usize,
}

impl Parallel {
    pub(crate) fn new(threads: usize) -> Result<Parallel, DeviceError> {
        let threads = threads.max(1);
        if threads == 1 {
            return Ok(Parallel { pool: None, threads });
        }
        let pool = Pool::new(threads).map_err(|source| DeviceError::Threads { threads, source })?;
        Ok(Parallel { pool: Some(pool), threads })
    }

    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Calls `body` with each of `0..count`.
    pub fn each(&self, count: usize, body: impl Fn(usize) + Sync + Send) {
        match &self.pool {
            Some(pool) if count > 1 => pool.each(count, &body),
            _ => (0..count).for_each(body),
        }
    }

    /// Calls `body` with the number and contents of each chunk of `len` elements.
    pub fn chunks<T: Send>(
        &self,
        data: &mut [T],
        len: usize,
        body: impl Fn(usize, &mut [T]) + Sync + Send,
    ) {
        let data = Chunks::new(data, len);
        // SAFETY: an index is given to one thread, once.
        self.each(data.count(), |i| body(i, unsafe { data.at(i) }));
    }

    /// As [`Parallel::chunks`] for bodies that do little: a task takes several chunks, about
    /// 8192 elements.
    pub fn rows<T: Send>(
        &self,
        data: &mut [T],
        len: usize,
        body: impl Fn(usize, &mut [T]) + Sync + Send,
    ) {
        let len = len.max(1);
        let rows = (8192 / len).max(1);
        self.chunks(data, rows * len, |task, part| {
            for (i, row) in part.chunks_mut(len).enumerate() {
                body(task * rows + i, row);
            }
        });
    }

    /// As [`Parallel::chunks`] over two outputs at once, with their own chunk lengths; as many as
    /// both have.
    pub fn chunks2<T: Send, U: Send>(
        &self,
        (first, first_len): (&mut [T], usize),
        (second, second_len): (&mut [U], usize),
        body: impl Fn(usize, &mut [T], &mut [U]) + Sync + Send,
    ) {
        let (first, second) = (Chunks::new(first, first_len), Chunks::new(second, second_len));
        let count = first.count().min(second.count());
        // SAFETY: as in `chunks`.
        self.each(count, |i| body(i, unsafe { first.at(i) }, unsafe { second.at(i) }));
    }

    /// As [`Parallel::chunks2`] over three outputs.
    pub fn chunks3<T: Send, U: Send, V: Send>(
        &self,
        (first, first_len): (&mut [T], usize),
        (second, second_len): (&mut [U], usize),
        (third, third_len): (&mut [V], usize),
        body: impl Fn(usize, &mut [T], &mut [U], &mut [V]) + Sync + Send,
    ) {
        let (first, second) = (Chunks::new(first, first_len), Chunks::new(second, second_len));
        let third = Chunks::new(third, third_len);
        let count = first.count().min(second.count()).min(third.count());
        self.each(count, |i| {
            // SAFETY: as in `chunks`.
            let (first, second, third) = unsafe { (first.at(i), second.at(i), third.at(i)) };
            body(i, first, second, third);
        });
    }
}

/// A mutable slice in chunks, which threads take by number.
struct Chunks<'a, T> {
    start: *mut T,
    total: usize,
    len: usize,
    borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: it is a `&mut [T]` in parts, and `T: Send` may be written from another thread; `at`
// obliges its callers to give a part to one thread.
unsafe impl<T: Send> Sync for Chunks<'_, T> {}

impl<'a, T> Chunks<'a, T> {
    fn new(data: &'a mut [T], len: usize) -> Chunks<'a, T> {
        let (start, total, len) = (data.as_mut_ptr(), data.len(), len.max(1));
        Chunks { start, total, len, borrow: PhantomData }
    }

    fn count(&self) -> usize {
        self.total.div_ceil(self.len)
    }

    /// # Safety
    /// No other call for this chunk is alive.
    #[allow(clippy::mut_from_ref)] // Exclusiveness is the caller's obligation.
    unsafe fn at(&self, index: usize) -> &mut [T] {
        let start = index * self.len;
        assert!(start < self.total, "chunk {index} of {}", self.count());
        let len = self.len.min(self.total - start);
        // SAFETY: inside the borrowed slice; chunks do not overlap.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
    }
}
