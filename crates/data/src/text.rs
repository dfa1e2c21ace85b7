//! Reading text files in bounded memory, as blocks of work that threads can tokenize on their own.
//!
//! * Text (`.txt`, `.rs`, `.md`, any extension without a meaning of its own): one document per
//!   file. A blank line, a form feed or a line of dashes is text like any other and separates
//!   nothing.
//! * `.jsonl`: one document per line, the string in one field. Lines of white space are skipped.
//! * `.parquet` (with the feature of that name): one document per row.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::cut::{Cut, PIECE_BYTES};
use crate::error::{DataError, Result, io_error};

/// How a file of text is divided into documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextKind {
    /// The whole file is one document.
    Whole,
    /// One JSON object per line.
    JsonLines,
    /// A column of a parquet file.
    Parquet,
}

/// One file of text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextInput {
    pub path: PathBuf,
    pub kind: TextKind,
}

impl TextInput {
    /// The kind follows from the extension.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
        let kind = match extension.to_ascii_lowercase().as_str() {
            "jsonl" | "ndjson" => TextKind::JsonLines,
            "parquet" => TextKind::Parquet,
            _ => TextKind::Whole,
        };
        Self { path, kind }
    }

    /// Whether the file is one of ours already.
    fn holds_tokens(&self) -> Result<bool> {
        let mut file = std::fs::File::open(&self.path).map_err(io_error("read", &self.path))?;
        let mut start = [0; crate::token_file::MAGIC.len()];
        match file.read_exact(&mut start) {
            Ok(()) => Ok(&start == crate::token_file::MAGIC),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(io_error("read", &self.path)(error)),
        }
    }

    /// Size in bytes; the file must be readable, no directory, and no token file.
    pub fn bytes(&self) -> Result<u64> {
        let meta = std::fs::metadata(&self.path).map_err(io_error("read", &self.path))?;
        match meta.is_dir() {
            true => Err(DataError::IsDirectory { path: self.path.clone() }),
            false if self.holds_tokens()? => {
                Err(DataError::AlreadyTokens { path: self.path.clone() })
            }
            false => Ok(meta.len()),
        }
    }
}

/// About this much text is handed to a thread at once.
const BLOCK_BYTES: usize = 1 << 20;
/// How much of a document is read to decide its next cut; mostly enough.
const SIGHT_BYTES: usize = PIECE_BYTES + 4;
/// A line longer than this is taken for a mistake (the file is probably not `.jsonl`).
const LINE_BYTES_MAX: usize = 64 << 20;

/// Work for one thread.
pub(crate) enum Block {
    /// Pieces of documents, back to back in `text`.
    Pieces { path: Arc<Path>, text: Vec<u8>, pieces: Vec<PieceEnd> },
    /// Whole lines.
    Lines { path: Arc<Path>, first_line: u64, text: Vec<u8> },
}

/// Where a piece ends in its block's text, and whether the document begins and ends with it.
pub(crate) struct PieceEnd {
    pub end: usize,
    pub starts_document: bool,
    pub ends_document: bool,
}

impl Block {
    pub fn text_bytes(&self) -> usize {
        match self {
            Self::Pieces { text, .. } | Self::Lines { text, .. } => text.len(),
        }
    }

    pub fn path(&self) -> &Path {
        match self {
            Self::Pieces { path, .. } | Self::Lines { path, .. } => path,
        }
    }
}

/// Reads files one after the other and hands out blocks through `give`, which returns whether to go
/// on.
pub(crate) struct BlockReader<'a, F: FnMut(Block) -> bool> {
    cut: &'a Cut,
    /// Column of parquet files.
    field: &'a str,
    give: F,
    path: Arc<Path>,
    text: Vec<u8>,
    pieces: Vec<PieceEnd>,
}

impl<'a, F: FnMut(Block) -> bool> BlockReader<'a, F> {
    pub fn new(cut: &'a Cut, field: &'a str, give: F) -> Self {
        Self { cut, field, give, path: Path::new("").into(), text: Vec::new(), pieces: Vec::new() }
    }

