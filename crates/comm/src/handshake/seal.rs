//! A short keyed sum for each thing that is said in one direction of a connection, in turn.
//!
//! A tag is 8 bytes of keyed BLAKE3 over what is said and how many things were said before. One
//! that does not fit ends the connection, whose key is then of no use any more, so a forger has one
//! guess in 2⁶⁴ per connection. What is replayed, left out or reordered meets another count.

/// Bytes of a tag.
pub(crate) const TAG_BYTES: usize = 8;

/// Of one direction of one connection.
#[derive(Clone)]
pub(crate) struct Key([u8; 32]);

impl Key {
    pub(crate) fn new(bytes: [u8; 32]) -> Key {
        Key(bytes)
    }

    /// The tag of these bytes, which are of one block of BLAKE3 (64 bytes) or fewer, if it is to be
    /// quick.
    pub(crate) fn tag(&self, bytes: &[u8]) -> [u8; TAG_BYTES] {
        let hash = blake3::keyed_hash(&self.0, bytes);
        let mut tag = [0; TAG_BYTES];
        tag.copy_from_slice(&hash.as_bytes()[..TAG_BYTES]);
        tag
    }

    /// Whether `tag` is that of these bytes; takes as long either way.
    pub(crate) fn fits(&self, bytes: &[u8], tag: [u8; TAG_BYTES]) -> bool {
        u64::from_le_bytes(self.tag(bytes)) ^ u64::from_le_bytes(tag) == 0
    }
}

/// A key, and how many messages it has sealed or opened. Messages are sealed by their hash, which
/// is made once for a message to many.
pub(crate) struct Seal {
    key: Key,
    number: u64,
}

impl Seal {
    pub(crate) fn new(key: Key) -> Seal {
        Seal { key, number: 0 }
    }

    fn next(&mut self, hash: &blake3::Hash) -> [u8; 40] {
        let mut bytes = [0; 40];
        bytes[..8].copy_from_slice(&self.number.to_le_bytes());
        bytes[8..].copy_from_slice(hash.as_bytes());
        self.number += 1;
        bytes
    }

    /// The tag of the next message.
    pub(crate) fn tag(&mut self, hash: &blake3::Hash) -> [u8; TAG_BYTES] {
        let bytes = self.next(hash);
        self.key.tag(&bytes)
    }

    /// Forgets the last tag: its message was not sent, nor any part of it.
    pub(crate) fn take_back(&mut self) {
        self.number -= 1;
    }

    /// Whether this is the next message.
    pub(crate) fn fits(&mut self, hash: &blake3::Hash, tag: [u8; TAG_BYTES]) -> bool {
        let bytes = self.next(hash);
        self.key.fits(&bytes, tag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_of_one_message_in_one_place_under_one_key() {
        let seal = |key| Seal::new(Key::new([key; 32]));
        let [one, two] = [b"one", b"two"].map(|text| blake3::hash(text));
        let (mut from, mut to, mut other) = (seal(1), seal(1), seal(2));
        let (first, second) = (from.tag(&one), from.tag(&one));
        assert_ne!(first, second, "a message that is said twice");
        assert!(!other.fits(&one, first), "another key");
        assert!(to.fits(&one, first));
        assert!(!seal(1).fits(&two, first), "another message");
        assert!(!seal(1).fits(&one, second), "one was left out");
        assert!(to.fits(&one, second));
        assert!(!to.fits(&one, second), "a replay");
    }

    #[test]
    #[ignore = "a measurement: benches/cpu/transports.sh runs it"]
    fn what_a_tag_costs() {
        let (key, mut bytes) = (Key::new([7; 32]), [0_u8; 64]);
        let (rounds, mut best) = (1_000_000_u32, f64::MAX);
        for _ in 0..5 {
            let begun = std::time::Instant::now();
            for _ in 0..rounds {
                let tag = key.tag(std::hint::black_box(&bytes));
                bytes[..TAG_BYTES].copy_from_slice(&tag);
            }
            best = best.min(begun.elapsed().as_nanos() as f64 / f64::from(rounds));
        }
        println!("{best:.1} ns for a tag of a header");
    }
}
