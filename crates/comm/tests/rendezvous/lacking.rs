//! Hosts that cannot prove themselves, and what their word is worth.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use comm::rendezvous::{
    Absent, Reported, Server, join_hearing, join_with, report_absent, report_lack, serve_lack,
};
use comm::{CommError, Lack, Secret};

use super::common::{PATIENCE_MS, message};
use super::{LOCAL, eventually, hello, secret};

const SOON: Duration = Duration::from_secs(5);

#[test]
fn a_host_that_cannot_prove_itself_is_told_of_at_once_and_ends_nothing() {
    let ours = secret("the secret of this job");
    let server = Server::of_nodes(LOCAL, ("job", ours), 2, 2, 3000).unwrap();
    let addr = server.addr();
    let begun = Instant::now();
    for (node, lack) in [(1, Lack::Secret), (1, Lack::Secret), (7, Lack::Tls), (1, Lack::Tls)] {
        assert_eq!(report_lack(addr, node, lack, SOON), Reported::Heard);
    }
    let says = |what: &str| {
        format!(
            "node 1 from 127.0.0.1, which says, without a proof, that it will not start: {what}; \
             see its own messages"
        )
    };
    let both = ["its secret cannot be used", "its files of TLS cannot be used"].map(says);
    let mut news = Vec::new();
    while news.len() < 2 && begun.elapsed() < SOON {
        news.extend(server.news());
    }
    // Each once, and nothing of a host that the job has not.
    assert_eq!(news, both.clone().map(|who| format!("turned away {who}")));
    // It stands beside the ordinary message, which comes in its time.
    let waits = message(join_with(addr, hello(0, 2), ours, PATIENCE_MS));
    let start = "rank 1 (all of node 1) did not come within 3000 ms (turned away: ";
    assert!(waits.starts_with(&format!("{start}{}; {})", both[0], both[1])), "{waits}");
    assert!(begun.elapsed() >= Duration::from_millis(2900), "{:?}", begun.elapsed());
    // Whoever proves to be that host is taken all the same.
    let server = Server::of_nodes(LOCAL, ("job", ours), 2, 2, PATIENCE_MS).unwrap();
    let addr = server.addr();
    assert_eq!(report_lack(addr, 1, Lack::Secret, SOON), Reported::Heard);
    let ranks = [0, 1]
        .map(|rank| std::thread::spawn(move || join_with(addr, hello(rank, 2), ours, PATIENCE_MS)));
    ranks.into_iter().for_each(|rank| rank.join().unwrap().unwrap().control.bye());
    // Once they have met nobody is awaited.
    assert_eq!(report_lack(addr, 1, Lack::Secret, SOON), Reported::Heard);
    assert_eq!(server.news().len(), 1);
}

/// Those that have come already, and those that come later.
#[test]
fn all_hosts_but_node_0_are_given_the_hint_while_they_wait() {
    let ours = secret("the secret of this job");
    let server = Server::of_nodes(LOCAL, ("job", ours), 3, 3, 2500).unwrap();
    let addr = server.addr();
    let join = |rank: usize| {
        std::thread::spawn(move || {
            let mut hints = Vec::new();
            let begun = Instant::now();
            let mut hear = |hint| hints.push((hint, begun.elapsed()));
            let said = message(join_hearing(addr, hello(rank, 3), ours, PATIENCE_MS, &mut hear));
            (said, hints)
        })
    };
    let ranks = [0, 2].map(join);
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(report_lack(addr, 1, Lack::Secret, SOON), Reported::Heard);
    let [first, third] = ranks.map(|rank| rank.join().unwrap());
    assert!(first.1.is_empty(), "{first:?}");
    let [(hint, when)] = &third.1[..] else { panic!("{third:?}") };
    let said = "node 0 turned away node 1 from 127.0.0.1, which says, without a proof, that it";
    assert!(hint.starts_with(said) && *when < Duration::from_secs(2), "{third:?}");
    assert!(third.0.starts_with("rank 1 (all of node 1) did not come within 2500 ms"), "{third:?}");
    let server = Server::of_nodes(LOCAL, ("job", ours), 3, 3, 1500).unwrap();
    let addr = server.addr();
    assert_eq!(report_lack(addr, 1, Lack::Secret, SOON), Reported::Heard);
    let mut hints = Vec::new();
    let mut hear = |hint| hints.push(hint);
    let _ = join_hearing(addr, hello(2, 3), ours, PATIENCE_MS, &mut hear);
    assert!(hints.len() == 1 && hints[0].starts_with(said), "{hints:?}");
}

#[test]
fn of_node_0_the_others_hear_at_once() {
    let addr = TcpListener::bind(LOCAL).unwrap().local_addr().unwrap();
    let begun = Instant::now();
    let node_0 = std::thread::spawn(move || serve_lack(addr, Lack::Secret, SOON));
    let joins = [secret("the secret of this job"), Secret::none()];
    for (rank, ours) in joins.into_iter().enumerate() {
        let said = join_with(addr, hello(rank, 2), ours, PATIENCE_MS).err().unwrap();
        assert!(matches!(said, CommError::Refused(_)), "{said}");
        assert_eq!(
            said.to_string(),
            format!(
                "node 0 ended before the job began: its secret cannot be used, as who listens at \
                 {addr} says without a proof; see node 0's own messages"
            )
        );
        assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    }
    // Another program, and one that says nothing, get nothing and hold nobody up.
    let mut silent = std::net::TcpStream::connect(addr).unwrap();
    let mut other = std::net::TcpStream::connect(addr).unwrap();
    other.write_all(&[b"GET / HTTP/1.1\r\n\r\n", &[b'x'; 40][..]].concat()).unwrap();
    let mut words = Vec::new();
    let _ = other.read_to_end(&mut words);
    assert_eq!(words, b"");
    node_0.join().unwrap().unwrap();
    assert!(begun.elapsed() >= SOON);
    let _ = silent.read_to_end(&mut words);
    assert_eq!(words, b"");
}

/// A connection that was taken is none that was heard.
#[test]
fn who_says_nothing_has_heard_nothing() {
    let listener = TcpListener::bind(LOCAL).unwrap();
    let addr = listener.local_addr().unwrap();
    let absent = Absent { job: "job", secret: Secret::none(), tls: None, node: 1, reason: "late" };
    let patience = Duration::from_millis(500);
    let told = std::thread::spawn(move || {
        [report_absent(addr, absent, patience), report_lack(addr, 1, Lack::Tls, patience)]
    });
    let mut taken = Vec::new();
    listener.set_nonblocking(true).unwrap();
    eventually("the end of it", || told.is_finished());
    while let Ok((stream, _)) = listener.accept() {
        taken.push(stream);
    }
    assert!(taken.len() >= 2, "{}", taken.len());
    assert_eq!(told.join().unwrap(), [Reported::NotFound; 2]);
}
