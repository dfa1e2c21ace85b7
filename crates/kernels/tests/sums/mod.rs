//! Ordered sums on any device, against a plain stack.

use device::{DType, Device, DeviceError, Element, Tensor};
use half::{bf16, f16};
use kernels::KernelError;
use kernels::ordered_sum::{OrderedSum, Summation};
use layout::{Program, ReduceOp, Tree};

/// A value whose sums depend on their order.
fn value(input: usize, index: usize) -> f64 {
    let hash = (input as u64 + 1)
        .wrapping_mul(0x9E37_79B9_7F4A_7C15)
        .wrapping_add(index as u64)
        .wrapping_mul(0xBF58_476D_1CE4_E5B9);
    10_f64.powi((hash >> 61) as i32 - 4) * ((hash >> 20) as u32 as f64 / 2e9 - 1.0)
}

pub trait Input: Element {
    type Sum: Element + std::ops::Add<Output = Self::Sum> + PartialEq;
    fn of(value: f64) -> Self;
    fn widened(self) -> Self::Sum;
}

macro_rules! input {
    ($type:ty, $sum:ty, $of:expr, $widened:expr) => {
        impl Input for $type {
            type Sum = $sum;
            fn of(value: f64) -> Self {
                $of(value)
            }
            fn widened(self) -> $sum {
                $widened(self)
            }
        }
    };
}
input!(f32, f32, |x| x as f32, |x| x);
input!(f64, f64, |x| x, |x| x);
input!(bf16, f32, bf16::from_f64, bf16::to_f32);
input!(f16, f32, f16::from_f64, f16::to_f32);

/// The program by which one owner sums the partials of `world` ranks.
pub fn program(radices: &[usize], world: usize) -> (Program, usize) {
    let tree = Tree::new(radices).unwrap();
    let nodes = tree.partials(world).unwrap().concat();
    (tree.combine(&nodes), nodes.len())
}

/// A program whose stack holds all of its inputs.
pub fn tower(inputs: usize) -> Program {
    let pushes = (0..inputs).map(ReduceOp::Push);
    let ops = pushes.chain((1..inputs).map(|_| ReduceOp::Fold)).collect();
    Program { ops, depth: inputs }
}

fn expected<T: Input>(program: &Program, index: usize) -> T::Sum {
    let input = |input| T::of(value(input, index)).widened();
    let mut stack: Vec<T::Sum> = Vec::new();
    for op in &program.ops {
        match *op {
            ReduceOp::Push(i) => stack.push(input(i)),
            ReduceOp::AddInput(i) => {
                let top = stack.pop().unwrap();
                stack.push(top + input(i));
            }
            ReduceOp::Fold => {
                let (top, below) = (stack.pop().unwrap(), stack.pop().unwrap());
                stack.push(below + top);
            }
        }
    }
    stack[0]
}

/// Sums `len` elements of tensors that start `offset` elements after an aligned place.
pub struct Case<'a> {
    pub program: &'a Program,
    pub inputs: usize,
    pub len: usize,
    pub offset: usize,
    /// Which input is the output.
    pub in_place: Option<usize>,
}

impl Case<'_> {
    /// Runs it and compares every bit.
    pub fn check<T: Input>(&self, device: &Device) -> Result<(), KernelError> {
        let Case { program, inputs, len, offset, in_place } = *self;
        let tensor = |input: usize| {
            let values: Vec<T> = (0..len).map(|index| T::of(value(input, index))).collect();
            let whole = device.zeros(&[offset + len + 1], T::DTYPE).unwrap();
            let part = whole.flat(offset..offset + len).unwrap();
            device.stream().copy_in(&part, &values).unwrap();
            part
        };
        let tensors: Vec<Tensor> = (0..inputs).map(tensor).collect();
        let whole = device.zeros(&[offset + len + 1], T::Sum::DTYPE)?;
        let separate = whole.flat(offset..offset + len)?;
        let out = in_place.map_or(separate, |input| tensors[input].clone());
        let sum = OrderedSum::new(program, inputs)?;
        assert!(sum.is_of(program));
        let work = device.zeros(&[sum.workspace_elements(device, len)], T::Sum::DTYPE)?;
        let summation = Summation { sum: &sum, inputs: &tensors, out: &out, workspace: &work };
        summation.launch(&device.stream())?;
        let got = device.stream().to_vec::<T::Sum>(&out)?;
        for (index, got) in got.into_iter().enumerate() {
            let want = expected::<T>(program, index);
            assert!(got == want, "{device:?} {} of {inputs} inputs: element {index}", T::DTYPE);
        }
        let beside = device.stream().to_vec::<T::Sum>(&whole)?;
        let is_zero = |x: &T::Sum| bytemuck::bytes_of(x).iter().all(|&byte| byte == 0);
        assert!(is_zero(&beside[offset + len]) && beside[..offset].iter().all(is_zero));
        Ok(())
    }
}

