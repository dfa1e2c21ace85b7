//! Token files of other trainers.
//!
//! **Megatron** (`NAME.bin` + `NAME.idx`). The index, little-endian: 9 bytes `MMIDIDX\0\0`, u64
//! version 1, u8 element type (1 u8, 2 i8, 3 i16, 4 i32, 5 i64, 6 f64, 7 f32, 8 u16), u64 number of
//! sequences S, u64 number of document entries E, S × i32 sequence lengths in tokens, S × i64 byte
//! offsets into the `.bin`, E × i64 sequence numbers at which documents begin (the last one is S).
//! Multimodal indices append S × i8.
//!
//! **256-integer header** (llm.c, modded-nanogpt): 256 × i32, of which the first three are
//! 20240520, version 1 and the number of tokens; then u16 GPT-2 tokens, in which 50256 separates
//! documents.

use std::path::{Path, PathBuf};

use crate::error::{DataError, Result};
use crate::gpt2;
use crate::map::Map;

/// How one token lies in a file; all little-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    U8,
    I16,
    U16,
    I32,
    U32,
    I64,
}

impl Element {
    /// Size in bytes.
    pub fn bytes(self) -> usize {
        match self {
            Self::U8 => 1,
            Self::I16 | Self::U16 => 2,
            Self::I32 | Self::U32 => 4,
            Self::I64 => 8,
        }
    }

    /// The name numpy gives it.
    pub fn name(self) -> &'static str {
        match self {
            Self::U8 => "uint8",
            Self::I16 => "int16",
            Self::U16 => "uint16",
            Self::I32 => "int32",
            Self::U32 => "uint32",
            Self::I64 => "int64",
        }
    }
}

const HEADER_INTS: usize = 256;
const HEADER_MAGIC: u32 = 20240520;

/// A `.bin` file with a header of 256 integers.
pub(crate) struct Headered {
    pub map: Map,
    pub tokens: u64,
}

impl Headered {
    pub const DATA: usize = HEADER_INTS * 4;
    pub const ELEMENT: Element = Element::U16;
    /// The token after which a document begins.
    pub const SEPARATOR: u32 = gpt2::END_OF_TEXT;

    /// Whether a file begins like one of these.
    pub fn matches(start: &[u8]) -> bool {
        start.starts_with(&HEADER_MAGIC.to_le_bytes())
    }

    pub fn open(path: &Path, map: Map) -> Result<Self> {
        let int = |i: usize| map.get(4 * i..4 * i + 4).and_then(|b| b.try_into().ok());
        let int = |i: usize| int(i).map(u32::from_le_bytes);
        let actual_bytes = map.len() as u64;
        let (Some(version), Some(tokens)) = (int(1), int(2)) else {
            let (path, expected_bytes) = (path.to_path_buf(), Self::DATA as u64);
            return Err(DataError::WrongSize { path, expected_bytes, actual_bytes });
        };
        if version != 1 {
            let (path, found) = (path.to_path_buf(), u64::from(version));
            return Err(DataError::Version { path, found, supported: 1 });
        }
        let tokens = u64::from(tokens);
        let expected_bytes = Self::DATA as u64 + 2 * tokens;
        if actual_bytes != expected_bytes {
            return Err(DataError::WrongSize {
                path: path.to_path_buf(),
                expected_bytes,
                actual_bytes,
            });
        }
        Ok(Self { map, tokens })
    }
}

const MEGATRON_MAGIC: &[u8; 9] = b"MMIDIDX\0\0";
const MEGATRON_HEADER: u64 = 34;

/// A Megatron pair. Documents are looked up in the mapped index, nothing is copied out of it.
pub(crate) struct Megatron {
    pub data: Map,
    pub element: Element,
    pub tokens: u64,
    pub documents: u64,
    index: Map,
    index_path: PathBuf,
    sequences: u64,
}

impl Megatron {
    /// The other file of a pair, given either.
    pub fn index_path(path: &Path) -> PathBuf {
        path.with_extension("idx")
    }

