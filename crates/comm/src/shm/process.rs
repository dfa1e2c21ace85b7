//! Processes of a host, and whether they still run: by a handle where the system has them, by
//! number, or by a byte of the shared memory where the number means nothing here.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::presence;
use super::shared_memory::SharedMemory;

/// A process that may end.
pub(super) enum Process {
    /// A handle that cannot come to mean another process.
    Handle(OwnedFd),
    /// The number alone, where the system offers no handles.
    Number(u32),
    /// It was gone when we looked for it.
    Gone,
    /// In another namespace of process numbers, where its number means nothing here: a rank that
    /// holds its byte of the shared memory while it runs.
    Present(usize, SharedMemory),
    /// As [`Process::Present`], and the system offers nothing by which to tell.
    Elsewhere,
}

/// The namespace that this process's number belongs to; 0 where the system does not tell.
pub(super) fn namespace() -> u64 {
    let found = std::fs::metadata("/proc/self/ns/pid");
    found.map_or(0, |found| std::os::unix::fs::MetadataExt::ino(&found))
}

impl Process {
    pub(super) fn new(pid: u32) -> Process {
        // SAFETY: a system call without pointers.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        if fd >= 0 {
            // SAFETY: a descriptor that the kernel just made for us and nobody else owns.
            return Process::Handle(unsafe { OwnedFd::from_raw_fd(fd as i32) });
        }
        match std::io::Error::last_os_error().raw_os_error() {
            Some(libc::ESRCH) => Process::Gone,
            _ => Process::Number(pid),
        }
    }

    /// Whether it still runs; a zombie does not.
    pub(super) fn is_alive(&self) -> bool {
        match self {
            Process::Gone => false,
            Process::Elsewhere => true,
            Process::Present(rank, memory) => presence::is_present(*rank, memory.file()),
            Process::Number(pid) => number_is_alive(*pid),
            Process::Handle(fd) => {
                let mut poll =
                    libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
                // SAFETY: one valid pollfd; a handle becomes readable when its process ends.
                let ready = unsafe { libc::poll(&raw mut poll, 1, 0) };
                ready <= 0
            }
        }
    }
}

/// Whether a process of that number exists.
fn number_is_alive(pid: u32) -> bool {
    // SAFETY: signal 0 only asks.
    let code = unsafe { libc::kill(pid as libc::pid_t, 0) };
    code == 0 || std::io::Error::last_os_error().raw_os_error() != Some(libc::ESRCH)
}
