//! The supervising process of a host: prepares, starts the ranks, and says how it ended.

use std::fs::{File, TryLockError};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use comm::rendezvous::Server;
use comm::{BackendWord, Lack};
use data::{Prepared, Stage};
use layout::Mesh;
use train::config::Config;
use train::event::{Corpus, FinishReason, Offload, Restarting};
use train::mesh_plan::Purpose;
use train::{Event, RunPlan};

use super::address::{self, Absence, Addresses, SECRET, TLS};
use super::buckets::{self, Buckets};
use super::fit::{self, Fit, Start};
use super::job::Job;
use super::life::{Limits, Work};
use super::mesh;
use super::offload;
use super::others::Others;
use super::place::{Place, Share};
use super::restart::{Failure, Next, Restarts};
use super::room;
use super::shared_memory::SharedMemory;
use super::signals::{Ending, Signals};
use super::watch::{Ended, Told, Watch};
use crate::cli::TrainArgs;
use crate::config::{Loaded, Override};
use crate::console::{ByteProgress, Console};
use crate::cpus::{Binding, Near};
use crate::error::{CliError, Exit};
use crate::events::{self, EventLog};
use crate::launch_env::{self, Env, Hosts};
use crate::limits;
use crate::run_dir::RunDir;
use crate::secret::JobSecret;
use crate::tls::{self, JobTls};
use crate::trace::{self, Traced};

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
    let run = RunDir::new(planned.config.runs_dir.join(&planned.config.name));
    if args.dry_run {
        return dry_run(planned, &run);
    }
    let planned = planned.that_fits().map_err(tell)?;
    let cache = run.root().join("data");
    let warn_signal = planned.config.ranks.warn_signal;
    let asked = absence.clone();
    let nodes = (hosts.node, hosts.nodes);
    let parts = args.trace.as_deref().map(|path| trace::Parts::of(path, nodes));
    let ending = Ending::of_training(parts);
    let signals = Signals::watch(warn_signal, ending, move || {
        remove_temporary(&cache);
        asked.report("it was asked to stop", address::Start::Tried(None));
    })?;
    make_dirs(&run, &planned.config).map_err(tell)?;
    run.check_pipes(planned.place.node, planned.place.ranks.clone()).map_err(tell)?;
    // Where another process trains here, that one's ranks may still come.
    let _lock = hold(&run, planned.place.node)?;
    let mut start = never;
    let ended = supervise(&args, planned, (&run, &signals), &absence, &mut start);
    ended.map_err(|error| absence.report_error(error, start))
}

/// The plan of a start, before anything is read or written.
struct Planned {
    config: Config,
    place: Place,
    addresses: Addresses,
    /// The name of the job among hosts, if there are several.
    name: Option<String>,
    secret: JobSecret,
    tls: JobTls,
    plan: RunPlan,
    buckets: Buckets,
    threads: usize,
    cpus: Binding,
    /// Whether the memory of this host suffices, and a warning where it is tight.
    fit: Result<Option<String>, String>,
    /// The optimizer's part of a device of its own, or why it cannot be there.
    offload: Result<Option<Offload>, CliError>,
}

impl Planned {
    fn that_fits(mut self) -> Result<Planned, CliError> {
        self.offload = Ok(self.offload?);
        match &self.fit {
            Ok(_) => Ok(self),
            Err(why) => Err(CliError::mistake(why)),
        }
    }
}

