//! Meeting, agreeing, and the control connection afterwards.

mod common;
#[path = "common/visitor.rs"]
mod visitor;

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use comm::rendezvous::{Absent, Hello, Joined, Server, can_serve, join, join_with, report_absent};
use comm::{Backend, Fault, Result, Secret, Settings, World};
use common::{PATIENCE_MS, control, message};
use visitor::{ANSWER_BYTES, CHALLENGE_BYTES, Visitor};

const LOCAL: &str = "127.0.0.1:0";

fn server(world: usize, timeout_ms: u64) -> Server {
    Server::bind(LOCAL, "job", world, timeout_ms).unwrap()
}

fn hello(rank: usize, world: usize) -> Hello {
    Hello {
        job: "job".to_owned(),
        rank,
        world,
        version: "1.0".to_owned(),
        identity: vec![("config".to_owned(), "ab12".to_owned())],
        listen: None,
    }
}

fn joining(addr: SocketAddr, hello: Hello) -> JoinHandle<Result<Joined>> {
    std::thread::spawn(move || join(addr, hello, PATIENCE_MS))
}

fn join_all(addr: SocketAddr, hellos: Vec<Hello>) -> Vec<Result<Joined>> {
    let threads: Vec<_> = hellos.into_iter().map(|hello| joining(addr, hello)).collect();
    threads.into_iter().map(|thread| thread.join().unwrap()).collect()
}

/// Waits for something that must come.
fn eventually(what: &str, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_millis(PATIENCE_MS), "{what} never came");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn ranks_meet_learn_addresses_report_steps_and_stop() {
    let server = server(3, PATIENCE_MS);
    let hellos = (0..3).map(|rank| Hello {
        listen: Some(SocketAddr::from(([0, 0, 0, 0], 4000 + rank as u16))),
        ..hello(rank, 3)
    });
    let joined: Vec<Joined> =
        join_all(server.addr(), hellos.collect()).into_iter().map(Result::unwrap).collect();
    server.wait_joined().unwrap();
    let expected: Vec<SocketAddr> =
        (4000..4003).map(|port| SocketAddr::from(([127, 0, 0, 1], port))).collect();
    assert!(joined.iter().all(|joined| joined.peers == expected));
    assert_eq!(server.last_step(1), None);
    joined[1].control.status(7);
    joined[1].control.status(8);
    eventually("the report", || server.last_step(1) == Some(8));
    assert!(!joined[0].control.stop_requested());
    server.request_stop();
    eventually("the stop", || joined.iter().all(|joined| joined.control.stop_requested()));
    joined.into_iter().for_each(|joined| joined.control.bye());
    std::thread::sleep(Duration::from_millis(600));
    assert_eq!(server.lost(), None);
}

#[test]
fn everyone_learns_who_differs_in_what() {
    let server = server(3, PATIENCE_MS);
    let mut hellos: Vec<Hello> = (0..3).map(|rank| hello(rank, 3)).collect();
    hellos[1].identity[0].1 = "ff00".to_owned();
    let expected = "the ranks differ in config: ab12 on ranks 0 and 2, ff00 on rank 1; \
                    start every rank with the same config";
    for result in join_all(server.addr(), hellos) {
        assert_eq!(message(result), expected);
    }
    assert_eq!(message(server.wait_joined()), expected);
}

/// Of two processes of one host.
const CLAIMED: &str = "two processes claim rank 0, both from 127.0.0.1; start each rank once, and \
                       give every host a --node-rank of its own";

#[test]
fn wrong_numbers_are_refused_for_everyone() {
    for (wrong, expected) in [
        (hello(2, 4), "rank 2 was started for 4 ranks, the job has 3"),
        (hello(3, 3), "rank 3 does not exist among 3 ranks; ranks count from 0"),
        (hello(0, 3), CLAIMED),
    ] {
        let server = server(3, PATIENCE_MS);
        let first = joining(server.addr(), hello(0, 3));
        // Time for rank 0 to take its place; were it late, the messages would still be these.
        std::thread::sleep(Duration::from_millis(200));
        let second = joining(server.addr(), wrong);
        assert_eq!(message(second.join().unwrap()), expected);
        assert_eq!(message(first.join().unwrap()), expected);
        assert_eq!(message(server.wait_joined()), expected);
        // Who comes later hears the same.
        assert_eq!(message(join(server.addr(), hello(1, 3), PATIENCE_MS)), expected);
    }
}

