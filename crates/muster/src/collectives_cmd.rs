//! `muster bench collectives`: starts ranks, as `train` does, and shows what they measure.
//!
//! ```text
//! plan ── start ranks ──▶ worker 0 … N−1: bench::collectives::run
//!   └─ rows of rank 0 ─▶ progress ─▶ table, JSON, CSV, SVG
//! ```

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bench::BenchError;
use bench::collectives::run::{self, Plan};
use bench::collectives::{Host, Report, Row, Tool, environment, plausible, plot, table};
use comm::rendezvous::{Hello, Joined, join};
use comm::tcp;
use device::{Device, DeviceKind};
use serde::{Deserialize, Serialize};
use train::config::WarnSignal;
use train::event::Event;
use train::pulse::{self, Phase};

use crate::bench_cmd::{self, Form};
use crate::cli::{BackendArg, CollectivesArgs, WorkerArgs};
use crate::error::{CliError, Exit};
use crate::launch_env::{self, Env, Hosts};
use crate::limits;
use crate::output::{complain, say};
use crate::train_cmd::address::{self, Absence, Addresses};
use crate::train_cmd::life::{Limits, Work};
use crate::train_cmd::line::Line;
use crate::train_cmd::place::Place;
use crate::train_cmd::room;
use crate::train_cmd::signals::{Signals, die_with_parent};
use crate::train_cmd::voice::Voice;
use crate::train_cmd::watch::{Ended, Told, Watch};

/// How long operations may take to let go of a device whose job is given up.
const GIVEN_UP: Duration = Duration::from_secs(5);

/// What is decided for the workers, in a file.
#[derive(Debug, Serialize, Deserialize)]
struct Job {
    name: String,
    world: usize,
    threads: usize,
    /// Of this host's ranks, in turn, the first of which has this number.
    devices: Vec<String>,
    first_rank: usize,
    timeout_ms: u64,
    rendezvous: Vec<SocketAddr>,
    shared_memory: Option<i32>,
    bind: IpAddr,
    plan: Plan,
}

impl Job {
    /// Where a rank of this host has its buffers.
    fn device(&self, rank: usize) -> Result<DeviceKind, CliError> {
        let turn = rank.saturating_sub(self.first_rank) % self.devices.len().max(1);
        let word = self.devices.get(turn).map_or("cpu", String::as_str);
        Ok(word.parse()?)
    }

    /// What all ranks must have the same.
    fn identity(&self) -> Vec<(String, String)> {
        let plan = serde_json::to_vec(&self.plan).unwrap_or_default();
        let digest = blake3::hash(&plan).to_hex()[..16].to_owned();
        vec![
            ("build".into(), train::BUILD.into()),
            ("arguments of bench collectives".into(), digest),
        ]
    }
}

/// Measures.
///
/// # Errors
/// The user's mistake, or a rank that failed.
pub fn run(args: CollectivesArgs) -> Result<Exit, CliError> {
    let hosts = launch_env::hosts(&args.hosts, &Env::of_this_process())?;
    hosts.found.iter().for_each(|found| complain(found));
    let absence = Absence::of(&hosts, true);
    let planned = plan(&args, &hosts).inspect_err(|error| {
        absence.report_error(error, address::Start::Never);
    })?;
    let folder = Folder::new()?;
    let (path, asked) = (folder.path.clone(), absence.clone());
    let signals = Signals::watch(WarnSignal::Usr1, "stopped; nothing was written", move || {
        let _ = std::fs::remove_dir_all(&path);
        asked.report("it was asked to stop", address::Start::Tried);
    })?;
    let mut met = false;
    let ended = supervise(&args, planned, &folder, &signals, &mut met);
    ended.inspect_err(|error| {
        if !met {
            absence.report_error(error, address::Start::Tried);
        }
    })
}

/// Of one start, gone with it.
struct Folder {
    path: PathBuf,
}

