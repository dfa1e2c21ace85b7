//! The format of frames: a fixed header, then the payload.
//!
//! ```text
//! byte  0..4   magic `MSTR`          32..40  bytes of the whole message
//!       4..8   operation             40..44  of which this frame carries
//!       8..16  job token             44..48  number of the frame on its connection
//!      16..24  sequence number       48..52  CRC-32C of the payload
//!      24..32  fingerprint of the    52..56  CRC-32C of the header up to here
//!              arguments             56..64  tag: keyed BLAKE3 of the header and its count
//! ```
//!
//! All numbers are little-endian; payloads are the memory of little-endian machines as it is. A
//! collective sends one message to every peer, and an exchange those it names. A message is cut
//! into frames of [`FRAME_BYTES`] at most, and is one frame where it is empty; so a rank pays
//! [`HEADER_BYTES`] per peer and operation where operations are small, and 0.02 % more where they
//! are large. What a frame carries is read into its place, and an operation succeeds
//! only where all checksums have been seen to be right.
//!
//! A CRC-32C finds what wires, switches and memory do to bits: every burst of 32 bits at most, and
//! all but one in 2³² of other errors. It is no protection against whoever alters bytes on purpose:
//! the tag is, for the header, and thereby for what the operation is, for the order of frames and
//! for the checksum of the payload, though not for the choice among payloads of one checksum
//! ([`crate::Secret`]).
//!
//! The tag is of the header up to it and of the 64-bit number of the frame on its connection: 64
//! bytes, which are a single block of BLAKE3. Its key is of one direction of one connection
//! (`handshake`), so what was said elsewhere, earlier or in the other direction fits nowhere.
//! The checksum of the header is there to tell damage, which machines do, from forgery.

use crc_fast::CrcAlgorithm;

use crate::digest::Digest;
use crate::handshake::{Key, TAG_BYTES};

/// Size of a header.
pub const HEADER_BYTES: usize = 64;

/// Most payload bytes of a frame, but for sums of very many partials. Small enough that a frame
/// is still in a core's cache when it is summed, large enough that headers cost nothing.
pub(crate) const FRAME_BYTES: usize = 256 << 10;

const MAGIC: [u8; 4] = *b"MSTR";
/// Bytes of the header that its tag is of.
const TAGGED: usize = HEADER_BYTES - TAG_BYTES;
/// And its checksum.
const CHECKED: usize = TAGGED - 4;

/// The CRC-32C of bytes behind others that have `sum`; 0 of none.
pub(super) fn checked(sum: u32, bytes: &[u8]) -> u32 {
    // The state of this CRC is its value before the last inversion.
    let mut crc = crc_fast::Digest::new_with_init_state(CrcAlgorithm::Crc32Iscsi, u64::from(!sum));
    crc.update(bytes);
    crc.finalize() as u32
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub operation: u32,
    pub token: u64,
    pub sequence: u64,
    pub digest: u64,
    /// Bytes of the message.
    pub total: u64,
    /// Bytes of the frame.
    pub length: u32,
    /// Of the frame, among those that went the same way over its connection.
    pub number: u32,
    /// Checksum of the payload.
    pub checksum: u32,
}

