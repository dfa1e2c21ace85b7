//! Whose fault it is, in an exit code, and everything that should be said, in one message.

use std::fmt;
use std::io::ErrorKind;
use std::path::Path;
use std::process::ExitCode;

use crate::limits;
use crate::train_cmd::life::Work;
use crate::train_cmd::{BUCKETS, KIND_OF_CPU, OPTIMIZER_DEVICE};
use comm::Fault;

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// As asked.
    Ok,
    /// As asked, and the answer is that something became worse.
    Regression,
    /// The user's mistake: a config, a path, a value, a damaged file.
    Mistake,
    /// A rank, the network or a device failed; trying again may help.
    Peer,
    /// A bug in Muster.
    Bug,
    /// Told to stop and saved: run again to go on (`EX_TEMPFAIL`, which schedulers requeue).
    Preempted,
    /// Ctrl-C: what the shell calls a program that SIGINT has ended.
    Interrupted,
}

impl Exit {
    /// The number for the shell.
    pub fn code(self) -> u8 {
        match self {
            Exit::Ok => 0,
            Exit::Regression => 1,
            Exit::Mistake => 2,
            Exit::Peer => 3,
            Exit::Bug => 70,
            Exit::Preempted => 75,
            Exit::Interrupted => 130,
        }
    }

    /// Of a number that another host tells; of one that none has, as when a host fails.
    pub fn of_code(code: u8) -> Exit {
        let all = [Exit::Ok, Exit::Regression, Exit::Mistake, Exit::Bug, Exit::Preempted];
        let mut all = all.into_iter().chain([Exit::Interrupted]);
        all.find(|exit| exit.code() == code).unwrap_or(Exit::Peer)
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit.code())
    }
}

/// Why a command failed, ready to be shown.
#[derive(Debug)]
pub struct CliError {
    pub exit: Exit,
    /// The mistake, its place, and the remedy; may have several lines.
    pub message: String,
    /// Other ranks, if this one only ends because of them.
    pub fault: Option<Fault>,
    /// The user has read it.
    pub is_told: bool,
}

impl CliError {
    fn new(exit: Exit, message: String) -> CliError {
        CliError { exit, message, fault: None, is_told: false }
    }

    /// Says it, the first time: at the end of the command, or before that waits for others.
    pub fn tell(&mut self) {
        if !std::mem::replace(&mut self.is_told, true) {
            crate::console::restore_terminal();
            crate::output::complain(&self.to_string());
        }
    }

    /// Something that the user can put right, unless the system's own word for it is that the
    /// machine has failed.
    pub fn mistake(message: impl fmt::Display) -> CliError {
        let message = message.to_string();
        // Of an error that is part of a sentence by now, only the words are left.
        match limits::is_of_machine_in(&message).then(|| limits::advice_in(&message)).flatten() {
            Some(advice) => CliError::peer(format!("{message}; {advice}")),
            None => CliError::new(Exit::Mistake, message),
        }
    }

    /// As [`CliError::mistake`], by what caused an error.
    fn mistaken(error: impl std::error::Error + 'static) -> CliError {
        match limits::is_of_machine(&error) {
            true => CliError::limited(error),
            false => CliError::new(Exit::Mistake, error.to_string()),
        }
    }

    /// Something that broke outside this process.
    pub fn peer(message: impl fmt::Display) -> CliError {
        CliError::new(Exit::Peer, message.to_string())
    }

    /// A file that could not be read or written; a machine that has no room, or whose disk fails,
    /// is not the user's mistake.
    pub fn file(action: &str, path: &Path, error: &std::io::Error) -> CliError {
        let message = format!("cannot {action} {}: {error}", path.display());
        match limits::advice_at(path, error) {
            Some(advice) if limits::is_of_machine(error) => {
                CliError::peer(format!("{message}; {advice}"))
            }
            _ => CliError::mistake(message),
        }
    }

    /// Something that broke outside this process, perhaps because it met a limit of the machine.
    fn limited(error: impl std::error::Error + 'static) -> CliError {
        match limits::advice(&error) {
            Some(advice) => CliError::peer(format!("{error}; {advice}")),
            None => CliError::peer(error),
        }
    }

    /// As a benchmark says it, which has a flag where a config has a key.
    pub fn of_bench(mut self) -> CliError {
        let what = self.fault.as_mut().map(|fault| &mut fault.what);
        for text in what.into_iter().chain([&mut self.message]) {
            *text = text.replace(comm::TIMEOUT_KEY, Work::Benchmark.timeout_key());
        }
        self
    }

    /// With a sentence more.
    pub fn with_reason(mut self, why: Option<String>) -> CliError {
        if let Some(why) = why {
            self.message = format!("{}\n{why}", self.message.trim_end());
        }
        self
    }

