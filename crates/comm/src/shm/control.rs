//! The control block: atomic words at the start of shared memory, through which ranks meet.
//!
//! ```text
//! header   magic, world, revocation flag and text
//! record   per rank: phase | sleepers | pid | left | namespace  (cache lines of their own)
//!                    announcements of the last two operations
//!                    bytes that peers read out of its windows
//! mail     per rank: two boxes of MAIL_BYTES for small messages
//! channel  per ordered pair of ranks: two boxes for send and receive
//! ```
//!
//! **Phases.** Operation `s` has two: `2s`, entered with this rank's data in place, and `2s + 1`,
//! left with the peers' data read. A rank stores its phase with `Release`, after everything it
//! wrote; a peer that loads it with `Acquire` therefore sees all of that, in the windows as in the
//! mail. Phases only grow (compared with wrap-around), so a peer that has run ahead still counts
//! as arrived.
//!
//! **Two boxes.** Announcement and mail of operation `s` use box `s % 2`. A rank fills the box
//! again for `s + 2` only after every rank has entered `s + 1`, hence finished reading `s`. So
//! operations that only exchange small messages need no second phase.
//!
//! **Sleeping.** A waiter counts itself in `sleepers`, looks at the phase again and sleeps on it;
//! an arriver stores the phase, then looks at `sleepers`. All four accesses are `SeqCst`: in their
//! one order either the waiter's look comes after the store, or the arriver's look comes after
//! the count and it wakes the waiter. Sleeps are short in any case, since the waiter must also
//! notice revocation and death.

use std::fs::File;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use super::memory::SharedMemory;
use super::system::{self, Process, Words};
use crate::{CommError, Operation};

const MAGIC: u64 = u64::from_be_bytes(*b"muster02");

const HEADER: usize = 128;
const HEADER_WORLD: usize = 1;
const HEADER_REVOKED: usize = 2;
const HEADER_TEXT_BYTES: usize = 3;
const HEADER_TEXT: std::ops::Range<usize> = 8..HEADER;

/// Two pairs of cache lines (processors fetch lines in pairs).
const RECORD: usize = 32;
const RECORD_PHASE: usize = 0;
const RECORD_SLEEPERS: usize = 1;
const RECORD_PID: usize = 2;
const RECORD_LEFT: usize = 3;
const RECORD_NAMESPACE: usize = 4;
const RECORD_ANNOUNCED: usize = 16;
const ANNOUNCED: usize = 4;
const RECORD_READ: usize = 24;

/// Bytes of one message box; longer messages go in rounds.
pub(super) const MAIL_BYTES: usize = 64 << 10;
const MAIL: usize = 1 + MAIL_BYTES / 8;

const NOT_REVOKED: u64 = 0;
const WRITING: u64 = 1;
const REVOKED: u64 = 2;

/// What a rank says that it is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Announcement {
    pub sequence: u64,
    pub operation: u64,
    pub digest: u64,
}

pub(super) struct Control {
    words: Words,
    world: usize,
}

impl Control {
    fn words(world: usize) -> usize {
        HEADER + world * (RECORD + 2 * MAIL) + world * world * super::channel::WORDS
    }

    /// Size of the block of a group.
    pub(super) fn bytes(world: usize) -> u64 {
        8 * Control::words(world) as u64
    }

    /// Makes the block of a group in a new file.
    pub(super) fn create(file: &File, world: usize) -> Result<(), CommError> {
        let words = Words::create(file, Control::words(world))?;
        let header = words.all();
        header[HEADER_WORLD].store(world as u64, Ordering::Relaxed);
        header[0].store(MAGIC, Ordering::Release);
        Ok(())
    }

    /// Opens the block of a group of `world` ranks.
    pub(super) fn open(memory: &SharedMemory, world: usize) -> Result<Control, CommError> {
        let words = Words::open(memory.file(), Control::words(world))?;
        let header = words.all();
        let known = header[0].load(Ordering::Acquire) == MAGIC
            && header[HEADER_WORLD].load(Ordering::Relaxed) == world as u64;
        match known {
            true => Ok(Control { words, world }),
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
            record[RECORD_NAMESPACE].store(system::namespace(), Ordering::Relaxed);
        }
        is_first
    }

