//! The look-alikes notice what is wrong, so that the other tests can trust their silence.

mod common;

use std::ffi::{c_char, c_void};

use common::raw::{Raw, call};
use common::{Child, ScaleAdd, library_name, toy};
use device::{Arch, DType, Device, DeviceError, DeviceKind, Failure, Grid};

const KINDS: [DeviceKind; 2] = [DeviceKind::Cuda(0), DeviceKind::Hip(0)];

impl Raw {
    fn make(&self, code: i32, handle: u64) -> u64 {
        assert_eq!(code, 0);
        handle
    }

    fn stream(&self) -> u64 {
        let mut stream = 0;
        let code = call!(self, "cuStreamCreate"(*mut u64: &raw mut stream, u32: 1));
        self.make(code, stream)
    }

    fn event(&self) -> u64 {
        let mut event = 0;
        let code = call!(self, "cuEventCreate"(*mut u64: &raw mut event, u32: 0));
        self.make(code, event)
    }

    fn alloc(&self, bytes: usize) -> u64 {
        let mut address = 0;
        let code = call!(self, "cuMemAlloc_v2"(*mut u64: &raw mut address, usize: bytes));
        self.make(code, address)
    }
}

fn contexts_and_initialization() {
    let raw = Raw::open();
    let (mut out, mut context) = (0, 0);
    assert_eq!(call!(raw, "cuDeviceGetCount"(*mut u64: &raw mut out)), 3, "not initialized");
    assert_eq!(call!(raw, "cuInit"(u32: 1)), 1, "flags");
    assert_eq!(call!(raw, "cuInit"(u32: 0)), 0);
    assert_eq!(call!(raw, "cuMemAlloc_v2"(*mut u64: &raw mut out, usize: 8)), 201, "no context");
    assert_eq!(call!(raw, "cuDevicePrimaryCtxRetain"(*mut u64: &raw mut context, i32: 0)), 0);
    assert_eq!(call!(raw, "cuCtxSetCurrent"(u64: 77)), 201, "no such context");
    assert_eq!(call!(raw, "cuCtxSetCurrent"(u64: context)), 0);
    raw.alloc(8);
    std::thread::scope(|scope| {
        let other = scope.spawn(|| call!(raw, "cuCtxSynchronize"()));
        assert_eq!(other.join().unwrap(), 201, "current in another thread only");
    });
    assert_eq!(call!(raw, "cuDevicePrimaryCtxRelease_v2"(i32: 0)), 0);
    assert_eq!(call!(raw, "cuCtxSynchronize"()), 201, "released");
    assert_eq!(call!(raw, "cuDevicePrimaryCtxRelease_v2"(i32: 0)), 201, "released twice");
}

fn memory() {
    let raw = Raw::with_context();
    let stream = raw.stream();
    let mut address = 0;
    assert_eq!(call!(raw, "cuMemAlloc_v2"(*mut u64: &raw mut address, usize: 0)), 1, "no bytes");
    assert_eq!(call!(raw, "cuMemAlloc_v2"(*mut u64: std::ptr::null_mut(), usize: 8)), 1, "null");
    let x = raw.alloc(64);
    let fill = |to: u64, bytes: usize, stream: u64| {
        call!(raw, "cuMemsetD8Async"
            (u64: to, u8: 1, usize: bytes, u64: stream))
    };
    assert_eq!(fill(x, 64, stream), 0);
    assert_eq!(fill(x + 1, 64, stream), 1, "beyond the end");
    assert_eq!(fill(x, 8, 5), 400, "no such stream");
    let mut word = 0_u64;
    let to = (&raw mut word).cast::<c_void>();
    let read = |from: u64, bytes: usize| {
        call!(raw, "cuMemcpyDtoHAsync_v2"
            (*mut c_void: to, u64: from, usize: bytes, u64: stream))
    };
    assert_eq!(read(x + 60, 8), 1, "beyond the end");
    assert_eq!(read(x, 8), 0);
    assert_eq!(word, 0x0101_0101_0101_0101);
    let fresh = raw.alloc(8);
    assert_eq!(read(fresh, 8), 0);
    assert_ne!(word, 0, "new memory is not zero");
    assert_eq!(call!(raw, "cuMemFree_v2"(u64: x + 8)), 1, "inside an allocation");
    assert_eq!(call!(raw, "cuMemFree_v2"(u64: x)), 0);
    assert_eq!(call!(raw, "cuMemFree_v2"(u64: x)), 1, "twice");
    assert_eq!(read(x, 8), 1, "after its end");
}

