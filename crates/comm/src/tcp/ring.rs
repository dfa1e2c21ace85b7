//! A gather around the ring: each member sends what it holds to the next, and then whatever comes
//! from the one before, frame by frame as it comes, up to what the next one holds itself.
//!
//! ```text
//! 0 ──a──▶ 1 ──a──▶ 2 ──a──▶ 3         of a broadcast of `a` from member 0
//! ```
//!
//! The other peers get an empty message: so each knows that all do the same, and who does not come.

use std::ops::Range;
use std::time::Duration;

use device::Device;

use super::frame::FRAME_BYTES;
use super::moves::Held;
use super::traffic::{EXCUSE, Give, Message, Take, Traffic, Way, give_pieces, take_pieces};
use crate::Result;

/// A gather of the member at `place`.
pub(super) struct Ring<'a, H> {
    place: usize,
    device: &'a Device,
    op: &'a H,
    /// Messages of the member before this one that have come, and bytes of the next.
    came: usize,
    part: usize,
}

impl<'a, H: Held> Ring<'a, H> {
    pub(super) fn new(place: usize, device: &'a Device, op: &'a H) -> Ring<'a, H> {
        Ring { place, device, op, came: 0, part: 0 }
    }

    /// Whether messages to or from `peer` go along the ring.
    fn is_along(&self, way: Way, peer: usize) -> bool {
        let members = self.op.members();
        let (from, to) = match way {
            Way::Out => (self.place, peer),
            Way::In => (peer, self.place),
        };
        (from + 1) % members == to
    }

    /// Who holds what goes along the ring in the message of this number.
    fn holder(&self, way: Way, index: usize) -> usize {
        let members = self.op.members();
        let hops = if way == Way::Out { index } else { index + 1 };
        (self.place + members - hops) % members
    }
}

impl<H: Held> Traffic for Ring<'_, H> {
    fn messages(&self, way: Way, peer: usize) -> usize {
        if self.is_along(way, peer) { self.op.members() - 1 } else { 1 }
    }

    fn bytes(&self, way: Way, message: Message) -> Option<usize> {
        let holder = self.holder(way, message.index);
        let is_along = self.is_along(way, message.peer);
        Some(if is_along { self.op.bytes(holder) } else { 0 })
    }

    fn may_begin(&self, way: Way, message: Message, start: usize) -> bool {
        let Message { peer, index } = message;
        if way == Way::In || index == 0 || !self.is_along(way, peer) {
            return true;
        }
        let end = self.op.bytes(self.holder(way, index)).min(start + FRAME_BYTES);
        index <= self.came || (index == self.came + 1 && end > 0 && end <= self.part)
    }

    /// A message along the ring may be held up at every hop that it has made; whoever has gone on
    /// to the next operation waits longer than any of them. All take at any time what comes.
    fn excuse(&self, way: Way, message: Message) -> Duration {
        let (hops, members) = (message.index as u32, self.op.members() as u32);
        match way == Way::In && self.is_along(way, message.peer) {
            true => EXCUSE * hops / members,
            false => Duration::ZERO,
        }
    }

    fn give(&self, message: Message, bytes: Range<usize>, go: Give) -> Result<()> {
        give_pieces(self.device, self.op.pieces(self.holder(Way::Out, message.index), bytes), go)
    }

    fn take(&mut self, message: Message, bytes: Range<usize>, go: Take) -> Result<()> {
        take_pieces(self.device, self.op.pieces(self.holder(Way::In, message.index), bytes), go)
    }

    fn came(&mut self, message: Message, bytes: Range<usize>) -> Result<()> {
        if self.is_along(Way::In, message.peer) {
            let total = self.op.bytes(self.holder(Way::In, message.index));
            let is_whole = bytes.end == total;
            self.came += usize::from(is_whole);
            self.part = if is_whole { 0 } else { bytes.end };
        }
        Ok(())
    }
}
