//! One kernel with its gradient, beside autograd and central differences, in f64.

use candle_core::Var;
use device::{Device, Stream, Tensor};
use kernels::Onto;

use super::random::Random;
use super::relative_error;

/// Largest relative error of an output or gradient: both sides round the same sums in another
/// order. Measured: at most 4e-13.
const TOLERANCE: f64 = 1e-11;

/// Step of the central differences. Their error is the third derivative times h², and the
/// rounding of the sum over all outputs over h: about 1e-9 each.
const STEP: f64 = 1e-5;

/// Error of a central difference, relative to a slope of at least 1. Measured: at most 4e-8.
const SLOPE_TOLERANCE: f64 = 1e-6;

/// Random shapes and operands of one op.
const CASES: u64 = 8;

/// Elements of one operand that central differences try.
const NUDGED: usize = 12;

/// The content of memory before a kernel writes it: a kernel that adds where it should overwrite,
/// or skips an element, shows.
const STALE: f64 = 0.5;

/// A differentiable kernel.
pub trait Op {
    /// Said when a comparison fails.
    fn name(&self) -> String;

    /// Shapes of the differentiable operands.
    fn shapes(&self) -> Vec<Vec<usize>>;

    /// The outputs, flattened.
    fn forward(&self, k: &Kernels, x: &[Vec<f64>]) -> Vec<f64>;

    /// Gradients of `Σ dout·forward(x)` for each operand.
    fn backward(&self, k: &Kernels, x: &[Vec<f64>], dout: &[f64]) -> Vec<Vec<f64>>;

    /// The outputs on candle, of one shape or another with the same order of elements.
    fn reference(&self, x: &[candle_core::Tensor]) -> candle_core::Result<candle_core::Tensor>;

    /// The gradient of the outputs' plain sum is the only one that the kernel knows.
    fn sum_only(&self) -> bool {
        false
    }
}

/// A device, with memory that is never clean.
pub struct Kernels {
    pub device: Device,
    pub stream: Stream,
}

/// As the flag of a case says it.
pub fn onto(add: bool) -> Onto {
    if add { Onto::Add } else { Onto::Overwrite }
}

impl Kernels {
    /// Runs an operation.
    pub fn launch(&self, operation: impl kernels::Op) {
        operation.launch(&self.stream).unwrap();
    }

    pub fn new() -> Kernels {
        let device = Device::cpu(2).unwrap();
        Kernels { stream: device.stream(), device }
    }

    pub fn tensor(&self, shape: &[usize], values: &[f64]) -> Tensor {
        self.device.tensor(shape, values).unwrap()
    }

    pub fn integers(&self, shape: &[usize], values: &[u32]) -> Tensor {
        self.device.tensor(shape, values).unwrap()
    }

    /// Memory to be overwritten, or added to.
    pub fn stale(&self, shape: &[usize]) -> Tensor {
        self.tensor(shape, &vec![STALE; shape.iter().product()])
    }

    pub fn read(&self, tensor: &Tensor) -> Vec<f64> {
        self.stream.to_vec(tensor).unwrap()
    }

    /// The sum that a kernel which adds has added to stale memory.
    pub fn read_added(&self, tensor: &Tensor, added: bool) -> Vec<f64> {
        let before = if added { STALE } else { 0.0 };
        self.read(tensor).into_iter().map(|x| x - before).collect()
    }
}

/// Checks the ops that `op` makes at random.
pub fn each_case(op: impl Fn(&mut Random) -> Box<dyn Op>) {
    let k = Kernels::new();
    for case in 0..CASES {
        let mut random = Random::new(case);
        let op = op(&mut random);
        check(&k, op.as_ref(), &mut random);
    }
}

/// Compares an op with autograd and with central differences, on random operands.
fn check(k: &Kernels, op: &dyn Op, random: &mut Random) {
    let name = op.name();
    let shapes = op.shapes();
    let x: Vec<Vec<f64>> =
        shapes.iter().map(|shape| random.values(shape.iter().product(), 2.0)).collect();
    let out = op.forward(k, &x);
    let dout = match op.sum_only() {
        true => vec![1.0; out.len()],
        false => random.values(out.len(), 1.0),
    };
    let gradients = op.backward(k, &x, &dout);

    let (expected, expected_gradients) = autograd(op, &shapes, &x, &dout).unwrap();
    let error = relative_error(&out, &expected, 1e-3);
    assert!(error < TOLERANCE, "{name}: output error {error:e}");
    for (i, (gradient, expected)) in gradients.iter().zip(&expected_gradients).enumerate() {
        let error = relative_error(gradient, expected, 1e-3);
        assert!(error < TOLERANCE, "{name}: gradient of operand {i}: error {error:e}");
    }

    let objective = |x: &[Vec<f64>]| -> f64 {
        op.forward(k, x).iter().zip(&dout).map(|(out, d)| out * d).sum()
    };
    for (i, gradient) in gradients.iter().enumerate() {
        for _ in 0..NUDGED.min(gradient.len()) {
            let element = random.size(0..=gradient.len() - 1);
            let mut moved = x.clone();
            moved[i][element] += STEP;
            let plus = objective(&moved);
            moved[i][element] = x[i][element] - STEP;
            let slope = (plus - objective(&moved)) / (2.0 * STEP);
            let error = (gradient[element] - slope).abs() / slope.abs().max(1.0);
            assert!(
                error < SLOPE_TOLERANCE,
                "{name}: gradient of operand {i} [{element}]: {} against slope {slope}",
                gradient[element]
            );
        }
    }
}

type Flat = Vec<f64>;

fn autograd(
    op: &dyn Op,
    shapes: &[Vec<usize>],
    x: &[Flat],
    dout: &[f64],
) -> candle_core::Result<(Flat, Vec<Flat>)> {
    let cpu = &candle_core::Device::Cpu;
    let variable = |(shape, x): (&Vec<usize>, &Flat)| Var::from_slice(x, shape.as_slice(), cpu);
    let variables: Vec<Var> =
        shapes.iter().zip(x).map(variable).collect::<candle_core::Result<_>>()?;
    let operands: Vec<candle_core::Tensor> =
        variables.iter().map(|variable| variable.as_tensor().clone()).collect();
    let out = op.reference(&operands)?.flatten_all()?;
    let store = (&out * candle_core::Tensor::new(dout, cpu)?)?.sum_all()?.backward()?;
    let gradient = |variable: &Var| match store.get(variable) {
        Some(gradient) => gradient.flatten_all()?.to_vec1(),
        None => Ok(vec![0.0; variable.elem_count()]),
    };
    let gradients = variables.iter().map(gradient).collect::<candle_core::Result<_>>()?;
    Ok((out.to_vec1()?, gradients))
}
