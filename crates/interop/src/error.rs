//! Everything that can go wrong with a foreign checkpoint.

use std::io;
use std::path::{Path, PathBuf};

use layout::{Dtype, Region};
use thiserror::Error;

/// Errors of reading and writing the checkpoints of others.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    #[error("cannot {action} {path}: {source}")]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::Error),
    /// A file that is not of the format it should be of.
    #[error("{path} is damaged or of another format: {reason}")]
    Malformed { path: PathBuf, reason: String },
    /// A file or directory that is whole, of a kind that is not read.
    #[error("{path}: {reason}")]
    Refused { path: PathBuf, reason: String },
    #[error(
        "{path} is damaged: bytes {start}..{end} have CRC-32 {actual:08x}, recorded is \
         {expected:08x} (they hold {tensor})"
    )]
    Sum { path: PathBuf, start: u64, end: u64, tensor: String, expected: u32, actual: u32 },
    #[error("tensor `{name}` of {path}: nothing holds its elements {region}")]
    Gap { path: PathBuf, name: String, region: Region },
    #[error("tensor `{name}` of {path}: {first} and {second} overlap")]
    Overlap { path: PathBuf, name: String, first: String, second: String },
    #[error("tensor `{name}`: {reason}")]
    Tensor { name: String, reason: String },
    #[error(
        "tensor `{name}` is {from} and is wanted as {to}, which would round its values; ask for it \
         with --cast"
    )]
    Rounds { name: String, from: Dtype, to: Dtype },
    #[error("{path} is not empty; give a new or an empty directory")]
    TargetInUse { path: PathBuf },
}

impl Error {
    /// Wraps a failed call on a file.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_path_buf();
        move |source| Error::Io { action, path, source }
    }

    pub(crate) fn malformed(path: &Path, reason: impl Into<String>) -> Error {
        Error::Malformed { path: path.to_path_buf(), reason: reason.into() }
    }

    pub(crate) fn refused(path: &Path, reason: impl Into<String>) -> Error {
        Error::Refused { path: path.to_path_buf(), reason: reason.into() }
    }
}
