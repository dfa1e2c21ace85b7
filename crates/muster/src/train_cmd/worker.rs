//! One rank: meets the others, trains, and tells its supervisor by events on standard output.

use std::borrow::Cow;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

use checkpoint::Store;
use comm::rendezvous::{ControlHandle, Hello, Joined, join_hearing};
use comm::tls::Security;
use comm::{BackendWord, Settings, World, tcp};
use data::{Dataset, TokenizerSpec};
use device::{Device, DeviceKind, work};
use train::config::DeviceName;
use train::event::{FinishReason, Finished, Profile};
use train::pulse::{self, Phase};
use train::{
    Event, MarkedDisk, NativeEngine, Outcome, Parts, RunPlan, Sampling, TrainError, Trainer, Wants,
};

use super::address::TLS;
use super::blame;
use super::job::Job;
use super::line::Line;
use super::local;
use super::offload;
use super::reach;
use super::resume::resume;
use super::signals::{Signals, die_with_parent};
use super::voice::Voice;
use crate::cli::WorkerArgs;
use crate::error::{CliError, Exit};
use crate::trace::{Recorder, Steps};
use crate::{secret, tls};

/// How long a device may go on with what it does after its job was given up.
const DEVICE: Duration = Duration::from_secs(2);

/// Runs one rank.
///
/// # Errors
/// Whatever ends the rank; the supervisor shows it.
pub fn worker(args: WorkerArgs) -> Result<Exit, CliError> {
    die_with_parent();
    let job = Job::read(&args.plan)?;
    // Before any thread: each has the CPUs of the one that starts it.
    job.cpus.bind(args.rank)?;
    let voice = Voice::start(job.config.ranks.timeout_ms)?;
    let secret = secret::inherited()?;
    let call_limit = Duration::from_millis(job.config.ranks.call_limit_ms());
    work::set_call_limit(call_limit);
    let signals = Signals::count(job.config.ranks.warn_signal)?;
    let kind = match job.config.ranks.device {
        DeviceName::Cpu => DeviceKind::Cpu,
        DeviceName::Guarded => DeviceKind::Guarded,
    };
    let device = Device::new(kind, job.threads)?;
    let optimizer_device = offload::open(&job.config)?;
    let devices = Devices { device: &device, optimizer: optimizer_device.as_ref() };
    let told = Told { signals, voice: &voice };
    let tls = job.tls.as_ref().map(|files| tls::load(TLS, files)).transpose()?;
    let ended = rank(&job, (args.rank, Security { secret, tls }), devices, &told);
    if let Some(fault) = ended.as_ref().err().and_then(|error| error.fault.as_ref()) {
        // Without a supervisor nobody needs to know.
        let _ = voice.say(&Line::Fault(Cow::Borrowed(fault)));
    }
    ended
}

/// The two directions between a rank and its supervisor.
struct Told<'a> {
    signals: Signals,
    voice: &'a Voice,
}

/// The devices that a rank computes on.
#[derive(Clone, Copy)]
struct Devices<'a> {
    device: &'a Device,
    /// The optimizer's, if it is another.
    optimizer: Option<&'a Device>,
}

fn rank(
    job: &Job,
    (rank, security): (usize, Security),
    devices: Devices,
    told: &Told,
) -> Result<Exit, CliError> {
    let vocab = job.prepared.vocab_size as usize;
    let (world, threads, bucket) = (job.world, job.threads, job.bucket_bytes);
    let plan = RunPlan::with_buckets(&job.config, vocab, world, threads, bucket)?;
    pulse::enter(Phase::Meeting);
    let (Joined { peers, group: name, control }, listener) =
        meet(job, (rank, security), &plan, devices, told.voice)?;
    // The next line that matters tells if the supervisor is gone.
    let _ = told.voice.say(&Line::Met(Cow::Borrowed(&name)));
    let backend = backend(job, listener, peers, name)?;
    // The ranks stay together beyond the training, so that the server hears first whose fault an
    // end is.
    let mut met = None;
    let settings = Settings::new(job.config.ranks.timeout_ms);
    let settings = Settings { cores: job.cpus.cores, ..settings };
    let connected = control.connect(backend, rank, job.world, settings);
    let trained = connected
        .map_err(CliError::from)
        .and_then(|world| train(job, plan, met.insert(world), devices, told, &control));
    match trained {
        Ok(exit) => {
            control.bye();
            Ok(exit)
        }
        Err(mut error) => {
            if let Some(fault) = &mut error.fault {
                blame::leave(fault, control);
            }
            Err(error)
        }
    }
}

