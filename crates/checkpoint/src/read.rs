//! Reading a checkpoint: any box of any tensor, whatever boxes it was saved in.
//!
//! ```text
//! box ∩ chunk ─▶ contiguous runs ─▶ pieces of 4 MiB file ranges ─▶ CRC32C ─▶ out
//! ```
//! Every range that a read touches is read whole and summed before a byte of it is handed out. A
//! piece that is a whole range goes straight to its destination; other pieces pass through one
//! staging buffer that remembers its range, so that neighbouring small tensors do not read it
//! again. Memory: the manifest, the sums tables (one part in a million of the data) and 4 MiB.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use layout::{LogicalTensor, Schema};

use crate::commit::{check_file, check_files, parse_commit};
use crate::disk::{Disk, Kind, OsDisk, ReadFile, exists, read_exact_at};
use crate::error::nearest;
use crate::manifest::{Manifest, RunState, StateTensor};
use crate::region::for_each_run;
use crate::sums::{self, RANGE_BYTES, Sums};
use crate::{Attempt, Digest, Dtype, Error, Region, TensorKey, names};

/// Shards kept open at a time.
const MAX_OPEN_FILES: usize = 64;

/// A `COMMIT` of any version is far shorter.
const MAX_COMMIT_BYTES: u64 = 1 << 16;

/// A committed checkpoint whose structure has been verified: `COMMIT`, manifest, exact cover,
/// every file present with its length, and the sums tables. Data are verified as they are read.
pub struct Checkpoint {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) dir: PathBuf,
    manifest: Manifest,
    manifest_blake3: Digest,
    sums: Vec<Sums>,
    index: HashMap<TensorKey, usize>,
    open: Mutex<HashMap<usize, Arc<dyn ReadFile>>>,
    staging: Mutex<Staging>,
}

/// One verified range of one shard.
#[derive(Default)]
struct Staging {
    bytes: Vec<u8>,
    /// File and range number of what `bytes` holds.
    holds: Option<(usize, usize)>,
}

