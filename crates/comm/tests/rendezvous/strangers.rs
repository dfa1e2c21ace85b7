//! Who comes and is none of the job's: of another job, version or language, without the secret, or
//! out of turn.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use comm::Secret;
use comm::rendezvous::{Absent, Hello, Reported, Server, join, join_with, report_absent};

use super::common::{PATIENCE_MS, message};
use super::visitor::{ANSWER_BYTES, CHALLENGE_BYTES, PROTOCOL, Visitor};
use super::{LOCAL, eventually, hello, join_all, present, secret, server};

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

/// The first message of a worker of protocol 4.
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
    assert_eq!(told(&server, &former()), [b"\x08\0\0\0MSTC", &[PROTOCOL, 0, 0, 0][..]].concat());
    let answer = told(&server, &later());
    assert_eq!((answer.len(), answer[4]), (CHALLENGE_BYTES, PROTOCOL), "{answer:?}");
    let expected = "rank 1 did not come within 1500 ms (turned away: a worker that speaks protocol \
                    4 from 127.0.0.1; a worker that speaks protocol 77 from 127.0.0.1); see \
                    whether they started and reach this address, or raise ranks.timeout_ms";
    assert_eq!(message(join(server.addr(), hello(0, 2), PATIENCE_MS)), expected);
    let server = super::server(2, PATIENCE_MS);
    let _ = told(&server, &later());
    let joined = join_all(server.addr(), vec![hello(0, 2), hello(1, 2)]);
    joined.into_iter().for_each(|joined| joined.unwrap().control.bye());
}

/// Both ends name the difference of their secrets within a second, whatever the timeouts are.
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
    assert_eq!(report_absent(addr, absent, Duration::from_secs(9)), Reported::Refused);
    let ranks = [0, 1]
        .map(|rank| std::thread::spawn(move || join_with(addr, hello(rank, 2), ours, PATIENCE_MS)));
    let joined = ranks.map(|rank| rank.join().unwrap().unwrap());
    assert!(message(join_with(addr, hello(0, 2), others[0], PATIENCE_MS)).contains("secret"));
    joined.into_iter().for_each(|joined| joined.control.bye());
    assert_eq!(server.lost(), None);
}

/// As what they claim to be nobody is awaited; then one comes that is, with a mistake, and others
/// of another kind.
#[test]
fn false_claims_do_not_keep_a_later_mistake_from_being_told() {
    let server = Server::of_nodes(LOCAL, ("job", secret("the secret of this job")), 2, 2, 3000);
    let server = server.unwrap();
    let come = |claimed| {
        let mut stream = std::net::TcpStream::connect(server.addr()).unwrap();
        assert!(!present(&mut stream, &mut Visitor::new(Some("the secret of another"), claimed)));
    };
    (700..800).for_each(come);
    eventually("the flood", || !server.news().is_empty());
    std::thread::sleep(Duration::from_millis(300));
    let rest = server.news().len();
    assert!(rest < 8, "{rest} more");
    come(1);
    let mut news = Vec::new();
    let heard = std::cell::RefCell::new(&mut news);
    eventually("the mistake", || {
        heard.borrow_mut().extend(server.news());
        !heard.borrow().is_empty()
    });
    let [first] = &news[..] else { panic!("{news:?}") };
    assert!(first.starts_with("turned away rank 1 from 127.0.0.1, which has another"), "{first}");
    let _ = told(&server, &former());
    let missing = message(server.wait_joined());
    for named in ["rank 1 from", "rank 700 from", "a worker that speaks protocol 4", "and others"] {
        assert!(missing.contains(named), "{missing}");
    }
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
        stream.write_all(&[&mark.as_bytes()[..4], &[PROTOCOL], &[9; 32]].concat()).unwrap();
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
