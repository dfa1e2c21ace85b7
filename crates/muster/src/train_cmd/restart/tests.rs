//! Decisions on restarts: of one host, of several, and who is of the next start.

use proptest::prelude::*;

use super::*;
use crate::error::Exit;

fn failure(step: u64, why: &str) -> Failure {
    Failure::new(Some(step), why)
}

#[test]
fn waits_double_up_to_the_number_allowed() {
    let mut restarts = Restarts::new(3);
    let mut waits = Vec::new();
    for step in 0..3 {
        match restarts.next(failure(step, "rank 1 failed: killed by signal 9")) {
            Next::Again { number, wait } => waits.push((number, wait.as_secs())),
            Next::End(why) => panic!("{why:?}"),
        }
    }
    assert_eq!(waits, [(1, 1), (2, 2), (3, 4)]);
    let Next::End(Some(why)) = restarts.next(failure(3, "x")) else { panic!("it goes on") };
    assert!(why.contains("3 times since the last checkpoint"), "{why}");
    restarts.saved();
    let again = restarts.next(failure(4, "x"));
    assert_eq!(again, Next::Again { number: 1, wait: WAITS[0] });
}

#[test]
fn the_same_failure_at_the_same_step_ends_it() {
    let mut restarts = Restarts::new(9);
    let first = failure(7, "rank 1 failed: it said nothing for 3001 ms\nmore");
    assert!(matches!(restarts.next(first), Next::Again { .. }));
    let other_step = failure(8, "rank 0 failed: it said nothing for 3005 ms");
    assert!(matches!(restarts.next(other_step), Next::Again { .. }));
    let other_why = failure(8, "rank 0 failed: killed by signal 9");
    assert!(matches!(restarts.next(other_why), Next::Again { .. }));
    let same = failure(8, "rank 2 failed: killed by signal 9");
    let Next::End(Some(why)) = restarts.next(same) else { panic!("it goes on") };
    assert!(why.contains("the same failure twice after step 8"), "{why}");
}

#[test]
fn none_is_allowed_by_zero() {
    assert_eq!(Restarts::new(0).next(failure(1, "x")), Next::End(None));
}

#[test]
fn no_wait_is_longer_than_a_minute() {
    let mut restarts = Restarts::new(u32::MAX);
    for step in 0..100 {
        match restarts.next(failure(step, "x")) {
            Next::Again { wait, .. } => assert!(wait <= WAITS[1]),
            Next::End(why) => panic!("{why:?}"),
        }
    }
}

fn report(node: usize, exit: Exit, step: Option<u64>, why: &str) -> (usize, Report) {
    let (exit, why) = (exit.code(), why.to_owned());
    let (has_met, waits) = (step.is_some(), exit == Exit::Peer.code());
    (node, Report { incarnation: 0, exit, why, step, has_met, waits, asked: None })
}

fn away(node: usize) -> Away {
    Away { node, why: "the host's supervisor said nothing".to_owned() }
}

fn round(reports: &[(usize, Report)]) -> Round {
    Round { is_first: true, reports: reports.to_vec(), gone: Vec::new() }
}

#[test]
fn the_failure_of_all_hosts_is_what_node_0_says_at_the_last_step_of_any() {
    let mut restarts = Restarts::of_hosts(3);
    let said = |step| {
        round(&[
            report(0, Exit::Peer, Some(step), "rank 1 failed: killed by signal 9"),
            report(1, Exit::Peer, Some(step + 1), "rank 1 failed: killed by signal 9; it said"),
        ])
    };
    assert_eq!(restarts.after(&said(6)), Next::Again { number: 1, wait: WAITS[0] });
    assert_eq!(restarts.after(&said(7)), Next::Again { number: 2, wait: 2 * WAITS[0] });
    let Next::End(Some(why)) = restarts.after(&said(7)) else { panic!("it goes on") };
    assert!(why.contains("the same failure twice after step 8"), "{why}");
}

#[test]
fn a_host_that_is_gone_is_the_failure() {
    let mut restarts = Restarts::of_hosts(3);
    let why = ["ranks 2 and 3 failed: connection lost", "rank 2 failed: all_reduce #7"];
    let gone = |why| {
        let reports = vec![report(0, Exit::Peer, Some(4), why)];
        Round { is_first: false, reports, gone: vec![away(1)] }
    };
    assert!(matches!(restarts.after(&gone(why[0])), Next::Again { .. }));
    // Which operation missed it first is chance.
    assert!(matches!(restarts.after(&gone(why[1])), Next::End(Some(_))));
}

#[test]
fn what_another_start_does_not_mend_ends_it_on_all_hosts() {
    let end = |reports: &[(usize, Report)]| Restarts::of_hosts(3).after(&round(reports));
    let fell = report(0, Exit::Peer, Some(3), "rank 1 failed: exit status 2");
    let mistake = report(1, Exit::Mistake, Some(3), "cannot read text.txt");
    let why = "Node 1 ended with exit code 2: cannot read text.txt".to_owned();
    assert_eq!(end(&[fell.clone(), mistake]), Next::End(Some(why)));
    let bug = report(1, Exit::Bug, Some(3), "index out of bounds");
    assert!(matches!(end(&[fell.clone(), bug]), Next::End(Some(_))));
    // People have asked one host to stop.
    let mut asked = report(1, Exit::Peer, Some(3), "x");
    asked.1.asked = Some(75);
    let why = "node 1 was asked to stop".to_owned();
    assert_eq!(round(&[fell.clone(), asked.clone()]).leave(), Some(Leave { exit: 75, why }));
    assert_eq!(end(&[fell.clone(), asked]), Next::End(None));
    // One host is done, and has left.
    let done = report(1, Exit::Ok, Some(3), "it is done");
    assert!(matches!(end(&[fell.clone(), done]), Next::End(Some(_))));
    // They never met: as where a host does not come.
    let never = report(0, Exit::Peer, None, "ranks 2 and 3 did not come");
    assert_eq!(end(std::slice::from_ref(&never)), Next::End(None));
    let later = Round { is_first: false, ..round(&[never]) };
    assert!(matches!(Restarts::of_hosts(3).after(&later), Next::Again { .. }));
    assert_eq!(Restarts::of_hosts(0).after(&round(&[fell])), Next::End(None));
}