#[test]
fn another_jobs_worker_disturbs_nobody() {
    let server = server(1, PATIENCE_MS);
    let stranger = Hello { job: "other".to_owned(), ..hello(0, 1) };
    assert_eq!(
        message(join(server.addr(), stranger, PATIENCE_MS)),
        "a worker of job `other` came to job `job`; check its rendezvous address, and that all \
         hosts were started together"
    );
    let mut stranger = std::net::TcpStream::connect(server.addr()).unwrap();
    stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    join(server.addr(), hello(0, 1), PATIENCE_MS).unwrap().control.bye();
}

#[test]
fn missing_ranks_are_named() {
    let server = server(4, 500);
    let results = join_all(server.addr(), vec![hello(0, 4), hello(2, 4)]);
    for result in results {
        assert_eq!(
            message(result),
            "ranks 1 and 3 did not come within 500 ms; see whether they started and reach this \
             address, or raise ranks.timeout_ms"
        );
    }
}

#[test]
fn hosts_that_are_missing_are_named_and_who_comes_later_hears_of_it() {
    let server = Server::of_nodes(LOCAL, ("job", Secret::none()), 8, 4, 500).unwrap();
    let expected = "ranks 1 and 4 to 7 (all of nodes 2 and 3) did not come within 500 ms; see \
                    whether they started and reach this address, or raise ranks.timeout_ms";
    for result in join_all(server.addr(), vec![hello(0, 8), hello(2, 8), hello(3, 8)]) {
        assert_eq!(message(result), expected);
    }
    assert_eq!(message(join(server.addr(), hello(4, 8), PATIENCE_MS)), expected);
}

#[test]
fn two_hosts_that_claim_one_place_are_named_with_their_addresses() {
    let server = server(4, PATIENCE_MS);
    let first = joining(server.addr(), hello(2, 4));
    std::thread::sleep(Duration::from_millis(200));
    // From another address of this host, as another host would come.
    let other = std::net::Ipv4Addr::new(127, 0, 0, 2);
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((other, 0)).into()).unwrap();
    socket.connect(&server.addr().into()).unwrap();
    let hello = postcard::to_stdvec(&(0_u8, hello(2, 4))).unwrap();
    let mut stream = std::net::TcpStream::from(socket);
    let mut visitor = Visitor::new(None, 2);
    assert!(present(&mut stream, &mut visitor));
    stream.write_all(&visitor.frame(&hello)).unwrap();
    let expected = "two processes claim rank 2, one from 127.0.0.1 and one from 127.0.0.2; start \
                    each rank once, and give every host a --node-rank of its own";
    assert_eq!(message(first.join().unwrap()), expected);
    assert_eq!(message(server.wait_joined()), expected);
}

#[test]
fn a_meeting_beyond_the_limit_of_open_files_is_refused_at_once() {
    let refused = message(Server::bind(LOCAL, "job", 1 << 40, PATIENCE_MS));
    let start = "a meeting of 1099511627776 ranks takes 1099511627808 open files, and this process \
                 may have ";
    assert!(refused.starts_with(start), "{refused}");
    assert!(refused.ends_with(": raise the limit (`ulimit -n`, LimitNOFILE= of a service)"));
}

#[test]
fn who_comes_to_a_job_that_has_begun_is_told_and_disturbs_nobody() {
    let server = server(2, PATIENCE_MS);
    let joined = join_all(server.addr(), vec![hello(0, 2), hello(1, 2)]);
    let joined: Vec<Joined> = joined.into_iter().map(Result::unwrap).collect();
    assert_eq!(message(join(server.addr(), hello(0, 2), PATIENCE_MS)), CLAIMED);
    std::thread::sleep(Duration::from_millis(600));
    assert_eq!(server.lost(), None);
    assert!(joined.iter().all(|joined| joined.control.aborted().is_none()));
    joined.into_iter().for_each(|joined| joined.control.bye());
}

