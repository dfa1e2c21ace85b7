//! A rank's part of a save: stream, sum, fsync.
//!
//! ```text
//! chunks ─▶ plan (order, shards, headers) ─▶ one 4 MiB staging buffer ─▶ CRC32C ─▶ write
//!                                                       per shard: fsync, then its .sums, fsync
//!                                                       at the end: fsync of the rank's directory
//! ```
//! The staging buffer is filled at the file's own 4 MiB ranges, so each is summed while it is in
//! cache and written by one call; memory does not grow with the size of the model.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::disk::{Disk, WriteFile, exists};
use crate::error::{Source, is_disk_full, is_quota};
use crate::objects::ObjectError;
use crate::shard::{self, Label, Plan};
use crate::sums::{RANGE_BYTES, Sums, table_bytes};
use crate::{Attempt, Digest, Dtype, Error, Region, TensorKey, names};

/// The bytes of a chunk, wherever they live: device memory is copied out piece by piece.
pub trait ChunkData {
    /// Number of bytes.
    fn len(&self) -> u64;

    /// True where there is no byte.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills `out` with the bytes at `offset`; within `len`. Pieces are asked for in rising order.
    ///
    /// # Errors
    /// Whatever hinders the source.
    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<(), Source>;
}

impl ChunkData for &[u8] {
    fn len(&self) -> u64 {
        <[u8]>::len(self) as u64
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<(), Source> {
        let start = offset as usize;
        let bytes = self.get(start..start + out.len()).ok_or("the chunk ends before")?;
        out.copy_from_slice(bytes);
        Ok(())
    }
}

impl ChunkData for Vec<u8> {
    fn len(&self) -> u64 {
        self.as_slice().len() as u64
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<(), Source> {
        self.as_slice().read_at(offset, out)
    }
}

/// A box of a state tensor that this rank saves, row-major.
pub struct Chunk<'a> {
    pub key: TensorKey,
    pub dtype: Dtype,
    /// Shape of the whole tensor.
    pub global_shape: Vec<usize>,
    pub region: Region,
    pub data: Box<dyn ChunkData + 'a>,
}

impl<'a> Chunk<'a> {
    /// A box of a tensor; `data` is its bytes, row-major.
    pub fn new(
        key: TensorKey,
        dtype: Dtype,
        global_shape: &[usize],
        region: Region,
        data: impl ChunkData + 'a,
    ) -> Chunk<'a> {
        let global_shape = global_shape.to_vec();
        Chunk { key, dtype, global_shape, region, data: Box::new(data) }
    }
}

/// How to write.
#[derive(Debug, Clone, Copy)]
pub struct WriteOptions {
    /// A shard is closed before it would grow beyond this; one larger chunk still gets its own.
    pub max_shard_bytes: u64,
    /// Also record a BLAKE3 digest of each shard (about 2 GB/s and core).
    pub digest_data: bool,
}

impl Default for WriteOptions {
    fn default() -> WriteOptions {
        WriteOptions { max_shard_bytes: 4 << 30, digest_data: false }
    }
}

/// A rank's list of the files and chunks it wrote: all that is needed to commit without a
/// [`crate::SavePlan`]. The coordinator of one is sent a [`crate::RankDigest`] of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RankReport {
    pub attempt: Attempt,
    pub rank: u32,
    pub world: u32,
    pub files: Vec<ReportedFile>,
    pub chunks: Vec<ReportedChunk>,
}

/// The words of one rank about an attempt.
pub(crate) trait OfRank {
    /// The attempt, the rank, and of how many.
    fn of_rank(&self) -> (Attempt, u32, u32);
}

impl OfRank for RankReport {
    fn of_rank(&self) -> (Attempt, u32, u32) {
        (self.attempt, self.rank, self.world)
    }
}

/// A shard that a rank wrote and fsynced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportedFile {
    pub bytes: u64,
    pub sums_blake3: Digest,
    pub data_blake3: Option<Digest>,
}

/// A chunk that a rank wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportedChunk {
    pub key: TensorKey,
    pub dtype: Dtype,
    pub global_shape: Vec<usize>,
    pub region: Region,
    /// Number of the rank's shard.
    pub shard: u32,
    /// First byte in the shard and one past the last.
    pub range: [u64; 2],
}

