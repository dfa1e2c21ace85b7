//! Attention against its definition, against the same vectors in other places, and against the
//! loops as they were before vectors had places.

mod packed;

use device::{DType, Device};

use super::*;
use crate::Real;
use crate::math::dot;
use crate::norm::{Rows, Vectors};

/// Queries, keys and values, of one tensor or of three with other columns around theirs.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Place {
    One,
    Three,
}

/// The vectors of a packed row, and where else they may lie: what comes before the first of them
/// and between two.
fn parts(h: Heads) -> [(usize, usize, [usize; 2]); 3] {
    [
        (h.heads, h.key_dim, [1, 0]),
        (h.kv_heads, h.key_dim, [0, 3]),
        (h.kv_heads, h.value_dim, [5, 5]),
    ]
}

/// Puts packed values there; what is around them is `around`.
fn place(
    h: Heads,
    device: &Device,
    packed: &[f64],
    at: Place,
    around: f64,
    dtype: DType,
) -> Panels {
    let tensor = |cols: usize, values: &[f64]| match dtype {
        DType::F32 => {
            let values: Vec<f32> = values.iter().map(|&x| x as f32).collect();
            device.tensor(&[h.rows(), cols], &values).unwrap()
        }
        _ => device.tensor(&[h.rows(), cols], values).unwrap(),
    };
    if at == Place::One {
        return Panels::packed(h, tensor(h.stride(), packed));
    }
    let mut from = 0;
    let [query, key, value] = parts(h).map(|(heads, width, [column, gap])| {
        let (stride, head_stride) = (column + heads * (width + gap), width + gap);
        let mut values = vec![around; h.rows() * stride];
        for n in 0..h.rows() {
            for head in 0..heads {
                let vector = &packed[n * h.stride() + from + head * width..][..width];
                values[n * stride + column + head * head_stride..][..width].copy_from_slice(vector);
            }
        }
        from += heads * width;
        Panel { tensor: tensor(stride, &values), column, head_stride }
    });
    Panels { query, key, value }
}

/// Takes packed values from there, and checks that what is around them is still `around`.
fn taken<T: Real>(h: Heads, panels: &Panels, around: f64) -> Vec<T> {
    let stream = panels.query.tensor.buffer().device().stream();
    let [query, key, value] = panels.tensors().map(|tensor| stream.to_vec::<T>(tensor).unwrap());
    if panels.are_of_one() {
        return query;
    }
    let mut packed = vec![T::ZERO; h.rows() * h.stride()];
    let mut from = 0;
    for (values, (heads, width, [column, gap])) in [query, key, value].into_iter().zip(parts(h)) {
        let stride = column + heads * (width + gap);
        for (i, &x) in values.iter().enumerate() {
            let (n, at) = (i / stride, (i % stride).checked_sub(column));
            match at.map(|at| (at / (width + gap), at % (width + gap))) {
                Some((head, j)) if j < width => {
                    packed[n * h.stride() + from + head * width + j] = x
                }
                _ => assert!(x == T::of(around), "{x:?} beside a vector", x = x.to_f64()),
            }
        }
        from += heads * width;
    }
    packed
}