    /// The first line of the message; in place of the promise of log lines below, the last error
    /// among them.
    pub fn headline(&self) -> String {
        let line = self.message.lines().next().unwrap_or_default();
        let Some((headline, _)) = line.split_once("; its last log lines:") else {
            return line.to_owned();
        };
        let below = self.message.lines().skip(1).map(str::trim);
        match below.filter_map(|line| line.strip_prefix("error: ")).last() {
            Some(why) => format!("{headline}: {why}"),
            None => headline.to_owned(),
        }
    }

    /// Something that cannot happen.
    pub fn bug(message: impl fmt::Display) -> CliError {
        let message = format!("{message}\nThis is a bug in Muster; please report it.");
        CliError::new(Exit::Bug, message)
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.message.trim_end())
    }
}

impl From<data::DataError> for CliError {
    fn from(error: data::DataError) -> CliError {
        if let data::DataError::Io { path, source, .. } = &error
            && limits::is_of_machine(source)
            && let Some(advice) = limits::advice_at(path, source)
        {
            return CliError::peer(format!("{error}; {advice}"));
        }
        CliError::mistaken(error)
    }
}

impl From<layout::LayoutError> for CliError {
    fn from(error: layout::LayoutError) -> CliError {
        CliError::mistaken(error)
    }
}

impl From<model::ModelError> for CliError {
    fn from(error: model::ModelError) -> CliError {
        match error {
            model::ModelError::Device(error) => error.into(),
            model::ModelError::Kernel(error) => error.into(),
            other => CliError::mistaken(other),
        }
    }
}

impl From<optim::OptimError> for CliError {
    fn from(error: optim::OptimError) -> CliError {
        match error {
            optim::OptimError::Device(error) => error.into(),
            optim::OptimError::Kernel(error) => error.into(),
            // The run diverged, which a lower rate or a clip mends.
            other => CliError::mistaken(other),
        }
    }
}

/// Shapes that a kernel refuses were decided here, not by the user. A device or its driver may fail
/// at anything, also at a module that others load; which images there are is up to the build.
impl From<kernels::KernelError> for CliError {
    fn from(error: kernels::KernelError) -> CliError {
        match error {
            kernels::KernelError::Device(error) => error.into(),
            kernels::KernelError::Image(error) => CliError::mistaken(error),
            other => CliError::bug(other),
        }
    }
}

impl From<bench::BenchError> for CliError {
    fn from(error: bench::BenchError) -> CliError {
        use bench::BenchError;
        match error {
            BenchError::Shape { .. }
            | BenchError::Size { .. }
            | BenchError::Argument(_)
            | BenchError::NoOverlap(_)
            | BenchError::Read { .. } => CliError::mistaken(error),
            BenchError::Comm(error) => error.into(),
            BenchError::Stamps(_) | BenchError::Supervisor(_) => CliError::peer(error),
            BenchError::Device(error) => error.into(),
            BenchError::Kernel(error) => error.into(),
            // A device that computes wrongly, or kernels that do.
            BenchError::Wrong(_) => CliError::peer(error),
            BenchError::Json(_) | BenchError::Plot(_) => CliError::bug(error),
        }
    }
}

impl From<device::DeviceError> for CliError {
    fn from(error: device::DeviceError) -> CliError {
        match &error {
            // Memory, though the system tells of it as of a disk.
            device::DeviceError::Shared { source, .. } => limits::no_memory(&error, source),
            _ => CliError::limited(error),
        }
    }
}

impl From<checkpoint::Error> for CliError {
    fn from(error: checkpoint::Error) -> CliError {
        use checkpoint::Error;
        use checkpoint::objects::ObjectError;
        match error {
            // Another job, or a later start of this one, saves there: who starts again would
            // fence that one off in turn.
            Error::Fenced { .. } => CliError::mistake(format!(
                "{error}; let one of the two go on, or give this one a name (--name) and a \
                 directory (checkpoint.store) of its own"
            )),
            // A disk that lost writes or is full.
            Error::SyncFailed { .. } | Error::DiskFull { .. } => CliError::peer(error),
            // A disk that fails, or what connects it.
            Error::Io { ref source, .. }
                if [libc::EIO, libc::ESTALE, libc::ENODEV, libc::ENXIO]
                    .map(Some)
                    .contains(&source.raw_os_error()) =>
            {
                CliError::peer(error)
            }
            Error::Io { ref source, .. }
                if ObjectError::of(source).is_some_and(ObjectError::is_outage) =>
            {
                CliError::peer(error)
            }
            // The parts of a save are decided by the trainer.
            Error::Report { .. }
            | Error::Gap { .. }
            | Error::Overlap { .. }
            | Error::Stranger { .. }
            | Error::OutOfBounds { .. }
            | Error::OutputLength { .. } => CliError::bug(error),
            Error::Io { ref source, .. } if limits::advice(source).is_some() => {
                CliError::limited(error)
            }
            other => CliError::mistaken(other),
        }
    }
}

impl From<interop::Error> for CliError {
    fn from(error: interop::Error) -> CliError {
        match error {
            interop::Error::Checkpoint(error) => error.into(),
            interop::Error::Io { action, path, source } => CliError::file(action, &path, &source),
            other => CliError::mistake(other),
        }
    }
}

