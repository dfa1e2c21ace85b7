//! The ranks of a benchmark: started as those of `train` are, and seen to their end.
//!
//! ```text
//! plan ── start ranks ──▶ worker 0 … N−1: the task     rank 0 ─▶ what it tells
//! ```

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use bench::BenchError;
use bench::collectives::run;
use bench::pairs;
use comm::rendezvous::{Entries, Hello, Joined, Server, join_hearing};
use comm::tls::Security;
use comm::{BackendWord, Settings, World, tcp};
use device::{Device, DeviceKind};
use serde::{Deserialize, Serialize};
use train::config::{TlsFiles, WarnSignal};
use train::event::Event;
use train::pulse::{self, Phase};

use crate::bench_arguments;
use crate::bench_folder::Folder;
use crate::bench_task::Task;
use crate::cli::{HostArgs, WorkerArgs};
use crate::cpus::{Binding, Near};
use crate::error::{CliError, Exit};
use crate::launch_env::{self, Env, Hosts};
use crate::limits;
use crate::output::complain;
use crate::secret::{self, JobSecret};
use crate::tls::{self, JobTls};
use crate::trace::{self, Recorder, Traced};
use crate::train_cmd::address::{self, Absence, Addresses};
use crate::train_cmd::life::Limits;
use crate::train_cmd::line::Line;
use crate::train_cmd::others::Others;
use crate::train_cmd::place::Place;
use crate::train_cmd::reach::among_hosts;
use crate::train_cmd::shared_memory::SharedMemory;
use crate::train_cmd::signals::{Ending, Signals, die_with_parent};
use crate::train_cmd::voice::Voice;
use crate::train_cmd::watch::{Ended, Told, Watch};
use crate::train_cmd::{COMMAND, blame};

/// Which flag names the files of TLS.
const TLS: &str = "--tls";

/// The name of the arguments that hosts must type alike, as it is told where they differ.
const ARGUMENTS: &str = "arguments of muster bench";

/// How long operations may take to let go of a device whose job is given up.
const GIVEN_UP: Duration = Duration::from_secs(5);

/// The part of a command line that is about the ranks.
pub struct Asked<'a> {
    pub hosts: &'a HostArgs,
    pub backend: BackendWord,
    /// Of the ranks of one host, where there are several.
    pub within_host: BackendWord,
    /// Per rank; 0 divides the cores among them.
    pub threads: usize,
    pub timeout_ms: u64,
    /// Of a host's ranks, in turn.
    pub devices: &'a [DeviceKind],
    /// Where a trace goes, if there is to be one.
    pub trace: Option<&'a Path>,
}

/// The ranks as they were started.
pub struct Ran {
    /// How they ended; what was told by then is true either way.
    pub ended: Result<Exit, CliError>,
    pub place: Place,
    pub world: usize,
    pub threads: usize,
    /// Which CPUs this host's ranks were bound to, or why to none.
    pub cpus: String,
}

impl Ran {
    /// Whether Ctrl-C or a request to stop came before they had done all.
    pub fn was_stopped(&self) -> bool {
        matches!(self.ended, Ok(Exit::Interrupted | Exit::Peer))
    }
}

/// Of a request to stop: a benchmark does not go on when it is run again, so that this is no
/// [`Exit::Preempted`], which schedulers requeue.
const STOPPED: Exit = Exit::Peer;

/// How a signal ends it before the ranks run, or a second one while it tidies up.
fn ending(parts: Option<trace::Parts>) -> Ending {
    Ending {
        early: "stopped before anything was measured".to_owned(),
        at_once: "stopped at once; files may not have been written".to_owned(),
        parts,
        asked: STOPPED,
    }
}

/// The decisions for the workers, in a file.
#[derive(Debug, Serialize, Deserialize)]
struct Job {
    name: String,
    world: usize,
    threads: usize,
    /// Which CPUs this host's ranks are bound to.
    cpus: Binding,
    /// Of this host's ranks, in turn, the first of which has this number.
    devices: Vec<String>,
    first_rank: usize,
    /// The number of this host, and of how many, if there are several.
    node: Option<(usize, usize)>,
    timeout_ms: u64,
    rendezvous: Vec<SocketAddr>,
    shared_memory: Option<i32>,
    /// Where ranks share memory beside tcp: how many on each host.
    sharing: Option<usize>,
    bind: IpAddr,
    /// Of this host, where there are several.
    tls: Option<TlsFiles>,
    trace: Option<trace::Plan>,
    task: Task,
}

impl Job {
    /// Where a rank of this host has its buffers.
    fn device(&self, rank: usize) -> Result<DeviceKind, CliError> {
        let turn = rank.saturating_sub(self.first_rank) % self.devices.len().max(1);
        let word = self.devices.get(turn).map_or("cpu", String::as_str);
        Ok(word.parse()?)
    }

