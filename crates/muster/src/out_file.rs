//! Files that a person asked a command to write.
//!
//! ```text
//! the name ─ links followed ─┬ a regular file, or none yet ─▶ made beside it, takes its place
//!                            ├ a character device, a pipe  ─▶ written to as it is
//!                            ├ what this command prints to ─▶ written where it prints next
//!                            └ a directory, a disk, …      ─▶ refused, with what it is
//! ```
//! So a file is whole or as it was, and a link or device is never replaced by a file.

use std::fs::{File, FileType, Metadata};
use std::io::{BufWriter, ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::error::CliError;

/// As many links as Linux follows.
const LINKS_MAX: usize = 40;

/// Where what is written to a path goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A regular file of this name, with all links followed; it need not be there.
    Regular(PathBuf),
    /// What takes bytes as they come.
    Stream,
    /// The file that this process's standard output or error goes to.
    Printed,
}

/// Finds the place.
///
/// # Errors
/// It is a directory, a disk or a socket, or cannot be looked at.
pub fn place(path: &Path) -> Result<Place, CliError> {
    let meta = match std::fs::metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return end_of_links(path).map(Place::Regular);
        }
        Err(error) => return Err(CliError::file("write", path, &error)),
    };
    let kind = meta.file_type();
    if kind.is_char_device() || kind.is_fifo() {
        return Ok(Place::Stream);
    }
    if kind.is_file() && printed_to(&meta).is_some() {
        return Ok(Place::Printed);
    }
    match kind.is_file() {
        true => end_of_links(path).map(Place::Regular),
        false => Err(refusal(path, kind)),
    }
}

/// Finds out whether a file can be written there later, and leaves nothing behind. Pipes and
/// devices are not opened: that would already be a writer's coming and going.
///
/// # Errors
/// As [`place`]; its directory is missing, or takes no new file.
pub fn check(path: &Path) -> Result<Place, CliError> {
    if path.as_os_str().as_encoded_bytes().ends_with(b"/") {
        let path = path.display();
        return Err(CliError::mistake(format!(
            "{path} is a directory's name; name a file to write"
        )));
    }
    let place = place(path)?;
    let Place::Regular(file) = &place else { return Ok(place) };
    let parent = parent_of(file);
    if !parent.exists() {
        let (path, parent) = (path.display(), parent.display());
        return Err(CliError::mistake(format!(
            "cannot write {path}: there is no directory {parent}; make it first (mkdir -p {parent})"
        )));
    }
    let tried = match tempfile::tempfile_in(parent) {
        // As it is written then.
        Err(error) if error.kind() == ErrorKind::PermissionDenied && file.exists() => {
            File::options().write(true).open(file).map(|_| ())
        }
        tried => tried.map(|_| ()),
    };
    tried.map(|()| place).map_err(|error| CliError::file("write", path, &error))
}

/// Checks the files that flags name: each can be written, and no two are the same.
///
/// # Errors
/// As [`check`]; or both flags and the file.
pub fn check_all<'a>(files: impl IntoIterator<Item = (&'a str, &'a Path)>) -> Result<(), CliError> {
    let mut known: Vec<(&str, PathBuf)> = Vec::new();
    for (flag, path) in files {
        let named =
            |error: CliError| CliError { message: format!("{flag}: {}", error.message), ..error };
        let Place::Regular(file) = check(path).map_err(named)? else { continue };
        let parent = parent_of(&file);
        let parent = parent.canonicalize().unwrap_or_else(|_| parent.to_owned());
        let file = parent.join(file.file_name().unwrap_or_default());
        if let Some((other, _)) = known.iter().find(|(_, known)| *known == file) {
            return Err(CliError::mistake(format!(
                "{other} and {flag} both name {}; give each a file of its own",
                path.display()
            )));
        }
        known.push((flag, file));
    }
    Ok(())
}

/// The regular file that `path` stands for.
///
/// # Errors
/// It is anything else.
pub fn regular(path: &Path) -> Result<PathBuf, CliError> {
    match place(path)? {
        Place::Regular(file) => Ok(file),
        Place::Stream => {
            let meta = std::fs::metadata(path).map_err(|e| CliError::file("write", path, &e))?;
            Err(refusal(path, meta.file_type()))
        }
        Place::Printed => Err(CliError::mistake(format!(
            "{} is where this command prints; name another file to write",
            path.display()
        ))),
    }
}

