//! The supervisor of node 0, where the hosts of a job start their ranks again together: it hears
//! how the ranks of all hosts ended, decides ([`super::restart`]), and says so.

use std::time::Duration;

use comm::AwakeClock;
use comm::rendezvous::{HostState, Leave, Presence, Report, Server};
use train::Event;
use train::event::Restarting;

use super::planned::Planned;
use super::restart::{Away, Crew, Next, Policy, Round};
use super::starting::{Outcome, Starts};
use crate::error::{CliError, Exit};
use crate::output::complain;

/// How often the other hosts and signals are looked at.
const TICK: Duration = Duration::from_millis(20);
/// How long this process stays until the other hosts have heard the end.
const HEARD: Duration = Duration::from_secs(2);
/// How much longer than its ranks may be silent a host may take to say how they ended.
const LATER: Duration = Duration::from_secs(30);

/// Starts the ranks of all hosts, again where they fail and may be started anew.
///
/// # Errors
/// Why they ended.
pub fn supervise(mut planned: Planned, starts: &mut Starts) -> Result<Exit, CliError> {
    let policy = Policy::of(&planned.frame.config.ranks, planned.frame.hosts.nodes);
    let mut members: Vec<usize> = (0..policy.hosts).collect();
    loop {
        let mut outcome = starts.once(&planned);
        let result = std::mem::replace(&mut outcome.result, Ok(Exit::Ok));
        let error = match result {
            Err(error) if error.exit == Exit::Peer && starts.server.is_some() => error,
            ended => return over(starts, ended, None),
        };
        let reports = collect(&planned, starts, (&error, &outcome));
        let away = away(&hosts(starts));
        let gone = away.iter().filter(|away| members.contains(&away.node)).cloned().collect();
        let is_first = starts.incarnation == 0;
        let round = Round { is_first, reports, gone };
        if let Some(leave) = asked(starts).or_else(|| round.leave()) {
            return left(starts, leave, error);
        }
        let (number, wait) = match starts.restarts.after(&round) {
            Next::Again { number, wait } => (number, wait),
            Next::End(why) => return over(starts, Err(error), why),
        };
        let again = Again { number, of: planned.frame.config.ranks.restarts, wait };
        members = match crew(starts, &policy, &members, (&error, again)) {
            Settled::Go(members) => members,
            Settled::Left(leave) => return left(starts, leave, error),
            Settled::TooFew(why) => return over(starts, Err(error), Some(why)),
        };
        let fewer = planned.frame.on(&members).and_then(Planned::that_fits);
        planned = match fewer {
            Ok(fewer) => fewer,
            Err(unfit) => {
                let (now, all) = (members.len(), policy.hosts);
                let why = format!("It cannot go on with {now} of {all} hosts: {}", unfit.message);
                return over(starts, Err(error), Some(why));
            }
        };
        if let Some(server) = &starts.server {
            starts.incarnation = server.begin_again(&members)?;
        }
    }
}

/// A start that is to come.
#[derive(Clone, Copy)]
struct Again {
    number: u32,
    of: u32,
    wait: Duration,
}

/// The outcome of waiting for the next start.
enum Settled {
    /// With these hosts.
    Go(Vec<usize>),
    /// People want the job to end.
    Left(Leave),
    /// The reason for the end.
    TooFew(String),
}

/// The other hosts.
fn hosts(starts: &Starts) -> Vec<HostState> {
    starts.server.as_ref().map(Server::hosts).unwrap_or_default()
}

/// Those that are not there.
fn away(hosts: &[HostState]) -> Vec<Away> {
    let why = |host: &HostState| match &host.presence {
        Presence::Here => None,
        Presence::Never => Some("it has not come".to_owned()),
        Presence::Gone(why) => Some(why.clone()),
    };
    hosts.iter().filter_map(|host| Some(Away { node: host.node, why: why(host)? })).collect()
}

