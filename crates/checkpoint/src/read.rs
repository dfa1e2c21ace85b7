//! Reading a checkpoint: any box of any tensor, whatever boxes it was saved in.
//!
//! ```text
//! box ∩ chunk ─▶ contiguous runs ─▶ verified bytes of a shard ─▶ out
//! ```
//! Memory: the manifest, the sums tables that were needed (one part in a million of the data), and
//! 4 MiB; many boxes, by several threads: [`Checkpoint::read_boxes`].

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use layout::{LogicalTensor, Schema};

use crate::at_once;
use crate::chunk_index::ChunkIndex;
use crate::commit::{check_shard, parse_commit};
use crate::disk::{Disk, Kind, ReadFile};
use crate::error::nearest;
use crate::manifest::{ChunkRecord, FileRecord, Manifest, RunState, StateTensor};
use crate::region::for_each_run;
use crate::verified::{FileRange, Reading, Recovered, Verified, if_removed, range, read_file};
use crate::{Anywhere, Attempt, Digest, Dtype, Error, Region, TensorKey, names, sums};

/// A `COMMIT` of any version is far shorter.
const MAX_COMMIT_BYTES: u64 = 1 << 16;

/// A committed checkpoint whose structure has been verified: `COMMIT`, manifest, exact cover.
/// Data are verified as they are read.
pub struct Checkpoint {
    manifest: Manifest,
    manifest_blake3: Digest,
    index: HashMap<TensorKey, usize>,
    chunks: Vec<OnceLock<ChunkIndex>>,
    pub(crate) files: Verified,
}

impl std::fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Checkpoint").field("dir", &self.files.dir).finish_non_exhaustive()
    }
}

impl Checkpoint {
    /// Opens a committed attempt's directory, every file of which is there with its length, and
    /// every sums table right.
    ///
    /// # Errors
    /// It is not committed, of a later version, or damaged; see [`Error`].
    pub fn open(path: impl Into<PathBuf>) -> Result<Checkpoint, Error> {
        Checkpoint::open_on(Arc::new(Anywhere), path)
    }

