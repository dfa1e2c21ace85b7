//! The functions of the library, found by name when it is opened.
//!
//! Functions that every version from the baseline on has are required; later ones are found if they
//! are there, and a call of one that is not is an error that says which version has it. Results are
//! plain integers, because a newer library returns codes that an enum of today does not have. The
//! types are those of nccl.h; rccl.h has the same.

use std::ffi::{c_char, c_int, c_void};

use libloading::Library;

use crate::config::RawConfig;
use crate::{Error, Vendor, Version};

/// `ncclUniqueId`, which is passed by value.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct RawUniqueId(pub(crate) [u8; 128]);

const _: () = assert!(size_of::<RawUniqueId>() == 128 && align_of::<RawUniqueId>() == 1);

/// `ncclComm_t`, `ncclWindow_t` and the handle of a registration: pointers that only the library
/// follows.
#[repr(transparent)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Handle(pub(crate) *mut c_void);

impl Handle {
    pub(crate) const NULL: Handle = Handle(std::ptr::null_mut());

    pub(crate) fn is_null(self) -> bool {
        self.0.is_null()
    }
}

// SAFETY: nothing here follows the pointer, and the library lets any thread use a communicator,
// one at a time; `shared.rs` sees to that.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

/// `ncclSimInfo_t` of 2.22.
#[repr(C)]
pub(crate) struct RawSimulation {
    pub(crate) size: usize,
    pub(crate) magic: u32,
    pub(crate) version: u32,
    pub(crate) estimated_us: f32,
}

const _: () = assert!(size_of::<RawSimulation>() == 24);

/// A call and its result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(crate) struct Told {
    pub(crate) call: &'static str,
    pub(crate) code: c_int,
}

macro_rules! functions {
    (
        needed { $($need:ident = $need_symbol:literal ($($na:ident: $nt:ty),*);)* }
        later {
            $($late:ident = $late_symbol:literal $(or $old:literal)?
                since ($x:literal, $y:literal, $z:literal) ($($la:ident: $lt:ty),*);)*
        }
    ) => {
        pub(crate) struct Table {
            vendor: Vendor,
            version: Version,
            $($need: unsafe extern "C" fn($($nt),*) -> c_int,)*
            $($late: Option<unsafe extern "C" fn($($lt),*) -> c_int>,)*
        }

        impl Table {
            /// # Errors
            /// The first required symbol that `library` lacks.
            ///
            /// # Safety
            /// The library's functions have these types.
            pub(crate) unsafe fn load(
                library: &Library,
                vendor: Vendor,
                version: Version,
            ) -> Result<Table, &'static str> {
                // SAFETY: the caller's, here and in the next closure.
                $(let $need = unsafe { find(library, $need_symbol) }.ok_or($need_symbol)?;)*
                $(
                    // SAFETY: as above.
                    let $late = unsafe { find(library, $late_symbol) };
                    $(
                        // SAFETY: as above; the same function under the name that it had before.
                        let $late = $late.or_else(|| unsafe { find(library, $old) });
                    )?
                )*
                Ok(Table { vendor, version, $($need,)* $($late,)* })
            }

            $(
                #[allow(clippy::too_many_arguments)] // The library's function has them.
                /// # Safety
                /// As the library's documentation of the function says.
                pub(crate) unsafe fn $need(&self, $($na: $nt),*) -> Told {
                    // SAFETY: the caller's.
                    Told { call: $need_symbol, code: unsafe { (self.$need)($($na),*) } }
                }
            )*
            $(
                #[allow(clippy::too_many_arguments)] // The library's function has them.
                /// # Errors
                /// The library has no such function.
                ///
                /// # Safety
                /// As the library's documentation of the function says.
                pub(crate) unsafe fn $late(&self, $($la: $lt),*) -> Result<Told, Error> {
                    let Some(function) = self.$late else {
                        let since = Version::new($x, $y, $z);
                        return Err(self.absent($late_symbol, since));
                    };
                    // SAFETY: the caller's.
                    Ok(Told { call: $late_symbol, code: unsafe { function($($la),*) } })
                }
            )*
        }

        /// Functions that not every version has, each with the first NCCL that does.
        pub const LATER: &[(&str, Version)] =
            &[$(($late_symbol, Version::new($x, $y, $z)),)*];

        impl Table {
            /// Whether the library has a function of [`LATER`].
            pub(crate) fn has(&self, symbol: &str) -> bool {
                match symbol {
                    $($late_symbol => self.$late.is_some(),)*
                    _ => false,
                }
            }
        }
    };
}