/// The request of people on any host that the job end.
fn asked(starts: &Starts) -> Option<Leave> {
    if starts.was_asked() {
        let (exit, why) = (starts.asked_exit().code(), "node 0 was asked to stop".to_owned());
        return Some(Leave { exit, why });
    }
    hosts(starts).into_iter().find_map(|host| host.leave)
}

/// How the ranks ended on every host that started them, this one first, as soon as all that are
/// there have said it.
fn collect(
    planned: &Planned,
    starts: &Starts,
    (error, outcome): (&CliError, &Outcome),
) -> Vec<(usize, Report)> {
    let own = starts.report(error.exit, &error.headline(), outcome);
    let most = Duration::from_millis(planned.frame.config.ranks.timeout_ms) + LATER;
    let mut clock = AwakeClock::default();
    let is_awaited =
        |host: &HostState| host.is_in && host.presence == Presence::Here && host.report.is_none();
    let others = loop {
        let hosts = hosts(starts);
        let is_done = !hosts.iter().any(is_awaited) || starts.was_asked();
        if is_done || clock.look() > most {
            break hosts;
        }
        std::thread::sleep(TICK);
    };
    let of_others = others.into_iter().filter_map(|host| Some((host.node, host.report?)));
    std::iter::once((0, own)).chain(of_others).collect()
}

/// Waits until the next start may begin, and for hosts that are gone as long as that is allowed.
fn crew(
    starts: &mut Starts,
    policy: &Policy,
    members: &[usize],
    (error, again): (&CliError, Again),
) -> Settled {
    let (mut clock, mut told, mut ready) = (AwakeClock::default(), String::new(), None);
    loop {
        if let Some(leave) = asked(starts) {
            return Settled::Left(leave);
        }
        let (waited, away) = (clock.look(), away(&hosts(starts)));
        match policy.crew(members, &away, waited) {
            Crew::These(these) => {
                if ready.as_ref().is_none_or(|(known, _)| *known != these) {
                    announce(starts, policy, (error, again), &these);
                    ready = Some((these.clone(), waited));
                }
                if ready.as_ref().is_some_and(|(_, since)| waited >= *since + again.wait) {
                    return Settled::Go(these);
                }
            }
            Crew::Wait(words) => {
                ready = None;
                if told != words {
                    complain(&words);
                    starts.server.iter().for_each(|server| server.notice(&words));
                    told = words;
                }
            }
            Crew::TooFew(why) => return Settled::TooFew(why),
        }
        std::thread::sleep(TICK);
    }
}

/// Tells people on all hosts what is about to begin.
fn announce(
    starts: &mut Starts,
    policy: &Policy,
    (error, again): (&CliError, Again),
    on: &[usize],
) {
    let Again { number, of, wait } = again;
    let (failure, wait_s) = (error.headline(), wait.as_secs_f64());
    let hosts = Some((on.len(), policy.hosts));
    let restarting = Event::Restarting(Restarting { failure, number, of, wait_s, hosts });
    starts.tell(&restarting);
    let words = format!(
        "starting again on {} of {} hosts in {wait_s} s ({number} of {of} times until the next \
         checkpoint)",
        on.len(),
        policy.hosts
    );
    starts.server.iter().for_each(|server| server.notice(&words));
}

/// The job is over, on all hosts, for this reason beside how it ended.
fn over(
    starts: &Starts,
    ended: Result<Exit, CliError>,
    why: Option<String>,
) -> Result<Exit, CliError> {
    let exit = ended.as_ref().map_or_else(|error| error.exit, |exit| *exit);
    if let Some(server) = &starts.server {
        server.end_hosts(exit.code(), why.as_deref().unwrap_or_default(), HEARD);
    }
    ended.map_err(|error| error.with_reason(why))
}

/// The job is over because people on a host want it.
fn left(starts: &Starts, leave: Leave, error: CliError) -> Result<Exit, CliError> {
    let Leave { exit, why } = leave;
    if let Some(server) = &starts.server {
        server.end_hosts(exit, &why, HEARD);
    }
    complain(&error.with_reason(Some(format!("The job ends, since {why}."))).message);
    Ok(Exit::of_code(exit))
}