/// See [`crate::Store::write_rank`].
pub(crate) fn write_rank(
    disk: &dyn Disk,
    root: &Path,
    attempt: Attempt,
    (rank, world): (u32, u32),
    chunks: &[Chunk],
    options: &WriteOptions,
) -> Result<RankReport, Error> {
    chunks.iter().try_for_each(check_chunk)?;
    let dir = root.join(attempt.dir_name());
    let rank_dir = dir.join(names::rank_dir(rank));
    // Chunks without elements hold nothing to store: an empty tensor is covered by no chunk.
    let stored: Vec<&Chunk> = chunks.iter().filter(|chunk| !chunk.data.is_empty()).collect();
    let labels: Vec<Label> = stored.iter().map(|chunk| label(chunk)).collect();
    let plans = shard::plan(&labels, (rank, 0), options.max_shard_bytes);

    let needed_bytes = plans.iter().map(|plan| plan.bytes + table_bytes(plan.bytes)).sum();
    if let Some(free) = disk.free(root).filter(|free| free.bytes < needed_bytes) {
        let (path, free) = (rank_dir, Some(free));
        return Err(Error::DiskFull { path, needed_bytes, free, quota: false });
    }
    if exists(disk, &dir.join(names::COMMIT)).map_err(Error::io(disk, "read", &dir))? {
        return Err(Error::AlreadyCommitted { path: dir });
    }
    match disk.create_dir(&dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(create_error(disk, &dir, needed_bytes)(error));
        }
        _ => {} // Other ranks of this attempt share it.
    }
    disk.create_dir(&rank_dir).map_err(create_error(disk, &rank_dir, needed_bytes))?;

    let longest = plans.iter().map(|plan| plan.bytes).max().unwrap_or(0);
    let mut writer = Writer {
        disk,
        staging: vec![0; longest.min(RANGE_BYTES) as usize],
        left_bytes: needed_bytes,
        digest_data: options.digest_data,
    };
    let mut report = RankReport { attempt, rank, world, files: Vec::new(), chunks: Vec::new() };
    for (number, plan) in plans.iter().enumerate() {
        let number = number as u32;
        let sums = dir.join(names::sums_path(rank, number));
        let path = dir.join(names::shard_path(rank, number));
        report.files.push(writer.write_shard(&path, &sums, plan, &stored)?);
        report.chunks.extend(plan.places.iter().map(|place| {
            let Chunk { key, dtype, global_shape, region, .. } = stored[place.chunk];
            let (key, global_shape, region) = (key.clone(), global_shape.clone(), region.clone());
            let range = [place.start, place.end];
            ReportedChunk { key, dtype: *dtype, global_shape, region, shard: number, range }
        }));
    }
    sync_dir(disk, &rank_dir)?;
    Ok(report)
}

/// Checks the parts of one chunk that a caller can get wrong: slot, region and bytes of data.
fn check_chunk(chunk: &Chunk) -> Result<(), Error> {
    let fail = |reason: String| Err(Error::Tensor { key: chunk.key.clone(), reason });
    if !chunk.key.slot_is_valid() {
        return fail(format!("`{}` is not a slot: use a-z, 0-9 and _", chunk.key.slot));
    }
    if !chunk.region.fits(&chunk.global_shape) {
        let (shape, region) = (&chunk.global_shape, &chunk.region);
        return fail(format!("the chunk {region} is not inside the shape {shape:?}"));
    }
    let expected = chunk.region.elements().and_then(|n| n.checked_mul(chunk.dtype.size_bytes()));
    if expected.map(|bytes| bytes as u64) != Some(chunk.data.len()) {
        return fail(format!(
            "the chunk {} of {} has {} bytes of data",
            chunk.region,
            chunk.dtype,
            chunk.data.len()
        ));
    }
    Ok(())
}

fn label<'a>(chunk: &'a Chunk) -> Label<'a> {
    Label {
        name: chunk.key.chunk_name(&chunk.region),
        dtype: chunk.dtype,
        region: &chunk.region,
        bytes: chunk.data.len(),
    }
}

/// Writes files one after another through one buffer.
pub(crate) struct Writer<'a> {
    disk: &'a dyn Disk,
    staging: Vec<u8>,
    /// Bytes of the whole save not yet written, for the message when the disk is full.
    left_bytes: u64,
    digest_data: bool,
}

/// A shard half written.
struct OpenShard<'a> {
    path: &'a Path,
    file: Box<dyn WriteFile>,
    written: u64,
    staged: usize,
    crcs: Vec<u32>,
    digest: Option<blake3::Hasher>,
}