    pub fn open(path: &Path) -> Result<Self> {
        let index_path = Self::index_path(path);
        let data_path = path.with_extension("bin");
        let index = Map::open(&index_path)?;
        let fail = |offset: u64, reason: String| DataError::damaged(&index_path, offset, reason);
        if !index.starts_with(MEGATRON_MAGIC) {
            let reason = "a Megatron index begins with MMIDIDX".to_string();
            return Err(DataError::UnknownFormat { path: index_path, reason });
        }
        let actual_bytes = index.len() as u64;
        if actual_bytes < MEGATRON_HEADER {
            let (path, expected_bytes) = (index_path, MEGATRON_HEADER);
            return Err(DataError::WrongSize { path, expected_bytes, actual_bytes });
        }
        let version = le_u64(&index, 9);
        if version != 1 {
            return Err(DataError::Version { path: index_path, found: version, supported: 1 });
        }
        let element = match index[17] {
            1 => Element::U8,
            3 => Element::I16,
            4 => Element::I32,
            5 => Element::I64,
            8 => Element::U16,
            code => return Err(fail(17, format!("element type {code} cannot hold tokens"))),
        };
        let (sequences, entries) = (le_u64(&index, 18), le_u64(&index, 26));
        let size = |modes: u64| {
            let per_sequence = sequences.checked_mul(12 + modes)?;
            entries.checked_mul(8)?.checked_add(per_sequence)?.checked_add(MEGATRON_HEADER)
        };
        let expected_bytes = size(0).ok_or_else(|| fail(18, "impossible counts".into()))?;
        if actual_bytes != expected_bytes && Some(actual_bytes) != size(1) {
            return Err(DataError::WrongSize { path: index_path, expected_bytes, actual_bytes });
        }
        let data = Map::open(&data_path)?;
        let width = element.bytes() as u64;
        let file = Self {
            tokens: data.len() as u64 / width,
            documents: entries.saturating_sub(1),
            data,
            element,
            index,
            index_path,
            sequences,
        };
        file.check(&data_path)?;
        Ok(file)
    }

    fn length(&self, sequence: u64) -> i64 {
        let at = (MEGATRON_HEADER + 4 * sequence) as usize;
        i64::from(i32::from_le_bytes(self.index[at..at + 4].try_into().expect("four bytes")))
    }

    fn pointer_at(&self, sequence: u64) -> u64 {
        MEGATRON_HEADER + 4 * self.sequences + 8 * sequence
    }

    /// Index of the first token of document `d`, or the number of tokens for `d` = number of
    /// documents.
    pub fn document_start(&self, d: u64) -> u64 {
        let entry = MEGATRON_HEADER + 12 * self.sequences + 8 * d;
        let sequence = le_u64(&self.index, entry as usize);
        if sequence >= self.sequences {
            return self.tokens;
        }
        le_u64(&self.index, self.pointer_at(sequence) as usize) / self.element.bytes() as u64
    }

    /// Sequences must lie back to back, and documents must be ascending ranges of them.
    fn check(&self, data_path: &Path) -> Result<()> {
        let fail = |offset, reason| Err(DataError::damaged(&self.index_path, offset, reason));
        let mut bytes = 0u64;
        for s in 0..self.sequences {
            let length = self.length(s);
            if length < 0 {
                return fail(MEGATRON_HEADER + 4 * s, format!("sequence {s} has length {length}"));
            }
            let pointer = le_u64(&self.index, self.pointer_at(s) as usize);
            if pointer != bytes {
                let reason = format!(
                    "sequence {s} begins at byte {pointer} instead of {bytes}: sequences that do \
                     not follow each other are not supported"
                );
                return fail(self.pointer_at(s), reason);
            }
            bytes += length as u64 * self.element.bytes() as u64;
        }
        let actual_bytes = self.data.len() as u64;
        if actual_bytes != bytes {
            let path = data_path.to_path_buf();
            return Err(DataError::WrongSize { path, expected_bytes: bytes, actual_bytes });
        }
        let mut last = 0;
        for d in 0..=self.documents {
            let at = MEGATRON_HEADER + 12 * self.sequences + 8 * d;
            if at as usize + 8 > self.index.len() {
                return fail(26, "it lists no documents".into());
            }
            let sequence = le_u64(&self.index, at as usize);
            let expected_end =
                d == 0 && sequence != 0 || d == self.documents && sequence != self.sequences;
            if sequence < last || expected_end {
                return fail(at, format!("document {d} cannot begin at sequence {sequence}"));
            }
            last = sequence;
        }
        Ok(())
    }
}

fn le_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
