//! Operations of updates against plain loops in f64.

use ::device::Device;
use half::bf16;

use super::*;
use crate::Op;
use crate::math::round_out;
use proptest::prelude::*;

fn noise(len: usize, seed: u32) -> Vec<f32> {
    let value = |i: u32| (i.wrapping_mul(2_654_435_761) ^ seed.wrapping_mul(0x9E37_79B9)) >> 8;
    (0..len as u32).map(|i| value(i + 1) as f32 / (1 << 23) as f32 - 1.0).collect()
}

/// Spans of the given lengths: in order in the flat tensors, in reverse in the local ones, with
/// gaps in both.
fn spans(lens: &[usize]) -> (Vec<Span>, usize) {
    let total = lens.iter().sum::<usize>() + 3 * lens.len();
    let (mut flat, mut local) = (0, total);
    let spans = lens.iter().enumerate().map(|(unit, &len)| {
        local -= len + 3;
        let span = Span { flat, local, len, unit };
        flat += len + 3;
        span
    });
    (spans.collect(), total)
}

struct Case {
    device: Device,
    list: Vec<Span>,
    spans: Spans,
    total: usize,
}

impl Case {
    fn new(device: Device, lens: &[usize]) -> Case {
        let (list, total) = spans(lens);
        let spans = Spans::new(&device, &list).unwrap();
        Case { device, spans, list, total }
    }

    fn tensor(&self, values: &[f32]) -> Tensor {
        self.device.tensor(&[values.len()], values).unwrap()
    }

    fn apply(&self, keep: f64, rate: f64, weights: Weights, direction: &Tensor) -> MuonApply {
        let (spans, direction) = (self.spans.clone(), direction.clone());
        MuonApply { spans, keep, rate, weights, direction }
    }

    fn read(&self, tensor: &Tensor) -> Vec<f32> {
        self.device.stream().to_vec(tensor).unwrap()
    }

    /// Calls `check` with (flat, local, unit) of every element.
    fn elements(&self, mut check: impl FnMut(usize, usize, usize)) {
        for span in &self.list {
            (0..span.len).for_each(|i| check(span.flat + i, span.local + i, span.unit));
        }
    }
}

fn devices() -> [Device; 3] {
    [Device::cpu(1).unwrap(), Device::cpu(3).unwrap(), Device::guarded(2).unwrap()]
}

const LENS: [usize; 5] = [1, 40_000, 17, 8192, 8193];

fn close(got: f32, want: f64) -> bool {
    (f64::from(got) - want).abs() <= 1e-5 * want.abs() + 1e-6
}

#[test]
fn adamw_follows_its_formula_for_several_steps() {
    let mut bits: Vec<Vec<f32>> = Vec::new();
    for device in devices() {
        let case = Case::new(device, &LENS);
        let n = case.total;
        let factors: Vec<f32> = (0..LENS.len()).map(|unit| 0.5 / (unit + 1) as f32).collect();
        let (w, m, v) = (noise(n, 1), vec![0.0; n], vec![0.0; n]);
        let (weights, first, second) = (case.tensor(&w), case.tensor(&m), case.tensor(&v));
        let factor = case.tensor(&factors);
        let wide = |x: Vec<f32>| x.into_iter().map(f64::from).collect::<Vec<_>>();
        let (mut w, mut m, mut v) = (wide(w), wide(m), wide(v));
        let untouched = w.clone();
        for step in 1..=3 {
            let g = noise(n, 10 + step as u32);
            let numbers =
                AdamW { lr: 0.1, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.3, step };
            let operation = AdamWStep {
                spans: case.spans.clone(),
                numbers,
                weights: Weights::InPlace(weights.clone()),
                grads: case.tensor(&g),
                first: first.clone(),
                second: second.clone(),
                factors: factor.clone(),
            };
            operation.launch(&case.device.stream()).unwrap();
            case.elements(|flat, local, unit| {
                let g = f64::from(g[flat]) * f64::from(factors[unit]);
                m[local] = 0.9 * m[local] + 0.1 * g;
                v[local] = 0.95 * v[local] + 0.05 * g * g;
                let hat = |x: f64, beta: f64| x / (1.0 - beta.powi(step as i32));
                w[flat] -= 0.1 * 0.3 * w[flat];
                w[flat] -= 0.1 * hat(m[local], 0.9) / (hat(v[local], 0.95).sqrt() + 1e-8);
            });
        }
        let got = case.read(&weights);
        for (flat, (&got, &want)) in got.iter().zip(&w).enumerate() {
            assert!(close(got, want), "{flat}: {got} {want}");
        }
        let mut written = vec![false; n];
        case.elements(|flat, _, _| written[flat] = true);
        for flat in 0..n {
            assert_eq!(written[flat], f64::from(got[flat]) != untouched[flat]);
        }
        bits.push([got, case.read(&first), case.read(&second)].concat());
    }
    assert!(bits[0] == bits[1] && bits[0] == bits[2]);
}

