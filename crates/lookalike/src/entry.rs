//! The entry points under both vendors' names.

use std::ffi::{CStr, c_char, c_void};
use std::sync::Arc;

use device::{Arch, Grid};

use crate::leaks;
use crate::op::Work;
use crate::world::{Api, ApiCall, EventState, Needs, StreamState, Told, code, enter};

/// One function under each of the names, with the same arguments.
macro_rules! both {
    ($(
        $needs:ident $cuda:ident / $hip:ident ($($arg:ident: $type:ty),*) |$call:ident| $body:expr;
    )*) => {
        $(
            only!(Cuda $needs $cuda ($($arg: $type),*) |$call| $body);
            only!(Hip $needs $hip ($($arg: $type),*) |$call| $body);
        )*
    };
}

macro_rules! only {
    ($api:ident $needs:ident $name:ident ($($arg:ident: $type:ty),*) |$call:ident| $body:expr) => {
        /// # Safety
        /// As the vendor's documentation says.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($arg: $type),*) -> i32 {
            #[allow(unused_unsafe)] // Not all of them have pointers.
            enter(Api::$api, stringify!($name), Needs::$needs, |$call| {
                // SAFETY: pointers are the caller's; what they must point to is the vendor's
                // contract, which this function has word for word.
                unsafe { $body }
            })
        }
    };
}

