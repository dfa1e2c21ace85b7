//! Send and receive: a ring of two boxes from one rank to another.
//!
//! `written` and `read` count boxes; the sender fills box `written % 2` while `written - read` is
//! below two, the receiver empties box `read % 2` while it is above zero. Each counter is stored
//! with release order after the box was filled or emptied and loaded with acquire order before it
//! is touched, so a box has one user at a time.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use super::control::sleep_on;
use super::system;

const BOXES: u32 = 2;
/// Bytes of one box.
pub(super) const BOX_BYTES: usize = 8 << 10;
const BOX: usize = BOX_BYTES / 8;
const HEAD: usize = 64;
/// Words of one channel.
pub(super) const WORDS: usize = HEAD + BOXES as usize * BOX;

/// The two ends' positions in the head, in cache lines of their own.
const WRITTEN: usize = 0;
const WRITTEN_SLEEPERS: usize = 1;
const LENGTH: usize = 16;
const READ: usize = 32;
const READ_SLEEPERS: usize = 33;

/// One direction between two ranks.
#[derive(Clone, Copy)]
pub(super) struct Channel<'a> {
    pub words: &'a [AtomicU64],
}

impl Channel<'_> {
    fn half(&self, at: usize) -> &AtomicU32 {
        system::low_half(&self.words[at])
    }

    fn filled(&self) -> u32 {
        let read = self.half(READ).load(Ordering::Acquire);
        self.half(WRITTEN).load(Ordering::Acquire).wrapping_sub(read)
    }

    pub(super) fn has_room(&self) -> bool {
        self.filled() < BOXES
    }

    pub(super) fn has_mail(&self) -> bool {
        self.filled() > 0
    }

    /// Fills the next box with part of a message of `total` bytes. Needs [`Channel::has_room`].
    pub(super) fn put(&self, total: u64, bytes: &[u8]) {
        let written = self.half(WRITTEN).load(Ordering::Relaxed);
        self.words[LENGTH + (written % BOXES) as usize].store(total, Ordering::Relaxed);
        system::store_bytes(self.boxed(written), bytes);
        self.half(WRITTEN).store(written.wrapping_add(1), Ordering::SeqCst);
        if self.half(WRITTEN_SLEEPERS).load(Ordering::SeqCst) > 0 {
            system::futex_wake(self.half(WRITTEN));
        }
    }

    /// Length of the message that the next box belongs to. Needs [`Channel::has_mail`].
    pub(super) fn total(&self) -> u64 {
        let read = self.half(READ).load(Ordering::Relaxed);
        self.words[LENGTH + (read % BOXES) as usize].load(Ordering::Relaxed)
    }

    /// Empties the next box into `bytes`. Needs [`Channel::has_mail`].
    pub(super) fn take(&self, bytes: &mut [u8]) {
        let read = self.half(READ).load(Ordering::Relaxed);
        system::load_bytes(self.boxed(read), bytes);
        self.half(READ).store(read.wrapping_add(1), Ordering::SeqCst);
        if self.half(READ_SLEEPERS).load(Ordering::SeqCst) > 0 {
            system::futex_wake(self.half(READ));
        }
    }

    fn boxed(&self, count: u32) -> &[AtomicU64] {
        &self.words[HEAD + (count % BOXES) as usize * BOX..][..BOX]
    }

    /// Sleeps until the receiver has emptied a box, at most `limit`.
    pub(super) fn sleep_for_room(&self, limit: Duration) {
        let written = self.half(WRITTEN).load(Ordering::Relaxed);
        let done = |read| written.wrapping_sub(read) < BOXES;
        sleep_on(self.half(READ), self.half(READ_SLEEPERS), done, limit);
    }

    /// Sleeps until the sender has filled a box, at most `limit`.
    pub(super) fn sleep_for_mail(&self, limit: Duration) {
        let read = self.half(READ).load(Ordering::Relaxed);
        let done = |written| written != read;
        sleep_on(self.half(WRITTEN), self.half(WRITTEN_SLEEPERS), done, limit);
    }
}

/// Wakes both ends.
pub(super) fn wake(words: &[AtomicU64]) {
    system::futex_wake(system::low_half(&words[WRITTEN]));
    system::futex_wake(system::low_half(&words[READ]));
}