fn handles() {
    let raw = Raw::with_context();
    let (stream, event) = (raw.stream(), raw.event());
    let mut ms = 0_f32;
    let elapsed =
        |ms: *mut f32| call!(raw, "cuEventElapsedTime"(*mut f32: ms, u64: event, u64: event));
    assert_eq!(elapsed(&raw mut ms), 400, "not recorded");
    assert_eq!(call!(raw, "cuEventRecord"(u64: event, u64: event)), 400, "an event is no stream");
    assert_eq!(call!(raw, "cuEventRecord"(u64: event, u64: stream)), 0);
    assert_eq!(elapsed(&raw mut ms), 600, "not over");
    host_functions(&raw, stream, event);
    assert_eq!(call!(raw, "cuEventSynchronize"(u64: event)), 0);
    assert_eq!(elapsed(&raw mut ms), 0);
    assert_eq!(call!(raw, "cuStreamWaitEvent"(u64: stream, u64: event, u32: 9)), 1, "flags");
    assert_eq!(call!(raw, "cuEventDestroy_v2"(u64: event)), 0);
    assert_eq!(call!(raw, "cuEventDestroy_v2"(u64: event)), 400, "twice");
    assert_eq!(call!(raw, "cuStreamWaitEvent"(u64: stream, u64: event, u32: 0)), 400);
    let capture = |mode: i32| call!(raw, "cuStreamBeginCapture_v2"(u64: stream, i32: mode));
    assert_eq!(capture(3), 1, "no such mode");
    assert_eq!(capture(2), 0);
    assert_eq!(capture(2), 401, "within a capture");
    assert_eq!(call!(raw, "cuStreamSynchronize"(u64: stream)), 900);
    let mut graph = 0;
    let end = |graph: *mut u64| call!(raw, "cuStreamEndCapture"(u64: stream, *mut u64: graph));
    assert_eq!(end(&raw mut graph), 901, "spoilt by the wait");
    assert_eq!(end(&raw mut graph), 401, "no capture");
    assert_eq!(call!(raw, "cuGraphLaunch"(u64: 1, u64: stream)), 400);
    assert_eq!(call!(raw, "cuStreamDestroy_v2"(u64: stream)), 0);
    assert_eq!(call!(raw, "cuStreamSynchronize"(u64: stream)), 400, "after its end");
}

/// The launch of HIP's look-alike, whose arguments are in the open.
/// Functions on the host, and questions instead of waits.
fn host_functions(raw: &Raw, stream: u64, event: u64) {
    type HostFunction = unsafe extern "C" fn(*mut c_void);
    unsafe extern "C" fn ask(told: *mut c_void) {
        let raw = Raw::open();
        let code = call!(raw, "cuCtxSynchronize"());
        // SAFETY: the caller waits for it, and passes a place for a code.
        unsafe { *told.cast::<i32>() = code };
    }
    let mut told = 0_i32;
    let launch = |function: Option<HostFunction>, told: *mut c_void| {
        call!(
            raw,
            "cuLaunchHostFunc"(u64: stream, Option<HostFunction>: function, *mut c_void: told)
        )
    };
    assert_eq!(launch(None, std::ptr::null_mut()), 1, "no function");
    assert_eq!(launch(Some(ask), (&raw mut told).cast()), 0);
    assert_eq!(call!(raw, "cuStreamQuery"(u64: stream)), 600, "not over");
    assert_eq!(call!(raw, "cuStreamSynchronize"(u64: stream)), 0);
    assert_eq!(told, 800, "functions on the host must not call the driver");
    assert_eq!(call!(raw, "cuStreamQuery"(u64: stream)), 0);
    assert_eq!(call!(raw, "cuStreamQuery"(u64: event)), 400, "an event is no stream");
    assert_eq!(call!(raw, "cuEventQuery"(u64: event)), 0, "recorded before");
    assert_eq!(call!(raw, "cuEventQuery"(u64: stream)), 400, "a stream is no event");
}

fn launches() {
    let Some(image) = toy(Arch::Gfx942) else { return };
    let raw = Raw::open();
    assert_eq!(call!(raw, "hipInit"(u32: 0)), 0);
    let (mut module, mut function, mut stream, mut x) = (0_u64, 0_u64, 0_u64, 0_u64);
    let load = |module: *mut u64, image: *const c_void| {
        call!(raw, "hipModuleLoadData"
            (*mut u64: module, *const c_void: image))
    };
    assert_eq!(load(&raw mut module, std::ptr::null()), 1, "null");
    assert_eq!(load(&raw mut module, [0_u8; 64].as_ptr().cast()), 200, "no ELF");
    assert_eq!(load(&raw mut module, image.as_ptr().cast()), 0);
    let find = |function: *mut u64, name: *const c_char| {
        call!(raw, "hipModuleGetFunction"
            (*mut u64: function, u64: module, *const c_char: name))
    };
    assert_eq!(find(&raw mut function, c"absent".as_ptr()), 500);
    assert_eq!(find(&raw mut function, c"scale_add".as_ptr()), 0);
    assert_eq!(call!(raw, "hipStreamCreateWithFlags"(*mut u64: &raw mut stream, u32: 1)), 0);
    assert_eq!(call!(raw, "hipMalloc"(*mut u64: &raw mut x, usize: 64)), 0);
    let mut args = ScaleAdd { x, n: 16, a: 0.0, b: 1.0, reserved: 0 };
    let mut params = [(&raw mut args).cast::<c_void>()];
    let mut launch = |function: u64, blocks: u32, threads: u32, shared: u32| {
        call!(raw, "hipModuleLaunchKernel"(
            u64: function, u32: blocks, u32: 1, u32: 1, u32: threads, u32: 1, u32: 1, u32: shared,
            u64: stream, *mut *mut c_void: params.as_mut_ptr(),
            *mut *mut c_void: std::ptr::null_mut()
        ))
    };
    assert_eq!(launch(function, 0, 64, 0), 1, "no blocks");
    assert_eq!(launch(function, 1, 257, 0), 1, "more than the kernel allows");
    assert_eq!(launch(function, 1, 2048, 0), 1, "more than a block has");
    assert_eq!(launch(function, 1, 64, (64 << 10) + 1), 1, "more than the LDS");
    assert_eq!(launch(module, 1, 64, 0), 400, "a module is no function");
    assert_eq!(launch(function, 1, 64, 64 << 10), 0);
    assert_eq!(call!(raw, "hipModuleUnload"(u64: module)), 1, "its kernel has not run");
    assert_eq!(launch(function, 1, 64, 0), 400, "after its module");
}

