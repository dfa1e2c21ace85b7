//! The block of a job: what its ranks know of each other whatever group they work in.
//!
//! ```text
//! header   magic, world, revocation: flag, lost rank, text
//! record   per rank: pid | left | namespace | present, and its moment in cache lines of their own
//! ```

use std::fs::File;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use super::presence::Presence;
use super::process::{self, Process};
use super::shared_memory::SharedMemory;
use super::system::{self, Words};
use crate::CommError;
use crate::job::Moments;
use crate::revocation::{Lost, Reason};

const MAGIC: u64 = u64::from_be_bytes(*b"muster04");

const HEADER: usize = 128;
const HEADER_WORLD: usize = 1;
const HEADER_REVOKED: usize = 2;
/// One more than the rank; 0 for none.
const HEADER_LOST: usize = 3;
const HEADER_TEXT_BYTES: usize = 4;
const HEADER_TEXT: std::ops::Range<usize> = 8..HEADER;

/// Two pairs of cache lines (processors fetch lines in pairs).
const RECORD: usize = 32;
const RECORD_PID: usize = 0;
const RECORD_LEFT: usize = 1;
const RECORD_NAMESPACE: usize = 2;
/// Whether the rank can be told from one that has ended by its presence.
const RECORD_PRESENT: usize = 3;
const RECORD_MOMENT: usize = 16;

const NOT_REVOKED: u64 = 0;
const WRITING: u64 = 1;
const REVOKED: u64 = 2;

pub(super) struct Block {
    words: Words,
    memory: SharedMemory,
    presence: OnceLock<Presence>,
}

impl SharedMemory {
    /// Makes the memory of a job of `world` ranks. `name` is for people who look at what a
    /// process has mapped.
    ///
    /// # Errors
    /// The system refuses; there is no memory.
    pub fn create(name: &str, world: usize) -> Result<SharedMemory, CommError> {
        let memory = SharedMemory::nameless(name)?;
        Block::create(memory.file(), world)?;
        Ok(memory)
    }
}

impl Block {
    fn words(world: usize) -> usize {
        HEADER + world * RECORD
    }

    /// Size of the block of a job.
    pub(super) fn bytes(world: usize) -> u64 {
        8 * Block::words(world) as u64
    }

    /// Makes the block of a job in a new file.
    pub(super) fn create(file: &File, world: usize) -> Result<(), CommError> {
        let words = Words::create(file, 0, Block::words(world))?;
        let header = words.all();
        header[HEADER_WORLD].store(world as u64, Ordering::Relaxed);
        header[0].store(MAGIC, Ordering::Release);
        Ok(())
    }

    /// Opens the block of a job of `world` ranks.
    pub(super) fn open(memory: &SharedMemory, world: usize) -> Result<Block, CommError> {
        let words = Words::open(memory.file(), 0, Block::words(world))?;
        let header = words.all();
        let known = header[0].load(Ordering::Acquire) == MAGIC
            && header[HEADER_WORLD].load(Ordering::Relaxed) == world as u64;
        match known {
            true => Ok(Block { words, memory: memory.clone(), presence: OnceLock::new() }),
            false => Err(CommError::ForeignMemory { world }),
        }
    }

    fn record(&self, rank: usize) -> &[AtomicU64] {
        &self.words.all()[HEADER + rank * RECORD..][..RECORD]
    }