both! {
    Nothing cuInit / hipInit (flags: u32) |call| call.start(flags, leaks::report);
    Nothing cuDriverGetVersion / hipRuntimeGetVersion (out: *mut i32) |call| {
        let version = match call.api {
            Api::Cuda => 13_000,
            Api::Hip => 60_443_484,
        };
        call.give(out, version)
    };
    Driver cuDeviceGetCount / hipGetDeviceCount (out: *mut i32) |call| {
        let count = call.devices();
        call.give(out, count)
    };
    Driver cuDeviceGet / hipDeviceGet (out: *mut i32, ordinal: i32) |call| {
        known(call, ordinal)?;
        call.give(out, ordinal)
    };
    Driver cuDeviceGetName / hipDeviceGetName (out: *mut c_char, bytes: i32, device: i32) |call| {
        known(call, device)?;
        let name = format!("look-alike of {}\0", call.arch());
        if out.is_null() || usize::try_from(bytes).is_ok_and(|bytes| bytes < name.len()) {
            return Err(call.wrong(code::INVALID_VALUE, "no room for the name"));
        }
        out.cast::<u8>().copy_from_nonoverlapping(name.as_ptr(), name.len());
        Ok(())
    };
    Driver cuDeviceGetPCIBusId / hipDeviceGetPCIBusId
        (out: *mut c_char, bytes: i32, device: i32) |call| {
        known(call, device)?;
        // The first devices of a machine.
        let id = format!("0000:{:02X}:00.0\0", device + 1);
        if out.is_null() || usize::try_from(bytes).is_ok_and(|bytes| bytes < id.len()) {
            return Err(call.wrong(code::INVALID_VALUE, "no room for the place on the bus"));
        }
        out.cast::<u8>().copy_from_nonoverlapping(id.as_ptr(), id.len());
        Ok(())
    };
    Driver cuDeviceTotalMem_v2 / hipDeviceTotalMem (out: *mut usize, device: i32) |call| {
        known(call, device)?;
        let bytes = call.memory_bytes() as usize;
        call.give(out, bytes)
    };
    Driver cuDeviceGetAttribute / hipDeviceGetAttribute
        (out: *mut i32, attribute: i32, device: i32) |call| {
        known(call, device)?;
        let value = device_attribute(call, attribute)?;
        call.give(out, value)
    };
    Device cuMemAlloc_v2 / hipMalloc (out: *mut u64, bytes: usize) |call| {
        let start = call.alloc(bytes, false)?;
        call.give(out, start)
    };
    Device cuMemFree_v2 / hipFree (address: u64) |call| call.free(address, false);
    Device cuMemHostAlloc / hipHostMalloc (out: *mut u64, bytes: usize, _flags: u32) |call| {
        let start = call.alloc(bytes, true)?;
        call.give(out, start)
    };
    Device cuMemFreeHost / hipHostFree (address: u64) |call| call.free(address, true);
    Device cuMemcpyHtoDAsync_v2 / hipMemcpyHtoDAsync
        (to: u64, from: *const c_void, bytes: usize, stream: u64) |call| {
        call.inside(to, bytes as u64)?;
        if call.is_pinned(from as u64, bytes as u64) {
            let (from, bytes) = (from as u64, bytes as u64);
            return call.enqueue(stream, Work::FromPinned { to, from, bytes });
        }
        if from.is_null() {
            return Err(call.wrong(code::INVALID_VALUE, "a copy from null"));
        }
        let from = std::slice::from_raw_parts(from.cast::<u8>(), bytes);
        call.enqueue(stream, Work::Write { to, from: from.into() })
    };
    Device cuMemcpyDtoHAsync_v2 / hipMemcpyDtoHAsync
        (to: *mut c_void, from: u64, bytes: usize, stream: u64) |call| {
        call.inside(from, bytes as u64)?;
        if call.is_pinned(to as u64, bytes as u64) {
            let (to, bytes) = (to as u64, bytes as u64);
            return call.enqueue(stream, Work::ToPinned { to, from, bytes });
        }
        if to.is_null() {
            return Err(call.wrong(code::INVALID_VALUE, "a copy to null"));
        }
        call.read_now(stream, to.cast::<u8>(), from, bytes)
    };
    Device cuMemcpyDtoDAsync_v2 / hipMemcpyDtoDAsync
        (to: u64, from: u64, bytes: usize, stream: u64) |call| {
        let bytes = bytes as u64;
        call.inside(to, bytes)?;
        call.inside(from, bytes)?;
        call.enqueue(stream, Work::Copy { to, from, bytes })
    };
    Device cuMemsetD8Async / hipMemsetD8Async
        (to: u64, byte: u8, bytes: usize, stream: u64) |call| {
        call.inside(to, bytes as u64)?;
        call.enqueue(stream, Work::Fill { to, byte, bytes: bytes as u64 })
    };
    Device cuStreamCreate / hipStreamCreateWithFlags (out: *mut u64, flags: u32) |call| {
        if flags > 1 {
            return Err(call.wrong(code::INVALID_VALUE, "there are no such flags of a stream"));
        }
        let (stream, device) = (call.fresh(), call.device()?);
        call.streams.insert(stream, StreamState { device, capture: None });
        call.give(out, stream)
    };
    Device cuStreamDestroy_v2 / hipStreamDestroy (stream: u64) |call| {
        call.finish_stream(stream)?;
        call.streams.remove(&stream);
        Ok(())
    };
    Device cuStreamSynchronize / hipStreamSynchronize (stream: u64) |call| {
        call.wait_for_stream(stream)
    };
    Device cuStreamQuery / hipStreamQuery (stream: u64) |call| call.query_stream(stream);
    Device cuLaunchHostFunc / hipLaunchHostFunc
        (stream: u64, function: Option<unsafe extern "C" fn(*mut c_void)>, data: *mut c_void)
        |call| {
        let Some(function) = function else {
            return Err(call.wrong(code::INVALID_VALUE, "no function"));
        };
        call.enqueue(stream, Work::Host { function, data: data as u64 })
    };
    Device cuStreamWaitEvent / hipStreamWaitEvent (stream: u64, event: u64, flags: u32) |call| {
        if flags != 0 {
            return Err(call.wrong(code::INVALID_VALUE, "flags must be 0"));
        }
        call.stream_waits(stream, event)
    };
    Device cuEventCreate / hipEventCreateWithFlags (out: *mut u64, flags: u32) |call| {
        if flags > 7 {
            return Err(call.wrong(code::INVALID_VALUE, "there are no such flags of an event"));
        }
        let event = call.fresh();
        call.events.insert(event, EventState::default());
        call.give(out, event)
    };
    Device cuEventDestroy_v2 / hipEventDestroy (event: u64) |call| {
        match call.events.remove(&event) {
            Some(_) => Ok(()),
            None => Err(call.gone("event", event)),
        }
    };
    Device cuEventRecord / hipEventRecord (event: u64, stream: u64) |call| {
        call.record(event, stream)
    };
    Device cuEventSynchronize / hipEventSynchronize (event: u64) |call| call.wait_for_event(event);
    Device cuEventQuery / hipEventQuery (event: u64) |call| call.query_event(event);
    Device cuEventElapsedTime / hipEventElapsedTime (out: *mut f32, start: u64, end: u64) |call| {
        let ms = call.elapsed(start, end)?;
        call.give(out, ms)
    };
    Device cuModuleLoadData / hipModuleLoadData (out: *mut u64, image: *const c_void) |call| {
        let module = call.load(image)?;
        call.give(out, module)
    };
    Device cuModuleUnload / hipModuleUnload (module: u64) |call| call.unload(module);
    Device cuModuleGetFunction / hipModuleGetFunction
        (out: *mut u64, module: u64, name: *const c_char) |call| {
        let function = call.find(module, name)?;
        call.give(out, function)
    };
    Device cuFuncGetAttribute / hipFuncGetAttribute
        (out: *mut i32, attribute: i32, function: u64) |call| {
        let value = call.attribute_of(function, attribute)?;
        call.give(out, value)
    };
    Device cuStreamBeginCapture_v2 / hipStreamBeginCapture (stream: u64, mode: i32) |call| {
        call.begin_capture(stream, mode)
    };
    Device cuStreamEndCapture / hipStreamEndCapture (stream: u64, out: *mut u64) |call| {
        let graph = call.end_capture(stream)?;
        call.give(out, graph)
    };
    Device cuGraphInstantiateWithFlags / hipGraphInstantiateWithFlags
        (out: *mut u64, graph: u64, _flags: u64) |call| {
        let Some(work) = call.graphs.get(&graph).map(Arc::clone) else {
            return Err(call.gone("graph", graph));
        };
        let executable = call.fresh();
        call.executables.insert(executable, work);
        call.give(out, executable)
    };
    Device cuGraphLaunch / hipGraphLaunch (executable: u64, stream: u64) |call| {
        call.launch_graph(executable, stream)
    };
    Device cuGraphDestroy / hipGraphDestroy (graph: u64) |call| {
        match call.graphs.remove(&graph) {
            Some(_) => Ok(()),
            None => Err(call.gone("graph", graph)),
        }
    };
    Device cuGraphExecDestroy / hipGraphExecDestroy (executable: u64) |call| {
        match call.executables.remove(&executable) {
            Some(_) => Ok(()),
            None => Err(call.gone("executable graph", executable)),
        }
    };
    Device cuCtxSynchronize / hipDeviceSynchronize () |call| call.wait_for_all();
}

