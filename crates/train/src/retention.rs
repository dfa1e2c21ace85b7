//! Removing old checkpoints beside the training.
//!
//! Nothing is removed before the newest checkpoint has been read back, which for a large one takes
//! longer than ranks wait for each other. So a thread of rank 0 reads and removes while training
//! goes on, and what goes wrong there is a warning: the checkpoint that was saved stands.

use std::path::PathBuf;
use std::thread::JoinHandle;

use checkpoint::{Keep, Proof, Store};

use crate::Event;

type Removed = Result<Vec<PathBuf>, checkpoint::Error>;

/// The removal of all but the newest checkpoints.
pub(crate) struct Retention {
    /// Checkpoints to keep; none for all.
    keep: Option<Keep>,
    running: Option<JoinHandle<Removed>>,
    /// Something was saved while another removal was under way.
    due: bool,
}

impl Retention {
    pub fn new(keep: Option<Keep>) -> Retention {
        Retention { keep, running: None, due: false }
    }

    /// After a save: begins to remove, without waiting for anything. Returns what came of the
    /// time before. While that lasts nothing begins; the next time makes up for it.
    pub fn begin(&mut self, store: &Store) -> Option<Event> {
        let keep = self.keep?;
        self.due = true;
        if self.running.as_ref().is_some_and(|running| !running.is_finished()) {
            return None;
        }
        let told = self.end();
        let store = store.clone();
        let remove = move || store.retain(keep, Proof::EveryByte);
        match std::thread::Builder::new().name("retention".into()).spawn(remove) {
            Ok(running) => (self.running, self.due) = (Some(running), false),
            Err(error) => return Some(failed(error)),
        }
        told
    }

    /// At the end of the run, when no rank waits for another any more.
    pub fn finish(&mut self, store: &Store) -> Vec<Event> {
        let mut told = Vec::from_iter(self.end());
        if self.due {
            told.extend(self.begin(store));
            told.extend(self.end());
        }
        told
    }

    fn end(&mut self) -> Option<Event> {
        match self.running.take()?.join() {
            Ok(Ok(paths)) if paths.is_empty() => None,
            Ok(Ok(paths)) => {
                let paths = paths.iter().map(|path| path.display().to_string()).collect();
                Some(Event::Removed { paths })
            }
            Ok(Err(error)) => Some(failed(error)),
            Err(_) => Some(failed("the thread that removes them has failed")),
        }
    }
}

fn failed(why: impl std::fmt::Display) -> Event {
    let message = format!("older checkpoints were not removed: {why}; what was saved stands");
    Event::Warning { message }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::{Path, PathBuf};
    use std::sync::{Arc, Mutex};

    use checkpoint::disk::{DirEntry, Disk, Free, ReadFile, Stat, WriteFile};

    use super::*;

    /// A directory without checkpoints, which lists itself once it is let go, or fails.
    #[derive(Clone, Default)]
    struct Slow {
        hold: Arc<Mutex<()>>,
        fails: bool,
    }

    impl Disk for Slow {
        fn list(&self, _: &Path) -> io::Result<Vec<DirEntry>> {
            drop(self.hold.lock());
            match self.fails {
                true => Err(io::Error::other("a disk that is out of order")),
                false => Ok(Vec::new()),
            }
        }
        fn create_new(&self, _: &Path) -> io::Result<Box<dyn WriteFile>> {
            unreachable!()
        }
        fn open(&self, _: &Path) -> io::Result<Box<dyn ReadFile>> {
            unreachable!()
        }
        fn stat(&self, _: &Path) -> io::Result<Stat> {
            unreachable!()
        }
        fn link_target(&self, _: &Path) -> Option<PathBuf> {
            unreachable!()
        }
        fn create_dir(&self, _: &Path) -> io::Result<()> {
            unreachable!()
        }
        fn sync_dir(&self, _: &Path) -> io::Result<()> {
            unreachable!()
        }
        fn link(&self, _: &Path, _: &Path) -> io::Result<()> {
            unreachable!()
        }
        fn remove_file(&self, _: &Path) -> io::Result<()> {
            unreachable!()
        }
        fn remove_dir(&self, _: &Path) -> io::Result<()> {
            unreachable!()
        }
        fn free(&self, _: &Path) -> Option<Free> {
            None
        }
    }

    #[test]
    fn a_save_never_waits_for_a_slow_disk() {
        let disk = Slow::default();
        let store = Store::on(Arc::new(disk.clone()), "/checkpoints");
        let mut retention = Retention::new(Some(2.into()));
        let held = disk.hold.lock().unwrap();
        for _ in 0..3 {
            // Would never return if it waited.
            assert_eq!(retention.begin(&store), None);
        }
        assert!(retention.due && retention.running.is_some());
        drop(held);
        assert_eq!(retention.finish(&store), []);
        assert!(!retention.due && retention.running.is_none());
    }

    #[test]
    fn what_goes_wrong_is_a_warning() {
        let disk = Slow { fails: true, ..Slow::default() };
        let mut retention = Retention::new(Some(1.into()));
        let store = Store::on(Arc::new(disk), "/checkpoints");
        assert_eq!(retention.begin(&store), None);
        let told = retention.finish(&store);
        let [Event::Warning { message }] = &told[..] else { panic!("{told:?}") };
        assert!(message.starts_with("older checkpoints were not removed: cannot list /check"));
        assert!(message.contains("a disk that is out of order; what was saved"), "{message}");
    }

    #[test]
    fn keeping_all_removes_nothing() {
        let store = Store::on(Arc::new(Slow { fails: true, ..Slow::default() }), "/checkpoints");
        let mut retention = Retention::new(None);
        assert_eq!(retention.begin(&store), None);
        assert_eq!(retention.finish(&store), []);
    }
}