#[test]
fn muon_momentum_and_update_follow_their_formulas() {
    for form in [Momentum::Classical, Momentum::Nesterov] {
        let mut bits: Vec<Vec<f32>> = Vec::new();
        for device in devices() {
            let case = Case::new(device, &LENS);
            let n = case.total;
            let (g, m, w) = (noise(n, 4), noise(n, 5), noise(n, 6));
            let factors: Vec<f32> = (0..LENS.len()).map(|unit| (unit + 1) as f32).collect();
            let (momentum, update) = (case.tensor(&m), case.tensor(&vec![7.0; n]));
            let (weights, grads, factor) =
                (case.tensor(&w), case.tensor(&g), case.tensor(&factors));
            let stream = case.device.stream();
            let operation = MuonMomentum {
                spans: case.spans.clone(),
                mu: 0.8,
                form,
                grads,
                momentum: momentum.clone(),
                update: update.clone(),
                factors: factor,
            };
            operation.launch(&stream).unwrap();
            let place = Weights::InPlace(weights.clone());
            case.apply(0.9, 0.25, place, &update).launch(&stream).unwrap();
            let (new_m, u, new_w) = (case.read(&momentum), case.read(&update), case.read(&weights));
            case.elements(|flat, local, unit| {
                let g = f64::from(g[flat]) * f64::from(factors[unit]);
                let momentum = 0.8 * f64::from(m[local]) + 0.2 * g;
                let want = match form {
                    Momentum::Classical => momentum,
                    Momentum::Nesterov => 0.8 * momentum + 0.2 * g,
                };
                assert!(close(new_m[local], momentum) && close(u[local], want));
                assert!(close(new_w[flat], 0.9 * f64::from(w[flat]) - 0.25 * want));
            });
            bits.push([new_m, u, new_w].concat());
        }
        assert!(bits[0] == bits[1] && bits[0] == bits[2]);
    }
}

#[test]
fn masters_carry_what_bf16_weights_cannot() {
    for device in devices() {
        let case = Case::new(device, &LENS);
        let n = case.total;
        let exact = noise(n, 8);
        let (flat32, masters) = (case.tensor(&exact), case.tensor(&vec![0.0; n]));
        let half = case.device.zeros(&[n], DType::Bf16).unwrap();
        let stream = case.device.stream();
        let adopt = |flat: &Tensor| {
            let (spans, flat, masters) = (case.spans.clone(), flat.clone(), masters.clone());
            CopyToMasters { spans, flat, masters }.launch(&stream).unwrap();
        };
        adopt(&flat32);
        let (spans, masters_of, flat) = (case.spans.clone(), masters.clone(), half.clone());
        RoundFromMasters { spans, masters: masters_of, flat }.launch(&stream).unwrap();
        let rounded = stream.to_vec::<bf16>(&half).unwrap();
        case.elements(|flat, _, _| assert_eq!(rounded[flat], bf16::from_f32(exact[flat])));
        // One small step is lost in bf16 but kept in the masters.
        let place = Weights::Mastered { masters: masters.clone(), flat: half.clone() };
        let ones = case.tensor(&vec![1.0; n]);
        case.apply(1.0, 1e-6, place, &ones).launch(&stream).unwrap();
        let kept = case.read(&masters);
        case.elements(|flat, local, _| assert_eq!(kept[local], exact[flat] - 1e-6));
        adopt(&half);
        let kept = case.read(&masters);
        let half = stream.to_vec::<bf16>(&half).unwrap();
        case.elements(|flat, local, _| assert_eq!(kept[local], half[flat].to_f32()));
    }
}

