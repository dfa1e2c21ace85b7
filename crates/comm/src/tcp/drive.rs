//! The loop that moves an operation: one thread, the connections to all peers, both ways at once.
//!
//! ```text
//!   ┌─▶ send to each peer what its socket takes ─▶ receive from each what its socket has ─┐
//!   │                                                                                     ▼
//!   └── poll: at once while something moves, then for a while, then asleep ◀── not all through
//! ```
//!
//! No connection holds up another, so operations of all ranks together cannot lock up. Asleep, the
//! thread wakes every [`patience::LOOK`] to see whether the job is given up or a peer stands still.

use std::time::{Duration, Instant};

use device::trace::now_ns;

use super::link::Link;
use super::poll::{Polls, Ready};
use super::progress::{Progress, TcpCall};
use super::traffic::{EXCUSE, Traffic, Way};
use super::turn::Turn;
use crate::looks::Looks;
use crate::{CommError, Operation, Result, meter, patience};

/// Most looks at the sockets before a sleep, where every rank of this host has a core: about 50 µs,
/// more than it takes to wake a thread.
const LOOKS: usize = 200;
/// And where ranks outnumber cores: each gives way to whoever else can run here.
const YIELDS: usize = 32;
/// A sleep that ends so soon after looks that saw nothing: the peer may have needed this core.
const QUICK: Duration = Duration::from_micros(200);
/// How long to leave sockets alone that say that they are ready and are not, as they do where the
/// system is short of memory for them.
const PAUSE: Duration = Duration::from_millis(1);

/// How a rank waits.
pub(super) struct Waiting {
    polls: Polls,
    /// Another rank may need this one's core.
    gives_way: bool,
    /// Before the next sleep.
    looks: Looks,
}

impl Waiting {
    /// Of a rank of a host whose ranks `have_cores`, one each.
    pub(super) fn new(have_cores: bool) -> Waiting {
        let looks = Looks::up_to(if have_cores { LOOKS } else { YIELDS });
        Waiting { polls: Polls::default(), gives_way: !have_cores, looks }
    }

    /// After looks that have seen nothing, something came in so long a sleep.
    fn slept(&self, took: Duration) {
        if took < QUICK {
            self.looks.held_up();
        }
    }

    /// Returns when a socket has become ready for something that is wanted of it, or after `limit`:
    /// whether one has.
    fn poll(
        &mut self,
        links: &mut [Option<Link>],
        traffic: &dyn Traffic,
        limit: Duration,
    ) -> Result<bool> {
        let waits = |link: &Link| {
            let wanted = link.wanted(traffic);
            Ready {
                to_read: wanted.to_read && !link.ready.to_read,
                to_write: wanted.to_write && !link.ready.to_write,
            }
        };
        self.polls.clear();
        for link in links.iter().flatten() {
            self.polls.add(&link.stream, waits(link));
        }
        if limit.is_zero() && self.polls.is_empty() {
            return Ok(true);
        }
        let count = self.polls.wait(limit).map_err(CommError::Runtime)?;
        for (link, ready) in links.iter_mut().flatten().zip(self.polls.ready()) {
            link.ready.to_read |= ready.to_read;
            link.ready.to_write |= ready.to_write;
        }
        Ok(count > 0)
    }
}

/// Moves all messages of an operation.
///
/// # Errors
/// Peers that are lost, do something else or stand still; damaged frames; the job is given up.
pub(super) fn drive(
    links: &mut [Option<Link>],
    waiting: &mut Waiting,
    call: &TcpCall,
    progress: &mut Progress<'_>,
    traffic: &mut dyn Traffic,
) -> Result<()> {
    for link in links.iter_mut().flatten() {
        link.begin(traffic);
        progress.expect(link.expected(traffic));
    }
    traffic.begin()?;
    // Whether sockets have said that they are ready, and nothing has moved since.
    let (mut looks, mut said_ready) = (0, false);
    let (begin_ns, mut all_came) = (now_ns(), false);
    loop {
        let mut moved = false;
        for way in [Way::Out, Way::In] {
            for link in links.iter_mut().flatten() {
                moved |= link.step(way, &mut Turn { call, progress, traffic })?;
            }
        }
        if !all_came && links.iter().flatten().all(Link::has_come) {
            all_came = true;
            meter::waited_since(begin_ns);
        }
        // A finished operation stays finished, even if the job is given up meanwhile.
        if links.iter().flatten().all(Link::is_done) {
            return Ok(());
        }
        progress.job.revocation().check()?;
        looks = if moved { 0 } else { looks + 1 };
        if moved || looks <= waiting.looks.now() {
            if waiting.gives_way && !moved {
                std::thread::yield_now();
            }
            if waiting.poll(links, traffic, Duration::ZERO)? && !moved {
                waiting.looks.helped();
            }
            said_ready &= !moved;
            continue;
        }
        progress.before_sleep();
        let since = Instant::now();
        if waiting.poll(links, traffic, patience::LOOK)? {
            if !std::mem::replace(&mut said_ready, true) {
                waiting.slept(since.elapsed());
                continue;
            }
            std::thread::sleep(PAUSE);
        }
        let (later, missing) = missing(links, call.operation, traffic);
        progress.after_sleep(call, later, missing)?;
    }
}

