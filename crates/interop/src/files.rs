//! Reading places of regular files, with memory taken only for bytes that are there.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::Error;

/// A regular file that is open, and its length.
#[derive(Debug)]
pub(crate) struct Regular {
    pub path: PathBuf,
    pub file: File,
    pub bytes: u64,
}

impl Regular {
    /// Opens a file after a look at it: opening a pipe would wait for its other end.
    ///
    /// # Errors
    /// It is missing, no regular file, or may not be read.
    pub fn open(path: &Path) -> Result<Regular, Error> {
        let found = std::fs::metadata(path).map_err(Error::io("look at", path))?;
        if !found.is_file() {
            return Err(Error::refused(path, "it is no regular file"));
        }
        let file = File::open(path).map_err(Error::io("open", path))?;
        let bytes = file.metadata().map_err(Error::io("look at", path))?.len();
        Ok(Regular { path: path.to_path_buf(), file, bytes })
    }

    /// `len` bytes at `start`.
    ///
    /// # Errors
    /// The file has fewer; it cannot be read.
    pub fn read(&self, start: u64, len: u64) -> Result<Vec<u8>, Error> {
        if start.checked_add(len).is_none_or(|end| end > self.bytes) {
            let reason = format!("it has {} bytes, and {len} at {start} are needed", self.bytes);
            return Err(Error::malformed(&self.path, reason));
        }
        let mut bytes = vec![0; len as usize];
        let read = self.file.read_exact_at(&mut bytes, start);
        read.map_err(Error::io("read", &self.path))?;
        Ok(bytes)
    }

    /// The whole of a file of at most `limit` bytes.
    ///
    /// # Errors
    /// It is longer; it cannot be read.
    pub fn read_all(&self, limit: u64) -> Result<Vec<u8>, Error> {
        if self.bytes > limit {
            let reason = format!("it has {} bytes; at most {limit} are read of one", self.bytes);
            return Err(Error::refused(&self.path, reason));
        }
        self.read(0, self.bytes)
    }
}

/// Reads a JSON file of at most so many bytes.
///
/// # Errors
/// It cannot be read, is longer, or of another shape.
pub(crate) fn read_json<T: for<'de> Deserialize<'de>>(path: &Path, most: u64) -> Result<T, Error> {
    let file = Regular::open(path)?;
    if file.bytes > most {
        let reason = format!("it has {} bytes, and none has more than {most}", file.bytes);
        return Err(Error::malformed(path, reason));
    }
    let bytes = file.read(0, file.bytes)?;
    serde_json::from_slice(&bytes).map_err(|error| Error::malformed(path, error.to_string()))
}
