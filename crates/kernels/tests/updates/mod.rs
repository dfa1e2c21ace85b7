//! The optimizer's operations on any device, against the host's bits.

use device::{DType, Device, Tensor};
use half::{bf16, f16};
use kernels::Op;
use kernels::optimizer::{
    AdamW, AdamWStep, Cast, CopyToMasters, Momentum, MuonApply, MuonMomentum, RoundFromMasters,
    Span, Spans, StatisticRange, StatisticRanges, SumOfSquares, Weights,
};

/// Ends of chunks, chunks of one quad, less than one, and more than one chunk.
const LENS: [usize; 6] = [1, 4, 8192, 7, 8199, 1027];

/// Numbers of many magnitudes, some subnormal, a few infinite, both signs.
fn numbers(len: usize, seed: u32) -> Vec<f32> {
    let number = |i: u32| {
        let bits = (i + 1).wrapping_mul(2_654_435_761) ^ seed.wrapping_mul(0x9E37_79B9);
        match i % 97 {
            13 => f32::from_bits(bits >> 9),
            29 if i % 1000 == 29 => f32::INFINITY,
            // Exponents of 2^-20 to 2^11.
            _ => f32::from_bits(bits & 0x807f_ffff | (107 + (bits >> 18) % 32) << 23),
        }
    };
    (0..len as u32).map(number).collect()
}

/// One set of spans with its tensors: `flat` and `local` places are apart by `gap` elements, so
/// that with 3 of them most are not aligned.
struct Bench<'a> {
    device: &'a Device,
    spans: Spans,
    len: usize,
    gap: usize,
}

impl Bench<'_> {
    fn new(device: &Device, gap: usize) -> Bench<'_> {
        let len = LENS.iter().map(|len| len.next_multiple_of(4) + gap).sum::<usize>();
        let (mut flat, mut local) = (0, len);
        let spans = LENS.iter().enumerate().map(|(unit, &len)| {
            local -= len.next_multiple_of(4) + gap;
            let span = Span { flat, local, len, unit };
            flat += len.next_multiple_of(4) + gap;
            span
        });
        let spans: Vec<Span> = spans.collect();
        Bench { device, spans: Spans::new(device, &spans).unwrap(), len, gap }
    }

    fn tensor(&self, seed: u32) -> Tensor {
        self.device.tensor(&[self.len], &numbers(self.len, seed)).unwrap()
    }

    fn bits(&self, tensor: &Tensor) -> Vec<u32> {
        let stream = self.device.stream();
        // The payload of a NaN is the vendor's.
        let of = |x: f32| if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() };
        match tensor.dtype() {
            DType::F32 => stream.to_vec::<f32>(tensor).unwrap().into_iter().map(of).collect(),
            DType::F16 => {
                let values = stream.to_vec::<f16>(tensor).unwrap();
                values.into_iter().map(|x| of(x.to_f32())).collect()
            }
            _ => {
                let values = stream.to_vec::<bf16>(tensor).unwrap();
                values.into_iter().map(|x| of(x.to_f32())).collect()
            }
        }
    }

    /// f32 weights, or bf16 ones of masters.
    fn weights(&self, seed: u32, mastered: bool) -> Weights {
        if !mastered {
            return Weights::InPlace(self.tensor(seed));
        }
        let values = numbers(self.len, seed + 1).into_iter().map(bf16::from_f32);
        let flat = self.device.tensor(&[self.len], &values.collect::<Vec<_>>()).unwrap();
        Weights::Mastered { masters: self.tensor(seed), flat }
    }

    fn bits_of(&self, weights: &Weights) -> Vec<Vec<u32>> {
        match weights {
            Weights::InPlace(flat) => vec![self.bits(flat)],
            Weights::Mastered { masters, flat } => vec![self.bits(masters), self.bits(flat)],
        }
    }

    /// Two steps of Muon's and of AdamW's elementwise parts; all that they wrote.
    fn steps(&self, mastered: bool) -> Vec<Vec<u32>> {
        let stream = self.device.stream();
        let factors: Vec<f32> = (0..LENS.len()).map(|unit| 0.3 / (unit + 1) as f32).collect();
        let factors = self.device.tensor(&[LENS.len()], &factors).unwrap();
        let [momentum, update, first, second] = [1, 2, 3, 4].map(|seed| self.tensor(seed));
        stream.fill(&second, 0).unwrap();
        let (muon, adam) = (self.weights(5, mastered), self.weights(6, mastered));
        for step in 1..=2 {
            let (spans, grads) = (self.spans.clone(), self.tensor(10 + step as u32));
            let numbers =
                AdamW { lr: 0.1, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.3, step };
            let of_adamw = AdamWStep {
                spans: spans.clone(),
                numbers,
                weights: adam.clone(),
                grads: grads.clone(),
                first: first.clone(),
                second: second.clone(),
                factors: factors.clone(),
            };
            of_adamw.launch(&stream).unwrap();
            let of_muon = MuonMomentum {
                spans: spans.clone(),
                mu: 0.95,
                form: [Momentum::Classical, Momentum::Nesterov][step as usize % 2],
                grads,
                momentum: momentum.clone(),
                update: update.clone(),
                factors: factors.clone(),
            };
            of_muon.launch(&stream).unwrap();
            let (weights, direction) = (muon.clone(), update.clone());
            let apply = MuonApply { spans, keep: 0.99, rate: 0.02, weights, direction };
            apply.launch(&stream).unwrap();
        }
        let mut all = [momentum, update, first, second].map(|x| self.bits(&x)).to_vec();
        all.extend(self.bits_of(&muon));
        all.extend(self.bits_of(&adam));
        all
    }

    /// Masters from f32 and from bf16 weights, and bf16 weights from masters.
    fn copies(&self) -> Vec<Vec<u32>> {
        let stream = self.device.stream();
        let masters = self.tensor(20);
        let Weights::Mastered { flat, .. } = self.weights(21, true) else { panic!("mastered") };
        let adopt = |flat: Tensor| {
            let (spans, masters) = (self.spans.clone(), masters.clone());
            CopyToMasters { spans, flat, masters }.launch(&stream).unwrap();
        };
        adopt(flat.clone());
        let from_bf16 = self.bits(&masters);
        adopt(self.tensor(22));
        let (spans, from, to) = (self.spans.clone(), masters.clone(), flat.clone());
        RoundFromMasters { spans, masters: from, flat: to }.launch(&stream).unwrap();
        let mut all = vec![from_bf16, self.bits(&masters), self.bits(&flat)];
        // From the first element on and from one that is not aligned; of the whole and of a part.
        for (dtype, start) in [(DType::Bf16, 0), (DType::F16, 0), (DType::Bf16, 1), (DType::F16, 3)]
        {
            let to = self.device.zeros(&[self.len], dtype).unwrap();
            let part = |x: &Tensor| x.flat(start..self.len - 2 * start).unwrap();
            Cast { from: part(&masters), to: part(&to) }.launch(&stream).unwrap();
            all.push(self.bits(&to));
        }
        all
    }
}

