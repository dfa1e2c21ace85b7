//! Ordered reductions on any device, against a plain stack.

use std::ops::{Add, Mul};

use device::{DType, Device, DeviceError, Element, Tensor};
use half::{bf16, f16};
use kernels::KernelError;
use kernels::ordered_sum::{OrderedSum, RedOp, Summation};
use layout::{ReduceOp, SumProgram, Tree};

fn hash(input: usize, index: usize) -> u64 {
    (input as u64 + 1)
        .wrapping_mul(0x9E37_79B9_7F4A_7C15)
        .wrapping_add(index as u64)
        .wrapping_mul(0xBF58_476D_1CE4_E5B9)
}

/// A value whose sums depend on their order; seldom one of those that have rules of their own.
fn value(hash: u64) -> f64 {
    match (hash >> 8) % 150 {
        0 => f64::NAN,
        1 | 2 => 0.0,
        3 | 4 => -0.0,
        5 => f64::INFINITY,
        _ => 10_f64.powi((hash >> 61) as i32 - 4) * ((hash >> 20) as u32 as f64 / 2e9 - 1.0),
    }
}

/// A type that is computed in, by the words of the documentation.
pub trait Number: Element + PartialEq {
    fn combined(redop: RedOp, a: Self, b: Self) -> Self;
    fn average(sum: Self, inputs: usize) -> Self;
    fn is_nan(self) -> bool;
}

fn float<T: Copy + PartialOrd + Add<Output = T> + Mul<Output = T>>(
    redop: RedOp,
    (a, b): (T, T),
    is_negative: impl Fn(T) -> bool,
) -> T {
    let (is_less, is_equal) = (a < b, a == b);
    // A NaN is not even equal to itself.
    let nan = [a, b].into_iter().find(|x| x.partial_cmp(x).is_none());
    match (redop, nan) {
        (RedOp::Sum | RedOp::Avg, _) => a + b,
        (RedOp::Prod, _) => a * b,
        (_, Some(nan)) => nan,
        (RedOp::Min, _) if is_equal => {
            if is_negative(a) {
                a
            } else {
                b
            }
        }
        (RedOp::Max, _) if is_equal => {
            if is_negative(a) {
                b
            } else {
                a
            }
        }
        (RedOp::Min, _) => {
            if is_less {
                a
            } else {
                b
            }
        }
        (RedOp::Max, _) => {
            if is_less {
                b
            } else {
                a
            }
        }
    }
}

macro_rules! float {
    ($type:ty) => {
        impl Number for $type {
            fn combined(redop: RedOp, a: Self, b: Self) -> Self {
                float(redop, (a, b), <$type>::is_sign_negative)
            }
            fn average(sum: Self, inputs: usize) -> Self {
                sum * (1.0 / inputs as $type)
            }
            fn is_nan(self) -> bool {
                <$type>::is_nan(self)
            }
        }
    };
}
float!(f32);
float!(f64);

macro_rules! integer {
    ($type:ty) => {
        impl Number for $type {
            fn combined(redop: RedOp, a: Self, b: Self) -> Self {
                let (wide_a, wide_b) = (i128::from(a), i128::from(b));
                (match redop {
                    RedOp::Sum | RedOp::Avg => wide_a + wide_b,
                    RedOp::Prod => wide_a * wide_b,
                    RedOp::Min => wide_a.min(wide_b),
                    RedOp::Max => wide_a.max(wide_b),
                }) as $type
            }
            fn average(sum: Self, inputs: usize) -> Self {
                (i128::from(sum) / inputs as i128) as $type
            }
            fn is_nan(self) -> bool {
                false
            }
        }
    };
}
integer!(i32);
integer!(i64);
integer!(u8);

/// A type of inputs and what it is computed in; or a result's.
pub trait Input: Element {
    type Sum: Number;
    fn of(hash: u64) -> Self;
    fn widened(self) -> Self::Sum;
    fn rounded(sum: Self::Sum) -> Self;
}

