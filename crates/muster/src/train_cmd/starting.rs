//! One start of this host's ranks, from the data to their end, and what outlives it.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use comm::BackendWord;
use comm::rendezvous::{Leave, Link, News, Report, Server, ToHost};
use data::{Prepared, Stage};
use train::Event;
use train::config::Config;

use super::address::{self, Absence};
use super::job::Job;
use super::life::{Limits, Work};
use super::others::Others;
use super::place::Place;
use super::planned::{Planned, header, sharing};
use super::records::{EventSink, Finish, begin_events};
use super::restart::Restarts;
use super::shared_memory::SharedMemory;
use super::signals::Signals;
use super::watch::{Ended, Told, Watch};
use crate::cli::TrainArgs;
use crate::console::ByteProgress;
use crate::error::{CliError, Exit};
use crate::run_dir::RunDir;
use crate::trace::Traced;

/// How long this process stays until others have heard that it ends because it was asked to.
const PARTING: Duration = Duration::from_millis(250);

/// Parts that outlive a start of the ranks.
pub struct Starts<'a> {
    pub args: &'a TrainArgs,
    pub run: &'a RunDir,
    pub signals: &'a Signals,
    pub absence: &'a Absence,
    pub restarts: Restarts,
    /// How far this host came.
    pub start: address::Start,
    /// The number of the start, where hosts start together.
    pub incarnation: u64,
    /// Once there is a header.
    pub sink: Option<EventSink>,
    /// The data, where they were read before the first start.
    pub prepared: Option<Prepared>,
    /// On node 0 the meeting point: of a job whose hosts start together it stays.
    pub server: Option<Server>,
    /// On other nodes of such a job.
    pub link: Option<Link>,
}

/// How a start ended.
pub struct Outcome {
    pub result: Result<Exit, CliError>,
    /// The last step that any rank of this host told of.
    pub step: Option<u64>,
    /// Whether any of them has met the others.
    pub has_met: bool,
}

impl Default for Outcome {
    /// Of one that did not begin.
    fn default() -> Outcome {
        Outcome { result: Ok(Exit::Ok), step: None, has_met: false }
    }
}

