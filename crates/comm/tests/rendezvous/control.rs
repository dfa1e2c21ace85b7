//! The control connection after the meeting: reports, blame, loss and damage.

use std::io::Write;
use std::net::SocketAddr;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use comm::rendezvous::{Absent, Hello, Joined, Reported, Server, join, report_end};
use comm::{Backend, Fault, Secret, Settings, World};

use super::common::{PATIENCE_MS, control, message};
use super::{LOCAL, eventually, hello, join_all, joining, server};

fn lost(rank: usize, what: &str) -> Fault {
    Fault { ranks: vec![rank], what: what.to_owned() }
}

#[test]
fn a_blamed_rank_is_lost_and_not_the_one_that_blames() {
    let server = server(3, PATIENCE_MS);
    let mut ranks = controlled(&server);
    let (_group, joined) = ranks.remove(0);
    let fault = Fault { ranks: vec![2], what: "no sign of life".to_owned() };
    joined.control.blame(&fault);
    eventually("the abort", || ranks.iter().all(|(_, j)| j.control.aborted().is_some()));
    assert_eq!(server.lost(), Some(fault));
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
    assert_eq!(server.lost(), Some(lost(2, "silence")));
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
    assert_eq!(ranks[1].1.control.aborted().unwrap().ranks, [2]);
    assert_eq!(message(control(&ranks[1].0).barrier()), expected);
    assert_eq!(server.lost(), Some(lost(2, "killed by signal 9")));
}

#[test]
fn a_worker_that_vanishes_is_lost_and_a_supervisor_too() {
    let server = server(3, PATIENCE_MS);
    let mut ranks = controlled(&server);
    let (_group, joined) = ranks.remove(1);
    drop(joined);
    eventually("the loss", || ranks.iter().all(|(_, j)| j.control.aborted().is_some()));
    assert_eq!(server.lost(), Some(lost(1, "its control connection ended")));

    let server = super::server(3, PATIENCE_MS);
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
    let again = super::server(2, PATIENCE_MS);
    let joined = join_all(again.addr(), vec![hello(0, 2), hello(1, 2)]);
    let mut joined = joined.into_iter().map(Result::unwrap);
    let (first, _second) = (joined.next().unwrap(), joined.next().unwrap());
    first.control.blame(&Fault { ranks: vec![7, 1], what: "silence".to_owned() });
    eventually("the loss", || again.lost() == Some(lost(1, "silence")));
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

    let server = super::server(2, PATIENCE_MS);
    let (way, ends) = way_to(server.addr());
    let joined = [joining(way, hello(0, 2)), joining(server.addr(), hello(1, 2))];
    let [_, mut to_server] = ends.join().unwrap();
    let _joined = joined.map(|joined| joined.join().unwrap().unwrap());
    to_server.write_all(&[0xff; 8]).unwrap();
    eventually("the loss", || server.lost().is_some());
    let what = "a message on its control connection came damaged, or forged";
    assert_eq!(server.lost(), Some(lost(0, what)));
}

/// Two hosts of a rank each, and the name of their start.
fn two_hosts() -> (Server, Vec<Joined>) {
    let server = Server::of_nodes(LOCAL, ("job", Secret::none()), 2, 2, PATIENCE_MS).unwrap();
    let hellos = (0..2).map(|rank| Hello { node: Some((rank, 2)), ..hello(rank, 2) });
    let joined = join_all(server.addr(), hellos.collect());
    (server, joined.into_iter().map(Result::unwrap).collect())
}

fn host<'a>(node: usize, reason: &'a str) -> Absent<'a> {
    Absent { job: "job", secret: Secret::none(), tls: None, node, reason }
}

#[test]
fn what_a_supervisor_elsewhere_knows_of_an_end_is_what_all_hear() {
    let (server, mut joined) = two_hosts();
    let (addr, group) = (server.addr(), joined[0].group.clone());
    let patience = Duration::from_millis(PATIENCE_MS);
    let tell = |node, group: &str, rank| {
        report_end(addr, host(node, "killed by signal 9"), (group, rank), patience)
    };
    // Of an earlier start, and of another's rank.
    assert_eq!(tell(1, "job-0", 1), Reported::Heard);
    assert_eq!(tell(1, &group, 0), Reported::Heard);
    assert_eq!(server.lost(), None);
    // Whose connection ends at once.
    drop(joined.pop());
    assert_eq!(tell(1, &group, 1), Reported::Heard);
    eventually("the abort", || joined[0].control.aborted().is_some());
    assert_eq!(joined[0].control.aborted().unwrap().reason, "killed by signal 9");
    assert_eq!(server.lost(), Some(lost(1, "killed by signal 9")));
}

#[test]
fn a_rank_hears_what_became_of_its_blame_and_of_all_that_it_blames() {
    let server = server(3, PATIENCE_MS);
    let joined = join_all(server.addr(), (0..3).map(|rank| hello(rank, 3)).collect());
    let joined: Vec<Joined> = joined.into_iter().map(Result::unwrap).collect();
    let fault = Fault { ranks: vec![1, 2], what: "no sign of life".to_owned() };
    joined[0].control.accuse(&fault);
    eventually("the abort", || joined[0].control.aborted().is_some());
    let aborted = joined[0].control.aborted().unwrap();
    assert_eq!((&aborted.ranks[..], &aborted.reason[..]), (&[1, 2][..], "no sign of life"));
    assert_eq!(aborted.to_string(), "ranks 1 and 2 are lost: no sign of life");
    assert_eq!(server.lost(), Some(fault));
}

#[test]
fn of_a_server_that_is_over_nothing_is_awaited() {
    let (server, joined) = two_hosts();
    let (addr, group) = (server.addr(), joined[0].group.clone());
    drop(server);
    let told = report_end(addr, host(1, "killed"), (&group, 1), Duration::from_secs(3600));
    assert_eq!(told, Reported::NotFound);
}

#[test]
fn ranks_that_follow_others_whom_nobody_loses_are_lost_together() {
    let server = server(3, PATIENCE_MS);
    let joined = join_all(server.addr(), (0..3).map(|rank| hello(rank, 3)).collect());
    let joined: Vec<Joined> = joined.into_iter().map(Result::unwrap).collect();
    let fault = Fault { ranks: vec![0, 1], what: "no sign of life".to_owned() };
    joined[..2].iter().for_each(|rank| rank.control.follow());
    eventually("an answer", || joined[..2].iter().all(|rank| rank.control.is_heard()));
    joined[2].control.accuse(&fault);
    eventually("the abort", || joined[2].control.aborted().is_some());
    assert_eq!(server.lost(), Some(fault));
}

#[test]
fn all_ranks_of_a_host_that_fails_are_lost() {
    let server = Server::of_nodes(LOCAL, ("job", Secret::none()), 4, 2, PATIENCE_MS).unwrap();
    let hellos = (0..4).map(|rank| Hello { node: Some((rank / 2, 2)), ..hello(rank, 4) });
    let mut joined = join_all(server.addr(), hellos.collect());
    drop(joined.split_off(2));
    eventually("the loss", || server.lost().is_some());
    let what = "its control connection ended".to_owned();
    assert_eq!(server.lost(), Some(Fault { ranks: vec![2, 3], what }));
}
