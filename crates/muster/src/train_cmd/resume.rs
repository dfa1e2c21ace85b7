//! The checkpoint that a start begins from: rank 0 chooses, every rank loads its part.

use std::path::{Path, PathBuf};

use checkpoint::{Attempt, Checkpoint, Error, RunState, Skipped, Store};
use comm::{Channel, World};
use train::config::Resume;
use train::event::{Initialized, Resumed};
use train::{Engine, Event, LoadedLocally, TrainError, Trainer};

use super::job::Job;
use crate::error::CliError;
use crate::run_dir::{self, PassedOver};
use crate::saved_model::{model_of, unlike};

/// Loads what the config says to begin from, if anything; tells what it was. Where the data of
/// the newest checkpoint turn out damaged, the next older one serves, and this is told.
///
/// # Errors
/// Checkpoints are there and none of them can be used: to start over instead would train again
/// what may have taken weeks, without a word. One that cannot be read; one of another model.
pub fn resume<E: Engine>(
    job: &Job,
    store: &Store,
    world: &World,
    trainer: &mut Trainer<E>,
    emit: &mut dyn FnMut(Event) -> Result<(), TrainError>,
) -> Result<(), CliError> {
    let Some(start) = Start::of(&job.config.checkpoint.resume, store) else {
        return begin(job, world, trainer, emit);
    };
    let mut skipped = Vec::new();
    let mut bound = None;
    loop {
        let mut chosen = Vec::new();
        if world.rank() == 0 {
            let path = start.choose(bound, &mut skipped)?;
            chosen = path.map(|path| path.display().to_string().into_bytes()).unwrap_or_default();
        }
        world.control(Channel::Saving).broadcast_bytes(0, &mut chosen)?;
        let path = String::from_utf8_lossy(&chosen).into_owned();
        // The newest of all may lie with the hosts; what turns out damaged is not looked at again.
        if bound.is_none() && matches!(start, Start::Newest { needed: false, .. }) {
            let newest = start.older_than(&path);
            if go_on_locally(newest, trainer, emit)? {
                return Ok(());
            }
        }
        if path.is_empty() {
            return begin(job, world, trainer, emit);
        }
        let (loaded, warnings) = match (trainer.load(Path::new(&path)), start.older_than(&path)) {
            (Err(TrainError::Damaged { reason, .. }), Some(attempt)) => {
                bound = Some(attempt);
                skipped.push(run_dir::passed_over(Path::new(&path), &reason));
                continue;
            }
            (result, _) => result?,
        };
        let (step, written_by) = (loaded.state.step, loaded.written_by);
        let stranger = stranger(job, &path, &loaded.state)?;
        emit(Event::Resumed(Resumed { step, path, skipped, written_by }))?;
        for message in warnings.into_iter().chain(stranger) {
            emit(Event::Warning { message })?;
        }
        return Ok(());
    }
}

/// Loads the newest local checkpoint, if it is newer than that on the disk and can be read; tells
/// what it was, and what was not as it should be.
fn go_on_locally<E: Engine>(
    newest: Option<Attempt>,
    trainer: &mut Trainer<E>,
    emit: &mut dyn FnMut(Event) -> Result<(), TrainError>,
) -> Result<bool, CliError> {
    let (found, told) = trainer.load_local(newest)?;
    let has_loaded = found.is_some();
    let mut warnings = told;
    if let Some(LoadedLocally { path, loaded, warnings: more }) = found {
        let (path, step) = (path.display().to_string(), loaded.state.step);
        let (skipped, written_by) = (Vec::new(), loaded.written_by);
        emit(Event::Resumed(Resumed { step, path, skipped, written_by }))?;
        warnings.extend(more);
    }
    warnings.into_iter().try_for_each(|message| emit(Event::Warning { message }))?;
    Ok(has_loaded)
}