/// Trains; the exit code is the reason of the ranks' vote.
fn train(
    job: &Job,
    plan: RunPlan,
    world: &World,
    devices: Devices,
    told: &Told,
    control: &ControlHandle,
) -> Result<Exit, CliError> {
    let started = Instant::now();
    pulse::enter(Phase::Loading);
    give_up_with(world, devices.optimizer)?;
    let Told { signals, voice } = told;
    let mut trainer = trainer(job, plan, world, devices)?;
    let speaks = world.rank() == 0;
    let reporter = Reporter { speaks, voice, control };
    let store = Store::on(Arc::new(MarkedDisk), &job.checkpoints);
    let generation = trainer.claim(&store)?;
    let mut emit = |event: Event| reporter.emit(&event);
    local::keep(job, world, &mut trainer)?;
    resume(job, &store, world, &mut trainer, &mut emit)?;
    trainer.check_room(&store, job.max_steps)?.map_or(Ok(()), &mut emit)?;
    let start_ms = milliseconds(started);
    let profiled = (job.profile && speaks).then(|| {
        devices.device.begin_profile();
        Instant::now()
    });
    let recorder = Tracing::begin(job, world, trainer.steps_taken())?;
    if let Some(Tracing { steps, .. }) = &recorder {
        // So that an operation is recorded by all ranks or by none.
        trainer.quiet_after([steps.first - 1, steps.last]);
    }
    let outcome = {
        progress(voice, control, trainer.steps_taken());
        let mut wants = |taken: u64| {
            recorder.iter().for_each(|recorder| recorder.look(taken));
            let stop = signals.interrupts() > 0 || control.stop_requested();
            Wants { stop, terminate: signals.terminations() > 0 }
        };
        trainer.run(&store, generation, job.max_steps, &mut wants, &mut emit)?
    };
    // Its last checkpoint lies with the others.
    trainer.end_local()?;
    // All of it is written before the supervisor hears that the run is done.
    drop(recorder);
    if let Some(since) = profiled {
        reporter.emit(&Event::Profile(Profile::new(
            milliseconds(since),
            &devices.device.end_profile(),
        )))?;
    }
    let reason = outcome.reason;
    let mut finished = finish(&mut trainer, outcome, started)?;
    progress(voice, control, trainer.steps_taken());
    if reason == FinishReason::Complete && speaks {
        let since = Instant::now();
        sample(job, trainer).map_or(Ok(()), |event| reporter.emit(&event))?;
        finished.times.sample_ms = milliseconds(since);
    }
    finished.times.start_ms = start_ms;
    finished.times.all_ms = milliseconds(started);
    reporter.emit(&Event::Finished(finished))?;
    Ok(match reason {
        FinishReason::Terminated => Exit::Preempted,
        _ => Exit::Ok,
    })
}

/// The trainer, with its initial weights.
fn trainer(
    job: &Job,
    plan: RunPlan,
    world: &World,
    Devices { device, optimizer }: Devices,
) -> Result<Trainer<NativeEngine>, CliError> {
    let config = &job.config;
    let fraction = config.data.validation_fraction;
    let open = || Dataset::open(&job.prepared, config.batch.seq_len, config.seed, fraction);
    let dataset = work::calling("open of token files", None, open)?;
    let vocab = job.prepared.vocab_size as usize;
    let engine = NativeEngine::of_plan(device, config, vocab, &plan)?;
    Ok(Trainer::new(Parts {
        config: config.clone(),
        plan,
        world: world.clone(),
        device: device.clone(),
        optimizer_device: optimizer.cloned(),
        dataset,
        engine,
    })?)
}

/// The trace of this rank, while there is one.
struct Tracing {
    steps: Steps,
    recorder: Recorder,
}

impl Tracing {
    /// Compares the clocks and begins the file, if that was asked for; `taken` steps are done.
    fn begin(job: &Job, world: &World, taken: u64) -> Result<Option<Tracing>, CliError> {
        let Some(plan) = &job.trace else { return Ok(None) };
        let steps = plan.steps.unwrap_or(Steps::after(taken));
        let recorder = Recorder::of_rank(Some(plan), world)?;
        Ok(recorder.map(|recorder| Tracing { steps, recorder }))
    }

    fn look(&self, taken: u64) {
        self.recorder.look(self.steps, taken);
    }
}

