//! The elements of a tensor as a stream, wherever they come from.

use checkpoint::{ChunkData, Source};
use layout::Dtype;

use crate::Error;

/// A tensor's elements in row-major order, little-endian.
pub trait Elements {
    fn dtype(&self) -> Dtype;

    /// Number of elements.
    fn len(&self) -> usize;

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills `out` (whole elements) with those from `start` on. Asked for in rising order: each
    /// element once, or some of them not at all.
    ///
    /// # Errors
    /// Whatever hinders the source.
    fn read(&self, start: usize, out: &mut [u8]) -> Result<(), Error>;
}

/// A tensor that is to be written in another format.
pub struct Outgoing<'a> {
    pub name: String,
    pub shape: Vec<usize>,
    pub elements: Box<dyn Elements + 'a>,
}

impl Outgoing<'_> {
    /// Bytes of all elements.
    pub fn bytes(&self) -> u64 {
        (self.elements.len() * self.elements.dtype().size_bytes()) as u64
    }
}

/// Elements as the bytes of a chunk of a checkpoint.
pub struct Bytes<'a>(pub Box<dyn Elements + 'a>);

impl ChunkData for Bytes<'_> {
    fn len(&self) -> u64 {
        (self.0.len() * self.0.dtype().size_bytes()) as u64
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<(), Source> {
        // Chunks begin, and ranges of files end, at multiples of every element's size.
        let size = self.0.dtype().size_bytes();
        let (start, cut) = (offset as usize / size, offset as usize % size);
        if cut != 0 || !out.len().is_multiple_of(size) {
            let len = out.len();
            return Err(format!("{len} bytes at {offset} are no whole elements").into());
        }
        Ok(self.0.read(start, out)?)
    }
}