impl Table {
    fn absent(&self, what: &'static str, since: Version) -> Error {
        Error::Absent { what, vendor: self.vendor, since, version: self.version }
    }

    /// # Errors
    /// The library is older than `since`.
    pub(crate) fn require(&self, what: &'static str, since: Version) -> Result<(), Error> {
        match self.version >= since {
            true => Ok(()),
            false => Err(self.absent(what, since)),
        }
    }

    /// # Errors
    /// The library lacks this function of [`LATER`], however new it says that it is.
    pub(crate) fn require_function(&self, symbol: &'static str) -> Result<(), Error> {
        let known = LATER.iter().find(|(later, _)| *later == symbol);
        let since = known.map_or(Version::BASELINE, |(_, since)| *since);
        match self.has(symbol) {
            true => Ok(()),
            false => Err(self.absent(symbol, since)),
        }
    }
}

functions! {
    needed {
        get_unique_id = "ncclGetUniqueId" (id: *mut RawUniqueId);
        init_rank = "ncclCommInitRankConfig"
            (comm: *mut Handle, ranks: c_int, id: RawUniqueId, rank: c_int, config: *mut RawConfig);
        split = "ncclCommSplit"
            (comm: Handle, color: c_int, key: c_int, child: *mut Handle, config: *mut RawConfig);
        finalize = "ncclCommFinalize" (comm: Handle);
        destroy = "ncclCommDestroy" (comm: Handle);
        abort = "ncclCommAbort" (comm: Handle);
        async_error = "ncclCommGetAsyncError" (comm: Handle, code: *mut c_int);
        count = "ncclCommCount" (comm: Handle, ranks: *mut c_int);
        user_rank = "ncclCommUserRank" (comm: Handle, rank: *mut c_int);
        pre_mul_sum = "ncclRedOpCreatePreMulSum"
            (op: *mut c_int, scalar: *const c_void, dtype: c_int, residence: c_int, comm: Handle);
        destroy_op = "ncclRedOpDestroy" (op: c_int, comm: Handle);
        group_start = "ncclGroupStart" ();
        group_end = "ncclGroupEnd" ();
        all_reduce = "ncclAllReduce"
            (from: u64, to: u64, count: usize, dtype: c_int, op: c_int, comm: Handle, stream: u64);
        reduce = "ncclReduce"
            (from: u64, to: u64, count: usize, dtype: c_int, op: c_int, root: c_int, comm: Handle,
             stream: u64);
        broadcast = "ncclBroadcast"
            (from: u64, to: u64, count: usize, dtype: c_int, root: c_int, comm: Handle,
             stream: u64);
        reduce_scatter = "ncclReduceScatter"
            (from: u64, to: u64, count: usize, dtype: c_int, op: c_int, comm: Handle, stream: u64);
        all_gather = "ncclAllGather"
            (from: u64, to: u64, count: usize, dtype: c_int, comm: Handle, stream: u64);
        send = "ncclSend"
            (from: u64, count: usize, dtype: c_int, peer: c_int, comm: Handle, stream: u64);
        recv = "ncclRecv"
            (to: u64, count: usize, dtype: c_int, peer: c_int, comm: Handle, stream: u64);
    }
    later {
        register = "ncclCommRegister" since (2, 19, 0)
            (comm: Handle, address: u64, bytes: usize, handle: *mut Handle);
        deregister = "ncclCommDeregister" since (2, 19, 0) (comm: Handle, handle: Handle);
        mem_alloc = "ncclMemAlloc" since (2, 19, 0) (address: *mut u64, bytes: usize);
        mem_free = "ncclMemFree" since (2, 19, 0) (address: u64);
        group_simulate_end = "ncclGroupSimulateEnd" since (2, 22, 0)
            (simulation: *mut RawSimulation);
        shrink = "ncclCommShrink" since (2, 27, 0)
            (comm: Handle, exclude: *mut c_int, excluded: c_int, child: *mut Handle,
             config: *mut RawConfig, flags: c_int);
        window_register = "ncclCommWindowRegister" since (2, 27, 0)
            (comm: Handle, address: u64, bytes: usize, window: *mut Handle, flags: c_int);
        window_deregister = "ncclCommWindowDeregister" since (2, 27, 0)
            (comm: Handle, window: Handle);
        // RCCL had it long before, spelled otherwise.
        all_to_all = "ncclAlltoAll" or "ncclAllToAll" since (2, 28, 3)
            (from: u64, to: u64, count: usize, dtype: c_int, comm: Handle, stream: u64);
        gather = "ncclGather" since (2, 28, 3)
            (from: u64, to: u64, count: usize, dtype: c_int, root: c_int, comm: Handle,
             stream: u64);
        scatter = "ncclScatter" since (2, 28, 3)
            (from: u64, to: u64, count: usize, dtype: c_int, root: c_int, comm: Handle,
             stream: u64);
        revoke = "ncclCommRevoke" since (2, 28, 7) (comm: Handle, flags: c_int);
    }
}