    /// The entries that all ranks must have the same: names and values or digests.
    fn identity(&self) -> Vec<(String, String)> {
        let task = serde_json::to_vec(&self.task).unwrap_or_default();
        let digest = blake3::hash(&task).to_hex()[..16].to_owned();
        let within = self.sharing.map_or("tcp".to_owned(), |ranks| format!("{ranks} share memory"));
        vec![
            ("build".into(), train::BUILD.into()),
            (COMMAND.into(), format!("muster bench {}", self.task.name())),
            (ARGUMENTS.into(), digest),
            ("--within-host".into(), within),
        ]
    }

    /// The entries behind a digest there; of several hosts the first rank of each tells them.
    fn entries(&self, rank: usize) -> Vec<(String, Entries)> {
        if self.node.is_none() || rank != self.first_rank {
            return Vec::new();
        }
        vec![(ARGUMENTS.to_owned(), bench_arguments::by_flags(&self.task))]
    }
}

/// Starts this host's ranks and sees them to their end; `world` gives the ranks of all hosts, and
/// `task` what they do, once it is known where they are.
///
/// # Errors
/// The user's mistake, or a rank that failed.
pub fn measure(
    asked: &Asked,
    world: impl FnOnce(&Hosts) -> Result<usize, CliError>,
    task: impl FnOnce(&Place, usize) -> Result<Task, CliError>,
    tell: &mut dyn FnMut(Told),
) -> Result<Ran, CliError> {
    let hosts = launch_env::hosts(asked.hosts, &Env::of_this_process())?;
    hosts.found.iter().for_each(|found| complain(found));
    let mut absence = Absence::of(&hosts, asked.hosts, true);
    absence.is_waited_for(asked.timeout_ms);
    let never = |error| absence.report_error(error, address::Start::Never);
    let planned = Planned::new(asked, &hosts, world, task).map_err(never)?;
    tls::check(TLS, &planned.tls).map_err(never)?;
    let folder = Folder::new()?;
    let (path, told) = (folder.path.clone(), absence.clone());
    let parts = asked.trace.map(|path| trace::Parts::of(path, (hosts.node, hosts.nodes)));
    let signals = Signals::watch(WarnSignal::Usr1, ending(parts), move || {
        let _ = std::fs::remove_dir_all(&path);
        told.report("it was asked to stop", address::Start::Tried(None));
    })?;
    let mut start = address::Start::Never;
    let mut ran = supervise(asked, planned, &folder, &signals, &absence, (&mut start, tell))
        .map_err(|error| absence.report_error(error, start))?;
    if ran.was_stopped() {
        absence.report("it was asked to stop", start);
    }
    ran.ended = ran.ended.map_err(|error| absence.report_error(error, start));
    Ok(ran)
}

struct Planned {
    task: Task,
    place: Place,
    world: usize,
    threads: usize,
    cpus: Binding,
    addresses: Addresses,
    /// The name of the job among hosts, if there are several.
    name: Option<String>,
    secret: JobSecret,
    tls: JobTls,
}

impl Planned {
    fn new(
        asked: &Asked,
        hosts: &Hosts,
        world: impl FnOnce(&Hosts) -> Result<usize, CliError>,
        task: impl FnOnce(&Place, usize) -> Result<Task, CliError>,
    ) -> Result<Planned, CliError> {
        let world = world(hosts)?;
        let place = Place::new(hosts, world, asked.backend == BackendWord::Shm)?;
        let addresses = Addresses::new(hosts)?;
        let name = (place.nodes > 1).then(|| address::job(hosts));
        let share = place.of_cores();
        let threads = place.threads(asked.threads);
        limits::check_threads(share.ranks, threads, share.parts)?;
        let cpus = asked.hosts.cpus.unwrap_or_default().into();
        let near = match asked.devices.iter().all(|kind| kind.is_host()) {
            true => Near::Memory,
            false => Near::Devices(asked.devices),
        };
        let topology = asked.hosts.topology.as_deref();
        let cpus = Binding::new(cpus, &place, threads, near, topology);
        let task = task(&place, world)?;
        let file = asked.hosts.secret_file.as_deref().map(|path| ("--secret-file", path));
        let secret = secret::of_job(file, place.nodes)?;
        let files = asked.hosts.tls.as_deref().map(|dir| (TLS, tls::of_dir(dir)));
        let tls = tls::of_job(files, place.nodes)?;
        Ok(Planned { task, place, world, threads, cpus, addresses, name, secret, tls })
    }
}

/// The state of this host when its ranks start.
struct Ready {
    job: Job,
    server: Option<Server>,
    traced: Option<Traced>,
    /// Held until the ranks have ended: they inherit it.
    memory: SharedMemory,
}