impl Writer<'_> {
    fn write_shard(
        &mut self,
        path: &Path,
        sums_path: &Path,
        plan: &Plan,
        chunks: &[&Chunk],
    ) -> Result<ReportedFile, Error> {
        let file = self.disk.create_new(path);
        let file = file.map_err(create_error(self.disk, path, self.left_bytes))?;
        let digest = self.digest_data.then(blake3::Hasher::new);
        let mut shard = OpenShard { path, file, written: 0, staged: 0, crcs: Vec::new(), digest };
        self.stage(&mut shard, &(&*plan.header as &[u8]), None)?;
        for place in &plan.places {
            let chunk = chunks[place.chunk];
            self.stage(&mut shard, chunk.data.as_ref(), Some(&chunk.key))?;
        }
        self.flush(&mut shard)?;
        sync_file(self.disk, shard.file.as_mut(), path, self.left_bytes)?;
        let sums = Sums { file_bytes: shard.written, crcs: shard.crcs }.encode();
        self.left_bytes = self.left_bytes.saturating_sub(sums.len() as u64);
        write_file(self.disk, sums_path, &sums, self.left_bytes)?;
        Ok(ReportedFile {
            bytes: shard.written,
            sums_blake3: Digest::of(&sums),
            data_blake3: shard.digest.map(|hasher| Digest(*hasher.finalize().as_bytes())),
        })
    }

    /// Copies a source into the staging buffer, writing it out whenever it is full.
    fn stage(
        &mut self,
        shard: &mut OpenShard,
        data: &dyn ChunkData,
        key: Option<&TensorKey>,
    ) -> Result<(), Error> {
        let mut offset = 0;
        while offset < data.len() {
            let space = &mut self.staging[shard.staged..];
            let count = (space.len() as u64).min(data.len() - offset) as usize;
            data.read_at(offset, &mut space[..count]).map_err(|source| {
                let key = key.cloned().unwrap_or_else(|| TensorKey::new("header", ""));
                Error::ChunkData { key, offset, source }
            })?;
            offset += count as u64;
            shard.staged += count;
            if shard.staged == self.staging.len() {
                self.flush(shard)?;
            }
        }
        Ok(())
    }

    /// Sums and writes what is staged: one range of the file.
    fn flush(&mut self, shard: &mut OpenShard) -> Result<(), Error> {
        let bytes = &self.staging[..shard.staged];
        if bytes.is_empty() {
            return Ok(());
        }
        shard.crcs.push(crc_fast::crc32_iscsi(bytes));
        if let Some(digest) = &mut shard.digest {
            digest.update(bytes);
        }
        let at = shard.written;
        write_all(self.disk, shard.file.as_mut(), shard.path, at, bytes, self.left_bytes)?;
        shard.written += bytes.len() as u64;
        self.left_bytes = self.left_bytes.saturating_sub(bytes.len() as u64);
        shard.staged = 0;
        Ok(())
    }
}

/// Creates, writes and fsyncs a small file.
///
/// # Errors
/// It exists; the disk is full; a write or the fsync fails.
pub(crate) fn write_file(
    disk: &dyn Disk,
    path: &Path,
    bytes: &[u8],
    more_bytes: u64,
) -> Result<(), Error> {
    let needed_bytes = bytes.len() as u64 + more_bytes;
    let mut file = disk.create_new(path).map_err(create_error(disk, path, needed_bytes))?;
    write_all(disk, file.as_mut(), path, 0, bytes, needed_bytes)?;
    sync_file(disk, file.as_mut(), path, needed_bytes)
}

fn write_all(
    disk: &dyn Disk,
    file: &mut dyn WriteFile,
    path: &Path,
    offset: u64,
    bytes: &[u8],
    needed_bytes: u64,
) -> Result<(), Error> {
    let mut done = 0;
    while done < bytes.len() {
        match file.write(&bytes[done..]) {
            Ok(0) => {
                let (offset, left) = (offset + done as u64, (bytes.len() - done) as u64);
                return Err(Error::ShortWrite { path: path.to_path_buf(), offset, left });
            }
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                let done = done as u64;
                return Err(write_error(disk, path, offset + done, needed_bytes - done, error));
            }
        }
    }
    Ok(())
}

/// A failed write at `offset`, where `needed_bytes` were still to be written.
pub(crate) fn write_error(
    disk: &dyn Disk,
    path: &Path,
    offset: u64,
    needed_bytes: u64,
    source: io::Error,
) -> Error {
    if is_disk_full(&source) {
        return disk_full(disk, path, needed_bytes, &source);
    }
    Error::Io { action: "write", path: path.to_path_buf(), offset: Some(offset), source }
}

pub(crate) fn sync_file(
    disk: &dyn Disk,
    file: &mut dyn WriteFile,
    path: &Path,
    needed_bytes: u64,
) -> Result<(), Error> {
    file.sync().map_err(|source| match source.kind() {
        // Delayed allocation and network file systems may notice only now.
        _ if is_disk_full(&source) => disk_full(disk, path, needed_bytes, &source),
        // An object appears only now, or is found to be there.
        io::ErrorKind::AlreadyExists => Error::AlreadyExists { path: path.to_path_buf() },
        _ if ObjectError::of(&source).is_some() => {
            Error::Io { action: "write", path: path.to_path_buf(), offset: None, source }
        }
        _ => Error::SyncFailed { path: path.to_path_buf(), source },
    })
}

/// Makes the names in a directory durable.
///
/// # Errors
/// The fsync fails.
pub(crate) fn sync_dir(disk: &dyn Disk, path: &Path) -> Result<(), Error> {
    let path_buf = || path.to_path_buf();
    disk.sync_dir(path).map_err(|source| Error::SyncFailed { path: path_buf(), source })
}

fn disk_full(disk: &dyn Disk, path: &Path, needed_bytes: u64, why: &io::Error) -> Error {
    let free = disk.free(&crate::disk::parent_of(path));
    Error::DiskFull { path: path.to_path_buf(), needed_bytes, free, quota: is_quota(why) }
}

/// Wraps a failed creation.
pub(crate) fn create_error(
    disk: &dyn Disk,
    path: &Path,
    needed_bytes: u64,
) -> impl FnOnce(io::Error) -> Error {
    let path: PathBuf = path.to_path_buf();
    move |source| match source.kind() {
        io::ErrorKind::AlreadyExists => Error::AlreadyExists { path },
        _ if is_disk_full(&source) => disk_full(disk, &path, needed_bytes, &source),
        _ => Error::Io { action: "create", path, offset: None, source },
    }
}