/// The handle of the primary context of device `n`, less `n`.
const CONTEXT: u64 = 0x0c00_0000;

only!(Cuda Driver cuDevicePrimaryCtxRetain (out: *mut u64, device: i32) |call| {
    known(call, device)?;
    *call.contexts.entry(device).or_default() += 1;
    call.give(out, CONTEXT + u64::from(device.cast_unsigned()))
});
only!(Cuda Driver cuDevicePrimaryCtxRelease_v2 (device: i32) |call| {
    known(call, device)?;
    match call.contexts.get_mut(&device) {
        Some(count @ 1..) => {
            *count -= 1;
            Ok(())
        }
        _ => Err(call.wrong(code::INVALID_CONTEXT, "the context is not retained")),
    }
});
only!(Cuda Driver cuCtxSetCurrent (context: u64) |call| {
    let device = match context {
        0 => return call.set_device(None),
        _ => i32::try_from(context.wrapping_sub(CONTEXT)).unwrap_or(-1),
    };
    if call.contexts.get(&device).is_none_or(|&count| count == 0) {
        return Err(call.wrong(code::INVALID_CONTEXT, "this is no retained context"));
    }
    call.set_device(Some(device))
});
only!(Cuda Device cuFuncSetAttribute (function: u64, attribute: i32, value: i32) |call| {
    call.set_attribute(function, attribute, value)
});
only!(Cuda Nothing cuGetErrorName (error: i32, out: *mut *const c_char) |call| {
    match name_of(error) {
        Some(name) => call.give(out, name.as_ptr()),
        None => Err(code::INVALID_VALUE),
    }
});
only!(Cuda Device cuLaunchKernelEx (
    config: *const LaunchConfig,
    function: u64,
    params: *mut *mut c_void,
    extra: *mut *mut c_void
) |call| {
    if config.is_null() || !extra.is_null() {
        return Err(call.wrong(code::INVALID_VALUE, "no config, or arguments in two ways"));
    }
    let config = &*config;
    let (mut cluster, mut together) = ([1; 3], false);
    for index in 0..config.attribute_count as usize {
        let attribute = &*config.attributes.add(index);
        match attribute.id {
            0 => {}
            // Its kernels run in the simulator, one cluster after another.
            COOPERATIVE if attribute.value[0] == 0 => {}
            COOPERATIVE => together = true,
            // The driver may begin early; to begin late is allowed, too.
            PROGRAMMATIC_STREAM_SERIALIZATION if attribute.value[0] <= 1 => {}
            CLUSTER => cluster.copy_from_slice(&attribute.value[..3]),
            _ => return Err(call.wrong(code::INVALID_VALUE, "an attribute not known here")),
        }
    }
    let LaunchConfig { grid, block, shared_bytes, stream, .. } = *config;
    if together && grid != cluster {
        return Err(call.wrong(code::COOPERATIVE_TOO_LARGE, "more than one cluster together"));
    }
    let grid = Grid { grid, block, cluster, shared_bytes, early: false, together: false };
    call.launch(stream, function, grid, params)
});

