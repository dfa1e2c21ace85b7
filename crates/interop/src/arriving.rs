//! A directory that appears whole or not at all.

use std::fs::{self, File, TryLockError};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::Error;

/// A directory that is being written under another name beside its own. One whose writer was
/// killed is removed by the next one in the same directory, whatever that will be called.
pub struct Arriving {
    temporary: TempDir,
    /// Held locked, so that nobody takes it for a dead writer's.
    _lock: File,
    target: PathBuf,
}

impl Arriving {
    /// Begins a directory that will be `target`, which is not there yet, or empty.
    ///
    /// # Errors
    /// Something is there; the directory above it cannot be written to.
    pub fn new(target: &Path) -> Result<Arriving, Error> {
        let target = std::path::absolute(target).map_err(Error::io("find", target))?;
        match fs::symlink_metadata(&target) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io("look at", &target)(error)),
            Ok(found) if !found.is_dir() => {
                let what = if found.is_symlink() { "a link" } else { "no directory" };
                let reason = format!("it is {what}; give a new or an empty directory");
                return Err(Error::refused(&target, reason));
            }
            Ok(_) => {
                let mut inside = fs::read_dir(&target).map_err(Error::io("list", &target))?;
                if inside.next().is_some() {
                    return Err(Error::TargetInUse { path: target });
                }
            }
        }
        let above = target.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(above).map_err(Error::io("create", above))?;
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        let prefix = format!(".{name}{ARRIVING}");
        let (temporary, lock) = locked(above, &prefix)?;
        // One that cannot be removed hinders nobody.
        Dead::all_in(above).into_iter().for_each(|dead| drop(dead.remove()));
        Ok(Arriving { temporary, _lock: lock, target })
    }

    /// Where to write meanwhile.
    pub fn path(&self) -> &Path {
        self.temporary.path()
    }

    /// Writes a small file and makes it durable.
    ///
    /// # Errors
    /// A full disk, and whatever else hinders.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let path = self.path().join(name);
        let write = || -> std::io::Result<()> {
            let mut file = File::create_new(&path)?;
            file.write_all(bytes)?;
            file.sync_all()
        };
        write().map_err(Error::io("write", &path))
    }

    /// Gives the directory its name. Files in it must be durable already.
    ///
    /// # Errors
    /// The disk fails; something else has taken the name meanwhile.
    pub fn finish(self) -> Result<PathBuf, Error> {
        let Arriving { temporary, target, _lock } = self;
        let sync = |path: &Path| {
            File::open(path).and_then(|dir| dir.sync_all()).map_err(Error::io("fsync", path))
        };
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(temporary.path(), open).map_err(Error::io("open", temporary.path()))?;
        sync(temporary.path())?;
        // An empty directory gives way.
        fs::rename(temporary.path(), &target).map_err(Error::io("create", &target))?;
        let _ = temporary.keep();
        sync(target.parent().unwrap_or(Path::new("/")))?;
        Ok(target)
    }
}

/// A new directory under a name of its own, and the lock on it.
fn locked(above: &Path, prefix: &str) -> Result<(TempDir, File), Error> {
    loop {
        let temporary = tempfile::Builder::new().prefix(prefix).tempdir_in(above);
        let temporary = temporary.map_err(Error::io("write in", above))?;
        let path = temporary.path();
        // Another one may take it for a dead writer's until the lock is held.
        match File::open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io("open", path)(error)),
            Ok(lock) => match lock.try_lock() {
                Err(TryLockError::WouldBlock) => {}
                // Where locks are refused, it is not told from a dead writer's; nobody else can
                // lock it.
                Ok(()) | Err(TryLockError::Error(_)) if path.exists() => {
                    return Ok((temporary, lock));
                }
                _ => {}
            },
        }
    }
}

/// Stands between the name of what is written and a word by chance.
const ARRIVING: &str = ".arriving-";

/// Whether a name is that of a directory that is being written.
fn is_arriving(name: &str) -> bool {
    let rest = name.strip_prefix('.').and_then(|rest| rest.rsplit_once(ARRIVING));
    rest.is_some_and(|(of, chance)| {
        !of.is_empty() && !chance.is_empty() && chance.chars().all(|c| c.is_ascii_alphanumeric())
    })
}

/// A directory whose writer was killed before it had its name. While this lives nobody else takes
/// it for one.
pub struct Dead {
    path: PathBuf,
    _lock: File,
}