/// Writes all of a file.
///
/// # Errors
/// As [`place`]; a pipe that nobody reads; whatever a file system refuses. A regular file is as it
/// was then.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), CliError> {
    write_with(path, &mut |out| out.write_all(bytes))
}

/// As [`write()`], of what is too long to be in memory: `fill` is called once.
///
/// # Errors
/// As [`write()`], and what `fill` returns.
pub fn write_with(path: &Path, fill: Fill) -> Result<(), CliError> {
    let written = match place(path)? {
        Place::Regular(file) => replace(&file, fill),
        Place::Stream => fill_file(stream(path)?, fill),
        Place::Printed => print(path, fill),
    };
    written.map_err(|error| CliError::file("write", path, &error))
}

type Fill<'a> = &'a mut dyn FnMut(&mut dyn Write) -> std::io::Result<()>;

fn fill_file(file: impl Write, fill: Fill) -> std::io::Result<()> {
    let mut out = BufWriter::new(file);
    fill(&mut out)?;
    out.flush()
}

/// A handle of the standard stream that goes to the file of `meta`, at the same place in it.
fn printed_to(meta: &Metadata) -> Option<File> {
    let (out, err) = (std::io::stdout(), std::io::stderr());
    let streams = [out.as_fd().try_clone_to_owned(), err.as_fd().try_clone_to_owned()];
    streams.into_iter().flatten().map(File::from).find(|file| {
        let same = |other: Metadata| (other.dev(), other.ino()) == (meta.dev(), meta.ino());
        file.metadata().is_ok_and(same)
    })
}

/// Writes behind what was printed.
fn print(path: &Path, fill: Fill) -> std::io::Result<()> {
    std::io::stdout().flush()?;
    match printed_to(&std::fs::metadata(path)?) {
        Some(file) => fill_file(file, fill),
        None => Err(ErrorKind::NotFound.into()),
    }
}

/// Makes a new file and has it take the place of the old one, if there is one. Where none can be
/// made beside it, the old one is overwritten.
fn replace(file: &Path, fill: Fill) -> std::io::Result<()> {
    let parent = parent_of(file);
    let old = std::fs::metadata(file).as_ref().map(Metadata::permissions).ok();
    let mut builder = tempfile::Builder::new();
    builder.prefix(".").suffix(".part");
    // What a plain new file gets: the process's mask applies.
    builder.permissions(std::fs::Permissions::from_mode(0o666));
    let mut new = match builder.tempfile_in(parent) {
        Ok(new) => new,
        Err(error) if error.kind() == ErrorKind::PermissionDenied && old.is_some() => {
            return fill_file(File::options().write(true).truncate(true).open(file)?, fill);
        }
        Err(error) => return Err(error),
    };
    fill_file(&mut new, fill)?;
    if let Some(old) = old {
        new.as_file().set_permissions(old)?;
    }
    new.persist(file).map(|_| ()).map_err(|error| error.error)
}