impl Header {
    /// As it travels, as frame `count` of all that go this way over its connection.
    pub(super) fn encode(&self, key: &Key, count: u64) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..8].copy_from_slice(&self.operation.to_le_bytes());
        let words = [self.token, self.sequence, self.digest, self.total];
        for (bytes, word) in bytes[8..40].chunks_exact_mut(8).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        let words = [self.length, self.number, self.checksum];
        for (bytes, word) in bytes[40..CHECKED].chunks_exact_mut(4).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        let checksum = crc_fast::crc32_iscsi(&bytes[..CHECKED]);
        bytes[CHECKED..TAGGED].copy_from_slice(&checksum.to_le_bytes());
        let tag = key.tag(&counted(&bytes, count));
        bytes[TAGGED..].copy_from_slice(&tag);
        bytes
    }

    /// `None` if the bytes are no header of this program, or a damaged one. Whose it is, and
    /// whether it is in its place, [`is_genuine`] says.
    pub(super) fn decode(bytes: &[u8; HEADER_BYTES]) -> Option<Header> {
        let (checked, checksum) = bytes[..TAGGED].split_last_chunk::<4>()?;
        if crc_fast::crc32_iscsi(checked) != u32::from_le_bytes(*checksum) {
            return None;
        }
        let (magic, rest) = checked.split_first_chunk::<4>()?;
        let (operation, rest) = rest.split_first_chunk::<4>()?;
        let (words, rest) = rest.split_first_chunk::<32>()?;
        let ([token, sequence, digest, total], _) = words.as_chunks::<8>() else { return None };
        let ([length, number, checksum], _) = rest.as_chunks::<4>() else { return None };
        (*magic == MAGIC).then(|| Header {
            operation: u32::from_le_bytes(*operation),
            token: u64::from_le_bytes(*token),
            sequence: u64::from_le_bytes(*sequence),
            digest: u64::from_le_bytes(*digest),
            total: u64::from_le_bytes(*total),
            length: u32::from_le_bytes(*length),
            number: u32::from_le_bytes(*number),
            checksum: u32::from_le_bytes(*checksum),
        })
    }

    /// Whether the two are frames of one operation, for the same arguments.
    pub(super) fn is_of_the_operation_of(&self, other: &Header) -> bool {
        let key = |header: &Header| (header.operation, header.sequence, header.digest);
        key(self) == key(other)
    }
}

/// The bytes that the tag of a header covers.
fn counted(header: &[u8; HEADER_BYTES], count: u64) -> [u8; HEADER_BYTES] {
    let mut bytes = *header;
    bytes[TAGGED..].copy_from_slice(&count.to_le_bytes());
    bytes
}

/// Whether a header was made by the peer that has this key, as frame `count` of its connection.
pub(super) fn is_genuine(header: &[u8; HEADER_BYTES], key: &Key, count: u64) -> bool {
    let mut tag = [0; TAG_BYTES];
    tag.copy_from_slice(&header[TAGGED..]);
    key.fits(&counted(header, count), tag)
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
    fn checksums_of_parts_make_that_of_the_whole() {
        let bytes: Vec<u8> = (0..700_u32).map(|i| ((i * i) >> 3) as u8).collect();
        for cut in 0..bytes.len() {
            let parts = checked(checked(0, &bytes[..cut]), &bytes[cut..]);
            assert_eq!(parts, crc_fast::crc32_iscsi(&bytes), "{cut}");
        }
        assert_eq!(checked(0, b"123456789"), 0xe306_9283);
    }

    #[test]
    fn headers_survive_the_way_and_no_flipped_bit_passes() {
        let header = Header {
            operation: 5,
            token: 1 << 63,
            sequence: 7,
            digest: u64::MAX - 1,
            total: 1 << 40,
            length: 40,
            number: u32::MAX,
            checksum: 0x1234_5678,
        };
        let [key, other] = [1, 2].map(|byte| Key::new([byte; 32]));
        let bytes = header.encode(&key, 1 << 40);
        assert_eq!(Header::decode(&bytes), Some(header));
        assert!(is_genuine(&bytes, &key, 1 << 40));
        assert!(!is_genuine(&bytes, &key, 0), "the number of the header is that modulo 2³²");
        assert!(!is_genuine(&bytes, &other, 1 << 40));
        for bit in 0..8 * HEADER_BYTES {
            let mut damaged = bytes;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Header::decode(&damaged).is_none(), bit < 8 * TAGGED, "bit {bit}");
            assert!(!is_genuine(&damaged, &key, 1 << 40), "bit {bit}");
        }
        assert_ne!(token("a"), token("b"));
        assert_ne!(token_of(token("a"), 1), token_of(token("a"), 2));
    }
}