#[test]
fn a_taken_port_and_a_missing_server_are_named() {
    let server = server(1, PATIENCE_MS);
    let again = Server::bind(server.addr(), "job", 1, PATIENCE_MS);
    let addr = server.addr();
    let taken = format!(
        "cannot listen at {addr}: another process listens at port {}; choose another port",
        addr.port()
    );
    assert_eq!(message(again), taken);
    assert_eq!(message(can_serve(addr)), taken);
    drop(server);
    assert_eq!(message(can_serve(addr)), "no error");
    assert_eq!(
        message(join(addr, hello(0, 1), 200)),
        format!(
            "nobody answers at {addr} for 200 ms (Connection refused (os error 111)); check the \
             rendezvous address and that its process runs, or raise ranks.timeout_ms"
        )
    );
}

#[test]
fn a_worker_that_ends_before_the_job_begins_ends_the_meeting() {
    let server = server(2, PATIENCE_MS);
    let first = joining(server.addr(), hello(0, 2));
    std::thread::sleep(Duration::from_millis(100));
    server.report_exit(1, "exit status 2");
    let expected = "rank 1 ended before the job began: exit status 2";
    assert_eq!(message(first.join().unwrap()), expected);
}

#[test]
fn a_blamed_rank_is_lost_and_not_the_one_that_blames() {
    let server = server(3, PATIENCE_MS);
    let mut ranks = controlled(&server);
    let (_group, joined) = ranks.remove(0);
    let fault = Fault { ranks: vec![2], what: "no sign of life".to_owned() };
    joined.control.blame(&fault);
    eventually("the abort", || ranks.iter().all(|(_, j)| j.control.aborted().is_some()));
    assert_eq!(server.lost(), Some((2, fault.what)));
}

#[test]
fn a_blamed_rank_that_follows_has_time_to_say_whom() {
    let server = server(3, PATIENCE_MS);
    let mut ranks = controlled(&server);
    let [(_first_world, first), (_second_world, second)] = [(); 2].map(|()| ranks.remove(0));
    second.control.follow();
    first.control.blame(&Fault { ranks: vec![1], what: "no sign of life".to_owned() });
    std::thread::sleep(Duration::from_millis(200));
    second.control.blame(&Fault { ranks: vec![2], what: "silence".to_owned() });
    eventually("the loss", || server.lost().is_some());
    assert_eq!(server.lost(), Some((2, "silence".to_owned())));
}

/// Three ranks with a tcp group under control.
fn controlled(server: &Server) -> Vec<(World, Joined)> {
    let threads: Vec<_> = (0..3)
        .map(|rank| {
            let addr = server.addr();
            std::thread::spawn(move || {
                let listener = comm::tcp::listen(LOCAL.parse().unwrap()).unwrap();
                let listen = Some(listener.local_addr().unwrap());
                let joined = join(addr, Hello { listen, ..hello(rank, 3) }, PATIENCE_MS).unwrap();
                let (peers, job) = (joined.peers.clone(), joined.group.clone());
                let backend = Backend::Tcp { listener, peers, job };
                let group =
                    joined.control.connect(backend, rank, 3, Settings::new(PATIENCE_MS)).unwrap();
                (group, joined)
            })
        })
        .collect();
    threads.into_iter().map(|thread| thread.join().unwrap()).collect()
}

#[test]
fn a_reported_exit_revokes_the_group_of_every_rank() {
    let server = server(3, PATIENCE_MS);
    let ranks = controlled(&server);
    let waiting = control(&ranks[0].0);
    let waiting = std::thread::spawn(move || waiting.barrier());
    std::thread::sleep(Duration::from_millis(50));
    server.report_exit(2, "killed by signal 9");
    let expected = "the group was aborted: rank 2 is lost: killed by signal 9";
    assert_eq!(message(waiting.join().unwrap()), expected);
    let aborted = || ranks.iter().all(|(_, joined)| joined.control.aborted().is_some());
    eventually("the abort", aborted);
    assert_eq!(ranks[1].1.control.aborted().unwrap().rank, Some(2));
    assert_eq!(message(control(&ranks[1].0).barrier()), expected);
    assert_eq!(server.lost(), Some((2, "killed by signal 9".to_owned())));
}

