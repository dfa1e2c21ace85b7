//! Hooks hear of weights before they are read and of gradients once they are final.

use std::ops::Range;

use device::{DType, Device, Stream, Tensor};
use kernels::Onto;
use model::config::MoeConfig;
use model::{
    Gradients, HookError, Hooks, Inputs, MicroBatch, Model, ModelConfig, ModelError, NoHooks,
    Preset, State, Types, initialize,
};

const TOKENS: usize = 16;

/// A small model with experts after a dense layer; its embedding may be the head, too.
struct Small {
    model: Model,
    initial: Vec<f32>,
    weights: Tensor,
    gradients: Tensor,
    bias: Tensor,
    loads: Tensor,
    loss: Tensor,
}

impl Small {
    fn new(is_tied: bool) -> Small {
        let moe = MoeConfig {
            experts: Some(4),
            d_ff: Some(16),
            first_dense_layers: Some(1),
            ..MoeConfig::default()
        };
        let config = ModelConfig {
            preset: Some(Preset::TinyMoe),
            layers: Some(2),
            d_model: Some(24),
            heads: Some(4),
            head_dim: Some(8),
            d_ff: Some(32),
            tie_embeddings: Some(is_tied),
            moe: Some(moe),
            ..ModelConfig::default()
        };
        let a = config.resolve(64, TOKENS).unwrap();
        let device = Device::guarded(1).unwrap();
        let batch = MicroBatch { windows: 1, positions: TOKENS };
        let types = Types::stored_as(DType::F32);
        let model = Model::new(&device, &a, batch, 1 << 10, types).unwrap();
        let zeros = |dims: &[usize], dtype| device.zeros(dims, dtype).unwrap();
        let len = model.flat().len;
        let weights = zeros(&[len], DType::F32);
        initialize(&device.stream(), &a, model.flat(), 3, &weights).unwrap();
        Small {
            initial: device.stream().to_vec(&weights).unwrap(),
            gradients: zeros(&[len], DType::F32),
            bias: zeros(&[2, 4], DType::F32),
            loads: zeros(&[2, 4], DType::U32),
            loss: zeros(&[1], DType::F64),
            model,
            weights,
        }
    }

    fn state(&self) -> State<'_> {
        State { weights: &self.weights, router_bias: &self.bias, loads: &self.loads }
    }

    fn stream(&self) -> &Stream {
        self.model.stream()
    }

    fn poison(&self) {
        let nothing = vec![f32::NAN; self.initial.len()];
        self.stream().copy_in(&self.weights, &nothing).unwrap();
    }

    /// Both passes; the loss and the bits of the gradients.
    fn pass(
        &self,
        hooks: &mut dyn Hooks,
        between: impl Fn(),
    ) -> Result<(f64, Vec<u32>), ModelError> {
        let tokens: Vec<u32> = (0..TOKENS as u32).map(|i| i * 7 % 64).collect();
        let targets: Vec<u32> = tokens.iter().map(|token| (token * 5 + 1) % 64).collect();
        let inputs = Inputs { tokens: &tokens, targets: &targets, doc_start: &[0; TOKENS] };
        let stash = self.model.forward(&inputs, self.state(), hooks)?;
        between();
        let to = Gradients {
            flat: &self.gradients,
            onto: Onto::Overwrite,
            tokens: TOKENS as f64,
            loss: &self.loss,
        };
        self.model.backward(stash, self.state(), to, hooks)?;
        let loss = self.stream().to_vec::<f64>(&self.loss).unwrap()[0];
        let gradients = self.stream().to_vec::<f32>(&self.gradients).unwrap();
        Ok((loss, gradients.into_iter().map(f32::to_bits).collect()))
    }
}

/// Brings weights when they are needed, and notes what it hears.
struct Late<'a> {
    small: &'a Small,
    needed: Vec<Range<usize>>,
    ready: Vec<Range<usize>>,
    /// Gradients when they were said to be ready.
    seen: Vec<u32>,
}

impl Hooks for Late<'_> {
    fn need(&mut self, weights: Range<usize>) -> Result<(), HookError> {
        let to = self.small.weights.flat(weights.clone())?;
        self.small.stream().copy_in(&to, &self.small.initial[weights.clone()])?;
        self.needed.push(weights);
        Ok(())
    }

    fn ready(&mut self, gradients: Range<usize>) -> Result<(), HookError> {
        let all = self.small.stream().to_vec::<f32>(&self.small.gradients)?;
        for element in gradients.clone() {
            self.seen[element] = all[element].to_bits();
        }
        self.ready.push(gradients);
        Ok(())
    }
}

#[test]
fn weights_are_needed_before_they_are_read_and_gradients_ready_when_final() {
    for is_tied in [false, true] {
        let small = Small::new(is_tied);
        let expected = small.pass(&mut NoHooks, || ()).unwrap();
        small.poison();
        let seen = vec![f32::NAN.to_bits(); small.initial.len()];
        let mut late = Late { small: &small, needed: Vec::new(), ready: Vec::new(), seen };
        let got = small.pass(&mut late, || small.poison()).unwrap();
        assert!(got == expected, "tied {is_tied}: {} and {}", got.0, expected.0);
        assert!(late.seen == expected.1, "tied {is_tied}: final when it was said");
        // From the end to the beginning, without a gap.
        let mut end = small.initial.len();
        for range in &late.ready {
            assert_eq!(range.end, end, "{:?}", late.ready);
            end = range.start;
        }
        assert_eq!(end, 0);
        // Both halves of each layer, the embedding, the last norm, and a head of its own.
        assert_eq!(late.ready.len(), 6 + usize::from(!is_tied));
        assert_eq!(late.needed.first(), late.ready.last());
    }
}

/// Refuses at its `at`th call.
struct Refusing {
    at: usize,
}

#[derive(Debug, thiserror::Error)]
#[error("peer 3 is gone")]
struct Gone;

impl Refusing {
    fn call(&mut self) -> Result<(), HookError> {
        self.at = self.at.wrapping_sub(1);
        if self.at == usize::MAX { Err(Gone.into()) } else { Ok(()) }
    }
}

impl Hooks for Refusing {
    fn need(&mut self, _weights: Range<usize>) -> Result<(), HookError> {
        self.call()
    }

    fn ready(&mut self, _gradients: Range<usize>) -> Result<(), HookError> {
        self.call()
    }
}

#[test]
fn a_hook_that_fails_ends_the_pass_with_its_own_error() {
    let small = Small::new(false);
    let expected = small.pass(&mut NoHooks, || ()).unwrap();
    let calls = (0..).take_while(|&at| match small.pass(&mut Refusing { at }, || ()) {
        Err(ModelError::Hook(error)) => error.downcast_ref::<Gone>().is_some(),
        other => {
            assert!(other.unwrap() == expected);
            false
        }
    });
    // Six needs forward, six backward (the embedding's none, the head's one) and seven readies.
    assert_eq!(calls.count(), 6 + 6 + 7);
    // The stash of a pass that failed is free again.
    assert!(small.pass(&mut NoHooks, || ()).unwrap() == expected);
}
