//! The bytes of a checkpoint's shards, given out only once their sums were right.
//!
//! ```text
//! bytes of a shard ─▶ pieces of its 4 MiB ranges ─▶ CRC32C ─▶ out
//! ```
//! Every range that a read touches is read whole and summed before a byte of it is handed out,
//! but for those that are read into memory of whoever asked, who is told whether they were right.
//! A piece that is a whole range goes straight to its destination; others are copied from the
//! range that was read last, so that neighbours do not read it again. Threads may read at once: two
//! that want the same range wait for one read of it. Sums tables are read when they are needed
//! first.
//!
//! Files may have copies in other directories. One that cannot be had where the checkpoint lies is
//! taken from a copy, which is held to the same sums, and that is told.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crc_fast::CrcAlgorithm;

use crate::commit::check_file;
use crate::disk::{Disk, ReadFile, exists, read_exact_at};
use crate::manifest::FileRecord;
use crate::sums::{self, RANGE_BYTES, Sums};
use crate::{Digest, Error, names};

/// Shards kept open at a time.
const MAX_OPEN_FILES: usize = 64;

/// The files of a checkpoint.
pub(crate) struct Verified {
    pub disk: Arc<dyn Disk>,
    pub dir: PathBuf,
    /// Directories on the same disk that may hold copies of the files.
    copies: Vec<PathBuf>,
    sums: Vec<OnceLock<Sums>>,
    open: Mutex<HashMap<(usize, PathBuf), Arc<dyn ReadFile>>>,
    kept: Mutex<VecDeque<((usize, usize), Range)>>,
    recovered: Mutex<Vec<Recovered>>,
}

/// A 4 MiB range of a shard: the number of the file in the manifest, and the range's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileRange {
    pub file: u32,
    pub number: u32,
}

/// A range of a shard that is read and summed from its first byte to its last.
pub(crate) struct Reading<'a> {
    disk: &'a dyn Disk,
    path: PathBuf,
    handle: Arc<dyn ReadFile>,
    file_bytes: u64,
    start: u64,
    end: u64,
    at: u64,
    sum: crc_fast::Digest,
    /// All of it, where one long read is best.
    ahead: Option<Vec<u8>>,
}

impl Reading<'_> {
    /// Fills `out` with the next bytes.
    ///
    /// # Errors
    /// They cannot be read.
    pub(crate) fn next(&mut self, out: &mut [u8]) -> Result<(), Error> {
        for piece in out.chunks_mut(PIECE_BYTES) {
            let skip = (self.at - self.start) as usize;
            match &self.ahead {
                Some(bytes) => piece.copy_from_slice(&bytes[skip..skip + piece.len()]),
                None => self.read_at(self.at, piece)?,
            }
            self.sum.update(piece);
            self.at += piece.len() as u64;
        }
        Ok(())
    }

    fn read_at(&self, at: u64, out: &mut [u8]) -> Result<(), Error> {
        read_exact_at(self.handle.as_ref(), out, at).map_err(|source| {
            let (path, expected) = (self.path.clone(), self.file_bytes);
            match source.kind() {
                io::ErrorKind::UnexpectedEof => {
                    let actual = self.disk.stat(&path).map_or(at, |found| found.bytes);
                    Error::FileLength { path, expected, actual }
                }
                _ => Error::Io { action: "read", path, offset: Some(at), source },
            }
        })
    }

    fn finish(self, expected: u32) -> Result<(), Error> {
        let Reading { path, start, end, at, sum, .. } = self;
        debug_assert_eq!(at, end, "a range is read whole");
        let actual = sum.finalize() as u32;
        if expected != actual {
            let holds = String::new();
            return Err(Error::Range { path, start, end, holds, expected, actual });
        }
        Ok(())
    }
}

/// Something of a file that was taken from a copy.
pub(crate) struct Recovered {
    pub file: usize,
    pub error: Error,
    pub copy: PathBuf,
}

/// Ranges that are kept: neighbouring small tensors lie in one.
const KEPT: usize = 1;

/// Bytes that are read and summed at a time: a core's own cache holds them in between.
const PIECE_BYTES: usize = 256 << 10;

/// One range of one shard; empty until it has been read and verified.
type Range = Arc<Mutex<Vec<u8>>>;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// First byte and end of a range of a file.
pub(crate) fn range(record: &FileRecord, number: usize) -> (u64, u64) {
    let start = number as u64 * RANGE_BYTES;
    (start, (start + RANGE_BYTES).min(record.bytes))
}