#[test]
fn a_worker_that_vanishes_is_lost_and_a_supervisor_too() {
    let server = server(3, PATIENCE_MS);
    let mut ranks = controlled(&server);
    let (_group, joined) = ranks.remove(1);
    drop(joined);
    eventually("the loss", || ranks.iter().all(|(_, j)| j.control.aborted().is_some()));
    let expected = (1, "its control connection ended".to_owned());
    assert_eq!(server.lost(), Some(expected));

    let server = self::server(3, PATIENCE_MS);
    let (ranks, addr) = (controlled(&server), server.addr());
    drop(server);
    eventually("the loss", || ranks.iter().all(|(_, j)| j.control.aborted().is_some()));
    let expected = format!(
        "the group was aborted: node 0's supervising process (at {addr}) is gone, and its ranks \
         with it"
    );
    assert_eq!(message(control(&ranks[0].0).barrier()), expected);
}

#[test]
fn a_rank_that_is_lost_before_the_ranks_connect_ends_the_meeting_of_the_others() {
    let server = server(3, PATIENCE_MS);
    let listeners: Vec<_> = (0..3).map(|_| comm::tcp::listen(LOCAL.parse().unwrap())).collect();
    let hellos = listeners.iter().enumerate().map(|(rank, listener)| {
        let listen = Some(listener.as_ref().unwrap().local_addr().unwrap());
        Hello { listen, ..hello(rank, 3) }
    });
    let mut joined: Vec<Joined> =
        join_all(server.addr(), hellos.collect()).into_iter().map(Result::unwrap).collect();
    let lost = joined.remove(1);
    let start = Instant::now();
    std::thread::scope(|scope| {
        let ends: Vec<_> = [0, 2].into_iter().zip(listeners.into_iter().step_by(2)).collect();
        let ends = ends.into_iter().zip(&joined).map(|((rank, listener), joined)| {
            let (peers, job) = (joined.peers.clone(), joined.group.clone());
            let backend = Backend::Tcp { listener: listener.unwrap(), peers, job };
            scope.spawn(move || {
                message(joined.control.connect(backend, rank, 3, Settings::new(PATIENCE_MS)))
            })
        });
        let ends: Vec<_> = ends.collect();
        drop(lost);
        for end in ends {
            let what = "the group was aborted: rank 1 is lost: its control connection ended";
            assert_eq!(end.join().unwrap(), what);
        }
    });
    assert!(start.elapsed() < Duration::from_millis(PATIENCE_MS / 2));
}

#[test]
fn an_abort_ends_the_meeting_in_shared_memory() {
    let server = server(2, PATIENCE_MS);
    let mut joined: Vec<Joined> = join_all(server.addr(), (0..2).map(|r| hello(r, 2)).collect())
        .into_iter()
        .map(Result::unwrap)
        .collect();
    drop(joined.remove(1));
    let memory = comm::shm::SharedMemory::create("abort", 2).unwrap();
    let start = Instant::now();
    let met = joined[0].control.connect(Backend::Shm { memory }, 0, 2, Settings::new(PATIENCE_MS));
    let what = "the group was aborted: rank 1 is lost: its control connection ended";
    assert_eq!(message(met), what);
    assert!(start.elapsed() < Duration::from_millis(PATIENCE_MS / 2));
}

#[test]
fn a_host_that_will_not_come_ends_the_waiting_of_the_others() {
    let server = server(2, PATIENCE_MS);
    let first = joining(server.addr(), hello(0, 2));
    // Of another job: nobody's business here.
    let of = |job| Absent { job, secret: Secret::none(), tls: None, node: 1, reason: "no text" };
    assert!(report_absent(server.addr(), of("other"), Duration::from_secs(9)));
    assert!(report_absent(server.addr(), of("job"), Duration::from_secs(9)));
    let expected = "node 1 ended before the job began: no text";
    assert_eq!(message(first.join().unwrap()), expected);
    assert_eq!(message(server.wait_joined()), expected);
}

/// Says who it is, and hears whether it is taken.
fn present(stream: &mut std::net::TcpStream, visitor: &mut Visitor) -> bool {
    stream.write_all(&visitor.hail()).unwrap();
    let mut challenge = [0; CHALLENGE_BYTES];
    stream.read_exact(&mut challenge).unwrap();
    stream.write_all(&visitor.prove(&challenge)).unwrap();
    let mut answer = [0; ANSWER_BYTES];
    stream.read_exact(&mut answer).unwrap();
    visitor.is_taken(&answer)
}

