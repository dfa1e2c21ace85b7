//! Failures that the kernel and the allocator inflict on a process that meets a limit, turned into
//! errors that name it: exit code 3 instead of a death by signal.
//!
//! Rust ends a process whose allocation fails by `abort`. The allocator here notes that one was
//! refused, and the handler of SIGABRT tells it from other causes.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::Exit;

/// An allocation was refused; the process may have gone on without it.
static REFUSED: AtomicBool = AtomicBool::new(false);

const MESSAGE: &str = "\
error: out of memory: the machine has no more, or a limit of this process is reached (`ulimit -v`, \
memory.max of the control group); raise it, or train with fewer --ranks or --threads, or a \
smaller model or batch
";

/// The system's allocator.
pub struct Noting;

fn noted(memory: *mut u8) -> *mut u8 {
    if memory.is_null() {
        REFUSED.store(true, Ordering::Relaxed);
    }
    memory
}

// SAFETY: every call is passed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Noting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promises.
        noted(unsafe { System.alloc(layout) })
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promises.
        noted(unsafe { System.alloc_zeroed(layout) })
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as the caller promises.
        noted(unsafe { System.realloc(memory, layout, size) })
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(memory, layout) }
    }
}

/// From now on limits are errors of system calls, and a lack of memory is exit code 3.
pub fn survive_limits() {
    // SAFETY: the action makes two system calls, which are async-signal-safe, and reads a constant.
    let watched = unsafe { signal_hook::low_level::register(libc::SIGABRT, say_so_and_end) };
    // Without the handler the process dies by the signal, as it would have.
    let _ = watched;
    // SAFETY: no handler is installed. A write beyond the limit then fails with EFBIG.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

fn say_so_and_end() {
    if REFUSED.load(Ordering::Relaxed) {
        // SAFETY: the pointer and length are those of a constant.
        unsafe { libc::write(libc::STDERR_FILENO, MESSAGE.as_ptr().cast(), MESSAGE.len()) };
        signal_hook::low_level::exit(Exit::Peer.code().into());
    }
}