impl Starts<'_> {
    /// Whether people have asked this host to stop.
    pub fn was_asked(&self) -> bool {
        self.signals.interrupts() + self.signals.terminations() > 0
    }

    /// The exit code for a request to stop.
    pub fn asked_exit(&self) -> Exit {
        match self.signals.interrupts() {
            0 => Exit::Preempted,
            _ => Exit::Interrupted,
        }
    }

    /// How a start ended here, in this many words, as node 0 is told it.
    pub fn report(&self, exit: Exit, why: &str, outcome: &Outcome) -> Report {
        Report {
            incarnation: self.incarnation,
            exit: exit.code(),
            why: why.to_owned(),
            step: outcome.step,
            has_met: outcome.has_met,
            waits: exit == Exit::Peer,
            asked: self.was_asked().then(|| self.asked_exit().code()),
        }
    }

    /// Shows an event, if there is a header yet.
    pub fn tell(&mut self, event: &Event) {
        self.sink.iter_mut().for_each(|sink| sink.tell(event));
    }

    /// Starts this host's ranks once, and sees them to their end.
    pub fn once(&mut self, planned: &Planned) -> Outcome {
        let mut outcome = Outcome::default();
        outcome.result = self.start(planned, &mut outcome.step, &mut outcome.has_met);
        if !planned.frame.is_supervised() {
            self.server = None;
        }
        outcome
    }

    fn start(
        &mut self,
        planned: &Planned,
        step: &mut Option<u64>,
        has_met: &mut bool,
    ) -> Result<Exit, CliError> {
        let Ready { job, traced, memory: _memory } = self.ready(planned)?;
        let Planned { place, frame, .. } = planned;
        if self.sink.is_none() {
            self.sink = Some(begin(planned, &job, self.run)?);
        }
        let file = self.run.job(frame.hosts.node);
        job.write(&file)?;
        let traced = traced.map(Traced::begin).transpose()?;
        self.signals.begin_training();
        place.says_it_joins(&job.rendezvous, job.world, "shows the run");
        let (ranks, logs) = (place.ranks.clone(), self.run.logs());
        let mut watch = Watch::start("worker", &file, ranks, &logs, frame.secret.secret)
            .inspect_err(|_| traced.iter().for_each(|traced| drop(traced.end())))?;
        if self.start != address::Start::Met {
            self.start = address::Start::Tried(Some(Instant::now()));
        }
        let mut ended = self.watch(&mut watch, planned, &job);
        *step = watch.last_step();
        *has_met = watch.have_met();
        if *has_met {
            self.start = address::Start::Met;
        }
        if self.incarnation == 0 {
            address::stay_for_the_late(self.server.as_ref(), &mut ended);
        }
        // Who does not want to wait has the parts, which `muster trace merge` joins.
        if !matches!(ended, Ok(Ended::AtOnce)) {
            let told = traced.iter().flat_map(Traced::end).collect::<Vec<String>>();
            let sink = self.sink.iter_mut();
            sink.for_each(|sink| told.iter().for_each(|what| sink.warn(what)));
        }
        self.conclude(ended?, watch, place)
    }

    /// Prepares the data, and what the ranks are told.
    ///
    /// A trace is of the first start.
    fn ready(&mut self, planned: &Planned) -> Result<Ready, CliError> {
        let Planned { place, frame, world, .. } = planned;
        let (config, addresses, args, run) = (&frame.config, &frame.addresses, self.args, self.run);
        // Before the data is read, which may take long; whoever has a server listens already.
        if self.server.is_none() {
            addresses.try_out(place.node)?;
        }
        let prepared = match self.prepared.take() {
            Some(prepared) => prepared,
            None => prepare(config, run)?,
        };
        let traced = traced(args, place).filter(|_| self.sink.is_none());
        traced.iter().try_for_each(Traced::check)?;
        let (name, ranks) = (frame.name.clone().unwrap_or_else(|| job_name(config)), &config.ranks);
        if self.server.is_none() {
            let of_job = (&name[..], frame.tls.security(&frame.secret));
            self.server = addresses.serve(of_job, place, *world, ranks.timeout_ms)?;
            let limit = Duration::from_millis(ranks.host_timeout_ms);
            let judging = self.server.iter().filter(|_| frame.is_supervised());
            judging.for_each(|server| server.judge_hosts(limit));
        }
        let sharing = sharing(place, config);
        let all = (ranks.backend == BackendWord::Shm).then_some(*world);
        let memory = SharedMemory::of(&name, all, sharing)?;
        let job = Job {
            name,
            world: *world,
            incarnation: self.incarnation,
            node: place.among_hosts(),
            threads: planned.threads,
            cpus: planned.cpus.clone(),
            bucket_bytes: planned.buckets.bytes,
            rendezvous: addresses.of(self.server.as_ref()),
            shared_memory: memory.descriptor(),
            sharing,
            bind: addresses.bind(),
            checkpoints: run.checkpoints_of(config),
            max_steps: args.max_steps,
            profile: args.profile,
            trace: traced.as_ref().map(Traced::plan),
            tls: frame.tls.files.clone(),
            config: config.clone(),
            prepared,
        };
        Ok(Ready { job, traced, memory })
    }

    /// Sees the ranks to their end.
    fn watch(
        &mut self,
        watch: &mut Watch,
        planned: &Planned,
        job: &Job,
    ) -> Result<Ended, CliError> {
        let Starts { run, signals, restarts, sink, server, link, .. } = self;
        let place = &planned.place;
        let absence = self.absence.at(place.node, place.nodes);
        let mut finish = Finish { job, run, has_begun: false };
        let limits = patience(&job.config);
        let waits = place.waits(&job.rendezvous, job.config.ranks.timeout_ms);
        let others = Others::new(server.as_ref(), &absence, &job.rendezvous);
        let mut others = others.linked(link.as_ref());
        watch.run(&mut others, signals, &limits, waits, &mut |told| {
            let (Told::Event(event), Some(sink)) = (told, sink.as_mut()) else { return };
            if matches!(event, Event::Saved(_) | Event::SavedLocally(_)) {
                restarts.saved();
            }
            finish.hear(event, signals, sink);
        })
    }

    /// Says how it ended, once no rank is left.
    fn conclude(&self, ended: Ended, watch: Watch, place: &Place) -> Result<Exit, CliError> {
        drop(watch);
        match ended {
            // By the ranks' vote, not by the signals that came here: all hosts end alike.
            Ended::Done(exit) => {
                place.says_it_is_done();
                Ok(exit)
            }
            Ended::AtOnce => {
                self.part();
                self.signals.at_once()
            }
            Ended::BeforeTraining => {
                self.part();
                self.signals.before_training()
            }
        }
    }

    /// Tells the other hosts, where they start together, that people have asked this one to end.
    pub fn part(&self) {
        let (exit, node) = (self.asked_exit().code(), self.absence.node());
        let why = format!("node {node} was asked to stop");
        if let (Some(server), true) = (&self.server, self.restarts.are_of_hosts()) {
            return server.end_hosts(exit, &why, PARTING);
        }
        let Some(link) = &self.link else { return };
        link.leave(Leave { exit, why });
        let until = Instant::now() + PARTING;
        while Instant::now() < until {
            let left = until.saturating_duration_since(Instant::now());
            if let Some(News::Said(ToHost::End { .. }) | News::Lost(_)) = link.next(left) {
                return;
            }
        }
    }
}

/// The state of this host when its ranks start.
struct Ready {
    job: Job,
    traced: Option<Traced>,
    /// Held until the ranks have ended: they inherit it.
    memory: SharedMemory,
}

/// Begins to tell of the run, with the header.
fn begin(planned: &Planned, job: &Job, run: &RunDir) -> Result<EventSink, CliError> {
    let Planned { place, frame, fit, .. } = planned;
    let mut sink = begin_events(place, run, || {
        let offload = planned.offload.as_ref().ok().cloned().flatten();
        let plan = (&planned.plan, place, &job.cpus, planned.buckets.reason.clone());
        header(plan, &job.config, Some(&job.prepared), run, offload)
    })?;
    fit.iter().flatten().for_each(|why| sink.warn(why));
    // Once, and not on every host.
    let warning = frame.tls.warning(&frame.secret).filter(|_| place.node == 0);
    warning.iter().for_each(|why| sink.warn(why));
    Ok(sink)
}

/// The trace of this host's ranks, if that was asked for.
fn traced(args: &TrainArgs, place: &Place) -> Option<Traced> {
    let nodes = (place.node, place.nodes);
    let new = |path| Traced::new(path, nodes, args.trace_steps, place.ranks.clone());
    args.trace.as_deref().map(new)
}

/// How long the watch lets ranks be.
fn patience(config: &Config) -> Limits {
    let ms = Duration::from_millis;
    let (timeout, step) = (config.ranks.timeout_ms, config.ranks.step_timeout_ms);
    let (step_timeout, call) = ((step > 0).then_some(ms(step)), ms(config.ranks.call_limit_ms()));
    Limits { work: Work::Training, timeout: ms(timeout), step_timeout, call }
}

/// Reads the text, or finds what was read before.
///
/// # Errors
/// Text that cannot be read.
pub fn prepare(config: &Config, run: &RunDir) -> Result<Prepared, CliError> {
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
