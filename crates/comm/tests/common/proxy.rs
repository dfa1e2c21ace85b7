//! A way to an address, past someone who does what a plan says to each connection: bytes come late,
//! or stand still, all at once or one way only; connections are closed or reset in the middle.
//!
//! A simulator such as turmoil cannot host this: it stands in for tokio's sockets, and the data
//! path has none of them, but polls those of the system.
#![allow(dead_code)] // Each test binary uses its part.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use socket2::SockRef;

/// A fault once so many bytes have gone one way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The next bytes come so much later.
    Delay(Duration),
    /// Nothing more comes this way; what is sent is taken.
    HalfOpen,
    /// Nothing comes either way on any connection of the way for so long.
    Partition(Duration),
    /// The connection ends both ways.
    Close,
    /// And says so at once, whatever is on its way.
    Reset,
}

/// Events of one direction of a connection, by the byte before which they happen, in order.
pub type Events = Vec<(usize, Event)>;

/// A listener that leads somewhere else; dropping it ends all its connections.
pub struct Way {
    pub addr: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    to: SocketAddr,
    is_over: AtomicBool,
    /// Nothing moves before.
    until: Mutex<Instant>,
    open: Mutex<Vec<TcpStream>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Way {
    /// `plan` says what happens to the connection of this number, on the way there and back.
    pub fn to(to: SocketAddr, plan: impl Fn(usize) -> [Events; 2] + Send + 'static) -> Way {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            to,
            is_over: AtomicBool::new(false),
            until: Mutex::new(Instant::now()),
            open: Mutex::default(),
            threads: Mutex::default(),
        });
        let known = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            let count = AtomicUsize::new(0);
            for inner in listener.incoming() {
                if known.is_over.load(Ordering::Acquire) {
                    return;
                }
                let events = plan(count.fetch_add(1, Ordering::Relaxed));
                if let Ok(inner) = inner {
                    // One that leads nowhere is closed, as if nobody listened.
                    let _ = connect(&known, inner, events);
                }
            }
        });
        Way { addr, shared, thread: Some(thread) }
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Release);
        let _ = TcpStream::connect(self.addr);
        let _ = self.thread.take().map(JoinHandle::join);
        for stream in self.shared.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
        for thread in self.shared.threads.lock().unwrap().drain(..) {
            thread.join().unwrap();
        }
    }
}

fn connect(shared: &Arc<Shared>, inner: TcpStream, events: [Events; 2]) -> std::io::Result<()> {
    let outer = TcpStream::connect(shared.to)?;
    inner.set_nodelay(true)?;
    outer.set_nodelay(true)?;
    let back = (outer.try_clone()?, inner.try_clone()?);
    shared.open.lock().unwrap().extend([outer.try_clone()?, inner.try_clone()?]);
    let [there, here] = events;
    for ((from, to), events) in [(inner, outer), back].into_iter().zip([there, here]) {
        let known = Arc::clone(shared);
        let thread = std::thread::spawn(move || known.pass(from, to, events));
        shared.threads.lock().unwrap().push(thread);
    }
    Ok(())
}

impl Shared {
    fn pass(&self, mut from: TcpStream, mut to: TcpStream, events: Events) {
        let (mut bytes, mut passed) = (vec![0; 64 << 10], 0);
        let mut events = events.into_iter().peekable();
        loop {
            let most = events.peek().map_or(bytes.len(), |(at, _)| (at - passed).min(bytes.len()));
            if most == 0 {
                let (_, event) = events.next().unwrap();
                if !self.happens(event, [&mut from, &mut to]) {
                    return;
                }
                continue;
            }
            let count = match from.read(&mut bytes[..most]) {
                Ok(count @ 1..) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Ok(0) | Err(_) => break,
            };
            self.wait(*self.until.lock().unwrap());
            passed += count;
            if to.write_all(&bytes[..count]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Write);
    }

    /// Sleeps, but not beyond the end of the way.
    fn wait(&self, until: Instant) {
        while Instant::now() < until && !self.is_over.load(Ordering::Acquire) {
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Whether more bytes go this way afterwards.
    fn happens(&self, event: Event, [from, to]: [&mut TcpStream; 2]) -> bool {
        match event {
            Event::Delay(time) => self.wait(Instant::now() + time),
            Event::Partition(time) => *self.until.lock().unwrap() = Instant::now() + time,
            Event::HalfOpen => {
                let _ = std::io::copy(from, &mut std::io::sink());
                return false;
            }
            Event::Close | Event::Reset => {
                if event == Event::Reset {
                    let _ = SockRef::from(&*to).set_linger(Some(Duration::ZERO));
                    let _ = SockRef::from(&*from).set_linger(Some(Duration::ZERO));
                }
                let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
                return false;
            }
        }
        true
    }
}