/// What a worker of protocol 4 said first.
fn former() -> Vec<u8> {
    let mut body = b"MSTC\x04\0\0\0x".to_vec();
    body.extend(crc_fast::crc32_iscsi(&body).to_le_bytes());
    [&u32::try_from(body.len()).unwrap().to_le_bytes(), &body[..]].concat()
}

/// And of one to come.
fn later() -> Vec<u8> {
    [b"MSTR\x4d\0\0\0", &[7; 32][..]].concat()
}

fn told(server: &Server, words: &[u8]) -> Vec<u8> {
    let mut stream = std::net::TcpStream::connect(server.addr()).unwrap();
    stream.write_all(words).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    answer
}

#[test]
fn strangers_cost_nothing_and_are_named_when_somebody_is_missing() {
    let server = server(2, 1500);
    let connect = || std::net::TcpStream::connect(server.addr()).unwrap();
    // Silent, of another language, of another version, and with more to say than it says.
    let _silent: Vec<_> = (0..100).map(|_| connect()).collect();
    connect().write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let mut endless = connect();
    endless.write_all(&(1_u32 << 20).to_le_bytes()).unwrap();
    // They are told the number of this protocol, and nothing else.
    assert_eq!(told(&server, &former()), b"\x08\0\0\0MSTC\x05\0\0\0");
    let answer = told(&server, &later());
    assert_eq!((answer.len(), answer[4]), (CHALLENGE_BYTES, 5), "{answer:?}");
    let expected = "rank 1 did not come within 1500 ms (turned away: a worker that speaks protocol \
                    4 from 127.0.0.1; a worker that speaks protocol 77 from 127.0.0.1); see whether \
                    they started and reach this address, or raise ranks.timeout_ms";
    assert_eq!(message(join(server.addr(), hello(0, 2), PATIENCE_MS)), expected);
    let server = self::server(2, PATIENCE_MS);
    let _ = told(&server, &later());
    let joined = join_all(server.addr(), vec![hello(0, 2), hello(1, 2)]);
    joined.into_iter().for_each(|joined| joined.unwrap().control.bye());
}

#[test]
fn ranks_that_do_not_exist_are_blamed_in_vain() {
    let server = server(2, PATIENCE_MS);
    let joined = join_all(server.addr(), vec![hello(0, 2), hello(1, 2)]);
    let mut joined = joined.into_iter().map(Result::unwrap);
    let (first, second) = (joined.next().unwrap(), joined.next().unwrap());
    first.control.blame(&Fault { ranks: vec![7, usize::MAX], what: "nonsense".to_owned() });
    std::thread::sleep(Duration::from_millis(600));
    assert_eq!(server.lost(), None);
    second.control.status(3);
    eventually("the report", || server.last_step(1) == Some(3));
    let again = self::server(2, PATIENCE_MS);
    let joined = join_all(again.addr(), vec![hello(0, 2), hello(1, 2)]);
    let mut joined = joined.into_iter().map(Result::unwrap);
    let (first, _second) = (joined.next().unwrap(), joined.next().unwrap());
    first.control.blame(&Fault { ranks: vec![7, 1], what: "silence".to_owned() });
    eventually("the loss", || again.lost() == Some((1, "silence".to_owned())));
}

#[test]
fn a_reason_of_any_length_reaches_everyone() {
    let server = server(2, PATIENCE_MS);
    let joined = join_all(server.addr(), vec![hello(0, 2), hello(1, 2)]);
    let joined: Vec<Joined> = joined.into_iter().map(Result::unwrap).collect();
    server.report_exit(1, &"line é".repeat(1 << 20));
    eventually("the abort", || joined.iter().all(|j| j.control.aborted().is_some()));
    let reason = joined[0].control.aborted().unwrap().reason;
    assert!(reason.starts_with("line éline") && reason.len() < 1 << 20, "{}", reason.len());
}