macro_rules! input {
    ($type:ty, $sum:ty, $of:expr, $widened:expr, $rounded:expr) => {
        impl Input for $type {
            type Sum = $sum;
            fn of(hash: u64) -> Self {
                $of(hash)
            }
            fn widened(self) -> $sum {
                $widened(self)
            }
            fn rounded(sum: $sum) -> Self {
                $rounded(sum)
            }
        }
    };
}
input!(f32, f32, |h| value(h) as f32, |x| x, |x| x);
input!(f64, f64, value, |x| x, |x| x);
input!(bf16, f32, |h| bf16::from_f64(value(h)), bf16::to_f32, bf16::from_f32);
input!(f16, f32, |h| f16::from_f64(value(h)), f16::to_f32, f16::from_f32);
input!(i32, i32, |h: u64| (h >> 30) as i32 >> (h % 30) as u32, |x| x, |x| x);
input!(i64, i64, |h: u64| h as i64 >> ((h >> 7) % 60) as u32, |x| x, |x| x);
input!(u8, u8, |h: u64| (h >> 50) as u8, |x| x, |x| x);

/// The program by which one owner sums the partials of `world` ranks.
pub fn program(radices: &[usize], world: usize) -> (SumProgram, usize) {
    let tree = Tree::new(radices).unwrap();
    let nodes = tree.partials(world).unwrap().concat();
    (tree.combine(&nodes), nodes.len())
}

/// A program whose stack holds all of its inputs.
pub fn tower(inputs: usize) -> SumProgram {
    let pushes = (0..inputs).map(ReduceOp::Push);
    let ops = pushes.chain((1..inputs).map(|_| ReduceOp::Fold)).collect();
    SumProgram { ops, depth: inputs }
}

fn expected<T: Input>(case: &Case, index: usize) -> T::Sum {
    let input = |input| T::of(hash(input, index)).widened();
    let combined = |a, b| T::Sum::combined(case.redop, a, b);
    let mut stack: Vec<T::Sum> = Vec::new();
    for op in &case.program.ops {
        match *op {
            ReduceOp::Push(i) => stack.push(input(i)),
            ReduceOp::AddInput(i) => {
                let top = stack.pop().unwrap();
                stack.push(combined(top, input(i)));
            }
            ReduceOp::Fold => {
                let (top, below) = (stack.pop().unwrap(), stack.pop().unwrap());
                stack.push(combined(below, top));
            }
        }
    }
    match case.redop {
        RedOp::Avg => T::Sum::average(stack[0], case.inputs),
        _ => stack[0],
    }
}

/// Reduces `len` elements of tensors that start `offset` elements after an aligned place.
#[derive(Clone, Copy)]
pub struct Case<'a> {
    pub redop: RedOp,
    pub program: &'a SumProgram,
    pub inputs: usize,
    pub len: usize,
    pub offset: usize,
    /// Which input is the output.
    pub in_place: Option<usize>,
}