    /// The process of `rank`, which has arrived.
    pub(super) fn process(&self, rank: usize) -> Process {
        let record = self.record(rank);
        match record[RECORD_NAMESPACE].load(Ordering::Relaxed) == system::namespace() {
            true => Process::new(record[RECORD_PID].load(Ordering::Relaxed) as u32),
            false => Process::Elsewhere,
        }
    }

    fn phase_word(&self, rank: usize) -> &AtomicU32 {
        system::low_half(&self.record(rank)[RECORD_PHASE])
    }

    fn sleepers(&self, rank: usize) -> &AtomicU32 {
        system::low_half(&self.record(rank)[RECORD_SLEEPERS])
    }

    /// Whether `rank` has reached `phase`.
    pub(super) fn has_reached(&self, rank: usize, phase: u32) -> bool {
        reached(self.phase_word(rank).load(Ordering::Acquire), phase)
    }

    /// Publishes everything this rank has written, and that it has reached `phase`.
    pub(super) fn arrive(&self, rank: usize, phase: u32) {
        self.phase_word(rank).store(phase, Ordering::SeqCst);
        self.wake(rank);
    }

    fn wake(&self, rank: usize) {
        if self.sleepers(rank).load(Ordering::SeqCst) > 0 {
            system::futex_wake(self.phase_word(rank));
        }
    }

    /// Sleeps until `rank` moves, at most `limit`; returns at once if it has reached `phase`.
    pub(super) fn sleep(&self, rank: usize, phase: u32, limit: Duration) {
        sleep_on(self.phase_word(rank), self.sleepers(rank), |now| reached(now, phase), limit);
    }

    /// Says that `rank` left in good order: it will reach no further phase.
    pub(super) fn leave(&self, rank: usize) {
        self.record(rank)[RECORD_LEFT].store(1, Ordering::Release);
        system::futex_wake(self.phase_word(rank));
    }

    pub(super) fn has_left(&self, rank: usize) -> bool {
        self.record(rank)[RECORD_LEFT].load(Ordering::Acquire) != 0
    }

    fn announced(&self, rank: usize, sequence: u64) -> &[AtomicU64] {
        let at = RECORD_ANNOUNCED + (sequence % 2) as usize * ANNOUNCED;
        &self.record(rank)[at..at + ANNOUNCED]
    }

    /// To be followed by [`Control::arrive`], which publishes it.
    pub(super) fn announce(&self, rank: usize, what: Announcement) {
        let words = self.announced(rank, what.sequence);
        words[0].store(what.sequence, Ordering::Relaxed);
        words[1].store(what.operation, Ordering::Relaxed);
        words[2].store(what.digest, Ordering::Relaxed);
    }

    /// What `rank`, which has arrived, announced for operation `sequence`.
    pub(super) fn announcement(&self, rank: usize, sequence: u64) -> Announcement {
        let words = self.announced(rank, sequence);
        let [sequence, operation, digest] = [0, 1, 2].map(|i| words[i].load(Ordering::Relaxed));
        Announcement { sequence, operation, digest }
    }

    /// Says that `bytes` were read out of the windows of `rank`; to be followed by
    /// [`Control::arrive`], which publishes it.
    pub(super) fn add_read(&self, rank: usize, bytes: u64) {
        self.record(rank)[RECORD_READ].fetch_add(bytes, Ordering::Relaxed);
    }

    /// What peers that have arrived since the last call read out of the windows of `rank`.
    pub(super) fn take_read(&self, rank: usize) -> u64 {
        self.record(rank)[RECORD_READ].swap(0, Ordering::Relaxed)
    }

    fn mail(&self, rank: usize, sequence: u64) -> &[AtomicU64] {
        let boxes = HEADER + self.world * RECORD;
        let at = boxes + (2 * rank + (sequence % 2) as usize) * MAIL;
        &self.words.all()[at..at + MAIL]
    }

