//! A rank's state to a checkpoint and from one.

use std::time::Instant;

use checkpoint::{Attempt, Checkpoint, Digest, RunState, Store};
use device::DType;

use crate::event::Saved;
use crate::numeric_plan::{self, NumericPlan, numeric_plan};
use crate::save::{Loaded, Saver, check_model, load_states};
use crate::trainer::Memory;
use crate::{Engine, TrainError, Trainer};

impl<E: Engine> Trainer<E> {
    fn saver(&self) -> Saver<'_> {
        Saver {
            plan: &self.plan,
            params: &self.params,
            comm: self.comm.as_ref(),
            stream: &self.stream,
            optimizer: &self.optimizer,
            weights: &self.memory.weights,
            router_bias: &self.memory.router_bias,
        }
    }

    /// Saves a checkpoint of the state after the last step.
    ///
    /// # Errors
    /// A rank that could not write; nothing older is touched.
    pub fn save(&mut self, store: &Store, generation: u32) -> Result<Saved, TrainError> {
        let started = Instant::now();
        self.optimizer.check_momentum()?;
        let attempt = Attempt { step: self.step, generation };
        let committed = self.saver().save(store, attempt, &self.run_state())?;
        let mut removed = Vec::new();
        if self.comm.rank() == 0 && self.config.checkpoint.keep > 0 {
            let keep = self.config.checkpoint.keep;
            let paths = store.retain(keep, checkpoint::Proof::EveryByte)?;
            removed = paths.iter().map(|path| path.display().to_string()).collect();
        }
        Ok(Saved {
            step: self.step,
            path: committed.path.display().to_string(),
            bytes: committed.bytes,
            ms: started.elapsed().as_secs_f64() * 1e3,
            removed,
        })
    }

    fn run_state(&self) -> RunState {
        let data = Digest(self.dataset.digest()).to_string();
        let config = serde_json::to_vec(&self.config).unwrap_or_default();
        let plan = numeric_plan(&self.plan, &self.config);
        RunState {
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
            }),
        }
    }

    /// Takes over a checkpoint: whatever its number of ranks was.
    ///
    /// # Errors
    /// A checkpoint of another model; damaged data.
    pub fn load(&mut self, checkpoint: &Checkpoint) -> Result<(Loaded, Vec<String>), TrainError> {
        check_model(checkpoint, &self.plan)?;
        let mut warnings: Vec<String> = load_states(checkpoint, &self.saver())?
            .into_iter()
            .map(|key| format!("the checkpoint has no {key}; it starts at zero"))
            .collect();
        self.optimizer.publish(&self.memory.weights)?;
        self.gather_weights()?;
        if !self.host.bias.is_empty() {
            self.stream.copy_out(&self.memory.router_bias, &mut self.host.bias)?;
        }
        let state = checkpoint.run_state().clone();
        (self.step, self.samples, self.tokens) = (state.step, state.samples, state.tokens);
        self.tokens_loaded = state.tokens;
        let updates = state.extra.get("updates").and_then(serde_json::Value::as_u64);
        self.updates = updates.unwrap_or(state.step);
        self.previous_norm = state.extra.get("previous_norm").and_then(serde_json::Value::as_f64);
        let mine = self.run_state();
        if state.extra.get("data") != mine.extra.get("data") {
            let text = "the data, its split or the seed differ from the checkpoint's: the samples \
                        to come are others than they would have been";
            warnings.push(text.to_owned());
        }
        if state.numeric_plan_digest != mine.numeric_plan_digest {
            let plan_of = |state: &RunState| -> NumericPlan {
                let plan = state.extra.get("numeric_plan").cloned().unwrap_or_default();
                serde_json::from_value(plan).unwrap_or_default()
            };
            let what = numeric_plan::differences(&plan_of(&state), &plan_of(&mine)).join(", ");
            warnings.push(format!(
                "different from the checkpoint: {what}; the weights will not have the bits of an \
                 undisturbed run"
            ));
        }
        let written_by = checkpoint.manifest().world as usize;
        Ok((Loaded { state, written_by }, warnings))
    }

    /// BLAKE3 of all weights and router biases: equal digests are equal bits.
    ///
    /// # Errors
    /// Device errors.
    pub fn weights_digest(&self) -> Result<String, TrainError> {
        let mut hasher = blake3::Hasher::new();
        let Memory { weights, router_bias, .. } = &self.memory;
        self.stream.with_memory("digest", |k| {
            match weights.dtype() {
                DType::F32 => hasher.update(bytemuck::cast_slice(k.read::<f32>(weights)?)),
                _ => hasher.update(bytemuck::cast_slice(k.read::<half::bf16>(weights)?)),
            };
            hasher.update(bytemuck::cast_slice(k.read::<f32>(router_bias)?));
            Ok(())
        })?;
        Ok(hasher.finalize().to_hex().to_string())
    }
}
