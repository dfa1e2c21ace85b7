//! Whether ranks that have failed are started again, and on which hosts: pure decisions over what
//! has failed so far, and who is there.
//!
//! ```text
//! failure ─┬ of the same kind, at the same step as the one before  ─▶ ends, with the reason
//!          ├ more than `ranks.restarts` since the last checkpoint   ─▶ ends
//!          └ else ─▶ again, after a wait that doubles from one to the next
//!
//! host gone ─▶ waited for ─┬ it is back, or enough others are there  ─▶ with those
//!                          └ else                                    ─▶ ends
//! ```

use std::time::Duration;

use comm::rendezvous::{Leave, Report};
use train::config::RanksConfig;

/// The first wait, and the longest.
const WAITS: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(60)];

/// A failure of the ranks of a start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The last step that any rank told of.
    pub step: Option<u64>,
    /// The reason, in words.
    pub why: String,
}

impl Failure {
    /// Of the message that the command would end with: its first line.
    pub fn new(step: Option<u64>, message: &str) -> Failure {
        let first = message.lines().next().unwrap_or_default();
        Failure { step, why: first.trim_end_matches(':').to_owned() }
    }

    /// Whether it is the same again: apart from numbers, such as those of ranks and milliseconds.
    fn is_like(&self, other: &Failure) -> bool {
        let words = |failure: &Failure| -> String {
            failure.why.chars().filter(|c| !c.is_ascii_digit()).collect()
        };
        self.step == other.step && words(self) == words(other)
    }
}

/// The answer to a failure.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Start again, for the so manyth time since a checkpoint, after a wait.
    Again { number: u32, wait: Duration },
    /// End; with a reason if it is another one than that none was allowed.
    End(Option<String>),
}

/// The failures so far.
#[derive(Debug)]
pub struct Restarts {
    most: u32,
    of_hosts: bool,
    since_save: u32,
    last: Option<Failure>,
}

impl Restarts {
    /// Nothing has; so many restarts are allowed between two checkpoints.
    pub fn new(most: u32) -> Restarts {
        Restarts { most, of_hosts: false, since_save: 0, last: None }
    }

    /// As [`Restarts::new`], of several hosts together.
    pub fn of_hosts(most: u32) -> Restarts {
        Restarts { of_hosts: true, ..Restarts::new(most) }
    }

    /// A checkpoint was committed: the run gets on.
    pub fn saved(&mut self) {
        self.since_save = 0;
    }

    /// Decides after a failure.
    pub fn next(&mut self, failure: Failure) -> Next {
        if self.most == 0 {
            return Next::End(None);
        }
        let before = self.last.replace(failure.clone());
        if before.is_some_and(|before| before.is_like(&failure)) {
            let at = failure.step.map_or("before the first step".to_owned(), |step| match step {
                0 => "before the first step".to_owned(),
                step => format!("after step {step}"),
            });
            return Next::End(Some(format!(
                "It was the same failure twice {at}, so the ranks were not started again."
            )));
        }
        if self.since_save >= self.most {
            return Next::End(Some(format!(
                "The ranks were started again {} times since the last checkpoint, as often as \
                 ranks.restarts allows.",
                self.most
            )));
        }
        self.since_save += 1;
        let [first, longest] = WAITS;
        let wait = first.saturating_mul(1 << (self.since_save - 1).min(16)).min(longest);
        Next::Again { number: self.since_save, wait }
    }
}

/// A host that is not there, and why it is taken for gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Away {
    pub node: usize,
    pub why: String,
}

/// How a start ended on all hosts that were of it.
#[derive(Debug)]
pub struct Round {
    /// Nobody had started before.
    pub is_first: bool,
    /// By host, node 0 first.
    pub reports: Vec<(usize, Report)>,
    /// Of its hosts those that are gone.
    pub gone: Vec<Away>,
}

impl Round {
    /// The failure that counts: a host that is gone, or what node 0 says, which hears of all ranks.
    fn failure(&self) -> Failure {
        let step = self.reports.iter().filter_map(|(_, report)| report.step).max();
        let why = match (&self.gone[..], &self.reports[..]) {
            ([away, ..], _) => format!("node {} is gone", away.node),
            ([], [(_, first), ..]) => first.why.clone(),
            ([], []) => String::new(),
        };
        Failure::new(step, &why)
    }
}