/// Straight from the definition, in f64.
fn reference(h: Heads, qkv: &[f64], doc_start: &[u32]) -> Vec<f64> {
    let mut out = vec![0.0; h.rows() * h.heads * h.value_dim];
    for (task, out) in out.chunks_mut(h.value_dim).enumerate() {
        let (n, head) = (task / h.heads, task % h.heads);
        let kv = head / (h.heads / h.kv_heads);
        let (window, i) = (n / h.positions, n % h.positions);
        let at = |row: usize, column: usize, width: usize| {
            &qkv[(window * h.positions + row) * h.stride() + column..][..width]
        };
        let key = |row| at(row, (h.heads + kv) * h.key_dim, h.key_dim);
        let values = (h.heads + h.kv_heads) * h.key_dim;
        let value = |row| at(row, values + kv * h.value_dim, h.value_dim);
        let query = at(i, head * h.key_dim, h.key_dim);
        let first = doc_start[n] as usize;
        let scores: Vec<f64> = (first..=i)
            .map(|j| h.sharpness * dot(query, key(j)) / (h.key_dim as f64).sqrt())
            .collect();
        let total: f64 = scores.iter().map(|s| s.exp()).sum();
        for (j, score) in (first..=i).zip(&scores) {
            out.iter_mut().zip(value(j)).for_each(|(out, v)| *out += score.exp() / total * v);
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

fn weight(i: usize) -> f64 {
    ((i * 31 % 17) as f64 - 8.0) / 8.0
}

/// Output, logsumexps and packed gradient for output gradients of [`weight`].
fn run<T: Real>(h: Heads, at: Place, threads: usize) -> [Vec<T>; 3] {
    let (device, dtype) = (Device::cpu(threads).unwrap(), T::DTYPE);
    let stream = device.stream();
    let (qkv, starts) = inputs(h);
    let qkv = place(h, &device, &qkv, at, 7.0, dtype);
    let doc_start = device.tensor(&[h.rows()], &starts).unwrap();
    let zeros = |dims: &[usize]| device.zeros(dims, dtype).unwrap();
    let out = zeros(&[h.rows(), h.heads * h.value_dim]);
    let lse = zeros(&[h.windows, h.heads, h.positions]);
    let forward = Forward {
        heads: h,
        qkv: qkv.clone(),
        doc_start: doc_start.clone(),
        out: out.clone(),
        lse: lse.clone(),
        workspace: zeros(&[h.forward_workspace()]),
    };
    forward.launch(&stream).unwrap();
    let weights: Vec<T> = (0..out.len()).map(|i| T::of(weight(i))).collect();
    let dqkv = place(h, &device, &vec![3.0; h.rows() * h.stride()], at, 9.0, dtype);
    let backward = Backward {
        heads: h,
        qkv,
        doc_start,
        out: out.clone(),
        lse: lse.clone(),
        dout: device.tensor(out.dims(), &weights).unwrap(),
        dqkv: dqkv.clone(),
        workspace: zeros(&[h.backward_workspace()]),
    };
    backward.launch(&stream).unwrap();
    [stream.to_vec(&out).unwrap(), stream.to_vec(&lse).unwrap(), taken(h, &dqkv, 9.0)]
}

/// Values as wide as keys, wider and narrower.
fn cases() -> [Heads; 6] {
    [
        Heads::packed(2, 130, 4, 2, 8),
        Heads::packed(1, 64, 2, 2, 16),
        Heads::packed(3, 7, 3, 1, 4),
        Heads { value_dim: 5, ..Heads::packed(2, 70, 4, 2, 8) },
        Heads { value_dim: 12, ..Heads::packed(1, 130, 2, 2, 6) },
        Heads { sharpness: 1.875, ..Heads::packed(2, 70, 2, 1, 8) },
    ]
}

#[test]
fn forward_matches_the_definition() {
    for h in cases() {
        let (qkv, starts) = inputs(h);
        let [out, ..] = run::<f64>(h, Place::One, 2);
        for (got, want) in out.iter().zip(reference(h, &qkv, &starts)) {
            assert!((got - want).abs() < 1e-12, "{h:?}: {got} {want}");
        }
    }
}

#[test]
fn backward_matches_finite_differences() {
    for h in cases() {
        let (qkv, starts) = inputs(h);
        let objective = |qkv: &[f64]| -> f64 {
            let out = reference(h, qkv, &starts);
            out.iter().enumerate().map(|(i, o)| o * weight(i)).sum()
        };
        let [.., dx] = run::<f64>(h, Place::One, 1);
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

#[test]
fn three_tensors_have_the_bits_of_one() {
    fn check<T: Real + PartialEq>(h: Heads) {
        let [one, three] = [Place::One, Place::Three].map(|at| run::<T>(h, at, 2));
        let names = ["output", "logsumexps", "gradient"];
        for ((one, three), name) in one.iter().zip(&three).zip(names) {
            assert!(one == three, "{h:?}: {name}");
        }
    }
    for h in cases() {
        check::<f32>(h);
        check::<f64>(h);
    }
}

#[test]
fn packed_operands_have_the_bits_of_before() {
    fn check<T: Real>(h: Heads) {
        let Heads { windows, positions, heads, kv_heads, key_dim: head_dim, .. } = h;
        let before = packed::Heads { windows, positions, heads, kv_heads, head_dim };
        let (qkv, starts) = inputs(h);
        let qkv: Vec<T> = qkv.iter().map(|&x| T::of(x)).collect();
        let [out, lse] = packed::forward(before, &qkv, &starts);
        let dout: Vec<T> = (0..out.len()).map(|i| T::of(weight(i))).collect();
        let dqkv = packed::backward(before, &qkv, &starts, (&out, &lse, &dout));
        for threads in [1, 2] {
            assert!(run::<T>(h, Place::One, threads) == [&*out, &*lse, &*dqkv], "{h:?}");
        }
    }
    for h in cases().into_iter().filter(|h| h.key_dim == h.value_dim && h.sharpness == 1.0) {
        check::<f32>(h);
        check::<f64>(h);
    }
}

#[test]
fn a_mixture_of_one_tensor_and_several_is_refused() {
    let device = Device::cpu(1).unwrap();
    let h = Heads::packed(1, 4, 2, 2, 3);
    let tensor = |cols: usize| device.zeros(&[4, cols], DType::F32).unwrap();
    let forward = |qkv: Panels| {
        let operation = Forward {
            heads: h,
            qkv,
            doc_start: device.zeros(&[4], DType::U32).unwrap(),
            out: tensor(6),
            lse: device.zeros(&[1, 2, 4], DType::F32).unwrap(),
            workspace: device.zeros(&[h.forward_workspace()], DType::F32).unwrap(),
        };
        operation.launch(&device.stream())
    };
    let refusal = |qkv: Panels| match forward(qkv) {
        Err(KernelError::Argument { kernel, message }) => {
            assert_eq!(kernel, Forward::NAME);
            message
        }
        other => panic!("{other:?}"),
    };
    let one = Panels::packed(h, tensor(18));
    let other = Panel { tensor: tensor(6), column: 0, head_stride: 3 };
    assert!(forward(one.clone()).is_ok());
    let mixed = "`q`, `k` and `v` are neither one tensor nor three apart";
    for mixture in [
        Panels { query: other.clone(), ..one.clone() },
        Panels { key: other.clone(), ..one.clone() },
        Panels { value: other.clone(), ..one.clone() },
    ] {
        let message = refusal(mixture);
        assert!(message.starts_with(mixed), "{message}");
    }
    // Three views of which two share memory.
    let memory = device.zeros(&[36], DType::F32).unwrap();
    let view = |start: usize| {
        let tensor = memory.flat(start..start + 24).unwrap().reshape(&[4, 6]).unwrap();
        Panel { tensor, column: 0, head_stride: 3 }
    };
    let message = refusal(Panels { query: other.clone(), key: view(0), value: view(12) });
    assert!(message.ends_with("see `k` and `v`"), "{message}");
    let overlap = Panels { value: Panel { column: 8, ..one.value.clone() }, ..one.clone() };
    assert_eq!(refusal(overlap), "the columns of `k` and `v` overlap");
    let wide = Panels { query: Panel { head_stride: 4, ..other.clone() }, ..one.clone() };
    assert_eq!(refusal(wide), "`q`: 2 heads of 3, 4 apart from column 0 on, do not fit rows of 6");
    let close = Panels { query: Panel { head_stride: 2, ..one.query.clone() }, ..one };
    let message = refusal(close);
    assert!(message.contains("2 heads of 3, 2 apart"), "{message}");
}

/// Keys of two rows of three heads: parts of two columns from the fourth on of each head's five,
/// and one shared column after a first.
#[test]
fn keys_are_joined_and_their_gradients_parted() {
    let device = Device::cpu(2).unwrap();
    let stream = device.stream();
    let numbers = |rows: usize, cols: usize, from: usize| {
        let values: Vec<f32> = (0..rows * cols).map(|i| (from + i) as f32).collect();
        device.tensor(&[rows, cols], &values).unwrap()
    };
    let read = |vectors: &Vectors| stream.to_vec::<f32>(&vectors.tensor).unwrap();
    let per_head =
        Vectors { tensor: numbers(2, 12, 0), rows: Rows::heads(2, 12, 1, 3, 2).apart(4) };
    let shared = Vectors { tensor: numbers(2, 2, 100), rows: Rows::heads(2, 2, 1, 1, 1) };
    let keys = Vectors { tensor: numbers(2, 10, 500), rows: Rows::heads(2, 10, 0, 3, 3) };
    let join = JoinKeys { per_head, shared, keys: keys.clone() };
    join.launch(&stream).unwrap();
    assert_eq!(read(&keys)[..10], [1., 2., 101., 5., 6., 101., 9., 10., 101., 509.]);
    assert_eq!(read(&keys)[10..], [13., 14., 103., 17., 18., 103., 21., 22., 103., 519.]);
    let dper_head =
        Vectors { tensor: numbers(2, 12, 0), rows: Rows::heads(2, 12, 1, 3, 2).apart(4) };
    let dshared = Vectors { tensor: numbers(2, 2, 700), rows: Rows::heads(2, 2, 1, 1, 1) };
    let dkeys = Vectors { tensor: numbers(2, 10, 0), ..keys };
    let part = JoinKeysBackward {
        dkeys: dkeys.clone(),
        dper_head: dper_head.clone(),
        dshared: dshared.clone(),
    };
    part.launch(&stream).unwrap();
    assert_eq!(read(&dper_head)[..12], [0., 0., 1., 3., 4., 3., 4., 7., 8., 6., 7., 11.]);
    assert_eq!(read(&dshared), [700., 2. + 5. + 8., 702., 12. + 15. + 18.]);
    // One column too few.
    let short = Vectors { rows: Rows::heads(2, 12, 1, 3, 1).apart(4), ..dper_head };
    let refused = JoinKeysBackward { dkeys, dper_head: short, dshared }.launch(&stream);
    assert!(matches!(refused, Err(KernelError::Argument { .. })), "{refused:?}");
}
