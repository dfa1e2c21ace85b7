//! Seats of supervisors: who is there, who is gone, who is told what, and that starts only rise.

use proptest::prelude::*;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::*;

const LIMIT: Duration = Duration::from_secs(10);

fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn attend(node: usize, session: u64, incarnation: Option<u64>) -> Attend {
    let (job, report, leave) = ("job".to_owned(), None, None);
    Attend { job, node, nodes: 3, session, incarnation, report, leave }
}

fn report(incarnation: u64) -> Report {
    let (exit, why, step) = (3, "rank 1 failed".to_owned(), Some(7));
    Report { incarnation, exit, why, step, has_met: true, waits: true, asked: None }
}

fn come(seats: &mut Seats, attend: Attend, now: Duration) -> (UnboundedReceiver<ToHost>, Gone) {
    let (way, messages) = unbounded_channel();
    let gone = seats.attend(attend, way, now);
    (messages, gone)
}

/// Messages that are more than signs of life.
fn said(messages: &mut UnboundedReceiver<ToHost>) -> Vec<ToHost> {
    let all = std::iter::from_fn(|| messages.try_recv().ok());
    all.filter(|message| *message != ToHost::Beat).collect()
}

fn seats() -> Seats {
    let mut seats = Seats::new(3);
    seats.judge(LIMIT);
    seats
}

fn started(incarnation: u64, hosts: &[usize]) -> ToHost {
    ToHost::Start { incarnation, hosts: hosts.to_vec() }
}

#[test]
fn hosts_start_when_they_come_and_again_when_they_are_told() {
    let mut seats = seats();
    let (mut first, _) = come(&mut seats, attend(1, 11, None), s(0));
    let (mut second, _) = come(&mut seats, attend(2, 22, None), s(3));
    for messages in [&mut first, &mut second] {
        assert_eq!(said(messages), [started(0, &[0, 1, 2])]);
    }
    assert_eq!(seats.hear((1, 11), FromHost::Ended(report(0)), s(4)), Some(report(0)));
    assert_eq!(seats.state(1).report, Some(report(0)));
    assert!(seats.state(2).is_in && seats.state(2).report.is_none());
    assert_eq!(seats.begin(&[0, 2]), 1);
    assert_eq!(said(&mut second), [started(1, &[0, 2])]);
    assert_eq!(said(&mut first), []);
    assert_eq!([0, 1, 2].map(|node| seats.place_of(node)), [Some(0), None, Some(1)]);
    // An end of the first start is none of the second.
    assert_eq!(seats.hear((2, 22), FromHost::Ended(report(0)), s(5)), None);
    assert_eq!(seats.state(2).report, None);
}

#[test]
fn silence_and_a_connection_that_is_not_made_anew_are_the_end_of_a_host() {
    let mut seats = seats();
    let (mut first, _) = come(&mut seats, attend(1, 11, None), s(0));
    let (_second, _) = come(&mut seats, attend(2, 22, None), s(0));
    seats.hear((2, 22), FromHost::Beat, s(9));
    assert_eq!(seats.look(s(10)), []);
    let gone = seats.look(s(11));
    let why = "the host's supervisor said nothing for 11000 ms (ranks.host_timeout_ms is 10000)";
    assert_eq!(gone, [(1, why.to_owned())]);
    assert_eq!(seats.state(1).presence, Presence::Gone(why.to_owned()));
    // Told once; its connection ends.
    assert_eq!(seats.look(s(12)), []);
    said(&mut first);
    assert!(first.is_closed());
    // A connection that is made anew in time is as if it had not ended.
    seats.close((2, 22), s(12));
    let (mut second, gone) = come(&mut seats, attend(2, 22, Some(0)), s(14));
    assert_eq!((gone, said(&mut second)), (Gone::new(), Vec::new()));
    assert_eq!(seats.look(s(20)), []);
    seats.close((2, 22), s(20));
    assert_eq!(seats.look(s(22)), []);
    let gone = seats.look(s(24));
    assert!(gone[0].1.contains("was not made again within 4000 ms"), "{gone:?}");
}

#[test]
fn who_was_taken_for_gone_hears_it_and_is_of_the_next_start() {
    let mut seats = seats();
    let (_old, _) = come(&mut seats, attend(1, 11, None), s(0));
    assert_eq!(seats.look(s(11)).len(), 1);
    // A message that comes late on the old connection changes nothing.
    assert_eq!(seats.hear((1, 11), FromHost::Ended(report(0)), s(12)), None);
    let (mut again, gone) = come(&mut seats, attend(1, 11, Some(0)), s(13));
    assert_eq!(gone, []);
    let heard = said(&mut again);
    assert!(matches!(heard[..], [ToHost::Overtaken { incarnation: 0, .. }]), "{heard:?}");
    assert!(!seats.state(1).is_in && seats.state(1).presence == Presence::Here);
    seats.begin(&[0, 1]);
    assert_eq!(said(&mut again), [started(1, &[0, 1])]);
}