impl Verified {
    pub(crate) fn new(
        disk: Arc<dyn Disk>,
        dir: PathBuf,
        copies: Vec<PathBuf>,
        files: usize,
    ) -> Verified {
        let sums = (0..files).map(|_| OnceLock::new()).collect();
        let (open, kept, recovered) = (Mutex::default(), Mutex::default(), Mutex::default());
        Verified { disk, dir, copies, sums, open, kept, recovered }
    }

    /// All that was taken from copies since the last call, and why.
    pub(crate) fn recovered(&self) -> Vec<Recovered> {
        std::mem::take(&mut lock(&self.recovered))
    }

    /// Reads something of a file where the checkpoint lies or, where that fails, from the first
    /// copy that has it.
    ///
    /// # Errors
    /// The first failure, if all fail.
    pub(crate) fn anywhere<T>(
        &self,
        file: usize,
        mut read: impl FnMut(&Path) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let error = match read(&self.dir) {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        for copy in &self.copies {
            if let Ok(value) = read(copy) {
                lock(&self.recovered).push(Recovered { file, error, copy: copy.clone() });
                return Ok(value);
            }
        }
        Err(error)
    }

    /// The sums of a shard, read and compared with their digest the first time.
    ///
    /// # Errors
    /// The table is missing, damaged, or of another file.
    pub(crate) fn sums(&self, file: usize, record: &FileRecord) -> Result<&Sums, Error> {
        if let Some(sums) = self.sums[file].get() {
            return Ok(sums);
        }
        let sums =
            self.anywhere(file, |dir| self.read_sums(&dir.join(record.sums_path()), record))?;
        Ok(self.sums[file].get_or_init(|| sums))
    }

    fn read_sums(&self, path: &Path, record: &FileRecord) -> Result<Sums, Error> {
        let path = path.to_path_buf();
        let bytes = read_file(self.disk.as_ref(), &path, sums::table_bytes(record.bytes))?;
        let (expected, actual) = (record.sums_blake3, Digest::of(&bytes));
        if expected != actual {
            return Err(Error::FileDigest { path, expected, actual });
        }
        let sums = Sums::decode(&bytes);
        let sums = sums.map_err(|reason| Error::Sums { path: path.clone(), reason })?;
        if sums.file_bytes != record.bytes {
            let reason =
                format!("it is of a file of {} bytes, not {}", sums.file_bytes, record.bytes);
            return Err(Error::Sums { path, reason });
        }
        Ok(sums)
    }

    /// Reads bytes of a shard, range by range.
    ///
    /// # Errors
    /// Damaged or missing data.
    pub(crate) fn read(
        &self,
        (file, record): (usize, &FileRecord),
        start: u64,
        out: &mut [u8],
    ) -> Result<(), Error> {
        let mut done = 0;
        while done < out.len() {
            let at = start + done as u64;
            let number = (at / RANGE_BYTES) as usize;
            let (first, end) = range(record, number);
            let count = (end.saturating_sub(at) as usize).min(out.len() - done);
            if count == 0 {
                let path = self.dir.join(&record.path);
                return Err(Error::io(self.disk.as_ref(), "read", &path)(
                    io::ErrorKind::UnexpectedEof.into(),
                ));
            }
            let piece = &mut out[done..done + count];
            if count as u64 == end - first {
                self.read_range((file, record), number, piece)?;
            } else {
                self.copy((file, record), number, (at - first) as usize, piece)?;
            }
            done += count;
        }
        Ok(())
    }

    /// Copies a piece of a range that is kept, or is from now on.
    fn copy(
        &self,
        of: (usize, &FileRecord),
        number: usize,
        skip: usize,
        piece: &mut [u8],
    ) -> Result<(), Error> {
        let range_of = self.kept_range((of.0, number));
        let mut bytes = lock(&range_of);
        if bytes.is_empty() {
            let (first, end) = range(of.1, number);
            bytes.resize((end - first) as usize, 0);
            // After a failure it is empty again: nobody else takes it for verified.
            if let Err(error) = self.read_range(of, number, &mut bytes) {
                bytes.clear();
                return Err(error);
            }
        }
        piece.copy_from_slice(&bytes[skip..skip + piece.len()]);
        Ok(())
    }

    /// The place of a range among those that are kept, perhaps still empty.
    fn kept_range(&self, of: (usize, usize)) -> Range {
        let mut kept = lock(&self.kept);
        if let Some(at) = kept.iter().position(|(key, _)| *key == of) {
            return Arc::clone(&kept[at].1);
        }
        let mut spare = Vec::new();
        while kept.len() >= KEPT {
            let oldest = kept.pop_front().and_then(|(_, range)| Arc::into_inner(range));
            spare =
                oldest.map_or(spare, |m| m.into_inner().unwrap_or_else(PoisonError::into_inner));
        }
        spare.clear();
        let range = Arc::new(Mutex::new(spare));
        kept.push_back((of, Arc::clone(&range)));
        range
    }

    /// Reads one whole range of a shard and checks its sum.
    ///
    /// # Errors
    /// It cannot be read, or is damaged.
    pub(crate) fn read_range(
        &self,
        of: (usize, &FileRecord),
        number: usize,
        out: &mut [u8],
    ) -> Result<(), Error> {
        self.read_range_by(of, number, |reading| reading.next(out))
    }

    /// Reads one whole range of a shard in the pieces that `read` asks for, all of them, and checks
    /// its sum. `read` is called again, from the first byte on, if there is a copy to be tried.
    ///
    /// # Errors
    /// It cannot be read, or is damaged; `read`'s.
    pub(crate) fn read_range_by(
        &self,
        of: (usize, &FileRecord),
        number: usize,
        mut read: impl FnMut(&mut Reading) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.anywhere(of.0, |dir| {
            let mut reading = self.begin(dir, of, number)?;
            read(&mut reading)?;
            reading.finish(self.sums(of.0, of.1)?.crcs[number])
        })
    }

    fn begin(
        &self,
        dir: &Path,
        (file, record): (usize, &FileRecord),
        number: usize,
    ) -> Result<Reading<'_>, Error> {
        let (start, end) = range(record, number);
        let handle = self.shard_in(dir, file, record)?;
        let sum = crc_fast::Digest::new(CrcAlgorithm::Crc32Iscsi);
        let (disk, path) = (self.disk.as_ref(), dir.join(&record.path));
        let (is_far, file_bytes, at) = (handle.is_far(), record.bytes, start);
        let mut reading =
            Reading { disk, path, handle, file_bytes, start, end, at, sum, ahead: None };
        if is_far {
            let mut bytes = vec![0; (end - start) as usize];
            reading.read_at(start, &mut bytes)?;
            reading.ahead = Some(bytes);
        }
        Ok(reading)
    }