    /// As [`Checkpoint::open`], on another disk.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn open_on(disk: Arc<dyn Disk>, path: impl Into<PathBuf>) -> Result<Checkpoint, Error> {
        let checkpoint = Checkpoint::open_lazily_on(disk, path, &[])?;
        checkpoint.check()
    }

    /// As [`Checkpoint::open`], of which files may have copies, under the same names, in other
    /// attempts' directories: whatever of a file is missing, damaged or cannot be read is taken
    /// from a copy, which is held to the same sums. See [`Checkpoint::recovered`].
    ///
    /// # Errors
    /// As [`Checkpoint::open`], where no copy helps.
    pub fn open_with_copies(
        path: impl Into<PathBuf>,
        copies: &[PathBuf],
    ) -> Result<Checkpoint, Error> {
        Checkpoint::open_lazily_with_copies(path, copies)?.check()
    }

    /// As [`Checkpoint::open_with_copies`] and [`Checkpoint::open_lazily`].
    ///
    /// # Errors
    /// As those.
    pub fn open_lazily_with_copies(
        path: impl Into<PathBuf>,
        copies: &[PathBuf],
    ) -> Result<Checkpoint, Error> {
        Checkpoint::open_lazily_on(Arc::new(Anywhere), path, copies)
    }

    fn check(self) -> Result<Checkpoint, Error> {
        let checkpoint = self;
        checkpoint.check_all_files().map_err(|error| {
            if_removed(checkpoint.files.disk.as_ref(), checkpoint.path(), error)
        })?;
        Ok(checkpoint)
    }

    /// As [`Checkpoint::open`], for one of many ranks that each read a part, while another one
    /// opens all of it: files and their tables of sums are looked at when they are needed, so that
    /// none reads a table that it does not need.
    ///
    /// # Errors
    /// As [`Checkpoint::open`], but for the files' being there and the tables' being right.
    pub fn open_lazily(path: impl Into<PathBuf>) -> Result<Checkpoint, Error> {
        Checkpoint::open_lazily_on(Arc::new(Anywhere), path, &[])
    }

    /// As [`Checkpoint::open_lazily_with_copies`], on another disk.
    ///
    /// # Errors
    /// As [`Checkpoint::open_lazily`].
    pub fn open_lazily_on(
        disk: Arc<dyn Disk>,
        path: impl Into<PathBuf>,
        copies: &[PathBuf],
    ) -> Result<Checkpoint, Error> {
        let dir = path.into();
        let commit = read_commit(disk.as_ref(), &dir)?;
        Checkpoint::open_committed(&disk, (&dir, copies), &commit)
            .map_err(|error| if_removed(disk.as_ref(), &dir, error))
    }

    /// Every file is there with its length, and every table of sums is right.
    fn check_all_files(&self) -> Result<(), Error> {
        let disk = self.files.disk.as_ref();
        let files = &self.manifest.files;
        at_once::each(disk, self.path(), files.len(), |number| {
            self.files.anywhere(number, |dir| check_shard(disk, dir, &files[number]))?;
            self.files.sums(number, &files[number]).map(|_| ())
        })
    }

    fn open_committed(
        disk: &Arc<dyn Disk>,
        (dir, copies): (&Path, &[PathBuf]),
        commit: &[u8],
    ) -> Result<Checkpoint, Error> {
        let record = parse_commit(commit, &dir.join(names::COMMIT))?;
        let path = dir.join(names::MANIFEST);
        let bytes = read_file(disk.as_ref(), &path, record.manifest_bytes)?;
        let (expected, actual) = (record.manifest_blake3, Digest::of(&bytes));
        if expected != actual {
            return Err(Error::FileDigest { path, expected, actual });
        }
        Checkpoint::of(disk, (dir, copies), &bytes)
    }

    /// A checkpoint of a manifest that is known to be right.
    pub(crate) fn of_bytes(dir: &Path, manifest: &[u8]) -> Result<Checkpoint, Error> {
        let disk: Arc<dyn Disk> = Arc::new(Anywhere);
        Checkpoint::of(&disk, (dir, &[]), manifest)
    }

    fn of(
        disk: &Arc<dyn Disk>,
        (dir, copies): (&Path, &[PathBuf]),
        bytes: &[u8],
    ) -> Result<Checkpoint, Error> {
        let manifest_blake3 = Digest::of(bytes);
        let manifest = Manifest::parse(bytes, &dir.join(names::MANIFEST))?;
        check_name(dir, &manifest)?;
        let index = manifest.tensors.iter().map(StateTensor::key).zip(0..).collect();
        let chunks = manifest.tensors.iter().map(|_| OnceLock::new()).collect();
        let (disk, dir, copies) = (Arc::clone(disk), dir.to_path_buf(), copies.to_vec());
        let files = Verified::new(disk, dir, copies, manifest.files.len());
        Ok(Checkpoint { manifest, manifest_blake3, index, chunks, files })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.files.dir
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
        self.find(key).map(|(_, tensor)| tensor)
    }

    fn find(&self, key: &TensorKey) -> Result<(usize, &StateTensor), Error> {
        match self.index.get(key) {
            Some(&number) => Ok((number, &self.manifest.tensors[number])),
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
        let chunks = self.chunks_of(key, dtype, region)?;
        let size = dtype.size_bytes();
        let expected = region.elements().unwrap_or(0) * size;
        if expected != out.len() {
            let (region, expected, actual) = (region.clone(), expected as u64, out.len() as u64);
            return Err(Error::OutputLength { key: key.clone(), region, expected, actual });
        }
        for chunk in chunks {
            let source = chunk.region();
            let Some(part) = source.intersect(region) else { continue };
            let file = chunk.file as usize;
            let of = (file, &self.manifest.files[file]);
            for_each_run(&part, &source, region, |from, to, len| {
                let at = chunk.range[0] + (from * size) as u64;
                self.files.read(of, at, &mut out[to * size..(to + len) * size])
            })
            .map_err(|error| self.name_holders(file, error))?;
        }
        Ok(())
    }

    /// The chunks that touch a box.
    ///
    /// # Errors
    /// No such tensor; another type; a box outside.
    pub(crate) fn chunks_of(
        &self,
        key: &TensorKey,
        dtype: Dtype,
        region: &Region,
    ) -> Result<Vec<&ChunkRecord>, Error> {
        let (number, tensor) = self.find(key)?;
        let key = || key.clone();
        if tensor.dtype != dtype {
            let (stored, asked) = (tensor.dtype, dtype);
            return Err(Error::DtypeDiffers { key: key(), stored, asked });
        }
        if !region.fits(&tensor.shape) {
            let (shape, region) = (tensor.shape.clone(), region.clone());
            return Err(Error::OutOfBounds { key: key(), shape, region });
        }
        let index = self.chunks[number].get_or_init(|| ChunkIndex::new(tensor));
        Ok(index.touching(&tensor.chunks, region).collect())
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

    /// All that was taken from copies since the last call, and why: a line each.
    pub fn recovered(&self) -> Vec<String> {
        let line = |Recovered { file, error, copy }| {
            let error = self.name_holders(file, error);
            format!("{error}; the copy in {} serves instead", copy.display())
        };
        self.files.recovered().into_iter().map(line).collect()
    }

    /// As many threads as are asked for, or as the disk needs to be busy.
    pub(crate) fn reading_threads(&self, threads: usize) -> usize {
        threads.max(self.files.disk.at_once(self.path()))
    }

    /// Lets the system drop what it holds of the shards in memory, as far as it can, so that they
    /// are read from the medium next.
    pub(crate) fn forget(&self) {
        for file in 0..self.manifest.files.len() {
            // One that cannot be opened is found where it is read.
            if let Ok(shard) = self.shard(file) {
                shard.forget();
            }
        }
    }

    /// Reads one whole range of a shard and checks its sum.
    pub(crate) fn read_range(
        &self,
        file: usize,
        number: usize,
        out: &mut [u8],
    ) -> Result<(), Error> {
        let read = self.files.read_range((file, &self.manifest.files[file]), number, out);
        read.map_err(|error| self.name_holders(file, error))
    }

    /// As [`Checkpoint::read_range`], in the pieces that `read` asks for.
    pub(crate) fn read_range_by(
        &self,
        at: FileRange,
        read: impl FnMut(&mut Reading) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let (file, number) = (at.file as usize, at.number as usize);
        let read = self.files.read_range_by((file, &self.manifest.files[file]), number, read);
        read.map_err(|error| self.name_holders(file, error))
    }

    /// Checks bytes of a range that came from elsewhere, where they had the sum `expected`.
    pub(crate) fn check_range(
        &self,
        at: FileRange,
        bytes: &[u8],
        expected: u32,
    ) -> Result<(), Error> {
        let actual = crc_fast::crc32_iscsi(bytes);
        if actual == expected {
            return Ok(());
        }
        let (file, record) = (at.file as usize, &self.manifest.files[at.file as usize]);
        let (start, end) = range(record, at.number as usize);
        let (path, holds) = (self.path().join(&record.path), self.holders(file, start, end));
        Err(Error::Range { path, start, end, holds, expected, actual })
    }

    /// Number of ranges of a shard, and the length of each.
    pub(crate) fn ranges(&self, file: usize) -> impl Iterator<Item = (usize, usize)> + '_ {
        let record: &FileRecord = &self.manifest.files[file];
        (0..sums::ranges(record.bytes) as usize).map(|number| {
            let (start, end) = range(record, number);
            (number, (end - start) as usize)
        })
    }

    /// Bytes of one range of a shard.
    pub(crate) fn range_bytes(&self, file: usize, number: usize) -> usize {
        let (start, end) = range(&self.manifest.files[file], number);
        (end - start) as usize
    }

    /// The shard, opened.
    pub(crate) fn shard(&self, file: usize) -> Result<Arc<dyn ReadFile>, Error> {
        self.files.shard(file, &self.manifest.files[file])
    }

    /// Tells which tensors a damaged range holds.
    fn name_holders(&self, file: usize, error: Error) -> Error {
        match error {
            Error::Range { path, start, end, expected, actual, .. } => {
                let holds = self.holders(file, start, end);
                Error::Range { path, start, end, holds, expected, actual }
            }
            other => other,
        }
    }

    /// The tensors in some bytes of a shard, for an error message; of a few also which elements.
    fn holders(&self, file: usize, start: u64, end: u64) -> String {
        let mut parts = Vec::new();
        for tensor in &self.manifest.tensors {
            let inside = |chunk: &&ChunkRecord| {
                chunk.file as usize == file && chunk.range[0] < end && chunk.range[1] > start
            };
            parts.extend(tensor.chunks.iter().filter(inside).map(|chunk| (tensor, chunk)));
        }
        let key = |(tensor, _): &(&StateTensor, &ChunkRecord)| tensor.key().to_string();
        let elements = |part: &(&StateTensor, &ChunkRecord)| {
            let (size, chunk) = (part.0.dtype.size_bytes() as u64, part.1);
            let first = (start.max(chunk.range[0]) - chunk.range[0]) / size;
            let last = (end.min(chunk.range[1]) - chunk.range[0]).div_ceil(size);
            format!("{} (elements {first}..{last} of {})", key(part), chunk.region())
        };
        match parts.len() {
            0 => "no tensor".to_string(),
            1..=4 => parts.iter().map(elements).collect::<Vec<_>>().join(", "),
            more => {
                let first: Vec<String> = parts[..3].iter().map(key).collect();
                format!("{} and {} more", first.join(", "), more - 3)
            }
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

/// A directory that bears an attempt's name holds that attempt.
fn check_name(dir: &Path, manifest: &Manifest) -> Result<(), Error> {
    let holds = Attempt { step: manifest.step, generation: manifest.generation };
    let named = dir.file_name().and_then(|name| Attempt::parse(name.to_str()?));
    match named {
        Some(named) if named != holds => Err(Error::Misnamed { path: dir.to_path_buf(), holds }),
        _ => Ok(()),
    }
}