impl Folder {
    fn new() -> Result<Folder, CliError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let name = format!("muster-bench-{}-{}", std::process::id(), now.subsec_nanos());
        let path = std::env::temp_dir().join(name);
        let failed = |error| limits::refused(format!("make {}", path.display()), &error);
        std::fs::create_dir(&path).map_err(failed)?;
        Ok(Folder { path })
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // It lies where things are tidied up.
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

struct Planned {
    plan: Plan,
    place: Place,
    world: usize,
    threads: usize,
    addresses: Addresses,
    /// What the hosts call the job, if there are several.
    name: Option<String>,
}

fn plan(args: &CollectivesArgs, hosts: &Hosts) -> Result<Planned, CliError> {
    let world = args.world(hosts.tasks)?;
    let place = Place::new(hosts, world, args.backend == BackendArg::Shm)?;
    let addresses = Addresses::new(hosts)?;
    let name = (place.nodes > 1).then(|| address::job(hosts));
    let share = place.of_cores();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = match args.threads {
        0 => (cores / share.ranks.max(1)).max(1),
        threads => threads,
    };
    limits::check_threads(share.ranks, threads, share.parts)?;
    let plan = args.plan(world, place.nodes)?;
    if plan.rows()? == 0 {
        let (max, least) = (plan.sweep.to_bytes, 8 * world);
        return Err(CliError::mistake(format!(
            "--max {max}: less than an element for each rank; use {least} or more"
        )));
    }
    if args.device.iter().any(|kind| !matches!(kind, DeviceKind::Cuda(_) | DeviceKind::Hip(_))) {
        check_memory(&plan, place.of_machine().ranks)?;
    }
    Ok(Planned { plan, place, world, threads, addresses, name })
}

/// Whether this host has room for the buffers of its ranks.
fn check_memory(plan: &Plan, ranks: usize) -> Result<(), CliError> {
    let limits = room::limits();
    let needed = plan.buffer_bytes().saturating_mul(ranks as u64);
    let Some(limit) = limits.iter().filter(|limit| !limit.is_per_rank).min_by_key(|l| l.bytes)
    else {
        return Ok(());
    };
    // Some is in use already.
    let room = limit.bytes / 10 * 9;
    if needed <= room {
        return Ok(());
    }
    let most = (room / (2 * ranks as u64)).checked_ilog2().map_or(1, |log| 1_u64 << log);
    let bytes = crate::console::bytes;
    Err(CliError::mistake(format!(
        "--max {}: two buffers for each of {} need {}, of {} {}; use --max {} at most, or fewer \
         --ranks",
        bytes(plan.sweep.to_bytes),
        crate::console::plural(ranks, "rank"),
        bytes(needed),
        bytes(limit.bytes),
        limit.what,
        most,
    )))
}

fn supervise(
    args: &CollectivesArgs,
    planned: Planned,
    folder: &Folder,
    signals: &Signals,
    met: &mut bool,
) -> Result<Exit, CliError> {
    let Planned { plan, place, world, threads, addresses, name } = planned;
    addresses.try_out(place.node)?;
    let name = name.unwrap_or_else(|| {
        format!("bench-{}", folder.path.file_name().unwrap_or_default().to_string_lossy())
    });
    let server = addresses.serve(&name, &place, world, args.timeout_ms)?;
    #[cfg(target_os = "linux")]
    let memory = (args.backend == BackendArg::Shm)
        .then(|| comm::shm::SharedMemory::create(&name, world))
        .transpose()?;
    #[cfg(target_os = "linux")]
    let shared_memory = memory.as_ref().map(comm::shm::SharedMemory::descriptor);
    #[cfg(not(target_os = "linux"))]
    let shared_memory = None;
    let job = Job {
        name,
        world,
        threads,
        devices: args.device.iter().map(ToString::to_string).collect(),
        first_rank: place.ranks.start,
        timeout_ms: args.timeout_ms,
        rendezvous: addresses.of(server.as_ref()),
        shared_memory,
        bind: addresses.bind(),
        plan,
    };
    let file = folder.path.join("job.json");
    let text = serde_json::to_vec(&job).map_err(CliError::bug)?;
    let failed = |error| limits::refused(format!("write {}", file.display()), &error);
    std::fs::write(&file, text).map_err(failed)?;
    place.says_it_joins(&job.rendezvous, world, "shows the results");
    let mut watch = Watch::start("bench-worker", &file, place.ranks.clone(), &folder.path)?;
    let timeout = Duration::from_millis(args.timeout_ms);
    let step_timeout = Some(timeout);
    let limits = Limits { work: Work::Benchmark, timeout, step_timeout, call: timeout };
    let waits = place.waits(&job.rendezvous, args.timeout_ms);
    let (mut report, rows) = (begin(args, &job, &place), job.plan.rows()?);
    let ended = watch.run(server.as_ref(), signals, &limits, waits, &mut |told| match told {
        Told::Measured(row) => {
            report.rows.push(row);
            progress(&report.rows, rows);
        }
        Told::Route(used) => {
            complain(&format!("over {}", used.text));
            report.transport = Some(used.transport);
            report.libraries.extend(used.library);
        }
        Told::Event(Event::Warning { message }) => complain(&format!("warning: {message}")),
        Told::Event(_) => {}
    });
    *met = watch.have_met();
    let exit = match ended? {
        Ended::Done(exit) => exit,
        Ended::AtOnce => signals.at_once(),
        Ended::BeforeTraining => signals.before_training(),
    };
    if place.node > 0 {
        place.says_it_is_done();
        return Ok(exit);
    }
    report.complete = report.rows.len() == rows;
    finish(args, &report)
}

/// A report without rows.
fn begin(args: &CollectivesArgs, job: &Job, place: &Place) -> Report {
    let mut report = Report::new(Tool {
        name: "muster".into(),
        version: Some(env!("CARGO_PKG_VERSION").into()),
        commit: Some(train::BUILD.into()),
    });
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok();
    report.unix_time_s = now.map(|now| now.as_secs());
    let command = std::env::args().skip(1).collect::<Vec<_>>().join(" ");
    report.command = Some(format!("muster {command}"));
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let (name, ranks) = (name.trim().to_owned(), place.ranks.clone().collect());
    let named = |rank| match job.device(rank) {
        Ok(kind) if !kind.is_host() => kind.to_string(),
        _ => kernels::gemm::arithmetic(),
    };
    let devices = place.ranks.clone().map(named).collect();
    report.hosts = vec![Host { name, ranks, devices }];
    report.transport = Some(args.backend_word().to_owned());
    (report.ranks, report.threads) = (Some(job.world), Some(job.threads));
    report.environment = environment::allowed(variables());
    report
}

/// Those of the environment that are text.
fn variables() -> impl Iterator<Item = (String, String)> {
    let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        Some((name.into_string().ok()?, value.into_string().ok()?))
    };
    std::env::vars_os().filter_map(text)
}

