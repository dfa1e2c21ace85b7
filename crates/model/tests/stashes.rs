//! Several micro-batches in flight: whatever the order of their passes, the gradients are the same.

use device::{DType, Device, Tensor};
use kernels::Onto;
use model::config::MoeConfig;
use model::{
    Gradients, Inputs, MicroBatch, Model, ModelConfig, ModelError, NoHooks, Preset, Stash, State,
    Types, initialize,
};

/// Two micro-batches of a small mixture of experts.
struct Pair {
    model: Model,
    weights: Tensor,
    bias: Tensor,
    loads: Tensor,
    loss: Tensor,
    gradients: [Tensor; 2],
}

impl Pair {
    fn new(in_flight: usize) -> Pair {
        let moe = MoeConfig { experts: Some(4), d_ff: Some(16), ..MoeConfig::default() };
        let config = ModelConfig {
            preset: Some(Preset::TinyMoe),
            layers: Some(2),
            d_model: Some(24),
            heads: Some(4),
            head_dim: Some(8),
            moe: Some(moe),
            ..ModelConfig::default()
        };
        let a = config.resolve(64, 12).unwrap();
        let device = Device::guarded(1).unwrap();
        let batch = (MicroBatch { windows: 2, positions: 12 }, in_flight);
        let types = Types::stored_as(DType::F32);
        let model = Model::with_stashes(&device, &a, batch, 1 << 12, types).unwrap();
        let zeros = |dims: &[usize], dtype| device.zeros(dims, dtype).unwrap();
        let weights = zeros(&[model.flat().len], DType::F32);
        initialize(&device.stream(), &a, model.flat(), 3, &weights).unwrap();
        let gradients = [(); 2].map(|()| zeros(&[model.flat().len], DType::F32));
        Pair {
            bias: zeros(&[2, 4], DType::F32),
            loads: zeros(&[2, 4], DType::U32),
            loss: zeros(&[1], DType::F64),
            model,
            weights,
            gradients,
        }
    }

    fn state(&self) -> State<'_> {
        State { weights: &self.weights, router_bias: &self.bias, loads: &self.loads }
    }

    /// Micro-batch 0 or 1.
    fn forward(&self, which: u32) -> Result<Stash, ModelError> {
        let tokens: Vec<u32> = (0..24).map(|i| (i * 7 + which * 13) % 64).collect();
        let targets: Vec<u32> = tokens.iter().map(|token| (token * 5 + 1) % 64).collect();
        let inputs = Inputs { tokens: &tokens, targets: &targets, doc_start: &[0; 24] };
        self.model.forward(&inputs, self.state(), &mut NoHooks)
    }

    fn backward(&self, stash: Stash, which: usize) {
        let (flat, onto) = (&self.gradients[which], Onto::Overwrite);
        let to = Gradients { flat, onto, tokens: 24.0, loss: &self.loss };
        self.model.backward(stash, self.state(), to, &mut NoHooks).unwrap();
    }

    /// Bits of both gradients.
    fn bits(&self) -> [Vec<u32>; 2] {
        let read = |tensor: &Tensor| {
            let values: Vec<f32> = self.model.stream().to_vec(tensor).unwrap();
            values.into_iter().map(f32::to_bits).collect()
        };
        [read(&self.gradients[0]), read(&self.gradients[1])]
    }
}

#[test]
fn the_order_of_passes_changes_no_bit() {
    let alone = Pair::new(1);
    for which in 0..2 {
        let stash = alone.forward(which).unwrap();
        alone.backward(stash, which as usize);
    }
    let expected = alone.bits();
    assert_ne!(expected[0], expected[1]);
    // Both forward, then backward in either order.
    for order in [[0, 1], [1, 0]] {
        let pair = Pair::new(2);
        let mut stashes = [0, 1].map(|which| Some(pair.forward(which).unwrap()));
        for which in order {
            pair.backward(stashes[which].take().unwrap(), which);
        }
        assert!(pair.bits() == expected, "{order:?}");
    }
}

#[test]
fn more_than_were_planned_are_refused_until_one_is_given_back() {
    let pair = Pair::new(2);
    let (first, second) = (pair.forward(0).unwrap(), pair.forward(1).unwrap());
    assert!(matches!(pair.forward(0), Err(ModelError::InFlight { most: 2 })));
    // A pass that was not gone on with.
    drop(first);
    let again = pair.forward(0).unwrap();
    pair.backward(second, 1);
    pair.backward(again, 0);
    // Of another model.
    let stash = Pair::new(1).forward(0).unwrap();
    let refused = pair.model.evaluate(&stash, pair.state(), &pair.loss, &mut NoHooks).unwrap_err();
    assert_eq!(refused.to_string(), "this model's plan has no activations of another model");
}
