//! The kind of file that a path leads to, found out before it is opened: a file of a size, a pipe,
//! or nothing that ends.
//!
//! Devices and sockets are refused by name, since they may have no end. A pipe is opened once, with
//! patience for a program that has yet to open its other end.

use std::fs::{File, FileType};
use std::io::{self, Read};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use crate::error::{DataError, Result, io_error};

/// A program that writes text to a pipe must have opened it after this long.
const WRITER_TIMEOUT: Duration = Duration::from_secs(10);
/// The same for what is read whole and small, such as a config, where nobody expects to wait.
const QUICK_WRITER_TIMEOUT: Duration = Duration::from_secs(1);

/// Larger than any tokenizer: the largest have some tens of MiB.
pub(crate) const TOKENIZER_BYTES_MAX: u64 = 512 << 20;

/// Inputs that can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// A regular file of this size.
    File { bytes: u64 },
    /// Bytes that come once.
    Pipe,
}

/// Looks at what `path` leads to, and opens nothing.
///
/// # Errors
/// There is nothing, or a directory, a device or a socket.
pub fn look(path: &Path) -> Result<Input> {
    let meta = std::fs::metadata(path).map_err(io_error("read", path))?;
    let kind = meta.file_type();
    if kind.is_file() {
        return Ok(Input::File { bytes: meta.len() });
    }
    if kind.is_fifo() {
        return Ok(Input::Pipe);
    }
    let path = path.to_path_buf();
    Err(match name_of(kind) {
        None => DataError::IsDirectory { path },
        Some(what) => DataError::NotAFile { path, what },
    })
}

/// Of what is neither file nor pipe; `None` for a directory.
fn name_of(kind: FileType) -> Option<&'static str> {
    match () {
        () if kind.is_dir() => None,
        () if kind.is_socket() => Some("a socket"),
        () => Some("a device"),
    }
}

/// [`look`], for what is read more than once.
///
/// # Errors
/// As [`look`], or a pipe.
pub fn look_at_file(path: &Path) -> Result<u64> {
    match look(path)? {
        Input::File { bytes } => Ok(bytes),
        Input::Pipe => Err(DataError::NotAFile { path: path.to_path_buf(), what: "a pipe" }),
    }
}

/// Opens a file or a pipe.
///
/// # Errors
/// As [`look`], or the system's reason; or nobody writes to the pipe.
pub fn open(path: &Path) -> Result<File> {
    open_within(path, WRITER_TIMEOUT)
}

fn open_within(path: &Path, patience: Duration) -> Result<File> {
    if let Input::File { .. } = look(path)? {
        return File::open(path).map_err(io_error("open", path));
    }
    // A pipe with a name opens when somebody opens its other end.
    let (sender, opened) = mpsc::channel();
    let owned = path.to_path_buf();
    std::thread::spawn(move || sender.send(File::open(owned)));
    let opened = opened.recv_timeout(patience);
    let nobody = |_| DataError::NobodyWrites { path: path.to_path_buf() };
    opened.map_err(nobody)?.map_err(io_error("open", path))
}

/// All bytes of a file or a pipe.
///
/// # Errors
/// As [`open`].
pub fn read(path: &Path) -> Result<Vec<u8>> {
    read_at_most(path, u64::MAX - 1)
}

/// All bytes of a file or a pipe, of which at most `bytes_max` are expected.
///
/// # Errors
/// As [`open`], or there are more.
pub fn read_at_most(path: &Path, bytes_max: u64) -> Result<Vec<u8>> {
    let too_large = || DataError::TooLarge { path: path.to_path_buf(), bytes_max };
    let mut content = Vec::new();
    if let Input::File { bytes } = look(path)? {
        if bytes > bytes_max {
            return Err(too_large());
        }
        let reserved = content.try_reserve_exact(bytes as usize);
        reserved.map_err(|_| io_error("read", path)(io::ErrorKind::OutOfMemory.into()))?;
    }
    let mut file = open_within(path, QUICK_WRITER_TIMEOUT)?;
    let read = file.by_ref().take(bytes_max + 1).read_to_end(&mut content);
    read.map_err(io_error("read", path))?;
    match content.len() as u64 > bytes_max {
        true => Err(too_large()),
        false => Ok(content),
    }
}

/// [`read_at_most`] of what is read more than once.
///
/// # Errors
/// As [`read_at_most`], or a pipe.
pub fn read_file(path: &Path, bytes_max: u64) -> Result<Vec<u8>> {
    look_at_file(path)?;
    read_at_most(path, bytes_max)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fifo(dir: &Path) -> std::path::PathBuf {
        let path = dir.join("fifo");
        let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(made.success());
        path
    }

    #[test]
    fn each_kind_is_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "four").unwrap();
        assert_eq!(look(&file).unwrap(), Input::File { bytes: 4 });
        assert!(matches!(look(dir.path()), Err(DataError::IsDirectory { .. })));
        let pipe = fifo(dir.path());
        assert_eq!(look(&pipe).unwrap(), Input::Pipe);
        assert!(matches!(look_at_file(&pipe), Err(DataError::NotAFile { what: "a pipe", .. })));
        let socket = dir.path().join("socket");
        let _bound = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        for (path, what) in [(Path::new("/dev/zero"), "a device"), (&socket, "a socket")] {
            let error = open(path).unwrap_err();
            assert!(matches!(&error, DataError::NotAFile { what: w, .. } if *w == what), "{error}");
        }
        assert!(matches!(look(&dir.path().join("none")), Err(DataError::Io { .. })));
    }

    #[test]
    fn a_pipe_waits_for_its_writer_and_not_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let path = fifo(dir.path());
        let target = path.clone();
        let writer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(200));
            std::fs::write(target, "late").unwrap();
        });
        assert_eq!(read_at_most(&path, 4).unwrap(), b"late");
        writer.join().unwrap();
        let start = std::time::Instant::now();
        for read in [read, |path: &Path| read_at_most(path, 4)] {
            let error = read(&path).unwrap_err();
            assert!(matches!(error, DataError::NobodyWrites { .. }), "{error}");
        }
        // Sooner than a pipe of text is given up.
        assert!(start.elapsed() < WRITER_TIMEOUT);
        let error = open(&path).unwrap_err();
        assert!(matches!(error, DataError::NobodyWrites { .. }), "{error}");
    }

    #[test]
    fn what_is_too_large_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        // Sparse: more than any memory holds.
        File::create(&file).unwrap().set_len(1 << 42).unwrap();
        let error = read_at_most(&file, 1000).unwrap_err();
        assert!(matches!(error, DataError::TooLarge { bytes_max: 1000, .. }), "{error}");
        let path = fifo(dir.path());
        let target = path.clone();
        let writer = std::thread::spawn(move || {
            let _ = std::fs::write(target, [b'x'; 1 << 20]);
        });
        let error = read_at_most(&path, 1000).unwrap_err();
        assert!(matches!(error, DataError::TooLarge { bytes_max: 1000, .. }), "{error}");
        writer.join().unwrap();
    }
}
