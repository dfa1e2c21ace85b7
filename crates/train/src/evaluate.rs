//! Loss on the validation split, shared out over the ranks in whole micro-batches.

use data::{SampleMut, Split};
use kernels::loss::IGNORE;
use model::{Inputs, NoHooks};

use crate::event::Evaluation;
use crate::trainer::Trainer;
use crate::{Engine, TrainError};

impl<E: Engine> Trainer<E> {
    /// Mean loss over the first `eval_samples` validation windows. Losses are added in window
    /// order, whoever computed them.
    ///
    /// # Errors
    /// As a step.
    pub fn evaluate(&mut self) -> Result<Evaluation, TrainError> {
        let start = std::time::Instant::now();
        self.ranks.settle()?;
        let available = self.dataset.validation_samples();
        let wanted = match self.config.train.eval_samples {
            0 => available,
            most => most.min(available),
        };
        let per_batch = self.plan.batch.windows as u64;
        let chunks = wanted.div_ceil(per_batch);
        let world = self.ranks.world.size() as u64;
        let mut message = Vec::new();
        for chunk in (self.ranks.rank() as u64..chunks).step_by(world as usize) {
            let windows = chunk * per_batch..wanted.min((chunk + 1) * per_batch);
            let (loss, tokens, bytes) = self.validate(windows)?;
            message.extend_from_slice(&loss.to_le_bytes());
            message.extend_from_slice(&tokens.to_le_bytes());
            message.extend_from_slice(&bytes.unwrap_or(u64::MAX).to_le_bytes());
        }
        let all = self.ranks.training.all_gather_bytes(&message)?;
        let (mut loss, mut tokens, mut bytes) = (0.0, 0_u64, Some(0_u64));
        for chunk in 0..chunks {
            let (rank, row) = ((chunk % world) as usize, (chunk / world) as usize);
            let got = all[rank].len();
            let expected = 24 * (row + 1);
            let entry = all[rank].get(24 * row..expected);
            let entry = entry.ok_or(TrainError::Vote { rank, got, expected })?;
            let word = |i: usize| entry[8 * i..8 * i + 8].try_into().unwrap_or([0; 8]);
            loss += f64::from_le_bytes(word(0));
            tokens += u64::from_le_bytes(word(1));
            bytes = match (bytes, u64::from_le_bytes(word(2))) {
                (Some(sum), bytes) if bytes != u64::MAX => Some(sum + bytes),
                _ => None,
            };
        }
        Ok(Evaluation {
            step: self.step,
            loss: loss / tokens.max(1) as f64,
            bits_per_byte: bytes
                .filter(|&b| b > 0)
                .map(|b| loss / std::f64::consts::LN_2 / b as f64),
            samples: wanted,
            ms: start.elapsed().as_secs_f64() * 1e3,
        })
    }

    /// Summed loss, targets and target bytes of some validation windows, at most a micro-batch.
    fn validate(
        &mut self,
        windows: std::ops::Range<u64>,
    ) -> Result<(f64, u64, Option<u64>), TrainError> {
        let positions = self.plan.batch.positions;
        // Rows without a window take part in routing, hence in the rounding of the other rows:
        // they must not hold what this rank happened to read before.
        self.host.tokens.fill(0);
        self.host.doc_start.fill(0);
        self.host.targets.fill(IGNORE);
        let (mut tokens, mut bytes) = (0, Some(0));
        for (row, index) in windows.enumerate() {
            let part = row * positions..(row + 1) * positions;
            let mut out = SampleMut {
                inputs: &mut self.host.tokens[part.clone()],
                targets: &mut self.host.targets[part.clone()],
                doc_start: &mut self.host.doc_start[part],
            };
            let read = || self.dataset.read(Split::Validation, index, &mut out);
            let info = device::work::calling("read of a sample", None, read)?;
            tokens += u64::from(info.target_tokens);
            bytes = bytes.zip(info.target_bytes).map(|(a, b)| a + b);
        }
        let inputs = Inputs {
            tokens: &self.host.tokens,
            targets: &self.host.targets,
            doc_start: &self.host.doc_start,
        };
        let crate::trainer::Memory { weights, loss, .. } = &self.memory;
        let stash = self.engine.forward(&inputs, weights, &mut NoHooks)?;
        self.engine.evaluate(stash, weights, loss, &mut NoHooks)?;
        let loss = self.engine.stream().to_vec::<f64>(&self.memory.loss)?[0];
        Ok((loss, tokens, bytes))
    }
}
