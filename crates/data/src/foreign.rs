//! Token files of other trainers.
//!
//! **Megatron** (`NAME.bin` + `NAME.idx`). The index, little-endian: 9 bytes `MMIDIDX\0\0`, u64
//! version 1, u8 element type (1 u8, 2 i8, 3 i16, 4 i32, 5 i64, 6 f64, 7 f32, 8 u16), u64 number of
//! sequences S, u64 number of document entries E, S × i32 sequence lengths in tokens, S × i64 byte
//! offsets into the `.bin`, E × i64 sequence numbers at which documents begin (the last one is S).
//! Multimodal indices append S × i8.
//!
//! **256-integer header** (llm.c, modded-nanogpt): 256 × i32, of which the first three are a magic
//! number, a version and the number of tokens. With 20240520 and version 1, u16 GPT-2 tokens
//! follow, in which 50256 separates documents; with 20240801 and version 7, u32 Llama-3 tokens, in
//! which 128000 does.

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

/// The format that a magic number stands for.
struct HeaderedKind {
    magic: u32,
    version: u32,
    element: Element,
    separator: u32,
}

const HEADERED_KINDS: [HeaderedKind; 2] = [
    HeaderedKind {
        magic: 20240520,
        version: 1,
        element: Element::U16,
        separator: gpt2::END_OF_TEXT,
    },
    // The separator is <|begin_of_text|>.
    HeaderedKind { magic: 20240801, version: 7, element: Element::U32, separator: 128_000 },
];

/// A `.bin` file with a header of 256 integers.
pub(crate) struct Headered {
    pub map: Map,
    pub tokens: u64,
    pub element: Element,
    /// The token after which a document begins.
    pub separator: u32,
}

impl Headered {
    pub(crate) const DATA: usize = HEADER_INTS * 4;

    /// Whether a file begins like one of these.
    pub fn matches(start: &[u8]) -> bool {
        Self::kind_of(start).is_some()
    }

