//! Many boxes read by several threads, and handed over piece by piece.
//!
//! ```text
//! boxes ∩ chunks ─▶ by the range of the file that holds some of them
//!   ─▶ threads: read a range, verify it ─▶ its runs of each box ─▶ take(box, element, bytes)
//! ```
//! A range is read once, whatever the number of boxes that want some of it, in the order of the
//! files. Memory: the list of ranges, and two times 4 MiB for each thread; where pieces are taken
//! on the caller's thread, a queue of as many ranges as there are threads, too.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};

use crate::manifest::ChunkRecord;
use crate::region::{for_each_run, interval};
use crate::sums::RANGE_BYTES;
use crate::{Checkpoint, Dtype, Error, Region, TensorKey};

/// A box of a tensor that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    pub key: TensorKey,
    /// As it is stored.
    pub dtype: Dtype,
    pub region: Region,
}

/// File and number of each range that is to be read, and the boxes that want some of a chunk in it.
type Work<'a> = Vec<((usize, usize), Vec<(usize, &'a ChunkRecord)>)>;

/// Takes bytes of a box, from an element on, on any thread.
pub(crate) type Take<'a> = dyn Fn(usize, usize, &[u8]) -> Result<(), Error> + Sync + 'a;

/// A range that a thread has read: its place in the work, and its bytes.
type Read = Result<(usize, Vec<u8>), Error>;

impl Checkpoint {
    /// Reads boxes on `threads` threads. `take` gets the number of a box, an element of it and the
    /// bytes from there on, in any order, on this thread; every element once.
    ///
    /// # Errors
    /// The first of `take`'s or of [`Checkpoint::read_box`]'s; what was taken until then was right.
    pub fn read_boxes<E: From<Error>>(
        &self,
        wanted: &[Wanted],
        threads: usize,
        mut take: impl FnMut(usize, usize, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let (work, apart) = self.work(wanted)?;
        self.read_apart(wanted, &apart, &mut take)?;
        let threads = threads.clamp(1, work.len().max(1));
        let mut scratch = Vec::new();
        if threads == 1 {
            let mut bytes = Vec::new();
            for (at, of) in &work {
                self.read_whole(*at, &mut bytes)?;
                hand_over(wanted, (*at, of), &bytes, &mut scratch, &mut take)?;
            }
            return Ok(());
        }
        let (next, is_over) = (AtomicUsize::new(0), AtomicBool::new(false));
        let (sender, receiver) = sync_channel::<Read>(threads);
        let (spare_sender, spare) = sync_channel::<Vec<u8>>(2 * threads + 1);
        let spare = Mutex::new(spare);
        std::thread::scope(|scope| {
            for _ in 0..threads {
                let (sender, spare, work) = (sender.clone(), &spare, &work);
                let (next, is_over) = (&next, &is_over);
                scope.spawn(move || {
                    let buffer = || spare.lock().ok().and_then(|spare| spare.try_recv().ok());
                    self.read_some(work, (next, is_over), &sender, buffer);
                });
            }
            drop(sender);
            let receiver = receiver;
            // The loop ends when the last thread has let go of its end.
            let result = receiver.iter().try_for_each(|read| {
                let (number, bytes) = read?;
                let (at, of) = &work[number];
                hand_over(wanted, (*at, of), &bytes, &mut scratch, &mut take)?;
                // No thread waits for it: a full queue of spare buffers needs no more.
                let _ = spare_sender.try_send(bytes);
                Ok(())
            });
            is_over.store(true, Ordering::Relaxed);
            // Whoever waits for room in the queue goes on, and sees that it is over.
            drop(receiver);
            result
        })
    }

    /// As [`Checkpoint::read_boxes`], but each thread takes what it has read.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn read_boxes_apart(
        &self,
        wanted: &[Wanted],
        threads: usize,
        take: &Take,
    ) -> Result<(), Error> {
        let (work, apart) = self.work(wanted)?;
        self.read_apart(wanted, &apart, &mut |of, element, bytes| take(of, element, bytes))?;
        let (next, failed) = (AtomicUsize::new(0), Mutex::new(None));
        let one = || {
            let (mut bytes, mut scratch) = (Vec::new(), Vec::new());
            while let Some((at, of)) = work.get(next.fetch_add(1, Ordering::Relaxed)) {
                let mut take = |of: usize, element: usize, bytes: &[u8]| take(of, element, bytes);
                let done = self
                    .read_whole(*at, &mut bytes)
                    .and_then(|()| hand_over(wanted, (*at, of), &bytes, &mut scratch, &mut take));
                if let Err(error) = done {
                    // The others find nothing more to do.
                    next.store(work.len(), Ordering::Relaxed);
                    let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                    failed.get_or_insert(error);
                }
            }
        };
        match threads.min(work.len()) {
            0 | 1 => one(),
            several => std::thread::scope(|scope| {
                (0..several).for_each(|_| drop(scope.spawn(one)));
            }),
        }
        failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }

