//! The few file-system operations that a checkpoint needs, as a trait.
//!
//! Everything goes through [`Disk`], so that tests can fail or "crash" at each operation and lose
//! what was not fsynced. [`OsDisk`] is the real one. There is no rename and no truncation: a
//! file is created once, each of its bytes is written once, it is fsynced once and never opened
//! for writing again.
//! Only regular files are read: what a pipe or a device would do to a reader is nobody's wish.

use std::ffi::OsString;
use std::fs::{self, File, FileType, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

pub use crate::system::Free;

use crate::system;

/// A file being written: front to back by one thread, or at any place by several.
pub trait WriteFile: Send + Sync {
    /// Appends some or all of `bytes`; returns how many were taken.
    ///
    /// # Errors
    /// As `write(2)`.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize>;

    /// Writes some or all of `bytes` at `offset`; returns how many were taken. Bytes before that
    /// nobody has written are zero.
    ///
    /// # Errors
    /// As `pwrite(2)`.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize>;

    /// Makes the file's bytes durable. A failure is final: the kernel may have dropped the bytes
    /// and marked the pages clean, so that another call would succeed without them.
    ///
    /// # Errors
    /// As `fsync(2)`.
    fn sync(&mut self) -> io::Result<()>;
}

/// A file open for reading at any place.
pub trait ReadFile: Send + Sync {
    /// Reads some bytes at `offset`; returns how many, 0 at the end.
    ///
    /// # Errors
    /// As `pread(2)`.
    fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<usize>;

    /// True where an answer takes far longer than its bytes, so that few long reads are best.
    fn is_far(&self) -> bool {
        false
    }

    /// Lets the system drop what it holds of the file in memory, as far as it can, so that it is
    /// read from the medium next.
    fn forget(&self) {}
}

/// The kind of file behind a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    File,
    Dir,
    Link,
    Pipe,
    Socket,
    Device,
}

impl Kind {
    fn of(kind: FileType) -> Kind {
        match kind {
            _ if kind.is_file() => Kind::File,
            _ if kind.is_dir() => Kind::Dir,
            _ if kind.is_symlink() => Kind::Link,
            _ if kind.is_fifo() => Kind::Pipe,
            _ if kind.is_socket() => Kind::Socket,
            _ => Kind::Device,
        }
    }
}

/// In words.
impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Kind::File => "a file",
            Kind::Dir => "a directory",
            Kind::Link => "a link",
            Kind::Pipe => "a pipe",
            Kind::Socket => "a socket",
            Kind::Device => "a device",
        })
    }
}

/// The error, inside an [`io::Error`], of opening what is no regular file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is {0}, not a file")]
pub struct NotAFile(pub Kind);

impl From<NotAFile> for io::Error {
    fn from(error: NotAFile) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidInput, error)
    }
}

/// One name in a directory; links are not followed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct DirEntry {
    pub name: OsString,
    pub kind: Kind,
}

/// Kind and length of the file that a path leads to; links are followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    pub kind: Kind,
    /// Length of a file.
    pub bytes: u64,
}

/// The operations. Errors are those of the system call named.
#[allow(clippy::missing_errors_doc)]
pub trait Disk: Send + Sync {
    /// Creates a file that must not exist (`O_CREAT | O_EXCL`).
    fn create_new(&self, path: &Path) -> io::Result<Box<dyn WriteFile>>;
    /// Opens a regular file for reading, without waiting for anything; [`NotAFile`] otherwise.
    fn open(&self, path: &Path) -> io::Result<Box<dyn ReadFile>>;
    /// Kind and length of the file that the path leads to (`stat(2)`).
    fn stat(&self, path: &Path) -> io::Result<Stat>;
    /// The path that a link holds; `None` for whatever is no link.
    fn link_target(&self, path: &Path) -> Option<PathBuf>;
    /// Creates a directory that must not exist, in one that does.
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    /// Makes the names in a directory durable.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// Gives a file a second name; fails where that exists (`link(2)`).
    fn link(&self, existing: &Path, new: &Path) -> io::Result<()>;
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// Removes an empty directory.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;
    /// Removes a directory with all that it holds by fewer operations than one for each file, where
    /// the disk has such; the order among them is not known. `None` where it has none.
    fn remove_tree(&self, _: &Path) -> Option<io::Result<()>> {
        None
    }
    /// How many operations on files of a directory are best under way at once.
    fn at_once(&self, _: &Path) -> usize {
        1
    }
    /// The names in a directory, sorted.
    fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>>;
    /// Room for this user on the disk that holds `path`; `None` where unknown.
    fn free(&self, path: &Path) -> Option<Free>;
}

