//! The engine with hand-written forward and backward passes, and the balancing of its experts.

use std::cmp::Ordering;

use device::{DType, Device, Stream, Tensor};
use kernels::{Op, elementwise};
use layout::{Absent, FlatLayout, Sharing, StateDecl};
use model::{
    Architecture, Gradients, Hooks, Inputs, MicroBatch, Model, Moe, Stash, State, Types,
    active_parameters, memory_plan, parameters,
};

use crate::config::BUCKET_BYTES;
use crate::engine::{Declared, Load};
use crate::{Config, Engine, RunPlan, TrainError};

/// The slot of balancing biases, a word of the checkpoint format.
const ROUTER_BIAS: &str = "router_bias";

/// A [`Model`], with the states of its routers.
pub struct NativeEngine {
    declared: Declared,
    pub(crate) model: Model,
    /// f32 `[layers with experts, experts]`.
    pub(crate) router_bias: Tensor,
    /// The same on the host.
    bias: Vec<f32>,
    /// Tokens of each expert since the step began, u32 of the same shape.
    loads: Tensor,
    /// Loads over their means, sorted.
    relative: Vec<f64>,
}

/// Memory for one value per expert of `a`: at least one element, as tensors have.
pub(crate) fn per_expert(
    device: &Device,
    a: &Architecture,
    dtype: DType,
) -> Result<Tensor, TrainError> {
    let experts = a.moe.as_ref().map_or(1, |moe| moe.experts);
    Ok(device.zeros(&[a.moe_layers().max(1), experts], dtype)?)
}

/// The first `count` rows of `biases`, each a state.
pub(crate) fn rows(biases: &Tensor, count: usize) -> Result<Vec<Tensor>, TrainError> {
    (0..count).map(|row| Ok(biases.rows(row..row + 1)?)).collect()
}

impl NativeEngine {
    /// The declarations of an architecture.
    ///
    /// # Errors
    /// Never for a checked architecture.
    pub fn declare(
        a: &Architecture,
        batch: MicroBatch,
        bucket_elements: usize,
        weights: DType,
    ) -> Result<Declared, TrainError> {
        let (schema, states) = parameters(a)?;
        let experts = a.moe.as_ref().map_or(0, |moe| moe.experts);
        let bias = |name: &String| {
            let state = StateDecl::f32(name, ROUTER_BIAS, &[experts], Sharing::Replicated);
            state.absent(Absent::Refuse)
        };
        let memory = memory_plan(a, batch, weights, 1)?.into_iter();
        let model = blake3::hash(format!("{a:?}").as_bytes()).to_hex()[..16].to_owned();
        let numeric = [("arithmetic", kernels::gemm::arithmetic()), ("model", model)];
        Ok(Declared {
            flat: FlatLayout::new(&schema, bucket_elements),
            bucket_elements,
            batch,
            weights,
            states: states.router_biases.iter().map(bias).collect(),
            counts: a.moe_layers() * experts,
            memory: memory.map(|(name, bytes)| (name.to_owned(), bytes as u64)).collect(),
            numeric: numeric.map(|(name, value)| (name.to_owned(), value)).into(),
            active_parameters: active_parameters(a, &schema) as u64,
            schema,
        })
    }

    /// Plans and allocates.
    ///
    /// # Errors
    /// Memory.
    pub fn new(
        device: &Device,
        a: &Architecture,
        batch: MicroBatch,
        bucket_elements: usize,
        weights: DType,
    ) -> Result<NativeEngine, TrainError> {
        let declared = NativeEngine::declare(a, batch, bucket_elements, weights)?;
        let types = Types::stored_as(weights);
        let model = Model::new(device, a, batch, bucket_elements, types)?;
        Ok(NativeEngine {
            model,
            router_bias: per_expert(device, a, DType::F32)?,
            bias: vec![0.0; declared.counts],
            loads: per_expert(device, a, DType::U32)?,
            relative: Vec::with_capacity(declared.counts),
            declared,
        })
    }

    /// The engine of a plan that was made from `config` and a tokenizer of so many ids.
    ///
    /// # Errors
    /// A model that does not fit together; memory.
    pub fn of_plan(
        device: &Device,
        config: &Config,
        tokenizer_vocab: usize,
        plan: &RunPlan,
    ) -> Result<NativeEngine, TrainError> {
        let a = config.model.resolve(tokenizer_vocab, config.batch.seq_len)?;
        NativeEngine::new(device, &a, plan.batch, plan.bucket_elements, plan.weights)
    }

    fn moe(&self) -> Option<&Moe> {
        self.model.architecture().moe.as_ref()
    }

    fn state<'a>(&'a self, weights: &'a Tensor) -> State<'a> {
        State { weights, router_bias: &self.router_bias, loads: &self.loads }
    }
}

impl Engine for NativeEngine {
    type Stash = Stash;

    fn declared(&self) -> &Declared {
        &self.declared
    }

    fn stream(&self) -> &Stream {
        self.model.stream()
    }

    fn initialize(&mut self, seed: u64, weights: &Tensor) -> Result<(), TrainError> {
        let (stream, a) = (self.model.stream(), self.model.architecture());
        model::initialize(stream, a, &self.declared.flat, seed, weights)?;
        self.bias.fill(0.0);
        Ok(elementwise::Zero { y: self.router_bias.clone() }.launch(stream)?)
    }

