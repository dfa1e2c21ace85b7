//! The unsafe floor of shared memory: a mapped control block, files without a name, futex.
//!
//! Everything here that two processes may touch at once is an atomic, so that a peer of another
//! state of mind (or a stale file) can make us read wrong numbers but never break Rust's rules.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use memmap2::{MmapOptions, MmapRaw};

use crate::CommError;

/// A file of 64-bit words shared between processes.
pub(super) struct Words {
    map: MmapRaw,
}

impl Words {
    /// Reserves and maps `words` words from byte `at` on; zero where nobody has written yet.
    /// Several processes may do so at once.
    pub(super) fn create(file: &File, at: u64, words: usize) -> Result<Words, CommError> {
        reserve(file, at, words * 8)?;
        Words::open(file, at, words)
    }

    /// Maps `words` words that are there, from byte `at` on, a multiple of the page size.
    pub(super) fn open(file: &File, at: u64, words: usize) -> Result<Words, CommError> {
        let failed = |source| CommError::SharedMemory { action: "map", source };
        // Pages beyond the end would be a SIGBUS.
        if file.metadata().map_err(failed)?.len() < at + words as u64 * 8 {
            return Err(failed(std::io::ErrorKind::UnexpectedEof.into()));
        }
        let map = MmapOptions::new().offset(at).len(words * 8).map_raw(file);
        Ok(Words { map: map.map_err(failed)? })
    }

    /// All words.
    pub(super) fn all(&self) -> &[AtomicU64] {
        let len = self.map.len() / 8;
        // SAFETY: the mapping is page-aligned, readable, writable and `len` words long for as
        // long as `self`; every access by any process is atomic, so shared references are sound.
        unsafe { std::slice::from_raw_parts(self.map.as_mut_ptr().cast::<AtomicU64>(), len) }
    }
}

/// Reserves the pages of `bytes` bytes from byte `at` on: a lack of memory is an error here instead
/// of a SIGBUS at the first touch. What is there stays.
pub(super) fn reserve(file: &File, at: u64, bytes: usize) -> Result<(), CommError> {
    let (at, bytes) = (at as libc::off_t, bytes as libc::off_t);
    loop {
        // SAFETY: a system call on an open descriptor.
        match unsafe { libc::posix_fallocate(file.as_raw_fd(), at, bytes) } {
            0 => return Ok(()),
            libc::EINTR => {}
            code => {
                let source = std::io::Error::from_raw_os_error(code);
                return Err(CommError::SharedMemory { action: "reserve", source });
            }
        }
    }
}

/// A new file in memory that has no name in any directory, so that the kernel frees it with the
/// last process that holds it; processes that are started from here inherit it. `/dev/shm` and its
/// size do not matter to it. `name` is for people who look at what a process has mapped.
pub(super) fn nameless_file(name: &str) -> std::io::Result<File> {
    let name = CString::new(name)?;
    // SAFETY: a system call with a string that outlives it.
    let create = |flags| unsafe { libc::memfd_create(name.as_ptr(), flags) };
    let mut fd = create(libc::MFD_NOEXEC_SEAL);
    // Some systems want the flag, and those before Linux 6.3 do not know it.
    if fd < 0 && std::io::Error::last_os_error().raw_os_error() == Some(libc::EINVAL) {
        fd = create(0);
    }
    if fd < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: a descriptor that the kernel just made for us and nobody else owns.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// The file that this process has inherited under a number, under a number of its own.
pub(super) fn inherited_file(descriptor: i32) -> std::io::Result<File> {
    // SAFETY: a system call without memory; it fails if nothing is open under that number.
    let fd = unsafe { libc::fcntl(descriptor, libc::F_DUPFD_CLOEXEC, 0) };
    if fd < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: as in `nameless_file`.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// Milliseconds of a clock that all processes of this host read the same.
pub(super) fn now_ms() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a valid timespec to write to; this clock exists everywhere, so it cannot fail.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000
}

/// The low half of a word as a futex: the kernel waits on 32 bits.
pub(super) fn low_half(word: &AtomicU64) -> &AtomicU32 {
    let halves: *const AtomicU32 = std::ptr::from_ref(word).cast();
    // SAFETY: an AtomicU64 is two aligned halves; the block's words are only ever accessed by
    // one width each (a word that serves as a futex is never read as 64 bits).
    unsafe { &*halves }
}

/// Sleeps until `word` is woken, if it still holds `seen`; at most `limit`.
pub(super) fn futex_wait(word: &AtomicU32, seen: u32, limit: Duration) {
    let timeout = libc::timespec {
        tv_sec: limit.as_secs() as libc::time_t,
        tv_nsec: libc::c_long::from(limit.subsec_nanos()),
    };
    // SAFETY: the word outlives the call and `timeout` is a valid timespec. Not the private
    // variant: the waker may be another process. Every return (woken, changed, interrupted, timed
    // out) leads the caller to look again.
    unsafe {
        libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, seen, &raw const timeout);
    }
}

/// Wakes everyone who sleeps on `word`.
pub(super) fn futex_wake(word: &AtomicU32) {
    // SAFETY: the word outlives the call; waking has no other effect on memory.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
}

/// Copies bytes into words, the last one padded with zeros.
pub(super) fn store_bytes(words: &[AtomicU64], bytes: &[u8]) {
    let (whole, rest) = bytes.as_chunks::<8>();
    for (word, bytes) in words.iter().zip(whole) {
        word.store(u64::from_ne_bytes(*bytes), Ordering::Relaxed);
    }
    if !rest.is_empty() {
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        words[whole.len()].store(u64::from_ne_bytes(last), Ordering::Relaxed);
    }
}

/// Copies words into bytes.
pub(super) fn load_bytes(words: &[AtomicU64], bytes: &mut [u8]) {
    let (whole, rest) = bytes.as_chunks_mut::<8>();
    for (word, bytes) in words.iter().zip(whole.iter_mut()) {
        *bytes = word.load(Ordering::Relaxed).to_ne_bytes();
    }
    if !rest.is_empty() {
        let last = words[whole.len()].load(Ordering::Relaxed).to_ne_bytes();
        rest.copy_from_slice(&last[..rest.len()]);
    }
}