/// Every type, aligned and not, in place and not, of one stage and of several.
pub fn sums_have_the_bits_of_their_program(device: &Device) {
    for (radices, world) in
        [(&[2, 2, 3][..], 12), (&[5], 3), (&[], 1), (&[3, 23], 69), (&[2; 5], 32)]
    {
        let (program, inputs) = program(radices, world);
        for (len, offset) in [(1500, 0), (1023, 3), (1, 0), (0, 0)] {
            for in_place in [None, Some(0), Some(inputs / 2), Some(inputs - 1)] {
                let case = Case { program: &program, inputs, len, offset, in_place };
                case.check::<f32>(device).unwrap();
                case.check::<f64>(device).unwrap();
            }
            let case = Case { program: &program, inputs, len, offset, in_place: None };
            case.check::<bf16>(device).unwrap();
            case.check::<f16>(device).unwrap();
        }
    }
}

/// What is refused, on any device.
pub fn mistakes_are_refused(device: &Device) {
    let (stream, (program, _)) = (device.stream(), program(&[2], 2));
    let sum = OrderedSum::new(&program, 2).unwrap();
    let zeros = |len: usize, dtype| device.zeros(&[len], dtype).unwrap();
    let (a, b, none) = (zeros(8, DType::F32), zeros(8, DType::F32), zeros(0, DType::F32));
    let refused = |summation: Summation| summation.launch(&stream).unwrap_err();
    let run = |inputs: &[Tensor], out: &Tensor| {
        refused(Summation { sum: &sum, inputs, out, workspace: &none }).to_string()
    };
    let both = [a.clone(), b.clone()];
    assert!(run(&both[..1], &a).contains("has 1 elements, the shapes given need 2"));
    assert!(run(&both, &zeros(7, DType::F32)).contains("has 8 elements"));
    assert!(run(&both, &zeros(8, DType::F64)).contains("f32 is not supported"));
    let large = zeros(12, DType::F32);
    let (low, high) = (large.flat(0..8).unwrap(), large.flat(4..12).unwrap());
    let inputs = &[low, b];
    let error = refused(Summation { sum: &sum, inputs, out: &high, workspace: &none });
    assert!(matches!(error, KernelError::Device(DeviceError::Overlap { .. })), "{error}");
    for (ops, inputs, problem) in [
        (vec![ReduceOp::Push(1)], 2, "reads input 1 where input 0 comes next"),
        (vec![ReduceOp::AddInput(0)], 1, "adds to nothing at operation 0"),
        (vec![ReduceOp::Push(0), ReduceOp::Push(1)], 2, "ends with 2 sums"),
        (vec![ReduceOp::Push(0)], 2, "reads 1 inputs where there are 2"),
    ] {
        let error = OrderedSum::new(&Program { ops, depth: 2 }, inputs).unwrap_err();
        assert!(error.to_string().contains(problem), "{error}");
    }
    let many = Case { program: &tower(40), inputs: 40, len: 9, offset: 0, in_place: None };
    let sum = OrderedSum::new(many.program, 40).unwrap();
    let (inputs, out) = (&vec![a.flat(0..4).unwrap(); 40], &zeros(4, DType::F32));
    let error = refused(Summation { sum: &sum, inputs, out, workspace: &none });
    assert!(matches!(error, KernelError::Operand { operand: "workspace", .. }), "{error}");
}
