//! Every preset, narrowed: gradients against central differences in f64, and bf16 weights against
//! f32 weights of the same values.

mod narrow;

use device::{DType, Device, Tensor};
use half::bf16;
use kernels::Onto;
use model::config::{LatentConfig, MoeConfig};
use model::{
    Architecture, Gradients, Inputs, MicroBatch, Model, ModelConfig, NoHooks, Preset, Stash, State,
    Types, initialize,
};
use narrow::{LATENT, narrowed};

fn experts(moe: &MoeConfig) -> MoeConfig {
    MoeConfig {
        experts: Some(if moe.groups.is_some() { 8 } else { 6 }),
        top_k: Some(3),
        groups: moe.groups.map(|_| 4),
        top_groups: moe.top_groups.map(|_| 2),
        d_ff: Some(16),
        first_dense_layers: moe.first_dense_layers.map(|_| 1),
        ..moe.clone()
    }
}

/// Every preset, and latent attention whose queries are made by one matrix.
fn cases() -> Vec<(String, Architecture)> {
    let presets = Preset::ALL.map(|preset| (format!("{preset:?}"), narrowed(preset, experts)));
    let latent = Some(LatentConfig { q_rank: Some(0), ..LATENT });
    let whole = ModelConfig { latent, ..narrowed(Preset::DeepseekV3, experts) };
    let all = presets.into_iter().chain([("DeepseekV3, whole queries".to_owned(), whole)]);
    all.map(|(name, config)| (name, config.resolve(96, 20).unwrap())).collect()
}

/// Without the losses whose gradients are added but which are not reported.
fn cross_entropy_alone(mut a: Architecture) -> Architecture {
    if let Some(moe) = &mut a.moe {
        (moe.aux_loss, moe.z_loss) = (0.0, 0.0);
    }
    a
}

struct Harness {
    model: Model,
    weights: Tensor,
    bias: Tensor,
    loads: Tensor,
    loss: Tensor,
    /// Tokens, targets, and where documents begin.
    inputs: [Vec<u32>; 3],
}

impl Harness {
    fn new(a: &Architecture, device: &Device, compute: DType, stored: DType) -> Harness {
        let batch = MicroBatch { windows: 2, positions: 20 };
        let types = Types { compute, weights: stored };
        let model = Model::new(device, a, batch, 1 << 12, types).unwrap();
        let weights = device.zeros(&[model.flat().len], stored).unwrap();
        let stream = device.stream();
        initialize(&stream, a, model.flat(), 3, &weights).unwrap();
        let experts = a.moe.as_ref().map_or(1, |moe| moe.experts);
        let moe_layers = a.moe_layers().max(1);
        let bias = device.zeros(&[moe_layers, experts], compute).unwrap();
        let loads = device.zeros(&[moe_layers, experts], DType::U32).unwrap();
        let loss = device.zeros(&[1], DType::F64).unwrap();
        let mut token = 5_u32;
        let mut next = || {
            token = (token * 37 + 11) % 96;
            token
        };
        let tokens: Vec<u32> = (0..40).map(|_| next()).collect();
        let mut targets: Vec<u32> = (0..40).map(|_| next()).collect();
        targets[8] = kernels::loss::IGNORE;
        let doc_start: Vec<u32> = (0..40).map(|i| if i % 20 < 9 { 0 } else { 9 }).collect();
        let inputs = [tokens, targets, doc_start];
        Harness { model, weights, bias, loads, loss, inputs }
    }

    fn forward(&self) -> Stash {
        let [tokens, targets, doc_start] = &self.inputs;
        let inputs = Inputs { tokens, targets, doc_start };
        self.model.forward(&inputs, self.state(), &mut NoHooks).unwrap()
    }

    fn state(&self) -> State<'_> {
        State { weights: &self.weights, router_bias: &self.bias, loads: &self.loads }
    }

    fn loss(&self) -> f64 {
        self.model.evaluate(&self.forward(), self.state(), &self.loss, &mut NoHooks).unwrap();
        self.model.stream().to_vec::<f64>(&self.loss).unwrap()[0]
    }

    /// Runs both passes; the summed loss.
    fn backward(&self, flat: &Tensor, onto: Onto) -> f64 {
        let stash = self.forward();
        let to = Gradients { flat, onto, tokens: 39.0, loss: &self.loss };
        self.model.backward(stash, self.state(), to, &mut NoHooks).unwrap();
        self.model.stream().to_vec(&self.loss).unwrap()[0]
    }

    fn nudge(&self, element: usize, by: f64) {
        let one = self.weights.flat(element..element + 1).unwrap();
        let stream = self.model.stream();
        let now: f64 = stream.to_vec(&one).unwrap()[0];
        stream.copy_in(&one, &[now + by]).unwrap();
    }
}