impl Dead {
    /// All that lie in a directory; none where it cannot be read.
    pub fn all_in(above: &Path) -> Vec<Dead> {
        let entries = fs::read_dir(above).into_iter().flatten().flatten();
        let dead = entries.filter_map(|entry| {
            let is_ours = is_arriving(&entry.file_name().to_string_lossy());
            // A pipe would be waited for.
            let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
            let lock = (is_ours && is_dir).then(|| File::open(entry.path()).ok()).flatten()?;
            lock.try_lock().is_ok().then(|| Dead { path: entry.path(), _lock: lock })
        });
        let mut dead: Vec<Dead> = dead.collect();
        dead.sort_by(|a, b| a.path.cmp(&b.path));
        dead
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of its files, as far as they can be seen.
    pub fn bytes(&self) -> u64 {
        bytes_in(&self.path)
    }

    /// Removes it.
    ///
    /// # Errors
    /// Something in it cannot be removed.
    pub fn remove(self) -> Result<(), Error> {
        fs::remove_dir_all(&self.path).map_err(Error::io("remove", &self.path))
    }
}

fn bytes_in(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let bytes = entries.map(|entry| match entry.metadata() {
        Ok(found) if found.is_dir() => bytes_in(&entry.path()),
        Ok(found) if found.is_file() => found.len(),
        _ => 0,
    });
    bytes.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(path: &Path) -> Vec<String> {
        let names = fs::read_dir(path).unwrap();
        names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_directory_appears_whole_or_not_at_all() {
        let above = tempfile::tempdir().unwrap();
        let target = above.path().join("out");
        let arriving = Arriving::new(&target).unwrap();
        arriving.write("a", b"1").unwrap();
        assert!(!target.exists());
        drop(arriving);
        assert_eq!(names(above.path()), [""; 0]);
        fs::create_dir(&target).unwrap();
        let arriving = Arriving::new(&target).unwrap();
        arriving.write("a", b"1").unwrap();
        assert_eq!(names(&target), [""; 0]);
        arriving.finish().unwrap();
        assert_eq!((names(above.path()), names(&target)), (vec!["out".into()], vec!["a".into()]));
    }

    #[test]
    fn a_dead_writers_directory_is_removed_and_a_living_ones_is_not() {
        let above = tempfile::tempdir().unwrap();
        let target = above.path().join("out");
        let dead = above.path().join(".out.arriving-dead");
        fs::create_dir(&dead).unwrap();
        fs::write(dead.join("a"), "1").unwrap();
        let pipe = std::process::Command::new("mkfifo").arg(above.path().join("pipe")).status();
        assert!(pipe.unwrap().success());
        let (of_another, not_ours) =
            (above.path().join(".else.arriving-a1B2c3"), above.path().join(".arriving-notes.txt"));
        for path in [&of_another, &not_ours] {
            fs::create_dir(path).unwrap();
        }
        let living = Arriving::new(&target).unwrap();
        assert!(!dead.exists() && !of_another.exists() && not_ours.exists());
        let second = Arriving::new(&target).unwrap();
        assert!(living.path().exists() && second.path().exists());
        second.finish().unwrap();
        living.write("a", b"1").unwrap();
        // Whoever comes second finds an empty directory, which gives way.
        living.finish().unwrap();
        assert_eq!(names(&target), ["a"]);
    }

    #[test]
    fn what_is_left_is_told_before_it_is_removed() {
        let above = tempfile::tempdir().unwrap();
        let inside = above.path().join(".out.arriving-dead/checkpoints");
        fs::create_dir_all(&inside).unwrap();
        fs::write(inside.join("a"), "12345").unwrap();
        let living = Arriving::new(&above.path().join("dead/../new")).unwrap();
        // The next one in the same directory, so it is gone; make it again.
        fs::create_dir_all(&inside).unwrap();
        fs::write(inside.join("a"), "12345").unwrap();
        let [dead] = &Dead::all_in(above.path())[..] else { panic!("not one") };
        assert_eq!((dead.path().join("checkpoints"), dead.bytes()), (inside.clone(), 5));
        // Whoever has been told of it holds it.
        assert!(Dead::all_in(above.path()).is_empty());
        Dead::all_in(above.path()).into_iter().for_each(|dead| dead.remove().unwrap());
        assert!(inside.exists() && living.path().exists());
    }

    #[test]
    fn what_is_there_is_left_alone() {
        let above = tempfile::tempdir().unwrap();
        let (full, file, link) =
            (above.path().join("full"), above.path().join("file"), above.path().join("link"));
        fs::create_dir(&full).unwrap();
        fs::write(full.join("a"), "1").unwrap();
        fs::write(&file, "1").unwrap();
        std::os::unix::fs::symlink(above.path().join("nowhere"), &link).unwrap();
        assert!(matches!(Arriving::new(&full), Err(Error::TargetInUse { .. })));
        for target in [file, link, "/dev/null".into()] {
            let error = Arriving::new(&target).err().unwrap().to_string();
            assert!(error.contains("give a new or an empty directory"), "{error}");
        }
        assert_eq!(names(above.path()).len(), 3);
    }
}
