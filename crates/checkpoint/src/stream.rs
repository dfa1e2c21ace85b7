//! Many boxes read by several threads, and handed over piece by piece on the caller's.
//!
//! ```text
//! boxes ∩ chunks ─▶ pieces, by the range of the file that holds them
//!   ─▶ threads: read a range, verify it ─▶ a short queue ─▶ take(box, element, bytes)
//! ```
//! A range is read once, whatever the number of boxes that want some of it, in the order of the
//! files. Memory: the pieces, and a range of 4 MiB for each thread, for each place of the queue and
//! for the caller.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};

use crate::region::for_each_run;
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

/// Bytes of a range that are a run of elements of a wanted box.
#[derive(Debug, Clone, Copy)]
struct Piece {
    of: usize,
    /// First element, counted in the row-major box.
    element: usize,
    /// First byte, counted in the range.
    skip: usize,
    bytes: usize,
}

/// File and number of each range that is to be read, and what is wanted of it.
type Work = Vec<((usize, usize), Vec<Piece>)>;

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
        for of in apart {
            let Wanted { key, dtype, region } = &wanted[of];
            let mut bytes = vec![0; region.elements().unwrap_or(0) * dtype.size_bytes()];
            self.read_box(key, *dtype, region, &mut bytes)?;
            take(of, 0, &bytes)?;
        }
        let mut take_all = |number: usize, bytes: &[u8]| {
            work[number].1.iter().try_for_each(|&Piece { of, element, skip, bytes: count }| {
                take(of, element, &bytes[skip..skip + count])
            })
        };
        let threads = threads.clamp(1, work.len().max(1));
        if threads == 1 {
            let mut bytes = Vec::new();
            for (number, (at, _)) in work.iter().enumerate() {
                self.read_whole(*at, &mut bytes)?;
                take_all(number, &bytes)?;
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
                take_all(number, &bytes)?;
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

    /// The ranges to be read, and the boxes that are read apart: those of which a range of a file
    /// holds no whole number of elements, as another writer may have left them.
    fn work(&self, wanted: &[Wanted]) -> Result<(Work, Vec<usize>), Error> {
        let mut ranges: BTreeMap<(usize, usize), Vec<Piece>> = BTreeMap::new();
        let mut apart = Vec::new();
        for (of, Wanted { key, dtype, region }) in wanted.iter().enumerate() {
            let size = dtype.size_bytes();
            let chunks = self.chunks_of(key, *dtype, region)?;
            if chunks.iter().any(|chunk| !chunk.range[0].is_multiple_of(size as u64)) {
                apart.push(of);
                continue;
            }
            for chunk in chunks {
                let source = chunk.region();
                let Some(part) = source.intersect(region) else { continue };
                for_each_run::<Error>(&part, &source, region, |from, to, len| {
                    let (mut at, mut element) = (chunk.range[0] + (from * size) as u64, to);
                    let end = at + (len * size) as u64;
                    while at < end {
                        let (number, skip) = (at / RANGE_BYTES, (at % RANGE_BYTES) as usize);
                        let bytes = (end - at).min(RANGE_BYTES - skip as u64) as usize;
                        let pieces = ranges.entry((chunk.file as usize, number as usize));
                        pieces.or_default().push(Piece { of, element, skip, bytes });
                        (at, element) = (at + bytes as u64, element + bytes / size);
                    }
                    Ok(())
                })?;
            }
        }
        Ok((ranges.into_iter().collect(), apart))
    }
}
