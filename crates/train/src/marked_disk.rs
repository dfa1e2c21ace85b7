//! A disk that marks each operation as a piece of work, so that a slow save is told from a stuck
//! one.

use std::io;
use std::path::{Path, PathBuf};

use checkpoint::disk::{DirEntry, Disk, Free, OsDisk, ReadFile, Stat, WriteFile};

/// The operating system's file system, with marks.
#[derive(Debug, Clone, Copy, Default)]
pub struct MarkedDisk;

/// The result of an operation that has just ended.
fn marked<T>(result: T) -> T {
    device::work::mark();
    result
}

struct Written(Box<dyn WriteFile>);

struct Read(Box<dyn ReadFile>);

impl WriteFile for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        marked(self.0.write(bytes))
    }

    fn sync(&mut self) -> io::Result<()> {
        marked(self.0.sync())
    }
}

impl ReadFile for Read {
    fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<usize> {
        marked(self.0.read_at(out, offset))
    }
}

impl Disk for MarkedDisk {
    fn create_new(&self, path: &Path) -> io::Result<Box<dyn WriteFile>> {
        Ok(Box::new(Written(marked(OsDisk.create_new(path))?)))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn ReadFile>> {
        Ok(Box::new(Read(marked(OsDisk.open(path))?)))
    }

    fn stat(&self, path: &Path) -> io::Result<Stat> {
        marked(OsDisk.stat(path))
    }

    fn link_target(&self, path: &Path) -> Option<PathBuf> {
        marked(OsDisk.link_target(path))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        marked(OsDisk.create_dir(path))
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        marked(OsDisk.sync_dir(path))
    }

    fn link(&self, existing: &Path, new: &Path) -> io::Result<()> {
        marked(OsDisk.link(existing, new))
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        marked(OsDisk.remove_file(path))
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        marked(OsDisk.remove_dir(path))
    }

    fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        marked(OsDisk.list(path))
    }

    fn free(&self, path: &Path) -> Option<Free> {
        marked(OsDisk.free(path))
    }
}