/// Prepares what the ranks are told.
fn ready(asked: &Asked, planned: Planned, folder: &Folder) -> Result<(Ready, Place), CliError> {
    let Planned { task, place, world, threads, cpus, addresses, name, secret, tls } = planned;
    let warning = tls.warning(&secret).filter(|_| place.node == 0);
    warning.iter().for_each(|message| complain(&format!("warning: {message}")));
    addresses.try_out(place.node)?;
    let name = name.unwrap_or_else(|| {
        format!("bench-{}", folder.path.file_name().unwrap_or_default().to_string_lossy())
    });
    let of_job = (&name[..], tls.security(&secret));
    let server = addresses.serve(of_job, &place, world, asked.timeout_ms)?;
    let over_tcp = asked.backend == BackendWord::Tcp;
    let sharing = place.sharing(over_tcp, asked.within_host == BackendWord::Shm);
    let nodes = (place.node, place.nodes);
    let traced = asked.trace.map(|path| Traced::new(path, nodes, None, place.ranks.clone()));
    let memory = SharedMemory::of(&name, (!over_tcp).then_some(world), sharing)?;
    let job = Job {
        name,
        world,
        threads,
        cpus,
        devices: asked.devices.iter().map(ToString::to_string).collect(),
        first_rank: place.ranks.start,
        node: place.among_hosts(),
        timeout_ms: asked.timeout_ms,
        rendezvous: addresses.of(server.as_ref()),
        shared_memory: memory.descriptor(),
        sharing,
        bind: addresses.bind(),
        tls: tls.files,
        trace: traced.as_ref().map(Traced::plan),
        task,
    };
    Ok((Ready { job, server, traced, memory }, place))
}

fn supervise(
    asked: &Asked,
    planned: Planned,
    folder: &Folder,
    signals: &Signals,
    absence: &Absence,
    (start, tell): (&mut address::Start, &mut dyn FnMut(Told)),
) -> Result<Ran, CliError> {
    let secret = planned.secret.secret;
    let (Ready { job, server, traced, memory: _memory }, place) = ready(asked, planned, folder)?;
    let &Job { world, threads, .. } = &job;
    let file = folder.path.join("job.json");
    let text = serde_json::to_vec(&job).map_err(CliError::bug)?;
    let failed = |error| limits::refused(format!("write {}", file.display()), &error);
    std::fs::write(&file, text).map_err(failed)?;
    place.says_it_joins(&job.rendezvous, world, "shows the results");
    let traced = traced.map(Traced::begin).transpose()?;
    signals.begin_training();
    let mut watch = Watch::start("bench-worker", &file, place.ranks.clone(), &folder.path, secret)
        .inspect_err(|_| end_trace(traced.as_ref()))?;
    *start = address::Start::Tried(Some(Instant::now()));
    let limits = Limits::of_benchmark(Duration::from_millis(asked.timeout_ms));
    let mut others = Others::new(server.as_ref(), absence, &job.rendezvous);
    let waits = place.waits(&job.rendezvous, asked.timeout_ms);
    let mut ended = watch.run(&mut others, signals, &limits, waits, &mut |told| match told {
        Told::Event(Event::Warning { message }) => complain(&format!("warning: {message}")),
        told => tell(told),
    });
    if watch.have_met() {
        *start = address::Start::Met;
    }
    address::stay_for_the_late(server.as_ref(), &mut ended);
    // No rank writes any more.
    drop(watch);
    end_trace(traced.as_ref());
    let ended = ended.map(|ended| exit_of(&ended, signals, &place));
    Ok(Ran { ended, place, world, threads, cpus: job.cpus.why })
}

/// Puts the trace together, and says what is wrong with it.
fn end_trace(traced: Option<&Traced>) {
    let wrong = traced.into_iter().flat_map(Traced::end);
    wrong.for_each(|what| complain(&format!("warning: {what}")));
}

fn exit_of(ended: &Ended, signals: &Signals, place: &Place) -> Exit {
    match ended {
        Ended::Done(exit) => {
            place.says_it_is_done();
            *exit
        }
        Ended::AtOnce | Ended::BeforeTraining if signals.interrupts() > 0 => Exit::Interrupted,
        Ended::AtOnce | Ended::BeforeTraining => STOPPED,
    }
}

