//! The task by the environment that a launcher gave this process: a pure function of it.
//!
//! ```text
//! environment ─┬─ Slurm ──────┐
//!              ├─ Kubernetes ─┤ each: nothing, a task of so many, or what is wrong
//!              ├─ MPI ────────┤
//!              └─ torchrun ───┴─▶ nest ─▶ Launch ─▶ with what the command says (`hosts`)
//! ```
//!
//! A task of a launcher is what `--nodes` counts: one supervising process, whichever machine it is
//! on. `srun --ntasks-per-node=1` makes one per machine, which starts all of that machine's ranks;
//! `mpirun -n 8` makes eight, each with one rank unless `--ranks` says more. Nothing has to be told
//! apart for that; tasks on one machine divide its cores and memory.
//!
//! Launchers may be nested, as `srun torchrun` is: then the one with more tasks is the inner one,
//! and its tasks must lie in the outer's in order, or the outer ones have only brought it there.

mod error;
mod hostlist;
mod hosts;
mod kubernetes;
mod mpi;
mod slurm;
#[cfg(test)]
mod tests;
mod torchrun;
mod vars;

use std::fmt;

pub use error::LaunchError;
pub use hosts::{Hosts, Rendezvous, hosts};
pub use vars::{Env, Task, Var};

/// Who started this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Launcher {
    Slurm,
    Kubernetes,
    Mpi,
    Torchrun,
}

impl Launcher {
    /// The outer ones first, where launchers are nested with as many tasks each.
    const ALL: [Launcher; 4] =
        [Launcher::Slurm, Launcher::Kubernetes, Launcher::Mpi, Launcher::Torchrun];

    /// As `--launcher` has it.
    pub fn word(self) -> &'static str {
        match self {
            Launcher::Slurm => "slurm",
            Launcher::Kubernetes => "kubernetes",
            Launcher::Mpi => "mpi",
            Launcher::Torchrun => "torchrun",
        }
    }

    /// The command that people type.
    fn command(self) -> &'static str {
        match self {
            Launcher::Slurm => "srun",
            Launcher::Kubernetes => "an indexed Job",
            Launcher::Mpi => "mpirun",
            Launcher::Torchrun => "torchrun",
        }
    }

    /// How its machines get as many tasks each.
    fn evenly(self) -> &'static str {
        match self {
            Launcher::Slurm => "give srun --ntasks-per-node",
            Launcher::Kubernetes => "give every pod as many",
            Launcher::Mpi => "give every host of mpirun as many slots, or use --map-by ppr:N:node",
            Launcher::Torchrun => "give every host the same --nproc-per-node",
        }
    }

    /// The variables without which it was not this launcher.
    fn sign(self) -> &'static str {
        match self {
            Launcher::Slurm => "SLURM_PROCID and SLURM_STEP_NUM_TASKS, which srun sets",
            Launcher::Kubernetes => "JOB_COMPLETION_INDEX and MUSTER_NODES",
            Launcher::Mpi => "OMPI_COMM_WORLD_RANK, or PMI_RANK",
            Launcher::Torchrun => "RANK and WORLD_SIZE",
        }
    }

    fn read(self, env: &Env) -> Result<Seen, LaunchError> {
        match self {
            Launcher::Slurm => slurm::read(env),
            Launcher::Kubernetes => kubernetes::read(env),
            Launcher::Mpi => mpi::read(env),
            Launcher::Torchrun => torchrun::read(env),
        }
    }
}

impl fmt::Display for Launcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Launcher::Slurm => "Slurm",
            Launcher::Kubernetes => "Kubernetes",
            Launcher::Mpi => "MPI",
            Launcher::Torchrun => "torchrun",
        })
    }
}

/// Which launchers are listened to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    Any,
    Nobody,
    Only(Launcher),
}

/// One launcher's part of the environment.
enum Seen {
    Nothing,
    /// It was there, but says too little, which is a mistake unless another one says enough.
    Partly(LaunchError),
    Launch(Launch),
}

/// A task that a launcher started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// The innermost, if several are nested.
    pub launcher: Launcher,
    pub task: Task,
    /// This task among those on its machine, where that is known.
    pub here: Option<Task>,
    /// Where all tasks can meet, where that is known.
    pub meeting: Option<Meeting>,
    /// Another name for each job and each of its restarts, where there is one.
    pub job: Option<String>,
}

impl Launch {
    /// Whether all tasks are on one machine, as far as is known.
    fn is_one_machine(&self) -> bool {
        self.here.as_ref().is_some_and(|here| here.count == self.task.count)
    }
}

