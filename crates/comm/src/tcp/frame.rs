//! What travels: a fixed header, then the payload.
//!
//! ```text
//! byte  0..4   magic `MSTR`          24..32  fingerprint of the arguments
//!       4..8   operation             32..40  payload bytes
//!       8..16  job token             all numbers little-endian; payloads are the memory of
//!      16..24  sequence number       little-endian machines as it is
//! ```
//!
//! Every collective sends exactly one frame to every peer, of however many bytes, and an exchange
//! one per message; so a rank pays [`HEADER_BYTES`] per peer and operation.

use crate::digest::Digest;

/// Size of a header.
pub const HEADER_BYTES: usize = 40;

const MAGIC: [u8; 4] = *b"MSTR";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub operation: u32,
    pub token: u64,
    pub sequence: u64,
    pub digest: u64,
    pub length: u64,
}

impl Header {
    pub(super) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..8].copy_from_slice(&self.operation.to_le_bytes());
        let words = [self.token, self.sequence, self.digest, self.length];
        for (bytes, word) in bytes[8..].chunks_exact_mut(8).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// `None` if the bytes are no header of this program.
    pub(super) fn decode(bytes: &[u8; HEADER_BYTES]) -> Option<Header> {
        let (magic, rest) = bytes.split_first_chunk::<4>()?;
        let (operation, rest) = rest.split_first_chunk::<4>()?;
        let (words, _) = rest.as_chunks::<8>();
        let [token, sequence, digest, length] = words else { return None };
        (*magic == MAGIC).then(|| Header {
            operation: u32::from_le_bytes(*operation),
            token: u64::from_le_bytes(*token),
            sequence: u64::from_le_bytes(*sequence),
            digest: u64::from_le_bytes(*digest),
            length: u64::from_le_bytes(*length),
        })
    }
}

/// The token of a job: keeps processes of different jobs apart, not adversaries out.
pub(super) fn token(job: &str) -> u64 {
    let mut digest = Digest::default();
    job.bytes().for_each(|byte| digest.add(usize::from(byte)));
    digest.value()
}

/// The token of the frames of one channel or group of a job.
pub(super) fn token_of(job: u64, tag: u64) -> u64 {
    let mut digest = Digest::default();
    [job as usize, tag as usize].into_iter().for_each(|word| digest.add(word));
    digest.value()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_survive_the_way() {
        let header =
            Header { operation: 5, token: 1 << 63, sequence: 7, digest: u64::MAX - 1, length: 40 };
        let mut bytes = header.encode();
        assert_eq!(Header::decode(&bytes), Some(header));
        bytes[0] ^= 1;
        assert_eq!(Header::decode(&bytes), None);
        assert_ne!(token("a"), token("b"));
        assert_ne!(token_of(token("a"), 1), token_of(token("a"), 2));
    }
}