    /// Puts `bytes` (at most [`MAIL_BYTES`]) of a message of `total` bytes into this rank's box.
    pub(super) fn put_mail(&self, rank: usize, sequence: u64, total: usize, bytes: &[u8]) {
        let words = self.mail(rank, sequence);
        words[0].store(total as u64, Ordering::Relaxed);
        system::store_bytes(&words[1..], bytes);
    }

    /// Length of the whole message whose next part is in the box.
    pub(super) fn mail_total(&self, rank: usize, sequence: u64) -> usize {
        self.mail(rank, sequence)[0].load(Ordering::Relaxed) as usize
    }

    pub(super) fn get_mail(&self, rank: usize, sequence: u64, bytes: &mut [u8]) {
        system::load_bytes(&self.mail(rank, sequence)[1..], bytes);
    }

    /// The words of the channel from one rank to another.
    pub(super) fn channel(&self, from: usize, to: usize) -> &[AtomicU64] {
        let channels = HEADER + self.world * (RECORD + 2 * MAIL);
        let at = channels + (from * self.world + to) * super::channel::WORDS;
        &self.words.all()[at..at + super::channel::WORDS]
    }

    /// Gives the group up; the first reason stays. Wakes every sleeper.
    pub(super) fn revoke(&self, why: &str) {
        let header = self.words.all();
        let flag = &header[HEADER_REVOKED];
        let first = flag.compare_exchange(NOT_REVOKED, WRITING, Ordering::SeqCst, Ordering::SeqCst);
        if first.is_ok() {
            let room = HEADER_TEXT.len() * 8;
            let bytes = &why.as_bytes()[..why.floor_char_boundary(room)];
            system::store_bytes(&header[HEADER_TEXT], bytes);
            header[HEADER_TEXT_BYTES].store(bytes.len() as u64, Ordering::Relaxed);
            flag.store(REVOKED, Ordering::SeqCst);
        }
        for rank in 0..self.world {
            system::futex_wake(self.phase_word(rank));
        }
        for (from, to) in (0..self.world).flat_map(|a| (0..self.world).map(move |b| (a, b))) {
            super::channel::wake(self.channel(from, to));
        }
    }

    /// Why the group was aborted, if it was.
    pub(super) fn revoked(&self) -> Option<String> {
        let header = self.words.all();
        match header[HEADER_REVOKED].load(Ordering::Acquire) {
            NOT_REVOKED => None,
            REVOKED => {
                let len = header[HEADER_TEXT_BYTES].load(Ordering::Relaxed) as usize;
                let mut bytes = vec![0; len.min(HEADER_TEXT.len() * 8)];
                system::load_bytes(&header[HEADER_TEXT], &mut bytes);
                Some(String::from_utf8_lossy(&bytes).into_owned())
            }
            _ => Some("a peer is giving the group up".to_owned()),
        }
    }
}

/// Whether phase `now` is `phase` or later, with wrap-around.
fn reached(now: u32, phase: u32) -> bool {
    now.wrapping_sub(phase) < 1 << 31
}

/// Sleeps on `word` until it changes, unless `done` already holds of it; at most `limit`.
pub(super) fn sleep_on(
    word: &AtomicU32,
    sleepers: &AtomicU32,
    done: impl Fn(u32) -> bool,
    limit: Duration,
) {
    sleepers.fetch_add(1, Ordering::SeqCst);
    let seen = word.load(Ordering::SeqCst);
    if !done(seen) {
        system::futex_wait(word, seen, limit);
    }
    sleepers.fetch_sub(1, Ordering::SeqCst);
}

/// The operation another rank announced, in words.
pub(super) fn describe(theirs: Announcement, ours: Announcement) -> String {
    match Operation::from_code(theirs.operation) {
        Some(operation) if theirs.operation == ours.operation => {
            format!("{operation} #{} with other arguments", theirs.sequence)
        }
        Some(operation) => format!("{operation} #{}", theirs.sequence),
        None => format!("operation {} #{}", theirs.operation, theirs.sequence),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_compare_across_the_wrap() {
        assert!(reached(5, 5) && reached(6, 5) && !reached(4, 5));
        assert!(reached(1, u32::MAX) && !reached(u32::MAX, 1));
    }
}
