//! A disk whose calls are work while they last, so that one that is slow is told from a rank that
//! is stuck.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use checkpoint::Anywhere;
use checkpoint::disk::{DirEntry, Disk, Free, ReadFile, Stat, WriteFile};

/// The operating system's file system and object stores, whose calls are those of [`device::work`].
///
/// A test makes it slow by the environment variable `MUSTER_SLOW_DISK`: an action, a part of a path
/// and milliseconds, with commas between them. Such calls take that much longer.
#[derive(Debug, Clone, Copy, Default)]
pub struct MarkedDisk;

/// Makes a call.
fn marked<T>(action: &'static str, path: &Path, call: impl FnOnce() -> T) -> T {
    device::work::calling(action, Some(path), || {
        if let Some(slow) = SLOW.get_or_init(Slow::of_environment) {
            slow.wait(action, path);
        }
        call()
    })
}

static SLOW: OnceLock<Option<Slow>> = OnceLock::new();

/// Which calls take longer.
#[derive(Debug, PartialEq, Eq)]
struct Slow {
    action: String,
    part: String,
    by: Duration,
}

impl Slow {
    fn of_environment() -> Option<Slow> {
        Slow::parse(&std::env::var("MUSTER_SLOW_DISK").ok()?)
    }

    fn parse(text: &str) -> Option<Slow> {
        let mut words = text.split(',');
        let (action, part) = (words.next()?.to_owned(), words.next()?.to_owned());
        Some(Slow { action, part, by: Duration::from_millis(words.next()?.parse().ok()?) })
    }

    fn wait(&self, action: &str, path: &Path) {
        if self.action == action && path.to_string_lossy().contains(&self.part) {
            std::thread::sleep(self.by);
        }
    }
}

struct Written {
    file: Box<dyn WriteFile>,
    path: PathBuf,
}

struct Read {
    file: Box<dyn ReadFile>,
    path: PathBuf,
}

impl WriteFile for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        marked("write", &self.path, || self.file.write(bytes))
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        marked("write", &self.path, || self.file.write_at(bytes, offset))
    }

    fn sync(&mut self) -> io::Result<()> {
        marked("fsync", &self.path, || self.file.sync())
    }
}

impl ReadFile for Read {
    fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<usize> {
        marked("read", &self.path, || self.file.read_at(out, offset))
    }

    fn forget(&self) {
        self.file.forget();
    }
}

impl Disk for MarkedDisk {
    fn create_new(&self, path: &Path) -> io::Result<Box<dyn WriteFile>> {
        let file = marked("create", path, || Anywhere.create_new(path))?;
        Ok(Box::new(Written { file, path: path.to_owned() }))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn ReadFile>> {
        let file = marked("open", path, || Anywhere.open(path))?;
        Ok(Box::new(Read { file, path: path.to_owned() }))
    }

    fn stat(&self, path: &Path) -> io::Result<Stat> {
        marked("stat", path, || Anywhere.stat(path))
    }

    fn link_target(&self, path: &Path) -> Option<PathBuf> {
        marked("readlink", path, || Anywhere.link_target(path))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        marked("mkdir", path, || Anywhere.create_dir(path))
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        marked("fsync", path, || Anywhere.sync_dir(path))
    }

    fn link(&self, existing: &Path, new: &Path) -> io::Result<()> {
        marked("link", new, || Anywhere.link(existing, new))
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        marked("unlink", path, || Anywhere.remove_file(path))
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        marked("rmdir", path, || Anywhere.remove_dir(path))
    }

    fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        marked("list", path, || Anywhere.list(path))
    }

    fn free(&self, path: &Path) -> Option<Free> {
        marked("statfs", path, || Anywhere.free(path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_calls_are_named_by_action_and_path() {
        let slow = Slow::parse("fsync,rank-00001,3600000").unwrap();
        // Would take an hour each.
        slow.wait("write", Path::new("/c/step-1/rank-00001/shard"));
        slow.wait("fsync", Path::new("/c/step-1/rank-00000/shard"));
        let slow = Slow { by: Duration::from_millis(20), ..slow };
        let since = std::time::Instant::now();
        slow.wait("fsync", Path::new("/c/step-1/rank-00001/shard"));
        assert!(since.elapsed() >= slow.by);
        assert_eq!(Slow::parse("fsync,rank"), None);
        assert_eq!(Slow::parse("fsync,rank,soon"), None);
    }
}