/// A device of a job that is given up is given up too, so that nothing waits for one that hangs.
fn give_up_with(world: &World, device: Option<&Device>) -> Result<(), CliError> {
    let Some(device) = device else { return Ok(()) };
    let (revocation, mut since) = (world.revocation(), None);
    device.give_up_when(move || {
        let why = revocation.why()?;
        let since: &Instant = since.get_or_insert_with(Instant::now);
        (since.elapsed() >= DEVICE).then(|| why.to_owned())
    })?;
    Ok(())
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

/// Tells server and supervisor how far this rank has come.
fn progress(voice: &Voice, control: &ControlHandle, step: u64) {
    control.status(step);
    // The next event tells if the supervisor is gone.
    let _ = voice.say(&Line::At(step));
}

/// Meets the other ranks, who are told where this one listens.
fn meet(
    job: &Job,
    (rank, security): (usize, Security),
    plan: &RunPlan,
    devices: Devices,
    voice: &Voice,
) -> Result<(Joined, Option<TcpListener>), CliError> {
    let listener = match job.config.ranks.backend {
        BackendWord::Tcp => Some(tcp::listen(SocketAddr::new(job.bind, 0))?),
        BackendWord::Shm => None,
    };
    let listen = listener.as_ref().and_then(|listener| listener.local_addr().ok());
    let hello = Hello {
        job: job.name.clone(),
        rank,
        world: job.world,
        version: env!("CARGO_PKG_VERSION").into(),
        node: job.node,
        incarnation: job.incarnation,
        identity: job.identity(plan, kernels::gemm::arithmetic(), devices.optimizer),
        entries: job.entries(rank),
        listen,
    };
    let timeout_ms = job.config.ranks.timeout_ms;
    let joined = join_hearing(&job.rendezvous[..], hello, security, timeout_ms, &mut |hint| {
        voice.hint(hint)
    });
    Ok((joined?, listener))
}

/// How the ranks reach each other that have met as the group `name`.
fn backend(
    job: &Job,
    listener: Option<TcpListener>,
    peers: Vec<SocketAddr>,
    name: String,
) -> Result<comm::Backend, CliError> {
    if let Some(listener) = listener {
        return reach::among_hosts(listener, peers, name, job.shared_memory.zip(job.sharing));
    }
    #[cfg(target_os = "linux")]
    if let Some(descriptor) = job.shared_memory {
        let memory = comm::shm::SharedMemory::inherited(descriptor)?;
        return Ok(comm::Backend::Shm { memory });
    }
    Err(CliError::mistake("this job has no shared memory; workers are started by `muster train`"))
}

/// Text that the trained model writes. The run is done and saved: where there can be none, that is
/// a warning.
fn sample(job: &Job, trainer: Trainer<NativeEngine>) -> Option<Event> {
    let ids_only = matches!(job.config.data.tokenizer, TokenizerSpec::Ids(_));
    if job.config.train.sample_tokens == 0 || ids_only {
        return None;
    }
    let prompt = job.config.train.sample_prompt.clone();
    Some(match sample_text(job, trainer) {
        Ok(text) => Event::Sample { prompt, text },
        Err(error) => Event::Warning {
            message: format!("no sample of text: {}; the run is saved", error.message),
        },
    })
}

fn sample_text(job: &Job, trainer: Trainer<NativeEngine>) -> Result<String, CliError> {
    let config = &job.config.train;
    let (sampler, dataset) = trainer.into_sampler()?;
    let tokenizer = dataset.tokenizer()?;
    let mut prompt = vec![tokenizer.end_of_text()];
    tokenizer.encode(&config.sample_prompt, &mut prompt)?;
    let sampling = Sampling { temperature: 0.8, top_k: 0, seed: job.config.seed };
    let vocab = tokenizer.vocab_size();
    let tokens = sampler.generate(&prompt, config.sample_tokens, vocab, sampling)?;
    Ok(String::from_utf8_lossy(&tokenizer.decode(&tokens)).into_owned())
}

fn finish(
    trainer: &mut Trainer<NativeEngine>,
    outcome: Outcome,
    started: Instant,
) -> Result<Finished, CliError> {
    Ok(Finished {
        step: outcome.step,
        reason: outcome.reason,
        seconds: started.elapsed().as_secs_f64(),
        tokens: trainer.tokens_since_start(),
        tokens_in_all: trainer.tokens(),
        final_loss: outcome.final_loss,
        final_bits_per_byte: outcome.final_bits_per_byte,
        peak_anonymous_bytes: trainer.peak_bytes(),
        planned_bytes: trainer.plan().peak_bytes(),
        weights_digest: trainer.weights_digest()?,
        checkpoint: outcome.checkpoint,
        times: trainer.times(),
        spreads: trainer.spreads(),
    })
}

/// Events to the supervisor; only rank 0 tells them, and every rank which step they are of.
struct Reporter<'a> {
    speaks: bool,
    voice: &'a Voice,
    control: &'a ControlHandle,
}

impl Reporter<'_> {
    fn emit(&self, event: &Event) -> Result<(), TrainError> {
        if self.speaks {
            let line = Line::Event(Cow::Borrowed(event));
            self.voice.say(&line).map_err(TrainError::Events)?;
        }
        // At once: what follows the step, such as a save, may take long.
        if let Event::Step(step) = event {
            progress(self.voice, self.control, step.step);
        }
        Ok(())
    }
}
