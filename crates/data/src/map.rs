//! Read-only memory maps: the one unsafe corner of this crate.

use std::fs::File;
use std::path::Path;

use memmap2::Mmap;

use crate::error::{Result, io_error};
use crate::input;

/// Maps a whole file. An empty file gives an empty slice.
pub(crate) struct Map(Option<Mmap>);

impl Map {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let bytes = input::look_at_file(path)?;
        let file = File::open(path).map_err(io_error("open", path))?;
        if bytes == 0 {
            return Ok(Self(None));
        }
        // SAFETY: the map is private and read-only, and every access is bounds-checked against its
        // length. What no reader can rule out is another process truncating or rewriting the file
        // while it is mapped: token files are replaced by rename, never changed in place, so the
        // mapped inode stays as it was. Bytes carry no invariants: any content is a valid `[u8]`.
        let map = unsafe { Mmap::map(&file) }.map_err(io_error("map", path))?;
        Ok(Self(Some(map)))
    }
}

impl std::ops::Deref for Map {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }
}