/// Runs one rank.
///
/// # Errors
/// Whatever ends the rank; the supervisor shows it.
pub fn worker(args: WorkerArgs) -> Result<Exit, CliError> {
    die_with_parent();
    let job = read(&args.plan)?;
    // Before any thread: each has the CPUs of the one that starts it.
    job.cpus.bind(args.rank)?;
    let voice = Voice::start(job.timeout_ms)?;
    let secret = secret::inherited()?;
    // Passed on by the supervisor, which ends this process with its own.
    let _signals = Signals::count(WarnSignal::Usr1)?;
    let tls = job.tls.as_ref().map(|files| tls::load(TLS, files)).transpose()?;
    let ended = rank(&job, (args.rank, Security { secret, tls }), &voice);
    let ended = ended.map_err(CliError::of_bench);
    if let Some(fault) = ended.as_ref().err().and_then(|error| error.fault.as_ref()) {
        // Without a supervisor nobody needs to know.
        let _ = voice.say(&Line::Fault(Cow::Borrowed(fault)));
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

/// Lets calls to the device end with an error once the job is given up.
fn give_up_with(world: &World, device: &Device) -> Result<(), CliError> {
    let revocation = world.revocation();
    Ok(device.give_up_when(move || {
        let why = revocation.why()?.to_owned();
        std::thread::sleep(GIVEN_UP);
        Some(why)
    })?)
}

fn rank(job: &Job, (rank, security): (usize, Security), voice: &Voice) -> Result<Exit, CliError> {
    pulse::enter(Phase::Meeting);
    let listener = match (job.shared_memory, job.sharing) {
        (Some(_), None) => None,
        _ => Some(tcp::listen(SocketAddr::new(job.bind, 0))?),
    };
    let hello = Hello {
        job: job.name.clone(),
        rank,
        world: job.world,
        version: env!("CARGO_PKG_VERSION").into(),
        node: job.node,
        incarnation: 0,
        identity: job.identity(),
        entries: job.entries(rank),
        listen: listener.as_ref().and_then(|listener| listener.local_addr().ok()),
    };
    let Joined { peers, group, control } =
        join_hearing(&job.rendezvous[..], hello, security, job.timeout_ms, &mut |hint| {
            voice.hint(hint);
        })?;
    // As with every line, the next one tells if the supervisor is gone.
    let _ = voice.say(&Line::Met(Cow::Borrowed(&group)));
    let backend = match (listener, job.shared_memory) {
        (Some(listener), memory) => among_hosts(listener, peers, group, memory.zip(job.sharing))?,
        #[cfg(target_os = "linux")]
        (None, Some(descriptor)) => {
            let memory = comm::shm::SharedMemory::inherited(descriptor)?;
            comm::Backend::Shm { memory }
        }
        (None, _) => return Err(CliError::mistake("this job has no shared memory")),
    };
    let settings = Settings { cores: job.cpus.cores, ..Settings::new(job.timeout_ms) };
    let connected = control.connect(backend, rank, job.world, settings);
    let measured =
        connected.map_err(CliError::from).and_then(|world| task_of(job, rank, &world, voice));
    match measured {
        Ok(()) => {
            control.bye();
            Ok(Exit::Ok)
        }
        Err(error) => {
            // The others read it too.
            let mut error = error.of_bench();
            if let Some(fault) = &mut error.fault {
                blame::leave(fault, control);
            }
            Err(error)
        }
    }
}

/// Runs the task of a rank that has met the others.
fn task_of(job: &Job, rank: usize, world: &World, voice: &Voice) -> Result<(), CliError> {
    pulse::enter(Phase::Measuring);
    let device = Device::new(job.device(rank)?, job.threads)?;
    if !device.kind().is_host() {
        give_up_with(world, &device)?;
    }
    let recorder = Recorder::of_rank(job.trace.as_ref(), world)?;
    let warn = |why: &str| {
        let warning = Event::Warning { message: format!("rank {rank}: {why}") };
        voice.say(&Line::Event(Cow::Owned(warning))).map_err(BenchError::Supervisor)
    };
    let told = recorder.as_ref().and_then(Recorder::failure).map(warn).transpose()?;
    let mut say = |line: Line| {
        device::work::mark();
        match rank {
            0 => voice.say(&line).map_err(BenchError::Supervisor),
            _ => Ok(()),
        }
    };
    perform(world, &device, &job.task, &mut say)?;
    // All of it is written before the supervisor hears that the run is done.
    match recorder.and_then(Recorder::end).filter(|_| told.is_none()) {
        Some(why) => Ok(warn(&why)?),
        None => Ok(()),
    }
}

/// A rank's part in the task; `say` gets what rank 0 tells.
fn perform(
    world: &World,
    device: &Device,
    task: &Task,
    say: &mut dyn FnMut(Line) -> Result<(), BenchError>,
) -> Result<(), BenchError> {
    match task {
        Task::Collectives(plan) => run::run(world, device, plan, &mut |told| match told {
            run::Told::Row(row) => say(Line::Measured(Cow::Owned(row))),
            run::Told::Hosts(hosts) => say(Line::Hosts(Cow::Owned(hosts))),
            run::Told::Route(used) => say(Line::Route(Cow::Owned(used))),
        }),
        Task::Pairs(plan) => {
            let mut tell = |done, of| say(Line::Rounds(done, of));
            let measured = pairs::run::run(world, device, plan, &mut tell)?;
            say(Line::Pairs(Cow::Owned(measured)))
        }
    }
}
