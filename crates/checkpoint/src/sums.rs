//! The sums table: CRC32C (Castagnoli, as in RFC 3720) of each 4 MiB range of one file.
//!
//! ```text
//! byte 0   8  magic "MUSTSUMS"
//!      8   4  version 1            (all numbers little-endian)
//!     12   4  range length 4194304
//!     16   8  length of the shard file
//!     24   4  per range: its CRC32C; the last range may be short
//! ```
//! The table itself is covered by a BLAKE3 digest in the manifest, so that the tree of
//! trust is COMMIT → manifest → tables → data.

/// Bytes of one checksummed range.
pub const RANGE_BYTES: u64 = 4 << 20;

const MAGIC: &[u8; 8] = b"MUSTSUMS";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 24;

/// The sums of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sums {
    /// Length of the file the sums are of.
    pub file_bytes: u64,
    /// CRC32C per range.
    pub crcs: Vec<u32>,
}

/// Number of ranges of a file.
pub(crate) fn ranges(file_bytes: u64) -> u64 {
    file_bytes.div_ceil(RANGE_BYTES)
}

/// Length of the table of a file of `file_bytes`.
pub(crate) fn table_bytes(file_bytes: u64) -> u64 {
    HEADER_BYTES as u64 + 4 * ranges(file_bytes)
}

impl Sums {
    /// The bytes of the table file.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + 4 * self.crcs.len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&(RANGE_BYTES as u32).to_le_bytes());
        bytes.extend_from_slice(&self.file_bytes.to_le_bytes());
        self.crcs.iter().for_each(|crc| bytes.extend_from_slice(&crc.to_le_bytes()));
        bytes
    }

    /// Reads a table back.
    ///
    /// # Errors
    /// The first fault of the table, in words.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Sums, String> {
        if bytes.len() < HEADER_BYTES || &bytes[..8] != MAGIC {
            return Err("it does not begin with MUSTSUMS and 16 more bytes".to_string());
        }
        let u32_at = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| bytes[at + i]));
        let (version, range) = (u32_at(8), u32_at(12));
        if version != VERSION || u64::from(range) != RANGE_BYTES {
            return Err(format!(
                "version {version} with ranges of {range} bytes, not {VERSION} with {RANGE_BYTES}"
            ));
        }
        let file_bytes = u64::from(u32_at(16)) | u64::from(u32_at(20)) << 32;
        let expected = table_bytes(file_bytes);
        if bytes.len() as u64 != expected {
            return Err(format!(
                "{} bytes, but {expected} for a file of {file_bytes} bytes",
                bytes.len()
            ));
        }
        let crcs = (HEADER_BYTES..bytes.len()).step_by(4).map(u32_at).collect();
        Ok(Sums { file_bytes, crcs })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_round_trips_and_a_wrong_length_is_refused() {
        let sums = Sums { file_bytes: RANGE_BYTES + 1, crcs: vec![0xe306_9283, 7] };
        let bytes = sums.encode();
        assert_eq!(bytes.len() as u64, table_bytes(sums.file_bytes));
        assert_eq!(Sums::decode(&bytes), Ok(sums));
        for cut in 0..bytes.len() {
            assert!(Sums::decode(&bytes[..cut]).is_err());
        }
    }

    #[test]
    fn the_polynomial_is_castagnoli() {
        // Check value of CRC-32/ISCSI, and the first vector of RFC 3720 appendix B.4.
        assert_eq!(crc_fast::crc32_iscsi(b"123456789"), 0xe306_9283);
        assert_eq!(crc_fast::crc32_iscsi(&[0; 32]), 0x8a91_36aa);
    }
}
