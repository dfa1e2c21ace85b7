//! Who meets, who is refused, and what everyone is told of it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use comm::Secret;
use comm::rendezvous::{Absent, Hello, Joined, Reported, Server, can_serve, join, report_absent};

use super::common::{PATIENCE_MS, message};
use super::visitor::{ANSWER_BYTES, CHALLENGE_BYTES, Visitor};
use super::{LOCAL, eventually, hello, join_all, joining, present, server};

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
    let mut stream = TcpStream::from(socket);
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
fn a_host_that_will_not_come_ends_the_waiting_of_the_others() {
    let server = server(2, PATIENCE_MS);
    let first = joining(server.addr(), hello(0, 2));
    // Of another job: nobody's business here.
    let of = |job| Absent { job, secret: Secret::none(), tls: None, node: 1, reason: "no text" };
    let tell = |job| report_absent(server.addr(), of(job), Duration::from_secs(9));
    assert_eq!(tell("other"), Reported::Heard);
    assert_eq!(tell("job"), Reported::Heard);
    let expected = "node 1 ended before the job began: no text";
    assert_eq!(message(first.join().unwrap()), expected);
    assert_eq!(message(server.wait_joined()), expected);
}

#[test]
fn two_names_of_one_meeting_point_meet() {
    // A name that has no address here is passed over, as long as another is left.
    let elsewhere: SocketAddr = "192.0.2.1:0".parse().unwrap();
    let here: SocketAddr = LOCAL.parse().unwrap();
    let server = Server::bind(&[elsewhere, here, here][..], "job", 2, PATIENCE_MS).unwrap();
    let refused = TcpListener::bind(LOCAL).unwrap().local_addr().unwrap();
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

/// An address that leads to `addr`, where the first `count` connections are closed at once.
fn way_that_opens_late(addr: SocketAddr, count: usize) -> SocketAddr {
    let listener = TcpListener::bind(LOCAL).unwrap();
    let way = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut taken = listener.incoming().flatten();
        taken.by_ref().take(count).for_each(drop);
        for inner in taken {
            let outer = TcpStream::connect(addr).unwrap();
            let copy = |end: &TcpStream| end.try_clone().unwrap();
            let both = [(copy(&inner), copy(&outer)), (outer, inner)];
            for (mut from, mut to) in both {
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut from, &mut to);
                    let _ = to.shutdown(std::net::Shutdown::Write);
                });
            }
        }
    });
    way
}

#[test]
fn a_way_that_closes_connections_is_tried_again_for_as_long_as_the_timeout() {
    let server = server(1, PATIENCE_MS);
    let way = way_that_opens_late(server.addr(), 9);
    join(way, hello(0, 1), PATIENCE_MS).unwrap().control.bye();

    let server = super::server(2, PATIENCE_MS);
    let way = way_that_opens_late(server.addr(), 9);
    let absent = Absent { job: "job", secret: Secret::none(), tls: None, node: 1, reason: "late" };
    assert_eq!(report_absent(way, absent, Duration::from_secs(30)), Reported::Heard);
    assert_eq!(message(server.wait_joined()), "node 1 ended before the job began: late");

    let way = way_that_opens_late(server.addr(), usize::MAX);
    let begun = Instant::now();
    let said = message(join(way, hello(0, 1), 1500));
    assert!(begun.elapsed() >= Duration::from_millis(1500), "{said}");
    let start = format!("nobody answers at {way} for 1500 ms (it took the connection, and ");
    assert!(said.starts_with(&start), "{said}");
    let told = report_absent(way, absent, Duration::from_millis(500));
    assert_eq!(told, Reported::NotFound);
}

/// As where the process of node 0 is killed while ranks meet.
#[test]
fn a_meeting_point_that_breaks_off_is_named_with_what_to_do() {
    let server = server(2, PATIENCE_MS);
    let listener = TcpListener::bind(LOCAL).unwrap();
    let way = listener.local_addr().unwrap();
    let addr = server.addr();
    let breaks = std::thread::spawn(move || {
        let (mut inner, _) = listener.accept().unwrap();
        let mut outer = TcpStream::connect(addr).unwrap();
        // The handshake and the first byte of a hello; what is not read resets the connection.
        let mut pass = |is_there: bool, count: usize| {
            let (from, to) =
                if is_there { (&mut inner, &mut outer) } else { (&mut outer, &mut inner) };
            let mut bytes = vec![0; count];
            from.read_exact(&mut bytes).unwrap();
            to.write_all(&bytes).unwrap();
        };
        for (is_there, count) in
            [(true, 40), (false, CHALLENGE_BYTES), (true, 64), (false, ANSWER_BYTES), (true, 1)]
        {
            pass(is_there, count);
        }
    });
    let said = message(join(way, hello(0, 2), PATIENCE_MS));
    breaks.join().unwrap();
    assert_eq!(
        said,
        format!(
            "{way} closed the connection without an answer: the supervising process there has \
             ended, or another program has that port; check the rendezvous address"
        )
    );
}
