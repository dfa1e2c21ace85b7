//! Many boxes read by several threads, and handed over piece by piece.
//!
//! ```text
//! boxes ∩ chunks ─▶ by the range of the file that holds some of them
//!   ─▶ threads: read a range, long runs of a box straight into memory that is lent for them;
//!      verify it ─▶ all other runs of each box ─▶ put(box, element, bytes)
//! ```
//! A range is read once, whatever the number of boxes that want some of it, in the order of the
//! files. Memory: the list of ranges, and two times 4 MiB for each thread.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
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

/// Where the elements of boxes go, whose number is that in the list of [`Wanted`] ones.
///
/// A closure that [puts](Places::put) is one.
pub trait Places: Sync {
    type Error: From<Error> + Send;

    /// Lends `fill` the memory of `bytes` bytes of a box from an element on, if it can be lent;
    /// else they are [put](Places::put), which copies them once more. Nobody else uses the memory
    /// meanwhile. What it holds afterwards is wrong if the load fails.
    ///
    /// # Errors
    /// The places' own.
    fn lend(
        &self,
        _of: usize,
        _element: usize,
        _bytes: usize,
        _fill: &mut dyn FnMut(&mut [u8]),
    ) -> Result<(), Self::Error> {
        Ok(())
    }

    /// Takes bytes of a box from an element on, which were right.
    ///
    /// # Errors
    /// The places' own.
    fn put(&self, of: usize, element: usize, bytes: &[u8]) -> Result<(), Self::Error>;
}

impl<E: From<Error> + Send, F> Places for F
where
    F: Fn(usize, usize, &[u8]) -> Result<(), E> + Sync,
{
    type Error = E;

    fn put(&self, of: usize, element: usize, bytes: &[u8]) -> Result<(), E> {
        self(of, element, bytes)
    }
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

    /// Reads the ranges that `is_read` picks, on `threads` threads (more where the disk is far), to
    /// their places: every element once, in any order.
    ///
    /// # Errors
    /// The first of the places' or of [`Checkpoint::read_box`]'s. What was put until then was
    /// right; memory that was lent may hold anything.
    pub fn read<P: Places>(
        &self,
        threads: usize,
        is_read: impl Fn(FileRange) -> bool,
        places: &P,
    ) -> Result<(), P::Error> {
        let Reads { checkpoint, wanted, work, apart } = self;
        checkpoint.read_apart(wanted, apart, places)?;
        let work: Vec<_> = work.iter().filter(|(at, _)| is_read(*at)).collect();
        let (next, failed) = (AtomicUsize::new(0), Mutex::new(None));
        let one = || {
            let (mut bytes, mut scratch) = (Vec::new(), Vec::new());
            while let Some((at, of)) = work.get(next.fetch_add(1, Ordering::Relaxed)) {
                let (runs, parts) = self.split(*at, of);
                let read = self.read_range(*at, &runs, &mut bytes, places);
                let done = read
                    .and_then(|()| hand_over(wanted, *at, &parts, &bytes, &mut scratch, places));
                if let Err(error) = done {
                    // The others find nothing more to do.
                    next.store(work.len(), Ordering::Relaxed);
                    let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                    failed.get_or_insert(error);
                }
            }
        };
        match checkpoint.reading_threads(threads).min(work.len()) {
            0 | 1 => one(),
            several => std::thread::scope(|scope| {
                (0..several).for_each(|_| drop(scope.spawn(one)));
            }),
        }
        failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }

    /// The long runs of a range, in their order, and the parts of boxes that have none.
    fn split<'a>(
        &self,
        at: FileRange,
        of: &[(usize, &'a ChunkRecord)],
    ) -> (Vec<Run>, Vec<Part<'a>>) {
        let (mut runs, mut rest) = (Vec::new(), Vec::new());
        // Bytes that two boxes want are read once, and put twice.
        let starts: BTreeSet<u64> = of.iter().map(|(_, chunk)| chunk.range[0]).collect();
        let are_apart = starts.len() == of.len();
        for part in parts(&self.wanted, at, of) {
            match are_apart.then(|| part.long_runs(&self.wanted, at)).flatten() {
                Some(long) => runs.extend(long),
                None => rest.push(part),
            }
        }
        runs.sort_unstable_by_key(|run| run.at);
        (runs, rest)
    }

    /// Reads a range: `runs` to their places, all that lies between them into `bytes`, which gets
    /// the length of the range.
    fn read_range<P: Places>(
        &self,
        at: FileRange,
        runs: &[Run],
        bytes: &mut Vec<u8>,
        places: &P,
    ) -> Result<(), P::Error> {
        bytes.resize(self.checkpoint.file_range_bytes(at), 0);
        let (mut lent, mut unlent) = (Ok(()), Vec::new());
        self.checkpoint.read_range_by(at, |reading| {
            let mut done = 0;
            unlent.clear();
            for run in runs {
                reading.next(&mut bytes[done..run.at])?;
                done = run.at + run.bytes;
                let mut read = None;
                let mut fill = |to: &mut [u8]| read = Some(reading.next(to));
                let lend = places.lend(run.of, run.element, run.bytes, &mut fill);
                lent = std::mem::replace(&mut lent, Ok(())).and(lend);
                read.unwrap_or_else(|| {
                    unlent.push(run);
                    reading.next(&mut bytes[run.at..done])
                })?;
            }
            reading.next(&mut bytes[done..])
        })?;
        lent?;
        let put = |run: &&Run| places.put(run.of, run.element, &bytes[run.at..][..run.bytes]);
        unlent.iter().try_for_each(put)
    }

    /// Takes the bytes of a range that came from elsewhere, where they had the CRC32C `expected`.
    ///
    /// # Errors
    /// They have changed on the way; the places' own.
    pub fn give<P: Places>(
        &self,
        at: FileRange,
        bytes: &[u8],
        expected: u32,
        places: &P,
    ) -> Result<(), P::Error> {
        let Ok(found) = self.work.binary_search_by_key(&at, |(at, _)| *at) else { return Ok(()) };
        self.checkpoint.check_range(at, bytes, expected)?;
        let parts: Vec<Part> = parts(&self.wanted, at, &self.work[found].1).collect();
        hand_over(&self.wanted, at, &parts, bytes, &mut Vec::new(), places)
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
        put: impl Fn(usize, usize, &[u8]) -> Result<(), E> + Sync,
    ) -> Result<(), E> {
        self.reads(wanted)?.read(threads, |_| true, &put)
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
    fn read_apart<P: Places>(
        &self,
        wanted: &[Wanted],
        apart: &[usize],
        places: &P,
    ) -> Result<(), P::Error> {
        for &of in apart {
            let Wanted { key, dtype, region } = &wanted[of];
            let mut bytes = vec![0; region.elements().unwrap_or(0) * dtype.size_bytes()];
            self.read_box(key, *dtype, region, &mut bytes)?;
            places.put(of, 0, &bytes)?;
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
                    if boxes_in(chunk, size, at).any(|part| part.intersect(region).is_some()) {
                        ranges.entry(at).or_default().push((of, chunk));
                    }
                }
            }
        }
        Ok((ranges.into_iter().collect(), apart))
    }
}

