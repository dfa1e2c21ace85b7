//! Text from a model.

use checkpoint::Checkpoint;
use data::Dataset;
use device::{DType, Device, Tensor};
use model::{Architecture, Inputs, MicroBatch, Model, NoHooks, State, Types};

use crate::load::load_weights;
use crate::trainer::Memory;
use crate::{Config, NativeEngine, RunPlan, TrainError, Trainer, native};

/// How the next token is drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 takes the likeliest token.
    pub temperature: f64,
    /// Only the likeliest so many tokens; 0 for all.
    pub top_k: usize,
    pub seed: u64,
}

/// A model with one window, for drawing tokens.
pub struct Sampler {
    model: Model,
    weights: Tensor,
    router_bias: Tensor,
    loads: Tensor,
}

impl Sampler {
    /// A sampler over `weights` (flat) with windows of `positions`.
    ///
    /// # Errors
    /// Memory.
    pub fn new(
        device: &Device,
        architecture: &Architecture,
        positions: usize,
        bucket_elements: usize,
        weights: &Tensor,
        router_bias: &Tensor,
    ) -> Result<Sampler, TrainError> {
        let batch = MicroBatch { windows: 1, positions };
        let types = Types::stored_as(weights.dtype());
        let model = Model::new(device, architecture, batch, bucket_elements, types)?;
        let loads = device.zeros(router_bias.dims(), DType::U32)?;
        let (weights, router_bias) = (weights.clone(), router_bias.clone());
        Ok(Sampler { model, weights, router_bias, loads })
    }

    /// A sampler with the weights of a checkpoint of a run of `config`, whose tokenizer has so many
    /// ids.
    ///
    /// # Errors
    /// Memory; damaged or missing data; a checkpoint of another model.
    pub fn of_checkpoint(
        device: &Device,
        checkpoint: &Checkpoint,
        (config, tokenizer_vocab): (&Config, usize),
        positions: usize,
    ) -> Result<Sampler, TrainError> {
        let a = config.model.resolve(tokenizer_vocab, config.batch.seq_len)?;
        let plan = RunPlan::new(config, tokenizer_vocab, 1, device.threads())?;
        let weights = device.zeros(&[plan.flat.len], DType::F32)?;
        let biases = native::per_expert(device, &a, DType::F32)?;
        let states = native::rows(&biases, plan.engine_states().len())?;
        load_weights(checkpoint, (&plan, config.seed), &device.stream(), &weights, &states)?;
        Sampler::new(device, &a, positions, plan.bucket_elements, &weights, &biases)
    }

    /// The logits after each token of a text no longer than the window, `[tokens, vocabulary]`.
    ///
    /// # Errors
    /// Device errors; a token outside the vocabulary.
    pub fn logits(&self, tokens: &[u32]) -> Result<Vec<f32>, TrainError> {
        let positions = self.model.batch().positions;
        let mut window = tokens.to_vec();
        window.resize(positions, 0);
        let ignore = vec![kernels::loss::IGNORE; positions];
        let doc_start = vec![0; positions];
        let inputs = Inputs { tokens: &window, targets: &ignore, doc_start: &doc_start };
        let (weights, router_bias, loads) = (&self.weights, &self.router_bias, &self.loads);
        let state = State { weights, router_bias, loads };
        let stash = self.model.forward(&inputs, state, &mut NoHooks)?;
        let mut logits = Vec::new();
        for row in 0..tokens.len().min(positions) {
            logits.extend(self.model.row_logits(&stash, state, row)?);
        }
        Ok(logits)
    }

    /// Continues `prompt` (at least one token) by `count` tokens below `vocab`.
    ///
    /// # Errors
    /// Device errors; a prompt token outside the vocabulary.
    pub fn generate(
        &self,
        prompt: &[u32],
        count: usize,
        vocab: usize,
        sampling: Sampling,
    ) -> Result<Vec<u32>, TrainError> {
        let positions = self.model.batch().positions;
        let mut tokens = prompt.to_vec();
        let mut window = vec![0; positions];
        let ignore = vec![kernels::loss::IGNORE; positions];
        let doc_start = vec![0; positions];
        for drawn in 0..count {
            let recent = &tokens[tokens.len().saturating_sub(positions)..];
            window[..recent.len()].copy_from_slice(recent);
            let last = recent.len() - 1;
            let inputs = Inputs { tokens: &window, targets: &ignore, doc_start: &doc_start };
            let state = State {
                weights: &self.weights,
                router_bias: &self.router_bias,
                loads: &self.loads,
            };
            let stash = self.model.forward(&inputs, state, &mut NoHooks)?;
            let logits = self.model.row_logits(&stash, state, last)?;
            tokens.push(draw(&logits[..vocab], sampling, drawn as u64));
        }
        Ok(tokens.split_off(prompt.len()))
    }
}

impl Trainer<NativeEngine> {
    /// Ends training: frees the large buffers but the weights, and returns what draws tokens from
    /// them. It needs no more than the micro-batch did.
    ///
    /// # Errors
    /// Memory.
    pub fn into_sampler(mut self) -> Result<(Sampler, Dataset), TrainError> {
        self.ranks.settle()?;
        let Trainer { plan, ranks, dataset, engine, memory, optimizer, stream, .. } = self;
        let Memory { weights, grads, .. } = memory;
        let (architecture, bias) =
            (engine.model.architecture().clone(), engine.router_bias.clone());
        drop((engine, optimizer, grads, ranks));
        let (positions, bucket) = (plan.batch.positions, plan.bucket_elements);
        let device = stream.device();
        let sampler = Sampler::new(device, &architecture, positions, bucket, &weights, &bias)?;
        Ok((sampler, dataset))
    }
}

fn draw(logits: &[f32], sampling: Sampling, counter: u64) -> u32 {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    if sampling.temperature <= 0.0 {
        return order[0] as u32;
    }
    if sampling.top_k > 0 {
        order.truncate(sampling.top_k);
    }
    let most = f64::from(logits[order[0]]);
    let weight = |&i: &usize| ((f64::from(logits[i]) - most) / sampling.temperature).exp();
    let total: f64 = order.iter().map(weight).sum();
    let key = [sampling.seed.to_le_bytes(), counter.to_le_bytes()].concat();
    let hash = blake3::hash(&key);
    let bits = u64::from_le_bytes(hash.as_bytes()[..8].try_into().unwrap_or([0; 8]));
    let mut rest = (bits >> 11) as f64 / (1_u64 << 53) as f64 * total;
    for i in &order {
        rest -= weight(i);
        if rest < 0.0 {
            return *i as u32;
        }
    }
    order[order.len() - 1] as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_follow_the_distribution() {
        let logits = [0.0, 3.0_f32.ln(), f32::NEG_INFINITY];
        let sampling = Sampling { temperature: 1.0, top_k: 0, seed: 5 };
        let ones = (0..4000).filter(|&i| draw(&logits, sampling, i) == 1).count();
        assert!((2900..3100).contains(&ones), "{ones}");
        assert!((0..99).all(|i| draw(&logits, Sampling { top_k: 1, ..sampling }, i) == 1));
        assert_eq!(draw(&logits, Sampling { temperature: 0.0, ..sampling }, 0), 1);
    }
}