#[test]
fn a_start_that_was_said_to_a_broken_connection_is_said_again() {
    let mut seats = seats();
    let (_old, _) = come(&mut seats, attend(1, 11, None), s(0));
    seats.close((1, 11), s(1));
    seats.begin(&[0, 1]);
    let (mut again, _) = come(&mut seats, attend(1, 11, Some(0)), s(2));
    assert_eq!(said(&mut again), [started(1, &[0, 1])]);
}

#[test]
fn another_process_of_a_host_waits_until_the_first_is_gone() {
    let mut seats = seats();
    let (_first, _) = come(&mut seats, attend(1, 11, None), s(0));
    let (mut other, gone) = come(&mut seats, attend(1, 12, None), s(1));
    assert_eq!((gone, said(&mut other)), (Gone::new(), Vec::new()));
    // The first lives.
    seats.hear((1, 11), FromHost::Beat, s(2));
    assert_eq!(said(&mut other), [ToHost::Refused(Refusal::NodeTaken { node: 1 })]);
    assert!(other.is_closed());
    // It is silent from then on.
    let (mut heir, _) = come(&mut seats, attend(1, 13, None), s(5));
    assert_eq!(seats.look(s(13)).len(), 1);
    assert_eq!(seats.state(1).presence, Presence::Here);
    seats.begin(&[0, 1]);
    assert_eq!(said(&mut heir), [started(1, &[0, 1])]);
    // One whose connection has ended is replaced at once, and its ranks are lost.
    seats.close((1, 13), s(14));
    let (_new, gone) = come(&mut seats, attend(1, 14, None), s(14));
    assert_eq!(gone[0].0, 1);
    assert!(!seats.state(1).is_in);
}

#[test]
fn a_host_of_another_process_of_node_0_is_refused() {
    let mut seats = seats();
    let (mut stray, _) = come(&mut seats, attend(1, 11, Some(4)), s(0));
    assert_eq!(said(&mut stray), [ToHost::Refused(Refusal::Predecessor { node: 1 })]);
    assert_eq!(seats.state(1).presence, Presence::Never);
}

#[test]
fn who_is_done_may_leave_and_loses_nobody() {
    let mut seats = seats();
    let (_first, _) = come(&mut seats, attend(1, 11, None), s(0));
    let done = Report { exit: 0, waits: false, ..report(0) };
    seats.hear((1, 11), FromHost::Ended(done), s(1));
    seats.close((1, 11), s(1));
    assert_eq!(seats.look(s(100)), []);
}

#[test]
fn nobody_is_judged_unless_that_is_asked_for() {
    let mut seats = Seats::new(2);
    let (_first, _) = come(&mut seats, attend(1, 11, None), s(0));
    seats.close((1, 11), s(1));
    assert_eq!(seats.look(s(1 << 20)), []);
}

proptest! {
    /// Whatever happens: numbers of starts rise by one, no process is told the same start twice or
    /// an older one, and who is gone is told of once for each time that it came.
    #[test]
    fn starts_only_rise(acts in proptest::collection::vec((0..7_u8, 1..3_usize, 0..3_u64), 0..60)) {
        let mut seats = seats();
        let mut ways: Vec<(u64, UnboundedReceiver<ToHost>, Option<u64>)> = Vec::new();
        let mut begun = 0;
        for (at, (act, node, session)) in acts.into_iter().enumerate() {
            let (now, session) = (s(2 * at as u64), session + 10 * node as u64);
            let known = ways.iter().filter(|(of, ..)| *of == session);
            let newest = known.filter_map(|(.., newest)| *newest).max();
            match act {
                0 => {
                    let (messages, _) = come(&mut seats, attend(node, session, newest), now);
                    ways.push((session, messages, newest));
                }
                1 => drop(seats.hear((node, session), FromHost::Beat, now)),
                2 => drop(seats.hear((node, session), FromHost::Ended(report(begun)), now)),
                3 => seats.close((node, session), now),
                4 => drop(seats.look(now)),
                5 => {
                    prop_assert_eq!(seats.begin(&[0, 1, 2]), begun + 1);
                    begun += 1;
                }
                _ => {
                    prop_assert_eq!(seats.begin(&[0, node]), begun + 1);
                    begun += 1;
                }
            }
            for (_, messages, newest) in &mut ways {
                for message in said(messages) {
                    if let ToHost::Start { incarnation, .. } = message {
                        prop_assert!(incarnation <= begun);
                        prop_assert!(newest.is_none_or(|newest| newest < incarnation));
                        *newest = Some(incarnation);
                    }
                }
            }
        }
    }
}