only!(Cuda Device cuOccupancyMaxActiveClusters (
    out: *mut i32,
    function: u64,
    config: *const LaunchConfig
) |call| {
    call.attribute_of(function, 0)?;
    if config.is_null() {
        return Err(call.wrong(code::INVALID_VALUE, "no config"));
    }
    // As seen of the real one: without the extents of a cluster it counts none.
    let attributes = (0..(*config).attribute_count as usize).map(|i| &*(*config).attributes.add(i));
    let has_clusters = attributes.into_iter().any(|attribute| attribute.id == CLUSTER);
    call.give(out, i32::from(has_clusters))
});

only!(Hip Driver hipSetDevice (device: i32) |call| call.set_device(Some(device)));
only!(Hip Driver hipGetDevicePropertiesR0600 (out: *mut c_void, device: i32) |call| {
    known(call, device)?;
    // The real struct has 1472 bytes, with the architecture's name after 1100 or so.
    const BYTES: usize = 1472;
    const ARCH_AT: usize = 1160;
    let (name, arch) = (b"look-alike", format!("{}:sramecc+:xnack-", call.arch()));
    if out.is_null() {
        return Err(call.wrong(code::INVALID_VALUE, "no place for the properties"));
    }
    let out = out.cast::<u8>();
    out.write_bytes(0, BYTES);
    out.copy_from_nonoverlapping(name.as_ptr(), name.len());
    out.add(ARCH_AT).copy_from_nonoverlapping(arch.as_ptr(), arch.len());
    Ok(())
});
only!(Hip Device hipModuleLaunchKernel (
    function: u64, grid_x: u32, grid_y: u32, grid_z: u32, block_x: u32, block_y: u32,
    block_z: u32, shared_bytes: u32, stream: u64, params: *mut *mut c_void,
    extra: *mut *mut c_void
) |call| {
    if !extra.is_null() {
        return Err(call.wrong(code::INVALID_VALUE, "arguments in two ways"));
    }
    let (grid, block) = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
    let grid = Grid { grid, block, cluster: [1; 3], shared_bytes, early: false, together: false };
    call.launch(stream, function, grid, params)
});

