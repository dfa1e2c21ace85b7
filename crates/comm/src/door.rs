//! Taking connections from whoever comes: one that does not say who it is costs nothing.
//!
//! A connection has [`LONGEST`] to be introduced, and only so many wait for that at a time; when
//! there are more, the ones that have been silent longest make room. A port may be dialled by
//! anyone, so neither a bad introduction nor an error of the system ends anything here. What an
//! introduction is, and that it tells a stranger nothing, is the `handshake` module's.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep, sleep_until};

use crate::patience::Patience;
use crate::{CommError, Result};

/// How long a connection may take to say who it is.
const LONGEST: Duration = Duration::from_secs(10);
/// How long it may, whatever waits behind it: an introduction is two packets, the second of which
/// answers one of ours.
const GRACE: Duration = Duration::from_millis(100);
/// Connections that may wait at a time.
const MOST: usize = 64;

/// The same where guests are many: their machines are as busy as this one.
const GRACE_OF_MANY: Duration = Duration::from_secs(5);
/// Files that are left where guests are many.
pub(crate) const BESIDE: usize = 96;
/// Files that a process needs at least beside its connections: data, checkpoints, runtimes.
const SPARE: usize = 8;

/// A listener, and the connections that were not introduced yet; `T` is what an introduction
/// yields.
pub(crate) struct Door<T> {
    listener: TcpListener,
    most: usize,
    grace: Duration,
    silent: VecDeque<(Instant, AbortHandle)>,
    introductions: JoinSet<Option<T>>,
}

impl<T: Send + 'static> Door<T> {
    /// Needs a runtime.
    ///
    /// # Errors
    /// The system refuses.
    pub(crate) fn new(listener: std::net::TcpListener) -> std::io::Result<Door<T>> {
        Door::expecting(listener, 0)
    }

    /// As [`Door::new`], where so many guests may come at once: as long as there are files for
    /// them, none has to make room, however busy this machine is or theirs are.
    ///
    /// # Errors
    /// The system refuses.
    pub(crate) fn expecting(
        listener: std::net::TcpListener,
        guests: usize,
    ) -> std::io::Result<Door<T>> {
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let most = open_files().map_or(MOST.max(guests), |files| most(files, guests));
        let grace = if guests > MOST { GRACE_OF_MANY } else { GRACE };
        let (silent, introductions) = (VecDeque::new(), JoinSet::new());
        Ok(Door { listener, most, grace, silent, introductions })
    }

    /// The next connection that `introduce` takes for one of ours. What was begun goes on if this
    /// is cut off.
    pub(crate) async fn next<I>(&mut self, introduce: impl Fn(TcpStream, SocketAddr) -> I) -> T
    where
        I: Future<Output = Option<T>> + Send + 'static,
    {
        loop {
            self.silent.retain(|(_, silent)| !silent.is_finished());
            let oldest = self.silent.front().map(|(since, _)| *since + self.grace);
            let room_at = oldest.filter(|_| self.silent.len() >= self.most);
            tokio::select! {
                biased;
                Some(introduced) = self.introductions.join_next() => {
                    if let Ok(Some(introduced)) = introduced {
                        return introduced;
                    }
                }
                () = sleep_until(room_at.unwrap_or_else(Instant::now)), if room_at.is_some() => {
                    self.turn_away_oldest();
                }
                accepted = self.listener.accept(), if room_at.is_none() => match accepted {
                    Ok((stream, from)) => {
                        let introduction = introduce(stream, from);
                        let introduction =
                            async move { Patience::new(LONGEST).within(introduction).await? };
                        let silent = self.introductions.spawn(introduction);
                        self.silent.push_back((Instant::now(), silent));
                    }
                    Err(error) => {
                        if is_shortage(&error) {
                            self.turn_away_oldest();
                        }
                        sleep(Duration::from_millis(20)).await;
                    }
                }
            }
        }
    }

    fn turn_away_oldest(&mut self) {
        if let Some((_, oldest)) = self.silent.pop_front() {
            oldest.abort();
        }
    }
}

