//! Simulated modules: device kernels compiled for the CPU, in a shared object.
//!
//! The interface is `kernels/sim/sim_abi.h`; the structs here mirror it. A module holds the
//! simulator's runtime and one family of kernels for one architecture, and checks every access of
//! a launch against the ranges that it is given.

use std::ffi::{CStr, c_char, c_int};
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::atomic::{AtomicU32, Ordering};

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW, Symbol};

use crate::gpu::library::reason;
use crate::{Arch, Grid};

/// A kernel of a module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SimKernel {
    pub name: String,
    pub max_threads: u32,
    pub args_bytes: u32,
}

/// Memory that a launch may touch.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SimRange {
    pub start: u64,
    pub bytes: u64,
}

/// The seed and the checks of a simulation's order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SimOrder {
    /// 0 runs everything in its natural order.
    pub seed: u64,
    pub check_races: bool,
}

/// Why a launch came to nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SimFailure {
    /// The launch itself was wrong.
    Refused(String),
    /// The kernel is wrong.
    Fault(String),
}

/// A loaded module.
pub struct SimModule {
    arch: Arch,
    kernels: Vec<SimKernel>,
    launch: LaunchFn,
    // Last, so that what points into it goes first.
    _library: Library,
}

#[repr(C)]
struct RawKernel {
    name: *const c_char,
    max_threads: u32,
    args_bytes: u32,
}

#[repr(C)]
struct RawLaunch {
    kernel: *const c_char,
    grid: [u32; 3],
    block: [u32; 3],
    cluster: [u32; 3],
    shared_bytes: u32,
    args: *const u8,
    args_bytes: u64,
    ranges: *const SimRange,
    range_count: u64,
    seed: u64,
    check_races: u32,
    reserved: u32,
}

type ArchFn = unsafe extern "C" fn() -> *const c_char;
type KernelFn = unsafe extern "C" fn(u32, *mut RawKernel) -> c_int;
type LaunchFn = unsafe extern "C" fn(*const RawLaunch, *mut c_char, usize) -> c_int;

const OK: c_int = 0;
const REFUSED: c_int = 1;
const MESSAGE_BYTES: usize = 8192;
/// More kernels than any family has; the end of a table that does not end.
const MOST_KERNELS: u32 = 4096;

impl SimModule {
    /// Loads a module from the bytes of its shared object.
    ///
    /// # Errors
    /// Why these bytes are no simulated module of this machine.
    pub fn load(image: &[u8]) -> Result<SimModule, String> {
        check_elf(image)?;
        let file = memory_file(image).map_err(|e| format!("cannot keep a copy: {e}"))?;
        let path = fresh_path(file.as_raw_fd());
        // SAFETY: loading runs the initializers of a module that the caller wants to run.
        let library = unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_LOCAL) };
        let library = library.map_err(|error| reason(&error))?;
        // SAFETY: these are the types of sim_abi.h.
        let (arch, kernel, launch): (Symbol<ArchFn>, Symbol<KernelFn>, Symbol<LaunchFn>) = unsafe {
            (
                symbol(&library, "muster_sim_arch")?,
                symbol(&library, "muster_sim_kernel")?,
                symbol(&library, "muster_sim_launch")?,
            )
        };
        // SAFETY: the module returns a string with its own life time, or null.
        let arch = unsafe { string(arch()) }.ok_or("it names no architecture")?;
        let arch = arch.parse::<Arch>().map_err(|e| e.to_string())?;
        let mut kernels = Vec::new();
        for index in 0..MOST_KERNELS {
            let mut raw = RawKernel { name: std::ptr::null(), max_threads: 0, args_bytes: 0 };
            // SAFETY: `raw` is a MusterSimKernel to be filled.
            if unsafe { kernel(index, &raw mut raw) } == 0 {
                break;
            }
            // SAFETY: as for `arch`.
            let name = unsafe { string(raw.name) }.ok_or("a kernel without a name")?;
            let RawKernel { max_threads, args_bytes, .. } = raw;
            kernels.push(SimKernel { name, max_threads, args_bytes });
        }
        Ok(SimModule { arch, kernels, launch: *launch, _library: library })
    }

    pub fn arch(&self) -> Arch {
        self.arch
    }

    pub fn kernels(&self) -> &[SimKernel] {
        &self.kernels
    }

    /// Runs kernel number `index` to its end.
    ///
    /// # Errors
    /// The module's report.
    ///
    /// # Panics
    /// There is no kernel `index`.
    ///
    /// # Safety
    /// `ranges` are sorted, and memory that nothing else touches meanwhile.
    pub unsafe fn launch(
        &self,
        index: usize,
        grid: &Grid,
        args: &[u8],
        ranges: &[SimRange],
        order: SimOrder,
    ) -> Result<(), SimFailure> {
        let kernel = &self.kernels[index];
        if args.len() != kernel.args_bytes as usize {
            let (got, expected) = (args.len(), kernel.args_bytes);
            let message = format!("an argument of {got} bytes, the kernel takes {expected}");
            return Err(SimFailure::Refused(message));
        }
        let name = std::ffi::CString::new(kernel.name.as_str()).unwrap_or_default();
        let raw = RawLaunch {
            kernel: name.as_ptr(),
            grid: grid.grid,
            block: grid.block,
            cluster: grid.cluster,
            shared_bytes: grid.shared_bytes,
            args: args.as_ptr(),
            args_bytes: args.len() as u64,
            ranges: ranges.as_ptr(),
            range_count: ranges.len() as u64,
            seed: order.seed,
            check_races: u32::from(order.check_races),
            reserved: 0,
        };
        let mut message = [0_u8; MESSAGE_BYTES];
        // SAFETY: every pointer is good for its count until the call returns; the caller vouches
        // for the memory behind `ranges`, and the module touches no other.
        let code =
            unsafe { (self.launch)(&raw const raw, message.as_mut_ptr().cast(), MESSAGE_BYTES) };
        if code == OK {
            return Ok(());
        }
        let end = message.iter().position(|&b| b == 0).unwrap_or(MESSAGE_BYTES);
        let message = String::from_utf8_lossy(&message[..end]).into_owned();
        Err(if code == REFUSED { SimFailure::Refused(message) } else { SimFailure::Fault(message) })
    }
}

