//! Supervisors at the meeting point: they are told when to start, say how it ended, come back, and
//! are taken for gone; ranks of another start are turned away.

use comm::rendezvous::{Attending, Leave, Link, News, Presence, Refusal, Report, ToHost, join};
use comm::{CommError, Fault};

use super::*;

const LIMIT: Duration = Duration::from_millis(1500);

fn server_of(nodes: usize) -> Server {
    let secret = Secret::of_text(b"the secret of this job").unwrap();
    let server = Server::of_nodes(LOCAL, ("job", secret), nodes, nodes, PATIENCE_MS).unwrap();
    server.judge_hosts(LIMIT);
    server
}

fn attending(server: &Server, node: usize, nodes: usize, secret: &[u8]) -> Link {
    let security = Secret::of_text(secret).unwrap().into();
    let (addrs, job) = (vec![server.addr()], "job".to_owned());
    let timeout_ms = PATIENCE_MS;
    Link::attend(Attending { addrs, job, node, nodes, security, timeout_ms, limit: LIMIT }).unwrap()
}

fn link(server: &Server, node: usize, nodes: usize) -> Link {
    attending(server, node, nodes, b"the secret of this job")
}

fn next(link: &Link) -> ToHost {
    match link.next(Duration::from_millis(PATIENCE_MS)) {
        Some(News::Said(message)) => message,
        other => panic!("{other:?}"),
    }
}

fn report(incarnation: u64) -> Report {
    let (exit, why, step) = (3, "rank 1 failed".to_owned(), Some(7));
    Report { incarnation, exit, why, step, has_met: true, waits: true, asked: None }
}

fn start(incarnation: u64, hosts: &[usize]) -> ToHost {
    ToHost::Start { incarnation, hosts: hosts.to_vec() }
}

#[test]
fn hosts_start_report_and_start_again_fewer() {
    let server = server_of(3);
    let links = [link(&server, 1, 3), link(&server, 2, 3)];
    for link in &links {
        assert_eq!(next(link), start(0, &[0, 1, 2]));
    }
    links[0].report(report(0));
    eventually("a report", || server.hosts()[0].report == Some(report(0)));
    assert_eq!(server.begin_again(&[0, 2]).unwrap(), 1);
    assert_eq!(next(&links[1]), start(1, &[0, 2]));
    server.notice("a word");
    assert_eq!(next(&links[0]), ToHost::Notice("a word".to_owned()));
    // Two ranks are left, and those of the first start are none of theirs.
    let secret = Secret::of_text(b"the secret of this job").unwrap();
    let of = |rank, incarnation| Hello { incarnation, node: Some((rank, 2)), ..hello(rank, 2) };
    let come = |hello| comm::rendezvous::join_with(server.addr(), hello, secret, PATIENCE_MS);
    let old = come(of(1, 0)).map(drop).unwrap_err();
    let turned = Refusal::Incarnation { ours: 1, got: 0 };
    assert!(matches!(&old, CommError::Refused(refusal) if *refusal == turned), "{old}");
    std::thread::scope(|scope| {
        let ranks = [0, 1].map(|rank| scope.spawn(move || come(of(rank, 1))));
        let joined = ranks.map(|rank| rank.join().unwrap().unwrap());
        // A host that is gone takes its ranks, at their new place, with it.
        drop(links);
        eventually("the loss", || server.lost().is_some());
        let Some(Fault { ranks, what }) = server.lost() else { unreachable!() };
        assert_eq!(ranks, [1]);
        // Or silent for too long, where the machine has no time for the test.
        assert!(what.starts_with("the host's supervisor "), "{what}");
        drop(joined);
    });
    eventually("an end", || server.hosts()[1].presence != Presence::Here);
}

#[test]
fn the_end_is_heard_and_a_wish_to_end_is_told() {
    let server = server_of(2);
    let host = link(&server, 1, 2);
    assert_eq!(next(&host), start(0, &[0, 1]));
    let leave = Leave { exit: 75, why: "node 1 was asked to stop".to_owned() };
    host.leave(leave.clone());
    eventually("a wish", || server.hosts()[0].leave == Some(leave.clone()));
    server.end_hosts(75, "enough", Duration::from_millis(PATIENCE_MS));
    assert_eq!(next(&host), ToHost::End { exit: 75, why: "enough".to_owned() });
    assert!(host.silent_for() < LIMIT);
}

#[test]
fn who_is_none_of_the_job_or_comes_twice_is_told_so() {
    let server = server_of(2);
    let stranger = attending(&server, 1, 2, b"the secret of another");
    let news = stranger.next(Duration::from_millis(PATIENCE_MS));
    assert!(matches!(news, Some(News::Lost(CommError::Secret { .. }))), "{news:?}");
    let other = link(&server, 1, 3);
    let nodes = Refusal::Nodes { node: 1, got: 3, nodes: 2 };
    assert_eq!(next(&other), ToHost::Refused(nodes));
    let first = link(&server, 1, 2);
    assert_eq!(next(&first), start(0, &[0, 1]));
    let second = link(&server, 1, 2);
    assert_eq!(next(&second), ToHost::Refused(Refusal::NodeTaken { node: 1 }));
    assert_eq!(server.hosts()[0].presence, Presence::Here);
    // And what the first meeting was refused for.
    let nobody = join(server.addr(), hello(0, 2), PATIENCE_MS).map(drop).unwrap_err();
    assert!(matches!(nobody, CommError::Secret { .. }), "{nobody}");
}

#[test]
fn a_server_that_is_over_is_lost_within_the_limit() {
    let server = server_of(2);
    let host = link(&server, 1, 2);
    assert_eq!(next(&host), start(0, &[0, 1]));
    drop(server);
    let news = host.next(Duration::from_millis(PATIENCE_MS));
    assert!(matches!(news, Some(News::Lost(CommError::NoRendezvous { .. }))), "{news:?}");
    assert!(host.overtaken().is_none());
}
