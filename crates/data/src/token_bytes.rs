//! The bytes that tokens stand for, for the loss in bits per byte and for decoding.

use std::borrow::Cow;

/// The bytes of every token, back to back; special tokens have none.
pub(crate) struct TokenBytes {
    starts: Vec<u32>,
    bytes: Vec<u8>,
}

impl TokenBytes {
    pub(crate) fn new<'a>(tokens: impl Iterator<Item = Cow<'a, [u8]>>) -> Self {
        let mut table = Self { starts: vec![0], bytes: Vec::new() };
        for token in tokens {
            table.bytes.extend_from_slice(&token);
            table.starts.push(table.bytes.len() as u32);
        }
        table
    }

    pub(crate) fn get(&self, id: u32) -> Option<&[u8]> {
        let start = *self.starts.get(id as usize)?;
        let end = *self.starts.get(id as usize + 1)?;
        Some(&self.bytes[start as usize..end as usize])
    }
}