/// The length of a 64-bit ELF file, from its first 64 bytes: what a driver goes by that is given an
/// address alone.
///
/// # Errors
/// This is no such header.
pub fn elf_bytes(image: &[u8]) -> Result<usize, String> {
    let field = |at: usize, bytes: usize| -> Option<u64> {
        let mut word = [0; 8];
        word[..bytes].copy_from_slice(image.get(at..at + bytes)?);
        Some(u64::from_le_bytes(word))
    };
    if image.get(..6) != Some(b"\x7fELF\x02\x01") {
        return Err("it is not a 64-bit ELF file".to_owned());
    }
    let end = || -> Option<u64> {
        let segments = field(0x20, 8)?.checked_add(field(0x36, 2)? * field(0x38, 2)?)?;
        let sections = field(0x28, 8)?.checked_add(field(0x3a, 2)? * field(0x3c, 2)?)?;
        Some(segments.max(sections).max(64))
    };
    let end = end().and_then(|end| usize::try_from(end).ok());
    end.ok_or_else(|| "its header is cut short or broken".to_owned())
}

/// Checks that an ELF file is all there.
pub(crate) fn check_elf(image: &[u8]) -> Result<(), String> {
    let end = elf_bytes(image)?;
    match end <= image.len() {
        true => Ok(()),
        false => Err(format!("its headers tell of {end} bytes, it has {}", image.len())),
    }
}

/// A path of descriptor `fd` that no earlier load spelled the same: the loader takes a name that it
/// has seen for the library that it has, even when the descriptor is another file by now.
fn fresh_path(fd: std::os::fd::RawFd) -> String {
    static LOADS: AtomicU32 = AtomicU32::new(0);
    let load = LOADS.fetch_add(1, Ordering::Relaxed);
    let detour = |bit: u32| if load >> bit & 1 == 1 { "../fd/" } else { "./" };
    let detours: String = (0..u32::BITS - load.leading_zeros()).map(detour).collect();
    format!("/proc/self/fd/{detours}{fd}")
}

/// A file in memory, with an inode of its own.
fn memory_file(bytes: &[u8]) -> std::io::Result<std::fs::File> {
    // SAFETY: a system call with a constant name.
    let fd = unsafe { libc::memfd_create(c"muster-module".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: a new descriptor that nobody else owns.
    let mut file = unsafe { std::fs::File::from_raw_fd(fd) };
    file.write_all(bytes)?;
    Ok(file)
}

/// # Safety
/// `T` is the type of the symbol.
unsafe fn symbol<T>(library: &Library, name: &str) -> Result<Symbol<T>, String> {
    // SAFETY: the caller's.
    unsafe { library.get(name) }.map_err(|_| format!("it does not export `{name}`"))
}

/// # Safety
/// `text` is null or a string.
unsafe fn string(text: *const c_char) -> Option<String> {
    // SAFETY: not null, so a string.
    (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structs_are_those_of_the_header() {
        use std::mem::offset_of;
        assert_eq!(size_of::<RawLaunch>(), 96);
        assert_eq!(offset_of!(RawLaunch, args), 48);
        assert_eq!(offset_of!(RawLaunch, seed), 80);
        assert_eq!(offset_of!(RawLaunch, check_races), 88);
        assert_eq!(size_of::<RawKernel>(), 16);
    }

    #[test]
    fn other_files_are_refused() {
        let refused = |image: &[u8]| SimModule::load(image).err().expect("no module");
        assert!(refused(b"").contains("not a 64-bit ELF"));
        assert!(refused(b"\x7fELF\x02\x01").contains("cut short"));
        let executable = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(elf_bytes(&executable), Ok(executable.len()));
        let half = &executable[..executable.len() / 2];
        assert!(refused(half).contains("its headers tell of"));
        let why = refused(&executable);
        assert!(why.contains("executable"), "the loader's own words: {why}");
    }
}
