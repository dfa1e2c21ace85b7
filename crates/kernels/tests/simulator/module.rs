//! A simulated module: a shared object with the functions of `kernels/sim/sim_abi.h`.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

#[repr(C)]
struct AbiKernel {
    name: *const c_char,
    max_threads: u32,
    args_bytes: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct AbiRange {
    start: u64,
    bytes: u64,
}

#[repr(C)]
struct AbiLaunch {
    kernel: *const c_char,
    grid: [u32; 3],
    block: [u32; 3],
    cluster: [u32; 3],
    shared_bytes: u32,
    args: *const c_void,
    args_bytes: u64,
    ranges: *const AbiRange,
    range_count: u64,
    seed: u64,
    check_races: u32,
    reserved: u32,
}

type ArchFn = unsafe extern "C" fn() -> *const c_char;
type KernelFn = unsafe extern "C" fn(u32, *mut AbiKernel) -> c_int;
type LaunchFn = unsafe extern "C" fn(*const AbiLaunch, *mut c_char, usize) -> c_int;

/// The entry of a kernel in a module's table.
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    pub max_threads: u32,
    pub args_bytes: u32,
}

/// Shape of a launch, in one dimension.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub blocks: u32,
    pub threads: u32,
    pub cluster: u32,
    pub shared_bytes: u32,
}

/// How the simulator runs a launch.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    pub seed: u64,
    pub check_races: bool,
}

/// Never unloaded: tests are short, and a pointer into it cannot dangle.
pub struct Module {
    launch: LaunchFn,
    pub arch: String,
    pub kernels: BTreeMap<String, Kernel>,
}

impl Module {
    pub fn open(path: &Path) -> Self {
        let name = CString::new(path.as_os_str().as_bytes()).unwrap();
        // SAFETY: the file is a module that this test has built; its constructors only fill a list.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        assert!(!handle.is_null(), "{}: {}", path.display(), last_error());
        let symbol = |name: &CStr| {
            // SAFETY: the handle is live and the name ends with 0.
            let address = unsafe { libc::dlsym(handle, name.as_ptr()) };
            assert!(!address.is_null(), "{}: {}", path.display(), last_error());
            address
        };
        // SAFETY: these symbols have these types in sim_abi.h.
        let (arch, kernel, launch) = unsafe {
            (
                std::mem::transmute::<*mut c_void, ArchFn>(symbol(c"muster_sim_arch")),
                std::mem::transmute::<*mut c_void, KernelFn>(symbol(c"muster_sim_kernel")),
                std::mem::transmute::<*mut c_void, LaunchFn>(symbol(c"muster_sim_launch")),
            )
        };
        // SAFETY: a constant string of the module.
        let arch = unsafe { text(arch()) };
        Self { launch, arch, kernels: table(kernel) }
    }

    /// Runs a launch to its end. `memory` is all that the kernel may touch.
    ///
    /// # Errors
    /// The simulator's report.
    pub fn launch(
        &self,
        kernel: &str,
        shape: Shape,
        args: &[u8],
        memory: &mut [&mut [u8]],
        order: Order,
    ) -> Result<(), String> {
        let mut ranges: Vec<AbiRange> = memory
            .iter_mut()
            .map(|part| AbiRange { start: part.as_mut_ptr() as u64, bytes: part.len() as u64 })
            .collect();
        ranges.sort_by_key(|range| range.start);
        let kernel = CString::new(kernel).unwrap();
        let launch = AbiLaunch {
            kernel: kernel.as_ptr(),
            grid: [shape.blocks, 1, 1],
            block: [shape.threads, 1, 1],
            cluster: [shape.cluster, 1, 1],
            shared_bytes: shape.shared_bytes,
            args: args.as_ptr().cast(),
            args_bytes: args.len() as u64,
            ranges: ranges.as_ptr(),
            range_count: ranges.len() as u64,
            seed: order.seed,
            check_races: order.check_races.into(),
            reserved: 0,
        };
        let mut message = vec![0_u8; 8192];
        // SAFETY: every pointer outlives the call; the kernel reaches only `memory`, which is
        // borrowed mutably, and that every access stays there is what the simulator checks.
        let code = unsafe { (self.launch)(&launch, message.as_mut_ptr().cast(), message.len()) };
        match code {
            0 => Ok(()),
            _ => Err(CStr::from_bytes_until_nul(&message).unwrap().to_string_lossy().into_owned()),
        }
    }
}

fn table(kernel: KernelFn) -> BTreeMap<String, Kernel> {
    let mut kernels = BTreeMap::new();
    for index in 0.. {
        let mut entry = AbiKernel { name: std::ptr::null(), max_threads: 0, args_bytes: 0 };
        // SAFETY: `entry` is written where there is a kernel of this number.
        if unsafe { kernel(index, &mut entry) } == 0 {
            break;
        }
        let (max_threads, args_bytes) = (entry.max_threads, entry.args_bytes);
        // SAFETY: a constant string of the module.
        kernels.insert(unsafe { text(entry.name) }, Kernel { max_threads, args_bytes });
    }
    kernels
}

/// # Safety
/// `string` ends with 0.
unsafe fn text(string: *const c_char) -> String {
    // SAFETY: as the caller says.
    unsafe { CStr::from_ptr(string) }.to_string_lossy().into_owned()
}

fn last_error() -> String {
    // SAFETY: the string is this thread's, and valid until its next dl call.
    unsafe { text(libc::dlerror()) }
}