impl std::fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Checkpoint").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl Checkpoint {
    /// Opens a committed attempt's directory.
    ///
    /// # Errors
    /// It is not committed, of a later version, or damaged; see [`Error`].
    pub fn open(path: impl Into<PathBuf>) -> Result<Checkpoint, Error> {
        Checkpoint::open_on(Arc::new(OsDisk), path)
    }

    /// As [`Checkpoint::open`], on another disk.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn open_on(disk: Arc<dyn Disk>, path: impl Into<PathBuf>) -> Result<Checkpoint, Error> {
        let dir = path.into();
        let commit = read_commit(disk.as_ref(), &dir)?;
        Checkpoint::open_committed(&disk, &dir, &commit)
            .map_err(|error| if_removed(disk.as_ref(), &dir, error))
    }

    fn open_committed(
        disk: &Arc<dyn Disk>,
        dir: &Path,
        commit: &[u8],
    ) -> Result<Checkpoint, Error> {
        let record = parse_commit(commit, &dir.join(names::COMMIT))?;
        let path = dir.join(names::MANIFEST);
        let bytes = read_file(disk.as_ref(), &path, record.manifest_bytes)?;
        let (expected, manifest_blake3) = (record.manifest_blake3, Digest::of(&bytes));
        if expected != manifest_blake3 {
            return Err(Error::FileDigest { path, expected, actual: manifest_blake3 });
        }
        let manifest = Manifest::parse(&bytes, &path)?;
        check_name(dir, &manifest)?;
        check_files(disk.as_ref(), dir, &manifest)?;
        let sums = read_sums(disk.as_ref(), dir, &manifest)?;
        let index = manifest.tensors.iter().map(StateTensor::key).zip(0..).collect();
        let (open, staging) = (Mutex::default(), Mutex::default());
        let (disk, dir) = (Arc::clone(disk), dir.to_path_buf());
        Ok(Checkpoint { disk, dir, manifest, manifest_blake3, sums, index, open, staging })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Step and generation.
    pub fn attempt(&self) -> Attempt {
        Attempt { step: self.manifest.step, generation: self.manifest.generation }
    }

    /// All that is recorded.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// BLAKE3 of the manifest: it names this very checkpoint.
    pub fn manifest_blake3(&self) -> Digest {
        self.manifest_blake3
    }

    /// The state besides tensors that a run needs to go on.
    pub fn run_state(&self) -> &RunState {
        &self.manifest.run_state
    }

    /// The state tensors in the order in which they were saved.
    pub fn tensors(&self) -> &[StateTensor] {
        &self.manifest.tensors
    }

    /// The model's logical tensors.
    pub fn schema(&self) -> Schema {
        Schema { tensors: self.manifest.schema.iter().map(LogicalTensor::from).collect() }
    }

    /// The state tensor of a key.
    ///
    /// # Errors
    /// There is none; the nearest one is named.
    pub fn tensor(&self, key: &TensorKey) -> Result<&StateTensor, Error> {
        match self.index.get(key) {
            Some(&number) => Ok(&self.manifest.tensors[number]),
            None => {
                let nearest = nearest(&key.to_string(), self.index.keys());
                Err(Error::NoSuchTensor { key: key.clone(), nearest })
            }
        }
    }

    /// Fills `out` with a box of a tensor, row-major, verifying each 4 MiB range it touches.
    ///
    /// # Errors
    /// No such tensor; another type than `dtype`; a box outside; an output of another length;
    /// damaged or missing data. After an error `out` is unspecified.
    pub fn read_box(
        &self,
        key: &TensorKey,
        dtype: Dtype,
        region: &Region,
        out: &mut [u8],
    ) -> Result<(), Error> {
        let tensor = self.tensor(key)?;
        let key = || key.clone();
        if tensor.dtype != dtype {
            let (stored, asked) = (tensor.dtype, dtype);
            return Err(Error::DtypeDiffers { key: key(), stored, asked });
        }
        if !region.fits(&tensor.shape) {
            let (shape, region) = (tensor.shape.clone(), region.clone());
            return Err(Error::OutOfBounds { key: key(), shape, region });
        }
        let size = dtype.size_bytes();
        let expected = region.elements().unwrap_or(0) * size;
        if expected != out.len() {
            let (region, expected, actual) = (region.clone(), expected as u64, out.len() as u64);
            return Err(Error::OutputLength { key: key(), region, expected, actual });
        }
        for chunk in &tensor.chunks {
            let source = chunk.region();
            let Some(part) = source.intersect(region) else { continue };
            let file = chunk.file as usize;
            for_each_run(&part, &source, region, |from, to, len| {
                let at = chunk.range[0] + (from * size) as u64;
                self.read_verified(file, at, &mut out[to * size..(to + len) * size])
            })?;
        }
        Ok(())
    }

    /// A whole tensor.
    ///
    /// # Errors
    /// As [`Checkpoint::read_box`].
    pub fn read_tensor(&self, key: &TensorKey) -> Result<Vec<u8>, Error> {
        let tensor = self.tensor(key)?;
        let mut bytes = vec![0; tensor.bytes() as usize];
        self.read_box(key, tensor.dtype, &Region::whole(&tensor.shape), &mut bytes)?;
        Ok(bytes)
    }

    /// Reads bytes of a shard, range by range.
    fn read_verified(&self, file: usize, start: u64, out: &mut [u8]) -> Result<(), Error> {
        let mut done = 0;
        while done < out.len() {
            let at = start + done as u64;
            let number = (at / RANGE_BYTES) as usize;
            let (first, end) = self.sums[file].range(number);
            let count = ((end - at) as usize).min(out.len() - done);
            let piece = &mut out[done..done + count];
            if count as u64 == end - first {
                self.read_range(file, number, piece)?;
            } else {
                let staging = self.stage(file, number)?;
                let skip = (at - first) as usize;
                piece.copy_from_slice(&staging.bytes[skip..skip + count]);
            }
            done += count;
        }
        Ok(())
    }

    /// The staging buffer, holding the range asked for.
    fn stage(&self, file: usize, number: usize) -> Result<MutexGuard<'_, Staging>, Error> {
        // The buffer is marked empty while it is filled, so a panic elsewhere leaves it sound.
        let mut staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        if staging.holds != Some((file, number)) {
            staging.holds = None;
            let (first, end) = self.sums[file].range(number);
            staging.bytes.resize((end - first) as usize, 0);
            self.read_range(file, number, &mut staging.bytes)?;
            staging.holds = Some((file, number));
        }
        Ok(staging)
    }

    /// Reads one whole range of a shard and checks its sum.
    pub(crate) fn read_range(
        &self,
        file: usize,
        number: usize,
        out: &mut [u8],
    ) -> Result<(), Error> {
        let (start, end) = self.sums[file].range(number);
        let path = || self.dir.join(&self.manifest.files[file].path);
        let handle = self.shard(file)?;
        read_exact_at(handle.as_ref(), out, start).map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof => {
                let expected = self.sums[file].file_bytes;
                let actual = self.disk.stat(&path()).map_or(start, |found| found.bytes);
                Error::FileLength { path: path(), expected, actual }
            }
            _ => Error::Io { action: "read", path: path(), offset: Some(start), source },
        })?;
        let (expected, actual) = (self.sums[file].crcs[number], crc_fast::crc32_iscsi(out));
        if expected != actual {
            let holds = self.holders(file, start, end);
            return Err(Error::Range { path: path(), start, end, holds, expected, actual });
        }
        Ok(())
    }

    /// Number of ranges of a shard, and the length of each.
    pub(crate) fn ranges(&self, file: usize) -> impl Iterator<Item = (usize, usize)> + '_ {
        let sums = &self.sums[file];
        (0..sums.crcs.len()).map(|number| {
            let (start, end) = sums.range(number);
            (number, (end - start) as usize)
        })
    }

    /// The shard, opened once while not too many are.
    pub(crate) fn shard(&self, file: usize) -> Result<Arc<dyn ReadFile>, Error> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(handle) = open.get(&file) {
            return Ok(Arc::clone(handle));
        }
        if open.len() >= MAX_OPEN_FILES {
            open.clear();
        }
        let path = self.dir.join(&self.manifest.files[file].path);
        let handle = self.disk.open(&path).map_err(|error| {
            let error = Error::io(self.disk.as_ref(), "open", &path)(error);
            if_removed(self.disk.as_ref(), &self.dir, error)
        })?;
        let handle: Arc<dyn ReadFile> = Arc::from(handle);
        open.insert(file, Arc::clone(&handle));
        Ok(handle)
    }

    /// The tensors in some bytes of a shard, for an error message.
    fn holders(&self, file: usize, start: u64, end: u64) -> String {
        let inside = |tensor: &&StateTensor| {
            tensor.chunks.iter().any(|chunk| {
                chunk.file as usize == file && chunk.range[0] < end && chunk.range[1] > start
            })
        };
        let keys: Vec<String> =
            self.manifest.tensors.iter().filter(inside).map(|t| t.key().to_string()).collect();
        match keys.len() {
            0 => "no tensor".to_string(),
            1..=4 => keys.join(", "),
            more => format!("{} and {} more", keys[..3].join(", "), more - 3),
        }
    }
}

