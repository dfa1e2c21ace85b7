//! `.tok`: one memory-mappable, checksummed file of tokens with the places where documents begin.
//!
//! All integers are little-endian. Every region begins at a multiple of 4096 and is padded with
//! zeros.
//!
//! ```text
//! offset           size            what
//! 0                8               magic "MUSTRTOK"
//! 8                u32             format version: 1
//! 12               u32             bytes per token: 2 (vocabulary of at most 65 536) or 4
//! 16               u64             T, number of tokens
//! 24               u64             D, number of documents
//! 32               u32             vocabulary size; every token is smaller
//! 36               u32             end-of-text token, which ends every document
//! 40               u64             bytes of text the tokens were made from; 2^64-1: unknown
//! 48               u64             offset of the tokens: 4096
//! 56               u64             offset of the document table
//! 64               u64             offset of the checksum table
//! 72               u64             size of the file in bytes
//! 80               u64             bytes per checksummed block: 4 194 304
//! 88               32              BLAKE3 digest of the tokenizer's definition
//! 120              32              BLAKE3 digest of the source (text and settings); zeros: unknown
//! 152              32              content digest: BLAKE3 of (tokens, document table), unpadded
//! 184              u16 + ≤ 3072    length and UTF-8 bytes of the tokenizer's name
//! 4092             u32             CRC-32C of bytes 0 to 4091
//! 4096             T × 2 or 4      tokens
//! documents        (D + 1) × u64   index of each document's first token, ascending; last is T
//! checksums        C × u32, u32    CRC-32C of each block of bytes [4096, checksum table), the
//!                                  last may be short; then the CRC-32C of those C entries
//! ```
//! A writer fills a temporary file in the same directory, syncs it, renames it and syncs the
//! directory: a `.tok` under its name is whole. Opening checks the header, the sizes and the
//! checksum table; `TokenFile::verify` reads everything.

use std::path::{Path, PathBuf};

use crate::error::{DataError, Result, io_error};
use crate::map::Map;

pub(crate) const MAGIC: &[u8; 8] = b"MUSTRTOK";
pub(crate) const VERSION: u32 = 1;
pub(crate) const ALIGN: u64 = 4096;
pub(crate) const BLOCK_BYTES: usize = 4 << 20;
const NAME_BYTES_MAX: usize = 3072;
const UNKNOWN: u64 = u64::MAX;

/// The fields of a token file's header, apart from the layout that follows from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenFileInfo {
    /// 2 or 4.
    pub token_bytes: u32,
    pub tokens: u64,
    pub documents: u64,
    pub vocab_size: u32,
    pub end_of_text: u32,
    /// Bytes of text the tokens were made from, if known.
    pub text_bytes: Option<u64>,
    pub tokenizer_name: String,
    pub tokenizer_digest: [u8; 32],
    /// Digest of text and settings the file was made from; zeros if unknown.
    pub source_digest: [u8; 32],
    pub content_digest: [u8; 32],
}

/// Offsets that follow from the counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Places {
    pub documents: u64,
    pub checksums: u64,
    pub blocks: u64,
    pub file_bytes: u64,
}

impl Places {
    /// `None` if the counts are absurd (overflow).
    pub(crate) fn of(tokens: u64, token_bytes: u32, documents: u64) -> Option<Self> {
        let align = |n: u64| n.checked_next_multiple_of(ALIGN);
        let end = ALIGN.checked_add(tokens.checked_mul(u64::from(token_bytes))?)?;
        let documents_at = align(end)?;
        let table_bytes = documents.checked_add(1)?.checked_mul(8)?;
        let checksums = align(documents_at.checked_add(table_bytes)?)?;
        let blocks = (checksums - ALIGN).div_ceil(BLOCK_BYTES as u64);
        let file_bytes = checksums.checked_add(blocks * 4 + 4)?;
        Some(Self { documents: documents_at, checksums, blocks, file_bytes })
    }
}

