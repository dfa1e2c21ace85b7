//! As many ranks at one server as large jobs have: two processes of this test stand for them, with
//! a thread and half of the connections each, and speak the protocol as it travels.
//!
//! `benches/cpu/meeting.sh` measures such meetings.

#[path = "common/visitor.rs"]
mod visitor;

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::ops::Range;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use comm::CommError;
use comm::rendezvous::{Hello, Server};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use visitor::{ANSWER_BYTES, CHALLENGE_BYTES, Visitor};

const LOCAL: &str = "127.0.0.1:0";
const PROCESSES: usize = 2;
/// Tells a process of this test which ranks it is: `ADDRESS FROM TO WORLD`.
const CLIENTS: &str = "SCALE_CLIENTS";
/// The line of such a process when all of its ranks have been answered.
const MET: &str = "all have met";
/// A worker's message that it leaves in good order, which is the fifth of its kinds.
const BYE: [u8; 1] = [4];

fn hello(rank: usize, world: usize) -> Hello {
    let port = 1024 + u16::try_from(rank % 60_000).unwrap();
    let digest = |what: &str| (what.to_owned(), "0123456789abcdef".to_owned());
    let what = ["build", "name of the run", "configuration", "data", "model", "ownership plan"];
    Hello {
        job: "scale".to_owned(),
        rank,
        world,
        version: "1.0".to_owned(),
        identity: what.map(digest).to_vec(),
        listen: Some(SocketAddr::from(([10, 0, 0, 7], port))),
        ..Hello::default()
    }
}

/// One rank: the connection, and the addresses that it was told.
async fn come(addr: SocketAddr, hello: Hello) -> ((TcpStream, Visitor), Vec<SocketAddr>) {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let mut visitor = Visitor::new(None, u32::try_from(hello.rank).unwrap());
    stream.write_all(&visitor.hail()).await.unwrap();
    let mut challenge = [0; CHALLENGE_BYTES];
    stream.read_exact(&mut challenge).await.unwrap();
    stream.write_all(&visitor.prove(&challenge)).await.unwrap();
    let mut answer = [0; ANSWER_BYTES];
    stream.read_exact(&mut answer).await.unwrap();
    assert!(visitor.is_taken(&answer));
    let hello = postcard::to_stdvec(&(0_u8, hello)).unwrap();
    stream.write_all(&visitor.frame(&hello)).await.unwrap();
    let mut length = [0; 4];
    stream.read_exact(&mut length).await.unwrap();
    let mut answer = vec![0; u32::from_le_bytes(length) as usize];
    stream.read_exact(&mut answer).await.unwrap();
    let joined = visitor.open(&answer);
    let (kind, peers, _start): (u8, Vec<SocketAddr>, u64) = postcard::from_bytes(joined).unwrap();
    assert_eq!(kind, 0, "it was refused");
    ((stream, visitor), peers)
}

/// Some ranks come, check what they are told, stay until all have it, and leave.
fn come_all(addr: SocketAddr, ranks: Range<usize>, world: usize, met: impl FnOnce()) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let streams = runtime.block_on(async {
        let rank = |rank| async move {
            let (stream, peers) = come(addr, hello(rank, world)).await;
            assert_eq!((peers.len(), Some(peers[rank])), (world, hello(rank, world).listen));
            stream
        };
        let tasks: Vec<_> = ranks.map(|number| tokio::spawn(rank(number))).collect();
        let mut streams = Vec::new();
        for task in tasks {
            streams.push(task.await.unwrap());
        }
        streams
    });
    met();
    runtime.block_on(async {
        for (mut stream, mut visitor) in streams {
            stream.write_all(&visitor.frame(&BYE)).await.unwrap();
            // The server has heard it when it closes the connection; so nobody was lost.
            stream.shutdown().await.unwrap();
        }
    });
}

/// Not a test: other tests start it, in processes that may have open files of their own.
#[test]
#[ignore = "the body of a process: `a_thousand_ranks_meet` starts it, in every run"]
fn clients() {
    let Ok(what) = std::env::var(CLIENTS) else { return };
    let words: Vec<&str> = what.split(' ').collect();
    let number = |word: usize| words[word].parse::<usize>().unwrap();
    come_all(words[0].parse().unwrap(), number(1)..number(2), number(3), || {
        println!("{MET}");
        // Until the others have, too.
        std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    });
}

/// A process of clients.
struct Clients(Child);

impl Clients {
    fn start(addr: SocketAddr, ranks: Range<usize>, world: usize) -> Clients {
        let what = format!("{addr} {} {} {world}", ranks.start, ranks.end);
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["clients", "--exact", "--ignored", "--nocapture"]).env(CLIENTS, what);
        Clients(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap())
    }

    fn wait_until_met(&mut self) {
        let mut lines = BufReader::new(self.0.stdout.as_mut().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains(MET)), "clients have failed");
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        // An end of its input lets it go.
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// How many seconds `world` ranks took from the start of their processes to the last answer.
fn meet(world: usize) -> Result<f64, CommError> {
    let server = Server::bind(LOCAL, "scale", world, 120_000)?;
    let (begun, share) = (Instant::now(), world / PROCESSES);
    let start = |p| Clients::start(server.addr(), p * share..(p + 1) * share, world);
    let mut clients: Vec<Clients> = (0..PROCESSES).map(start).collect();
    server.wait_joined()?;
    clients.iter_mut().for_each(Clients::wait_until_met);
    let took_s = begun.elapsed().as_secs_f64();
    drop(clients);
    assert_eq!(server.lost(), None);
    Ok(took_s)
}

#[test]
fn a_thousand_ranks_meet() {
    meet(1024).unwrap();
}

/// The most that this process has had in memory so far, in 10⁶ bytes.
fn peak_mb() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    kib.map_or(0.0, |kib| kib * 1024.0 / 1e6)
}

/// A meeting of 1,024 ranks is to take less than 1 s and 200 MB, one of 16,384 less than 30 s. The
/// memory is that of the server's process.
#[test]
#[ignore = "a measurement of half a minute and 16,384 open files: benches/cpu/meeting.sh runs it"]
fn what_a_meeting_takes() {
    for (world, most_s) in [(1024, 1.0), (16_384, 30.0)] {
        let before_mb = peak_mb();
        let took_s = match meet(world) {
            Ok(took_s) => took_s,
            Err(error @ CommError::Files { .. }) => {
                println!("SKIPPED: {error}");
                continue;
            }
            Err(error) => panic!("{error}"),
        };
        let most_mb = peak_mb();
        println!("{world} ranks met in {took_s:.3} s; {most_mb:.0} MB, {before_mb:.0} MB before");
        assert!(took_s < most_s, "{world} ranks: {took_s} s");
        assert!(world > 1024 || most_mb < 200.0, "{world} ranks: {most_mb} MB");
    }
}
