//! Strangers at the ports of a job, who say changed forms of what its ranks say: they take little
//! memory, end nothing, and keep nobody out. They go on for a few seconds, or for
//! `MUSTER_FUZZ_SECONDS`.

mod common;
#[path = "common/mixed.rs"]
mod mixed;

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicIsize, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use comm::rendezvous::{Hello, Server, join};
use comm::{Backend, World};
use common::{PATIENCE_MS, control, settings};
use mixed::Draw;

/// Bytes that this process holds, and the most there were.
static HELD: AtomicIsize = AtomicIsize::new(0);
static MOST: AtomicIsize = AtomicIsize::new(0);

struct Counting;

fn count(bytes: isize) {
    let now = HELD.fetch_add(bytes, Ordering::Relaxed) + bytes;
    MOST.fetch_max(now, Ordering::Relaxed);
}

// SAFETY: passes every request on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promises are those of the system's allocator.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: as above.
        unsafe { System.dealloc(start, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// More than a job of two ranks and its strangers take; a megabyte for each of them would be more.
const ENOUGH: isize = 24 << 20;
/// Strangers who promise a lot at the same time.
const PROMISES: usize = 60;

fn hello(job: &str, rank: usize, listen: Option<SocketAddr>) -> Hello {
    let version = "1".to_owned();
    Hello { job: job.to_owned(), rank, world: 2, version, listen, ..Hello::default() }
}

/// An address that leads to `addr`, and everything that is said on the connections made there.
fn recorded(addr: SocketAddr) -> (SocketAddr, Arc<Mutex<Vec<Vec<u8>>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (way, all) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(Vec::new())));
    let known = Arc::clone(&all);
    std::thread::spawn(move || {
        for inner in listener.incoming() {
            let (mut inner, Ok(mut outer)) = (inner.unwrap(), TcpStream::connect(addr)) else {
                return;
            };
            let mut back = (outer.try_clone().unwrap(), inner.try_clone().unwrap());
            std::thread::spawn(move || std::io::copy(&mut back.0, &mut back.1));
            let known = Arc::clone(&known);
            std::thread::spawn(move || {
                let (mut said, mut bytes) = (Vec::new(), [0; 4096]);
                while let Ok(count @ 1..) = inner.read(&mut bytes) {
                    said.extend_from_slice(&bytes[..count]);
                    if outer.write_all(&bytes[..count]).is_err() {
                        break;
                    }
                }
                let _ = outer.shutdown(Shutdown::Both);
                known.lock().unwrap().push(said);
            });
        }
    });
    (way, all)
}

/// Once all that is said there was recorded.
fn heard(all: &Mutex<Vec<Vec<u8>>>, enough: usize) -> Vec<Vec<u8>> {
    let start = Instant::now();
    while all.lock().unwrap().len() < enough {
        assert!(start.elapsed() < Duration::from_secs(60), "nothing was recorded");
        std::thread::sleep(Duration::from_millis(5));
    }
    all.lock().unwrap().clone()
}

/// The messages of a worker of another job to its server.
fn to_a_server() -> Vec<Vec<u8>> {
    let server = Server::bind("127.0.0.1:0", "other", 2, PATIENCE_MS).unwrap();
    let (way, all) = recorded(server.addr());
    let second =
        std::thread::spawn(move || join(way, hello("other", 1, None), PATIENCE_MS).unwrap());
    let first = join(way, hello("other", 0, None), PATIENCE_MS).unwrap();
    let second = second.join().unwrap();
    first.control.status(7);
    first.control.bye();
    second.control.bye();
    heard(&all, 2)
}

/// The messages of a rank of another job to another.
fn to_a_rank() -> Vec<Vec<u8>> {
    let mut backends = common::backends("tcp", 2);
    let Backend::Tcp { peers, .. } = &mut backends[1] else { panic!("not tcp") };
    let (way, all) = recorded(peers[0]);
    peers[0] = way;
    connect_all(backends, |world| control(&world).barrier().unwrap());
    // Signals and two channels.
    heard(&all, 3)
}

fn connect_all(backends: Vec<Backend>, body: impl Fn(World) + Sync) {
    let body = &body;
    std::thread::scope(|scope| {
        for (rank, backend) in backends.into_iter().enumerate() {
            scope.spawn(move || {
                body(comm::connect_with(backend, rank, 2, settings(PATIENCE_MS)).unwrap());
            });
        }
    });
}

