//! Whether the process of a rank is there, for those to whom its number says nothing: in another
//! namespace of process numbers.
//!
//! Each rank locks a byte of the shared file, the one of its own number, and the system lets go of
//! that when the process ends, however it does. The lock belongs to an opening of the file of the
//! rank's own, since processes that inherit an opening share its locks.

use std::fs::File;
use std::io::{Error, ErrorKind, Result};
use std::os::fd::AsRawFd;

/// This rank's sign of life; dropping it ends that.
pub(super) struct Presence {
    _file: File,
}

impl Presence {
    /// # Errors
    /// The system has no `/proc` of this process, or no such locks.
    pub(super) fn of(rank: usize, shared: &File) -> Result<Presence> {
        let own = format!("/proc/self/fd/{}", shared.as_raw_fd());
        let file = File::options().read(true).write(true).open(own)?;
        ask(&file, libc::F_OFD_SETLK, rank)?;
        Ok(Presence { _file: file })
    }
}

/// Whether `rank`, which has locked its byte, still holds it.
pub(super) fn is_present(rank: usize, shared: &File) -> bool {
    let found = ask(shared, libc::F_OFD_GETLK, rank);
    // Where the system does not tell, deadlines have to.
    found.map_or(true, |lock| i32::from(lock.l_type) != libc::F_UNLCK)
}

/// Asks for, or about, the lock of the byte of a rank.
fn ask(file: &File, command: libc::c_int, rank: usize) -> Result<libc::flock> {
    // SAFETY: plain numbers, of which zeros are valid.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::F_WRLCK as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock.l_start = libc::off_t::try_from(rank).map_err(|_| ErrorKind::InvalidInput)?;
    lock.l_len = 1;
    // SAFETY: an open descriptor, and a lock that the system reads and writes until it returns.
    match unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut lock) } {
        0 => Ok(lock),
        _ => Err(Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rank_is_present_until_it_lets_go() {
        let shared = super::super::system::nameless_file("presence").unwrap();
        assert!(!is_present(3, &shared));
        let presence = Presence::of(3, &shared).unwrap();
        assert!(is_present(3, &shared) && !is_present(2, &shared));
        assert!(Presence::of(3, &shared).is_err(), "it was taken twice");
        drop(presence);
        assert!(!is_present(3, &shared));
    }
}