/// An address that leads to `addr`, for one connection; and what then says something of its own to
/// either end.
fn way_to(addr: SocketAddr) -> (SocketAddr, JoinHandle<[std::net::TcpStream; 2]>) {
    let listener = std::net::TcpListener::bind(LOCAL).unwrap();
    let way = listener.local_addr().unwrap();
    let ends = std::thread::spawn(move || {
        let ends = [listener.accept().unwrap().0, std::net::TcpStream::connect(addr).unwrap()];
        let copy = |end: &std::net::TcpStream| end.try_clone().unwrap();
        for (mut from, mut to) in
            [(copy(&ends[0]), copy(&ends[1])), (copy(&ends[1]), copy(&ends[0]))]
        {
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut from, &mut to);
                let _ = to.shutdown(std::net::Shutdown::Write);
            });
        }
        ends
    });
    (way, ends)
}

#[test]
fn a_length_that_comes_damaged_is_no_lost_process() {
    let server = server(2, PATIENCE_MS);
    let (way, ends) = way_to(server.addr());
    let (first, second) = (joining(way, hello(0, 2)), joining(server.addr(), hello(1, 2)));
    let [mut worker, _] = ends.join().unwrap();
    let [first, _second] = [first, second].map(|joined| joined.join().unwrap().unwrap());
    worker.write_all(&[0xff; 8]).unwrap();
    eventually("the abort", || first.control.aborted().is_some());
    let reason = first.control.aborted().unwrap().reason;
    assert!(reason.ends_with("sends what comes damaged"), "{reason}");

    let server = self::server(2, PATIENCE_MS);
    let (way, ends) = way_to(server.addr());
    let joined = [joining(way, hello(0, 2)), joining(server.addr(), hello(1, 2))];
    let [_, mut to_server] = ends.join().unwrap();
    let _joined = joined.map(|joined| joined.join().unwrap().unwrap());
    to_server.write_all(&[0xff; 8]).unwrap();
    eventually("the loss", || server.lost().is_some());
    let what = "a message on its control connection came damaged, or forged";
    assert_eq!(server.lost(), Some((0, what.to_owned())));
}

#[test]
fn two_names_of_one_meeting_point_meet() {
    // What has no address here is passed over, as long as something is left.
    let elsewhere: SocketAddr = "192.0.2.1:0".parse().unwrap();
    let here: SocketAddr = LOCAL.parse().unwrap();
    let server = Server::bind(&[elsewhere, here, here][..], "job", 2, PATIENCE_MS).unwrap();
    let refused = std::net::TcpListener::bind(LOCAL).unwrap().local_addr().unwrap();
    let addrs = [refused, server.addr()];
    let second = std::thread::spawn(move || join(&addrs[..], hello(1, 2), PATIENCE_MS));
    let first = join(server.addr(), hello(0, 2), PATIENCE_MS).unwrap();
    let second = second.join().unwrap().unwrap();
    assert_eq!(first.group, second.group);
    let none = Server::bind(elsewhere, "job", 2, PATIENCE_MS);
    assert_eq!(
        message(none),
        "cannot listen at 192.0.2.1:0: 192.0.2.1 is no address of this host; give one that is"
    );
    // A later start of the same job is another group.
    let later = Server::bind(LOCAL, "job", 1, PATIENCE_MS).unwrap();
    assert_ne!(join(later.addr(), hello(0, 1), PATIENCE_MS).unwrap().group, first.group);
}

fn secret(text: &str) -> Secret {
    Secret::of_text(text.as_bytes()).unwrap()
}

