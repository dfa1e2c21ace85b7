//! The receive window of a connection.
//!
//! The system begins with one of 64 KiB and widens it as it sees data come and go. Until then a
//! sender of more than that waits for this rank to read, once for each window. A buffer that is set
//! (`SO_RCVBUF`) would never be widened again, and is held to a limit for all programs. But whoever
//! says that less than so many bytes are not worth waking for (`SO_RCVLOWAT`) gets a buffer that
//! holds as many, and keeps it when that is taken back (Linux, `tcp_set_rcvlowat`).

use std::os::fd::AsRawFd;

/// Above it a sender is never done before the receiver has begun, so a wider one saves nothing.
const WIDE_BYTES: i32 = 1 << 20;

/// Nothing but time depends on whether it works.
pub(super) fn widen(socket: &impl AsRawFd) {
    for least in [WIDE_BYTES, 1] {
        let (value, bytes) = ((&raw const least).cast(), size_of::<i32>() as libc::socklen_t);
        let fd = socket.as_raw_fd();
        // SAFETY: the value is an `i32` of so many bytes, which the system copies.
        unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_RCVLOWAT, value, bytes) };
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};

    use socket2::SockRef;

    use super::*;

    #[test]
    fn a_window_is_widened_and_a_byte_still_wakes() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut theirs, _) = listener.accept().unwrap();
        let bytes = || SockRef::from(&ours).recv_buffer_size().unwrap();
        let before = bytes();
        widen(&ours);
        assert!(bytes() > before || before > WIDE_BYTES as usize, "{before} bytes, {}", bytes());
        std::io::Write::write_all(&mut theirs, b"x").unwrap();
        ours.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
        assert_eq!((&ours).read(&mut [0; 8]).unwrap(), 1);
    }
}