/// Slope of the loss along one weight, from four points: the error is of the step's fourth power.
fn slope(harness: &Harness, element: usize) -> f64 {
    const STEP: f64 = 1e-4;
    let mut at = 0.0;
    let mut loss = |to: f64| {
        harness.nudge(element, (to - at) * STEP);
        at = to;
        harness.loss()
    };
    let (far, near) = (loss(-2.0) - loss(2.0), loss(1.0) - loss(-1.0));
    harness.nudge(element, -at * STEP);
    (8.0 * near + far) / (12.0 * STEP)
}

fn check(case: &str, a: Architecture, device: &Device) {
    /// Elements of each tensor, from the first to the last.
    const SAMPLES: usize = 8;
    /// Allowed error over the root mean square of the tensor's gradient.
    const RELATIVE: f64 = 5e-8;
    let a = cross_entropy_alone(a);
    let harness = Harness::new(&a, device, DType::F64, DType::F64);
    let stream = harness.model.stream();
    let grads = device.zeros(harness.weights.dims(), DType::F64).unwrap();
    let from_backward = harness.backward(&grads, Onto::Overwrite);
    let gradient: Vec<f64> = stream.to_vec(&grads).unwrap();
    let plain = harness.loss();
    assert!((plain - from_backward).abs() < 1e-10 * plain, "{case}: {plain} {from_backward}");
    for (index, tensor) in harness.model.schema().tensors.iter().enumerate() {
        let range = harness.model.flat().range(index);
        let squares: f64 = gradient[range.clone()].iter().map(|g| g * g).sum();
        let rms = (squares / range.len() as f64).sqrt();
        for sample in 0..SAMPLES.min(range.len()) {
            let place = sample * (range.len() - 1) / (SAMPLES - 1);
            let (got, slope) =
                (gradient[range.start + place], slope(&harness, range.start + place));
            assert!(
                (got - slope).abs() < RELATIVE * rms,
                "{case} {} [{place}]: {got} against {slope}, rms {rms}",
                tensor.name,
            );
        }
    }
    harness.backward(&grads, Onto::Add);
    let twice: Vec<f64> = stream.to_vec(&grads).unwrap();
    for (once, twice) in gradient.iter().zip(twice) {
        assert!((2.0 * once - twice).abs() < 1e-9 * once.abs().max(1.0), "{case}");
    }
}

#[test]
fn gradients_match_central_differences() {
    let device = Device::cpu(2).unwrap();
    for (case, a) in cases() {
        check(&case, a, &device);
    }
}

#[test]
fn the_guarded_device_agrees() {
    let device = Device::guarded(1).unwrap();
    let guarded = ["TinyMoe", "DeepseekV3"];
    let mut seen = 0;
    for (case, a) in cases().into_iter().filter(|(case, _)| guarded.contains(&case.as_str())) {
        check(&case, a, &device);
        seen += 1;
    }
    assert_eq!(seen, guarded.len());
}

/// Weights stored as bf16 are widened exactly and computed with as f32.
#[test]
fn bf16_weights_give_the_bits_of_f32_weights_of_their_values() {
    let device = Device::cpu(2).unwrap();
    for (case, a) in cases() {
        let narrow = Harness::new(&a, &device, DType::F32, DType::Bf16);
        let wide = Harness::new(&a, &device, DType::F32, DType::F32);
        let stream = wide.model.stream();
        let unrounded: Vec<f32> = stream.to_vec(&wide.weights).unwrap();
        let stored: Vec<bf16> = narrow.model.stream().to_vec(&narrow.weights).unwrap();
        let rounded: Vec<f32> = stored.iter().map(|w| w.to_f32()).collect();
        assert_ne!(unrounded, rounded, "{case}: rounding changes nothing");
        let run = |harness: &Harness| {
            let grads = device.zeros(harness.weights.dims(), DType::F32).unwrap();
            let loss = harness.backward(&grads, Onto::Overwrite).to_bits();
            let gradient: Vec<f32> = harness.model.stream().to_vec(&grads).unwrap();
            assert_eq!(harness.loss().to_bits(), loss, "{case}: evaluation");
            (loss, gradient)
        };
        let (other_loss, _) = run(&wide);
        stream.copy_in(&wide.weights, &rounded).unwrap();
        let ((narrow_loss, narrow), (wide_loss, wide)) = (run(&narrow), run(&wide));
        assert_ne!(other_loss, wide_loss, "{case}: the loss does not feel the rounding");
        assert_eq!(narrow_loss, wide_loss, "{case}: loss");
        assert!(wide.iter().any(|g| *g != 0.0));
        let differ = narrow.iter().zip(&wide).position(|(a, b)| a.to_bits() != b.to_bits());
        assert_eq!(differ, None, "{case}: first flat element whose gradients differ");
    }
}
