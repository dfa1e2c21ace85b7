//! This process among those of its host: meeting them, watching them, telling and being told that
//! the job is given up.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::block::Block;
use super::process::Process;
use super::shared_memory::SharedMemory;
use crate::job::{Job, Moments, Settings};
use crate::revocation::Reason;
use crate::{CommError, Result, ending};

/// How often the other processes are looked at: what happens between operations is known within
/// two looks.
const LOOK: Duration = Duration::from_millis(40);

/// The state that channels and groups of one rank share.
pub(crate) struct Host {
    pub(super) shared: Arc<Shared>,
    pub(super) memory: SharedMemory,
    watchdog: Option<Watchdog>,
}

/// The part of it that the watchdog sees, too.
pub(super) struct Shared {
    pub(super) job: Arc<Job>,
    pub(super) block: Arc<Block>,
    /// Those that share the memory, in the order of their places in it.
    ranks: Arc<[usize]>,
    /// Known once everyone is there.
    peers: OnceLock<Vec<Process>>,
}

struct Watchdog {
    is_over: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<()>,
}

impl Host {
    /// Takes the place of `rank` in `memory`.
    ///
    /// # Errors
    /// A rank out of range or claimed twice; memory of another job.
    pub(crate) fn new(
        memory: SharedMemory,
        rank: usize,
        world: usize,
        settings: Settings,
    ) -> Result<Host> {
        if rank >= world {
            return Err(CommError::NoSuchRank { rank, world });
        }
        let block = Arc::new(Block::open(&memory, world)?);
        let moments: Box<dyn Moments> = Box::new(Arc::clone(&block));
        let job = Arc::new(Job::new(rank, world, settings, moments));
        Host::of(memory, block, (0..world).collect(), job)
    }

    /// Takes the place of this rank of `job` in the memory of `ranks`, which are its host's.
    ///
    /// # Errors
    /// This rank is none of them, or claimed twice; memory of another job.
    pub(crate) fn within(memory: SharedMemory, ranks: Arc<[usize]>, job: Arc<Job>) -> Result<Host> {
        let block = Arc::new(Block::open(&memory, ranks.len())?);
        Host::of(memory, block, ranks, job)
    }

    fn of(
        memory: SharedMemory,
        block: Arc<Block>,
        ranks: Arc<[usize]>,
        job: Arc<Job>,
    ) -> Result<Host> {
        let (rank, world) = (job.rank, job.world);
        let shared = Shared { job, block, ranks, peers: OnceLock::new() };
        let place = shared.place(rank).ok_or(CommError::NoSuchRank { rank, world })?;
        if !shared.block.claim(place) {
            return Err(CommError::RankTaken { rank });
        }
        let shared = Arc::new(shared);
        let is_alone = shared.ranks.len() == 1;
        let watchdog = if is_alone { None } else { Some(Watchdog::start(&shared)?) };
        Ok(Host { shared, memory, watchdog })
    }

    /// Those that share the memory.
    pub(crate) fn ranks(&self) -> &Arc<[usize]> {
        &self.shared.ranks
    }

    pub(crate) fn job(&self) -> &Arc<Job> {
        &self.shared.job
    }

    /// A number that the ranks of this job have alone.
    pub(crate) fn identity(&self) -> u64 {
        self.memory.identity()
    }

    /// Tells the others, if this rank has given the job up.
    pub(crate) fn publish(&self) {
        let _ = self.shared.check_revoked();
    }
}

impl Shared {
    /// Everyone has met: processes can be watched.
    pub(super) fn know_everyone(&self) {
        let places = 0..self.ranks.len();
        let _ = self.peers.set(places.map(|place| self.block.process(place)).collect());
    }

    /// The place of `rank` in the memory, if it has one.
    pub(super) fn place(&self, rank: usize) -> Option<usize> {
        self.ranks.iter().position(|&other| other == rank)
    }

    /// Why `rank` will not come any more, if that is so.
    pub(super) fn gone(&self, rank: usize) -> Option<&'static str> {
        let place = self.place(rank)?;
        let is_alive = self.peers.get().is_none_or(|peers| peers[place].is_alive());
        // Looked at later, since a process leaves before it ends.
        match self.block.has_left(place) {
            true => Some("it left the group"),
            false => (!is_alive).then_some("its process has ended"),
        }
    }

    /// Tells the others if this rank has given the job up, and learns if they have.
    pub(crate) fn check_revoked(&self) -> Result<()> {
        let revocation = self.job.revocation();
        if self.block.is_revoked() {
            revocation.give_up(|| self.block.reason());
        } else if let Some(reason) = revocation.reason() {
            self.block.revoke(reason);
        }
        revocation.check()
    }

    /// One look of the watchdog.
    fn watch(&self) {
        self.job.look_at_pulse();
        let lost = |rank: &usize| self.gone(*rank) == Some("its process has ended");
        if self.check_revoked().is_ok()
            && let Some(rank) = self.ranks.iter().copied().find(lost)
        {
            self.job.revocation().give_up(|| Reason::loss(rank, "its process has ended"));
            let _ = self.check_revoked();
        }
    }
}

impl Watchdog {
    fn start(shared: &Arc<Shared>) -> Result<Watchdog> {
        let is_over = Arc::new(AtomicBool::new(false));
        let (shared, over) = (Arc::clone(shared), Arc::clone(&is_over));
        let thread = std::thread::Builder::new().name("watchdog".to_owned());
        let thread = thread.spawn(move || {
            while !over.load(Ordering::Acquire) {
                shared.watch();
                std::thread::park_timeout(LOOK);
            }
        });
        Ok(Watchdog { is_over, thread: thread.map_err(CommError::Runtime)? })
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // The others must learn that this rank gave the job up, and before it has left.
        self.publish();
        if let Some(place) = self.shared.place(self.shared.job.rank) {
            self.shared.block.leave(place);
        }
        if let Some(Watchdog { is_over, thread }) = self.watchdog.take() {
            is_over.store(true, Ordering::Release);
            thread.thread().unpark();
            ending::join(thread);
        }
    }
}
