//! Every preset, narrowed: gradients against central differences in f64.

use device::{DType, Device, Tensor};
use model::config::MoeConfig;
use model::{
    Architecture, Gradients, Inputs, MicroBatch, Model, ModelConfig, NoHooks, Preset, State,
    initialize,
};

/// Two layers of a preset with every feature it has.
fn narrowed(preset: Preset) -> Architecture {
    let full = preset.config();
    let grouped = full.kv_heads != full.heads;
    let config = ModelConfig {
        preset: Some(preset),
        vocab_size: Some(96),
        layers: Some(2),
        d_model: Some(24),
        heads: Some(4),
        kv_heads: Some(if grouped { 2 } else { 4 }),
        head_dim: Some(8),
        d_ff: Some(40),
        init_std: Some(0.25),
        moe: full.moe.as_ref().map(|moe| MoeConfig {
            experts: Some(6),
            top_k: Some(3),
            d_ff: Some(16),
            // The reported loss is the cross-entropy alone.
            aux_loss: Some(0.0),
            z_loss: Some(0.0),
            ..moe.clone()
        }),
        ..ModelConfig::default()
    };
    config.resolve(96, 20).unwrap()
}

struct Harness {
    model: Model,
    weights: Tensor,
    bias: Tensor,
    loads: Tensor,
    loss: Tensor,
}

impl Harness {
    fn new(a: &Architecture, device: &Device) -> Harness {
        let batch = MicroBatch { windows: 2, positions: 20 };
        let model = Model::new(device, a, batch, 1 << 12, DType::F64, false).unwrap();
        let weights = device.zeros(&[model.flat().len], DType::F64).unwrap();
        let stream = device.stream();
        initialize(&stream, a, model.schema(), model.flat(), 3, &weights).unwrap();
        let experts = a.moe.as_ref().map_or(1, |moe| moe.experts);
        let moe_layers = a.moe_layers().max(1);
        let bias = device.zeros(&[moe_layers, experts], DType::F64).unwrap();
        let loads = device.zeros(&[moe_layers, experts], DType::U32).unwrap();
        let loss = device.zeros(&[1], DType::F64).unwrap();
        let harness = Harness { model, weights, bias, loads, loss };
        let mut token = 5_u32;
        let mut next = || {
            token = (token * 37 + 11) % 96;
            token
        };
        let tokens: Vec<u32> = (0..40).map(|_| next()).collect();
        let mut targets: Vec<u32> = (0..40).map(|_| next()).collect();
        targets[8] = kernels::loss::IGNORE;
        let doc_start: Vec<u32> = (0..40).map(|i| if i % 20 < 9 { 0 } else { 9 }).collect();
        let inputs = Inputs { tokens: &tokens, targets: &targets, doc_start: &doc_start };
        harness.model.load(&inputs).unwrap();
        harness
    }

    fn state(&self) -> State<'_> {
        State { weights: &self.weights, router_bias: &self.bias, loads: &self.loads }
    }

    fn loss(&self) -> f64 {
        self.model.forward(self.state(), &mut NoHooks).unwrap();
        self.model.evaluate(self.state(), &self.loss).unwrap();
        self.model.stream().to_vec::<f64>(&self.loss).unwrap()[0]
    }

    fn gradients(&self, flat: &Tensor, accumulate: bool) -> Vec<f64> {
        self.model.forward(self.state(), &mut NoHooks).unwrap();
        let to = Gradients { flat, accumulate, tokens: 39.0, loss: &self.loss };
        self.model.backward(self.state(), to, &mut NoHooks).unwrap();
        self.model.stream().to_vec(flat).unwrap()
    }

    fn nudge(&self, element: usize, by: f64) {
        let one = self.weights.flat(element..element + 1).unwrap();
        let stream = self.model.stream();
        let now: f64 = stream.to_vec(&one).unwrap()[0];
        stream.copy_in(&one, &[now + by]).unwrap();
    }
}

fn check(preset: Preset, device: &Device) {
    let a = narrowed(preset);
    let harness = Harness::new(&a, device);
    let grads = device.zeros(harness.weights.dims(), DType::F64).unwrap();
    let gradient = harness.gradients(&grads, false);
    let from_backward: f64 = harness.model.stream().to_vec(&harness.loss).unwrap()[0];
    let plain = harness.loss();
    assert!((plain - from_backward).abs() < 1e-10 * plain, "{preset:?}: {plain} {from_backward}");
    let step = 1e-5;
    for (index, tensor) in harness.model.schema().tensors.iter().enumerate() {
        let range = harness.model.flat().range(index);
        for element in [range.start, range.start + range.len() / 2, range.end - 1] {
            harness.nudge(element, step);
            let plus = harness.loss();
            harness.nudge(element, -2.0 * step);
            let slope = (plus - harness.loss()) / (2.0 * step);
            harness.nudge(element, step);
            let error = (gradient[element] - slope).abs();
            let bound = 1e-6 * slope.abs().max(1.0);
            assert!(
                error < bound,
                "{preset:?} {} [{}]: {} against {slope}",
                tensor.name,
                element - range.start,
                gradient[element],
            );
        }
    }
    let twice = harness.gradients(&grads, true);
    for (once, twice) in gradient.iter().zip(twice) {
        assert!((2.0 * once - twice).abs() < 1e-9 * once.abs().max(1.0), "{preset:?}");
    }
}

#[test]
fn gradients_match_central_differences() {
    let device = Device::cpu(2).unwrap();
    for preset in Preset::ALL {
        check(preset, &device);
    }
}

#[test]
fn the_guarded_device_agrees() {
    check(Preset::TinyMoe, &Device::guarded(1).unwrap());
}