fn plan(
    hosts: &Hosts,
    loaded: Loaded,
    (secret, tls): (JobSecret, JobTls),
    topology: Option<&Path>,
) -> Result<Planned, CliError> {
    let config = loaded.config;
    let is_shm = config.ranks.backend == BackendWord::Shm;
    let place = Place::new(hosts, config.ranks.count, is_shm)?;
    let addresses = Addresses::new(hosts)?;
    let name = (place.nodes > 1).then(|| address::job(hosts));
    let share = place.of_cores();
    let threads = place.threads(config.ranks.threads);
    limits::check_threads(share.ranks, threads, share.parts)?;
    let near = config.ranks.optimizer_device.kind().map_or(Near::Memory, |_| Near::Shared);
    let cpus = Binding::new(config.ranks.cpus, &place, threads, near, topology);
    let vocab = loaded.resolved.tokenizer.vocab_size();
    let run = RunDir::new(config.runs_dir.join(&config.name));
    let gradient_bytes = 4 * loaded.resolved.schema.parameters() as u64;
    let site = (place.nodes, transport(&place, &config));
    let buckets = buckets::resolve(&config.ranks, &run, site, gradient_bytes)?;
    let world = config.ranks.count;
    let plan = RunPlan::with_buckets(&config, vocab, world, threads, buckets.bytes)?;
    let fit = memory(&config, &plan, vocab, &place);
    let offload = offload::plan(&config, &plan, place.ranks.clone());
    Ok(Planned {
        config,
        place,
        addresses,
        name,
        secret,
        tls,
        plan,
        buckets,
        threads,
        cpus,
        fit,
        offload,
    })
}

/// The state of this host when its ranks start.
struct Ready {
    job: Job,
    server: Option<Server>,
    traced: Option<Traced>,
    /// Held until the ranks have ended: they inherit it.
    memory: SharedMemory,
}

/// Prepares the data, and what the ranks are told.
///
/// A trace is of the first start.
fn ready(
    args: &TrainArgs,
    planned: &Planned,
    run: &RunDir,
    is_first: bool,
) -> Result<Ready, CliError> {
    let Planned { config, place, addresses, name, secret, tls, .. } = planned;
    // Before the data is read, which may take long.
    addresses.try_out(place.node)?;
    let prepared = prepare(config, run)?;
    let traced = traced(args, place).filter(|_| is_first);
    traced.iter().try_for_each(Traced::check)?;
    let (name, ranks) = (name.clone().unwrap_or_else(|| job_name(config)), &config.ranks);
    let of_job = (&name[..], tls.security(secret));
    let server = addresses.serve(of_job, place, ranks.count, ranks.timeout_ms)?;
    let sharing = sharing(place, config);
    let all = (ranks.backend == BackendWord::Shm).then_some(ranks.count);
    let memory = SharedMemory::of(&name, all, sharing)?;
    let job = Job {
        name,
        world: ranks.count,
        node: place.among_hosts(),
        threads: planned.threads,
        cpus: planned.cpus.clone(),
        bucket_bytes: planned.buckets.bytes,
        rendezvous: addresses.of(server.as_ref()),
        shared_memory: memory.descriptor(),
        sharing,
        bind: addresses.bind(),
        checkpoints: run.checkpoints_of(config),
        max_steps: args.max_steps,
        profile: args.profile,
        trace: traced.as_ref().map(Traced::plan),
        tls: tls.files.clone(),
        config: config.clone(),
        prepared,
    };
    Ok(Ready { job, server, traced, memory })
}

