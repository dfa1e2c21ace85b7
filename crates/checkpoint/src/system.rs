//! The system calls that the standard library does not offer.

use std::ffi::CString;
use std::fs::File;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Room that a file system has left for this user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Free {
    pub bytes: u64,
    /// Files that can still be made; `None` where there is no limit or it is not told.
    pub files: Option<u64>,
}

/// Room for an unprivileged process on the file system that holds `path`; `None` where it does not
/// say (some network file systems report no blocks at all).
pub(crate) fn free(path: &Path) -> Option<Free> {
    let path = CString::new(path.as_os_str().as_bytes()).ok()?;
    let mut stat = MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: `path` is a NUL-terminated string and `stat` is writable memory of the size of
    // `struct statvfs`; both outlive the call, which keeps neither.
    let status = unsafe { libc::statvfs(path.as_ptr(), stat.as_mut_ptr()) };
    if status != 0 {
        return None;
    }
    // SAFETY: statvfs returned 0, so it has filled the whole structure.
    let stat = unsafe { stat.assume_init() };
    // The field widths differ between platforms.
    #[allow(clippy::unnecessary_cast)]
    let (blocks, free, unit) = (stat.f_blocks as u64, stat.f_bavail as u64, stat.f_frsize as u64);
    #[allow(clippy::unnecessary_cast)]
    let (inodes, files) = (stat.f_files as u64, stat.f_favail as u64);
    let bytes = free.saturating_mul(unit);
    // File systems that make inodes as they need them count none.
    (blocks > 0).then_some(Free { bytes, files: (inodes > 0).then_some(files) })
}

/// Asks the kernel to begin writing some bytes of a file to the disk, without waiting, so that the
/// disk works while the next bytes are being fetched and summed. Only a hint: it makes nothing
/// durable, and errors that it meets are kept for fsync.
#[cfg(target_os = "linux")]
pub(crate) fn begin_writeback(file: &File, offset: u64, count: u64) {
    use std::os::fd::AsRawFd;

    let (Ok(offset), Ok(count)) = (i64::try_from(offset), i64::try_from(count)) else { return };
    // SAFETY: the call takes no pointer, and `file` keeps its descriptor open meanwhile.
    let _ = unsafe {
        libc::sync_file_range(file.as_raw_fd(), offset, count, libc::SYNC_FILE_RANGE_WRITE)
    };
}

/// Asks the kernel to drop the pages of a file that memory holds and the disk has, so that they are
/// read from the disk next. Only a hint.
#[cfg(target_os = "linux")]
pub(crate) fn forget(file: &File) {
    use std::os::fd::AsRawFd;

    // SAFETY: the call takes no pointer, and `file` keeps its descriptor open meanwhile.
    let _ = unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
}

/// Other systems have no such hint.
#[cfg(not(target_os = "linux"))]
pub(crate) fn forget(_: &File) {}

/// Other systems have no such hint.
#[cfg(not(target_os = "linux"))]
pub(crate) fn begin_writeback(_: &File, _: u64, _: u64) {}

#[cfg(test)]
mod tests {
    #[test]
    fn a_real_directory_has_free_space_and_a_missing_one_has_no_answer() {
        assert!(super::free(&std::env::temp_dir()).is_some_and(|free| free.bytes > 0));
        assert_eq!(super::free("/no/such/directory".as_ref()), None);
    }
}
