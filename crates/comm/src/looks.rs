//! How often a rank looks for what it waits for before it gives its core away.
//!
//! To look pays where the peer works on another core meanwhile, and holds it up where the system
//! has put both on one, as it does when others load the machine. Nothing tells which of the two it
//! is but whether looks see something: where they do not, and the peer comes as soon as this rank
//! has given way, they become few, and every so often it is tried again whether they help.

use std::sync::atomic::{AtomicUsize, Ordering};

/// After so many waits in which the peer came as soon as this rank gave way.
const TRY_AGAIN: usize = 16;

/// Of one connection or group, in which one operation waits at a time: a count that is lost costs
/// time only.
#[derive(Debug)]
pub(crate) struct Looks {
    pub most: usize,
    now: AtomicUsize,
    in_vain: AtomicUsize,
}

impl Looks {
    pub(crate) fn up_to(most: usize) -> Looks {
        Looks { most, now: AtomicUsize::new(most), in_vain: AtomicUsize::new(0) }
    }

    /// Before the next time that this rank gives way.
    pub(crate) fn now(&self) -> usize {
        self.now.load(Ordering::Relaxed)
    }

    /// They have seen something.
    pub(crate) fn helped(&self) {
        let now = self.now();
        if now < self.most {
            self.now.store((2 * now).min(self.most), Ordering::Relaxed);
        }
    }

    /// They have seen nothing, and what was awaited came as soon as this rank gave way. (What comes
    /// long after needed no core of ours, and is not told here.)
    pub(crate) fn held_up(&self) {
        let count = self.in_vain.load(Ordering::Relaxed).wrapping_add(1);
        self.in_vain.store(count, Ordering::Relaxed);
        let of = if count.is_multiple_of(TRY_AGAIN) { self.most } else { self.now() };
        self.now.store(of / 4, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_that_hold_the_peer_up_become_few_and_are_tried_again() {
        let looks = Looks::up_to(64);
        (0..4).for_each(|_| looks.held_up());
        assert_eq!(looks.now(), 0);
        (4..TRY_AGAIN).for_each(|_| looks.held_up());
        assert_eq!(looks.now(), 16);
        (0..9).for_each(|_| looks.helped());
        assert_eq!(looks.now(), 64);
    }
}