/// The header's bytes.
pub(crate) fn encode_header(info: &TokenFileInfo, places: &Places) -> [u8; ALIGN as usize] {
    let mut name_end = info.tokenizer_name.len().min(NAME_BYTES_MAX);
    while !info.tokenizer_name.is_char_boundary(name_end) {
        name_end -= 1;
    }
    let name = &info.tokenizer_name.as_bytes()[..name_end];
    let mut bytes = Vec::with_capacity(ALIGN as usize);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&info.token_bytes.to_le_bytes());
    bytes.extend_from_slice(&info.tokens.to_le_bytes());
    bytes.extend_from_slice(&info.documents.to_le_bytes());
    bytes.extend_from_slice(&info.vocab_size.to_le_bytes());
    bytes.extend_from_slice(&info.end_of_text.to_le_bytes());
    bytes.extend_from_slice(&info.text_bytes.unwrap_or(UNKNOWN).to_le_bytes());
    for n in [ALIGN, places.documents, places.checksums, places.file_bytes, BLOCK_BYTES as u64] {
        bytes.extend_from_slice(&n.to_le_bytes());
    }
    for digest in [&info.tokenizer_digest, &info.source_digest, &info.content_digest] {
        bytes.extend_from_slice(digest);
    }
    bytes.extend_from_slice(&(name.len() as u16).to_le_bytes());
    bytes.extend_from_slice(name);
    bytes.resize(ALIGN as usize - 4, 0);
    let crc = crc_fast::crc32_iscsi(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes.try_into().expect("exactly one header long by construction")
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn digest_at(bytes: &[u8], at: usize) -> [u8; 32] {
    bytes[at..at + 32].try_into().expect("32 bytes")
}

/// Reads a header and checks it against the file's size.
fn decode_header(path: &Path, file: &[u8]) -> Result<(TokenFileInfo, Places)> {
    let actual_bytes = file.len() as u64;
    if !file.starts_with(MAGIC) {
        let reason = "it does not begin with MUSTRTOK".to_string();
        return Err(DataError::UnknownFormat { path: path.to_path_buf(), reason });
    }
    if actual_bytes < ALIGN {
        let path = path.to_path_buf();
        return Err(DataError::WrongSize { path, expected_bytes: ALIGN, actual_bytes });
    }
    let header = &file[..ALIGN as usize];
    let version = u32_at(header, 8);
    if version != VERSION {
        let (path, found) = (path.to_path_buf(), u64::from(version));
        return Err(DataError::Version { path, found, supported: u64::from(VERSION) });
    }
    let crc_at = ALIGN as usize - 4;
    if crc_fast::crc32_iscsi(&header[..crc_at]) != u32_at(header, crc_at) {
        return Err(DataError::damaged(path, 0, "the header's checksum is wrong"));
    }
    let name_bytes = usize::from(u16::from_le_bytes([header[184], header[185]]));
    let name = header.get(186..186 + name_bytes).unwrap_or_default();
    let text_bytes = u64_at(header, 40);
    let info = TokenFileInfo {
        token_bytes: u32_at(header, 12),
        tokens: u64_at(header, 16),
        documents: u64_at(header, 24),
        vocab_size: u32_at(header, 32),
        end_of_text: u32_at(header, 36),
        text_bytes: (text_bytes != UNKNOWN).then_some(text_bytes),
        tokenizer_name: String::from_utf8_lossy(name).into_owned(),
        tokenizer_digest: digest_at(header, 88),
        source_digest: digest_at(header, 120),
        content_digest: digest_at(header, 152),
    };
    let places = Places::of(info.tokens, info.token_bytes, info.documents)
        .filter(|_| matches!(info.token_bytes, 2 | 4))
        .ok_or_else(|| DataError::damaged(path, 12, "impossible counts in the header"))?;
    let written = [48, 56, 64, 72, 80].map(|at| u64_at(header, at));
    let Places { documents, checksums, file_bytes, .. } = places;
    if written != [ALIGN, documents, checksums, file_bytes, BLOCK_BYTES as u64] {
        return Err(DataError::damaged(path, 48, "the offsets do not follow from the counts"));
    }
    if actual_bytes != file_bytes {
        let path = path.to_path_buf();
        return Err(DataError::WrongSize { path, expected_bytes: file_bytes, actual_bytes });
    }
    Ok((info, places))
}

/// A token file, mapped.
pub(crate) struct TokenFile {
    path: PathBuf,
    map: Map,
    info: TokenFileInfo,
    places: Places,
}

impl TokenFile {
    /// Opens a file and checks its header, sizes, checksum table and the ends of its document
    /// table.
    pub fn open(path: &Path) -> Result<Self> {
        let map = Map::open(path)?;
        let (info, places) = decode_header(path, &map)?;
        let file = Self { path: path.to_path_buf(), map, info, places };
        let crcs = file.checksums();
        let table_crc = u32_at(&file.map, file.places.file_bytes as usize - 4);
        if crc_fast::crc32_iscsi(crcs) != table_crc {
            let reason = "the checksum table's own checksum is wrong";
            return Err(DataError::damaged(path, places.checksums, reason));
        }
        if file.document_start(0) != 0
            || file.document_start(file.info.documents) != file.info.tokens
        {
            let reason = "the document table does not span the tokens";
            return Err(DataError::damaged(path, places.documents, reason));
        }
        Ok(file)
    }

    fn checksums(&self) -> &[u8] {
        let start = self.places.checksums as usize;
        &self.map[start..start + 4 * self.places.blocks as usize]
    }

    pub fn info(&self) -> &TokenFileInfo {
        &self.info
    }

    /// The tokens as they lie in the file: `token_bytes` little-endian bytes each.
    pub(crate) fn token_data(&self) -> &[u8] {
        let bytes = self.info.tokens as usize * self.info.token_bytes as usize;
        &self.map[ALIGN as usize..ALIGN as usize + bytes]
    }

    /// Index of the first token of document `d`; for `d` = number of documents, the number of
    /// tokens.
    pub(crate) fn document_start(&self, d: u64) -> u64 {
        u64_at(&self.map, (self.places.documents + 8 * d) as usize)
    }

    /// Reads the whole file: every block's checksum, the content digest, the order of the document
    /// table and the range of every token.
    pub fn verify(&self) -> Result<()> {
        let mut at = ALIGN as usize;
        for expected in self.checksums().chunks_exact(4) {
            let end = (at + BLOCK_BYTES).min(self.places.checksums as usize);
            let found = crc_fast::crc32_iscsi(&self.map[at..end]);
            let expected = u32_at(expected, 0);
            if found != expected {
                let reason = format!(
                    "the block of {} bytes has checksum {found:08x} instead of {expected:08x}",
                    end - at
                );
                return Err(DataError::damaged(&self.path, at as u64, reason));
            }
            at = end;
        }
        let table = self.places.documents as usize;
        let table = &self.map[table..table + 8 * (self.info.documents as usize + 1)];
        let digest =
            *blake3::Hasher::new().update(self.token_data()).update(table).finalize().as_bytes();
        if digest != self.info.content_digest {
            return Err(DataError::damaged(&self.path, 152, "the content digest is wrong"));
        }
        for d in 0..self.info.documents {
            if self.document_start(d) >= self.document_start(d + 1) {
                let offset = self.places.documents + 8 * (d + 1);
                let reason = "the document table is not ascending";
                return Err(DataError::damaged(&self.path, offset, reason));
            }
        }
        self.verify_range()
    }

    /// That every token is one of the vocabulary.
    fn verify_range(&self) -> Result<()> {
        let width = self.info.token_bytes as usize;
        let token = |bytes: &[u8]| match width {
            2 => u32::from(u16::from_le_bytes([bytes[0], bytes[1]])),
            _ => u32_at(bytes, 0),
        };
        let mut tokens = self.token_data().chunks_exact(width).map(token);
        let vocab_size = self.info.vocab_size;
        let wrong = tokens.by_ref().enumerate().find(|(_, token)| *token >= vocab_size);
        match wrong {
            None => Ok(()),
            Some((index, token)) => {
                let offset = ALIGN + (index * width) as u64;
                let reason = format!(
                    "token {index} is {token}, but a vocabulary of {vocab_size} ends at {}",
                    vocab_size.saturating_sub(1)
                );
                Err(DataError::damaged(&self.path, offset, reason))
            }
        }
    }
}

/// The header of a token file alone, if there is a readable one; for cache look-ups.
pub(crate) fn open_if_from(path: &Path, source_digest: &[u8; 32]) -> Result<Option<TokenFile>> {
    match std::fs::exists(path).map_err(io_error("look for", path))? {
        false => Ok(None),
        true => Ok(TokenFile::open(path).ok().filter(|f| f.info.source_digest == *source_digest)),
    }
}