    /// Reads all of `inputs`, as long as blocks are wanted.
    pub fn read_all(&mut self, inputs: &[TextInput]) -> Result<()> {
        for input in inputs {
            let path: Arc<Path> = input.path.as_path().into();
            let wanted = match input.kind {
                TextKind::Whole => {
                    let mut file = open(&path)?;
                    self.path = path;
                    self.read_document(&mut file)?
                }
                TextKind::JsonLines => self.flush() && self.read_lines(path)?,
                TextKind::Parquet => self.flush() && self.read_parquet(path)?,
            };
            if !wanted {
                return Ok(());
            }
        }
        self.flush();
        Ok(())
    }

    /// Hands out what has been gathered.
    fn flush(&mut self) -> bool {
        if self.pieces.is_empty() {
            return true;
        }
        let text = std::mem::take(&mut self.text);
        let pieces = std::mem::take(&mut self.pieces);
        (self.give)(Block::Pieces { path: self.path.clone(), text, pieces })
    }

    fn add_piece(&mut self, piece: &[u8], starts_document: bool, ends_document: bool) -> bool {
        self.text.extend_from_slice(piece);
        self.pieces.push(PieceEnd { end: self.text.len(), starts_document, ends_document });
        self.text.len() < BLOCK_BYTES || self.flush()
    }

    /// One document, cut into pieces as it is read. What is in sight grows until it decides a cut.
    fn read_document(&mut self, from: &mut impl Read) -> Result<bool> {
        let mut sight = Vec::with_capacity(SIGHT_BYTES);
        let (mut wanted, mut at_end, mut starts_document) = (SIGHT_BYTES, false, true);
        let path = self.path.clone();
        loop {
            let missing = wanted.saturating_sub(sight.len()) as u64;
            let read = from.by_ref().take(missing).read_to_end(&mut sight);
            read.map_err(io_error("read", &path))?;
            at_end |= sight.len() < wanted;
            let Some(end) = self.cut.first_piece(&sight, at_end, PIECE_BYTES) else {
                wanted = sight.len() * 2;
                continue;
            };
            let ends_document = at_end && end == sight.len();
            if !self.add_piece(&sight[..end], starts_document, ends_document) {
                return Ok(false);
            }
            if ends_document {
                return Ok(true);
            }
            sight.drain(..end);
            (wanted, starts_document) = (SIGHT_BYTES, false);
        }
    }

    fn read_lines(&mut self, path: Arc<Path>) -> Result<bool> {
        let mut file = open(&path)?;
        let mut text = Vec::with_capacity(BLOCK_BYTES);
        let mut first_line = 1;
        loop {
            let limit = (text.len() + 1).next_multiple_of(BLOCK_BYTES) - text.len();
            let read = file.by_ref().take(limit as u64).read_to_end(&mut text);
            let at_end = read.map_err(io_error("read", &path))? < limit;
            let whole = match memchr::memrchr(b'\n', &text) {
                _ if at_end => text.len(),
                Some(newline) => newline + 1,
                None if text.len() > LINE_BYTES_MAX => {
                    let reason = format!(
                        "a line of more than {} MiB; is this really one JSON object per line?",
                        LINE_BYTES_MAX >> 20
                    );
                    return Err(DataError::Line {
                        path: path.to_path_buf(),
                        line: first_line,
                        reason,
                    });
                }
                None => continue,
            };
            let rest = text.split_off(whole);
            let lines = memchr::memchr_iter(b'\n', &text).count() as u64;
            let block = Block::Lines { path: path.clone(), first_line, text };
            if !(self.give)(block) {
                return Ok(false);
            }
            if at_end {
                return Ok(true);
            }
            first_line += lines;
            text = rest;
        }
    }

    #[cfg(not(feature = "parquet"))]
    fn read_parquet(&mut self, path: Arc<Path>) -> Result<bool> {
        Err(DataError::Unsupported(format!(
            "{}: cannot read column `{}`: this program was built without \
             parquet; build it with `cargo build --release --features data/parquet`, or convert \
             the file to .jsonl",
            path.display(),
            self.field,
        )))
    }

    #[cfg(feature = "parquet")]
    fn read_parquet(&mut self, path: Arc<Path>) -> Result<bool> {
        self.path = path.clone();
        let field = self.field;
        crate::parquet_text::for_each_row(&path, field, &mut |row| {
            self.read_document(&mut &row[..])
        })
    }
}

fn open(path: &Path) -> Result<File> {
    let file = File::open(path).map_err(io_error("open", path))?;
    match file.metadata().map_err(io_error("open", path))?.is_dir() {
        true => Err(DataError::IsDirectory { path: path.to_path_buf() }),
        false => Ok(file),
    }
}