#[test]
fn a_host_that_is_gone_is_waited_for_and_then_done_without_if_that_is_allowed() {
    let wait = Duration::from_secs(60);
    let policy = |least| Policy { hosts: 3, least, wait };
    let (all, short) = ([0, 1, 2], Duration::from_secs(59));
    assert_eq!(policy(3).crew(&all, &[], short), Crew::These(vec![0, 1, 2]));
    let Crew::Wait(words) = policy(2).crew(&all, &[away(1)], short) else { panic!("no wait") };
    assert!(words.starts_with("node 1 is gone (the host's supervisor said nothing)"), "{words}");
    assert_eq!(policy(2).crew(&all, &[away(1)], wait), Crew::These(vec![0, 2]));
    let Crew::TooFew(why) = policy(3).crew(&all, &[away(1)], wait) else { panic!("it goes on") };
    assert!(why.contains("That leaves 2 of 3 hosts, and 3 are needed"), "{why}");
    // One that was not of the last start is not waited for, and taken if it is back.
    assert_eq!(policy(1).crew(&[0, 2], &[away(1)], Duration::ZERO), Crew::These(vec![0, 2]));
    assert_eq!(policy(1).crew(&[0, 2], &[], Duration::ZERO), Crew::These(vec![0, 1, 2]));
}

#[test]
fn the_header_says_what_becomes_of_a_failure() {
    let mut ranks = RanksConfig::default();
    insta::assert_snapshot!(words(&ranks, 1), @"3 until the next checkpoint, after 1 s, doubling to 60 s");
    insta::assert_snapshot!(words(&ranks, 4), @"3 until the next checkpoint, after 1 s, doubling to 60 s, on all hosts together; a host is gone after 30 s of silence and waited for 120 s, then the run ends; if node 0 is, the run ends");
    ranks.min_hosts = Some(3);
    insta::assert_snapshot!(words(&ranks, 4), @"3 until the next checkpoint, after 1 s, doubling to 60 s, on all hosts together; a host is gone after 30 s of silence and waited for 120 s, then without it, while there are 3 of 4; if node 0 is, the run ends");
    ranks.restarts = 0;
    insta::assert_snapshot!(words(&ranks, 4), @"none: the first failure ends the run (ranks.restarts is 0)");
}

proptest! {
    /// Between two checkpoints there are never more starts than allowed, whatever the hosts say,
    /// and so without a checkpoint it ends; no wait is shorter than the one before or above the
    /// limit.
    #[test]
    fn starts_are_bounded_and_waits_grow(
        most in 0..6_u32,
        rounds in proptest::collection::vec((0..4_u64, 0..3_usize, any::<bool>(), 0..5_u8), 1..60),
    ) {
        let mut restarts = Restarts::of_hosts(most);
        let (mut since, mut last) = (0, Duration::ZERO);
        for (step, host, is_gone, save) in rounds {
            if save == 0 {
                restarts.saved();
                (since, last) = (0, Duration::ZERO);
            }
            let why = ["rank 1 failed", "a disk is full", "no sign of life"][host];
            let gone = if is_gone { vec![away(host)] } else { Vec::new() };
            let reports = vec![report(0, Exit::Peer, Some(step), why)];
            match restarts.after(&Round { is_first: false, reports, gone }) {
                Next::Again { number, wait } => {
                    since += 1;
                    prop_assert_eq!(number, since);
                    prop_assert!(since <= most && wait >= last && wait <= WAITS[1]);
                    last = wait;
                }
                Next::End(_) => break,
            }
        }
    }

    /// Who starts is there, node 0 is always of them, they are in order, and enough; and after the
    /// wait there is an answer.
    #[test]
    fn who_starts_is_there_and_enough(
        hosts in 1..9_usize,
        least in 1..9_usize,
        gone in proptest::collection::btree_set(1..9_usize, 0..8),
        members in proptest::collection::btree_set(1..9_usize, 0..8),
        waited_s in 0..100_u64,
    ) {
        let least = least.min(hosts);
        let policy = Policy { hosts, least, wait: Duration::from_secs(50) };
        let away: Vec<Away> = gone.iter().filter(|node| **node < hosts).map(|n| away(*n)).collect();
        let members: Vec<usize> = members.into_iter().filter(|node| *node < hosts).collect();
        match policy.crew(&members, &away, Duration::from_secs(waited_s)) {
            Crew::These(these) => {
                prop_assert!(these.len() >= least && these.len() + away.len() == hosts);
                prop_assert_eq!(these[0], 0);
                prop_assert!(these.windows(2).all(|pair| pair[0] < pair[1]));
                prop_assert!(these.iter().all(|node| !away.iter().any(|away| away.node == *node)));
            }
            Crew::Wait(_) => prop_assert!(waited_s < 50),
            Crew::TooFew(_) => prop_assert!(hosts - away.len() < least),
        }
    }
}
