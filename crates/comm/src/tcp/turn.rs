//! An operation as both directions of a connection see it: what it is, and how far each has come.

use super::progress::{Progress, TcpCall};
use super::traffic::{Message, Traffic, Way};

/// The operation that a link takes part in.
pub(super) struct Turn<'a, 'b> {
    pub call: &'a TcpCall,
    pub progress: &'a mut Progress<'b>,
    pub traffic: &'a mut dyn Traffic,
}

impl Turn<'_, '_> {
    /// The operation as the header of a message names it.
    pub(super) fn call_of(&self, way: Way, message: Message) -> TcpCall {
        let sequence = self.traffic.sequence(way, message).unwrap_or(self.call.sequence);
        TcpCall { sequence, ..*self.call }
    }
}

/// How far one direction has come in the present operation.
#[derive(Default)]
pub(super) struct At {
    messages: usize,
    /// The message that is on its way, and its bytes in frames that are through.
    pub index: usize,
    pub start: usize,
    /// Frames of all operations that are through.
    pub frames: u64,
}

impl At {
    pub(super) fn is_done(&self) -> bool {
        self.index == self.messages
    }

    pub(super) fn begin(&mut self, messages: usize) {
        (self.messages, self.index, self.start) = (messages, 0, 0);
    }

    /// A frame up to byte `end` of a message of `total` bytes is through.
    pub(super) fn pass(&mut self, end: usize, total: usize) {
        self.frames += 1;
        let next = (self.index + 1, 0);
        (self.index, self.start) = if end == total { next } else { (self.index, end) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_and_messages_are_counted_apart() {
        let mut at = At { frames: 7, ..At::default() };
        at.begin(2);
        at.pass(10, 20);
        assert_eq!((at.index, at.start, at.frames), (0, 10, 8));
        at.pass(20, 20);
        assert_eq!((at.index, at.start, at.frames), (1, 0, 9));
        at.pass(0, 0);
        assert!(at.is_done());
        at.begin(1);
        assert_eq!((at.is_done(), at.frames), (false, 10));
    }
}