    fn begin_step(&mut self) -> Result<(), TrainError> {
        Ok(elementwise::Zero { y: self.loads.clone() }.launch(self.stream())?)
    }

    fn forward(
        &mut self,
        inputs: &Inputs,
        weights: &Tensor,
        hooks: &mut dyn Hooks,
    ) -> Result<Stash, TrainError> {
        Ok(self.model.forward(inputs, self.state(weights), hooks)?)
    }

    fn backward(
        &mut self,
        stash: Stash,
        weights: &Tensor,
        to: Gradients,
        hooks: &mut dyn Hooks,
    ) -> Result<(), TrainError> {
        Ok(self.model.backward(stash, self.state(weights), to, hooks)?)
    }

    fn evaluate(
        &mut self,
        stash: Stash,
        weights: &Tensor,
        loss: &Tensor,
        hooks: &mut dyn Hooks,
    ) -> Result<(), TrainError> {
        Ok(self.model.evaluate(&stash, self.state(weights), loss, hooks)?)
    }

    fn states(&self) -> Result<Vec<Tensor>, TrainError> {
        rows(&self.router_bias, self.declared.states.len())
    }

    fn states_changed(&mut self) -> Result<(), TrainError> {
        if self.bias.is_empty() {
            return Ok(());
        }
        Ok(self.model.stream().copy_out(&self.router_bias, &mut self.bias)?)
    }

    fn counts(&mut self, into: &mut [u32]) -> Result<(), TrainError> {
        if into.is_empty() {
            return Ok(());
        }
        Ok(self.stream().copy_out(&self.loads, into)?)
    }

    /// Loss-free balancing (Wang et al. 2024): each bias moves by the rate towards the mean load.
    fn after_step(&mut self, counts: &[u64]) -> Result<(), TrainError> {
        let moe = self.moe().filter(|moe| moe.balance_rate != 0.0);
        let Some((experts, rate)) = moe.map(|moe| (moe.experts, moe.balance_rate as f32)) else {
            return Ok(());
        };
        let layers = self.bias.chunks_exact_mut(experts).zip(counts.chunks_exact(experts));
        for (bias, loads) in layers {
            let total: u64 = loads.iter().sum();
            for (bias, &load) in bias.iter_mut().zip(loads) {
                match (load * experts as u64).cmp(&total) {
                    Ordering::Less => *bias += rate,
                    Ordering::Greater => *bias -= rate,
                    Ordering::Equal => {}
                }
            }
        }
        Ok(self.model.stream().copy_in(&self.router_bias, &self.bias)?)
    }

    fn load(&mut self, counts: &[u64]) -> Option<Load> {
        let experts = self.moe()?.experts;
        load(counts, experts, &mut self.relative)
    }
}

impl RunPlan {
    /// Decides for `world` ranks of `threads` threads each, with buckets of the configured size.
    ///
    /// # Errors
    /// A model that does not fit together; a tree that does not fit the leaves; more ranks than
    /// leaves; optimizer rules that leave a parameter out.
    pub fn new(
        config: &Config,
        tokenizer_vocab: usize,
        world: usize,
        threads: usize,
    ) -> Result<RunPlan, TrainError> {
        let bucket_bytes = config.ranks.bucket_bytes.unwrap_or(BUCKET_BYTES);
        RunPlan::with_buckets(config, tokenizer_vocab, world, threads, bucket_bytes)
    }

    /// As [`RunPlan::new`], with buckets of another size, whatever the config says.
    ///
    /// # Errors
    /// As [`RunPlan::new`].
    pub fn with_buckets(
        config: &Config,
        tokenizer_vocab: usize,
        world: usize,
        threads: usize,
        bucket_bytes: usize,
    ) -> Result<RunPlan, TrainError> {
        let architecture = config.model.resolve(tokenizer_vocab, config.batch.seq_len)?;
        let (windows, positions) = (config.batch.micro_batch, config.batch.seq_len);
        let (batch, weights) = (MicroBatch { windows, positions }, config.train.weights.dtype());
        let bucket_elements = bucket_bytes.div_ceil(4);
        let declared = NativeEngine::declare(&architecture, batch, bucket_elements, weights)?;
        RunPlan::of(config, declared, world, threads)
    }
}

/// The load of layers of `experts` each; `None` without experts.
fn load(counts: &[u64], experts: usize, relative: &mut Vec<f64>) -> Option<Load> {
    if counts.is_empty() || experts == 0 {
        return None;
    }
    relative.clear();
    for layer in counts.chunks_exact(experts) {
        let mean = layer.iter().sum::<u64>() as f64 / experts as f64;
        relative.extend(layer.iter().map(|&load| load as f64 / mean.max(1e-300)));
    }
    relative.sort_unstable_by(f64::total_cmp);
    let spread = [0, relative.len() / 2, relative.len() - 1].map(|at| relative[at]);
    Some(Load { spread, idle: counts.iter().filter(|&&load| load == 0).count() as u64 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loads_are_relative_to_their_layer() {
        let load = load(&[2, 2, 0, 8], 2, &mut Vec::new());
        assert_eq!(load, Some(Load { spread: [0.0, 1.0, 2.0], idle: 1 }));
    }
}
