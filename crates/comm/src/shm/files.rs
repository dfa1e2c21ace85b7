//! Names and removal of shared files.
//!
//! ```text
//! muster-JOB-control              the control block, until all ranks have opened it
//! muster-JOB-PID-new-r0           the same while rank 0 fills it
//! muster-JOB-PID-wINDEX-rRANK     a window of RANK, until its peers have mapped it
//! ```
//!
//! Files are unlinked as soon as every rank holds them, so a job that dies later leaves none.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::system::Process;
use crate::CommError;

const PREFIX: &str = "muster-";
const CONTROL: &str = "-control";

/// Where the control block of `job` is.
pub(super) fn control_path(dir: &Path, job: &str) -> PathBuf {
    dir.join(format!("{PREFIX}{job}{CONTROL}"))
}

/// A file of one rank: a window, or the control block while it is made.
pub(super) fn rank_path(dir: &Path, job: &str, pid: u32, what: &str, rank: usize) -> PathBuf {
    dir.join(format!("{PREFIX}{job}-{pid}-{what}-r{rank}"))
}

/// Refuses a job name that cannot be part of a file name.
pub(super) fn check_job(job: &str) -> Result<(), CommError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    match !job.is_empty() && job.len() <= 64 && job.chars().all(allowed) {
        true => Ok(()),
        false => Err(CommError::JobName { job: job.to_owned() }),
    }
}

/// Removes every shared file of `job` in `dir`; returns what was removed. For the process that
/// started the ranks, once they have ended.
///
/// # Errors
/// The directory cannot be read; a file cannot be removed.
pub fn cleanup(dir: &Path, job: &str) -> Result<Vec<PathBuf>, CommError> {
    remove(dir, |name, _| parse(name).is_some_and(|file| file.job == job))
}

/// Removes the shared files in `dir` of processes that no longer run; returns what was removed.
///
/// # Errors
/// As [`cleanup`].
pub fn remove_stale(dir: &Path) -> Result<Vec<PathBuf>, CommError> {
    remove(dir, |name, path| {
        let Some(file) = parse(name) else { return false };
        let pid = file.pid.or_else(|| creator(path));
        pid.is_some_and(|pid| !Process::new(pid).is_alive())
    })
}

fn remove(dir: &Path, wanted: impl Fn(&str, &Path) -> bool) -> Result<Vec<PathBuf>, CommError> {
    let failed = |path: &Path, action| {
        let path = path.to_owned();
        move |source| CommError::Shared { path, action, source }
    };
    let mut removed = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(failed(dir, "list"))? {
        let path = entry.map_err(failed(dir, "list"))?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if !wanted(name, &path) {
            continue;
        }
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(failed(&path, "remove")(error));
            }
            _ => removed.push(path),
        }
    }
    Ok(removed)
}

struct Named<'a> {
    job: &'a str,
    /// Not in the name of a control block.
    pid: Option<u32>,
}

fn parse(name: &str) -> Option<Named<'_>> {
    let rest = name.strip_prefix(PREFIX)?;
    if let Some(job) = rest.strip_suffix(CONTROL) {
        return Some(Named { job, pid: None });
    }
    let mut parts = rest.rsplitn(4, '-');
    let (rank, _what) = (parts.next()?, parts.next()?);
    rank.strip_prefix('r')?.parse::<usize>().ok()?;
    let pid = parts.next()?.parse().ok()?;
    Some(Named { job: parts.next()?, pid: Some(pid) })
}

/// The process that made a control block.
pub(super) fn creator(path: &Path) -> Option<u32> {
    let mut words = [0; 8 * super::control::HEADER_PID + 8];
    File::open(path).ok()?.read_exact(&mut words).ok()?;
    let pid = words.last_chunk::<8>()?;
    u32::try_from(u64::from_ne_bytes(*pid)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn child_that_ended() -> u32 {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        child.id()
    }

    #[test]
    fn only_files_of_the_job_are_cleaned() {
        let dir = tempfile::tempdir().unwrap();
        let names =
            ["muster-a-control", "muster-a-7-w0-r1", "muster-a-b-control", "muster-a-b-7-w0-r0"];
        for name in names.iter().chain(&["other", "muster-a"]) {
            std::fs::write(dir.path().join(name), b"").unwrap();
        }
        assert_eq!(cleanup(dir.path(), "a").unwrap().len(), 2);
        assert_eq!(cleanup(dir.path(), "a-b").unwrap().len(), 2);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn only_files_of_dead_processes_are_stale() {
        let dir = tempfile::tempdir().unwrap();
        let (dead, alive) = (child_that_ended(), std::process::id());
        let path = |pid| rank_path(dir.path(), "job-1", pid, "w3", 0);
        std::fs::write(path(dead), b"").unwrap();
        std::fs::write(path(alive), b"").unwrap();
        let header = |pid: u32| [0, 0, u64::from(pid), 0].map(u64::to_ne_bytes).concat();
        std::fs::write(control_path(dir.path(), "old"), header(dead)).unwrap();
        std::fs::write(control_path(dir.path(), "new"), header(alive)).unwrap();
        let mut removed = remove_stale(dir.path()).unwrap();
        removed.sort();
        assert_eq!(removed, [path(dead), control_path(dir.path(), "old")]);
    }

    #[test]
    fn job_names_cannot_leave_the_directory() {
        assert!(check_job("run-3.b_1").is_ok());
        for job in ["", "a/b", "ä", &"x".repeat(65)] {
            assert!(check_job(job).is_err(), "{job}");
        }
    }
}