/// The directory of a file.
fn parent_of(file: &Path) -> &Path {
    file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Opens a device or pipe, without waiting for a reader that may never come.
fn stream(path: &Path) -> Result<File, CliError> {
    let open = |flags| File::options().write(true).custom_flags(flags).open(path);
    let probe = open(libc::O_NONBLOCK).map_err(|error| match error.raw_os_error() {
        Some(libc::ENXIO) => CliError::mistake(format!(
            "{} is a pipe that nobody reads; start its reader first",
            path.display()
        )),
        _ => CliError::file("write", path, &error),
    })?;
    // The reader is there: this one blocks in writes alone.
    let file = open(0).map_err(|error| CliError::file("write", path, &error));
    drop(probe);
    file
}

/// Follows links by name, so that one whose target is not there yet leads to where it will be.
fn end_of_links(path: &Path) -> Result<PathBuf, CliError> {
    let mut at = path.to_path_buf();
    for _ in 0..LINKS_MAX {
        match std::fs::read_link(&at) {
            Ok(target) => at = at.parent().unwrap_or(Path::new("")).join(target),
            // No link.
            Err(_) => return Ok(at),
        }
    }
    Err(CliError::mistake(format!("{} is a circle of links", path.display())))
}

fn refusal(path: &Path, kind: FileType) -> CliError {
    let what = match kind {
        kind if kind.is_dir() => "a directory",
        kind if kind.is_block_device() => "a block device",
        kind if kind.is_char_device() => "a character device",
        kind if kind.is_fifo() => "a pipe",
        kind if kind.is_socket() => "a socket",
        _ => "no regular file",
    };
    CliError::mistake(format!("{} is {what}; name a file to write", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_are_followed_and_stay() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link, chain) =
            (dir.path().join("file"), dir.path().join("link"), dir.path().join("chain"));
        symlink("file", &link).unwrap();
        symlink(&link, &chain).unwrap();
        for text in ["first", "second"] {
            write(&chain, text.as_bytes()).unwrap();
            assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
            assert!(link.is_symlink() && chain.is_symlink() && !file.is_symlink());
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3);
        std::fs::remove_file(&file).unwrap();
        symlink("chain", &file).unwrap();
        assert!(write(&file, b"x").is_err());
    }

    #[test]
    fn an_old_file_keeps_its_permissions_and_a_failure_leaves_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "old").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
        write(&file, b"new").unwrap();
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640);
        let error = write(&dir.path().join("gone/file"), b"x").unwrap_err();
        assert_eq!(error.exit.code(), 2, "{error}");
    }

    #[test]
    fn devices_take_bytes_and_directories_are_named() {
        assert_eq!(place(Path::new("/dev/null")).unwrap(), Place::Stream);
        write(Path::new("/dev/null"), b"x").unwrap();
        assert_eq!(write(Path::new("/dev/full"), b"x").unwrap_err().exit.code(), 3);
        let dir = tempfile::tempdir().unwrap();
        let error = write(dir.path(), b"x").unwrap_err();
        assert!(error.message.contains("is a directory"), "{error}");
        let error = regular(Path::new("/dev/null")).unwrap_err();
        assert!(error.message.contains("is a character device"), "{error}");
    }

    #[test]
    fn what_cannot_be_written_later_is_known_before() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("old"), "old").unwrap();
        symlink("old", at("link")).unwrap();
        check(&at("new")).unwrap();
        check(&at("old")).unwrap();
        check(Path::new("/dev/full")).unwrap();
        assert_eq!(std::fs::read_to_string(at("old")).unwrap(), "old");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
        for (path, words) in [
            (dir.path().to_owned(), "is a directory; name a file to write"),
            (at(""), "is a directory's name; name a file"),
            (at("sub/"), "is a directory's name; name a file"),
            (at("gone/new"), "there is no directory"),
            (at("old/new"), "Not a directory"),
            (PathBuf::from("/proc/new"), "cannot write /proc/new: "),
        ] {
            let error = check(&path).unwrap_err();
            assert!(error.exit.code() == 2 && error.message.contains(words), "{error}");
        }
        let (old, link, new) = (at("old"), at("link"), at("new"));
        check_all([("--json", &*old), ("--csv", &*new)]).unwrap();
        check_all([("--json", Path::new("/dev/null")), ("--csv", Path::new("/dev/null"))]).unwrap();
        let error = check_all([("--json", &*old), ("--csv", &*link)]).unwrap_err();
        assert!(error.message.starts_with("--json and --csv both name "), "{error}");
    }

    #[test]
    fn a_pipe_takes_bytes_if_somebody_reads_them() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
        assert!(made.success());
        let error = write(&pipe, b"x").unwrap_err();
        assert!(error.message.contains("nobody reads"), "{error}");
        let reader = std::thread::spawn({
            let pipe = pipe.clone();
            move || std::fs::read(pipe).unwrap()
        });
        // Until the reader has opened it.
        while write(&pipe, b"bytes").is_err() {
            std::thread::yield_now();
        }
        assert_eq!(reader.join().unwrap(), b"bytes");
        assert!(std::fs::symlink_metadata(&pipe).unwrap().file_type().is_fifo());
    }
}