    /// The shard where the checkpoint lies, opened once while not too many are.
    ///
    /// # Errors
    /// It is missing, or is no file.
    pub(crate) fn shard(
        &self,
        file: usize,
        record: &FileRecord,
    ) -> Result<Arc<dyn ReadFile>, Error> {
        self.shard_in(&self.dir, file, record)
    }

    fn shard_in(
        &self,
        dir: &Path,
        file: usize,
        record: &FileRecord,
    ) -> Result<Arc<dyn ReadFile>, Error> {
        let key = (file, dir.join(&record.path));
        if let Some(handle) = lock(&self.open).get(&key) {
            return Ok(Arc::clone(handle));
        }
        // Others open theirs meanwhile; where two open the same, one is closed soon.
        let handle = self.disk.open(&key.1).map_err(|error| self.missing("open", &key.1, error))?;
        let handle: Arc<dyn ReadFile> = Arc::from(handle);
        let mut open = lock(&self.open);
        if open.len() >= MAX_OPEN_FILES {
            open.clear();
        }
        open.insert(key, Arc::clone(&handle));
        Ok(handle)
    }

    /// A failure of a file, unless the whole checkpoint was removed meanwhile.
    fn missing(&self, action: &'static str, path: &Path, error: io::Error) -> Error {
        let disk = self.disk.as_ref();
        if_removed(disk, &self.dir, Error::io(disk, action, path)(error))
    }
}

/// The whole of a file whose length is known. Nothing is allocated for one of another length, and
/// none that is no file is waited for.
pub(crate) fn read_file(disk: &dyn Disk, path: &Path, bytes: u64) -> Result<Vec<u8>, Error> {
    let failed = |error| Error::io(disk, "read", path)(error);
    let file = disk.open(path).map_err(failed)?;
    check_file(disk, path, bytes)?;
    let mut out = Vec::new();
    let room = usize::try_from(bytes).ok().map(|count| (out.try_reserve_exact(count), count));
    let Some((Ok(()), count)) = room else {
        return Err(failed(io::ErrorKind::OutOfMemory.into()));
    };
    out.resize(count, 0);
    read_exact_at(file.as_ref(), &mut out, 0).map_err(failed)?;
    Ok(out)
}

/// Takes the checkpoint for removed where a file is missing and so is its `COMMIT`.
pub(crate) fn if_removed(disk: &dyn Disk, dir: &Path, error: Error) -> Error {
    match error {
        Error::MissingFile { .. } if has_no_commit(disk, dir) => {
            Error::Removed { path: dir.to_path_buf() }
        }
        other => other,
    }
}

pub(crate) fn has_no_commit(disk: &dyn Disk, dir: &Path) -> bool {
    matches!(exists(disk, &dir.join(names::COMMIT)), Ok(false))
}