/// Changed a little, and never what a rank of this job could say.
fn mutated(said: &[u8], draw: &mut Draw) -> Vec<u8> {
    let mut said = said.to_vec();
    for _ in 0..1 + draw.below(4) {
        if said.is_empty() {
            said.push(draw.next() as u8);
        }
        let at = draw.below(said.len());
        let end = (at + 1 + draw.below(40)).min(said.len());
        match draw.below(5) {
            0 | 1 => said[at] ^= 1 << draw.below(8),
            2 => said.truncate(at),
            3 => drop(said.drain(at..end)),
            _ => said[at..end].fill_with(|| draw.next() as u8),
        }
    }
    said
}

/// Strangers come to `addr` one after another until `is_over`; how many did.
fn come(addr: SocketAddr, said: &[Vec<u8>], is_over: &AtomicBool, mut draw: Draw) -> u64 {
    let mut count = 0;
    while !is_over.load(Ordering::Acquire) {
        let Ok(mut stream) = TcpStream::connect(addr) else { continue };
        let said = mutated(&said[draw.below(said.len())], &mut draw);
        let cut = draw.below(said.len() + 1);
        let _ = stream.write_all(&said[..cut]).and_then(|()| stream.write_all(&said[cut..]));
        match draw.below(3) {
            0 => drop(socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))),
            1 => {
                let _ = stream.set_read_timeout(Some(Duration::from_millis(3)));
                let _ = stream.read(&mut [0; 64]);
            }
            _ => {}
        }
        count += 1;
    }
    count
}

/// Runs `job` while strangers come, after they have for a while, and promise a lot of bytes.
fn among_strangers(what: &str, addr: SocketAddr, said: &[Vec<u8>], job: impl FnOnce()) {
    let seconds = std::env::var("MUSTER_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok());
    let (is_over, came) = (AtomicBool::new(false), AtomicU64::new(0));
    let before = HELD.load(Ordering::Relaxed);
    MOST.store(before, Ordering::Relaxed);
    std::thread::scope(|scope| {
        for seed in 0..2 {
            let (is_over, came) = (&is_over, &came);
            scope.spawn(move || {
                came.fetch_add(come(addr, said, is_over, Draw(seed)), Ordering::Relaxed);
            });
        }
        std::thread::sleep(Duration::from_secs(seconds.unwrap_or(4)));
        let promise = |_| {
            let mut stream = TcpStream::connect(addr).unwrap();
            // A megabyte, of which little comes.
            let _ = stream.write_all(&(1_u32 << 20).to_le_bytes());
            let _ = stream.write_all(&said[0][4.min(said[0].len())..]);
            stream
        };
        let promises: Vec<TcpStream> = (0..PROMISES).map(promise).collect();
        std::thread::sleep(Duration::from_millis(50));
        job();
        drop(promises);
        is_over.store(true, Ordering::Release);
    });
    let most = MOST.load(Ordering::Relaxed) - before;
    println!("{what}: {} strangers; {most} bytes at most", came.load(Ordering::Relaxed));
    assert!(most < ENOUGH, "{what}: {most} bytes of memory");
}

/// One after the other: memory is counted for all.
#[test]
fn strangers_take_little_and_end_nothing() {
    let said = to_a_server();
    let server = Server::bind("127.0.0.1:0", "job", 2, 10 * PATIENCE_MS).unwrap();
    among_strangers("server", server.addr(), &said, || {
        let addr = server.addr();
        let second = std::thread::spawn(move || join(addr, hello("job", 1, None), PATIENCE_MS));
        let first = join(addr, hello("job", 0, None), PATIENCE_MS).unwrap();
        let second = second.join().unwrap().unwrap();
        server.wait_joined().unwrap();
        first.control.bye();
        second.control.bye();
    });
    assert_eq!(server.lost(), None);

    let said = to_a_rank();
    let mut backends = common::backends("tcp", 2);
    let Backend::Tcp { peers, .. } = &backends[0] else { panic!("not tcp") };
    let addr = peers[0];
    let (second, first) = (backends.pop().unwrap(), backends.pop().unwrap());
    let rank = |rank: usize, backend: Backend| {
        let world = comm::connect_with(backend, rank, 2, settings(10 * PATIENCE_MS)).unwrap();
        for _ in 0..50 {
            control(&world).barrier().unwrap();
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    // It answers from here on.
    let first = std::thread::spawn(move || rank(0, first));
    among_strangers("rank", addr, &said, || {
        rank(1, second);
        first.join().unwrap();
    });
}
