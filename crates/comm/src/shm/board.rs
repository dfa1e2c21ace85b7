//! The board of a channel or group: atomic words through which its members meet. Members are known
//! by their places.
//!
//! ```text
//! record   per member: phase | sleepers | announcements of the last two operations  (a cache line)
//!                      left | bell | sleepers
//!                      bytes that peers read out of its windows
//! area     per member, on pages that it reserves itself, so that they are near it:
//!   mail   two boxes for small messages
//!   box    two for exchanges to each member, in groups only
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
//! notice revocation and death. A *bell* rings whenever something happens in a pair's boxes that
//! its owner may wait for.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use super::channel::Channel;
use super::shared_memory::SharedMemory;
use super::system::{self, Words};
use crate::{CommError, Operation};

/// Words of a largest page: where members' areas begin.
const PAGE: usize = (64 << 10) / 8;

/// Two pairs of cache lines (processors fetch lines in pairs).
const RECORD: usize = 32;
/// The first cache line has all that peers look at where nobody sleeps: one line comes over.
const RECORD_PHASE: usize = 0;
const RECORD_SLEEPERS: usize = 1;
const RECORD_ANNOUNCED: usize = 2;
const ANNOUNCED: usize = 3;
const RECORD_LEFT: usize = 8;
const RECORD_BELL: usize = 9;
const RECORD_BELL_SLEEPERS: usize = 10;
const RECORD_READ: usize = 24;

/// Purposes of a board.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Messages of any length, in rounds of mail.
    Channel,
    /// Windows and exchanges; mail is for what an operation says about itself, and for what little
    /// the members say before the first.
    Group,
}

/// Bytes of one box of mail in a channel, and in a group; longer messages go in rounds.
const CHANNEL_MAIL_BYTES: usize = 64 << 10;
const GROUP_MAIL_BYTES: usize = 256;
/// Bytes that a member of a group may say per member.
pub(super) const WORD_BYTES: usize = 16;

/// The operation that a rank says it is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Announcement {
    pub sequence: u64,
    pub operation: u64,
    pub digest: u64,
}

pub(super) struct Board {
    words: Words,
    kind: Kind,
    members: usize,
}

impl Board {
    /// Words of one box of mail: the length, and the message.
    fn mail_words(kind: Kind, members: usize) -> usize {
        1 + Board::mail_bytes_of(kind, members) / 8
    }

    fn mail_bytes_of(kind: Kind, members: usize) -> usize {
        match kind {
            Kind::Channel => CHANNEL_MAIL_BYTES,
            Kind::Group => (members * WORD_BYTES).max(GROUP_MAIL_BYTES),
        }
    }

    /// Bytes of one box of mail.
    pub(super) fn mail_bytes(&self) -> usize {
        Board::mail_bytes_of(self.kind, self.members)
    }

    /// Words of a member's area, without what is left of its last page.
    fn area_words(kind: Kind, members: usize) -> usize {
        let peers = if kind == Kind::Group { members } else { 0 };
        2 * Board::mail_words(kind, members) + peers * super::channel::WORDS
    }

    /// Where a member's area begins; where they end, for one more than there are.
    fn area_at(kind: Kind, members: usize, place: usize) -> usize {
        let area = Board::area_words(kind, members).next_multiple_of(PAGE);
        (members * RECORD).next_multiple_of(PAGE) + place * area
    }

    fn words(kind: Kind, members: usize) -> usize {
        Board::area_at(kind, members, members)
    }

    /// Size of a board.
    pub(super) fn bytes(kind: Kind, members: usize) -> u64 {
        8 * Board::words(kind, members) as u64
    }

    /// The board of `members` members that begins at byte `at`, where nothing else was before, for
    /// the one at `place`. It begins empty, and whichever member comes first makes the records. The
    /// areas of others may be touched once they have come.
    pub(super) fn open(
        memory: &SharedMemory,
        at: u64,
        kind: Kind,
        (members, place): (usize, usize),
    ) -> Result<Board, CommError> {
        let (file, words) = (memory.file(), Board::words(kind, members));
        let own = 8 * Board::area_at(kind, members, place) as u64;
        system::reserve(file, at, 8 * members * RECORD)?;
        system::reserve(file, at + own, 8 * Board::area_words(kind, members))?;
        // The mapping can only be as long as the file.
        system::reserve(file, at + 8 * words as u64 - 1, 1)?;
        Ok(Board { words: Words::open(file, at, words)?, kind, members })
    }