fn progress(rows: &[Row], of: usize) {
    let Some(row) = rows.last() else { return };
    let time = row.times.p50_us.unwrap_or(0.0);
    complain(&format!(
        "{} of {of}: {} {} on {}: {time:.2} us",
        rows.len(),
        row.key.op,
        crate::console::bytes(row.key.bytes),
        crate::console::plural(row.key.ranks.unwrap_or(1), "rank"),
    ));
}

/// Shows the table, writes what was asked for, and says what cannot be.
fn finish(args: &CollectivesArgs, report: &Report) -> Result<Exit, CliError> {
    let drawn = || {
        let nothing = || {
            BenchError::Argument("--svg: no case has a bus bandwidth (one rank, or a barrier alone); leave it out, or use 2 ranks or more".into())
        };
        plot::svg(report)?.ok_or_else(nothing)
    };
    let forms: [Form; 3] = [&|| report.to_json(), &|| Ok(report.csv()), &drawn];
    let written = bench_cmd::write(&args.files, forms);
    say(&table::table(report))?;
    let findings = plausible::findings(report, plausible::Limits::default());
    if !findings.is_empty() {
        complain(&plausible::text(&findings));
    }
    written?;
    match report.rows.iter().find(|row| row.wrong().is_some_and(|wrong| wrong > 0)) {
        None => Ok(Exit::Ok),
        Some(row) => Err(CliError::peer(wrong(row))),
    }
}

