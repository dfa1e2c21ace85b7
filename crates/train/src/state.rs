//! A rank's state to a checkpoint and from one.

use std::path::{Path, PathBuf};
use std::time::Instant;

use checkpoint::{Attempt, Checkpoint, Digest, Error, FileRange, RunState, Skipped, Store};
use device::DType;
use layout::StateDecl;
use serde::{Deserialize, Serialize};

use crate::event::Saved;
use crate::forward;
use crate::load::{Taken, wanted_states};
use crate::numeric_plan::{self, NumericPlan, numeric_plan};
use crate::save::{Loaded, Saver, begun_anew, check_model, lacks};
use crate::save_beside::Beside;
use crate::{Engine, RunPlan, TrainError, Trainer, begun};

/// A checkpoint, and why newer ones were passed over.
type Found = (Option<PathBuf>, Vec<String>);

/// Why a rank could not read its part of a checkpoint, for the others.
#[derive(Serialize, Deserialize)]
struct Unread {
    /// An older checkpoint may serve.
    damage: bool,
    /// The number of the file that could not be read.
    file: Option<u32>,
    reason: String,
}

impl Unread {
    fn of(error: &TrainError, checkpoint: Option<&Checkpoint>) -> Unread {
        let (mut damage, mut file) = (false, None);
        if let TrainError::Checkpoint(error) = error {
            damage = error.is_damage();
            file = checkpoint.and_then(|checkpoint| checkpoint.file_of(error));
        }
        Unread { damage, file, reason: error.to_string() }
    }

    fn other(reason: String) -> Unread {
        Unread { damage: false, file: None, reason }
    }
}

impl<E: Engine> Trainer<E> {
    /// Waits until nobody else uses the channel of checkpoints.
    pub(crate) fn settle_saves(&self) -> Result<(), TrainError> {
        self.beside.as_ref().map_or(Ok(()), Beside::settle)
    }

