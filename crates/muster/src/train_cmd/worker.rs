//! One rank: meets the others, trains, and tells its supervisor by events on standard output.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use checkpoint::Store;
use comm::rendezvous::{Hello, Joined, join};
use comm::{Communicator, tcp};
use data::{Dataset, TokenizerSpec};
use device::{Device, DeviceKind};
use train::config::{Backend, DeviceName};
use train::event::{FinishReason, Finished};
use train::{Event, NativeEngine, Outcome, Parts, RunPlan, Sampling, TrainError, Trainer, Wants};

use super::job::Job;
use super::resume::resume;
use super::signals::{Signals, die_with_parent};
use crate::cli::WorkerArgs;
use crate::error::{CliError, Exit};

/// Runs one rank.
///
/// # Errors
/// Whatever ends the rank; the supervisor shows it.
pub fn worker(args: WorkerArgs) -> Result<Exit, CliError> {
    die_with_parent();
    let signals = Signals::watch()?;
    let job = Job::read(&args.plan)?;
    let kind = match job.config.ranks.device {
        DeviceName::Cpu => DeviceKind::Cpu,
        DeviceName::Guarded => DeviceKind::Guarded,
    };
    let device = Device::new(kind, job.threads)?;
    // On a thread of the device's pool, parallel loops start without handing over.
    device.run(|| rank(job, args.rank, &device, &signals))
}

fn rank(job: Job, rank: usize, device: &Device, signals: &Signals) -> Result<Exit, CliError> {
    let started = Instant::now();
    let vocab = job.prepared.vocab_size as usize;
    let plan = RunPlan::new(&job.config, vocab, job.world, job.threads)?;
    let (comm, joined) = meet(&job, rank, &plan)?;
    let config = &job.config;
    let fraction = config.data.validation_fraction;
    let dataset = Dataset::open(&job.prepared, config.batch.seq_len, config.seed, fraction)?;
    let (batch, bucket) = (plan.batch, plan.bucket_elements);
    let engine = NativeEngine::new(device, &plan.architecture, batch, bucket, plan.weights)?;
    let parts = Parts {
        config: config.clone(),
        plan,
        comm: Arc::clone(&comm),
        device: device.clone(),
        dataset,
        engine,
    };
    let mut trainer = Trainer::new(parts)?;
    let mut reporter = Reporter { speaks: rank == 0, line: Vec::new() };
    let store = Store::new(&job.checkpoints);
    let generation = claim(&store, comm.as_ref())?;
    let mut emit = |event: Event| reporter.emit(&event);
    resume(&job, &store, comm.as_ref(), &mut trainer, &mut emit)?;
    let outcome = {
        let mut wants = |step: u64| {
            joined.control.status(step);
            let stop = signals.interrupts() > 0 || joined.control.stop_requested();
            Wants { stop, terminate: signals.terminations() > 0 }
        };
        trainer.run(&store, generation, job.max_steps, &mut wants, &mut emit)?
    };
    if outcome.reason == FinishReason::Complete && rank == 0 {
        sample(&job, &trainer).map_or(Ok(()), |event| reporter.emit(&event))?;
    }
    finish(&trainer, outcome, started, &mut reporter)?;
    joined.control.status(trainer.steps_taken());
    joined.control.bye();
    Ok(Exit::Ok)
}

/// Meets the other ranks and connects to them.
fn meet(
    job: &Job,
    rank: usize,
    plan: &RunPlan,
) -> Result<(Arc<dyn Communicator>, Joined), CliError> {
    let timeout_ms = job.config.ranks.timeout_ms;
    let listener = match job.config.ranks.backend {
        Backend::Tcp => Some(tcp::listen(SocketAddr::new(job.bind, 0))?),
        Backend::Shm => None,
    };
    let listen = listener.as_ref().and_then(|listener| listener.local_addr().ok());
    let hello = Hello {
        job: job.name.clone(),
        rank,
        world: job.world,
        version: env!("CARGO_PKG_VERSION").into(),
        identity: job.identity(plan),
        listen,
    };
    let joined = join(job.rendezvous, hello, timeout_ms)?;
    let name = job.name.clone();
    let backend = match listener {
        Some(listener) => comm::Backend::Tcp { listener, peers: joined.peers.clone(), job: name },
        None => comm::Backend::Shm { dir: "/dev/shm".into(), job: name },
    };
    let comm = comm::connect(backend, rank, job.world, timeout_ms)?;
    joined.control.attach(&comm);
    Ok((comm, joined))
}

/// A fencing generation, the same on every rank.
fn claim(store: &Store, comm: &dyn Communicator) -> Result<u32, CliError> {
    let mut bytes = Vec::new();
    if comm.rank() == 0 {
        bytes = store.claim_generation()?.to_le_bytes().to_vec();
    }
    comm.broadcast_bytes(0, &mut bytes)?;
    Ok(u32::from_le_bytes(bytes.try_into().unwrap_or([0; 4])))
}

/// Text that the trained model writes. The run is done and saved: where there can be none, that is
/// a warning.
fn sample(job: &Job, trainer: &Trainer<NativeEngine>) -> Option<Event> {
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

fn sample_text(job: &Job, trainer: &Trainer<NativeEngine>) -> Result<String, CliError> {
    let config = &job.config.train;
    let tokenizer = trainer.dataset().tokenizer();
    let mut prompt = vec![tokenizer.end_of_text()];
    tokenizer.encode(&config.sample_prompt, &mut prompt)?;
    let sampling = Sampling { temperature: 0.8, top_k: 0, seed: job.config.seed };
    let vocab = tokenizer.vocab_size();
    let tokens = trainer.sampler()?.generate(&prompt, config.sample_tokens, vocab, sampling)?;
    Ok(String::from_utf8_lossy(&tokenizer.decode(&tokens)).into_owned())
}

fn finish(
    trainer: &Trainer<NativeEngine>,
    outcome: Outcome,
    started: Instant,
    reporter: &mut Reporter,
) -> Result<(), CliError> {
    let event = Event::Finished(Finished {
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
    });
    reporter.emit(&event)?;
    Ok(())
}

/// Events to the supervisor, one JSON object a line; only rank 0 speaks.
struct Reporter {
    speaks: bool,
    line: Vec<u8>,
}

impl Reporter {
    fn emit(&mut self, event: &Event) -> Result<(), TrainError> {
        if !self.speaks {
            return Ok(());
        }
        self.line.clear();
        serde_json::to_writer(&mut self.line, event)
            .map_err(|error| TrainError::Events(error.into()))?;
        self.line.push(b'\n');
        let mut out = std::io::stdout().lock();
        out.write_all(&self.line).and_then(|()| out.flush()).map_err(TrainError::Events)
    }
}
