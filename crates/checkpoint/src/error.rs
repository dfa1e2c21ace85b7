//! Everything that can go wrong, with its place and what to do.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::disk::{Disk, Free, Kind, NotAFile, parent_of};
use crate::{Attempt, Digest, Dtype, FORMAT_VERSION, Region, TensorKey};

/// Any error of a foreign source of data (a device, a socket).
pub type Source = Box<dyn std::error::Error + Send + Sync>;

/// Errors of saving, reading and removing checkpoints.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    // --- the file system
    #[error(
        "disk full writing {path}: {}; older checkpoints are intact; free some space, keep fewer \
         checkpoints or choose another directory", full_text(*.needed_bytes, *.free, *.quota)
    )]
    DiskFull {
        path: PathBuf,
        needed_bytes: u64,
        free: Option<Free>,
        /// The limit of this user rather than of the disk.
        quota: bool,
    },
    #[error("cannot {action} {path}{}: {source}{}", at_text(*.offset), advice(.action, .source))]
    Io { action: &'static str, path: PathBuf, offset: Option<u64>, source: io::Error },
    #[error(
        "fsync of {path} failed: {source}; what was written may be lost, and a second fsync \
         would not tell, so this save is abandoned; older checkpoints are intact"
    )]
    SyncFailed { path: PathBuf, source: io::Error },
    #[error("short write to {path} at byte {offset}: {left} bytes were not accepted")]
    ShortWrite { path: PathBuf, offset: u64, left: u64 },
    #[error("{path} exists already and a checkpoint file is never overwritten")]
    AlreadyExists { path: PathBuf },

    /// A directory for a reshape that belongs to something else.
    #[error("{path} is not empty: it holds {holds}; give a new or an empty directory")]
    TargetInUse { path: PathBuf, holds: String },

    // --- committing
    #[error(
        "{path} claims the highest generation that there can be, {}, so that no job can claim \
         one after it; remove it, or give it another name, if no job of yours made it",
        u32::MAX
    )]
    LastGeneration { path: PathBuf },
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
    #[error(
        "{path} is not committed (it has no COMMIT): it is being saved or removed, or its save did \
         not finish"
    )]
    NotCommitted { path: PathBuf },
    #[error(
        "{path} was removed while it was being read; a run keeps its newest checkpoints only \
         (checkpoint.keep)"
    )]
    Removed { path: PathBuf },
    #[error(
        "{path} holds step {} of generation {}: it was renamed, or copied under another name; \
         rename it to {holds}, or remove it if that is there", .holds.step, .holds.generation
    )]
    Misnamed { path: PathBuf, holds: Attempt },
    #[error("{path} is {found}, not {wanted}")]
    WrongKind { path: PathBuf, found: Kind, wanted: Kind },
    #[error(
        "{path} is a link to {target}, which is not there now; make that reachable again, or put a \
         copy in its place"
    )]
    DanglingLink { path: PathBuf, target: PathBuf },
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
    /// that fails or is not there, too many open files), and where the request itself was wrong:
    /// there, going on from an older one would silently lose work.
    pub fn is_damage(&self) -> bool {
        matches!(
            self,
            Error::NotCommitted { .. }
                | Error::Removed { .. }
                | Error::Misnamed { .. }
                | Error::WrongKind { .. }
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

    /// The file that could not be read, or is damaged.
    pub(crate) fn path(&self) -> Option<&Path> {
        match self {
            Error::Io { path, .. }
            | Error::MissingFile { path }
            | Error::WrongKind { path, .. }
            | Error::FileLength { path, .. }
            | Error::FileDigest { path, .. }
            | Error::Sums { path, .. }
            | Error::Range { path, .. } => Some(path),
            _ => None,
        }
    }

    /// Wraps a failed operation on what should be there.
    pub(crate) fn io(
        disk: &dyn Disk,
        action: &'static str,
        path: &Path,
    ) -> impl FnOnce(io::Error) -> Error {
        move |source| match source.kind() {
            io::ErrorKind::NotFound => missing(disk, path),
            io::ErrorKind::NotADirectory => not_a_directory(disk, path, action, source),
            _ => match source.get_ref().and_then(|inner| inner.downcast_ref()) {
                Some(&NotAFile(found)) => {
                    Error::WrongKind { path: path.to_path_buf(), found, wanted: Kind::File }
                }
                None => Error::Io { action, path: path.to_path_buf(), offset: None, source },
            },
        }
    }
}

/// The error of a missing path. Where it or its directory is a link that leads nowhere, that one is
/// told: its target may lie on a disk that will be there again.
fn missing(disk: &dyn Disk, path: &Path) -> Error {
    for link in [path.to_path_buf(), parent_of(path)] {
        if disk.stat(&link).is_err()
            && let Some(target) = disk.link_target(&link)
        {
            return Error::DanglingLink { path: link, target };
        }
    }
    Error::MissingFile { path: path.to_path_buf() }
}

/// The path or the one above it is no directory.
fn not_a_directory(disk: &dyn Disk, path: &Path, action: &'static str, source: io::Error) -> Error {
    for place in [path.to_path_buf(), parent_of(path)] {
        if let Ok(found) = disk.stat(&place).map(|stat| stat.kind)
            && found != Kind::Dir
        {
            return Error::WrongKind { path: place, found, wanted: Kind::Dir };
        }
    }
    Error::Io { action, path: path.to_path_buf(), offset: None, source }
}

/// True for the errors by which a disk or a quota says that it is full.
pub(crate) fn is_disk_full(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::StorageFull || is_quota(error)
}

/// True where a quota says so.
pub(crate) fn is_quota(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::QuotaExceeded
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

/// Why a disk takes no more. Bytes are not all that runs out.
fn full_text(needed_bytes: u64, free: Option<Free>, quota: bool) -> String {
    let needed = match needed_bytes {
        0 => "a file has to be made".to_owned(),
        bytes => format!("{bytes} more bytes are needed"),
    };
    let Some(Free { bytes, files }) = free else {
        return match quota {
            true => format!("this user's quota is used up; {needed}"),
            false => format!("{needed} and an unknown number are free"),
        };
    };
    match (quota, files) {
        (true, _) => format!(
            "this user's quota is used up; {needed}, and {bytes} bytes of the disk are free for \
             others"
        ),
        (_, Some(0)) => format!(
            "no more files can be made there, as all inodes of the file system are in use; \
             {needed}, and {bytes} bytes are free"
        ),
        _ if bytes < needed_bytes => format!("{needed} and {bytes} are free"),
        _ => format!(
            "it takes no more although {bytes} bytes are free and {needed}: a limit of its own, \
             or of this user, is reached"
        ),
    }
}

/// Advice for an error, empty where none is known.
fn advice(action: &str, source: &io::Error) -> &'static str {
    let reads = ["read", "open", "list"].contains(&action);
    match source.kind() {
        io::ErrorKind::PermissionDenied if reads => {
            "; nothing is known to be wrong with it: let this user read it and the directories \
             above it"
        }
        _ if reads && source.raw_os_error() == Some(libc::EIO) => {
            "; the disk, or what connects it, has failed"
        }
        _ => "",
    }
}

fn at_text(offset: Option<u64>) -> String {
    offset.map_or_else(String::new, |offset| format!(" at byte {offset}"))
}

fn nearest_text(nearest: &Option<String>) -> String {
    nearest.as_ref().map_or_else(String::new, |name| format!("; the nearest is {name}"))
}