/// The two functions that return a text and no code.
pub(crate) struct Texts {
    error: unsafe extern "C" fn(c_int) -> *const c_char,
    last: unsafe extern "C" fn(Handle) -> *const c_char,
}

impl Texts {
    /// # Errors
    /// The first symbol that `library` lacks.
    ///
    /// # Safety
    /// The library's functions have these types.
    pub(crate) unsafe fn load(library: &Library) -> Result<Texts, &'static str> {
        let (error, last) = ("ncclGetErrorString", "ncclGetLastError");
        Ok(Texts {
            // SAFETY: the caller's.
            error: unsafe { find(library, error) }.ok_or(error)?,
            // SAFETY: the caller's.
            last: unsafe { find(library, last) }.ok_or(last)?,
        })
    }

    pub(crate) fn error(&self, code: c_int) -> String {
        // SAFETY: takes any code and returns a constant string.
        text(unsafe { (self.error)(code) })
    }

    /// The last error of the process, in more words than its code has.
    pub(crate) fn last(&self) -> String {
        // SAFETY: the library's documentation lets the communicator be null, which it ignores; it
        // returns a buffer of its own that is always terminated.
        text(unsafe { (self.last)(Handle::NULL) })
    }
}

fn text(text: *const c_char) -> String {
    match text.is_null() {
        true => String::new(),
        // SAFETY: not null, and a string of the library.
        false => unsafe { std::ffi::CStr::from_ptr(text) }.to_string_lossy().into_owned(),
    }
}

/// # Safety
/// `F` is the type of the function.
unsafe fn find<F: Copy>(library: &Library, symbol: &str) -> Option<F> {
    // SAFETY: the caller's.
    unsafe { library.get::<F>(symbol) }.map(|found| *found).ok()
}

/// The version by `ncclGetVersion`, before anything else is asked for.
///
/// # Errors
/// The library has no such function.
///
/// # Safety
/// It is NCCL or RCCL.
pub(crate) unsafe fn version_of(library: &Library) -> Result<Version, &'static str> {
    type GetVersion = unsafe extern "C" fn(*mut c_int) -> c_int;
    let symbol = "ncclGetVersion";
    // SAFETY: the type is the header's.
    let function = unsafe { find::<GetVersion>(library, symbol) }.ok_or(symbol)?;
    let mut code = 0;
    // SAFETY: `code` is written.
    match unsafe { function(&raw mut code) } {
        0 => Ok(Version::from_code(code.unsigned_abs())),
        _ => Err(symbol),
    }
}
