//! The temporary directory of one benchmark: what its ranks are told, and their logs.
//!
//! It is gone with the supervisor, except with one that was killed at once. So each start removes
//! those of dead ones: directories of this user and of this boot of this host, by their name, whose
//! process is not there and whose lock nobody holds. Hosts that share a directory need not see each
//! other's locks. Containers of a host do, and may not see each other's processes; the kernel gives
//! a lock back however its holder ends.

use std::fs::{File, TryLockError};
use std::io::{Error, ErrorKind};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::CliError;
use crate::limits;

const PREFIX: &str = "muster-bench-";

/// How often a directory is made anew that another process took for a dead one's.
const TRIES: usize = 16;

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
        let boot = boot();
        if let Some(boot) = &boot {
            remove_left(&parent, boot);
        }
        let boot = boot.unwrap_or_else(|| "0".to_owned());
        let mut path = parent.clone();
        for _ in 0..TRIES {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let (pid, number) = (std::process::id(), now.subsec_nanos());
            path = parent.join(format!("{PREFIX}{boot}-{pid}-{number}"));
            let failed = |error| limits::refused(format!("make {}", path.display()), &error);
            std::fs::create_dir(&path).map_err(failed)?;
            match hold(&path, open(&path)) {
                Held::Locked(lock) => return Ok(Folder { path, _lock: Some(lock) }),
                Held::WithoutLock => return Ok(Folder { path, _lock: None }),
                Held::Lost => {}
            }
        }
        let error = Error::other("another process removes it each time");
        Err(limits::refused(format!("keep {}", path.display()), &error))
    }
}

/// The outcome of a lock on a new directory.
enum Held {
    Locked(File),
    /// The file system has no locks: nobody removes it.
    WithoutLock,
    /// Another process has removed it, or is about to.
    Lost,
}

/// Locks a directory that was just opened; between that it was made and this another process may
/// have locked it, as one that nobody holds.
fn hold(path: &Path, opened: std::io::Result<File>) -> Held {
    let lock = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Held::Lost,
        Err(_) => return Held::WithoutLock,
    };
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Held::Lost,
        Err(TryLockError::Error(_)) => return Held::WithoutLock,
    }
    let place = |meta: std::fs::Metadata| (meta.dev(), meta.ino());
    let (there, own) = (std::fs::symlink_metadata(path), lock.metadata());
    match (there.map(place), own.map(place)) {
        (Ok(there), Ok(own)) if there == own => Held::Locked(lock),
        _ => Held::Lost,
    }
}

/// Tells this boot of this host from all others, in 12 digits; its containers have the same.
fn boot() -> Option<String> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let digits: String = id.chars().filter(char::is_ascii_hexdigit).take(12).collect();
    (digits.len() == 12).then_some(digits)
}

impl Drop for Folder {
    fn drop(&mut self) {
        // It lies where things are tidied up.
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// The directory itself, and no link to one.
fn open(path: &Path) -> std::io::Result<File> {
    let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
    File::options().read(true).custom_flags(flags).open(path)
}

/// Removes directories of supervisors of this boot that are dead.
fn remove_left(parent: &Path, boot: &str) {
    // Without it nothing is known of other processes.
    let Ok(own) = std::fs::metadata("/proc/self").map(|meta| meta.uid()) else { return };
    for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| pid_of(name, boot)) else {
            continue;
        };
        let is_own = entry.metadata().is_ok_and(|meta| meta.is_dir() && meta.uid() == own);
        if !is_own || Path::new("/proc").join(pid.to_string()).exists() {
            continue;
        }
        let path = entry.path();
        // Held until it is gone.
        let lock = open(&path).ok().filter(|file| file.try_lock().is_ok());
        if lock.is_some() {
            let _ = std::fs::remove_dir_all(&path);
        }
    }
}

/// Of `muster-bench-BOOT-PID-NUMBER`.
fn pid_of(name: &str, boot: &str) -> Option<u32> {
    let of_boot = name.strip_prefix(PREFIX)?.strip_prefix(boot)?.strip_prefix('-')?;
    let (pid, number) = of_boot.split_once('-')?;
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
        let (own, other) = ("0123456789ab", "ba9876543210");
        let left = at(format!("{PREFIX}{own}-{dead}-1"));
        let locked = at(format!("{PREFIX}{own}-{dead}-2"));
        let others = [
            at(format!("{PREFIX}{own}-{alive}-1")),
            at(format!("{PREFIX}{own}-{dead}")),
            at(format!("{PREFIX}{own}-{dead}-x")),
            at(format!("else-{own}-{dead}-1")),
            // Of another host that shares the directory: its processes are not seen here.
            at(format!("{PREFIX}{other}-{dead}-1")),
            at(format!("{PREFIX}{dead}-1")),
        ];
        for path in others.iter().chain([&left, &locked]) {
            std::fs::create_dir(path).unwrap();
        }
        std::fs::write(left.join("job.json"), "{}").unwrap();
        let lock = open(&locked).unwrap();
        lock.try_lock().unwrap();
        // A link is left alone, and so is what it leads to.
        let link = at(format!("{PREFIX}{own}-{dead}-3"));
        std::os::unix::fs::symlink(&others[1], &link).unwrap();
        remove_left(dir.path(), own);
        assert!(!left.exists() && locked.exists() && link.is_symlink());
        assert!(others.iter().all(|path| path.exists()));
        drop(lock);
        remove_left(dir.path(), own);
        assert!(!locked.exists());
    }

    #[test]
    fn a_folder_says_which_boot_it_is_of_and_is_locked() {
        let boot = boot().unwrap();
        let folder = Folder::new().unwrap();
        let name = folder.path.file_name().unwrap().to_str().unwrap();
        assert_eq!(pid_of(name, &boot), Some(std::process::id()));
        let other = open(&folder.path).unwrap();
        assert!(matches!(other.try_lock(), Err(TryLockError::WouldBlock)));
        let path = folder.path.clone();
        drop(folder);
        assert!(!path.exists());
    }

    #[test]
    fn one_that_another_process_took_for_a_dead_ones_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("folder");
        let is_lost = |opened| matches!(hold(&path, opened), Held::Lost);
        assert!(is_lost(open(&path)));
        std::fs::create_dir(&path).unwrap();
        let other = open(&path).unwrap();
        other.try_lock().unwrap();
        assert!(is_lost(open(&path)));
        // Removed and given back before it was locked here.
        let opened = open(&path);
        std::fs::remove_dir(&path).unwrap();
        drop(other);
        assert!(is_lost(opened.as_ref().unwrap().try_clone()));
        // Or made anew by yet another.
        std::fs::create_dir(&path).unwrap();
        assert!(is_lost(opened));
        assert!(matches!(hold(&path, open(&path)), Held::Locked(_)));
    }
}
