//! Pinned host memory that takes part in copies nobody waits for, until it is touched again.

use bytemuck::Pod;
use device::{Device, DeviceError, Event, Pinned, Stream, Tensor};

/// Page-locked bytes, and the copy that they may be in.
pub(crate) struct Staged {
    pinned: Pinned,
    /// After the last copy from or to them.
    busy: Option<Event>,
}

impl Staged {
    pub(crate) fn new(device: &Device, bytes: usize) -> Result<Staged, DeviceError> {
        Ok(Staged { pinned: device.pinned(bytes)?, busy: None })
    }

    pub(crate) fn bytes(&self) -> usize {
        self.pinned.len()
    }

    /// Waits for the last copy; the contents.
    ///
    /// # Errors
    /// An error of the work before it.
    pub(crate) fn read<T: Pod>(&mut self) -> Result<&[T], DeviceError> {
        self.wait()?;
        // SAFETY: no copy is under way, and none begins while `self` is borrowed.
        Ok(bytemuck::cast_slice(unsafe { self.pinned.bytes() }))
    }

    /// Waits for the last copy; the contents, to be written.
    ///
    /// # Errors
    /// As [`Staged::read`].
    pub(crate) fn write<T: Pod>(&mut self) -> Result<&mut [T], DeviceError> {
        self.wait()?;
        // SAFETY: as in `read`.
        Ok(bytemuck::cast_slice_mut(unsafe { self.pinned.bytes_mut() }))
    }

    /// Enqueues a copy of all bytes to `to`.
    ///
    /// # Errors
    /// Another number of bytes; the device refuses.
    pub(crate) fn upload(&mut self, stream: &Stream, to: &Tensor) -> Result<(), DeviceError> {
        self.wait()?;
        // SAFETY: whoever touches the bytes waits for the event, as does `drop`.
        unsafe { stream.copy_in_async(to, &self.pinned) }?;
        self.mark(stream)
    }

    /// Enqueues a copy of `from` to all bytes.
    ///
    /// # Errors
    /// As [`Staged::upload`].
    pub(crate) fn download(&mut self, stream: &Stream, from: &Tensor) -> Result<(), DeviceError> {
        self.wait()?;
        // SAFETY: as in `upload`.
        unsafe { stream.copy_out_async(&self.pinned, from) }?;
        self.mark(stream)
    }

    /// Remembers the copy that was just enqueued; without an event, waits for it.
    fn mark(&mut self, stream: &Stream) -> Result<(), DeviceError> {
        match stream.record() {
            Ok(event) => {
                self.busy = Some(event);
                Ok(())
            }
            Err(error) => stream.synchronize().and(Err(error)),
        }
    }

    fn wait(&mut self) -> Result<(), DeviceError> {
        self.busy.take().map_or(Ok(()), |event| event.wait())
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // A device that fails here has ended its copies.
        let _ = self.wait();
    }
}