fn wrong(row: &Row) -> String {
    let check = row.check.clone().unwrap_or_default();
    let place = check.first_bad.map(|bad| {
        let (rank, offset) = (bad.rank, bad.offset);
        format!("; the first on rank {rank}: element {offset} is {}, not {}", bad.got, bad.expected)
    });
    format!(
        "{} of {} {} gave {} wrong elements{}",
        row.key.op,
        crate::console::bytes(row.key.bytes),
        row.key.dtype,
        check.wrong,
        place.unwrap_or_default()
    )
}

/// Runs one rank.
///
/// # Errors
/// Whatever ends the rank; the supervisor shows it.
pub fn worker(args: WorkerArgs) -> Result<Exit, CliError> {
    die_with_parent();
    let voice = Voice::start()?;
    let job = read(&args.plan)?;
    // Passed on by the supervisor, which ends this process with its own.
    let _signals = Signals::count(WarnSignal::Usr1)?;
    let ended = rank(&job, args.rank, &voice);
    if let Some(fault) = ended.as_ref().err().and_then(|error| error.fault.as_ref()) {
        // Without a supervisor nobody needs to know.
        let _ = voice.say(&Line::Fault(std::borrow::Cow::Borrowed(fault)));
    }
    ended
}

fn read(path: &Path) -> Result<Job, CliError> {
    let failed = |error: &dyn std::fmt::Display| {
        let path = path.display();
        CliError::mistake(format!("cannot read {path}: {error}; `muster bench` starts workers"))
    };
    let text = std::fs::read(path).map_err(|error| failed(&error))?;
    serde_json::from_slice(&text).map_err(|error| failed(&error))
}

/// What hangs on the device must not keep a job that is given up.
fn give_up_with(world: &comm::World, device: &Device) -> Result<(), CliError> {
    let revocation = world.revocation();
    Ok(device.give_up_when(move || {
        let why = revocation.why()?.to_owned();
        std::thread::sleep(GIVEN_UP);
        Some(why)
    })?)
}

fn rank(job: &Job, rank: usize, voice: &Voice) -> Result<Exit, CliError> {
    pulse::enter(Phase::Meeting);
    let listener = match job.shared_memory {
        None => Some(tcp::listen(SocketAddr::new(job.bind, 0))?),
        Some(_) => None,
    };
    let hello = Hello {
        job: job.name.clone(),
        rank,
        world: job.world,
        version: env!("CARGO_PKG_VERSION").into(),
        identity: job.identity(),
        listen: listener.as_ref().and_then(|listener| listener.local_addr().ok()),
    };
    let Joined { peers, group, control } = join(&job.rendezvous[..], hello, job.timeout_ms)?;
    let backend = match (listener, job.shared_memory) {
        (Some(listener), _) => comm::Backend::Tcp { listener, peers, job: group },
        #[cfg(target_os = "linux")]
        (None, Some(descriptor)) => {
            let memory = comm::shm::SharedMemory::inherited(descriptor)?;
            comm::Backend::Shm { memory }
        }
        (None, _) => return Err(CliError::mistake("this job has no shared memory")),
    };
    let connected = control.connect(backend, rank, job.world, job.timeout_ms);
    let measured = connected.map_err(CliError::from).and_then(|world| {
        pulse::enter(Phase::Measuring);
        let device = Device::new(job.device(rank)?, job.threads)?;
        if !device.kind().is_host() {
            give_up_with(&world, &device)?;
        }
        let mut tell = |told: run::Told| {
            device::work::mark();
            if rank == 0 {
                let line = match told {
                    run::Told::Row(row) => Line::Measured(std::borrow::Cow::Owned(row)),
                    run::Told::Route(used) => Line::Route(std::borrow::Cow::Owned(used)),
                };
                voice.say(&line).map_err(BenchError::Supervisor)?;
            }
            Ok(())
        };
        Ok(run::run(&world, &device, &job.plan, &mut tell)?)
    });
    match measured {
        Ok(()) => {
            control.bye();
            Ok(Exit::Ok)
        }
        Err(error) => {
            if let Some(fault) = &error.fault {
                control.blame(fault);
            }
            Err(error)
        }
    }
}