    fn record(&self, place: usize) -> &[AtomicU64] {
        &self.words.all()[place * RECORD..][..RECORD]
    }

    fn phase_word(&self, place: usize) -> &AtomicU32 {
        system::low_half(&self.record(place)[RECORD_PHASE])
    }

    fn sleepers(&self, place: usize) -> &AtomicU32 {
        system::low_half(&self.record(place)[RECORD_SLEEPERS])
    }

    /// Whether `place` has reached `phase`.
    pub(super) fn has_reached(&self, place: usize, phase: u32) -> bool {
        reached(self.phase_word(place).load(Ordering::Acquire), phase)
    }

    /// Publishes everything this rank has written, and that it has reached `phase`.
    pub(super) fn arrive(&self, place: usize, phase: u32) {
        self.phase_word(place).store(phase, Ordering::SeqCst);
        self.wake(place);
    }

    fn wake(&self, place: usize) {
        if self.sleepers(place).load(Ordering::SeqCst) > 0 {
            system::futex_wake(self.phase_word(place));
        }
    }

    /// Sleeps until `place` moves, at most `limit`; returns at once if it has reached `phase`.
    pub(super) fn sleep(&self, place: usize, phase: u32, limit: Duration) {
        sleep_on(self.phase_word(place), self.sleepers(place), |now| reached(now, phase), limit);
    }

    /// Says that a member left in good order: it will reach no further phase.
    pub(super) fn leave(&self, place: usize) {
        self.record(place)[RECORD_LEFT].store(1, Ordering::Release);
        system::futex_wake(self.phase_word(place));
    }

    pub(super) fn has_left(&self, place: usize) -> bool {
        self.record(place)[RECORD_LEFT].load(Ordering::Acquire) != 0
    }

    fn announced(&self, place: usize, sequence: u64) -> &[AtomicU64] {
        let at = RECORD_ANNOUNCED + (sequence % 2) as usize * ANNOUNCED;
        &self.record(place)[at..at + ANNOUNCED]
    }

    /// To be followed by [`Board::arrive`], which publishes it.
    pub(super) fn announce(&self, place: usize, what: Announcement) {
        let words = self.announced(place, what.sequence);
        words[0].store(what.sequence, Ordering::Relaxed);
        words[1].store(what.operation, Ordering::Relaxed);
        words[2].store(what.digest, Ordering::Relaxed);
    }

    /// The announcement of `place`, which has arrived, for operation `sequence`.
    pub(super) fn announcement(&self, place: usize, sequence: u64) -> Announcement {
        let words = self.announced(place, sequence);
        let [sequence, operation, digest] = [0, 1, 2].map(|i| words[i].load(Ordering::Relaxed));
        Announcement { sequence, operation, digest }
    }

    /// Says that `bytes` were read out of the windows of `place`; to be followed by
    /// [`Board::arrive`], which publishes it.
    pub(super) fn add_read(&self, place: usize, bytes: u64) {
        self.record(place)[RECORD_READ].fetch_add(bytes, Ordering::Relaxed);
    }

    /// Takes the count of bytes that peers which have arrived since the last call read out of the
    /// windows of `place`.
    pub(super) fn take_read(&self, place: usize) -> u64 {
        self.record(place)[RECORD_READ].swap(0, Ordering::Relaxed)
    }

    fn mail(&self, place: usize, sequence: u64) -> &[AtomicU64] {
        let len = Board::mail_words(self.kind, self.members);
        let area = Board::area_at(self.kind, self.members, place);
        let at = area + (sequence % 2) as usize * len;
        &self.words.all()[at..at + len]
    }

    /// Puts `bytes` (at most a box) of a message of `total` bytes into this rank's box.
    pub(super) fn put_mail(&self, place: usize, sequence: u64, total: usize, bytes: &[u8]) {
        let words = self.mail(place, sequence);
        words[0].store(total as u64, Ordering::Relaxed);
        system::store_bytes(&words[1..], bytes);
    }

