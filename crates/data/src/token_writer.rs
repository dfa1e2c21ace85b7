//! Writes a `.tok` file as a stream: tokens go straight to disk, so that memory does not grow with
//! it.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crc_fast::CrcAlgorithm;

use crate::error::{DataError, Result, io_error};
use crate::temporary::{self, Temporary};
use crate::token_file::{ALIGN, BLOCK_BYTES, Places, TokenFileInfo, encode_header};
use crate::tokenizer::Tokenizer;

const BUFFER_BYTES: usize = 1 << 20;

/// Writes one token file. Nothing appears under the final name before [`TokenWriter::finish`].
pub(crate) struct TokenWriter {
    path: PathBuf,
    body: Body,
    /// Starts of documents, on disk too: there may be very many.
    starts: BufWriter<File>,
    info: TokenFileInfo,
    document_open: bool,
    scratch: Vec<u8>,
    hasher: blake3::Hasher,
    temporary: Temporary,
}

/// The data regions: bytes go to the file and, block by block, into the checksums.
struct Body {
    path: PathBuf,
    file: BufWriter<File>,
    /// Bytes written after the header.
    bytes: u64,
    checksums: Vec<u32>,
}

/// The CRC-32C of bytes behind others that have `sum`; 0 of none.
fn checked(sum: u32, bytes: &[u8]) -> u32 {
    // The state of this CRC is its value before the last inversion.
    let mut crc = crc_fast::Digest::new_with_init_state(CrcAlgorithm::Crc32Iscsi, u64::from(!sum));
    crc.update(bytes);
    crc.finalize() as u32
}

impl Body {
    fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(io_error("write", &self.path))?;
        while !bytes.is_empty() {
            let in_block = (self.bytes % BLOCK_BYTES as u64) as usize;
            let (now, later) = bytes.split_at(bytes.len().min(BLOCK_BYTES - in_block));
            if in_block == 0 {
                self.checksums.push(0);
            }
            let last = self.checksums.last_mut().expect("pushed at the block's first byte");
            *last = checked(*last, now);
            self.bytes += now.len() as u64;
            bytes = later;
        }
        Ok(())
    }

    fn pad(&mut self) -> Result<()> {
        let padding = self.bytes.next_multiple_of(ALIGN) - self.bytes;
        self.write(&[0; ALIGN as usize][..padding as usize])
    }
}

impl TokenWriter {
    /// Begins a file that will be called `path`, in a directory that exists.
    pub fn create(path: &Path, tokenizer: &Tokenizer, source_digest: [u8; 32]) -> Result<Self> {
        temporary::remove_abandoned(path);
        let (temporary, mut file, starts) = Temporary::create(path)?;
        file.seek(SeekFrom::Start(ALIGN)).map_err(io_error("write", &temporary.body))?;
        let body = Body {
            path: temporary.body.clone(),
            file: BufWriter::with_capacity(BUFFER_BYTES, file),
            bytes: 0,
            checksums: Vec::new(),
        };
        let starts = BufWriter::with_capacity(BUFFER_BYTES, starts);
        let vocab_size = tokenizer.vocab_size() as u32;
        let info = TokenFileInfo {
            token_bytes: if vocab_size <= 1 << 16 { 2 } else { 4 },
            tokens: 0,
            documents: 0,
            vocab_size,
            end_of_text: tokenizer.end_of_text(),
            text_bytes: Some(0),
            tokenizer_name: tokenizer.name().to_string(),
            tokenizer_digest: tokenizer.digest(),
            source_digest,
            content_digest: [0; 32],
        };
        Ok(Self {
            path: path.to_path_buf(),
            body,
            starts,
            info,
            document_open: false,
            scratch: Vec::new(),
            hasher: blake3::Hasher::new(),
            temporary,
        })
    }