    fn kind_of(start: &[u8]) -> Option<&'static HeaderedKind> {
        HEADERED_KINDS.iter().find(|kind| start.starts_with(&kind.magic.to_le_bytes()))
    }

    /// Opens what [`Self::matches`].
    pub fn open(path: &Path, map: Map) -> Result<Self> {
        let int = |i: usize| map.get(4 * i..4 * i + 4).and_then(|b| b.try_into().ok());
        let int = |i: usize| int(i).map(u32::from_le_bytes);
        let actual_bytes = map.len() as u64;
        let (Some(kind), Some(version), Some(tokens)) = (Self::kind_of(&map), int(1), int(2))
        else {
            let (path, expected_bytes) = (path.to_path_buf(), Self::DATA as u64);
            return Err(DataError::WrongSize { path, expected_bytes, actual_bytes });
        };
        if version != kind.version {
            let (path, found) = (path.to_path_buf(), u64::from(version));
            return Err(DataError::Version { path, found, supported: u64::from(kind.version) });
        }
        let count = tokens.cast_signed();
        let tokens = u64::from(tokens);
        let expected_bytes = Self::DATA as u64 + kind.element.bytes() as u64 * tokens;
        if actual_bytes != expected_bytes && count < 0 {
            let reason = format!("its header counts {count} tokens");
            return Err(DataError::UnknownFormat { path: path.to_path_buf(), reason });
        }
        if actual_bytes != expected_bytes {
            return Err(DataError::WrongSize {
                path: path.to_path_buf(),
                expected_bytes,
                actual_bytes,
            });
        }
        Ok(Self { map, tokens, element: kind.element, separator: kind.separator })
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
    pub(crate) fn index_path(path: &Path) -> PathBuf {
        path.with_extension("idx")
    }

    pub fn open(path: &Path) -> Result<Self> {
        let index_path = Self::index_path(path);
        let data_path = path.with_extension("bin");
        let index = Map::open(&index_path)?;
        let wrong = |offset: u64, reason: String| DataError::WrongIndex {
            path: index_path.clone(),
            offset,
            reason,
        };
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
            code => return Err(wrong(17, format!("element type {code} cannot hold tokens"))),
        };
        let (sequences, entries) = (le_u64(&index, 18), le_u64(&index, 26));
        let size = |modes: u64| {
            let per_sequence = sequences.checked_mul(12 + modes)?;
            entries.checked_mul(8)?.checked_add(per_sequence)?.checked_add(MEGATRON_HEADER)
        };
        let expected_bytes = size(0).ok_or_else(|| wrong(18, "impossible counts".into()))?;
        if actual_bytes != expected_bytes && Some(actual_bytes) != size(1) {
            return Err(DataError::WrongSize { path: index_path, expected_bytes, actual_bytes });
        }
        if entries == 0 {
            return Err(wrong(26, "it has no document indices".into()));
        }
        let data = Map::open(&data_path)?;
        let width = element.bytes() as u64;
        let file = Self {
            tokens: data.len() as u64 / width,
            documents: entries - 1,
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

    fn document_entry_at(&self, d: u64) -> u64 {
        MEGATRON_HEADER + 12 * self.sequences + 8 * d
    }

    /// Index of the first token of document `d`, or the number of tokens for `d` = number of
    /// documents.
    pub(crate) fn document_start(&self, d: u64) -> u64 {
        let sequence = le_u64(&self.index, self.document_entry_at(d) as usize);
        if sequence >= self.sequences {
            return self.tokens;
        }
        le_u64(&self.index, self.pointer_at(sequence) as usize) / self.element.bytes() as u64
    }

    /// Sequences must lie back to back, and documents must be ascending ranges of them.
    fn check(&self, data_path: &Path) -> Result<()> {
        let bytes = self.check_sequences()?;
        let actual_bytes = self.data.len() as u64;
        if actual_bytes != bytes {
            let path = data_path.to_path_buf();
            return Err(DataError::WrongSize { path, expected_bytes: bytes, actual_bytes });
        }
        let mut last = 0;
        for d in 0..=self.documents {
            let at = self.document_entry_at(d);
            // As the writer meant it: a number may be negative by mistake.
            let sequence = le_u64(&self.index, at as usize) as i64;
            if let Some(reason) = self.wrong_entry(d, sequence, last) {
                return Err(self.wrong(at, reason));
            }
            last = sequence;
        }
        Ok(())
    }

    /// Returns the bytes of all sequences.
    fn check_sequences(&self) -> Result<u64> {
        let mut bytes = 0u64;
        for s in 0..self.sequences {
            let length = self.length(s);
            if length < 0 {
                let reason = format!("sequence {s} has length {length}");
                return Err(self.wrong(MEGATRON_HEADER + 4 * s, reason));
            }
            let at = self.pointer_at(s);
            let pointer = le_u64(&self.index, at as usize);
            if pointer != bytes {
                let reason = format!(
                    "sequence {s} begins at byte {} instead of {bytes}: sequences that do not \
                     follow each other are not supported",
                    pointer as i64
                );
                return Err(self.wrong(at, reason));
            }
            bytes += length as u64 * self.element.bytes() as u64;
        }
        Ok(bytes)
    }

    /// The fault of entry `d` of the document indices, `last` being the one before.
    fn wrong_entry(&self, d: u64, sequence: i64, last: i64) -> Option<String> {
        let sequences = self.sequences;
        let entry = format!("document index {d} of 0 to {} is {sequence}", self.documents);
        let end = sequences as i64;
        match () {
            () if d == 0 && sequence != 0 => {
                Some(format!("{entry}: the first document begins at sequence 0"))
            }
            () if sequence < last => Some(format!("{entry}, less than {last} before it")),
            () if sequence > end => Some(format!("{entry}, but there are {sequences} sequences")),
            () if d == self.documents && sequence != end => Some(format!(
                "{entry}: the last is the number of sequences, {sequences}, where the last \
                 document ends"
            )),
            () => None,
        }
    }

    fn wrong(&self, offset: u64, reason: String) -> DataError {
        DataError::WrongIndex { path: self.index_path.clone(), offset, reason }
    }
}

fn le_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
