//! Text that may be compressed, read as a stream.
//!
//! A stream that is cut off or damaged is an error with its place, never a shorter text.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufReader, Chain, Cursor, Read};
use std::rc::Rc;

use flate2::bufread::MultiGzDecoder;

use crate::kind::Packing;

/// Compressed data is read in steps of this size.
const BUFFER_BYTES: usize = 128 << 10;

/// The bytes of a file: those that were read to know its kind, and the rest.
type Bytes = Counted<Chain<Cursor<Vec<u8>>, File>>;

/// Counts what is read: here, and for whoever asked for it.
pub(crate) struct Counted<R> {
    inner: R,
    position: u64,
    bytes: Rc<Cell<u64>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(into)?;
        self.position += n as u64;
        self.bytes.set(self.bytes.get() + n as u64);
        Ok(n)
    }
}

/// A file's content, without compression.
pub(crate) enum Unpacked {
    Plain(Bytes),
    Gzip(Box<MultiGzDecoder<BufReader<Bytes>>>),
    Zstd(zstd::Decoder<'static, BufReader<Bytes>>),
}

impl Unpacked {
    /// The content of `file`, of which `start` was read already. What is read from the file, still
    /// compressed, is counted in `bytes`.
    pub fn new(
        packing: Option<Packing>,
        start: Vec<u8>,
        file: File,
        bytes: Rc<Cell<u64>>,
    ) -> io::Result<Self> {
        let plain = Counted { inner: Cursor::new(start).chain(file), position: 0, bytes };
        let buffered = |from| BufReader::with_capacity(BUFFER_BYTES, from);
        Ok(match packing {
            None => Self::Plain(plain),
            Some(Packing::Gzip) => Self::Gzip(Box::new(MultiGzDecoder::new(buffered(plain)))),
            Some(Packing::Zstd) => Self::Zstd(zstd::Decoder::with_buffer(buffered(plain))?),
        })
    }

    /// Where in the file, still compressed, reading has come to.
    pub fn offset(&self) -> u64 {
        let of = |from: &BufReader<Bytes>| from.get_ref().position - from.buffer().len() as u64;
        match self {
            Self::Plain(from) => from.position,
            Self::Gzip(from) => of(from.get_ref()),
            Self::Zstd(from) => of(from.get_ref()),
        }
    }
}

impl Read for Unpacked {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(from) => from.read(into),
            Self::Gzip(from) => from.read(into),
            Self::Zstd(from) => from.read(into),
        }
    }
}
