//! The files that a token file is made in, and those that an interrupted program left behind.
//!
//! ```text
//! corpus.tok.PID-NANOSECONDS.tmp              tokens; locked by whoever writes it
//! corpus.tok.PID-NANOSECONDS.documents.tmp    starts of documents
//! ```
//! A lock ends with its process, however that ended and on whichever host of a shared file system
//! it ran: a file that can be locked belongs to nobody. Where a file system has no locks, one that
//! was not written to for a day is taken for abandoned.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::error::{Result, io_error};

const BODY: &str = ".tmp";
const STARTS: &str = ".documents.tmp";
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// The two files of one writer; removes what was not finished.
pub(crate) struct Temporary {
    pub body: PathBuf,
    pub starts: PathBuf,
}

impl Temporary {
    /// New files beside `path`: of the tokens, locked, and of the starts of documents.
    pub fn create(path: &Path) -> Result<(Temporary, File, File)> {
        loop {
            // Hosts that share the directory may have processes of the same number.
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
            let process = format!("{}-{now}", std::process::id());
            let temporary = Temporary {
                body: beside(path, &format!(".{process}{BODY}")),
                starts: beside(path, &format!(".{process}{STARTS}")),
            };
            let body = open_new(&temporary.body)?;
            // Without locks there is none to be had; see `is_abandoned`.
            let _ = body.lock();
            // Between creation and lock it may have been taken for abandoned.
            if !temporary.body.exists() {
                continue;
            }
            let starts = open_new(&temporary.starts)?;
            return Ok((temporary, body, starts));
        }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // After a successful finish the first is gone already; nothing can be done about a failure
        // here.
        let _ = std::fs::remove_file(&self.body);
        let _ = std::fs::remove_file(&self.starts);
    }
}

/// Removes the temporaries of `path` that nobody writes any more. What cannot be removed stays.
pub(crate) fn remove_abandoned(path: &Path) {
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return };
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let entries = std::fs::read_dir(parent.unwrap_or(Path::new(".")));
    for entry in entries.into_iter().flatten().flatten() {
        let found = entry.file_name();
        let process = found.to_str().and_then(|found| process_of(found, name));
        let Some(process) = process else { continue };
        let body = beside(path, &format!(".{process}{BODY}"));
        let lock = OpenOptions::new().write(true).open(&body);
        let abandoned = match &lock {
            Ok(file) => is_abandoned(file),
            // The token file was finished; or the writer has just begun to remove both.
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        };
        if abandoned {
            // Under the lock, so that whoever has just created it notices.
            let _ = std::fs::remove_file(&body);
            let _ = std::fs::remove_file(beside(path, &format!(".{process}{STARTS}")));
        }
    }
}

fn is_abandoned(body: &File) -> bool {
    match body.try_lock() {
        Ok(()) => true,
        Err(TryLockError::WouldBlock) => false,
        Err(TryLockError::Error(_)) => {
            let modified = body.metadata().and_then(|meta| meta.modified());
            modified.is_ok_and(|at| at.elapsed().is_ok_and(|age| age > DAY))
        }
    }
}

/// `PID-NANOSECONDS` of a temporary of the token file `name`.
fn process_of<'a>(found: &'a str, name: &str) -> Option<&'a str> {
    let rest = found.strip_prefix(name)?.strip_prefix('.')?;
    let process = rest.strip_suffix(STARTS).or_else(|| rest.strip_suffix(BODY))?;
    let (pid, nanoseconds) = process.split_once('-')?;
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    (digits(pid) && digits(nanoseconds)).then_some(process)
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(suffix);
    path.with_file_name(name)
}

fn open_new(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true);
    options.open(path).map_err(io_error("create", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(dir).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn what_nobody_writes_is_removed_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.tok");
        let (writing, _body, _starts) = Temporary::create(&path).unwrap();
        let kept = ["a.tok", "a.tok.notes.tmp", "a.tok.1-.tmp", "b.tok.1-2.tmp", "a.tok.1-2"];
        let abandoned = ["a.tok.1-2.tmp", "a.tok.1-2.documents.tmp", "a.tok.3-4.documents.tmp"];
        for name in kept.iter().chain(&abandoned) {
            std::fs::write(dir.path().join(name), "x").unwrap();
        }
        remove_abandoned(&path);
        let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
        let mut expected = kept.map(str::to_owned).to_vec();
        expected.extend([name(&writing.body), name(&writing.starts)]);
        expected.sort();
        assert_eq!(names(dir.path()), expected);
        drop(writing);
        expected.retain(|name| kept.contains(&name.as_str()));
        assert_eq!(names(dir.path()), expected);
    }

    #[test]
    fn files_of_a_process_that_was_killed_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.tok");
        let (left, body, starts) = Temporary::create(&path).unwrap();
        // As a kill does: the files close, and stay.
        std::mem::forget(left);
        drop((body, starts));
        assert_eq!(names(dir.path()).len(), 2);
        remove_abandoned(&path);
        assert_eq!(names(dir.path()), Vec::<String>::new());
    }
}
