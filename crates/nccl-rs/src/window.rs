//! Device memory that the library allocates, and memory that it is told of beforehand.

use std::ffi::c_int;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, Ordering};

use crate::shared::{Lease, Need, Shared};
use crate::table::{Handle, Table, Told};
use crate::wait::{DROP_PATIENCE, Deadline, run_bounded};
use crate::{Buffer, Communicator, DataType, Error, Library, group};

/// Memory of the GPU that was current when it was allocated, fit for windows; freed when dropped,
/// for which ten seconds at most are waited. From NCCL 2.19 on.
#[derive(Debug)]
pub struct DeviceMemory {
    library: Library,
    address: u64,
    bytes: usize,
}

impl DeviceMemory {
    pub fn address(&self) -> u64 {
        self.address
    }

    /// As many as were asked for; the library may have taken more.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// All of it, as elements; what is less than one at the end is left out.
    pub fn buffer(&self, dtype: DataType) -> Buffer {
        Buffer::new(self.address, self.bytes / dtype.bytes(), dtype)
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        let (library, address) = (self.library.clone(), self.address);
        // The library waits for the device, and finds by the address which one it is.
        let free = move || {
            // SAFETY: allocated by the library; operations that use it are over, as their callers
            // have vouched.
            let told = unsafe { library.table().mem_free(address) };
            told.and_then(|told| library.check(told))
        };
        // Its error has nobody to hear it.
        let _ = run_bounded(Deadline::after(DROP_PATIENCE), free);
    }
}

impl Library {
    /// Allocates memory of the current GPU that windows can be made of.
    ///
    /// # Errors
    /// The library is older than 2.19, or has no memory.
    pub fn mem_alloc(&self, bytes: usize) -> Result<DeviceMemory, Error> {
        let mut address = 0;
        // SAFETY: `address` is written.
        let told = unsafe { self.table().mem_alloc(&raw mut address, bytes) }?;
        self.check(told)?;
        Ok(DeviceMemory { library: self.clone(), address, bytes })
    }
}

/// Memory that one communicator knows, so that it need not copy through buffers of its own. Let go
/// of when dropped, if that can be; [`Registration::release`] tells.
#[must_use]
pub struct Registration {
    shared: Arc<Shared>,
    handle: Handle,
}

/// Memory that all ranks of a communicator have registered together. Let go of when dropped, if
/// that can be; [`Window::release`] tells.
#[must_use]
pub struct Window {
    shared: Arc<Shared>,
    handle: Handle,
}

/// Alignment of a window (`NCCL_WIN_REQUIRED_ALIGNMENT`).
const WINDOW_ALIGNMENT: u64 = 4096;
/// `NCCL_WIN_COLL_SYMMETRIC`.
const SYMMETRIC: c_int = 1;

impl Window {
    /// Whether the library took it. Where GPUs cannot read each other's memory it makes no window,
    /// and operations go the usual way.
    pub fn is_taken(&self) -> bool {
        !self.handle.is_null()
    }
}

impl Communicator {
    /// Tells the library of memory that operations will use. From NCCL 2.19 on.
    ///
    /// # Errors
    /// The library is older, or refuses; the communicator is over.
    ///
    /// # Safety
    /// The memory is the GPU's, and stays until [`Registration::release`] has returned without an
    /// error.
    pub unsafe fn register(&self, buffer: Buffer) -> Result<Registration, Error> {
        let call = "ncclCommRegister";
        let bytes = sound(call, buffer)?;
        let lease = self.shared.enter(call, Need::Operation, Deadline::after(self.timeout()))?;
        let (table, mut handle) = (self.library().table(), Handle::NULL);
        let place = &raw mut handle;
        // SAFETY: the caller's; the lease keeps the communicator, and `handle` is written.
        let told = unsafe { table.register(lease.handle(), buffer.address, bytes, place) }?;
        self.library().check(told)?;
        Ok(Registration { shared: Arc::clone(&self.shared), handle })
    }

