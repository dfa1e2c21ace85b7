//! Checkpoints in a directory of each host, in memory or on a local disk, so that a rank or a host
//! may be lost without a word to any other disk.
//!
//! ```text
//! each rank ─▶ its files, in its host's directory ─▶ copied to the next host's
//!   ─▶ all copies are there ─▶ manifest and COMMIT, in every host's directory ─▶ older ones go
//! ```
//! The files are those of any checkpoint ([`checkpoint`]), and so are their names. A commit says
//! that every file is on two hosts (on one, where the job has no more), so with any one host gone
//! all of it can be found: see `find`. A host is whoever shares a directory: a file there holds a
//! random word that ranks compare.

mod copies;
mod find;
mod hosts;
mod save;

use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use checkpoint::Store;
use comm::{Control, World};

use crate::TrainError;

use copies::Copies;
pub(crate) use find::{Found, find};
use hosts::Hosts;
pub(crate) use save::Written;

/// The file with the word of a host.
const WORD: &str = "host";

/// The local checkpoints of a job, as one rank sees them.
pub(crate) struct Local {
    /// Of this rank's host.
    pub(crate) store: Store,
    pub(crate) hosts: Hosts,
    rank: usize,
    /// Where there are several hosts.
    copies: Option<Copies>,
}

impl Local {
    /// Makes the directory, and finds out which ranks share one. Collective.
    ///
    /// # Errors
    /// A directory that cannot be made or written; lost peers.
    pub(crate) fn new(
        root: &Path,
        world: &World,
        control: &dyn Control,
    ) -> Result<Local, TrainError> {
        let word = word_of(root);
        let told = word.as_ref().map_or(&[][..], |word| word.as_bytes());
        let words = control.all_gather_bytes(told)?;
        let word_failed = |rank| TrainError::LocalPeer { rank };
        word.map_err(|source| TrainError::LocalDir { path: root.to_owned(), source })?;
        words.iter().position(Vec::is_empty).map_or(Ok(()), |rank| Err(word_failed(rank)))?;
        let (hosts, rank) = (Hosts::new(&words), world.rank());
        let copies = (hosts.count() > 1).then(|| Copies::new(world, &hosts)).transpose()?;
        Ok(Local { store: Store::new(root), hosts, rank, copies })
    }

    /// Removes all that there is on this host.
    pub(crate) fn remove(&self) {
        for attempt in self.store.attempts().unwrap_or_default() {
            // One that stays is of no harm: newer checkpoints are on the disk.
            let _ = self.store.remove(attempt);
        }
        let root = self.store.root();
        let _ = std::fs::remove_file(root.join(WORD));
        let _ = std::fs::remove_dir(root);
    }

    /// Whether this rank does for its host what one of its ranks must do.
    pub(crate) fn leads(&self) -> bool {
        self.hosts.leads(self.rank)
    }
}

/// The word in a directory, which is made where it is missing.
fn word_of(root: &Path) -> io::Result<String> {
    std::fs::create_dir_all(root)?;
    let path = root.join(WORD);
    // Of this rank alone, which may be a thread.
    static CALLS: AtomicU64 = AtomicU64::new(0);
    let number = CALLS.fetch_add(1, Ordering::Relaxed);
    let own = root.join(format!("{WORD}.{}.{number}", std::process::id()));
    // A file appears with its word or not at all.
    std::fs::write(&own, std::fs::read_to_string("/proc/sys/kernel/random/uuid")?.trim())?;
    let linked = std::fs::hard_link(&own, &path);
    std::fs::remove_file(&own)?;
    match linked {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    match std::fs::read_to_string(&path)? {
        word if word.is_empty() => Err(ErrorKind::InvalidData.into()),
        word => Ok(word),
    }
}