/// The boxes of a tensor that a range of a chunk's file holds of the chunk.
fn boxes_in(chunk: &ChunkRecord, size: usize, at: FileRange) -> impl Iterator<Item = Region> {
    let first = first_byte(at);
    let element = |byte: u64| {
        ((byte.clamp(chunk.range[0], chunk.range[1]) - chunk.range[0]) / size as u64) as usize
    };
    let boxes = interval(&chunk.shape, element(first), element(first + RANGE_BYTES));
    boxes.into_iter().map(|mut part| {
        part.offset.iter_mut().zip(&chunk.offset).for_each(|(offset, first)| *offset += first);
        part
    })
}

fn first_byte(at: FileRange) -> u64 {
    u64::from(at.number) * RANGE_BYTES
}

/// A box of a chunk that lies in a range, and that a wanted box has too.
struct Part<'a> {
    of: usize,
    chunk: &'a ChunkRecord,
    region: Region,
}

/// Bytes of a range, from its byte `at` on, that lie side by side in a wanted box, too.
struct Run {
    of: usize,
    at: usize,
    element: usize,
    bytes: usize,
}

/// For a shorter run, lending memory costs more than copying it.
const LONG_RUN_BYTES: usize = 64 << 10;

/// All parts of boxes that a range holds.
fn parts<'a>(
    wanted: &[Wanted],
    at: FileRange,
    of: &[(usize, &'a ChunkRecord)],
) -> impl Iterator<Item = Part<'a>> {
    of.iter().flat_map(move |&(of, chunk)| {
        let Wanted { dtype, region, .. } = &wanted[of];
        boxes_in(chunk, dtype.size_bytes(), at)
            .filter_map(|part| part.intersect(region))
            .map(move |region| Part { of, chunk, region })
    })
}

impl Part<'_> {
    /// Byte of the range at which an element of the chunk lies.
    fn byte(&self, at: FileRange, element: usize, size: usize) -> usize {
        (self.chunk.range[0] + (element * size) as u64 - first_byte(at)) as usize
    }

    /// Its runs, if they are long.
    fn long_runs(&self, wanted: &[Wanted], at: FileRange) -> Option<Vec<Run>> {
        let Wanted { dtype, region, .. } = &wanted[self.of];
        let (size, mut runs) = (dtype.size_bytes(), Vec::new());
        for_each_run(&self.region, &self.chunk.region(), region, |from, element, len| {
            let (of, at, bytes) = (self.of, self.byte(at, from, size), len * size);
            runs.push(Run { of, at, element, bytes });
            // All have the same length.
            if bytes < LONG_RUN_BYTES { Err(()) } else { Ok(()) }
        })
        .ok()?;
        Some(runs)
    }
}

/// Puts the parts of boxes that a range holds to their places, in runs as long as a box's memory
/// allows; what lies in pieces in the range is put together first.
fn hand_over<P: Places>(
    wanted: &[Wanted],
    at: FileRange,
    parts: &[Part],
    bytes: &[u8],
    scratch: &mut Vec<u8>,
    places: &P,
) -> Result<(), P::Error> {
    for part in parts {
        let Wanted { dtype, region, .. } = &wanted[part.of];
        let (size, source) = (dtype.size_bytes(), part.chunk.region());
        let all = part.region.elements().unwrap_or(0);
        // Of the range, where the part is one run of it.
        let mut whole = None;
        scratch.resize(all * size, 0);
        for_each_run::<P::Error>(&part.region, &source, &part.region, |from, to, len| {
            let at = part.byte(at, from, size);
            if len == all {
                whole = Some(at..at + len * size);
            } else {
                let to = to * size..(to + len) * size;
                scratch[to].copy_from_slice(&bytes[at..at + len * size]);
            }
            Ok(())
        })?;
        let data = whole.map_or(&scratch[..], |whole| &bytes[whole]);
        for_each_run(&part.region, &part.region, region, |from, to, len| {
            places.put(part.of, to, &data[from * size..(from + len) * size])
        })?;
    }
    Ok(())
}