/// Starts this host's ranks and sees them to their end, again where they fail and may be started
/// anew; `start` becomes how far they came.
fn supervise(
    args: &TrainArgs,
    planned: Planned,
    (run, signals): (&RunDir, &Signals),
    absence: &Absence,
    start: &mut address::Start,
) -> Result<Exit, CliError> {
    // Other hosts do not know of a start that this one makes by itself.
    let most = if planned.place.nodes == 1 { planned.config.ranks.restarts } else { 0 };
    let mut restarts = Restarts::new(most);
    let mut sink = None;
    loop {
        let mut attempt = Attempt { restarts: &mut restarts, sink: &mut sink, last_step: None };
        let ended = once(args, &planned, (run, signals), (absence, &mut *start), &mut attempt);
        let step = attempt.last_step;
        let error = match ended {
            Err(error) if error.exit == Exit::Peer => error,
            ended => return ended,
        };
        let asked = || signals.interrupts() + signals.terminations() > 0;
        let next = match asked() || *start != address::Start::Met {
            // Ranks that never met fail for what another start does not mend.
            true => Next::End(None),
            false => restarts.next(Failure::new(step, &error.message)),
        };
        let (number, wait) = match next {
            Next::Again { number, wait } => (number, wait),
            Next::End(why) => return Err(error.with_reason(why)),
        };
        let failure = error.message.lines().next().unwrap_or_default().to_owned();
        let restarting = Restarting { failure, number, of: most, wait_s: wait.as_secs_f64() };
        sink.iter_mut().for_each(|sink| sink.tell(&Event::Restarting(restarting.clone())));
        let until = Instant::now() + wait;
        while Instant::now() < until {
            if asked() {
                // The newest checkpoint is all that there is to go on from.
                signals.before_training();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Parts that outlive a start of the ranks.
struct Attempt<'a> {
    restarts: &'a mut Restarts,
    /// Once there is a header.
    sink: &'a mut Option<EventSink>,
    last_step: Option<u64>,
}

/// Starts this host's ranks once.
fn once(
    args: &TrainArgs,
    planned: &Planned,
    (run, signals): (&RunDir, &Signals),
    (absence, start): (&Absence, &mut address::Start),
    attempt: &mut Attempt,
) -> Result<Exit, CliError> {
    let is_first = attempt.sink.is_none();
    let Ready { job, server, traced, memory: _memory } = ready(args, planned, run, is_first)?;
    let Planned { place, fit, secret, tls, .. } = planned;
    let sink = match attempt.sink.take() {
        Some(sink) => attempt.sink.insert(sink),
        None => {
            let mut sink = begin_events(place, run, || {
                let offload = planned.offload.as_ref().ok().cloned().flatten();
                let plan = (&planned.plan, place, &job.cpus, planned.buckets.reason.clone());
                header(plan, &job.config, Some(&job.prepared), run, offload)
            })?;
            fit.iter().flatten().for_each(|why| sink.warn(why));
            // Once, and not on every host.
            let warning = tls.warning(secret).filter(|_| place.node == 0);
            warning.iter().for_each(|why| sink.warn(why));
            attempt.sink.insert(sink)
        }
    };
    let file = run.job(place.node);
    job.write(&file)?;
    let traced = traced.map(Traced::begin).transpose()?;
    signals.begin_training();
    place.says_it_joins(&job.rendezvous, job.world, "shows the run");
    let (ranks, logs) = (place.ranks.clone(), run.logs());
    let mut watch = Watch::start("worker", &file, ranks, &logs, secret.secret)
        .inspect_err(|_| traced.iter().for_each(|traced| drop(traced.end())))?;
    *start = address::Start::Tried(Some(Instant::now()));
    let mut finish = Finish { job: &job, run, has_begun: false };
    let limits = patience(&job.config);
    let waits = place.waits(&job.rendezvous, job.config.ranks.timeout_ms);
    let mut others = Others::new(server.as_ref(), absence, &job.rendezvous);
    let restarts = &mut attempt.restarts;
    let mut ended = watch.run(&mut others, signals, &limits, waits, &mut |told| {
        if let Told::Event(event) = told {
            if matches!(event, Event::Saved(_)) {
                restarts.saved();
            }
            finish.hear(event, signals, sink);
        }
    });
    attempt.last_step = watch.last_step();
    if watch.have_met() {
        *start = address::Start::Met;
    }
    address::stay_for_the_late(server.as_ref(), &mut ended);
    // Who does not want to wait has the parts, which `muster trace merge` joins.
    if !matches!(ended, Ok(Ended::AtOnce)) {
        traced.iter().flat_map(Traced::end).for_each(|what| sink.warn(&what));
    }
    conclude(ended?, watch, signals, place)
}

/// Says how it ended, once no rank is left.
fn conclude(
    ended: Ended,
    watch: Watch,
    signals: &Signals,
    place: &Place,
) -> Result<Exit, CliError> {
    drop(watch);
    match ended {
        // By the ranks' vote, not by the signals that came here: all hosts end alike.
        Ended::Done(exit) => {
            place.says_it_is_done();
            Ok(exit)
        }
        Ended::AtOnce => signals.at_once(),
        Ended::BeforeTraining => signals.before_training(),
    }
}

/// The trace of this host's ranks, if that was asked for.
fn traced(args: &TrainArgs, place: &Place) -> Option<Traced> {
    let nodes = (place.node, place.nodes);
    let new = |path| Traced::new(path, nodes, args.trace_steps, place.ranks.clone());
    args.trace.as_deref().map(new)
}

/// Where events go; node 0 alone keeps them, and begins with the header.
fn begin_events(
    place: &Place,
    run: &RunDir,
    header: impl FnOnce() -> Result<train::event::Header, CliError>,
) -> Result<EventSink, CliError> {
    let log = (place.node == 0).then(|| EventLog::append(&run.events())).transpose()?;
    let mut sink = EventSink { console: Console::new(), log, has_failed: false };
    if place.node == 0 {
        sink.tell(&Event::Header(header()?));
    }
    Ok(sink)
}

/// Shows events and keeps them.
struct EventSink {
    console: Console,
    /// On host 0, where the events are.
    log: Option<EventLog>,
    has_failed: bool,
}

impl EventSink {
    /// The run goes on without a log: stopping would lose more than lines, and what fills a disk
    /// keeps a checkpoint from it too.
    fn tell(&mut self, event: &Event) {
        self.console.show(event);
        if let Some(Err(error)) = self.log.as_mut().map(|log| log.write(event))
            && !std::mem::replace(&mut self.has_failed, true)
        {
            self.warn(&format!("{}; training goes on, events are missing there", error.message));
        }
    }

    fn warn(&mut self, message: &str) {
        self.console.show(&Event::Warning { message: message.to_owned() });
    }
}

/// The supervisor's part of the records, most of it written when the ranks are done.
struct Finish<'a> {
    job: &'a Job,
    run: &'a RunDir,
    has_begun: bool,
}

impl Finish<'_> {
    fn hear(&mut self, event: Event, signals: &Signals, sink: &mut EventSink) {
        // Not before the ranks agree and have loaded what they go on from: until then the
        // directory may be another run's, whose checkpoints need its config.
        let begins = !matches!(event, Event::Warning { .. });
        if begins && !std::mem::replace(&mut self.has_begun, true) {
            let kept = keep_config(&self.job.config, self.run);
            kept.unwrap_or_else(|error| sink.warn(&error.message));
        }
        match event {
            Event::Finished(finished) => self.end(finished, signals, sink),
            event => sink.tell(&event),
        }
    }

    /// The weights are saved: what fails from here on is told and ends nothing.
    fn end(&self, finished: train::event::Finished, signals: &Signals, sink: &mut EventSink) {
        if finished.reason == FinishReason::Complete && finished.final_loss.is_some() {
            match self.baseline(signals) {
                Ok(event) => event.iter().for_each(|event| sink.tell(event)),
                Err(error) => sink.warn(&format!("no baseline: {}", error.message)),
            }
        }
        sink.tell(&Event::Finished(finished));
        match self.plot() {
            Ok(0) => {}
            Ok(others) => sink.warn(&format!(
                "{} of {} left out of the plot: no event of this version",
                crate::console::plural(others, "line"),
                self.run.events().display(),
            )),
            Err(error) => sink.warn(&format!("no plot: {}", error.message)),
        }
    }

    /// The byte model to beat, on the windows that validation read. Counting takes a while on much
    /// text; whoever asks to stop does without it.
    fn baseline(&self, signals: &Signals) -> Result<Option<Event>, CliError> {
        let config = &self.job.config;
        let fraction = config.data.validation_fraction;
        let prepared = &self.job.prepared;
        let dataset = data::Dataset::open(prepared, config.batch.seq_len, config.seed, fraction)?;
        let samples = match config.train.eval_samples {
            0 => dataset.validation_samples(),
            most => most.min(dataset.validation_samples()),
        };
        let tokenizer = dataset.tokenizer()?;
        let count = move || data::order2_bits_per_byte_of(&dataset, &tokenizer, samples);
        let counting = std::thread::Builder::new().name("baseline".into()).spawn(count);
        let counting = counting.map_err(|error| limits::refused("start a thread", &error))?;
        while !counting.is_finished() {
            if signals.interrupts() + signals.terminations() > 0 {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        // Token files without text have no bytes to compare on; that is no failure.
        let model = counting.join().ok().and_then(Result::ok);
        Ok(model.map(|model| Event::Baseline {
            bits_per_byte: model.bits_per_byte,
            train_bytes: model.train_bytes,
            validation_bytes: model.validation_bytes,
        }))
    }

    /// Draws all that the event file holds; returns how many lines were no events.
    fn plot(&self) -> Result<usize, CliError> {
        let (events, others) = events::read(&self.run.events())?;
        if let Some(svg) = crate::plot::loss_svg(&events)? {
            write(&self.run.plot(), svg.as_bytes())?;
        }
        Ok(others)
    }
}

/// The job's, as the config or the environment says it.
fn secret(config: &Config, nodes: usize) -> Result<JobSecret, CliError> {
    let file = config.ranks.secret_file.as_deref();
    crate::secret::of_job(file.map(|path| (SECRET, path)), nodes)
}

/// How long the watch lets ranks be.
fn patience(config: &Config) -> Limits {
    let ms = Duration::from_millis;
    let (timeout, step) = (config.ranks.timeout_ms, config.ranks.step_timeout_ms);
    let (step_timeout, call) = ((step > 0).then_some(ms(step)), ms(config.ranks.call_limit_ms()));
    Limits { work: Work::Training, timeout: ms(timeout), step_timeout, call }
}

/// Shows the header, and whether it fits. What a device that is not there would hold is not known;
/// the rest is shown before that is told.
fn dry_run(planned: Planned, run: &RunDir) -> Result<Exit, CliError> {
    let offload = planned.offload.as_ref().ok().cloned().flatten();
    let plan = (&planned.plan, &planned.place, &planned.cpus, planned.buckets.reason);
    let header = header(plan, &planned.config, None, run, offload)?;
    let lines = Console::new().lines(&Event::Header(header));
    let mesh = mesh::line(Mesh::data_parallel(planned.plan.world));
    crate::output::show(&format!("{lines}\n{mesh}"))?;
    if let Err(why) | Ok(Some(why)) = &planned.fit {
        crate::output::complain(&format!("warning: {why}"));
    }
    planned.offload.map(|_| Exit::Ok)
}

/// Compares the plan with the memory of this host: a warning, or why the run cannot be.
fn memory(
    config: &Config,
    plan: &RunPlan,
    vocab: usize,
    place: &Place,
) -> Result<Option<String>, String> {
    let Share { ranks: local, parts: nodes } = place.of_machine();
    let peak_bytes = plan.peak_bytes();
    let start = Start { config, plan, peak_bytes, vocab, nodes, local };
    match fit::fit(&start, &room::limits()) {
        Fit::Fits => Ok(None),
        Fit::Tight(why) => Ok(Some(why)),
        Fit::Impossible(why) => Err(why),
    }
}

/// As the group of all ranks names what connects it.
fn transport(place: &Place, config: &Config) -> &'static str {
    match (config.ranks.backend, sharing(place, config)) {
        (BackendWord::Shm, _) => BackendWord::Shm.word(),
        (BackendWord::Tcp, None) => BackendWord::Tcp.word(),
        (BackendWord::Tcp, Some(_)) => "shm+tcp",
    }
}

/// How many ranks of each host share memory beside tcp.
fn sharing(place: &Place, config: &Config) -> Option<usize> {
    let ranks = &config.ranks;
    place.sharing(ranks.backend == BackendWord::Tcp, ranks.within_host == BackendWord::Shm)
}

fn header(
    (plan, place, cpus, buckets): (&RunPlan, &Place, &Binding, String),
    config: &Config,
    prepared: Option<&Prepared>,
    run: &RunDir,
    offload: Option<Offload>,
) -> Result<train::event::Header, CliError> {
    let hex = |bytes: [u8; 32]| blake3::Hash::from(bytes).to_hex().to_string();
    let sources = prepared.map(|prepared| prepared.sources.as_slice()).unwrap_or_default();
    let corpus = sources.iter().map(|source| Corpus {
        name: source.name.clone(),
        tokens: source.tokens,
        documents: source.documents,
        bytes: source.bytes,
        left_out: data::left_out(source.empty_documents, source.blank_lines),
        weight: source.weight,
        digest: hex(if source.text_files > 0 { source.text_digest } else { source.digest }),
    });
    let config_digest = blake3::hash(&serde_json::to_vec(config).map_err(CliError::bug)?);
    let data_digest = prepared.map(|prepared| hex(prepared.digest)).unwrap_or_default();
    let digests = (config_digest.to_hex().to_string(), data_digest);
    let run_dir = run.root().display().to_string();
    let of_run = (run_dir, buckets);
    let mut header = plan.header(config, corpus.collect(), digests, of_run, offload)?;
    header.cpus.clone_from(&cpus.why);
    if let Some(each) = sharing(place, config) {
        header.backend = format!("shm+tcp {} × {each}", place.nodes);
        if let Some(factor) = plan.byte_factor_by_hosts(each, comm::BY_HOSTS_BYTES) {
            // More than one partial of any host is more than a ring.
            (header.free, header.byte_factor) = (factor <= 1.0, factor);
            header.hosts = Some(place.nodes);
        }
    }
    Ok(header)
}

fn prepare(config: &Config, run: &RunDir) -> Result<Prepared, CliError> {
    let mut bar = ByteProgress::new("reading");
    let mut progress = |p: data::Progress| {
        let verb = match p.stage {
            Stage::Hashing => "reading",
            Stage::Tokenizing => "tokenizing",
            Stage::Verifying => "verifying",
        };
        bar.rename(&format!("{verb} {}", p.source));
        bar.update(p.done_bytes, Some(p.total_bytes));
    };
    let cache = run.root().join("data");
    Ok(data::prepare(&config.data, &cache, crate::CARGO_LOCK, &mut progress)?)
}

/// New for each start on one host.
fn job_name(config: &Config) -> String {
    let clean = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    let name: String = config.name.chars().map(clean).take(24).collect();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let stamp = now.as_nanos() % 1_000_000_000_000;
    format!("{name}-{}-{stamp}", std::process::id())
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

/// A config as the file of a run has it.
///
/// # Errors
/// None of a config.
pub fn as_yaml(config: &Config) -> Result<String, CliError> {
    // Through JSON's data model, in which enums are single-key maps.
    let value = serde_json::to_value(config).map_err(CliError::bug)?;
    serde_yaml::to_string(&value).map_err(CliError::bug)
}

/// Writes `config.yaml`, whole or not at all.
fn keep_config(config: &Config, run: &RunDir) -> Result<(), CliError> {
    let text = as_yaml(config)?;
    let temporary = run.config().with_extension("yaml.tmp");
    write(&temporary, text.as_bytes())?;
    std::fs::rename(&temporary, run.config()).map_err(|error| {
        CliError::mistake(format!("cannot write {}: {error}", run.config().display()))
    })
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), CliError> {
    std::fs::write(path, bytes)
        .map_err(|error| CliError::mistake(format!("cannot write {}: {error}", path.display())))
}
