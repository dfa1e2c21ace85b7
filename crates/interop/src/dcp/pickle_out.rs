//! Writes pickles of protocol 4: as much of it as checkpoints need.
//!
//! Names that recur are written once and remembered, as Python does.

use std::collections::HashMap;

/// A pickle that is being written.
pub(super) struct PickleOut {
    bytes: Vec<u8>,
    /// Of classes and words that were written, their places in the memo.
    memo: HashMap<(&'static str, &'static str), u32>,
}

impl PickleOut {
    pub(super) fn new() -> PickleOut {
        PickleOut { bytes: vec![0x80, 4], memo: HashMap::new() }
    }

    /// The whole pickle.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.bytes.push(b'.');
        self.bytes
    }

    /// Writes what `write` does the first time, and a reference to it after.
    fn once(&mut self, key: (&'static str, &'static str), write: impl FnOnce(&mut Self)) {
        if let Some(place) = self.memo.get(&key) {
            match u8::try_from(*place) {
                Ok(place) => self.bytes.extend([b'h', place]),
                Err(_) => {
                    self.bytes.push(b'j');
                    self.bytes.extend(place.to_le_bytes());
                }
            }
            return;
        }
        write(self);
        self.bytes.push(0x94);
        // Nothing else is remembered, so this counts as Python's memo does.
        self.memo.insert(key, self.memo.len() as u32);
    }

    pub(super) fn none(&mut self) {
        self.bytes.push(b'N');
    }

    pub(super) fn no(&mut self) {
        self.bytes.push(0x89);
    }

    pub(super) fn text(&mut self, text: &str) {
        match u8::try_from(text.len()) {
            Ok(len) => self.bytes.extend([0x8c, len]),
            Err(_) => {
                self.bytes.push(0x8d);
                self.bytes.extend((text.len() as u64).to_le_bytes());
            }
        }
        self.bytes.extend(text.as_bytes());
    }

    /// A text that recurs.
    pub(super) fn word(&mut self, word: &'static str) {
        self.once((word, ""), |out| out.text(word));
    }

    pub(super) fn int(&mut self, value: u64) {
        if let Ok(value) = u8::try_from(value) {
            self.bytes.extend([b'K', value]);
        } else if let Ok(value) = u16::try_from(value) {
            self.bytes.push(b'M');
            self.bytes.extend(value.to_le_bytes());
        } else if let Ok(value) = i32::try_from(value) {
            self.bytes.push(b'J');
            self.bytes.extend(value.to_le_bytes());
        } else {
            // A byte more, so that no high bit is taken for a sign.
            self.bytes.extend([0x8a, 9]);
            self.bytes.extend(value.to_le_bytes());
            self.bytes.push(0);
        }
    }

    pub(super) fn global(&mut self, module: &'static str, name: &'static str) {
        self.once((module, name), |out| {
            out.word(module);
            out.word(name);
            out.bytes.push(0x93);
        });
    }

    pub(super) fn tuple(&mut self, write: impl FnOnce(&mut Self)) {
        self.bytes.push(b'(');
        write(self);
        self.bytes.push(b't');
    }

    pub(super) fn list(&mut self, write: impl FnOnce(&mut Self)) {
        self.bytes.extend([b']', b'(']);
        write(self);
        self.bytes.push(b'e');
    }

    /// A dictionary of keys and values in turn.
    pub(super) fn dict(&mut self, write: impl FnOnce(&mut Self)) {
        self.bytes.extend([b'}', b'(']);
        write(self);
        self.bytes.push(b'u');
    }

    /// `module.name(*arguments)`.
    pub(super) fn call(
        &mut self,
        module: &'static str,
        name: &'static str,
        arguments: impl FnOnce(&mut Self),
    ) {
        self.global(module, name);
        self.tuple(arguments);
        self.bytes.push(b'R');
    }

    /// An object of a class without arguments, and its state.
    pub(super) fn object(
        &mut self,
        module: &'static str,
        name: &'static str,
        state: impl FnOnce(&mut Self),
    ) {
        self.global(module, name);
        self.bytes.extend([b')', 0x81]);
        state(self);
        self.bytes.push(b'b');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dcp::pickle::{Globals, Node, Pickle};

    #[test]
    fn integers_of_all_lengths_are_read_back() {
        for value in [0, 255, 256, 65535, 65536, 1 << 31, (1 << 31) - 1, 1 << 32, 1 << 62] {
            let mut out = PickleOut::new();
            out.int(value);
            let bytes = out.finish();
            let pickle = Pickle::read(&bytes, Globals::Any).unwrap();
            let found = pickle.node(pickle.root());
            assert_eq!(*found, Node::Int(value as i64));
        }
    }

    #[test]
    fn what_recurs_is_written_once() {
        let mut out = PickleOut::new();
        out.tuple(|out| (0..300).for_each(|_| out.word("word")));
        let bytes = out.finish();
        assert_eq!(bytes.windows(4).filter(|four| four == b"word").count(), 1);
        let pickle = Pickle::read(&bytes, Globals::Any).unwrap();
        let Node::Tuple(parts) = pickle.node(pickle.root()) else { panic!() };
        assert!(
            parts.len() == 300 && parts.iter().all(|&id| *pickle.node(id) == Node::Text("word"))
        );
    }
}