/// Begins a run with the parameters of a checkpoint, if the config says so.
fn begin<E: Engine>(
    job: &Job,
    world: &World,
    trainer: &mut Trainer<E>,
    emit: &mut dyn FnMut(Event) -> Result<(), TrainError>,
) -> Result<(), CliError> {
    let Some(init) = &job.config.checkpoint.init else { return Ok(()) };
    let mut chosen = Vec::new();
    if world.rank() == 0 {
        chosen = run_dir::checkpoint_path(init)?.display().to_string().into_bytes();
    }
    world.control(Channel::Saving).broadcast_bytes(0, &mut chosen)?;
    let path = String::from_utf8_lossy(&chosen).into_owned();
    let (step, warnings) = trainer.begin_with(Path::new(&path))?;
    let theirs = Checkpoint::open_lazily(&path).ok().and_then(|of| model_of(&of).ok());
    let unlike = theirs.map(|(theirs, _)| unlike(&theirs, &job.config)).unwrap_or_default();
    emit(Event::Initialized(Initialized { path, step }))?;
    for message in warnings.into_iter().chain(unlike) {
        emit(Event::Warning { message })?;
    }
    Ok(())
}

/// That a run's own directory holds what another run saved, if the checkpoint says so. One that
/// the config names to begin from may be anyone's.
///
/// # Errors
/// The directory is one that several runs may name: the other may be at work.
fn stranger(job: &Job, path: &str, state: &RunState) -> Result<Option<String>, CliError> {
    let (config, Some(theirs)) = (&job.config, run_dir::run_name(&state.extra)) else {
        return Ok(None);
    };
    let ours = &config.name;
    if config.checkpoint.resume != Resume::Auto || theirs == ours {
        return Ok(None);
    }
    let saved = format!("{path} was saved by the run `{theirs}`, not by `{ours}`");
    match config.checkpoint.store {
        Some(_) => Err(CliError::mistake(format!(
            "{saved}: give this run a directory of its own (checkpoint.store), or go on as that \
             one (--name {theirs}); --resume {path} begins from it"
        ))),
        None => Ok(Some(format!(
            "{saved}; if this run was not renamed, move it elsewhere and start again"
        ))),
    }
}

/// Where to begin.
enum Start {
    /// This checkpoint and no other.
    Exactly(PathBuf),
    /// The newest of these that is whole.
    Newest {
        store: Store,
        /// Whether there must be one.
        needed: bool,
    },
}

impl Start {
    /// `None`: anew.
    fn of(resume: &Resume, own: &Store) -> Option<Start> {
        match resume {
            Resume::Never => None,
            Resume::Auto => Some(Start::Newest { store: own.clone(), needed: false }),
            Resume::From(path) if run_dir::is_checkpoint(path) => {
                Some(Start::Exactly(path.clone()))
            }
            Resume::From(run) => {
                Some(Start::Newest { store: run_dir::store_in(run), needed: true })
            }
        }
    }

    /// The bound below which another checkpoint may take the place of this one, if any may.
    fn older_than(&self, path: &str) -> Option<Attempt> {
        match self {
            Start::Exactly(_) => None,
            Start::Newest { .. } => Attempt::parse(Path::new(path).file_name()?.to_str()?),
        }
    }

    /// The directory of a checkpoint, older than `bound`; none to begin anew. What is passed over
    /// is added to `skipped`.
    fn choose(
        &self,
        bound: Option<Attempt>,
        skipped: &mut Vec<PassedOver>,
    ) -> Result<Option<PathBuf>, CliError> {
        let (store, needed) = match self {
            Start::Exactly(path) => return Ok(Some(path.clone())),
            Start::Newest { store, needed } => (store, *needed),
        };
        let newest = store.newest_before(bound).map_err(kept_out)?;
        let is_news = |s: &&Skipped| !matches!(s.reason, Error::NotCommitted { .. });
        // An attempt that was never committed is no checkpoint, and nothing to tell.
        let damaged = newest.skipped.iter().filter(is_news);
        skipped.extend(damaged.map(|s| run_dir::passed_over(&s.path, &s.reason.to_string())));
        match newest.checkpoint {
            Some(checkpoint) => Ok(Some(checkpoint.path().to_owned())),
            None if skipped.is_empty() && !needed => Ok(None),
            None => Err(run_dir::no_checkpoint(store.root(), skipped, REMEDY)),
        }
    }
}

/// The newest checkpoint cannot be read: it may be whole, so no older one takes its place.
fn kept_out(error: Error) -> CliError {
    let mut error = CliError::from(error);
    error.message += NO_OLDER;
    error
}

const NO_OLDER: &str = "\n\
    What is there may be whole, so nothing older is gone on from in its place; to do that, name \
    one with --resume PATH";

const REMEDY: &str = "restore one from a copy, or start over with --resume never";
