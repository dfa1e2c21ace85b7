//! The entry points of the two driver libraries, as one table: most functions differ in their
//! prefix alone.
//!
//! Results are plain integers, not the enums of a binding: a newer driver returns codes that an
//! enum of today does not have. Streams, events, modules and addresses are 64-bit integers.

use std::ffi::{c_char, c_void};

use libloading::Library;

/// A call that a driver refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) call: &'static str,
    pub(crate) code: i32,
}

/// The symbols that a library must have, in two columns; each becomes a method that returns the
/// refusal with the name of the call.
macro_rules! entry_points {
    (
        $(#[$about:meta])* $table:ident;
        $($field:ident = $($symbol:literal)|+, ($($arg:ident: $type:ty),*);)*
    ) => {
        $(#[$about])*
        pub(crate) struct $table {
            $($field: (unsafe extern "C" fn($($type),*) -> i32, &'static str),)*
        }

        impl $table {
            /// # Errors
            /// The first symbol that `library` lacks.
            ///
            /// # Safety
            /// The library's functions have these types.
            pub(crate) unsafe fn load(
                library: &Library,
                column: usize,
            ) -> Result<$table, &'static str> {
                Ok($table {
                    $($field: {
                        let symbol = [$($symbol),+][column];
                        // SAFETY: the caller's.
                        (unsafe { find(library, symbol) }?, symbol)
                    },)*
                })
            }

            pub(crate) fn symbols(column: usize) -> Vec<&'static str> {
                vec![$([$($symbol),+][column],)*]
            }

            $(
                #[allow(clippy::too_many_arguments)] // The vendor's function has them.
                /// # Safety
                /// As the vendor's documentation of the function says.
                pub(crate) unsafe fn $field(&self, $($arg: $type),*) -> Result<(), Refusal> {
                    let (function, call) = self.$field;
                    // SAFETY: the caller's.
                    match unsafe { function($($arg),*) } {
                        0 => Ok(()),
                        code => Err(Refusal { call, code }),
                    }
                }
            )*
        }
    };
}

entry_points! {
    /// The entry points that both vendors have.
    Common;
    init = "cuInit" | "hipInit", (flags: u32);
    driver_version = "cuDriverGetVersion" | "hipRuntimeGetVersion", (version: *mut i32);
    device_count = "cuDeviceGetCount" | "hipGetDeviceCount", (count: *mut i32);
    device_get = "cuDeviceGet" | "hipDeviceGet", (device: *mut i32, ordinal: i32);
    device_name = "cuDeviceGetName" | "hipDeviceGetName",
        (name: *mut c_char, bytes: i32, device: i32);
    device_bus = "cuDeviceGetPCIBusId" | "hipDeviceGetPCIBusId",
        (id: *mut c_char, bytes: i32, device: i32);
    device_memory = "cuDeviceTotalMem_v2" | "hipDeviceTotalMem", (bytes: *mut usize, device: i32);
    device_attribute = "cuDeviceGetAttribute" | "hipDeviceGetAttribute",
        (value: *mut i32, attribute: i32, device: i32);
    alloc = "cuMemAlloc_v2" | "hipMalloc", (address: *mut u64, bytes: usize);
    free = "cuMemFree_v2" | "hipFree", (address: u64);
    alloc_pinned = "cuMemHostAlloc" | "hipHostMalloc",
        (address: *mut u64, bytes: usize, flags: u32);
    free_pinned = "cuMemFreeHost" | "hipHostFree", (address: u64);
    copy_in = "cuMemcpyHtoDAsync_v2" | "hipMemcpyHtoDAsync",
        (to: u64, from: *const c_void, bytes: usize, stream: u64);
    copy_out = "cuMemcpyDtoHAsync_v2" | "hipMemcpyDtoHAsync",
        (to: *mut c_void, from: u64, bytes: usize, stream: u64);
    copy = "cuMemcpyDtoDAsync_v2" | "hipMemcpyDtoDAsync",
        (to: u64, from: u64, bytes: usize, stream: u64);
    fill = "cuMemsetD8Async" | "hipMemsetD8Async", (to: u64, byte: u8, bytes: usize, stream: u64);
    stream_create = "cuStreamCreate" | "hipStreamCreateWithFlags", (stream: *mut u64, flags: u32);
    stream_destroy = "cuStreamDestroy_v2" | "hipStreamDestroy", (stream: u64);
    stream_query = "cuStreamQuery" | "hipStreamQuery", (stream: u64);
    stream_wait = "cuStreamWaitEvent" | "hipStreamWaitEvent", (stream: u64, event: u64, flags: u32);
    event_create = "cuEventCreate" | "hipEventCreateWithFlags", (event: *mut u64, flags: u32);
    event_destroy = "cuEventDestroy_v2" | "hipEventDestroy", (event: u64);
    event_record = "cuEventRecord" | "hipEventRecord", (event: u64, stream: u64);
    event_query = "cuEventQuery" | "hipEventQuery", (event: u64);
    event_elapsed = "cuEventElapsedTime" | "hipEventElapsedTime",
        (milliseconds: *mut f32, start: u64, end: u64);
    host = "cuLaunchHostFunc" | "hipLaunchHostFunc",
        (stream: u64, function: unsafe extern "C" fn(*mut c_void), data: *mut c_void);
    module_load = "cuModuleLoadData" | "hipModuleLoadData",
        (module: *mut u64, image: *const c_void);
    module_unload = "cuModuleUnload" | "hipModuleUnload", (module: u64);
    function = "cuModuleGetFunction" | "hipModuleGetFunction",
        (function: *mut u64, module: u64, name: *const c_char);
    function_attribute = "cuFuncGetAttribute" | "hipFuncGetAttribute",
        (value: *mut i32, attribute: i32, function: u64);
    capture_begin = "cuStreamBeginCapture_v2" | "hipStreamBeginCapture", (stream: u64, mode: i32);
    capture_end = "cuStreamEndCapture" | "hipStreamEndCapture", (stream: u64, graph: *mut u64);
    graph_instantiate = "cuGraphInstantiateWithFlags" | "hipGraphInstantiateWithFlags",
        (executable: *mut u64, graph: u64, flags: u64);
    graph_launch = "cuGraphLaunch" | "hipGraphLaunch", (executable: u64, stream: u64);
    graph_destroy = "cuGraphDestroy" | "hipGraphDestroy", (graph: u64);
    executable_destroy = "cuGraphExecDestroy" | "hipGraphExecDestroy", (executable: u64);
}

entry_points! {
    /// CUDA alone.
    CudaOnly;
    context_retain = "cuDevicePrimaryCtxRetain", (context: *mut u64, device: i32);
    context_release = "cuDevicePrimaryCtxRelease_v2", (device: i32);
    context_set = "cuCtxSetCurrent", (context: u64);
    function_set = "cuFuncSetAttribute", (function: u64, attribute: i32, value: i32);
    launch = "cuLaunchKernelEx",
        (config: *const c_void, function: u64, params: *mut *mut c_void, extra: *mut *mut c_void);
    clusters_together = "cuOccupancyMaxActiveClusters",
        (clusters: *mut i32, function: u64, config: *const c_void);
    error_name = "cuGetErrorName", (code: i32, name: *mut *const c_char);
}

entry_points! {
    /// HIP alone.
    HipOnly;
    device_set = "hipSetDevice", (device: i32);
    device_properties = "hipGetDevicePropertiesR0600", (properties: *mut c_void, device: i32);
    launch = "hipModuleLaunchKernel",
        (function: u64, grid_x: u32, grid_y: u32, grid_z: u32, block_x: u32, block_y: u32,
         block_z: u32, shared: u32, stream: u64, params: *mut *mut c_void,
         extra: *mut *mut c_void);
}

/// # Safety
/// `F` is the type of the function.
unsafe fn find<F: Copy>(library: &Library, symbol: &'static str) -> Result<F, &'static str> {
    // SAFETY: the caller's.
    unsafe { library.get::<F>(symbol) }.map(|found| *found).map_err(|_| symbol)
}

/// Column of the symbols that both vendors have.
pub(crate) const CUDA: usize = 0;
pub(crate) const HIP: usize = 1;
/// Column of a vendor's own symbols.
pub(crate) const OWN: usize = 0;
