//! The disk of whatever a path names: the operating system's, or an object store's for a URL.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::disk::{DirEntry, Disk, Free, OsDisk, ReadFile, Stat, WriteFile};
use crate::objects::{ObjectDisk, is_url};

/// All disks at once, told apart by their paths.
#[derive(Debug, Clone, Copy, Default)]
pub struct Anywhere;

fn of(path: &Path) -> &'static dyn Disk {
    static OBJECTS: OnceLock<ObjectDisk> = OnceLock::new();
    match is_url(path) {
        true => OBJECTS.get_or_init(ObjectDisk::default),
        false => &OsDisk,
    }
}

impl Disk for Anywhere {
    fn create_new(&self, path: &Path) -> io::Result<Box<dyn WriteFile>> {
        of(path).create_new(path)
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn ReadFile>> {
        of(path).open(path)
    }

    fn stat(&self, path: &Path) -> io::Result<Stat> {
        of(path).stat(path)
    }

    fn link_target(&self, path: &Path) -> Option<PathBuf> {
        of(path).link_target(path)
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        of(path).create_dir(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        of(path).sync_dir(path)
    }

    fn link(&self, existing: &Path, new: &Path) -> io::Result<()> {
        of(new).link(existing, new)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        of(path).remove_file(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        of(path).remove_dir(path)
    }

    fn remove_tree(&self, path: &Path) -> Option<io::Result<()>> {
        of(path).remove_tree(path)
    }

    fn at_once(&self, path: &Path) -> usize {
        of(path).at_once(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        of(path).list(path)
    }

    fn free(&self, path: &Path) -> Option<Free> {
        of(path).free(path)
    }
}
