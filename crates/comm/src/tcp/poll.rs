//! The system's `poll`, over a list that is kept.

use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

/// Connections, and what is awaited of each.
#[derive(Default)]
pub(super) struct Polls {
    all: Vec<libc::pollfd>,
}

/// The readiness of a connection. One that is broken is ready for whatever finds that out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ready {
    pub to_read: bool,
    pub to_write: bool,
}

impl Polls {
    pub(super) fn clear(&mut self) {
        self.all.clear();
    }

    /// Whether nothing is awaited of any.
    pub(super) fn is_empty(&self) -> bool {
        self.all.iter().all(|poll| poll.fd < 0)
    }

    /// Awaits this of a connection, which stays open until the next [`Polls::clear`].
    pub(super) fn add(&mut self, connection: &impl AsRawFd, wanted: Ready) {
        let mut events = 0;
        if wanted.to_read {
            events |= libc::POLLIN;
        }
        if wanted.to_write {
            events |= libc::POLLOUT;
        }
        // The system passes over a negative one, which else would be told that it is broken.
        let fd = if events == 0 { -1 } else { connection.as_raw_fd() };
        self.all.push(libc::pollfd { fd, events, revents: 0 });
    }

    /// Returns when one of them is ready or the limit has passed: how many are. A signal ends it
    /// early.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn wait(&mut self, limit: Duration) -> io::Result<usize> {
        let limit_ms = i32::try_from(limit.as_millis()).unwrap_or(i32::MAX);
        let count = self.all.len() as libc::nfds_t;
        // SAFETY: the list has `count` entries, which the system reads and writes until it returns.
        let ready = unsafe { libc::poll(self.all.as_mut_ptr(), count, limit_ms) };
        usize::try_from(ready).or_else(|_| match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::Interrupted => Ok(0),
            error => Err(error),
        })
    }

    /// Of each connection, in the order in which they were added.
    pub(super) fn ready(&self) -> impl Iterator<Item = Ready> + '_ {
        const BROKEN: i16 = libc::POLLHUP | libc::POLLERR | libc::POLLNVAL;
        self.all.iter().map(|poll| Ready {
            to_read: poll.revents & (libc::POLLIN | BROKEN) != 0,
            to_write: poll.revents & (libc::POLLOUT | BROKEN) != 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn what_is_ready_is_told_and_what_is_not_awaited_is_not() {
        let [(mut a, b), (c, d)] = [(); 2].map(|()| UnixStream::pair().unwrap());
        a.write_all(b"x").unwrap();
        let mut polls = Polls::default();
        let read = Ready { to_read: true, to_write: false };
        let none = Ready { to_read: false, to_write: false };
        polls.add(&b, read);
        polls.add(&c, read);
        assert_eq!(polls.wait(Duration::from_secs(60)).unwrap(), 1);
        assert_eq!(polls.ready().collect::<Vec<_>>(), [read, none]);
        drop(d);
        assert_eq!(polls.wait(Duration::from_secs(60)).unwrap(), 2);
        assert!(polls.ready().all(|ready| ready.to_read));
        polls.clear();
        polls.add(&a, read);
        assert_eq!(polls.wait(Duration::ZERO).unwrap(), 0);
    }
}
