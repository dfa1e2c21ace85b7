use device::{DType, Device};

use super::*;
use crate::math::dot;

/// Straight from the definition, in f64.
fn reference(h: Heads, qkv: &[f64], doc_start: &[u32]) -> Vec<f64> {
    let (c, stride) = (h.head_dim, h.stride());
    let mut out = vec![0.0; h.rows() * h.heads * c];
    for b in 0..h.windows {
        for head in 0..h.heads {
            let kv = head / (h.heads / h.kv_heads);
            for i in 0..h.positions {
                let at = |row: usize, column: usize| {
                    &qkv[(b * h.positions + row) * stride + column * c..][..c]
                };
                let first = doc_start[b * h.positions + i] as usize;
                let scores: Vec<f64> = (first..=i)
                    .map(|j| dot(at(i, head), at(j, h.heads + kv)) / (c as f64).sqrt())
                    .collect();
                let total: f64 = scores.iter().map(|s| s.exp()).sum();
                for (j, score) in (first..=i).zip(&scores) {
                    for (x, v) in at(j, h.heads + h.kv_heads + kv).iter().enumerate() {
                        out[((b * h.positions + i) * h.heads + head) * c + x] +=
                            score.exp() / total * v;
                    }
                }
            }
        }
    }
    out
}

fn inputs(h: Heads) -> (Vec<f64>, Vec<u32>) {
    let wave = |i: usize| ((i * 7919 % 1009) as f64 / 504.5 - 1.0) * 1.5;
    let qkv = (0..h.rows() * h.stride()).map(wave).collect();
    let starts = (0..h.rows()).map(|row| (row % h.positions / 50 * 50) as u32).collect();
    (qkv, starts)
}

fn run(h: Heads, qkv: &[f64], starts: &[u32], threads: usize) -> (Vec<f64>, Tensor, Tensor) {
    let device = Device::cpu(threads).unwrap();
    let stream = device.stream();
    let qkv = device.tensor(&[h.rows(), h.stride()], qkv).unwrap();
    let starts = device.tensor(&[h.rows()], starts).unwrap();
    let out = device.zeros(&[h.rows(), h.heads * h.head_dim], DType::F64).unwrap();
    let lse = device.zeros(&[h.windows, h.heads, h.positions], DType::F64).unwrap();
    let workspace = device.zeros(&[h.forward_workspace()], DType::F64).unwrap();
    let written = (out.clone(), lse.clone());
    Forward { heads: h, qkv, doc_start: starts, out, lse, workspace }.launch(&stream).unwrap();
    let (out, lse) = written;
    (stream.to_vec(&out).unwrap(), out, lse)
}

const CASES: [Heads; 3] = [
    Heads { windows: 2, positions: 130, heads: 4, kv_heads: 2, head_dim: 8 },
    Heads { windows: 1, positions: 64, heads: 2, kv_heads: 2, head_dim: 16 },
    Heads { windows: 3, positions: 7, heads: 3, kv_heads: 1, head_dim: 4 },
];

#[test]
fn forward_matches_the_definition() {
    for h in CASES {
        let (qkv, starts) = inputs(h);
        let (out, ..) = run(h, &qkv, &starts, 2);
        for (got, want) in out.iter().zip(reference(h, &qkv, &starts)) {
            assert!((got - want).abs() < 1e-12, "{h:?}: {got} {want}");
        }
    }
}

#[test]
fn backward_matches_finite_differences() {
    for h in CASES {
        let (qkv, starts) = inputs(h);
        let weight = |i: usize| ((i * 31 % 17) as f64 - 8.0) / 8.0;
        let objective = |qkv: &[f64]| -> f64 {
            let out = reference(h, qkv, &starts);
            out.iter().enumerate().map(|(i, o)| o * weight(i)).sum()
        };
        let (_, out, lse) = run(h, &qkv, &starts, 1);
        let device = out.buffer().device().clone();
        let stream = device.stream();
        let dout: Vec<f64> = (0..out.len()).map(weight).collect();
        let dout = device.tensor(out.dims(), &dout).unwrap();
        let x = device.tensor(&[h.rows(), h.stride()], &qkv).unwrap();
        let starts_tensor = device.tensor(&[h.rows()], &starts).unwrap();
        let dx = device.zeros(&[h.rows(), h.stride()], DType::F64).unwrap();
        let workspace = device.zeros(&[h.backward_workspace()], DType::F64).unwrap();
        let (heads, qkv_now, doc_start, dqkv) = (h, x, starts_tensor, dx.clone());
        let backward = Backward { heads, qkv: qkv_now, doc_start, out, lse, dout, dqkv, workspace };
        backward.launch(&stream).unwrap();
        let dx: Vec<f64> = stream.to_vec(&dx).unwrap();
        for i in (0..qkv.len()).step_by(qkv.len() / 37 + 1) {
            let step = 1e-6;
            let mut moved = qkv.clone();
            moved[i] += step;
            let plus = objective(&moved);
            moved[i] -= 2.0 * step;
            let slope = (plus - objective(&moved)) / (2.0 * step);
            assert!((dx[i] - slope).abs() < 1e-7, "{h:?} element {i}: {} {slope}", dx[i]);
        }
    }
}
