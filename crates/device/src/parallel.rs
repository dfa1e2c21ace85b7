//! Parallel loops over outputs.
//!
//! Each index or chunk is computed by one thread, whole; sums are never split. So results do not
//! depend on the number of threads.

use rayon::prelude::*;

use crate::DeviceError;

/// The threads of a device.
pub struct Parallel {
    pool: Option<rayon::ThreadPool>,
    threads: usize,
}

impl Parallel {
    pub(crate) fn new(threads: usize) -> Result<Parallel, DeviceError> {
        let threads = threads.max(1);
        if threads == 1 {
            return Ok(Parallel { pool: None, threads });
        }
        let builder = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|index| format!("device-{index}"));
        let pool = builder.build().map_err(|source| DeviceError::Threads { threads, source })?;
        Ok(Parallel { pool: Some(pool), threads })
    }

    pub fn threads(&self) -> usize {
        self.threads
    }

    pub(crate) fn install<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        match &self.pool {
            None => work(),
            Some(pool) => pool.install(work),
        }
    }

    /// Calls `body` with each of `0..count`.
    pub fn each(&self, count: usize, body: impl Fn(usize) + Sync + Send) {
        match &self.pool {
            Some(pool) if count > 1 => pool.install(|| {
                (0..count).into_par_iter().with_max_len(1).for_each(&body);
            }),
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
        match &self.pool {
            Some(pool) if data.len() > len => pool.install(|| {
                let chunks = data.par_chunks_mut(len).enumerate().with_max_len(1);
                chunks.for_each(|(i, chunk)| body(i, chunk));
            }),
            _ => data.chunks_mut(len.max(1)).enumerate().for_each(|(i, chunk)| body(i, chunk)),
        }
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

    /// As [`Parallel::chunks`] over two outputs at once, with their own chunk lengths.
    pub fn chunks2<T: Send, U: Send>(
        &self,
        (first, first_len): (&mut [T], usize),
        (second, second_len): (&mut [U], usize),
        body: impl Fn(usize, &mut [T], &mut [U]) + Sync + Send,
    ) {
        match &self.pool {
            Some(pool) if first.len() > first_len => pool.install(|| {
                let chunks = first.par_chunks_mut(first_len);
                let chunks = chunks.zip(second.par_chunks_mut(second_len)).enumerate();
                chunks.with_max_len(1).for_each(|(i, (a, b))| body(i, a, b));
            }),
            _ => {
                let chunks = first.chunks_mut(first_len.max(1));
                let chunks = chunks.zip(second.chunks_mut(second_len.max(1))).enumerate();
                chunks.for_each(|(i, (a, b))| body(i, a, b));
            }
        }
    }

    /// As [`Parallel::chunks`] over three outputs at once, with their own chunk lengths.
    pub fn chunks3<T: Send, U: Send, V: Send>(
        &self,
        (first, first_len): (&mut [T], usize),
        (second, second_len): (&mut [U], usize),
        (third, third_len): (&mut [V], usize),
        body: impl Fn(usize, &mut [T], &mut [U], &mut [V]) + Sync + Send,
    ) {
        match &self.pool {
            Some(pool) if first.len() > first_len => pool.install(|| {
                let chunks = first.par_chunks_mut(first_len);
                let chunks = chunks.zip(second.par_chunks_mut(second_len));
                let chunks = chunks.zip(third.par_chunks_mut(third_len)).enumerate();
                chunks.with_max_len(1).for_each(|(i, ((a, b), c))| body(i, a, b, c));
            }),
            _ => {
                let chunks = first.chunks_mut(first_len.max(1));
                let chunks = chunks.zip(second.chunks_mut(second_len.max(1)));
                let chunks = chunks.zip(third.chunks_mut(third_len.max(1))).enumerate();
                chunks.for_each(|(i, ((a, b), c))| body(i, a, b, c));
            }
        }
    }
}
