//! Errors of the environment that a launcher gave.

use super::hostlist::Malformed;
use super::vars::{Var, list};
use super::{Launcher, Task};

/// Names the variables at fault, with their values.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LaunchError {
    #[error(
        "the environment of {launcher} is not whole: {} {} set, {} {} not; start with {} again, \
         or leave the environment alone with --launcher none",
        list(set), are(set.len()), missing.join(" and "), are(missing.len()), launcher.command()
    )]
    Half { launcher: Launcher, set: Vec<Var>, missing: Vec<&'static str> },
    #[error("{var} is no number{}; --launcher none leaves the environment alone", of(*launcher))]
    NoNumber { launcher: Launcher, var: Var },
    #[error(
        "{var} is not among {of_all}{}: numbers run from 0 to one less; start with {} again, or \
         leave the environment alone with --launcher none",
        of(*launcher), launcher.command()
    )]
    Beyond { launcher: Launcher, var: Var, of_all: Var },
    #[error(
        "{} of {launcher}: not every machine has as many tasks as the others, and ranks are \
         divided evenly; {}",
        list(vars), launcher.evenly()
    )]
    Uneven { launcher: Launcher, vars: Vec<Var> },
    #[error("{var} of {launcher} cannot be read: {source}; name the hosts with --rendezvous")]
    Text { launcher: Launcher, var: Var, source: Malformed },
    #[error("{} of {launcher} contradict each other: {what}", list(vars))]
    Contradiction { launcher: Launcher, vars: Vec<Var>, what: String },
    #[error(
        "two launchers tell this process different things: {first} says task {} of {} ({}), \
         {second} says task {} of {} ({}); choose one with --launcher {} or --launcher {}",
        tells.0.index, tells.0.count, list(&tells.0.vars),
        tells.1.index, tells.1.count, list(&tells.1.vars),
        first.word(), second.word()
    )]
    Two { first: Launcher, second: Launcher, tells: Box<(Task, Task)> },
    #[error(
        "this is none of the tasks of a Slurm job that has several nodes ({}), and would train on \
         this one alone; start it with `srun muster …`, or use --launcher none if that is meant",
        list(vars)
    )]
    OutsideOfSteps { vars: Vec<Var> },
    #[error(
        "{var} says that this job of Slurm has several components, whose tasks are counted each \
         for itself; use a job of one component, or --launcher none with --nodes, --node-rank and \
         --rendezvous"
    )]
    Components { var: Var },
    #[error("{var} is no HOST:PORT; name pod 0 and a port, such as train-0.train:4000")]
    Address { var: Var },
    #[error(
        "JOB_COMPLETION_INDEX={index} says that this is one pod of an indexed Job, and {} not set; \
         see launch/kubernetes.yaml, or use --launcher none if every pod trains alone",
        format!("{} {}", missing.join(" and "), are(missing.len()))
    )]
    Pod { index: String, missing: Vec<&'static str> },
    #[error("--launcher {}: none of its variables is set ({})", launcher.word(), launcher.sign())]
    NotThere { launcher: Launcher },
    #[error(
        "{launcher} started {count} tasks ({}), and does not say where they can meet; add \
         --rendezvous HOST:PORT, an address of the machine of task 0, and the same port on all",
        list(vars)
    )]
    NoMeeting { launcher: Launcher, count: usize, vars: Vec<Var> },
}

fn are(count: usize) -> &'static str {
    if count == 1 { "is" } else { "are" }
}

fn of(launcher: Launcher) -> String {
    format!(" (from {launcher})")
}
