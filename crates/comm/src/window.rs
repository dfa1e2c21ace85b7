use device::{Buffer, DType, DeviceError, Tensor};

use crate::CommError;

/// Device memory of one size on every rank, made by [`crate::Communicator::window`]. Between
/// processes of one host each rank also maps the others' memory, so that a collective reads it
/// where it lies. Clones share the memory; the last one frees this rank's part.
#[derive(Clone)]
pub struct Window {
    buffers: std::sync::Arc<[Option<Buffer>]>,
    rank: usize,
    bytes: usize,
}

impl Window {
    /// `buffers[rank]` must be there.
    pub(crate) fn new(buffers: Vec<Option<Buffer>>, rank: usize, bytes: usize) -> Window {
        Window { buffers: buffers.into(), rank, bytes }
    }

    /// Size of every rank's part in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// This rank's memory.
    pub fn buffer(&self) -> &Buffer {
        self.buffers[self.rank].as_ref().expect("a window holds the memory of its own rank")
    }

    /// A view of this rank's memory from element `offset` on.
    ///
    /// # Errors
    /// The view does not lie inside the window; more than four axes.
    pub fn tensor(
        &self,
        offset: usize,
        shape: &[usize],
        dtype: DType,
    ) -> Result<Tensor, DeviceError> {
        Tensor::new(self.buffer().clone(), offset, shape, dtype)
    }

    /// A flat view of the memory of `rank`, mapped here.
    pub(crate) fn of_rank(
        &self,
        rank: usize,
        offset: usize,
        len: usize,
        dtype: DType,
    ) -> Result<Tensor, CommError> {
        let buffer = self.buffers.get(rank).and_then(Option::as_ref);
        let buffer = buffer.ok_or(CommError::ForeignWindow)?;
        Ok(Tensor::new(buffer.clone(), offset, &[len], dtype)?)
    }

    /// Whether a group of `world` ranks made it for `rank`.
    pub(crate) fn check(&self, rank: usize, world: usize) -> Result<(), CommError> {
        match self.rank == rank && self.buffers.len() == world {
            true => Ok(()),
            false => Err(CommError::ForeignWindow),
        }
    }
}

impl std::fmt::Debug for Window {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "window of {} bytes at rank {}", self.bytes, self.rank)
    }
}