    pub(crate) fn saver(&self) -> Result<Saver<'_>, TrainError> {
        Ok(Saver {
            plan: &self.plan,
            seed: self.config.seed,
            rank: self.ranks.rank(),
            world: self.ranks.world.size(),
            control: self.ranks.saving.as_ref(),
            stream: &self.stream,
            optimizer: &self.optimizer,
            weights: &self.memory.weights,
            engine: self.engine.states()?,
        })
    }

    /// Claims a generation of attempts to save, the same on every rank: what a process that ran
    /// before does from now on cannot be taken for this one's. Collective.
    ///
    /// # Errors
    /// A store that cannot be written to.
    pub fn claim(&self, store: &Store) -> Result<u32, TrainError> {
        let mut bytes = Vec::new();
        if self.ranks.rank() == 0 {
            bytes = store.claim_generation()?.to_le_bytes().to_vec();
        }
        self.ranks.saving.broadcast_bytes(0, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes.try_into().unwrap_or([0; 4])))
    }

    /// Takes over the newest checkpoint of `store` that is whole, if there is one; with warnings,
    /// as [`Trainer::load`], and of newer ones that were passed over. Collective.
    ///
    /// # Errors
    /// As [`Trainer::load`]; a store that cannot be read. [`TrainError::NoneWhole`] where there are
    /// checkpoints and all are damaged: the run does not begin anew, and its states are of no use.
    pub fn resume(&mut self, store: &Store) -> Result<Option<(Loaded, Vec<String>)>, TrainError> {
        let (mut bound, mut passed_over) = (None, Vec::new());
        loop {
            let path = self.newest_before(store, &mut bound, &mut passed_over)?;
            let Some(path) = path else {
                if passed_over.is_empty() {
                    return Ok(None);
                }
                let (path, reasons) = (store.root().to_owned(), passed_over.join("; "));
                return Err(TrainError::NoneWhole { path, reasons });
            };
            match self.load(&path) {
                Err(TrainError::Damaged { reason, .. }) => passed_over.push(reason),
                loaded => {
                    let (loaded, mut warnings) = loaded?;
                    warnings.extend(passed_over.iter().map(|why| format!("passed over: {why}")));
                    return Ok(Some((loaded, warnings)));
                }
            }
        }
    }

    /// The newest commit of `store` older than `bound`, which becomes its own, if any verifies by
    /// its structure; damaged ones are added to `passed_over`. Rank 0 looks for all.
    fn newest_before(
        &self,
        store: &Store,
        bound: &mut Option<Attempt>,
        passed_over: &mut Vec<String>,
    ) -> Result<Option<PathBuf>, TrainError> {
        let mut told = Vec::new();
        if self.ranks.rank() == 0 {
            let found: Result<Found, String> = match store.newest_before(*bound) {
                Ok(newest) => {
                    // An attempt that was never committed is no checkpoint, and nothing to tell.
                    let is_news = |s: &&Skipped| !matches!(s.reason, Error::NotCommitted { .. });
                    let damaged = newest.skipped.iter().filter(is_news);
                    let damaged = damaged.map(|s| s.reason.to_string()).collect();
                    *bound = newest.checkpoint.as_ref().map(Checkpoint::attempt);
                    Ok((newest.checkpoint.map(|c| c.path().to_owned()), damaged))
                }
                Err(error) => Err(error.to_string()),
            };
            told = serde_json::to_vec(&found).unwrap_or_default();
        }
        self.ranks.saving.broadcast_bytes(0, &mut told)?;
        let garbled = |error: serde_json::Error| Err(error.to_string());
        let found: Result<Found, String> = serde_json::from_slice(&told).unwrap_or_else(garbled);
        let (path, damaged) = found.map_err(|reason| TrainError::PeerLoad { rank: 0, reason })?;
        passed_over.extend(damaged);
        Ok(path)
    }

    /// Saves a checkpoint of the state after the last step.
    ///
    /// # Errors
    /// A rank that could not write; nothing older is touched.
    pub fn save(&mut self, store: &Store, generation: u32) -> Result<Saved, TrainError> {
        let started = Instant::now();
        self.settle_saves()?;
        self.ranks.settle()?;
        self.optimizer.check_momentum()?;
        let attempt = Attempt { step: self.step, generation };
        let committed = self.saver()?.save(store, attempt, &self.planned, &self.run_state())?;
        Ok(Saved {
            step: self.step,
            path: committed.path.display().to_string(),
            bytes: committed.bytes,
            ms: started.elapsed().as_secs_f64() * 1e3,
        })
    }

    pub(crate) fn run_state(&self) -> RunState {
        let data = Digest(self.dataset.digest()).to_string();
        let config = serde_json::to_vec(&self.config).unwrap_or_default();
        let mut plan = numeric_plan(&self.plan, &self.config);
        let device = self.optimizer.device().map(|device| ("optimizer device".to_owned(), device));
        plan.extend(device);
        let mut state = RunState {
            muster_version: env!("CARGO_PKG_VERSION").to_owned(),
            step: self.step,
            samples: self.samples,
            tokens: self.tokens,
            seed: self.config.seed,
            rng_counter: 0,
            config_digest: Digest::of(&config),
            numeric_plan_digest: Digest(numeric_plan::digest(&plan)),
            schedule: serde_json::json!({ "total_steps": self.config.train.steps }),
            extra: serde_json::json!({
                "data": data,
                "previous_norm": self.previous_norm,
                "updates": self.updates,
                "numeric_plan": plan,
                // The source of the digests, so that differences can be told by key.
                "config": self.config,
            }),
        };
        if let Some(entry) = begun::entry(&self.plan.schema, &self.begun) {
            state.extra["begun"] = entry;
        }
        state
    }

    /// Takes over a checkpoint: whatever its number of ranks was. All ranks call it, and either
    /// all take it over or all fail; after a failure the states are of no use, and another
    /// checkpoint must be loaded.
    ///
    /// # Errors
    /// A checkpoint of another model; one that cannot be read. [`TrainError::Damaged`], on every
    /// rank, where some rank's part is damaged: another checkpoint can then be loaded.
    pub fn load(&mut self, path: &Path) -> Result<(Loaded, Vec<String>), TrainError> {
        let checkpoint = self.take(path, Taken::All)?;
        self.adopt(&checkpoint)
    }

    /// Goes on with the run state of a checkpoint whose states were taken over.
    ///
    /// # Errors
    /// Memory of the device.
    pub(crate) fn adopt(
        &mut self,
        checkpoint: &Checkpoint,
    ) -> Result<(Loaded, Vec<String>), TrainError> {
        let anew = begun_anew(checkpoint, &self.plan.states);
        let mut warnings: Vec<String> = anew.iter().map(ToString::to_string).collect();
        let state = checkpoint.run_state().clone();
        (self.step, self.samples, self.tokens) = (state.step, state.samples, state.tokens);
        self.tokens_loaded = state.tokens;
        let updates = state.extra.get("updates").and_then(serde_json::Value::as_u64);
        self.updates = updates.unwrap_or(state.step);
        let RunPlan { schema, states, .. } = &self.plan;
        let lacks = |of: &StateDecl| lacks(checkpoint, of);
        self.begun = begun::begun(schema, states, (&state, self.updates), lacks);
        self.optimizer.set_begun(&self.begun)?;
        self.previous_norm = state.extra.get("previous_norm").and_then(serde_json::Value::as_f64);
        let mine = self.run_state();
        if state.extra.get("data") != mine.extra.get("data") {
            let configs = [&state, &mine].map(|state| state.extra.get("config"));
            let mut what = numeric_plan::data_differences(configs).join(", ");
            if what.is_empty() {
                what = "the tokens of the data".to_owned();
            }
            warnings.push(format!(
                "different from the checkpoint: {what}; the samples to come are others than they \
                 would have been"
            ));
        }
        if state.numeric_plan_digest != mine.numeric_plan_digest {
            let plan_of = |state: &RunState| -> NumericPlan {
                let plan = state.extra.get("numeric_plan").cloned().unwrap_or_default();
                serde_json::from_value(plan).unwrap_or_default()
            };
            let plans = [plan_of(&state), plan_of(&mine)];
            let configs = [&state, &mine].map(|state| state.extra.get("config"));
            let what = numeric_plan::differences(&plans, configs).join(", ");
            warnings.push(format!(
                "different from the checkpoint: {what}; the weights may not have the bits of an \
                 undisturbed run"
            ));
        }
        let written_by = checkpoint.manifest().world as usize;
        Ok((Loaded { state, written_by }, warnings))
    }

    /// Begins with the parameters of a checkpoint, and with what the engine kept beside them; all
    /// else is as at the start of a run. Returns the step that it is of, with warnings. All ranks
    /// call it, and all succeed or fail.
    ///
    /// # Errors
    /// As [`Trainer::load`].
    pub fn begin_with(&mut self, path: &Path) -> Result<(u64, Vec<String>), TrainError> {
        let checkpoint = self.take(path, Taken::Parameters)?;
        let warnings = begun_anew(&checkpoint, self.plan.engine_states());
        Ok((checkpoint.run_state().step, warnings.iter().map(ToString::to_string).collect()))
    }

    /// Loads states of a checkpoint on all ranks, and brings the weights of all up to date.
    fn take(&mut self, path: &Path, taken: Taken) -> Result<Checkpoint, TrainError> {
        let checkpoint = self.open(path);
        let opened = checkpoint.map(|checkpoint| (checkpoint, Vec::new()));
        let (checkpoint, _) = self.agree(path, None, opened)?;
        self.take_from(&checkpoint, taken, |_, _| true)?;
        Ok(checkpoint)
    }

    /// As [`Trainer::take`], of a checkpoint that all ranks have opened; `can_read` says of which
    /// ranges a rank can read the file.
    pub(crate) fn take_from(
        &mut self,
        checkpoint: &Checkpoint,
        taken: Taken,
        can_read: impl Fn(usize, FileRange) -> bool,
    ) -> Result<(), TrainError> {
        self.settle_saves()?;
        // Neither this rank nor a peer may still move what is written here.
        self.ranks.settle()?;
        self.ranks.saving.barrier()?;
        self.read_states(checkpoint, taken, can_read)?;
        self.optimizer.publish(&self.stream, &self.memory.weights)?;
        self.ranks.gather(&self.stream)?;
        self.ranks.settle()?;
        self.engine.weights_changed();
        self.engine.states_changed()
    }

    fn open(&self, path: &Path) -> Result<Checkpoint, TrainError> {
        // One rank looks at all of it.
        let checkpoint = match self.ranks.rank() {
            0 => Checkpoint::open(path)?,
            _ => Checkpoint::open_lazily(path)?,
        };
        check_model(&checkpoint, &self.plan)?;
        Ok(checkpoint)
    }

    /// Reads what this rank alone needs; what several need is read by one of them, and handed on.
    fn read_states(
        &self,
        checkpoint: &Checkpoint,
        taken: Taken,
        can_read: impl Fn(usize, FileRange) -> bool,
    ) -> Result<(), TrainError> {
        let (path, saver) = (checkpoint.path(), self.saver()?);
        let loading = wanted_states(checkpoint, &saver, taken).map(|loading| {
            let needed = forward::encode(loading.reads.ranges());
            (loading, needed)
        });
        let (loading, needed) = self.agree(path, Some(checkpoint), loading)?;
        let unknown = || TrainError::PeerLoad { rank: 0, reason: "ranks differ".to_owned() };
        let needed: Option<Vec<_>> = needed.iter().map(|bytes| forward::decode(bytes)).collect();
        let handed_on = forward::plan(&needed.ok_or_else(unknown)?, can_read);
        let handed_on = handed_on.map_err(|at| {
            let file = &checkpoint.manifest().files[at.file as usize].path;
            let reason = format!("no rank can read {}", path.join(file).display());
            TrainError::Damaged { path: path.to_owned(), reason, at: None }
        })?;
        let is_read = |at| handed_on.binary_search_by_key(&at, |of| of.at).is_err();
        let own = loading.read(self.plan.threads, is_read);
        // Whatever this rank reads for others it takes, too, if it needs it.
        let read = |at, bytes: &mut Vec<u8>| {
            checkpoint.read_file_range(at, bytes)?;
            loading.give(at, (bytes, crc_fast::crc32_iscsi(bytes)))
        };
        let take = |at, bytes: &[u8], crc| loading.give(at, (bytes, crc));
        let world = &self.ranks.world;
        let others =
            forward::hand_on(world, &handed_on, |at| checkpoint.file_range_bytes(at), read, take);
        self.agree(path, Some(checkpoint), own.and(others).map(|()| ((), Vec::new())))?;
        Ok(())
    }

    /// Returns what this rank has and all ranks' words, if none failed; else every rank fails.
    fn agree<T>(
        &self,
        path: &Path,
        checkpoint: Option<&Checkpoint>,
        mine: Result<(T, Vec<u8>), TrainError>,
    ) -> Result<(T, Vec<Vec<u8>>), TrainError> {
        let word = match &mine {
            Ok((_, word)) => [&[0], &word[..]].concat(),
            Err(error) => {
                let why = serde_json::to_vec(&Unread::of(error, checkpoint));
                let why = why.unwrap_or_default();
                [&[1], &why[..]].concat()
            }
        };
        let mut words = self.ranks.saving.all_gather_bytes(&word)?;
        let failed = words.iter().enumerate().filter_map(|(rank, word)| {
            let garbled = |error: serde_json::Error| Unread::other(error.to_string());
            let (is_failed, why) = word.split_first().unwrap_or((&1, &[]));
            (*is_failed != 0).then(|| (rank, serde_json::from_slice(why).unwrap_or_else(garbled)))
        });
        // Damage only if nothing else is wrong anywhere.
        match (failed.min_by_key(|(rank, why): &(usize, Unread)| (why.damage, *rank)), mine) {
            (None, Ok((mine, _))) => {
                words.iter_mut().for_each(|word| {
                    word.remove(0);
                });
                Ok((mine, words))
            }
            (Some((rank, Unread { damage: true, reason, file })), _) => {
                let at = file.map(|file| (rank, file));
                Err(TrainError::Damaged { path: path.to_owned(), reason, at })
            }
            (_, Err(error)) => Err(error),
            (Some((rank, Unread { reason, .. })), Ok(_)) => {
                Err(TrainError::PeerLoad { rank, reason })
            }
        }
    }

    /// BLAKE3 of all weights and of the engine's states: equal digests are equal bits.
    ///
    /// # Errors
    /// Device errors.
    pub fn weights_digest(&mut self) -> Result<String, TrainError> {
        self.ranks.settle()?;
        let mut hasher = blake3::Hasher::new();
        let (weights, states) = (&self.memory.weights, self.engine.states()?);
        self.stream.with_memory("digest", |k| {
            match weights.dtype() {
                DType::F32 => hasher.update(bytemuck::cast_slice(k.read::<f32>(weights)?)),
                _ => hasher.update(bytemuck::cast_slice(k.read::<half::bf16>(weights)?)),
            };
            for state in &states {
                hasher.update(bytemuck::cast_slice(k.read::<f32>(state)?));
            }
            if states.is_empty() {
                // So that digests can be compared with those of older builds, which had a bias of
                // one expert here.
                hasher.update(&0_f32.to_le_bytes());
            }
            Ok(())
        })?;
        Ok(hasher.finalize().to_hex().to_string())
    }
}