    /// Makes a symmetric window of memory of [`Library::mem_alloc`]. All ranks call it, in the
    /// same order as everything else. From NCCL 2.27 on.
    ///
    /// # Errors
    /// The library lacks it, or refuses; an address that is not a multiple of 4096; the
    /// communicator has failed or is over; the deadline.
    ///
    /// # Safety
    /// The memory is the GPU's, and stays until [`Window::release`] has returned without an error
    /// on all ranks, and for as long as the process where making the window failed.
    pub unsafe fn window(&self, buffer: Buffer) -> Result<Window, Error> {
        let (call, deadline) = ("ncclCommWindowRegister", Deadline::after(self.timeout()));
        group::refuse(self.library(), call)?;
        let bytes = sound(call, buffer)?;
        if !buffer.address.is_multiple_of(WINDOW_ALIGNMENT) {
            let what = format!("{:#x} is not a multiple of {WINDOW_ALIGNMENT}", buffer.address);
            return Err(Error::Argument { call, what });
        }
        let (library, table) = (self.library(), self.library().table());
        table.require_function(call)?;
        let lease = self.shared.enter(call, Need::Operation, deadline)?;
        // Written in the background; left to the library where it does not say that it is done.
        let empty = AtomicPtr::<std::ffi::c_void>::new(std::ptr::null_mut());
        let place = Box::into_raw(Box::new(empty));
        // SAFETY: just made. `Handle` is a pointer and nothing else.
        let to = unsafe { (*place).as_ptr().cast::<Handle>() };
        let (comm, address) = (lease.handle(), buffer.address);
        // SAFETY: the caller's; the lease keeps the communicator.
        let told = unsafe { table.window_register(comm, address, bytes, to, SYMMETRIC) }?;
        library.check_begun(told)?;
        lease.settle(call, deadline, "not all ranks have come")?;
        // SAFETY: made above, and the library is done with it.
        let handle = Handle(unsafe { Box::from_raw(place) }.load(Ordering::Acquire));
        Ok(Window { shared: Arc::clone(&self.shared), handle })
    }
}

fn sound(call: &'static str, buffer: Buffer) -> Result<usize, Error> {
    crate::check::one(call, "to register", buffer)?;
    match buffer.bytes().and_then(|bytes| usize::try_from(bytes).ok()) {
        Some(bytes @ 1..) => Ok(bytes),
        _ => Err(Error::Argument { call, what: "an empty buffer".to_owned() }),
    }
}

impl Registration {
    /// Lets go of the memory, which may be freed then.
    ///
    /// # Errors
    /// The library does not, or not within the timeout (ten seconds at most): it may still use the
    /// memory, which has to stay for as long as the process.
    pub fn release(mut self) -> Result<(), Error> {
        self.let_go()
    }

    fn let_go(&mut self) -> Result<(), Error> {
        let told =
            let_go("ncclCommDeregister", &self.shared, &mut self.handle, |table, comm, it| {
                // SAFETY: the lease keeps the communicator, whose the registration is.
                unsafe { table.deregister(comm, it) }
            });
        told.map(drop)
    }
}

impl Window {
    /// Lets go of the memory, which may be freed then, where the other ranks have done the same.
    ///
    /// # Errors
    /// As [`Registration::release`].
    pub fn release(mut self) -> Result<(), Error> {
        self.let_go()
    }

    fn let_go(&mut self) -> Result<(), Error> {
        let call = "ncclCommWindowDeregister";
        let told = let_go(call, &self.shared, &mut self.handle, |table, comm, it| {
            // SAFETY: the lease keeps the communicator, whose the window is.
            unsafe { table.window_deregister(comm, it) }
        });
        match told? {
            Some((lease, deadline)) => lease.settle(call, deadline, "the window was in use"),
            None => Ok(()),
        }
    }
}

/// Has the library forget what `handle` is, once; `None` where nothing is to be waited for.
///
/// # Errors
/// It may still use the memory.
fn let_go(
    call: &'static str,
    shared: &Arc<Shared>,
    handle: &mut Handle,
    forget: impl FnOnce(&Table, Handle, Handle) -> Result<Told, Error>,
) -> Result<Option<(Lease, Deadline)>, Error> {
    let (handle, deadline) = (std::mem::replace(handle, Handle::NULL), shared.patience());
    if handle.is_null() {
        return Ok(None);
    }
    let lease = match shared.enter(call, Need::Manage, deadline) {
        Ok(lease) => lease,
        // A communicator that is freed has forgotten it.
        Err(Error::Ended { .. }) => {
            return shared.wait_until_freed(call, deadline).map(|()| None);
        }
        Err(error) => return Err(shared.lose_patience(error)),
    };
    let library = &shared.library;
    library.check_begun(forget(library.table(), lease.handle(), handle)?)?;
    Ok(Some((lease, deadline)))
}

impl Drop for Registration {
    fn drop(&mut self) {
        // Its error has nobody to hear it.
        let _ = self.let_go();
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // Its error has nobody to hear it.
        let _ = self.let_go();
    }
}