    /// Takes the place of `rank`; false if somebody has it.
    pub(super) fn claim(&self, rank: usize) -> bool {
        let record = self.record(rank);
        let mine = u64::from(std::process::id());
        let pid = &record[RECORD_PID];
        let is_first = pid.compare_exchange(0, mine, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        if is_first {
            record[RECORD_NAMESPACE].store(process::namespace(), Ordering::Relaxed);
            if let Ok(presence) = Presence::of(rank, self.memory.file()) {
                record[RECORD_PRESENT].store(1, Ordering::Relaxed);
                let _ = self.presence.set(presence);
            }
        }
        is_first
    }

    /// The process of `rank`, which has arrived.
    pub(super) fn process(&self, rank: usize) -> Process {
        let record = self.record(rank);
        let [pid, namespace, present] = [RECORD_PID, RECORD_NAMESPACE, RECORD_PRESENT]
            .map(|word| record[word].load(Ordering::Relaxed));
        // Without a known namespace here there may be another there.
        match (namespace != 0 && namespace == process::namespace(), present) {
            (true, _) => Process::new(pid as u32),
            (false, 0) => Process::Elsewhere,
            (false, _) => Process::Present(rank, self.memory.clone()),
        }
    }

    /// Says that `rank` left the job in good order.
    pub(super) fn leave(&self, rank: usize) {
        self.record(rank)[RECORD_LEFT].store(1, Ordering::Release);
    }

    pub(super) fn has_left(&self, rank: usize) -> bool {
        self.record(rank)[RECORD_LEFT].load(Ordering::Acquire) != 0
    }

    /// Gives the job up; the first reason stays.
    pub(super) fn revoke(&self, reason: &Reason) {
        let header = self.words.all();
        let flag = &header[HEADER_REVOKED];
        let first = flag.compare_exchange(NOT_REVOKED, WRITING, Ordering::SeqCst, Ordering::SeqCst);
        if first.is_err() {
            return;
        }
        let (lost, text) = match &reason.lost {
            Some(Lost::Gone(rank, cause)) => (*rank as u64 + 1, cause.clone()),
            Some(Lost::Silent { ranks, timeout_ms }) => (run(ranks), timeout_ms.to_string()),
            None => (0, reason.why.clone()),
        };
        let room = HEADER_TEXT.len() * 8;
        let bytes = &text.as_bytes()[..text.floor_char_boundary(room)];
        system::store_bytes(&header[HEADER_TEXT], bytes);
        header[HEADER_TEXT_BYTES].store(bytes.len() as u64, Ordering::Relaxed);
        header[HEADER_LOST].store(lost, Ordering::Relaxed);
        flag.store(REVOKED, Ordering::SeqCst);
    }

    /// Whether the job is given up, or about to be.
    pub(super) fn is_revoked(&self) -> bool {
        self.words.all()[HEADER_REVOKED].load(Ordering::Acquire) != NOT_REVOKED
    }

    /// Why the job is given up.
    pub(super) fn reason(&self) -> Reason {
        let header = self.words.all();
        if header[HEADER_REVOKED].load(Ordering::Acquire) != REVOKED {
            return Reason { why: "a peer is giving the job up".to_owned(), lost: None };
        }
        let len = header[HEADER_TEXT_BYTES].load(Ordering::Relaxed) as usize;
        let mut bytes = vec![0; len.min(HEADER_TEXT.len() * 8)];
        system::load_bytes(&header[HEADER_TEXT], &mut bytes);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        reason(header[HEADER_LOST].load(Ordering::Relaxed), text)
    }
}

/// Where the number of silent ranks stands in the word of who was lost, above the first of them
/// and one.
const SILENT_BITS: u32 = 32;

/// Silent ranks in one word: the first of them in a row, since those of a host are.
fn run(ranks: &[usize]) -> u64 {
    let run = ranks.chunk_by(|one, next| one + 1 == *next).next().unwrap_or_default();
    run.first().map_or(0, |&first| (run.len() as u64) << SILENT_BITS | (first as u64 + 1))
}

/// As [`run`] and a text tell it.
fn reason(lost: u64, text: String) -> Reason {
    let (first, silent) = (lost as u32 as usize, (lost >> SILENT_BITS) as usize);
    match (first, silent) {
        (0, _) => Reason { why: text, lost: None },
        (rank, 0) => Reason::loss(rank - 1, &text),
        (rank, count) => {
            let ranks = (rank - 1..).take(count).collect();
            Reason::silence(ranks, text.parse().unwrap_or_default())
        }
    }
}

impl Moments for std::sync::Arc<Block> {
    fn now_ms(&self) -> u64 {
        system::now_ms()
    }

    fn of(&self, rank: usize) -> u64 {
        self.record(rank)[RECORD_MOMENT].load(Ordering::Relaxed)
    }

    fn advance(&self, rank: usize, to_ms: u64) {
        self.record(rank)[RECORD_MOMENT].fetch_max(to_ms, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn another_file_is_no_shared_memory() {
        let file = tempfile::tempfile().unwrap();
        let memory = SharedMemory::inherited(file.as_raw_fd()).unwrap();
        let open = |memory: &SharedMemory| Block::open(memory, 2).map(drop);
        assert!(matches!(open(&memory), Err(CommError::SharedMemory { action: "map", .. })));
        file.set_len(1 << 20).unwrap();
        assert!(matches!(open(&memory), Err(CommError::ForeignMemory { world: 2 })));
        let other = SharedMemory::create("world", 3).unwrap();
        assert!(matches!(open(&other), Err(CommError::ForeignMemory { world: 2 })));
        assert!(SharedMemory::inherited(-1).is_err());
    }

    #[test]
    fn silent_ranks_in_a_row_go_through_a_word() {
        let read = |ranks: &[usize]| reason(run(ranks), "2000".to_owned()).lost;
        let silent =
            |ranks: &[usize]| Some(Lost::Silent { ranks: ranks.to_vec(), timeout_ms: 2000 });
        for ranks in [&[0][..], &[2, 3], &[16_382, 16_383]] {
            assert_eq!(read(ranks), silent(ranks));
        }
        assert_eq!(read(&[4, 5, 9]), silent(&[4, 5]));
        assert_eq!(reason(3, "gone".to_owned()).lost, Some(Lost::Gone(2, "gone".to_owned())));
        assert_eq!(reason(0, "on purpose".to_owned()).lost, None);
    }
}