/// The bytes of an attempt's `COMMIT`.
fn read_commit(disk: &dyn Disk, dir: &Path) -> Result<Vec<u8>, Error> {
    let path = dir.join(names::COMMIT);
    // A directory that is not there, or not to be looked into, is told as itself.
    disk.list(dir).map_err(Error::io(disk, "list", dir))?;
    let found = disk.stat(&path).map_err(|error| match Error::io(disk, "read", &path)(error) {
        Error::MissingFile { .. } => Error::NotCommitted { path: dir.to_path_buf() },
        other => other,
    })?;
    if found.kind == Kind::File && found.bytes > MAX_COMMIT_BYTES {
        let reason = format!("it has {} bytes, and none has more than a few hundred", found.bytes);
        return Err(Error::Commit { path, reason });
    }
    read_file(disk, &path, found.bytes)
}

/// The whole of a file whose length is known. Nothing is allocated for one of another length, and
/// none that is no file is waited for.
fn read_file(disk: &dyn Disk, path: &Path, bytes: u64) -> Result<Vec<u8>, Error> {
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
fn if_removed(disk: &dyn Disk, dir: &Path, error: Error) -> Error {
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

/// A directory that bears an attempt's name holds that attempt.
fn check_name(dir: &Path, manifest: &Manifest) -> Result<(), Error> {
    let holds = Attempt { step: manifest.step, generation: manifest.generation };
    let named = dir.file_name().and_then(|name| Attempt::parse(name.to_str()?));
    match named {
        Some(named) if named != holds => Err(Error::Misnamed { path: dir.to_path_buf(), holds }),
        _ => Ok(()),
    }
}

/// The sums tables, each against its digest.
fn read_sums(disk: &dyn Disk, dir: &Path, manifest: &Manifest) -> Result<Vec<Sums>, Error> {
    let table = |file: &crate::manifest::FileRecord| {
        let path = dir.join(file.sums_path());
        let bytes = read_file(disk, &path, sums::table_bytes(file.bytes))?;
        let (expected, actual) = (file.sums_blake3, Digest::of(&bytes));
        if expected != actual {
            return Err(Error::FileDigest { path, expected, actual });
        }
        let sums = Sums::decode(&bytes);
        let sums = sums.map_err(|reason| Error::Sums { path: path.clone(), reason })?;
        if sums.file_bytes != file.bytes {
            let reason =
                format!("it is of a file of {} bytes, not {}", sums.file_bytes, file.bytes);
            return Err(Error::Sums { path, reason });
        }
        Ok(sums)
    };
    manifest.files.iter().map(table).collect()
}
