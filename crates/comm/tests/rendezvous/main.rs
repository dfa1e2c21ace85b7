//! Meeting, agreeing, and the control connection afterwards.

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/visitor.rs"]
mod visitor;

mod control;
mod lacking;
mod meeting;
mod strangers;
mod supervisors;

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use comm::rendezvous::{Hello, Joined, Server, join};
use comm::{Result, Secret};
use common::PATIENCE_MS;
use visitor::{ANSWER_BYTES, CHALLENGE_BYTES, Visitor};

pub const LOCAL: &str = "127.0.0.1:0";

pub fn server(world: usize, timeout_ms: u64) -> Server {
    Server::bind(LOCAL, "job", world, timeout_ms).unwrap()
}

pub fn hello(rank: usize, world: usize) -> Hello {
    Hello {
        job: "job".to_owned(),
        rank,
        world,
        version: "1.0".to_owned(),
        identity: vec![("config".to_owned(), "ab12".to_owned())],
        ..Hello::default()
    }
}

pub fn joining(addr: SocketAddr, hello: Hello) -> JoinHandle<Result<Joined>> {
    std::thread::spawn(move || join(addr, hello, PATIENCE_MS))
}

pub fn join_all(addr: SocketAddr, hellos: Vec<Hello>) -> Vec<Result<Joined>> {
    let threads: Vec<_> = hellos.into_iter().map(|hello| joining(addr, hello)).collect();
    threads.into_iter().map(|thread| thread.join().unwrap()).collect()
}

/// Waits for something that must come.
pub fn eventually(what: &str, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_millis(PATIENCE_MS), "{what} never came");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Says who it is, and hears whether it is taken.
pub fn present(stream: &mut std::net::TcpStream, visitor: &mut Visitor) -> bool {
    stream.write_all(&visitor.hail()).unwrap();
    let mut challenge = [0; CHALLENGE_BYTES];
    stream.read_exact(&mut challenge).unwrap();
    stream.write_all(&visitor.prove(&challenge)).unwrap();
    let mut answer = [0; ANSWER_BYTES];
    stream.read_exact(&mut answer).unwrap();
    visitor.is_taken(&answer)
}

pub fn secret(text: &str) -> Secret {
    Secret::of_text(text.as_bytes()).unwrap()
}
