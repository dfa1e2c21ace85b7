//! Reading text files in bounded memory, as blocks of work that threads can tokenize on their own.
//!
//! * Text (`.txt`, `.rs`, `.md`, any extension without a meaning of its own): one document per
//!   file. A blank line, a form feed or a line of dashes is text like any other and separates
//!   nothing.
//! * `.jsonl`: one document per line, the string in one field. Lines of white space are skipped.
//!   `.json` that begins with `{` is read so, too; and what has no extension (most pipes) and
//!   begins with `{"`.
//! * `.parquet` (with the feature of that name): one document per row.
//! * Any of them but parquet compressed by gzip or zstd (`.jsonl.gz`, `.txt.zst`).
//!
//! A byte order mark before the text is left out. What is not text is refused with its name
//! ([`crate::kind`]).

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use crate::cut::{Cut, PIECE_BYTES};
use crate::error::{DataError, Result};
use crate::input::{self, Input};
use crate::kind::TextKind;
use crate::open_text::{Form, OpenText, form_of};

/// One file of text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextInput {
    pub path: PathBuf,
}

impl TextInput {
    /// An input of this path; its kind is found out when it is read.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Checks that the file can be read as text, and returns its size in bytes. A pipe has none,
    /// and what it holds is seen when it is read.
    pub fn check(&self) -> Result<Option<u64>> {
        match input::look(&self.path)? {
            Input::Pipe => Ok(None),
            Input::File { bytes } => form_of(&self.path).map(|_| Some(bytes)),
        }
    }

    /// Size in bytes and form of what is read more than once, which no pipe can be.
    pub fn look_at_file(&self) -> Result<(u64, Form)> {
        let bytes = input::look_at_file(&self.path)?;
        Ok((bytes, form_of(&self.path)?))
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
    Pieces { path: Arc<Path>, text: Vec<u8>, pieces: Vec<PieceEnd>, read_bytes: u64 },
    /// Whole lines.
    Lines { path: Arc<Path>, first_line: u64, text: Vec<u8>, read_bytes: u64 },
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

    /// Bytes of the input files, as they lie there, that were read for this block.
    pub(crate) fn read_bytes(&self) -> u64 {
        match self {
            Self::Pieces { read_bytes, .. } | Self::Lines { read_bytes, .. } => *read_bytes,
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
    /// Bytes read from files that no block has accounted for yet.
    read_bytes: Rc<Cell<u64>>,
}

impl<'a, F: FnMut(Block) -> bool> BlockReader<'a, F> {
    pub fn new(cut: &'a Cut, field: &'a str, give: F) -> Self {
        let (path, read_bytes) = (Path::new("").into(), Rc::default());
        Self { cut, field, give, path, text: Vec::new(), pieces: Vec::new(), read_bytes }
    }

    /// Reads all of `inputs`, as long as blocks are wanted.
    pub(crate) fn read_all(&mut self, inputs: &[TextInput]) -> Result<()> {
        for input in inputs {
            let mut text = OpenText::open(&input.path, self.read_bytes.clone())?;
            let path = text.path.clone();
            let wanted = match text.form.kind {
                TextKind::Whole => {
                    self.path = path;
                    self.read_document(&mut |into, limit| text.fill(into, limit).map(|_| ()))?
                }
                TextKind::JsonLines => self.flush() && self.read_lines(&mut text)?,
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
        let read_bytes = self.read_bytes.take();
        (self.give)(Block::Pieces { path: self.path.clone(), text, pieces, read_bytes })
    }

    fn add_piece(&mut self, piece: &[u8], starts_document: bool, ends_document: bool) -> bool {
        self.text.extend_from_slice(piece);
        self.pieces.push(PieceEnd { end: self.text.len(), starts_document, ends_document });
        self.text.len() < BLOCK_BYTES || self.flush()
    }

    /// One document, cut into pieces as it is read: `fill` appends that many bytes, fewer at the
    /// end. What is in sight grows until it decides a cut.
    fn read_document(
        &mut self,
        fill: &mut dyn FnMut(&mut Vec<u8>, usize) -> Result<()>,
    ) -> Result<bool> {
        let mut sight = Vec::with_capacity(SIGHT_BYTES);
        let (mut wanted, mut at_end, mut starts_document) = (SIGHT_BYTES, false, true);
        loop {
            let missing = wanted.saturating_sub(sight.len());
            fill(&mut sight, missing)?;
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

    fn read_lines(&mut self, from: &mut OpenText) -> Result<bool> {
        let path = from.path.clone();
        let mut text = Vec::with_capacity(BLOCK_BYTES);
        let mut first_line = 1;
        loop {
            let limit = (text.len() + 1).next_multiple_of(BLOCK_BYTES) - text.len();
            let at_end = from.fill(&mut text, limit)? < limit;
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
            let read_bytes = self.read_bytes.take();
            let block = Block::Lines { path: path.clone(), first_line, text, read_bytes };
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
            let mut row = row;
            self.read_document(&mut |into, limit| {
                let now = row.split_off(..limit.min(row.len())).unwrap_or_default();
                into.extend_from_slice(now);
                Ok(())
            })
        })
    }
}
