//! Many boxes read by several threads, and handed over piece by piece.
//!
//! ```text
//! boxes ∩ chunks ─▶ by the range of the file that holds some of them
//!   ─▶ threads: read a range, verify it ─▶ its runs of each box ─▶ take(box, element, bytes)
//! ```
//! A range is read once, whatever the number of boxes that want some of it, in the order of the
//! files. Memory: the list of ranges, and two times 4 MiB for each thread.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::manifest::ChunkRecord;
use crate::region::{for_each_run, interval};
use crate::sums::RANGE_BYTES;
use crate::verified::FileRange;
use crate::{Checkpoint, Dtype, Error, Region, TensorKey};

/// A box of a tensor that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    pub key: TensorKey,
    /// As it is stored.
    pub dtype: Dtype,
    pub region: Region,
}

/// Each range that is to be read, and the boxes that want some of a chunk in it.
type Work<'a> = Vec<(FileRange, Vec<(usize, &'a ChunkRecord)>)>;

/// The ranges of files that hold boxes, to be read here or to come from elsewhere.
pub struct Reads<'a> {
    checkpoint: &'a Checkpoint,
    wanted: Cow<'a, [Wanted]>,
    work: Work<'a>,
    /// Boxes of which a range holds no whole number of elements, as another writer may have left
    /// them: they are read one after another.
    apart: Vec<usize>,
}

impl Reads<'_> {
    /// The ranges, in the order of the files.
    pub fn ranges(&self) -> impl Iterator<Item = FileRange> + '_ {
        self.work.iter().map(|(at, _)| *at)
    }

    /// Reads the ranges that `is_read` picks, on `threads` threads. `take` gets the number of a
    /// box, an element of it and the bytes from there on, in any order, on the thread that has
    /// read them and has them in its cache; every element once.
    ///
    /// # Errors
    /// The first of `take`'s or of [`Checkpoint::read_box`]'s; what was taken until then was right.
    pub fn read<E: From<Error> + Send>(
        &self,
        threads: usize,
        is_read: impl Fn(FileRange) -> bool,
        take: impl Fn(usize, usize, &[u8]) -> Result<(), E> + Sync,
    ) -> Result<(), E> {
        let Reads { checkpoint, wanted, work, apart } = self;
        checkpoint.read_apart(wanted, apart, &take)?;
        let work: Vec<_> = work.iter().filter(|(at, _)| is_read(*at)).collect();
        let (next, failed) = (AtomicUsize::new(0), Mutex::new(None));
        let one = || {
            let (mut bytes, mut scratch) = (Vec::new(), Vec::new());
            while let Some((at, of)) = work.get(next.fetch_add(1, Ordering::Relaxed)) {
                let read = checkpoint.read_file_range(*at, &mut bytes).map_err(E::from);
                let done =
                    read.and_then(|()| hand_over(wanted, (*at, of), &bytes, &mut scratch, &take));
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

    /// Takes the bytes of a range that came from elsewhere, where they had the CRC32C `expected`.
    ///
    /// # Errors
    /// They have changed on the way; `take`'s.
    pub fn give<E: From<Error>>(
        &self,
        at: FileRange,
        bytes: &[u8],
        expected: u32,
        take: impl Fn(usize, usize, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let Ok(found) = self.work.binary_search_by_key(&at, |(at, _)| *at) else { return Ok(()) };
        self.checkpoint.check_range(at, bytes, expected)?;
        hand_over(&self.wanted, (at, &self.work[found].1), bytes, &mut Vec::new(), &take)
    }
}

impl Checkpoint {
    /// The ranges of files that hold these boxes.
    ///
    /// # Errors
    /// No such tensor; another type; a box outside.
    pub fn reads<'a>(&'a self, wanted: impl Into<Cow<'a, [Wanted]>>) -> Result<Reads<'a>, Error> {
        let wanted = wanted.into();
        let (work, apart) = self.work(&wanted)?;
        Ok(Reads { checkpoint: self, wanted, work, apart })
    }

    /// Reads boxes on `threads` threads: all of [`Reads::read`].
    ///
    /// # Errors
    /// As there.
    pub fn read_boxes<E: From<Error> + Send>(
        &self,
        wanted: &[Wanted],
        threads: usize,
        take: impl Fn(usize, usize, &[u8]) -> Result<(), E> + Sync,
    ) -> Result<(), E> {
        self.reads(wanted)?.read(threads, |_| true, take)
    }

    /// Bytes of a range.
    pub fn file_range_bytes(&self, at: FileRange) -> usize {
        self.range_bytes(at.file as usize, at.number as usize)
    }

    /// Reads a whole range into `to`, which gets its length.
    ///
    /// # Errors
    /// It cannot be read, or is damaged.
    pub fn read_file_range(&self, at: FileRange, to: &mut Vec<u8>) -> Result<(), Error> {
        let (file, number) = (at.file as usize, at.number as usize);
        to.resize(self.range_bytes(file, number), 0);
        self.read_range(file, number, to)
    }

    /// Reads whole boxes one after another.
    fn read_apart<E: From<Error>>(
        &self,
        wanted: &[Wanted],
        apart: &[usize],
        take: &impl Fn(usize, usize, &[u8]) -> Result<(), E>,
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
        let mut ranges: BTreeMap<FileRange, Vec<(usize, &ChunkRecord)>> = BTreeMap::new();
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
                    let at = FileRange { file: chunk.file, number: number as u32 };
                    if parts(chunk, size, at).any(|part| part.intersect(region).is_some()) {
                        ranges.entry(at).or_default().push((of, chunk));
                    }
                }
            }
        }
        Ok((ranges.into_iter().collect(), apart))
    }
}

/// The boxes of a tensor that range `number` of a chunk's file holds of the chunk.
fn parts(chunk: &ChunkRecord, size: usize, at: FileRange) -> impl Iterator<Item = Region> + '_ {
    let first = u64::from(at.number) * RANGE_BYTES;
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
    (at, of): (FileRange, &[(usize, &ChunkRecord)]),
    bytes: &[u8],
    scratch: &mut Vec<u8>,
    take: &impl Fn(usize, usize, &[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let first = u64::from(at.number) * RANGE_BYTES;
    for &(of, chunk) in of {
        let Wanted { dtype, region, .. } = &wanted[of];
        let (size, source) = (dtype.size_bytes(), chunk.region());
        for part in parts(chunk, size, at) {
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
