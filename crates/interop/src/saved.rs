//! The elements of a state of one of Muster's checkpoints.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use checkpoint::{Checkpoint, TensorKey, Wanted};
use layout::Dtype;
use layout::region::{elements, interval};

use crate::{Elements, Error};

/// Bytes that are read and verified at once.
const WINDOW_BYTES: usize = 32 << 20;

/// A state, read from its first element to its last, verified as every checkpoint is.
pub(crate) struct Saved<'a> {
    checkpoint: &'a Checkpoint,
    key: TensorKey,
    dtype: Dtype,
    shape: &'a [usize],
    window: RefCell<Window>,
}

/// Elements that have been read.
#[derive(Default)]
struct Window {
    elements: Range<usize>,
    bytes: Vec<u8>,
}

impl<'a> Saved<'a> {
    /// # Errors
    /// The checkpoint has no such state.
    pub fn new(checkpoint: &'a Checkpoint, key: &TensorKey) -> Result<Saved<'a>, Error> {
        let tensor = checkpoint.tensor(key)?;
        let (dtype, shape) = (tensor.dtype, &tensor.shape[..]);
        Ok(Saved { checkpoint, key: key.clone(), dtype, shape, window: RefCell::default() })
    }

    fn fill(&self, window: &mut Window, start: usize) -> Result<(), Error> {
        let size = self.dtype.size_bytes();
        let end = self.len().min(start + WINDOW_BYTES / size);
        window.elements = 0..0;
        window.bytes.resize((end - start) * size, 0);
        let boxes = interval(self.shape, start, end);
        let mut firsts = Vec::with_capacity(boxes.len());
        let mut wanted = Vec::with_capacity(boxes.len());
        let mut first = 0;
        for region in boxes {
            firsts.push(first);
            first += region.elements().unwrap_or(0);
            wanted.push(Wanted { key: self.key.clone(), dtype: self.dtype, region });
        }
        let bytes = Mutex::new(&mut window.bytes);
        self.checkpoint.read_boxes::<checkpoint::Error>(&wanted, 1, |number, element, part| {
            let at = (firsts[number] + element) * size;
            bytes.lock().unwrap_or_else(PoisonError::into_inner)[at..at + part.len()]
                .copy_from_slice(part);
            Ok(())
        })?;
        window.elements = start..end;
        Ok(())
    }
}

impl Elements for Saved<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn len(&self) -> usize {
        elements(self.shape).unwrap_or(0)
    }

    fn read(&self, start: usize, out: &mut [u8]) -> Result<(), Error> {
        let size = self.dtype.size_bytes();
        let mut window = self.window.borrow_mut();
        let (mut at, mut rest) = (start, out);
        while !rest.is_empty() {
            if !window.elements.contains(&at) {
                self.fill(&mut window, at)?;
            }
            let bytes = rest.len().min((window.elements.end - at) * size);
            let (now, after) = rest.split_at_mut(bytes);
            let from = (at - window.elements.start) * size;
            now.copy_from_slice(&window.bytes[from..from + bytes]);
            (at, rest) = (at + bytes / size, after);
        }
        if at == self.len() {
            *window = Window::default();
        }
        Ok(())
    }
}
