//! Everything that can go wrong, with its place and what to do.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::{Digest, Dtype, FORMAT_VERSION, Region, TensorKey};

/// Any error of a foreign source of data (a device, a socket).
pub type Source = Box<dyn std::error::Error + Send + Sync>;

/// What went wrong with a checkpoint.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    // --- the file system
    #[error(
        "disk full writing {path}: {needed_bytes} more bytes are needed and {} are free; older \
         checkpoints are intact; free some space, keep fewer checkpoints or choose another \
         directory", free_text(*.free_bytes)
    )]
    DiskFull { path: PathBuf, needed_bytes: u64, free_bytes: Option<u64> },
    #[error("cannot {action} {path}{}: {source}", at_text(*.offset))]
    Io { action: &'static str, path: PathBuf, offset: Option<u64>, source: io::Error },
    #[error(
        "fsync of {path} failed: {source}; what was written may be lost, and a second fsync \
         would not tell, so this save is given up; older checkpoints are intact"
    )]
    SyncFailed { path: PathBuf, source: io::Error },
    #[error("short write to {path} at byte {offset}: {left} bytes were not accepted")]
    ShortWrite { path: PathBuf, offset: u64, left: u64 },
    #[error("{path} exists already and a checkpoint file is never overwritten")]
    AlreadyExists { path: PathBuf },

    // --- committing
    #[error("{path} is committed already")]
    AlreadyCommitted { path: PathBuf },
    #[error(
        "{path} belongs to generation {ours} but generation {newest} has been claimed since: \
         another incarnation of this job runs, and this one must stop"
    )]
    Fenced { path: PathBuf, ours: u32, newest: u32 },
    #[error(
        "{path} cannot be committed: its file system refuses the hard link that makes a commit \
         atomic ({source}); choose a directory on another one"
    )]
    NoHardLinks { path: PathBuf, source: io::Error },
    #[error("the run state is of step {found}, but step {expected} is to be committed")]
    RunStateStep { found: u64, expected: u64 },
    #[error("rank {rank}: {reason}")]
    Report { rank: u32, reason: String },
    #[error("tensor {key}: no rank saved the elements {region}")]
    Gap { key: TensorKey, region: Region },
    #[error("tensor {key}: {first} and {second} were both saved and overlap")]
    Overlap { key: TensorKey, first: String, second: String },
    #[error("tensor {key} was saved by rank {rank} but is not expected{}", nearest_text(.nearest))]
    Stranger { key: TensorKey, rank: u32, nearest: Option<String> },
    #[error("tensor {key}: {reason}")]
    Tensor { key: TensorKey, reason: String },
    #[error("tensor {key}: its data could not be read at byte {offset} of the chunk: {source}")]
    ChunkData { key: TensorKey, offset: u64, source: Source },

    // --- what lies on the disk
    #[error("{path} is not committed: the save did not finish (it has no COMMIT)")]
    NotCommitted { path: PathBuf },
    #[error("{path} is damaged: {reason}")]
    Commit { path: PathBuf, reason: String },
    #[error(
        "{path} has checkpoint format version {found}; this program reads version {}: use a \
         later Muster",
        FORMAT_VERSION
    )]
    UnsupportedVersion { path: PathBuf, found: u32 },
    #[error("{path} is not valid JSON for a manifest, line {line} column {column}: {reason}")]
    ManifestSyntax { path: PathBuf, line: usize, column: usize, reason: String },
    #[error("{path} contradicts itself: {reason}")]
    ManifestContent { path: PathBuf, reason: String },
    #[error("{path} is missing")]
    MissingFile { path: PathBuf },
    #[error("{path} has {actual} bytes instead of {expected}")]
    FileLength { path: PathBuf, expected: u64, actual: u64 },
    #[error("{path} is damaged: BLAKE3 is {actual}, recorded is {expected}")]
    FileDigest { path: PathBuf, expected: Digest, actual: Digest },
    #[error("{path} is not a sums table: {reason}")]
    Sums { path: PathBuf, reason: String },
    #[error("{path} has a safetensors header that does not match the manifest: {reason}")]
    ShardHeader { path: PathBuf, reason: String },
    #[error(
        "{path} is damaged in bytes {start}..{end}, which hold {holds}: CRC32C is {actual:08x}, \
         recorded is {expected:08x}"
    )]
    Range { path: PathBuf, start: u64, end: u64, holds: String, expected: u32, actual: u32 },

    // --- asking for data
    #[error("the checkpoint holds no tensor {key}{}", nearest_text(.nearest))]
    NoSuchTensor { key: TensorKey, nearest: Option<String> },
    #[error("tensor {key} is stored as {stored}, not as {asked}; nothing is converted silently")]
    DtypeDiffers { key: TensorKey, stored: Dtype, asked: Dtype },
    #[error("tensor {key} has shape {shape:?}; the box {region} is not inside it")]
    OutOfBounds { key: TensorKey, shape: Vec<usize>, region: Region },
    #[error("tensor {key}: the box {region} has {expected} bytes, the output {actual}")]
    OutputLength { key: TensorKey, region: Region, expected: u64, actual: u64 },
}

impl Error {
    /// True where what is stored is not a whole checkpoint, so that an older one may serve. False
    /// where it may be whole and is not for us, where it could not be read (a permission, a disk
    /// that fails, too many open files), and where the request itself was wrong: there, going on
    /// from an older one would silently lose work.
    pub fn is_damage(&self) -> bool {
        matches!(
            self,
            Error::NotCommitted { .. }
                | Error::Commit { .. }
                | Error::ManifestSyntax { .. }
                | Error::ManifestContent { .. }
                | Error::MissingFile { .. }
                | Error::FileLength { .. }
                | Error::FileDigest { .. }
                | Error::Sums { .. }
                | Error::ShardHeader { .. }
                | Error::Range { .. }
        )
    }

    /// Wraps a failed read or directory operation.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_path_buf();
        move |source| match source.kind() {
            io::ErrorKind::NotFound if action != "create" => Error::MissingFile { path },
            _ => Error::Io { action, path, offset: None, source },
        }
    }
}

/// True for the errors by which a disk or a quota says that it is full.
pub(crate) fn is_disk_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// The candidate most like `wanted`, if any is like it at all.
pub(crate) fn nearest<'a>(
    wanted: &str,
    candidates: impl Iterator<Item = &'a TensorKey>,
) -> Option<String> {
    candidates
        .map(|key| key.to_string())
        .map(|text| (strsim::jaro_winkler(wanted, &text), text))
        .filter(|(likeness, _)| *likeness > 0.7)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, text)| text)
}

fn free_text(free_bytes: Option<u64>) -> String {
    free_bytes.map_or_else(|| "an unknown number".to_string(), |bytes| bytes.to_string())
}

fn at_text(offset: Option<u64>) -> String {
    offset.map_or_else(String::new, |offset| format!(" at byte {offset}"))
}

fn nearest_text(nearest: &Option<String>) -> String {
    nearest.as_ref().map_or_else(String::new, |name| format!("; the nearest is {name}"))
}