    /// Appends tokens to the current document, beginning one if there is none.
    pub fn push(&mut self, tokens: &[u32]) -> Result<()> {
        if tokens.is_empty() {
            return Ok(());
        }
        if !self.document_open {
            let start = self.info.tokens.to_le_bytes();
            self.starts.write_all(&start).map_err(io_error("write", &self.temporary.starts))?;
            self.info.documents += 1;
            self.document_open = true;
        }
        if let Some(at) = tokens.iter().position(|&t| t >= self.info.vocab_size) {
            return Err(DataError::TokenOutOfRange {
                path: self.path.clone(),
                token: u64::from(tokens[at]),
                index: self.info.tokens + at as u64,
                tokenizer: self.info.tokenizer_name.clone(),
                vocab_size: self.info.vocab_size,
            });
        }
        self.scratch.resize(tokens.len() * self.info.token_bytes as usize, 0);
        if self.info.token_bytes == 2 {
            for (bytes, &token) in self.scratch.as_chunks_mut().0.iter_mut().zip(tokens) {
                *bytes = (token as u16).to_le_bytes();
            }
        } else {
            for (bytes, &token) in self.scratch.as_chunks_mut().0.iter_mut().zip(tokens) {
                *bytes = token.to_le_bytes();
            }
        }
        self.hasher.update(&self.scratch);
        self.body.write(&self.scratch)?;
        self.info.tokens += tokens.len() as u64;
        Ok(())
    }

    /// Ends the current document with the end-of-text token. A document without tokens leaves no
    /// trace; whether there was one.
    pub(crate) fn end_document(&mut self) -> Result<bool> {
        let open = self.document_open;
        if open {
            self.push(&[self.info.end_of_text])?;
            self.document_open = false;
        }
        Ok(open)
    }

    /// Counts bytes of text for the header.
    pub(crate) fn add_text_bytes(&mut self, bytes: u64) {
        self.info.text_bytes = self.info.text_bytes.map(|b| b + bytes);
    }

    /// Tokens so far, end-of-text tokens included.
    pub fn tokens(&self) -> u64 {
        self.info.tokens
    }

    /// Writes the tables and the header, syncs, and gives the file its name.
    pub fn finish(mut self) -> Result<TokenFileInfo> {
        self.end_document()?;
        let temporary = self.temporary.body.clone();
        let fail = |action| io_error(action, &temporary);
        let places = Places::of(self.info.tokens, self.info.token_bytes, self.info.documents)
            .ok_or_else(|| DataError::damaged(&self.path, 0, "too many tokens for one file"))?;
        self.body.pad()?;
        self.copy_starts()?;
        self.body.pad()?;
        self.info.content_digest = *self.hasher.finalize().as_bytes();
        let mut table: Vec<u8> = self.body.checksums.iter().flat_map(|c| c.to_le_bytes()).collect();
        let crc = crc_fast::crc32_iscsi(&table);
        table.extend_from_slice(&crc.to_le_bytes());
        debug_assert_eq!(ALIGN + self.body.bytes, places.checksums);
        let file = &mut self.body.file;
        file.write_all(&table).map_err(fail("write"))?;
        file.seek(SeekFrom::Start(0)).map_err(fail("write"))?;
        file.write_all(&encode_header(&self.info, &places)).map_err(fail("write"))?;
        file.flush().map_err(fail("write"))?;
        file.get_ref().sync_all().map_err(fail("sync"))?;
        std::fs::rename(&temporary, &self.path).map_err(io_error("rename to", &self.path))?;
        let directory = match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let synced = File::open(directory).and_then(|d| d.sync_all());
        synced.map_err(io_error("sync", directory))?;
        Ok(self.info)
    }