/// Who is waited for, and how much longer than for the timeout.
///
/// Those are peers that have not begun; if all have, those that a message is awaited from, or that
/// have not taken one. Whoever may only wait for others itself is given longer, so that those who
/// know better are heard before; of several the ones that may least are waited for. In an exchange
/// peers do not wait for each other: each is awaited until its own messages are through.
fn missing(
    links: &[Option<Link>],
    operation: Operation,
    traffic: &dyn Traffic,
) -> (Duration, impl Iterator<Item = usize> + Clone) {
    let has_begun = move |link: &Link| operation == Operation::Exchange || link.receiving.has_begun;
    let absent = links.iter().flatten().filter(|link| !has_begun(link)).count();
    let later = move |link: &Link| match absent {
        0 => link.excuse(traffic),
        1 => (!has_begun(link)).then_some(Duration::ZERO),
        // All but one may wait for that one in the operation before.
        _ => (!has_begun(link)).then_some(EXCUSE),
    };
    let least = links.iter().flatten().filter_map(later).min();
    let of_least = move |link: &&Link| later(link) == least;
    (least.unwrap_or_default(), links.iter().flatten().filter(of_least).map(|link| link.peer))
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::super::link::Wire;
    use super::super::rig;
    use super::super::traffic::{Give, Message, Take};
    use super::*;
    use crate::job::Members;
    use crate::tls::Stream;

    /// An empty message to the peer, and none from it.
    struct Out;

    impl Traffic for Out {
        fn messages(&self, way: Way, _: usize) -> usize {
            usize::from(way == Way::Out)
        }

        fn bytes(&self, _: Way, _: Message) -> Option<usize> {
            Some(0)
        }

        fn give(&self, _: Message, _: std::ops::Range<usize>, go: Give) -> Result<()> {
            go(&[]);
            Ok(())
        }

        fn take(&mut self, _: Message, _: std::ops::Range<usize>, _: Take) -> Result<()> {
            Ok(())
        }
    }

    /// From here on the system takes nothing that this thread writes, and says that it cannot now;
    /// false where that is not to be had.
    fn nothing_is_taken() -> bool {
        let op = |code, k| libc::sock_filter { code, jt: 0, jf: 0, k };
        let (load, equal, end) = (0x20, 0x15, 0x06);
        let number = u32::try_from(libc::SYS_writev).unwrap();
        let no = libc::SECCOMP_RET_ERRNO | libc::EAGAIN as u32;
        let is_other = libc::sock_filter { jf: 1, ..op(equal, number) };
        let mut filter = [op(load, 0), is_other, op(end, no), op(end, libc::SECCOMP_RET_ALLOW)];
        let program = libc::sock_fprog { len: 4, filter: filter.as_mut_ptr() };
        // SAFETY: a program of so many instructions, which the system copies.
        unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
                && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program)
                    == 0
        }
    }

    #[test]
    fn a_socket_that_says_it_is_ready_and_is_not_has_a_deadline_and_takes_no_core() {
        // In a thread of its own, which stays so.
        let thread = std::thread::spawn(|| {
            if !nothing_is_taken() {
                eprintln!("skipped: this system does not filter calls");
                return;
            }
            let (job, members) = (rig::job(400), Members::all(0, 2));
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            stream.set_nonblocking(true).unwrap();
            let mut links = [
                None,
                Some(Link::new(1, Wire { stream: Stream::Plain(stream), keys: rig::keys() })),
            ];
            let (mut waiting, call) = (Waiting::new(true), rig::call(Operation::Exchange));
            let mut progress = Progress::new(&job, &members);
            let used = || {
                let mut used = libc::timespec { tv_sec: 0, tv_nsec: 0 };
                // SAFETY: a valid timespec to write to.
                unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut used) };
                Duration::new(used.tv_sec as u64, used.tv_nsec as u32)
            };
            let before = used();
            let ended = drive(&mut links, &mut waiting, &call, &mut progress, &mut Out);
            let (took, error) = (used() - before, ended.unwrap_err());
            let named = matches!(&error, CommError::Timeout { missing, .. } if *missing == [1]);
            assert!(named, "{error}");
            assert!(took < Duration::from_millis(200), "{took:?} of 400 ms on a core");
        });
        thread.join().unwrap();
    }

    #[test]
    fn only_who_comes_as_soon_as_this_rank_sleeps_needed_its_core() {
        let waiting = Waiting::new(true);
        waiting.slept(Duration::from_secs(1));
        assert_eq!(waiting.looks.now(), LOOKS);
        waiting.slept(Duration::from_micros(5));
        assert!(waiting.looks.now() < LOOKS);
    }

    #[test]
    fn ranks_that_outnumber_cores_look_less_and_give_way() {
        let [alone, crowded] = [true, false].map(Waiting::new);
        assert!(!alone.gives_way && crowded.gives_way);
        assert!(crowded.looks.most < alone.looks.most);
    }
}