    /// Length of the whole message whose next part is in the box.
    pub(super) fn mail_total(&self, place: usize, sequence: u64) -> usize {
        self.mail(place, sequence)[0].load(Ordering::Relaxed) as usize
    }

    pub(super) fn get_mail(&self, place: usize, sequence: u64, bytes: &mut [u8]) {
        system::load_bytes(&self.mail(place, sequence)[1..], bytes);
    }

    /// The boxes from one member to another, in a group.
    pub(super) fn channel(&self, from: usize, to: usize) -> Channel<'_> {
        let area = Board::area_at(self.kind, self.members, from);
        let boxes = area + 2 * Board::mail_words(self.kind, self.members);
        let at = boxes + to * super::channel::WORDS;
        Channel { words: &self.words.all()[at..at + super::channel::WORDS] }
    }

    /// Whether something from `from` waits for `to`, in a group.
    pub(super) fn has_mail(&self, from: usize, to: usize) -> bool {
        self.kind == Kind::Group && from != to && self.channel(from, to).has_mail()
    }

    /// Whether it does, sent before collective `sequence`.
    pub(super) fn has_mail_from_before(&self, from: usize, to: usize, sequence: u64) -> bool {
        self.has_mail(from, to) && self.channel(from, to).after() < sequence
    }

    fn bell_word(&self, place: usize) -> &AtomicU32 {
        system::low_half(&self.record(place)[RECORD_BELL])
    }

    /// How often the bell of `place` has rung.
    pub(super) fn bell(&self, place: usize) -> u32 {
        self.bell_word(place).load(Ordering::SeqCst)
    }

    /// Tells `place` that boxes of a pair with it have changed.
    pub(super) fn ring(&self, place: usize) {
        let (bell, sleepers) = (self.bell_word(place), RECORD_BELL_SLEEPERS);
        bell.fetch_add(1, Ordering::SeqCst);
        if system::low_half(&self.record(place)[sleepers]).load(Ordering::SeqCst) > 0 {
            system::futex_wake(bell);
        }
    }

    /// Sleeps until the bell of `place` has rung more often than `heard`, at most `limit`.
    pub(super) fn sleep_for_bell(&self, place: usize, heard: u32, limit: Duration) {
        let sleepers = system::low_half(&self.record(place)[RECORD_BELL_SLEEPERS]);
        sleep_on(self.bell_word(place), sleepers, |now| now != heard, limit);
    }
}

/// Whether phase `now` is `phase` or later, with wrap-around.
fn reached(now: u32, phase: u32) -> bool {
    now.wrapping_sub(phase) < 1 << 31
}

/// Sleeps on `word` until it changes, unless `done` already holds of it; at most `limit`.
fn sleep_on(word: &AtomicU32, sleepers: &AtomicU32, done: impl Fn(u32) -> bool, limit: Duration) {
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
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn phases_compare_across_the_wrap() {
        assert!(reached(5, 5) && reached(6, 5) && !reached(4, 5));
        assert!(reached(1, u32::MAX) && !reached(u32::MAX, 1));
    }

    #[test]
    fn a_member_reserves_the_pages_that_it_fills_and_no_others() {
        const MEMBERS: usize = 5;
        for kind in [Kind::Channel, Kind::Group] {
            let memory = SharedMemory::create("areas", MEMBERS).unwrap();
            let at = 1 << 30;
            let reserved = || 512 * memory.file().metadata().unwrap().blocks();
            let area = 8 * Board::area_words(kind, MEMBERS) as u64;
            for place in 0..MEMBERS {
                let before = reserved();
                let board = Board::open(&memory, at, kind, (MEMBERS, place)).unwrap();
                let grown = reserved() - before;
                assert!((area..2 * area).contains(&grown), "{kind:?}: {grown} of {area}");
                board.put_mail(place, 7, 3, &[1; 3]);
                assert_eq!(board.mail_total(place, 7), 3);
                if kind == Kind::Group {
                    let to_all = (0..MEMBERS).map(|to| board.channel(place, to));
                    to_all.for_each(|channel| channel.put(1, 2, &[place as u8; 2]));
                }
                assert_eq!(reserved(), before + grown, "{kind:?}: it touched others' pages");
            }
        }
    }
}