impl Round {
    /// The request of people on a host to stop, which came while the ranks failed.
    pub fn leave(&self) -> Option<Leave> {
        self.reports.iter().find_map(|(node, report)| {
            let why = format!("node {node} was asked to stop");
            report.asked.map(|exit| Leave { exit, why })
        })
    }
}

impl Restarts {
    /// Whether several hosts start their ranks again together.
    pub fn are_of_hosts(&self) -> bool {
        self.of_hosts && self.most > 0
    }

    /// As [`Restarts::next`], of all hosts of a job: what another start does not mend ends it.
    pub fn after(&mut self, round: &Round) -> Next {
        let mut reports = round.reports.iter();
        if let Some((node, report)) = reports.find(|(_, report)| !report.waits) {
            let (exit, why) = (report.exit, &report.why);
            return Next::End(Some(format!("Node {node} ended with exit code {exit}: {why}")));
        }
        let has_met = !round.is_first || round.reports.iter().any(|(_, report)| report.has_met);
        match round.leave().is_some() || !has_met {
            true => Next::End(None),
            false => self.next(round.failure()),
        }
    }
}

/// The fate of a job one of whose hosts is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Hosts at the beginning.
    pub hosts: usize,
    /// Fewest to go on with.
    pub least: usize,
    /// How long one that is gone is waited for.
    pub wait: Duration,
}

/// Who is of the next start.
#[derive(Debug, PartialEq, Eq)]
pub enum Crew {
    /// These, in the order of their ranks.
    These(Vec<usize>),
    /// Not yet known: in words, who is waited for.
    Wait(String),
    /// Fewer than the config allows.
    TooFew(String),
}

impl Policy {
    /// By the config, of a job of so many hosts.
    pub fn of(ranks: &RanksConfig, hosts: usize) -> Policy {
        let least = ranks.min_hosts.unwrap_or(hosts).min(hosts);
        Policy { hosts, least, wait: Duration::from_millis(ranks.host_wait_ms) }
    }

    /// Decides, `waited` after the end of a start of `members`, where those hosts are `away`. One
    /// that was not of it is not waited for; one that has come back is of the next.
    pub fn crew(&self, members: &[usize], away: &[Away], waited: Duration) -> Crew {
        let missed: Vec<&Away> = away.iter().filter(|a| members.contains(&a.node)).collect();
        if let (Some(first), true) = (missed.first(), waited < self.wait) {
            let nodes: Vec<String> = missed.iter().map(|away| away.node.to_string()).collect();
            let (s, are) = if missed.len() == 1 { ("", "is") } else { ("s", "are") };
            return Crew::Wait(format!(
                "node{s} {} {are} gone ({}); waiting for {} s at most until `muster train` is \
                 started there again (ranks.host_wait_ms)",
                nodes.join(", "),
                first.why,
                self.wait.as_secs_f64()
            ));
        }
        let is_here = |node: &usize| !away.iter().any(|away| away.node == *node);
        let here: Vec<usize> = (0..self.hosts).filter(is_here).collect();
        if here.len() >= self.least {
            return Crew::These(here);
        }
        let each = away.iter().map(|away| format!("node {} ({})", away.node, away.why));
        Crew::TooFew(format!(
            "Gone: {}. That leaves {} of {} hosts, and {} are needed (ranks.min_hosts), so the \
             ranks were not started again.",
            each.collect::<Vec<String>>().join(", "),
            here.len(),
            self.hosts,
            self.least
        ))
    }
}

/// The restarts that there are, for the header of a run on so many hosts.
pub fn words(ranks: &RanksConfig, nodes: usize) -> String {
    let (most, [first, longest]) = (ranks.restarts, WAITS);
    if most == 0 {
        return "none: the first failure ends the run (ranks.restarts is 0)".to_owned();
    }
    let waits = format!("after {} s, doubling to {} s", first.as_secs(), longest.as_secs());
    let again = format!("{most} until the next checkpoint, {waits}");
    if nodes == 1 {
        return again;
    }
    let policy = Policy::of(ranks, nodes);
    let (silent_s, wait_s) = (ranks.host_timeout_ms as f64 / 1e3, policy.wait.as_secs_f64());
    let then = match policy.least < nodes {
        true => format!("then without it, while there are {} of {nodes}", policy.least),
        false => "then the run ends".to_owned(),
    };
    format!(
        "{again}, on all hosts together; a host is gone after {silent_s} s of silence and waited \
         for {wait_s} s, {then}; if node 0 is, the run ends"
    )
}

#[cfg(test)]
mod tests;