/// How many may wait, of so many files: a quarter, up to a number that is enough for strangers; or
/// all guests, as far as that leaves as many files for what else the process does.
fn most(files: usize, guests: usize) -> usize {
    let left = files.saturating_sub(BESIDE);
    (files / 4).clamp(1, MOST).max(if guests > MOST { guests.min(left) } else { 0 })
}

/// Of descriptors or memory, not a fault of the connection that would have been next.
fn is_shortage(error: &std::io::Error) -> bool {
    let short = [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM];
    error.raw_os_error().is_some_and(|code| short.contains(&code))
}

/// Whether trying again will not reach an address: who is not there yet may come, a network that
/// is not there stays away.
pub(crate) fn is_final(error: &std::io::Error) -> bool {
    let lasting =
        [libc::ENETUNREACH, libc::ENETDOWN, libc::EAFNOSUPPORT, libc::EACCES, libc::EPERM];
    error.raw_os_error().is_some_and(|code| lasting.contains(&code))
}

/// Has the kernel ask, where nothing is sent, whether the other host is still there: after 30 s and
/// three questions 10 s apart the connection ends. A host that lost its power says nothing else.
/// Where the system does not do that, deadlines have to.
pub(crate) fn keep_alive(stream: &TcpStream) {
    let asking = TcpKeepalive::new()
        .with_time(Duration::from_secs(30))
        .with_interval(Duration::from_secs(10))
        .with_retries(3);
    let _ = SockRef::from(stream).set_tcp_keepalive(&asking);
}

/// Files that this process may have open; `None` where the system does not tell.
fn open_files() -> Option<usize> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Proves that this process may open `more` connections and still have some files left; says
/// nothing where the system does not tell.
///
/// # Errors
/// [`CommError::Descriptors`].
pub(crate) fn check_room(more: usize) -> Result<()> {
    let (Some(limit), Ok(open)) = (open_files(), std::fs::read_dir("/proc/self/fd")) else {
        return Ok(());
    };
    room(limit, open.count(), more)
}

fn room(limit: usize, open: usize, more: usize) -> Result<()> {
    let needed = open + more + SPARE;
    match more == 0 || needed <= limit {
        true => Ok(()),
        false => Err(CommError::Descriptors { open, more, needed, limit }),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::TcpStream as Client;

    use tokio::io::AsyncReadExt;

    use super::*;

    /// Takes who says `hi`.
    async fn hi(mut stream: TcpStream, _: SocketAddr) -> Option<[u8; 2]> {
        let mut word = [0; 2];
        stream.read_exact(&mut word).await.ok()?;
        (word == *b"hi").then_some(word)
    }

    #[test]
    fn whoever_speaks_is_let_in_past_many_who_do_not() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut guests: Vec<Client> = (0..100).map(|_| Client::connect(addr).unwrap()).collect();
        guests[0].write_all(b"no").unwrap();
        drop(guests.remove(1));
        let mut last = Client::connect(addr).unwrap();
        last.write_all(b"hi").unwrap();
        let word = runtime.block_on(async {
            let mut door = Door::new(listener).unwrap();
            door.most = 64;
            tokio::time::timeout(Duration::from_secs(60), door.next(hi)).await
        });
        assert_eq!(word.unwrap(), *b"hi");
    }

    #[test]
    fn all_guests_may_wait_as_far_as_there_are_files() {
        for (files, guests, expected) in
            [(60, 2, 15), (1024, 2, 64), (20_000, 64, 64), (1120, 1024, 1024), (1024, 1000, 928)]
        {
            assert_eq!(most(files, guests), expected, "{files} files, {guests} guests");
        }
    }

    #[test]
    fn too_many_connections_are_refused_with_the_numbers() {
        assert!(room(1024, 10, 1024 - 10 - SPARE).is_ok());
        assert!(room(8, 8, 0).is_ok());
        let text = room(1024, 10, 1024 - 9 - SPARE).unwrap_err().to_string();
        assert!(text.contains("1007 connections beside 10 open files"), "{text}");
        assert!(text.contains("`ulimit -n` is 1024; raise it to 1025 at least"), "{text}");
    }

    #[test]
    fn the_system_tells_how_many_files_may_be_open() {
        if cfg!(target_os = "linux") {
            assert!(open_files().is_none_or(|most| most > 0));
        }
    }
}