/// Every element and every gap has the host's bits.
pub fn elements_have_the_bits_of_the_host(device: &Device) {
    let host = Device::cpu(2).unwrap();
    for gap in [0, 3] {
        let (here, there) = (Bench::new(device, gap), Bench::new(&host, gap));
        for mastered in [false, true] {
            let (got, want) = (here.steps(mastered), there.steps(mastered));
            for (index, (got, want)) in got.iter().zip(&want).enumerate() {
                same(got, want, &format!("gap {}, mastered {mastered}, {index}", here.gap));
            }
        }
        for (index, (got, want)) in here.copies().iter().zip(&there.copies()).enumerate() {
            same(got, want, &format!("gap {gap}, copy {index}"));
        }
    }
}

fn same(got: &[u32], want: &[u32], what: &str) {
    let wrong = got.iter().zip(want).position(|(got, want)| got != want);
    if let Some(at) = wrong {
        let (got, want) = (f32::from_bits(got[at]), f32::from_bits(want[at]));
        panic!("{what}: element {at} is {got:e}, not {want:e}");
    }
}

/// Sums of squares are within their bound of the host's; returns their bits.
pub fn squares_are_summed_within_their_bound(device: &Device) -> Vec<u64> {
    let lens = [0, 1, 5, 4096, 16_384, 16_385, 50_001];
    let values: Vec<f32> = numbers(lens.iter().sum::<usize>() + 3 * lens.len(), 9);
    let values: Vec<f32> = values.iter().map(|x| if x.is_finite() { *x } else { 1.0 }).collect();
    let mut flat = 0;
    let ranges = lens.iter().enumerate().map(|(index, &len)| {
        flat += 3;
        let range = StatisticRange { flat, len, statistic: 2 * (lens.len() - 1 - index) };
        flat += len;
        range
    });
    let ranges: Vec<StatisticRange> = ranges.collect();
    let sums = |device: &Device, values: &[f32]| {
        let list = StatisticRanges::new(device, ranges.clone()).unwrap();
        let grads = device.tensor(&[values.len()], values).unwrap();
        let sums = device.tensor(&[2 * lens.len()], &vec![-1.0_f64; 2 * lens.len()]).unwrap();
        let operation = SumOfSquares { ranges: list, grads, sums: sums.clone() };
        operation.launch(&device.stream()).unwrap();
        device.stream().to_vec::<f64>(&sums).unwrap()
    };
    let (got, want) = (sums(device, &values), sums(&Device::cpu(1).unwrap(), &values));
    for range in &ranges {
        let (got, want) = (got[range.statistic], want[range.statistic]);
        let most = range.len as f64 * f64::EPSILON / 2.0 * want;
        assert!((got - want).abs() <= most, "{} elements: {got:e}, not {want:e}", range.len);
    }
    assert!(got.iter().skip(1).step_by(2).all(|&untouched| untouched == -1.0));
    for bad in [f32::NAN, f32::NEG_INFINITY] {
        let mut values = values.clone();
        values[ranges[6].flat + 40_000] = bad;
        let sums = sums(device, &values);
        assert!(!sums[ranges[6].statistic].is_finite() && sums[ranges[5].statistic].is_finite());
    }
    got.iter().map(|sum| sum.to_bits()).collect()
}