/// The operating system's file system.
#[derive(Debug, Clone, Copy, Default)]
pub struct OsDisk;

/// Shorter writes at a place begin no writing to the disk by themselves.
const WRITEBACK_BYTES: usize = 128 << 10;

/// A file being written through the page cache.
struct OsWriteFile {
    file: File,
    written: u64,
}

impl WriteFile for OsWriteFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.write(bytes)?;
        system::begin_writeback(&self.file, self.written, count as u64);
        self.written += count as u64;
        Ok(count)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let count = FileExt::write_at(&self.file, bytes, offset)?;
        // A disk is not asked about every row of a tensor.
        if count >= WRITEBACK_BYTES {
            system::begin_writeback(&self.file, offset, count as u64);
        }
        Ok(count)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_all()
    }
}

impl ReadFile for File {
    fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(self, out, offset)
    }

    fn forget(&self) {
        system::forget(self);
    }
}

impl Disk for OsDisk {
    fn create_new(&self, path: &Path) -> io::Result<Box<dyn WriteFile>> {
        let file = OpenOptions::new().write(true).create_new(true).open(path)?;
        Ok(Box::new(OsWriteFile { file, written: 0 }))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn ReadFile>> {
        let check = |found: &fs::Metadata| match Kind::of(found.file_type()) {
            Kind::File => Ok(()),
            other => Err(NotAFile(other)),
        };
        // To open a device may already do something; what came in its place since then does not
        // make the open wait, and is found out by the second look.
        check(&fs::metadata(path)?)?;
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
        check(&file.metadata()?)?;
        Ok(Box::new(file))
    }

    fn stat(&self, path: &Path) -> io::Result<Stat> {
        let found = fs::metadata(path)?;
        Ok(Stat { kind: Kind::of(found.file_type()), bytes: found.len() })
    }

    fn link_target(&self, path: &Path) -> Option<PathBuf> {
        fs::read_link(path).ok()
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        fs::create_dir(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let only = libc::O_DIRECTORY | libc::O_NONBLOCK;
        OpenOptions::new().read(true).custom_flags(only).open(path)?.sync_all()
    }

    fn link(&self, existing: &Path, new: &Path) -> io::Result<()> {
        fs::hard_link(existing, new)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        let mut entries = fs::read_dir(path)?
            .map(|entry| {
                let entry = entry?;
                let kind = Kind::of(entry.file_type()?);
                Ok(DirEntry { name: entry.file_name(), kind })
            })
            .collect::<io::Result<Vec<DirEntry>>>()?;
        entries.sort();
        Ok(entries)
    }

    fn free(&self, path: &Path) -> Option<Free> {
        system::free(path)
    }
}

/// Reads exactly `out.len()` bytes at `offset`.
///
/// # Errors
/// `UnexpectedEof` where the file ends before; else as the disk says.
pub(crate) fn read_exact_at(
    file: &dyn ReadFile,
    mut out: &mut [u8],
    mut offset: u64,
) -> io::Result<()> {
    while !out.is_empty() {
        match file.read_at(out, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                offset += count as u64;
                out = &mut out[count..];
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// True where the path leads to something.
///
/// # Errors
/// As the disk says, except that the path is not there.
pub(crate) fn exists(disk: &dyn Disk, path: &Path) -> io::Result<bool> {
    match disk.stat(path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Creates a directory and the missing ones above it, each durable in the one that holds it.
///
/// # Errors
/// As the disk says.
pub(crate) fn create_dirs(disk: &dyn Disk, path: &Path) -> io::Result<()> {
    if exists(disk, path)? {
        return Ok(());
    }
    let parent = parent_of(path);
    create_dirs(disk, &parent)?;
    match disk.create_dir(path) {
        // Another process may have been quicker.
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    disk.sync_dir(&parent)
}

/// The directory that holds a path; `.` for a bare name.
pub(crate) fn parent_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent.to_path_buf(),
        Some(_) => PathBuf::from("."),
        None => PathBuf::from("/"),
    }
}
