//! A file of text, opened once: its kind is known, and its bytes come as text.

use std::cell::Cell;
use std::io::{self, Cursor, Read};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use crate::error::{DataError, Result, io_error};
use crate::input::{self, Input};
use crate::kind::{
    BYTE_ORDER_MARK, Kind, Packing, Refusal, START_BYTES, TextKind, kind_of, nul_at, unpacked_name,
};
use crate::unpack::Unpacked;

/// How a file's bytes become text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Form {
    pub kind: TextKind,
    /// The compression of the file.
    pub packing: Option<Packing>,
    /// Whether a byte order mark before the text is left out.
    pub byte_order_mark: bool,
}

/// A file being read as text.
pub(crate) struct OpenText {
    pub path: Arc<Path>,
    pub form: Form,
    /// The bytes that were read to know the kind.
    start: Cursor<Vec<u8>>,
    rest: Unpacked,
    /// Where in the text, byte order mark included, reading has come to.
    offset: u64,
}

impl OpenText {
    /// Opens a file or a pipe. What is read from it, still compressed, is counted in `bytes`.
    pub fn open(path: &Path, bytes: Rc<Cell<u64>>) -> Result<Self> {
        let is_pipe = input::look(path)? == Input::Pipe;
        let mut file = input::open(path)?;
        let start = read_start(&mut file).map_err(io_error("read", path))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let refuse = |refusal| DataError::refused(path, refusal);
        let outer = kind_of(&name, &start).map_err(refuse)?;
        let packing = match outer {
            Kind::Packed(packing) => Some(packing),
            Kind::Text { .. } => None,
            Kind::Tokens => return Err(DataError::AlreadyTokens { path: path.to_path_buf() }),
        };
        let rest = Unpacked::new(packing, start, file, bytes).map_err(io_error("read", path))?;
        let form = Form { kind: TextKind::Whole, packing, byte_order_mark: false };
        let start = Cursor::new(Vec::new());
        let mut text = Self { path: path.into(), form, start, rest, offset: 0 };
        let mut start = read_start(&mut text.rest).map_err(|error| text.failed(error))?;
        let inner = match packing {
            None => outer,
            Some(packing) => inside(packing, unpacked_name(&name), &start).map_err(refuse)?,
        };
        if let Kind::Text { kind, byte_order_mark } = inner {
            text.form = Form { kind, packing, byte_order_mark };
        }
        if text.form.kind == TextKind::Parquet && is_pipe {
            return Err(DataError::NotAFile { path: path.to_path_buf(), what: "a pipe" });
        }
        if text.form.byte_order_mark {
            start.drain(..BYTE_ORDER_MARK.len());
            text.offset = BYTE_ORDER_MARK.len() as u64;
        }
        text.start = Cursor::new(start);
        Ok(text)
    }

    /// Appends the next `limit` bytes of text, fewer only at its end; returns how many.
    pub fn fill(&mut self, into: &mut Vec<u8>, limit: usize) -> Result<usize> {
        let before = into.len();
        let mut from = (&mut self.start).chain(&mut self.rest).take(limit as u64);
        let read = from.read_to_end(into);
        read.map_err(|error| self.failed(error))?;
        let new = &into[before..];
        if let Some(at) = memchr::memchr(0, new) {
            return Err(DataError::refused(&self.path, nul_at(self.offset + at as u64)));
        }
        self.offset += new.len() as u64;
        Ok(new.len())
    }

    /// The error of a failed read: the system's reason, or damage.
    fn failed(&self, source: io::Error) -> DataError {
        let path = self.path.to_path_buf();
        match self.form.packing {
            Some(packing) if source.raw_os_error().is_none() => DataError::Packed {
                path,
                packing: packing.name(),
                offset: self.rest.offset(),
                reason: reason_of(&source),
            },
            _ => DataError::Io { action: "read", path, source },
        }
    }
}

/// The kind of file inside a compressed file, if it can be read.
fn inside(packing: Packing, name: &str, start: &[u8]) -> Result<Kind, Refusal> {
    let packing = packing.name();
    let inner = kind_of(name, start)
        .map_err(|Refusal { what, remedy }| Refusal::new(format!("{packing} of {what}"), remedy))?;
    let what = match inner {
        Kind::Text { kind: TextKind::Parquet, .. } => "a parquet file",
        Kind::Text { .. } => return Ok(inner),
        Kind::Packed(twice) => twice.name(),
        Kind::Tokens => "a token file",
    };
    Err(Refusal::new(format!("{packing} of {what}"), "decompress it first"))
}

/// Most white space at the beginning that is looked past.
const BLANK_BYTES_MAX: usize = 1 << 20;

/// [`START_BYTES`], and as many again while there is nothing but white space.
fn read_start(from: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut start = Vec::with_capacity(START_BYTES);
    loop {
        let read = from.take(START_BYTES as u64).read_to_end(&mut start)?;
        let is_blank = start.trim_ascii().is_empty() && start.len() < BLANK_BYTES_MAX;
        if read < START_BYTES || !is_blank {
            return Ok(start);
        }
    }
}

/// The decoders' words, where they are plain, and what to do.
fn reason_of(error: &io::Error) -> String {
    let words = error.to_string();
    match error.kind() {
        io::ErrorKind::UnexpectedEof => "it ends too early; copy or make the file again".into(),
        _ if words.contains("too much memory") => {
            "it needs a window of more than 128 MiB; decompress it first, with `zstd -d --long=31`"
                .into()
        }
        _ => format!("{words}; copy or make the file again"),
    }
}

/// How a regular file is read as text; it is opened, and its beginning is read.
pub(crate) fn form_of(path: &Path) -> Result<Form> {
    Ok(OpenText::open(path, Rc::default())?.form)
}