impl Case<'_> {
    /// Runs it and compares every bit of results of the type that is computed in.
    pub fn check<T: Input>(&self, device: &Device) -> Result<(), KernelError> {
        self.check_as::<T, T::Sum>(device, |sum| sum, |sum| sum.is_nan())
    }

    /// Of results of the type of the inputs.
    pub fn check_rounded<T: Input>(&self, device: &Device) -> Result<(), KernelError> {
        self.check_as::<T, T>(device, T::rounded, |rounded| rounded.widened().is_nan())
    }

    /// Of f32 inputs, rounded to a 16-bit type. None of them can be the output.
    pub fn check_narrowed<O: Input<Sum = f32>>(&self, device: &Device) -> Result<(), KernelError> {
        let apart = Case { in_place: None, ..*self };
        apart.check_as::<f32, O>(device, O::rounded, |rounded| rounded.widened().is_nan())
    }

    fn check_as<T: Input, O: Element>(
        &self,
        device: &Device,
        give: impl Fn(T::Sum) -> O,
        is_nan: impl Fn(O) -> bool,
    ) -> Result<(), KernelError> {
        let Case { redop, program, inputs, len, offset, in_place } = *self;
        let tensor = |input: usize| {
            let values: Vec<T> = (0..len).map(|index| T::of(hash(input, index))).collect();
            let whole = device.zeros(&[offset + len + 1], T::DTYPE).unwrap();
            let part = whole.flat(offset..offset + len).unwrap();
            device.stream().copy_in(&part, &values).unwrap();
            part
        };
        let tensors: Vec<Tensor> = (0..inputs).map(tensor).collect();
        let whole = device.zeros(&[offset + len + 1], O::DTYPE)?;
        let separate = whole.flat(offset..offset + len)?;
        let out = in_place.map_or(separate, |input| tensors[input].clone());
        let sum = OrderedSum::new(program, inputs, redop)?;
        assert!(sum.is_of(program));
        let work = device.zeros(&[sum.workspace_elements(device, len)], T::Sum::DTYPE)?;
        let summation = Summation { sum: &sum, inputs: &tensors, out: &out, workspace: &work };
        summation.launch(&device.stream())?;
        let got = device.stream().to_vec::<O>(&out)?;
        for (index, got) in got.into_iter().enumerate() {
            let want = give(expected::<T>(self, index));
            let is_same = bytemuck::bytes_of(&got) == bytemuck::bytes_of(&want);
            assert!(
                is_same || is_nan(got) && is_nan(want),
                "{device:?} {redop} of {} to {}, {inputs} inputs: element {index} of {len}",
                T::DTYPE,
                O::DTYPE
            );
        }
        let beside = device.stream().to_vec::<O>(&whole)?;
        let is_zero = |x: &O| bytemuck::bytes_of(x).iter().all(|&byte| byte == 0);
        assert!(is_zero(&beside[offset + len]) && beside[..offset].iter().all(is_zero));
        Ok(())
    }

    /// Runs it for every type and reduction, where the output may be an input for those whose
    /// results have its type.
    pub fn check_all(&self, device: &Device) {
        for redop in RedOp::ALL {
            let case = Case { redop, ..*self };
            case.check::<f32>(device).unwrap();
            case.check::<f64>(device).unwrap();
            case.check::<i32>(device).unwrap();
            case.check::<i64>(device).unwrap();
            case.check::<u8>(device).unwrap();
            case.check_rounded::<bf16>(device).unwrap();
            case.check_rounded::<f16>(device).unwrap();
            let apart = Case { in_place: None, ..case };
            apart.check::<bf16>(device).unwrap();
            apart.check::<f16>(device).unwrap();
            apart.check_narrowed::<bf16>(device).unwrap();
            apart.check_narrowed::<f16>(device).unwrap();
        }
    }
}

/// Every type and reduction, aligned and not, in place and not, of one stage and of several.
pub fn sums_have_the_bits_of_their_program(device: &Device) {
    for (radices, world) in
        [(&[2, 2, 3][..], 12), (&[5], 3), (&[], 1), (&[3, 23], 69), (&[2; 5], 32)]
    {
        let (program, inputs) = program(radices, world);
        for (len, offset) in [(1500, 0), (1023, 3), (1, 0), (0, 0)] {
            let in_places = [None, Some(0), Some(inputs / 2), Some(inputs - 1)];
            for (index, in_place) in in_places.into_iter().enumerate() {
                let redop = RedOp::Sum;
                let case = Case { redop, program: &program, inputs, len, offset, in_place };
                case.check::<f32>(device).unwrap();
                // The simulator takes its time.
                if len <= 1 || (index + len + inputs) % 4 == 0 {
                    case.check_all(device);
                }
            }
        }
    }
}

/// Operands that are refused, on any device.
pub fn mistakes_are_refused(device: &Device) {
    let (stream, (program, _)) = (device.stream(), program(&[2], 2));
    let sum = OrderedSum::new(&program, 2, RedOp::Sum).unwrap();
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
    let words = [zeros(8, DType::U32), zeros(8, DType::U32)];
    assert!(run(&words, &zeros(8, DType::U32)).contains("u32 is not supported"));
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
        let error = OrderedSum::new(&SumProgram { ops, depth: 2 }, inputs, RedOp::Sum).unwrap_err();
        assert!(error.to_string().contains(problem), "{error}");
    }
    let sum = OrderedSum::new(&tower(40), 40, RedOp::Sum).unwrap();
    let (inputs, out) = (&vec![a.flat(0..4).unwrap(); 40], &zeros(4, DType::F32));
    let error = refused(Summation { sum: &sum, inputs, out, workspace: &none });
    assert!(matches!(error, KernelError::Operand { operand: "workspace", .. }), "{error}");
}