proptest! {
    #[test]
    fn rounding_to_bf16_is_that_of_the_half_crate(bits: u32) {
        let value = f32::from_bits(bits);
        let mut got = [bf16::ZERO];
        round_out(&[value], &mut got);
        let want = bf16::from_f32(value);
        prop_assert!(got[0].to_bits() == want.to_bits() || (value.is_nan() && got[0].is_nan()));
    }

    #[test]
    fn sums_of_squares_are_exact_enough_and_do_not_depend_on_threads(
        lens in prop::collection::vec(0_usize..5000, 1..9), seed: u32,
    ) {
        let total: usize = lens.iter().sum();
        let values = noise(total, seed);
        let mut flat = 0;
        let mut ranges = Vec::new();
        for (index, &len) in lens.iter().enumerate() {
            // Statistics in reverse, every other one.
            ranges.push(StatisticRange { flat, len, statistic: 2 * (lens.len() - 1 - index) });
            flat += len;
        }
        let mut results = Vec::new();
        for threads in 1..4 {
            let device = Device::cpu(threads).unwrap();
            let list = StatisticRanges::new(&device, ranges.clone()).unwrap();
            let grads = device.tensor(&[total], &values).unwrap();
            let sums = device.tensor(&[2 * lens.len()], &vec![-1.0_f64; 2 * lens.len()]).unwrap();
            let operation = SumOfSquares { ranges: list, grads, sums: sums.clone() };
            operation.launch(&device.stream()).unwrap();
            results.push(device.stream().to_vec::<f64>(&sums).unwrap());
        }
        for range in &ranges {
            let own = &values[range.flat..range.flat + range.len];
            let want: f64 = own.iter().map(|&x| f64::from(x).powi(2)).sum();
            prop_assert!((results[0][range.statistic] - want).abs() <= 1e-13 * want);
            prop_assert_eq!(results[0][range.statistic + 1], -1.0);
        }
        prop_assert!(results[0] == results[1] && results[0] == results[2]);
    }
}

#[test]
fn a_sum_shows_every_element_that_is_not_finite_and_no_other() {
    let device = Device::cpu(1).unwrap();
    let list =
        StatisticRanges::new(&device, vec![StatisticRange { flat: 0, len: 140, statistic: 0 }])
            .unwrap();
    let sums = device.zeros(&[1], DType::F64).unwrap();
    let sum = |values: &[f32]| {
        let grads = device.tensor(&[140], values).unwrap();
        let operation = SumOfSquares { ranges: list.clone(), grads, sums: sums.clone() };
        operation.launch(&device.stream()).unwrap();
        device.stream().to_vec::<f64>(&sums).unwrap()[0]
    };
    assert!(sum(&[f32::MAX; 140]).is_finite());
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for at in 0..140 {
            let mut values = [1.0; 140];
            values[at] = bad;
            assert!(!sum(&values).is_finite());
        }
    }
}

#[test]
fn overlaps_small_tensors_and_wrong_types_are_refused() {
    let span = |flat, local, len| Span { flat, local, len, unit: 0 };
    let device = Device::cpu(1).unwrap();
    assert!(Spans::new(&device, &[span(0, 0, 4), span(3, 8, 4)]).is_err());
    assert!(Spans::new(&device, &[span(0, 0, 4), span(8, 3, 4)]).is_err());
    let statistic = |statistic| StatisticRange { flat: 0, len: 4, statistic };
    assert!(StatisticRanges::new(&device, vec![statistic(1), statistic(1)]).is_err());
    let spans = Spans::new(&device, &[span(4, 0, 4)]).unwrap();
    let zeros = |len: usize, dtype| device.zeros(&[len], dtype).unwrap();
    let (four, seven, eight) = (zeros(4, DType::F32), zeros(7, DType::F32), zeros(8, DType::F32));
    let stream = device.stream();
    let apply = |weights: &Tensor, o: &Tensor| {
        let (weights, direction) = (Weights::InPlace(weights.clone()), o.clone());
        let spans = spans.clone();
        MuonApply { spans, keep: 1.0, rate: 1.0, weights, direction }.launch(&stream)
    };
    apply(&eight, &four).unwrap();
    assert!(matches!(
        apply(&seven, &four),
        Err(KernelError::Operand { operand: "weights", got: 7, expected: 8, .. })
    ));
    assert!(apply(&eight, &zeros(3, DType::F32)).is_err());
    let half = apply(&zeros(8, DType::Bf16), &four).unwrap_err().to_string();
    assert_eq!(half, "optimizer: weights are bf16, not f32");
}