    /// One thread's part: until there is no more to read, or nobody to read it for.
    fn read_some(
        &self,
        work: &Work,
        (next, is_over): (&AtomicUsize, &AtomicBool),
        sender: &SyncSender<Read>,
        spare: impl Fn() -> Option<Vec<u8>>,
    ) {
        while !is_over.load(Ordering::Relaxed) {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some((at, _)) = work.get(number) else { return };
            let mut bytes = spare().unwrap_or_default();
            let read = self.read_whole(*at, &mut bytes);
            if sender.send(read.map(|()| (number, bytes))).is_err() {
                return;
            }
        }
    }

    fn read_whole(&self, (file, number): (usize, usize), to: &mut Vec<u8>) -> Result<(), Error> {
        to.resize(self.range_bytes(file, number), 0);
        self.read_range(file, number, to)
    }

    /// Reads whole boxes one after another.
    fn read_apart<E: From<Error>>(
        &self,
        wanted: &[Wanted],
        apart: &[usize],
        take: &mut impl FnMut(usize, usize, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        for &of in apart {
            let Wanted { key, dtype, region } = &wanted[of];
            let mut bytes = vec![0; region.elements().unwrap_or(0) * dtype.size_bytes()];
            self.read_box(key, *dtype, region, &mut bytes)?;
            take(of, 0, &bytes)?;
        }
        Ok(())
    }

    /// The ranges to be read, and the boxes that are read apart: those of which a range of a file
    /// holds no whole number of elements, as another writer may have left them.
    fn work<'a>(&'a self, wanted: &[Wanted]) -> Result<(Work<'a>, Vec<usize>), Error> {
        let mut ranges: BTreeMap<(usize, usize), Vec<(usize, &ChunkRecord)>> = BTreeMap::new();
        let mut apart = Vec::new();
        for (of, Wanted { key, dtype, region }) in wanted.iter().enumerate() {
            let size = dtype.size_bytes();
            let chunks = self.chunks_of(key, *dtype, region)?;
            if chunks.iter().any(|chunk| !chunk.range[0].is_multiple_of(size as u64)) {
                apart.push(of);
                continue;
            }
            for chunk in chunks {
                if chunk.region().intersect(region).is_none() {
                    continue;
                }
                let numbers = chunk.range[0] / RANGE_BYTES..chunk.range[1].div_ceil(RANGE_BYTES);
                for number in numbers {
                    let number = number as usize;
                    if parts(chunk, size, number).any(|part| part.intersect(region).is_some()) {
                        ranges.entry((chunk.file as usize, number)).or_default().push((of, chunk));
                    }
                }
            }
        }
        Ok((ranges.into_iter().collect(), apart))
    }
}

/// The boxes of a tensor that range `number` of a chunk's file holds of the chunk.
fn parts(chunk: &ChunkRecord, size: usize, number: usize) -> impl Iterator<Item = Region> + '_ {
    let first = number as u64 * RANGE_BYTES;
    let element = |byte: u64| {
        ((byte.clamp(chunk.range[0], chunk.range[1]) - chunk.range[0]) / size as u64) as usize
    };
    let boxes = interval(&chunk.shape, element(first), element(first + RANGE_BYTES));
    boxes.into_iter().map(|mut part| {
        part.offset.iter_mut().zip(&chunk.offset).for_each(|(offset, first)| *offset += first);
        part
    })
}

/// Hands over what a range holds of each box that wants some of it, in runs as long as a box's
/// memory allows; what lies in pieces in the range is put together first.
fn hand_over<E>(
    wanted: &[Wanted],
    ((_, number), of): ((usize, usize), &[(usize, &ChunkRecord)]),
    bytes: &[u8],
    scratch: &mut Vec<u8>,
    take: &mut impl FnMut(usize, usize, &[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let first = number as u64 * RANGE_BYTES;
    for &(of, chunk) in of {
        let Wanted { dtype, region, .. } = &wanted[of];
        let (size, source) = (dtype.size_bytes(), chunk.region());
        for part in parts(chunk, size, number) {
            let Some(part) = part.intersect(region) else { continue };
            let all = part.elements().unwrap_or(0);
            // Of the range, where the part is one run of it.
            let mut whole = None;
            scratch.resize(all * size, 0);
            for_each_run::<E>(&part, &source, &part, |from, to, len| {
                let at = (chunk.range[0] + (from * size) as u64 - first) as usize;
                if len == all {
                    whole = Some(at..at + len * size);
                } else {
                    let to = to * size..(to + len) * size;
                    scratch[to].copy_from_slice(&bytes[at..at + len * size]);
                }
                Ok(())
            })?;
            let data = whole.map_or(&scratch[..], |whole| &bytes[whole]);
            for_each_run(&part, &part, region, |from, to, len| {
                take(of, to, &data[from * size..(from + len) * size])
            })?;
        }
    }
    Ok(())
}
