//! Exchanges: a ring of two boxes from one rank to another.
//!
//! `written` and `read` count boxes; the sender fills box `written % 2` while `written - read` is
//! below two, the receiver empties box `read % 2` while it is above zero. Each counter is stored
//! with release order after the box was filled or emptied and loaded with acquire order before it
//! is touched, so a box has one user at a time.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

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
const LENGTH: usize = 16;
const AFTER: usize = LENGTH + BOXES as usize;
const READ: usize = 32;

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

    /// Fills the next box with part of a message of `total` bytes, which the sender sends after its
    /// collective `after`. Needs [`Channel::has_room`].
    pub(super) fn put(&self, after: u64, total: u64, bytes: &[u8]) {
        let written = self.half(WRITTEN).load(Ordering::Relaxed);
        let index = (written % BOXES) as usize;
        self.words[LENGTH + index].store(total, Ordering::Relaxed);
        self.words[AFTER + index].store(after, Ordering::Relaxed);
        system::store_bytes(self.boxed(written), bytes);
        self.half(WRITTEN).store(written.wrapping_add(1), Ordering::SeqCst);
    }

    /// Length of the message that the next box belongs to. Needs [`Channel::has_mail`].
    pub(super) fn total(&self) -> u64 {
        let read = self.half(READ).load(Ordering::Relaxed);
        self.words[LENGTH + (read % BOXES) as usize].load(Ordering::Relaxed)
    }

    /// The collective after which the message of the next box was sent. Needs
    /// [`Channel::has_mail`].
    pub(super) fn after(&self) -> u64 {
        let read = self.half(READ).load(Ordering::Relaxed);
        self.words[AFTER + (read % BOXES) as usize].load(Ordering::Relaxed)
    }

    /// Empties the next box into `bytes`. Needs [`Channel::has_mail`].
    pub(super) fn take(&self, bytes: &mut [u8]) {
        let read = self.half(READ).load(Ordering::Relaxed);
        system::load_bytes(self.boxed(read), bytes);
        self.half(READ).store(read.wrapping_add(1), Ordering::SeqCst);
    }

    fn boxed(&self, count: u32) -> &[AtomicU64] {
        &self.words[HEAD + (count % BOXES) as usize * BOX..][..BOX]
    }
}
