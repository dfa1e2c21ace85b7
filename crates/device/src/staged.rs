//! Pinned host memory that takes part in copies nobody waits for, until it is touched again.
//!
//! ```text
//! host ──fill──▶ buffer 0 ──copy──▶ device        what is filled and what is on its way are
//! host ──fill──▶ buffer 1 ──copy──▶ device        never the same buffer
//! ```

use bytemuck::Pod;

use crate::{Device, DeviceError, Event, Pinned, Stream, Tensor};

/// Page-locked bytes, and the copy that they may be in.
pub struct Staged {
    pinned: Pinned,
    /// After the last copy from or to them.
    busy: Option<Busy>,
}

/// The way to wait for a copy that may be under way.
enum Busy {
    Until(Event),
    /// Without an event, everything on its stream.
    On(Stream),
}

impl Staged {
    /// # Errors
    /// As [`Device::pinned`].
    pub fn new(device: &Device, bytes: usize) -> Result<Staged, DeviceError> {
        Ok(Staged { pinned: device.pinned(bytes)?, busy: None })
    }

    pub fn bytes(&self) -> usize {
        self.pinned.len()
    }

    /// Waits for the last copy; the contents, which are whole elements of `T`.
    ///
    /// # Errors
    /// An error of the work before it.
    pub fn read<T: Pod>(&mut self) -> Result<&[T], DeviceError> {
        self.wait()?;
        // SAFETY: no copy is under way, and none begins while `self` is borrowed.
        Ok(bytemuck::cast_slice(unsafe { self.pinned.bytes() }))
    }

    /// Waits for the last copy; the contents, to be written.
    ///
    /// # Errors
    /// As [`Staged::read`].
    pub fn write<T: Pod>(&mut self) -> Result<&mut [T], DeviceError> {
        self.wait()?;
        // SAFETY: as in `read`.
        Ok(bytemuck::cast_slice_mut(unsafe { self.pinned.bytes_mut() }))
    }

    /// Enqueues a copy of the first bytes to all of `to`.
    ///
    /// # Errors
    /// More bytes than these; the device refuses.
    pub fn upload(&mut self, stream: &Stream, to: &Tensor) -> Result<(), DeviceError> {
        self.wait()?;
        // SAFETY: whoever touches the bytes waits for the event, as does `drop`.
        unsafe { stream.copy_in_async(to, &self.pinned) }?;
        self.mark(stream)
    }

    /// Enqueues a copy of all of `from` to the first bytes.
    ///
    /// # Errors
    /// As [`Staged::upload`].
    pub fn download(&mut self, stream: &Stream, from: &Tensor) -> Result<(), DeviceError> {
        self.wait()?;
        // SAFETY: as in `upload`.
        unsafe { stream.copy_out_async(&self.pinned, from) }?;
        self.mark(stream)
    }

    /// Remembers the copy that was just enqueued.
    fn mark(&mut self, stream: &Stream) -> Result<(), DeviceError> {
        let recorded = stream.record();
        let (busy, recorded) = match recorded {
            Ok(event) => (Busy::Until(event), Ok(())),
            Err(error) => (Busy::On(stream.clone()), Err(error)),
        };
        self.busy = Some(busy);
        recorded
    }

    /// A buffer whose copy cannot be waited for stays busy: the copy may still be under way.
    fn wait(&mut self) -> Result<(), DeviceError> {
        match &self.busy {
            None => return Ok(()),
            Some(Busy::Until(event)) => event.wait()?,
            Some(Busy::On(stream)) => stream.synchronize()?,
        }
        self.busy = None;
        Ok(())
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // A device that fails here has ended its copies.
        let _ = self.wait();
    }
}

/// Two pinned buffers through which copies of any length go in parts: while the device copies one
/// part, the host fills or empties the other buffer.
pub struct BounceBuffers {
    buffers: [Staged; 2],
}

impl BounceBuffers {
    /// For parts of up to `bytes` bytes.
    ///
    /// # Errors
    /// As [`Device::pinned`].
    pub fn new(device: &Device, bytes: usize) -> Result<BounceBuffers, DeviceError> {
        let buffers = [Staged::new(device, bytes)?, Staged::new(device, bytes)?];
        Ok(BounceBuffers { buffers })
    }