/// Through the device layer: two streams write the same memory, and no event is between them.
fn unordered_copies(kind: DeviceKind) {
    let device = Device::new(kind, 1).unwrap();
    let (first, second) = (device.new_stream().unwrap(), device.new_stream().unwrap());
    let x = device.zeros(&[64], DType::F32).unwrap();
    first.fill(&x, 1).unwrap();
    let error = second.fill(&x.flat(0..1).unwrap(), 2).unwrap_err();
    assert!(matches!(error, DeviceError::Driver { failure: Failure::InvalidValue, .. }), "{error}");
    second.wait_for(&first.record().unwrap()).unwrap();
    second.fill(&x, 2).unwrap();
    second.synchronize().unwrap();
}

/// A kernel that reads what an unordered copy writes fails, and the device with it; whichever was
/// enqueued first.
fn unordered_kernel(kind: DeviceKind, kernel_first: bool) {
    let arch = if kind == KINDS[0] { Arch::Sm90a } else { Arch::Gfx942 };
    let Some(image) = toy(arch) else {
        // The line that the parent looks for.
        eprintln!("lookalike: it did not see");
        return;
    };
    let device = Device::new(kind, 1).unwrap();
    let function = device.load_module(&image).unwrap().function("scale_add").unwrap();
    let (first, second) = (device.new_stream().unwrap(), device.new_stream().unwrap());
    let x = device.zeros(&[16], DType::F32).unwrap();
    let args = ScaleAdd { x: x.address(), n: 16, a: 1.0, b: 1.0, reserved: 0 };
    let launch = || {
        // SAFETY: the module checks the addresses.
        unsafe { second.launch_module(&function, &Grid::linear(1, 64), &args) }
    };
    first.fill(&x.flat(8..16).unwrap(), 0).unwrap();
    second.wait_for(&first.record().unwrap()).unwrap();
    launch().unwrap();
    assert_eq!(second.to_vec::<f32>(&x).unwrap(), [1.0; 16]);
    first.wait_for(&second.record().unwrap()).unwrap();
    if kernel_first {
        launch().unwrap();
    }
    first.fill(&x.flat(8..16).unwrap(), 0).unwrap();
    if !kernel_first {
        launch().unwrap();
    }
    let error = second.synchronize().unwrap_err();
    assert!(
        matches!(error, DeviceError::Driver { failure: Failure::IllegalAddress, .. }),
        "{error}"
    );
    assert!(error.to_string().contains("no more work in this process"), "{error}");
    assert!(device.zeros(&[1], DType::F32).is_err(), "nothing works after it");
}

#[test]
#[ignore = "the body of a process: tests start it, in every run, with its libraries"]
fn child() {
    let task = std::env::var("CHILD_TASK").unwrap();
    let (name, kind) = task.split_once(' ').unwrap();
    let kind: DeviceKind = kind.parse().unwrap();
    match name {
        "contexts_and_initialization" => contexts_and_initialization(),
        "memory" => memory(),
        "handles" => handles(),
        "launches" => launches(),
        "unordered_copies" => unordered_copies(kind),
        "unordered_kernel" => unordered_kernel(kind, false),
        "kernel_and_then_copy" => unordered_kernel(kind, true),
        _ => panic!("there is no task {name}"),
    }
}

#[test]
fn the_lookalike_checks_what_it_is_given() {
    for task in ["contexts_and_initialization", "memory", "handles", "launches"] {
        let said = Child::new(&format!("{task} cuda:0")).passes();
        assert!(said.contains("lookalike: "), "{said}");
    }
}

#[test]
fn unordered_work_is_reported() {
    for kind in KINDS {
        let said = Child::with_lookalike(&format!("unordered_copies {kind}"), kind).passes();
        assert!(said.contains("nothing orders the two"), "{}: {said}", library_name(kind));
        for task in ["unordered_kernel", "kernel_and_then_copy"] {
            let said = Child::with_lookalike(&format!("{task} {kind}"), kind).passes();
            assert!(said.contains("lookalike: it did not see"), "{said}");
        }
    }
}