impl From<comm::CommError> for CliError {
    fn from(error: comm::CommError) -> CliError {
        use comm::CommError;
        use comm::rendezvous::Refusal;
        match error {
            CommError::RankTaken { .. }
            | CommError::ForeignMemory { .. }
            | CommError::Secret { .. }
            | CommError::Tls { .. } => CliError::mistaken(error),
            // An address or a port that the user chose; else the machine lacks something.
            CommError::Bind { ref source, .. }
                if matches!(
                    source.kind(),
                    ErrorKind::AddrInUse
                        | ErrorKind::AddrNotAvailable
                        | ErrorKind::PermissionDenied
                ) =>
            {
                CliError::mistaken(error)
            }
            // The trainer decides which operations a group is asked for.
            CommError::NoSuchRank { .. }
            | CommError::PerRank { .. }
            | CommError::Range { .. }
            | CommError::SumType { .. }
            | CommError::PerSegment { .. }
            | CommError::Sum(_)
            | CommError::Overlap { .. }
            | CommError::OwnMessage { .. }
            | CommError::ForeignOperation
            | CommError::ForeignWindow => CliError::bug(error),
            CommError::Device(error) => error.into(),
            CommError::Transport(_) => CliError::mistaken(error),
            CommError::SharedMemory { ref source, .. } => limits::no_memory(&error, source),
            CommError::Refused(Refusal::Disagree { ref what, .. }) if what == BUCKETS => {
                CliError::mistake(format!(
                    "{error}: give every host the same table (ranks.links), or a size \
                     (ranks.bucket_bytes)"
                ))
            }
            CommError::Refused(Refusal::Disagree { ref what, .. }) if what == KIND_OF_CPU => {
                CliError::mistake(format!(
                    "{error}, or let bits depend on the hosts (ranks.mixed_cpus: true)"
                ))
            }
            CommError::Refused(Refusal::Disagree { ref what, ref groups })
                if what == OPTIMIZER_DEVICE =>
            {
                let values: Vec<&str> = groups.iter().map(|(value, _)| value.as_str()).collect();
                CliError::mistake(format!("{error}: {}", values.join(" or ")))
            }
            // Missing or dead ranks may be there the next time; ranks that differ will not agree.
            CommError::Refused(ref refusal)
                if !matches!(
                    refusal,
                    Refusal::Missing { .. } | Refusal::Ended { .. } | Refusal::Absent { .. }
                ) =>
            {
                CliError::mistaken(error)
            }
            other => CliError { fault: other.fault(), ..CliError::limited(other) },
        }
    }
}

impl From<train::TrainError> for CliError {
    fn from(error: train::TrainError) -> CliError {
        use train::TrainError;
        match error {
            TrainError::Layout(error) => error.into(),
            TrainError::Device(error) => error.into(),
            TrainError::Kernel(error) => error.into(),
            TrainError::Comm(error) => error.into(),
            TrainError::Optimizer(error) => error.into(),
            TrainError::Model(error) => error.into(),
            TrainError::Data(error) => error.into(),
            TrainError::Checkpoint(error) => error.into(),
            error @ (TrainError::NonFinite { .. }
            | TrainError::OtherModel { .. }
            | TrainError::NoRoom { .. }
            | TrainError::NoneWhole { .. }
            | TrainError::LocalDir { .. }
            | TrainError::Damaged { .. }) => CliError::mistaken(error),
            error @ (TrainError::Vote { .. }
            | TrainError::Declared { .. }
            | TrainError::InitialWeights { .. }) => CliError::bug(error),
            TrainError::PeerSave { rank, .. } => {
                let fault = Fault { ranks: vec![rank], what: error.to_string() };
                CliError { fault: Some(fault), ..CliError::peer(error) }
            }
            TrainError::LocalPeer { rank } => {
                let fault = Fault { ranks: vec![rank], what: error.to_string() };
                CliError { fault: Some(fault), ..CliError::peer(error) }
            }
            error @ (TrainError::PeerLoad { .. }
            | TrainError::Engine(_)
            | TrainError::Thread(_)
            | TrainError::Events(_)) => CliError::limited(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_decides_the_exit_code() {
        let exit = |error: CliError| error.exit.code();
        assert_eq!(exit(layout::LayoutError::TooManyRanks { world: 3, leaves: 2 }.into()), 2);
        let lost = comm::CommError::Revoked { why: "rank 1 died".into() };
        assert_eq!(exit(lost.into()), 3);
        let elsewhere = comm::CommError::Mismatch {
            operation: comm::Operation::Barrier,
            sequence: 7,
            rank: 1,
            theirs: "barrier #7".into(),
        };
        assert_eq!(exit(elsewhere.into()), 3);
        let refused = device::DeviceError::Image {
            device: device::DeviceKind::Cuda(0),
            message: "no code for this device".into(),
        };
        assert_eq!(exit(kernels::KernelError::Device(refused).into()), 3);
        let program = comm::CommError::ForeignWindow;
        assert_eq!(exit(program.into()), 70);
    }
}
