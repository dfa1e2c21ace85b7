//! The supervising process of a host: prepares, starts the ranks, and says how it ended.

use std::fs::{File, TryLockError};
use std::path::Path;

use comm::Lack;
use layout::Mesh;
use train::Event;
use train::config::Config;
use train::mesh_plan::Purpose;

use super::address::{self, Absence, SECRET, TLS};
use super::mesh;
use super::planned::{Planned, header, plan};
use super::restart::Restarts;
use super::signals::{Ending, Signals};
use super::starting::Starts;
use super::{alone, coordinate, follow};
use crate::cli::TrainArgs;
use crate::config::Override;
use crate::console::Console;
use crate::error::{CliError, Exit};
use crate::launch_env::{self, Env};
use crate::run_dir::RunDir;
use crate::secret::JobSecret;
use crate::tls;
use crate::trace;

/// Trains.
///
/// # Errors
/// The user's mistake, or a rank that failed.
pub fn train(args: TrainArgs) -> Result<Exit, CliError> {
    let hosts = launch_env::hosts(&args.hosts, &Env::of_this_process())?;
    hosts.found.iter().for_each(|found| crate::output::tell(found));
    let mut absence = Absence::of(&hosts, &args.hosts, !args.dry_run);
    let never = address::Start::Never;
    let purpose = if args.dry_run { Purpose::Plan } else { Purpose::Train };
    let mut overrides = args.overrides();
    overrides.extend(hosts.tasks.map(|tasks| Override::otherwise("ranks.count", tasks)));
    let mut heed = |said| absence.heed(said);
    let loaded = crate::config::load(&args.config, &overrides, purpose, &mut heed);
    let loaded = loaded.map_err(|error| absence.report_error(error, never))?;
    absence.is_waited_for(loaded.config.ranks.timeout_ms);
    let secret = secret(&loaded.config, hosts.nodes);
    // From here on by what the config says, or not at all.
    let secret = secret.map_err(|error| absence.report_lack(Lack::Secret, error))?;
    let files = loaded.config.ranks.tls.clone().map(|files| (TLS, files));
    let tls = tls::of_job(files, hosts.nodes);
    let tls = tls.map_err(|error| absence.report_lack(Lack::Tls, error))?;
    absence.proof = Ok(tls.security(&secret));
    let tell = |error: CliError| absence.report_error(error, never);
    tls::check(TLS, &tls).map_err(tell)?;
    if !loaded.resolved.mesh.is_data_parallel() {
        return mesh::plan_only(&hosts, &loaded, args.dry_run).map_err(tell);
    }
    let topology = args.hosts.topology.as_deref();
    let planned = plan(&hosts, loaded, (secret, tls), topology).map_err(tell)?;
    let run = RunDir::new(planned.frame.config.runs_dir.join(&planned.frame.config.name));
    if args.dry_run {
        return dry_run(planned, &run);
    }
    let planned = planned.that_fits().map_err(tell)?;
    let cache = run.root().join("data");
    let warn_signal = planned.frame.config.ranks.warn_signal;
    let asked = absence.clone();
    let nodes = (hosts.node, hosts.nodes);
    let parts = args.trace.as_deref().map(|path| trace::Parts::of(path, nodes));
    let ending = Ending::of_training(parts);
    let signals = Signals::watch(warn_signal, ending, move || {
        remove_temporary(&cache);
        asked.report("it was asked to stop", address::Start::Tried(None));
    })?;
    make_dirs(&run, &planned.frame.config).map_err(tell)?;
    run.check_pipes(planned.place.node, planned.place.ranks.clone()).map_err(tell)?;
    // Where another process trains here, that one's ranks may still come.
    let _lock = hold(&run, planned.place.node)?;
    let (ended, start) = supervise(&args, planned, (&run, &signals), &absence);
    ended.map_err(|error| absence.report_error(error, start))
}

/// Starts this host's ranks and sees them to their end, and how far they came.
fn supervise(
    args: &TrainArgs,
    planned: Planned,
    (run, signals): (&RunDir, &Signals),
    absence: &Absence,
) -> (Result<Exit, CliError>, address::Start) {
    let (most, is_supervised) =
        (planned.frame.config.ranks.restarts, planned.frame.is_supervised());
    let restarts = if is_supervised { Restarts::of_hosts(most) } else { Restarts::new(most) };
    let mut starts = Starts {
        args,
        run,
        signals,
        absence,
        restarts,
        start: address::Start::Never,
        incarnation: 0,
        sink: None,
        prepared: None,
        server: None,
        link: None,
    };
    let ended = match (is_supervised, planned.place.node) {
        (false, _) => alone::supervise(&planned, &mut starts),
        (true, 0) => coordinate::supervise(planned, &mut starts),
        (true, _) => follow::supervise(planned, &mut starts),
    };
    (ended, starts.start)
}

/// The job's, as the config or the environment says it.
fn secret(config: &Config, nodes: usize) -> Result<JobSecret, CliError> {
    let file = config.ranks.secret_file.as_deref();
    crate::secret::of_job(file.map(|path| (SECRET, path)), nodes)
}

/// Shows the header, and whether it fits. What a device that is not there would hold is not known;
/// the rest is shown before that is told.
fn dry_run(planned: Planned, run: &RunDir) -> Result<Exit, CliError> {
    let offload = planned.offload.as_ref().ok().cloned().flatten();
    let plan = (&planned.plan, &planned.place, &planned.cpus, planned.buckets.reason);
    let header = header(plan, &planned.frame.config, None, run, offload)?;
    let lines = Console::new().lines(&Event::Header(header));
    let mesh = mesh::line(Mesh::data_parallel(planned.plan.world));
    crate::output::show(&format!("{lines}\n{mesh}"))?;
    if let Err(why) | Ok(Some(why)) = &planned.fit {
        crate::output::complain(&format!("warning: {why}"));
    }
    planned.offload.map(|_| Exit::Ok)
}

fn make_dirs(run: &RunDir, config: &Config) -> Result<(), CliError> {
    // One that lies elsewhere is made by the first that saves there.
    let own = config.checkpoint.store.is_none().then(|| run.checkpoints());
    for dir in [run.root().to_owned(), run.logs()].into_iter().chain(own) {
        std::fs::create_dir_all(&dir).map_err(|error| {
            CliError::mistake(format!("cannot make the directory {}: {error}", dir.display()))
        })?;
    }
    Ok(())
}

/// Keeps other jobs out of the run's directory while this process lives: they would write the same
/// events, and the first save of one would end the other.
fn hold(run: &RunDir, node: usize) -> Result<File, CliError> {
    let path = run.lock(node);
    let file =
        File::options().create(true).append(true).open(&path).map_err(|error| {
            CliError::mistake(format!("cannot write {}: {error}", path.display()))
        })?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => Err(CliError::mistake(format!(
            "{} is being trained already, by the process that holds {}; stop that one first, or \
             give this run a name of its own with --name",
            run.root().display(),
            path.display()
        ))),
        // A file system without locks leaves it to the generations of checkpoints.
        Ok(()) | Err(TryLockError::Error(_)) => Ok(file),
    }
}

/// Removes token files that this process has not finished.
fn remove_temporary(cache: &Path) {
    let ours = format!(".{}-", std::process::id());
    for entry in std::fs::read_dir(cache).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.contains(&ours) && name.ends_with(".tmp") {
            // A file that cannot be removed is in nobody's way.
            let _ = std::fs::remove_file(entry.path());
        }
    }
}