    /// Appends the document table, and its end, to the body.
    fn copy_starts(&mut self) -> Result<()> {
        let path = self.temporary.starts.clone();
        self.starts.write_all(&self.info.tokens.to_le_bytes()).map_err(io_error("write", &path))?;
        self.starts.seek(SeekFrom::Start(0)).map_err(io_error("write", &path))?;
        let mut from = BufReader::new(self.starts.get_ref());
        self.scratch.resize(BUFFER_BYTES, 0);
        loop {
            let n = from.read(&mut self.scratch).map_err(io_error("read", &path))?;
            if n == 0 {
                return Ok(());
            }
            self.hasher.update(&self.scratch[..n]);
            self.body.write(&self.scratch[..n])?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::TokenizerSpec;
    use crate::token_file::TokenFile;
    use proptest::prelude::*;

    fn write(path: &Path, tokenizer: &Tokenizer, documents: &[Vec<u32>]) -> TokenFileInfo {
        let mut writer = TokenWriter::create(path, tokenizer, [7; 32]).unwrap();
        for document in documents {
            writer.push(document).unwrap();
            writer.add_text_bytes(document.len() as u64);
            writer.end_document().unwrap();
        }
        writer.finish().unwrap()
    }

    fn some_file() -> (tempfile::TempDir, PathBuf, Vec<u8>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.tok");
        let byte = Tokenizer::load(&TokenizerSpec::Byte).unwrap();
        let documents: Vec<Vec<u32>> = (0..50).map(|d| vec![d; 60 * d as usize]).collect();
        write(&path, &byte, &documents);
        let bytes = std::fs::read(&path).unwrap();
        (dir, path, bytes)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn what_is_written_is_read(
            documents in prop::collection::vec(prop::collection::vec(0u32..200, 0..40), 0..20),
            wide: bool,
        ) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("a.tok");
            let spec = if wide { TokenizerSpec::Ids(70_000) } else { TokenizerSpec::Byte };
            let tokenizer = Tokenizer::load(&spec).unwrap();
            let info = write(&path, &tokenizer, &documents);
            let file = TokenFile::open(&path).unwrap();
            file.verify().unwrap();
            prop_assert_eq!(file.info(), &info);
            let full: Vec<&Vec<u32>> = documents.iter().filter(|d| !d.is_empty()).collect();
            prop_assert_eq!(info.documents as usize, full.len());
            let mut expected = Vec::new();
            for (d, document) in full.iter().enumerate() {
                prop_assert_eq!(file.document_start(d as u64), expected.len() as u64);
                expected.extend_from_slice(document);
                expected.push(tokenizer.end_of_text());
            }
            let width = if wide { 4 } else { 2 };
            let read: Vec<u32> = file.token_data().chunks_exact(width).map(|c| {
                c.iter().rev().fold(0, |n, &b| n << 8 | u32::from(b))
            }).collect();
            prop_assert_eq!(read, expected);
            // Nothing temporary is left.
            prop_assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        }

        #[test]
        fn any_flipped_bit_is_found(place in 0.0f64..1.0, bit in 0u8..8) {
            let (_dir, path, mut bytes) = some_file();
            let at = (place * bytes.len() as f64) as usize;
            bytes[at] ^= 1 << bit;
            std::fs::write(&path, &bytes).unwrap();
            let result = TokenFile::open(&path).and_then(|f| f.verify());
            prop_assert!(result.is_err(), "byte {at}");
        }

        #[test]
        fn any_other_length_is_found(place in 0.0f64..1.0) {
            let (_dir, path, bytes) = some_file();
            let keep = (place * bytes.len() as f64) as usize;
            std::fs::write(&path, &bytes[..keep]).unwrap();
            prop_assert!(TokenFile::open(&path).is_err());
        }
    }

    #[test]
    fn errors_say_what_is_wrong() {
        let (_dir, path, bytes) = some_file();
        std::fs::write(&path, &bytes[..bytes.len() - 9]).unwrap();
        assert!(matches!(TokenFile::open(&path), Err(DataError::WrongSize { .. })));
        std::fs::write(&path, &bytes[..100]).unwrap();
        assert!(matches!(TokenFile::open(&path), Err(DataError::WrongSize { .. })));
        let mut other = bytes.clone();
        other[8] = 9;
        std::fs::write(&path, &other).unwrap();
        let version = TokenFile::open(&path).err().unwrap();
        assert!(matches!(version, DataError::Version { found: 9, .. }), "{version}");
        std::fs::write(&path, b"hello").unwrap();
        assert!(matches!(TokenFile::open(&path), Err(DataError::UnknownFormat { .. })));
    }

    #[test]
    fn an_unfinished_file_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let byte = Tokenizer::load(&TokenizerSpec::Byte).unwrap();
        let mut writer = TokenWriter::create(&dir.path().join("a.tok"), &byte, [0; 32]).unwrap();
        writer.push(&[1, 2]).unwrap();
        let refused = writer.push(&[300]);
        assert!(matches!(refused, Err(DataError::TokenOutOfRange { token: 300, index: 2, .. })));
        drop(writer);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
