//! The hosts of a job by the command, and for the rest by a launcher.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::vars::{Env, Task, list};
use super::{Choice, Launch, LaunchError, Launcher, Meeting, read};
use crate::cli::HostArgs;
use crate::error::CliError;

/// Where this process stands among those of its job, each of which counts as a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hosts {
    pub nodes: usize,
    pub node: usize,
    /// Where they meet; none where this one is alone.
    pub rendezvous: Option<Rendezvous>,
    /// Where ranks listen for others, if that is not this machine's own loopback.
    pub bind: Option<IpAddr>,
    /// Processes of the job on this machine, this one included; they divide cores and memory.
    pub beside: usize,
    /// The job is known to be on several machines.
    pub is_spread: bool,
    /// Another name for each start of a job, the same on all of its hosts.
    pub job: Option<String>,
    /// Of a launcher: its tasks, if there are several; each is a rank unless somebody says more.
    pub tasks: Option<usize>,
    /// Of a launcher: what it said, for people.
    pub found: Option<String>,
}

/// An address of node 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendezvous {
    /// `HOST:PORT`.
    pub text: String,
    /// With who says so.
    pub shown: String,
    /// Its name may be known only after a while, as that of a pod that is being made.
    pub may_be_late: bool,
}

/// Returns the hosts by the command, and for the rest by the environment.
///
/// # Errors
/// Neither says enough; the environment is half set or contradictory.
pub fn hosts(args: &HostArgs, env: &Env) -> Result<Hosts, CliError> {
    let is_whole = args.nodes.is_some() && args.node_rank.is_some() && args.rendezvous.is_some();
    let choice = if is_whole { Choice::Nobody } else { args.launcher.into() };
    match read(env, choice).map_err(CliError::mistake)? {
        Some(launch) => of_launch(args, launch),
        None => of_command(args),
    }
}

fn flag(text: &str) -> Rendezvous {
    let shown = format!("--rendezvous {text}");
    Rendezvous { text: text.to_owned(), shown, may_be_late: false }
}

fn of_command(args: &HostArgs) -> Result<Hosts, CliError> {
    let flags = [
        ("--nodes", args.nodes.is_some()),
        ("--node-rank", args.node_rank.is_some()),
        ("--rendezvous", args.rendezvous.is_some()),
    ];
    let named = |is_given: bool| {
        let names = flags.iter().filter(|flag| flag.1 == is_given).map(|flag| flag.0);
        names.collect::<Vec<_>>().join(" and ")
    };
    let (given, missing) = (named(true), named(false));
    if !given.is_empty() && !missing.is_empty() {
        return Err(CliError::mistake(format!(
            "{given} without {missing}: no launcher (Slurm, Kubernetes, MPI, torchrun) that could \
             say them has started this process; give all three"
        )));
    }
    Ok(Hosts {
        nodes: args.nodes.unwrap_or(1),
        node: args.node_rank.unwrap_or(0),
        rendezvous: args.rendezvous.as_deref().map(flag),
        bind: args.bind,
        beside: 1,
        is_spread: false,
        job: None,
        tasks: None,
        found: None,
    })
}

fn of_launch(args: &HostArgs, launch: Launch) -> Result<Hosts, CliError> {
    let task = &launch.task;
    let (nodes, node) = (args.nodes.unwrap_or(task.count), args.node_rank.unwrap_or(task.index));
    if node >= nodes && (args.nodes.is_none() || args.node_rank.is_none()) {
        let by = |flag: &str, given: Option<usize>, var: usize| match given {
            Some(number) => format!("{flag} {number}"),
            None => task.vars[var].to_string(),
        };
        let (index, of) = (by("--node-rank", args.node_rank, 0), by("--nodes", args.nodes, 1));
        return Err(CliError::mistake(format!(
            "{index} is not one of {of}; nodes count from 0: give both --nodes and --node-rank, or \
             neither"
        )));
    }
    let is_one_machine = launch.is_one_machine() && nodes == task.count;
    let rendezvous = match &args.rendezvous {
        Some(text) => Some(flag(text)),
        None if nodes == 1 => None,
        None => Some(meeting(&launch, is_one_machine).map_err(CliError::mistake)?),
    };
    let meets_over_v6 = |at: &Rendezvous| at.text.starts_with('[');
    let everywhere = match rendezvous.as_ref().is_some_and(meets_over_v6) {
        true => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        false => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    };
    let here = launch.here.as_ref().filter(|_| nodes == task.count);
    Ok(Hosts {
        nodes,
        node,
        bind: args.bind.or((nodes > 1 && !is_one_machine).then_some(everywhere)),
        beside: here.map_or(1, |here| here.count),
        is_spread: here.is_some() && !is_one_machine,
        job: launch.job.clone(),
        tasks: (nodes > 1).then_some(nodes),
        found: Some(words(args, &launch, rendezvous.as_ref())),
        rendezvous,
    })
}

fn meeting(launch: &Launch, is_one_machine: bool) -> Result<Rendezvous, LaunchError> {
    let Some(Meeting { host, port, vars }) = &launch.meeting else {
        let (launcher, count) = (launch.launcher, launch.task.count);
        let mut vars = launch.task.vars.clone();
        vars.extend(launch.here.iter().flat_map(|here| here.vars.clone()));
        return Err(LaunchError::NoMeeting { launcher, count, vars });
    };
    // Whatever its name stands for.
    let host = if is_one_machine { "127.0.0.1" } else { host };
    let text = match host.contains(':') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    };
    let shown = match vars.as_slice() {
        [] => format!("--rendezvous {text}, as it would be"),
        vars => format!("--rendezvous {text}, as it would be by {}", list(vars)),
    };
    let may_be_late = launch.launcher == Launcher::Kubernetes;
    Ok(Rendezvous { text, shown, may_be_late })
}

/// One line: what was found, and which variables said so.
fn words(args: &HostArgs, launch: &Launch, rendezvous: Option<&Rendezvous>) -> String {
    let Launch { launcher, task: Task { index, count, vars }, here, meeting, .. } = launch;
    let place = match (count, here) {
        (1, _) => "its only task".to_owned(),
        (_, Some(here)) if here.count == *count => {
            format!("task {index} of {count}, all on this machine")
        }
        (_, Some(here)) => format!("task {index} of {count}, {} on each machine", here.count),
        (_, None) => format!("task {index} of {count}"),
    };
    let here = here.iter().flat_map(|here| here.vars[1..].iter().cloned());
    let vars: Vec<_> = vars.iter().cloned().chain(here).collect();
    let mut line = format!("started by {launcher} as {place} ({})", list(&vars));
    let by = meeting.iter().flat_map(|meeting| meeting.vars.clone()).collect::<Vec<_>>();
    line += &match rendezvous {
        None => "; this host is alone".to_owned(),
        Some(at) if args.rendezvous.is_some() => {
            format!("; all meet at {} (--rendezvous)", at.text)
        }
        Some(at) if by.is_empty() => format!("; all meet at {}", at.text),
        Some(at) => format!("; all meet at {} ({})", at.text, list(&by)),
    };
    let counted = [("--nodes", args.nodes), ("--node-rank", args.node_rank)];
    let won = counted.iter().filter_map(|(flag, given)| Some(format!("{flag} {}", (*given)?)));
    let won: Vec<String> = won.collect();
    if !won.is_empty() {
        line += &format!("; taken instead: {}", won.join(" "));
    }
    line
}
