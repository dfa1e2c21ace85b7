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
    /// A device or pipe, which takes bytes as they come.
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
    let Place::Regular(file) = &place else { return check_device(path).map(|()| place) };
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

/// Devices of Linux that are memory and not somebody's terminal or tape have the major number 1
/// (Documentation/admin-guide/devices.txt). Of these null and zero swallow a file; the others
/// (`full`, `random`, `kmsg`, `mem`, …) never take one.
fn check_device(path: &Path) -> Result<(), CliError> {
    const SWALLOW: [u32; 2] = [3, 5];
    let Ok(meta) = std::fs::metadata(path) else { return Ok(()) };
    let (major, minor) = (libc::major(meta.rdev()), libc::minor(meta.rdev()));
    let is_memory = cfg!(target_os = "linux") && meta.file_type().is_char_device() && major == 1;
    match is_memory && !SWALLOW.contains(&minor) {
        true => Err(CliError::mistake(format!(
            "{} is a device that takes no file; name a file to write",
            path.display()
        ))),
        false => Ok(()),
    }
}

/// Finds out whether a file could be made beside this one, whose directories need not be there.
///
/// # Errors
/// The system's reason.
pub fn try_beside(file: &Path) -> std::io::Result<()> {
    let there = file.ancestors().skip(1).find(|dir| is_there(dir));
    let there = there.filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    tempfile::tempfile_in(there).map(|_| ())
}

/// Of a name alone the last ancestor is empty, and is the present directory.
pub fn is_there(dir: &Path) -> bool {
    dir.as_os_str().is_empty() || dir.exists()
}

/// Checks the files that flags name: each can be written, and they are apart.
///
/// # Errors
/// As [`check`] and [`check_apart`].
pub fn check_all<'a>(files: impl IntoIterator<Item = (&'a str, &'a Path)>) -> Result<(), CliError> {
    let files: Vec<(&str, &Path)> = files.into_iter().collect();
    for (flag, path) in &files {
        let named =
            |error: CliError| CliError { message: format!("{flag}: {}", error.message), ..error };
        check(path).map_err(named)?;
    }
    check_apart(&files)
}

/// Checks that no two flags name one file, and none a directory for another's.
///
/// # Errors
/// Both flags and the file.
pub fn check_apart(files: &[(&str, &Path)]) -> Result<(), CliError> {
    let mut known: Vec<(&str, &Path, PathBuf)> = Vec::new();
    for &(flag, path) in files {
        let Some(file) = will_be(path) else { continue };
        for (other, name, before) in known.iter().filter(|(other, ..)| *other != flag) {
            let (path, name) = (path.display(), name.display());
            let why = match (file.starts_with(before), before.starts_with(&file)) {
                (true, true) => format!("{other} and {flag} both name {path}"),
                (true, false) => format!("{flag}: {path} would lie in {name}, the file of {other}"),
                (false, true) => format!("{other}: {name} would lie in {path}, the file of {flag}"),
                (false, false) => continue,
            };
            return Err(CliError::mistake(format!("{why}; give each a file of its own")));
        }
        known.push((flag, path, file));
    }
    Ok(())
}

/// Checks that a command reads none of these files, which it would overwrite.
///
/// # Errors
/// It does.
pub fn check_unread((flag, path): (&str, &Path), read: &[&Path]) -> Result<(), CliError> {
    let Some(file) = will_be(path) else { return Ok(()) };
    match read.iter().any(|read| settled(read) == file) {
        true => Err(CliError::mistake(format!(
            "{flag}: {} is read and would be overwritten; name another file",
            path.display()
        ))),
        false => Ok(()),
    }
}

/// Where a file of this name lies once it is written; `None` of what is no file.
fn will_be(path: &Path) -> Option<PathBuf> {
    match place(path) {
        Ok(Place::Regular(file)) => Some(settled(&file)),
        Ok(Place::Stream | Place::Printed) => None,
        Err(_) => Some(settled(path)),
    }
}

/// The path without links, as far as it is there.
fn settled(path: &Path) -> PathBuf {
    let real = |there: &Path| {
        let dir = if there.as_os_str().is_empty() { Path::new(".") } else { there };
        Some(dir.canonicalize().ok()?.join(path.strip_prefix(there).ok()?))
    };
    path.ancestors().find_map(real).unwrap_or_else(|| path.to_owned())
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
    // The mode of a plain new file: the process's mask applies.
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
        check(Path::new("/dev/null")).unwrap();
        check(Path::new("/dev/zero")).unwrap();
        assert_eq!(std::fs::read_to_string(at("old")).unwrap(), "old");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
        for (path, words) in [
            (dir.path().to_owned(), "is a directory; name a file to write"),
            (at(""), "is a directory's name; name a file"),
            (at("sub/"), "is a directory's name; name a file"),
            (at("gone/new"), "there is no directory"),
            (at("old/new"), "Not a directory"),
            (PathBuf::from("/proc/new"), "cannot write /proc/new: "),
            (PathBuf::from("/dev/full"), "/dev/full is a device that takes no file; name a file"),
            (PathBuf::from("/dev/random"), "is a device that takes no file"),
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
    fn what_is_written_is_apart_before_any_of_it_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("old"), "old").unwrap();
        symlink("old", at("link")).unwrap();
        symlink(".", at("here")).unwrap();
        let apart = |one: &str, other: &str| {
            check_apart(&[("--csv", &at(one)), ("--trace", &at(other))])
                .map_err(|error| error.message.replace(dir.path().to_str().unwrap(), "D"))
        };
        apart("new", "newer").unwrap();
        apart("a", "b/a").unwrap();
        apart("new/x", "new/y").unwrap();
        let within = "would lie in D/new, the file of --csv; give each a file of its own";
        assert_eq!(apart("new", "new/t"), Err(format!("--trace: D/new/t {within}")));
        assert_eq!(apart("new", "here/new/a/t"), Err(format!("--trace: D/here/new/a/t {within}")));
        let within = "would lie in D/new, the file of --trace; give each a file of its own";
        assert_eq!(apart("new/t", "new"), Err(format!("--csv: D/new/t {within}")));
        let same = "--csv and --trace both name D/link; give each a file of its own";
        assert_eq!(apart("here/old", "link"), Err(same.to_owned()));
        // One flag may name several.
        check_apart(&[("--trace", &at("t")), ("--trace", &at("t/parts"))]).unwrap();

        let unread = |path: &str| {
            check_unread(("--json", &at(path)), &[&at("gone"), &at("here/old")])
                .map_err(|error| error.message)
        };
        unread("new").unwrap();
        for read in ["old", "link", "here/link"] {
            assert!(unread(read).unwrap_err().contains("is read and would be overwritten"));
        }
        check_unread(("--json", Path::new("/dev/null")), &[Path::new("/dev/null")]).unwrap();
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
