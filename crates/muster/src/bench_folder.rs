//! The temporary directory of one benchmark: what its ranks are told, and their logs.
//!
//! It is gone with the supervisor, except with one that was killed at once. So each start removes
//! those of dead ones: directories of this user, by their name, whose process is not there and
//! whose lock nobody holds. The lock counts among containers that share a directory and not their numbers
//! of processes; the kernel gives it back however its holder ends.

use std::fs::File;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::CliError;
use crate::limits;

const PREFIX: &str = "muster-bench-";

/// Of one start, gone with it.
pub struct Folder {
    pub path: PathBuf,
    /// Held as long as it is in use.
    _lock: Option<File>,
}

impl Folder {
    /// Makes it where the system keeps temporary files, and removes what dead supervisors left.
    ///
    /// # Errors
    /// The system refuses.
    pub fn new() -> Result<Folder, CliError> {
        let parent = std::env::temp_dir();
        remove_left(&parent);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let name = format!("{PREFIX}{}-{}", std::process::id(), now.subsec_nanos());
        let path = parent.join(name);
        let failed = |error| limits::refused(format!("make {}", path.display()), &error);
        std::fs::create_dir(&path).map_err(failed)?;
        // A file system without locks has the numbers of processes alone.
        let lock = open(&path).filter(|file| file.try_lock().is_ok());
        Ok(Folder { path, _lock: lock })
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // It lies where things are tidied up.
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// The directory itself, and no link to one.
fn open(path: &Path) -> Option<File> {
    let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
    File::options().read(true).custom_flags(flags).open(path).ok()
}

/// Removes directories of supervisors that are dead.
fn remove_left(parent: &Path) {
    // Without it nothing is known of other processes.
    let Ok(own) = std::fs::metadata("/proc/self").map(|meta| meta.uid()) else { return };
    for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(pid_of) else { continue };
        let is_own = entry.metadata().is_ok_and(|meta| meta.is_dir() && meta.uid() == own);
        if !is_own || Path::new("/proc").join(pid.to_string()).exists() {
            continue;
        }
        let path = entry.path();
        // Held until it is gone.
        let lock = open(&path).filter(|file| file.try_lock().is_ok());
        if lock.is_some() {
            let _ = std::fs::remove_dir_all(&path);
        }
    }
}

/// Of `muster-bench-PID-NUMBER`.
fn pid_of(name: &str) -> Option<u32> {
    let (pid, number) = name.strip_prefix(PREFIX)?.split_once('-')?;
    number.parse::<u32>().ok()?;
    pid.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_dead_supervisors_left_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let mut dead = std::process::Command::new("true").spawn().unwrap();
        dead.wait().unwrap();
        let (dead, alive) = (dead.id(), std::process::id());
        let at = |name: String| dir.path().join(name);
        let left = at(format!("{PREFIX}{dead}-1"));
        let locked = at(format!("{PREFIX}{dead}-2"));
        let others = [
            at(format!("{PREFIX}{alive}-1")),
            at(format!("{PREFIX}{dead}")),
            at(format!("{PREFIX}{dead}-x")),
            at(format!("else-{dead}-1")),
        ];
        for path in others.iter().chain([&left, &locked]) {
            std::fs::create_dir(path).unwrap();
        }
        std::fs::write(left.join("job.json"), "{}").unwrap();
        let lock = open(&locked).unwrap();
        lock.try_lock().unwrap();
        // A link is left alone, and so is what it leads to.
        let link = at(format!("{PREFIX}{dead}-3"));
        std::os::unix::fs::symlink(&others[1], &link).unwrap();
        remove_left(dir.path());
        assert!(!left.exists() && locked.exists() && link.is_symlink());
        assert!(others.iter().all(|path| path.exists()));
        drop(lock);
        remove_left(dir.path());
        assert!(!locked.exists());
    }
}
