//! The supervisor of another host than node 0, where the hosts of a job start their ranks again
//! together: it starts them when node 0 says so, tells how they ended, and waits.

use std::time::{Duration, Instant};

use comm::AwakeClock;
use comm::rendezvous::{Attending, Link, News, ToHost};

use super::address;
use super::life::MEETING_IS_SLOW;
use super::planned::Planned;
use super::starting::{Outcome, Starts, prepare};
use crate::error::{CliError, Exit};
use crate::output::{complain, tell};

/// How often signals are looked at.
const TICK: Duration = Duration::from_millis(20);

/// The next thing to do.
enum Next {
    Start {
        incarnation: u64,
        hosts: Vec<usize>,
    },
    /// The job is over.
    End {
        exit: Exit,
        why: String,
    },
}

/// Starts this host's ranks as often as node 0 says, and sees them to their end.
///
/// # Errors
/// Why they ended, with what came of it; node 0 is not there.
pub fn supervise(mut planned: Planned, starts: &mut Starts) -> Result<Exit, CliError> {
    let begun = Instant::now();
    // Before node 0 is looked for: all hosts read at the same time.
    planned.frame.addresses.try_out(planned.place.node)?;
    starts.prepared = Some(prepare(&planned.frame.config, starts.run)?);
    let link = attend(&planned)?;
    starts.link = Some(link);
    starts.start = address::Start::Tried(Some(begun));
    let mut failed: Option<CliError> = None;
    loop {
        let (incarnation, hosts) = match wait(&planned, starts, failed.is_none()) {
            Ok(Next::Start { incarnation, hosts }) => (incarnation, hosts),
            Ok(Next::End { exit, why }) => return end(failed, exit, why),
            Err(error) => return Err(lost(failed, error)),
        };
        starts.incarnation = incarnation;
        planned = planned.frame.on(&hosts).and_then(Planned::that_fits).inspect_err(|error| {
            let why = format!("node {} cannot go on: {}", starts.absence.node(), error.headline());
            report(starts, error.exit, &why, &Outcome::default());
        })?;
        let mut outcome = starts.once(&planned);
        match std::mem::replace(&mut outcome.result, Ok(Exit::Ok)) {
            Ok(exit) => {
                // Node 0 may still be at work, and need not miss this host.
                report(starts, exit, "it is done", &outcome);
                return Ok(exit);
            }
            Err(error) => {
                report(starts, error.exit, &error.headline(), &outcome);
                if error.exit != Exit::Peer {
                    return Err(error);
                }
                complain(&error.headline());
                failed = Some(error);
            }
        }
    }
}

fn attend(planned: &Planned) -> Result<Link, CliError> {
    let frame = &planned.frame;
    let ranks = &frame.config.ranks;
    Ok(Link::attend(Attending {
        addrs: frame.addresses.meeting().to_vec(),
        job: frame.name.clone().unwrap_or_default(),
        node: frame.hosts.node,
        nodes: frame.hosts.nodes,
        security: frame.tls.security(&frame.secret),
        timeout_ms: ranks.timeout_ms,
        limit: Duration::from_millis(ranks.host_timeout_ms),
    })?)
}

/// Tells node 0 how a start ended here.
fn report(starts: &Starts, exit: Exit, why: &str, outcome: &Outcome) {
    starts.link.iter().for_each(|link| link.report(starts.report(exit, why, outcome)));
}

/// Waits for what node 0 says.
fn wait(planned: &Planned, starts: &Starts, is_first: bool) -> Result<Next, CliError> {
    let ranks = &planned.frame.config.ranks;
    let limit = Duration::from_millis(ranks.host_timeout_ms);
    let mut slow = planned.place.waits(planned.frame.addresses.meeting(), ranks.timeout_ms);
    slow.take_if(|_| !is_first);
    let mut clock = AwakeClock::default();
    let Some(link) = &starts.link else { return Err(CliError::bug("no link to node 0")) };
    loop {
        match link.next(TICK) {
            Some(News::Said(ToHost::Start { incarnation, hosts })) => {
                return Ok(Next::Start { incarnation, hosts });
            }
            Some(News::Said(ToHost::End { exit, why })) => {
                return Ok(Next::End { exit: Exit::of_code(exit), why });
            }
            Some(News::Said(ToHost::Notice(text))) => tell(&text),
            Some(News::Said(ToHost::Overtaken { why, .. })) => complain(&format!(
                "this host was taken for gone: {why}; it waits for the next start of the job's \
                 ranks"
            )),
            Some(News::Said(ToHost::Refused(refusal))) => {
                return Err(comm::CommError::from(refusal).into());
            }
            Some(News::Lost(error)) => return Err(error.into()),
            Some(News::Said(ToHost::Beat)) | None => {}
        }
        if clock.look() > MEETING_IS_SLOW
            && let Some(words) = slow.take()
        {
            tell(&words);
        }
        // Before the first start such a signal ends the process.
        if !is_first && starts.was_asked() {
            starts.part();
            starts.signals.before_training();
        }
        let silent = link.silent_for();
        if silent > limit {
            return Err(CliError::peer(format!(
                "its supervisor said nothing for {} ms (ranks.host_timeout_ms is {})",
                silent.as_millis(),
                limit.as_millis()
            )));
        }
    }
}

/// Node 0 says that the job is over.
fn end(failed: Option<CliError>, exit: Exit, why: String) -> Result<Exit, CliError> {
    let reason = Some(why).filter(|why| !why.is_empty());
    match (failed, exit) {
        // It failed here, and the job as a whole has not.
        (Some(error), Exit::Ok | Exit::Preempted | Exit::Interrupted) => {
            complain(&error.with_reason(reason).message);
            Ok(exit)
        }
        (Some(error), _) => Err(error.with_reason(reason)),
        (None, Exit::Ok | Exit::Preempted | Exit::Interrupted) => {
            tell(&reason.unwrap_or_else(|| "the job has ended on the other hosts".into()));
            Ok(exit)
        }
        (None, _) => {
            let why = reason.unwrap_or_else(|| "the job has failed on the other hosts".into());
            Err(CliError { exit, ..CliError::peer(why) })
        }
    }
}

/// Node 0 is gone, or takes this host for none of its own.
fn lost(failed: Option<CliError>, error: CliError) -> CliError {
    match failed {
        None => error,
        Some(failed) => {
            let why = error.message.lines().next().unwrap_or_default().to_owned();
            failed.with_reason(Some(format!(
                "Node 0, which decides whether the ranks start again, is lost: {why}"
            )))
        }
    }
}
