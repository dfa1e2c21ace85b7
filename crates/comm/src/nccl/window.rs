//! Memory of windows: what the library knows beforehand it need not copy through buffers of its
//! own.

use device::{Buffer, DType, Placement, Stream, Tensor};
use nccl_rs::{Communicator, DataType, DeviceMemory, Registration};

use super::calls::with_device;
use crate::Result;

/// How the library knows the memory of a window, from the best on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WindowPath {
    /// A window of the library, which all members have made together (from 2.27 on).
    Symmetric,
    /// Registered by each member (from 2.19 on).
    Registered,
    /// Memory as any other.
    Plain,
}

impl WindowPath {
    pub const fn name(self) -> &'static str {
        match self {
            WindowPath::Symmetric => "symmetric",
            WindowPath::Registered => "registered",
            WindowPath::Plain => "plain",
        }
    }
}

/// The library's knowledge of a window's memory.
enum Known {
    Symmetric(nccl_rs::Window),
    Registered(Registration),
    No,
}

/// The library forgets the memory before it frees it.
struct Owned(Option<(Known, DeviceMemory)>);

impl Drop for Owned {
    fn drop(&mut self) {
        let Some((known, memory)) = self.0.take() else { return };
        let released = match known {
            Known::Symmetric(window) => window.release(),
            Known::Registered(registration) => registration.release(),
            Known::No => Ok(()),
        };
        if released.is_err() {
            // The library may still use it, in an abort that lasts.
            std::mem::forget(memory);
        }
    }
}

type Told<T> = std::result::Result<T, nccl_rs::Error>;

/// Zeroed memory of `bytes` bytes on the device of `stream`. Collective; nothing else of the group
/// is under way.
///
/// # Errors
/// The device's; inside are those of the library.
pub(super) fn alloc(
    comm: &Communicator,
    stream: &Stream,
    bytes: usize,
) -> Result<Told<(Buffer, WindowPath)>> {
    let device = stream.device();
    if bytes == 0 || !comm.library().has("ncclMemAlloc") {
        return Ok(Ok((device.alloc(bytes, &Placement::Private)?, WindowPath::Plain)));
    }
    let made = with_device(stream, |_| {
        let memory = comm.library().mem_alloc(bytes)?;
        match know(comm, memory.buffer(DataType::U8)) {
            Ok(known) => Ok((known, memory)),
            Err(error) => {
                // It may still be registered in the background; the job is given up.
                std::mem::forget(memory);
                Err(error)
            }
        }
    })?;
    let (known, memory) = match made {
        Ok(made) => made,
        Err(error) => return Ok(Err(error)),
    };
    let path = match &known {
        Known::Symmetric(_) => WindowPath::Symmetric,
        Known::Registered(_) => WindowPath::Registered,
        Known::No => WindowPath::Plain,
    };
    let address = memory.address();
    let owner = Box::new(Owned(Some((known, memory))));
    // SAFETY: the library has just allocated it, on this device, and frees it with its owner; only
    // the buffer has it.
    let buffer = unsafe { device.adopt_foreign(address, bytes, owner) }?;
    stream.fill(&Tensor::new(buffer.clone(), 0, &[bytes], DType::U8)?, 0)?;
    stream.synchronize()?;
    Ok(Ok((buffer, path)))
}

/// Tells the library of the memory, in the best way that it has: the same on all members, which
/// have the same version with the same functions (`choice.rs`).
fn know(comm: &Communicator, memory: nccl_rs::Buffer) -> Told<Known> {
    let library = comm.library();
    if library.has("ncclCommWindowRegister") {
        // SAFETY: `Owned` lets go of the window before it frees the memory; after a failure the
        // memory stays.
        let window = unsafe { comm.window(memory) }?;
        if window.is_taken() {
            return Ok(Known::Symmetric(window));
        }
    }
    if library.has("ncclCommRegister") {
        // SAFETY: `Owned` lets go of the registration before it frees the memory.
        return Ok(Known::Registered(unsafe { comm.register(memory) }?));
    }
    Ok(Known::No)
}