/// What the ends say of each other that have different secrets: within a second, whatever the
/// timeouts are.
#[test]
fn another_secret_is_named_on_both_sides_and_disturbs_nobody() {
    let ours = secret("the secret of this job");
    let server = Server::of_nodes(LOCAL, ("job", ours), 2, 2, PATIENCE_MS).unwrap();
    let addr = server.addr();
    let others = [secret("the secret of another"), Secret::none()];
    for other in others {
        let begun = Instant::now();
        let said = message(join_with(addr, hello(1, 2), other, PATIENCE_MS));
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
        assert_eq!(
            said,
            format!(
                "the meeting point at {addr}, node 0 of the job, has another secret than this \
                 process; give every host of the job the same one (ranks.secret_file, \
                 --secret-file or MUSTER_SECRET), or none"
            )
        );
    }
    let news = server.news();
    let expected = "turned away rank 1 from 127.0.0.1, which has another secret; give every host \
                    of the job the same one (ranks.secret_file, --secret-file or MUSTER_SECRET), \
                    or none";
    assert_eq!(news, [expected], "once, however often it comes");
    assert!(server.news().is_empty());
    // All that it is told, whatever it says: random bytes, and that it is not taken.
    let mut stream = std::net::TcpStream::connect(addr).unwrap();
    let mut visitor = Visitor::new(Some("the secret of another"), 1);
    let mut words = Vec::new();
    stream.write_all(&visitor.hail()).unwrap();
    let mut challenge = [0; CHALLENGE_BYTES];
    stream.read_exact(&mut challenge).unwrap();
    stream.write_all(&visitor.prove(&challenge)).unwrap();
    stream.read_to_end(&mut words).unwrap();
    assert_eq!(words, [0; ANSWER_BYTES]);
    // Nor does a host disturb that says it will not come.
    let absent = Absent { job: "job", secret: others[0], tls: None, node: 1, reason: "to do harm" };
    assert!(!report_absent(addr, absent, Duration::from_secs(9)));
    let ranks = [0, 1]
        .map(|rank| std::thread::spawn(move || join_with(addr, hello(rank, 2), ours, PATIENCE_MS)));
    let joined = ranks.map(|rank| rank.join().unwrap().unwrap());
    assert!(message(join_with(addr, hello(0, 2), others[0], PATIENCE_MS)).contains("secret"));
    joined.into_iter().for_each(|joined| joined.control.bye());
    assert_eq!(server.lost(), None);
}

/// Whoever listens where node 0 should be learns the secret no more than who connects.
#[test]
fn a_listener_without_the_secret_is_found_out() {
    let theirs = Server::of_nodes(LOCAL, ("job", secret("the secret of another")), 1, 1, 9000);
    let addr = theirs.unwrap().addr();
    // Gone with its server; one that answers whatever it is told comes in its place.
    let listener = std::net::TcpListener::bind(addr).unwrap();
    let liar = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut hail = [0; 40];
        stream.read_exact(&mut hail).unwrap();
        let mark = blake3::hash(&hail);
        stream.write_all(&[&mark.as_bytes()[..4], &[5], &[9; 32]].concat()).unwrap();
        let mut proof = [0; 64];
        stream.read_exact(&mut proof).unwrap();
        // Taken, with the proof that it was given.
        stream.write_all(&[&[1], &proof[32..]].concat()).unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).unwrap();
        rest
    });
    let said = message(join_with(addr, hello(0, 1), secret("the secret of this job"), 9000));
    assert!(said.contains("has another secret than this process"), "{said}");
    assert_eq!(liar.join().unwrap(), b"", "it hears nothing of the job");
}

/// A second writing of the protocol meets, reports and leaves; what it says twice, out of turn or
/// as another rank ends its connection.
#[test]
fn messages_have_their_turn_and_their_rank() {
    let text = "the secret of this job";
    for (claimed, count) in [(1, 1), (0, 0)] {
        let server = Server::of_nodes(LOCAL, ("job", secret(text)), 2, 1, 3000).unwrap();
        let mut stream = std::net::TcpStream::connect(server.addr()).unwrap();
        let mut visitor = Visitor::new(Some(text), claimed);
        assert!(present(&mut stream, &mut visitor));
        let hello = postcard::to_stdvec(&(0_u8, hello(1, 2))).unwrap();
        stream.write_all(&visitor.frame(&hello)).unwrap();
        let status = visitor.frame(&[1, 7]);
        stream.write_all(&status).unwrap();
        if count == 0 {
            // Rank 0 by its proof, rank 1 by its word.
            assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0);
            assert_eq!(server.last_step(1), None);
            continue;
        }
        eventually("the report", || server.last_step(1) == Some(7));
        let begun = Instant::now();
        stream.write_all(&status).unwrap();
        let said = message(server.wait_joined());
        assert!(begun.elapsed() < Duration::from_millis(2900), "{:?}", begun.elapsed());
        let expected = "rank 1 ended before the job began: a message on its control connection \
                        came damaged, or forged";
        assert_eq!(said, expected);
    }
}