    /// Bytes of both.
    pub fn bytes(&self) -> usize {
        self.buffers.iter().map(Staged::bytes).sum()
    }

    /// Copies what `fill` writes for a part to `to` of that part, for each of `0..parts` in order.
    /// The last copies may be on their way when this returns.
    ///
    /// # Errors
    /// A part that is larger than a buffer; what `to` or `fill` returned; the device's.
    pub fn upload<E: From<DeviceError>>(
        &mut self,
        stream: &Stream,
        parts: usize,
        to: impl Fn(usize) -> Result<Tensor, DeviceError>,
        mut fill: impl FnMut(usize, &mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        for part in 0..parts {
            let (to, buffer) = (to(part)?, &mut self.buffers[part % 2]);
            check_room(buffer, &to)?;
            fill(part, &mut buffer.write()?[..to.bytes()])?;
            buffer.upload(stream, &to)?;
        }
        Ok(())
    }

    /// Gives `take` the bytes of `from` of each part of `0..parts`, in order; returns when that is
    /// done.
    ///
    /// # Errors
    /// A part that is larger than a buffer; what `from` or `take` returned; the device's.
    pub fn download<E: From<DeviceError>>(
        &mut self,
        stream: &Stream,
        parts: usize,
        from: impl Fn(usize) -> Result<Tensor, DeviceError>,
        mut take: impl FnMut(usize, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let begin = |buffers: &mut [Staged; 2], part: usize| {
            let (from, buffer) = (from(part)?, &mut buffers[part % 2]);
            check_room(buffer, &from)?;
            buffer.download(stream, &from)
        };
        for part in 0..parts.min(2) {
            begin(&mut self.buffers, part)?;
        }
        for part in 0..parts {
            let bytes = from(part)?.bytes();
            take(part, &self.buffers[part % 2].read()?[..bytes])?;
            if part + 2 < parts {
                begin(&mut self.buffers, part + 2)?;
            }
        }
        Ok(())
    }
}

fn check_room(buffer: &Staged, tensor: &Tensor) -> Result<(), DeviceError> {
    let (got, expected) = (tensor.bytes(), buffer.bytes());
    if got <= expected { Ok(()) } else { Err(DeviceError::Elements { got, expected }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_any_length_go_up_and_come_down() {
        for device in [Device::cpu(1).unwrap(), Device::guarded(1).unwrap()] {
            let stream = device.new_stream().unwrap();
            let values: Vec<u32> = (0..100).map(|i| i * 0x0101_0101).collect();
            let there = device.zeros(&[100], crate::DType::U32).unwrap();
            let mut bounce = BounceBuffers::new(&device, 80).unwrap();
            assert_eq!(bounce.bytes(), 160);
            let ends = [0, 20, 21, 21, 40, 60, 79, 99, 100];
            let part = |part: usize| ends[part]..ends[part + 1];
            let parts = ends.len() - 1;
            let view = |index: usize| there.flat(part(index));
            let fill = |index: usize, bytes: &mut [u8]| {
                bytes.copy_from_slice(bytemuck::cast_slice(&values[part(index)]));
                Ok::<(), DeviceError>(())
            };
            bounce.upload(&stream, parts, view, fill).unwrap();
            assert_eq!(stream.to_vec::<u32>(&there).unwrap(), values, "{device:?}");
            let mut back = vec![0; 100];
            let take = |index: usize, bytes: &[u8]| {
                bytemuck::cast_slice_mut::<u32, u8>(&mut back[part(index)]).copy_from_slice(bytes);
                Ok::<(), DeviceError>(())
            };
            bounce.download(&stream, parts, view, take).unwrap();
            assert_eq!(back, values, "{device:?}");
            let large = |_| there.flat(0..21);
            let error = bounce.upload::<DeviceError>(&stream, 1, large, |_, _| Ok(())).unwrap_err();
            assert!(matches!(error, DeviceError::Elements { got: 84, expected: 80 }), "{error}");
            assert!(bounce.download::<DeviceError>(&stream, 1, large, |_, _| Ok(())).is_err());
        }
    }
}