/// An address of the machine of task 0, and what says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meeting {
    pub host: String,
    pub port: u16,
    pub vars: Vec<Var>,
}

/// Ports for meetings: below those that Linux gives to outgoing connections (32768 and above).
const PORTS: std::ops::Range<u16> = 20_000..30_000;

/// The same port on every machine for the same number, and other ones for jobs nearby.
fn port(number: u64) -> u16 {
    let span = u64::from(PORTS.end - PORTS.start);
    PORTS.start + u16::try_from(number % span).expect("the span fits 16 bits")
}

/// A number of a text (FNV-1a), for [`port`].
fn number_of(text: &str) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    text.bytes().fold(0xcbf2_9ce4_8422_2325, step)
}

/// The task by the environment, if a launcher was there.
///
/// # Errors
/// It is half set or contradictory; names the variables.
pub fn read(env: &Env, choice: Choice) -> Result<Option<Launch>, LaunchError> {
    let listened = |launcher: &Launcher| match choice {
        Choice::Any => true,
        Choice::Nobody => false,
        Choice::Only(one) => one == *launcher,
    };
    let (mut launches, mut partly) = (Vec::new(), None);
    for launcher in Launcher::ALL.into_iter().filter(listened) {
        match launcher.read(env)? {
            Seen::Nothing => {}
            Seen::Partly(error) => partly = partly.or(Some(error)),
            Seen::Launch(launch) => launches.push(launch),
        }
    }
    match (nest(launches)?, partly, choice) {
        (Some(launch), ..) => {
            let meeting = match launch.meeting {
                Some(meeting) => Some(meeting),
                // As where mpirun runs in the script of a batch job.
                None => slurm::first_of_job(env)?,
            };
            Ok(Some(Launch { meeting, ..launch }))
        }
        (None, Some(error), _) => Err(error),
        (None, None, Choice::Only(launcher)) => Err(LaunchError::NotThere { launcher }),
        (None, None, _) => Ok(None),
    }
}

/// One launch of several, each of which lies in the one before. Sorting is stable: among launchers
/// with as many tasks the order is that of [`Launcher::ALL`].
fn nest(mut launches: Vec<Launch>) -> Result<Option<Launch>, LaunchError> {
    launches.sort_by_key(|launch| launch.task.count);
    let mut launches = launches.into_iter();
    let Some(mut outer) = launches.next() else { return Ok(None) };
    for inner in launches {
        if !lies_in(&inner.task, &outer.task) && !is_brought_by(&outer, &inner) {
            let (first, second) = (outer.launcher, inner.launcher);
            return Err(LaunchError::Two {
                first,
                second,
                tells: Box::new((outer.task, inner.task)),
            });
        }
        outer = inside(outer, inner);
    }
    Ok(Some(outer))
}

/// Whether each outer task has as many inner ones, and this is one of its own.
fn lies_in(inner: &Task, outer: &Task) -> bool {
    inner.count.is_multiple_of(outer.count)
        && inner.index / (inner.count / outer.count) == outer.index
}

/// Whether the outer tasks, one on each of Slurm's nodes, only brought the inner launcher there:
/// its daemons or agents, which count in an order of their own. mpirun starts none where it runs
/// itself; agents of torchrun that meet at random get their ranks as they come.
fn is_brought_by(outer: &Launch, inner: &Launch) -> bool {
    let one_each = outer.here.as_ref().is_some_and(|here| here.count == 1);
    let (true, Launcher::Slurm, Some(here)) = (one_each, outer.launcher, &inner.here) else {
        return false;
    };
    match inner.launcher {
        // Else there would be one mpirun in each task.
        Launcher::Mpi => here.count < inner.task.count,
        Launcher::Torchrun => here.count.checked_mul(outer.task.count) == Some(inner.task.count),
        Launcher::Slurm | Launcher::Kubernetes => false,
    }
}

/// The inner launch, with what only the outer one knows.
fn inside(outer: Launch, inner: Launch) -> Launch {
    let is_same = inner.task.count == outer.task.count;
    // mpirun brings its daemons to other machines by steps of their own, which begin there.
    let is_same_task = is_same && inner.task.index == outer.task.index;
    let may_be_daemons = outer.launcher == Launcher::Slurm && !is_same_task;
    Launch {
        meeting: inner.meeting.or(outer.meeting.filter(|_| !may_be_daemons)),
        here: inner.here.or(outer.here.filter(|_| is_same)),
        job: inner.job.or(outer.job),
        ..inner
    }
}