/// The one function that returns no code.
#[unsafe(no_mangle)]
pub extern "C" fn hipGetErrorName(error: i32) -> *const c_char {
    name_of(error).unwrap_or(c"hipErrorUnknown").as_ptr()
}

/// `CUlaunchConfig`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct LaunchConfig {
    grid: [u32; 3],
    block: [u32; 3],
    shared_bytes: u32,
    stream: u64,
    attributes: *const LaunchAttribute,
    attribute_count: u32,
}

/// `CUlaunchAttribute`: a number and 64 bytes at offset 8.
#[repr(C, align(8))]
pub(crate) struct LaunchAttribute {
    id: u32,
    padding: u32,
    value: [u32; 16],
}

const COOPERATIVE: u32 = 2;
const CLUSTER: u32 = 4;
const PROGRAMMATIC_STREAM_SERIALIZATION: u32 = 6;

fn name_of(error: i32) -> Option<&'static CStr> {
    Some(match error {
        code::INVALID_VALUE => c"LOOKALIKE_INVALID_VALUE",
        code::OUT_OF_MEMORY => c"LOOKALIKE_OUT_OF_MEMORY",
        code::INVALID_IMAGE => c"LOOKALIKE_INVALID_IMAGE",
        code::INVALID_CONTEXT => c"LOOKALIKE_INVALID_CONTEXT",
        code::NO_BINARY => c"LOOKALIKE_NO_BINARY_FOR_DEVICE",
        code::INVALID_HANDLE => c"LOOKALIKE_INVALID_HANDLE",
        code::COOPERATIVE_TOO_LARGE => c"LOOKALIKE_COOPERATIVE_TOO_LARGE",
        code::NOT_READY => c"LOOKALIKE_NOT_READY",
        code::ILLEGAL_ADDRESS => c"LOOKALIKE_ILLEGAL_ADDRESS",
        code::CAPTURE_UNSUPPORTED => c"LOOKALIKE_CAPTURE_UNSUPPORTED",
        code::CAPTURE_INVALIDATED => c"LOOKALIKE_CAPTURE_INVALIDATED",
        _ => return None,
    })
}

fn known(call: &ApiCall, device: i32) -> Told {
    match (0..call.devices()).contains(&device) {
        true => Ok(()),
        false => Err(call.wrong(code::INVALID_DEVICE, format!("there is no device {device}"))),
    }
}

/// The attributes that are asked for, by each vendor's numbers.
fn device_attribute(call: &ApiCall, attribute: i32) -> Result<i32, i32> {
    let shared = call.arch().shared_bytes_per_block().cast_signed();
    let capability = match call.arch() {
        Arch::Sm80 => (8, 0),
        Arch::Sm100a => (10, 0),
        _ => (9, 0),
    };
    Ok(match (call.api, attribute) {
        (Api::Cuda, 16) | (Api::Hip, 63) => 4,
        (Api::Cuda, 38) | (Api::Hip, 19) => 50 << 20,
        (Api::Cuda, 97) | (Api::Hip, 74) => shared,
        (Api::Cuda, 13) | (Api::Hip, 5) => 1_980_000,
        (Api::Cuda, 75) => capability.0,
        (Api::Cuda, 76) => capability.1,
        _ => return Err(call.wrong(code::INVALID_VALUE, "this attribute is not known here")),
    })
}
