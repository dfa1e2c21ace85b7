//! The host's iteration against an f64 reference by singular values, on hard spectra, zeros, and
//! values that are not finite; its bits depend on the matrix alone.

use super::*;
use crate::Op as _;
use crate::Real;
use device::{DType, Device};
use faer::Mat;

mod algorithms;
mod rounding;

/// Uniform in -1..1.
fn noise(len: usize, seed: u64) -> Vec<f64> {
    let mut state = seed.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let next = || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
    };
    std::iter::repeat_with(next).take(len).collect()
}

fn matrix(rows: usize, cols: usize, seed: u64) -> Mat<f64> {
    let values = noise(rows * cols, seed);
    Mat::from_fn(rows, cols, |i, j| values[i * cols + j])
}

/// `U·diag(values)·Vᵀ` with the singular vectors of noise.
fn with_spectrum(rows: usize, cols: usize, values: impl Fn(usize) -> f64) -> Mat<f64> {
    let svd = matrix(rows, cols, 7).thin_svd().unwrap();
    let n = rows.min(cols);
    let scaled = Mat::from_fn(rows, n, |i, j| svd.U()[(i, j)] * values(j));
    scaled * svd.V().transpose()
}

fn dense(x: &Mat<f64>) -> Vec<f64> {
    (0..x.nrows()).flat_map(|i| (0..x.ncols()).map(move |j| x[(i, j)])).collect()
}

/// The definition: singular vectors kept, singular values through the scalar polynomial.
fn reference(x: &Mat<f64>, iteration: &Iteration) -> Vec<f64> {
    let svd = x.thin_svd().unwrap();
    let (n, norm) = (x.nrows().min(x.ncols()), x.norm_l2());
    let scaled =
        Mat::from_fn(x.nrows(), n, |i, j| svd.U()[(i, j)] * iteration.at(svd.S()[j] / norm));
    dense(&(scaled * svd.V().transpose()))
}

fn relative_error<T: Real>(got: &[T], want: &[f64]) -> f64 {
    let difference = got.iter().zip(want).map(|(g, w)| (g.to_f64() - w).powi(2)).sum::<f64>();
    (difference / want.iter().map(|w| w * w).sum::<f64>()).sqrt()
}

/// Orthogonalizes a batch of dense matrices laid one after another.
fn batch<T: Real>(
    device: &Device,
    iteration: &Iteration,
    members: &[(usize, usize, Vec<T>)],
    lanes: usize,
) -> (Vec<Vec<T>>, Vec<u32>) {
    let (mut values, mut matrices) = (Vec::new(), Vec::new());
    for (rows, cols, x) in members {
        // A gap shows that nothing is written between members.
        let (input, output) = (values.len(), values.len() + matrices.len());
        matrices.push(Matrix::dense(input, output, *rows, *cols));
        values.extend_from_slice(x);
    }
    let list = Batch::new(iteration, matrices.clone()).unwrap();
    let input = device.tensor(&[values.len()], &values).unwrap();
    let sentinel = vec![T::of(9.0); values.len() + members.len()];
    let output = device.tensor(&[sentinel.len()], &sentinel).unwrap();
    let workspace = device.zeros(&[list.workspace_elements(lanes)], T::DTYPE).unwrap();
    let status = device.zeros(&[members.len()], DType::U32).unwrap();
    let stream = device.stream();
    let operation = Orthogonalize {
        batch: list,
        input,
        output: output.clone(),
        workspace,
        status: status.clone(),
    };
    operation.launch(&stream).unwrap();
    let result = stream.to_vec::<T>(&output).unwrap();
    let parts = matrices.iter().map(|m| {
        assert!(result[m.output_end()] == T::of(9.0), "wrote beyond a member");
        result[m.output..m.output_end()].to_vec()
    });
    (parts.collect(), stream.to_vec(&status).unwrap())
}

fn alone<T: Real>(iteration: &Iteration, (rows, cols): (usize, usize), x: &[f64]) -> Vec<T> {
    let x = x.iter().map(|&x| T::of(x)).collect();
    let device = Device::cpu(1).unwrap();
    let (mut parts, status) = batch::<T>(&device, iteration, &[(rows, cols, x)], 1);
    assert_eq!(status, [STATUS_FINITE]);
    parts.remove(0)
}

fn of(coefficients: &Coefficients, steps: usize) -> Iteration {
    let coefficients = coefficients.clone();
    Iteration::new(&Method { coefficients, steps, ..Method::default() }).unwrap()
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

const SHAPES: [(usize, usize); 12] = [
    (1, 1),
    (1, 37),
    (37, 1),
    (2, 2),
    (17, 17),
    (16, 48),
    (100, 33),
    (97, 131),
    (131, 97),
    (200, 200),
    (150, 310),
    (310, 150),
];

#[test]
fn singular_vectors_stay_and_values_follow_the_polynomial() {
    for coefficients in [Coefficients::Jordan, Coefficients::polar_express()] {
        for steps in [1, 2, 5, 8] {
            let iteration = of(&coefficients, steps);
            for (seed, shape) in SHAPES.into_iter().enumerate() {
                let x = matrix(shape.0, shape.1, seed as u64);
                let want = reference(&x, &iteration);
                let x = dense(&x);
                let double = relative_error(&alone::<f64>(&iteration, shape, &x), &want);
                assert!(double < 1e-11, "f64 {coefficients:?} {steps} {shape:?}: {double}");
                let single = relative_error(&alone::<f32>(&iteration, shape, &x), &want);
                assert!(single < 3e-5, "f32 {coefficients:?} {steps} {shape:?}: {single}");
            }
        }
    }
}

/// Spectra that momentum has: power law, exponential, and nearly of low rank.
#[test]
fn hard_spectra_are_followed_in_f32() {
    type Spectrum = fn(usize) -> f64;
    let spectra: [(&str, f64, Spectrum); 3] = [
        ("1/i", 1e-5, |i| 1.0 / (i + 1) as f64),
        ("exponential", 1e-4, |i| 10_f64.powf(-4.0 * i as f64 / 95.0)),
        ("rank 8", 2e-3, |i| if i < 8 { 1.0 } else { 1e-6 }),
    ];
    for coefficients in [Coefficients::Jordan, Coefficients::polar_express()] {
        let iteration = of(&coefficients, 5);
        for (name, tolerance, values) in spectra {
            let x = with_spectrum(96, 384, values);
            let want = reference(&x, &iteration);
            let error = relative_error(&alone::<f32>(&iteration, (96, 384), &dense(&x)), &want);
            assert!(error < tolerance, "{coefficients:?} {name}: {error}");
        }
    }
}

#[test]
fn singular_values_lie_in_the_composed_range() {
    for coefficients in [Coefficients::Jordan, Coefficients::polar_express()] {
        let iteration = of(&coefficients, 5);
        let x = with_spectrum(60, 90, |i| 1.0 / (1.0 + i as f64).powi(2));
        let norm = x.norm_l2();
        let out = alone::<f32>(&iteration, (60, 90), &dense(&x));
        let out = Mat::from_fn(60, 90, |i, j| f64::from(out[i * 90 + j]));
        let lo = 1.0 / 3600.0 / norm;
        let Range { least, greatest } = iteration.range_from(lo);
        for value in out.singular_values().unwrap() {
            assert!((least - 1e-4..=greatest + 1e-4).contains(&value), "{value}");
        }
        assert!(greatest < 1.21 && least > 0.1);
    }
}

/// A set, its steps, the least singular value, and the range that it promises from there to 1.
type Promise = (Coefficients, usize, f64, (f64, f64));

/// To the digits of the published table; five steps of Polar Express with their safety factor.
const PROMISES: [Promise; 6] = [
    (Coefficients::Jordan, 5, 1e-3, (0.470, 1.202)),
    (Coefficients::Jordan, 5, 1e-2, (0.682, 1.134)),
    (Coefficients::polar_express(), 5, 1e-3, (0.846, 1.124)),
    (Coefficients::polar_express(), 5, 1e-2, (0.870, 1.124)),
    (Coefficients::polar_express(), 8, 1e-3, (1.0, 1.0)),
    (Coefficients::polar_express(), 8, 1e-2, (1.0, 1.0)),
];

/// The result beside the polar factor `U·Vᵀ` itself: no direction is farther from it than the
/// farthest value of the range, and the farthest is not much nearer, so the range says it all.
#[test]
fn the_polar_factor_is_as_near_as_the_range_promises() {
    for (coefficients, steps, least, (low, high)) in PROMISES {
        let iteration = of(&coefficients, steps);
        let farthest = (1.0 - low).max(high - 1.0);
        for (rows, cols) in [(60, 90), (90, 60), (80, 80)] {
            let last = rows.min(cols) - 1;
            // From 1 down, and the last one exactly `least` of the norm.
            let above: Vec<f64> =
                (0..last).map(|i| (4.0 * least).powf(i as f64 / last as f64)).collect();
            let squares: f64 = above.iter().map(|value| value * value).sum();
            let smallest = least * (squares / (1.0 - least * least)).sqrt();
            let x = with_spectrum(rows, cols, |i| *above.get(i).unwrap_or(&smallest));
            let svd = x.thin_svd().unwrap();
            assert!((svd.S()[last] / x.norm_l2() / least - 1.0).abs() < 1e-9);
            let polar = svd.U() * svd.V().transpose();
            let out = alone::<f32>(&iteration, (rows, cols), &dense(&x));
            let apart =
                Mat::from_fn(rows, cols, |i, j| f64::from(out[i * cols + j]) - polar[(i, j)]);
            let distance = apart.singular_values().unwrap()[0];
            let place = format!("{coefficients:?} {steps} {rows}x{cols} from {least}: {distance}");
            println!("{place}");
            assert!(distance < farthest + 6e-4, "{place}");
            assert!(distance > 0.95 * farthest, "{place}");
        }
    }
}

#[test]
fn the_norm_of_the_input_does_not_matter() {
    let iteration = of(&Coefficients::Jordan, 5);
    for shape in [(40, 90), (90, 40)] {
        let x = noise(shape.0 * shape.1, 3);
        let plain = alone::<f32>(&iteration, shape, &x);
        for exponent in [-100, -40, 60, 127] {
            let scaled: Vec<f64> = x.iter().map(|x| x * 2_f64.powi(exponent)).collect();
            let got = alone::<f32>(&iteration, shape, &scaled);
            assert_eq!(bits(&got), bits(&plain), "times 2^{exponent}");
        }
        // Subnormal elements have few bits, yet the scale is found.
        let tiny: Vec<f64> = x.iter().map(|x| x * 2_f64.powi(-136)).collect();
        let got = alone::<f32>(&iteration, shape, &tiny);
        let plain: Vec<f64> = plain.iter().map(|&x| f64::from(x)).collect();
        assert!(relative_error(&got, &plain) < 0.1);
        // In two steps: `powi(-1040)` may be 1 over infinity.
        let far: Vec<f64> = x.iter().map(|x| x * 2_f64.powi(-520) * 2_f64.powi(-520)).collect();
        assert!(relative_error(&alone::<f64>(&iteration, shape, &far), &plain) < 1e-3);
    }
}

#[test]
fn zero_stays_zero_and_what_is_not_finite_is_told() {
    let iteration = of(&Coefficients::polar_express(), 5);
    let good: Vec<f32> = noise(20 * 30, 1).iter().map(|&x| x as f32).collect();
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for at in [0, 19, 599] {
            let mut broken = good.clone();
            broken[at] = bad;
            let lonely = [[0.0; 4], [0.0; 4]].concat().into_iter().chain([bad]).collect();
            let members = [
                (20, 30, good.clone()),
                (30, 20, broken),
                (6, 5, vec![0.0; 30]),
                (3, 3, lonely),
                (0, 7, Vec::new()),
                (20, 30, good.clone()),
            ];
            let (out, status) = batch(&Device::cpu(2).unwrap(), &iteration, &members, 2);
            assert_eq!(status, [0, STATUS_NON_FINITE, 0, STATUS_NON_FINITE, 0, 0]);
            assert!(out[1].iter().chain(&out[2]).chain(&out[3]).all(|&x| x == 0.0));
            assert_eq!(bits(&out[0]), bits(&out[5]));
            assert!(out[0].iter().all(|x| x.is_finite()) && out[0].iter().any(|&x| x != 0.0));
        }
    }
}

#[test]
fn tall_is_the_transpose_of_wide() {
    let iteration = of(&Coefficients::polar_express(), 6);
    for (rows, cols) in [(1, 50), (33, 100), (110, 230)] {
        let x = matrix(rows, cols, 11);
        let wide = alone::<f32>(&iteration, (rows, cols), &dense(&x));
        let tall = alone::<f32>(&iteration, (cols, rows), &dense(&x.transpose().to_owned()));
        let back: Vec<f32> =
            (0..rows * cols).map(|at| tall[(at % cols) * rows + at / cols]).collect();
        let wide: Vec<f64> = wide.iter().map(|&x| f64::from(x)).collect();
        assert!(relative_error(&back, &wide) < 1e-5);
    }
}

#[test]
fn a_vector_is_normalized_and_scaled() {
    let iteration = of(&Coefficients::Jordan, 5);
    let x = noise(37, 5);
    let norm = x.iter().map(|x| x * x).sum::<f64>().sqrt();
    let want: Vec<f64> = x.iter().map(|x| x / norm * iteration.at(1.0)).collect();
    for shape in [(1, 37), (37, 1)] {
        assert!(relative_error(&alone::<f32>(&iteration, shape, &x), &want) < 1e-6);
    }
}

#[test]
fn bits_depend_on_the_matrix_alone() {
    for steps in [4, 5] {
        let iteration = of(&Coefficients::polar_express(), steps);
        let members: Vec<(usize, usize, Vec<f32>)> = SHAPES
            .iter()
            .enumerate()
            .map(|(seed, &(rows, cols))| {
                let x = noise(rows * cols, seed as u64);
                (rows, cols, x.iter().map(|&x| x as f32).collect())
            })
            .collect();
        let alone: Vec<Vec<u32>> = members
            .iter()
            .map(|member| {
                let member = std::slice::from_ref(member);
                bits(&batch(&Device::cpu(1).unwrap(), &iteration, member, 1).0[0])
            })
            .collect();
        let devices = [1, 2, 3].map(|threads| Device::cpu(threads).unwrap());
        for device in devices.into_iter().chain([Device::guarded(2).unwrap()]) {
            for lanes in [1, 3] {
                let (together, _) = batch(&device, &iteration, &members, lanes);
                for (index, (got, want)) in together.iter().zip(&alone).enumerate() {
                    let shape = SHAPES[index];
                    assert!(&bits(got) == want, "{shape:?}, {lanes} lanes, {device:?}");
                }
            }
        }
    }
}

/// Large enough for the products themselves to be shared by threads.
#[test]
fn a_large_matrix_has_the_same_bits_on_any_number_of_threads() {
    let iteration = of(&Coefficients::Jordan, 2);
    let x: Vec<f32> = noise(500 * 700, 2).iter().map(|&x| x as f32).collect();
    let run = |threads| {
        let device = Device::cpu(threads).unwrap();
        bits(&batch(&device, &iteration, &[(500, 700, x.clone())], 1).0[0])
    };
    let one = run(1);
    assert!(one == run(2) && one == run(3));
}

#[test]
fn what_does_not_fit_is_refused() {
    let at = |input, output| Matrix::dense(input, output, 3, 4);
    let iteration = of(&Coefficients::Jordan, 5);
    let overlap = Batch::new(&iteration, vec![at(0, 0), at(12, 11)]).unwrap_err().to_string();
    assert!(overlap.contains("overlap"), "{overlap}");
    // Two results from one input are fine.
    let list = Batch::new(&iteration, vec![at(0, 0), at(0, 12)]).unwrap();
    assert_eq!(list.workspace_elements(64), 2 * list.least_workspace_elements());
    let device = Device::cpu(1).unwrap();
    let zeros = |len: usize, dtype| device.zeros(&[len], dtype).unwrap();
    let (x, o) = (zeros(12, DType::F32), zeros(24, DType::F32));
    let status = zeros(2, DType::U32);
    let stream = device.stream();
    let run = |o: &Tensor, work: &Tensor, status: &Tensor| {
        let [input, output, workspace, status] = [&x, o, work, status].map(Tensor::clone);
        let batch = list.clone();
        Orthogonalize { batch, input, output, workspace, status }.launch(&stream)
    };
    let least = list.least_workspace_elements();
    let work = zeros(least, DType::F32);
    run(&o, &work, &status).unwrap();
    for (result, operand) in [
        (run(&zeros(23, DType::F32), &work, &status), "output"),
        (run(&o, &zeros(least - 1, DType::F32), &status), "workspace"),
        (run(&o, &work, &zeros(1, DType::U32)), "status"),
    ] {
        match result {
            Err(KernelError::Operand { operand: got, .. }) => assert_eq!(got, operand),
            other => panic!("{other:?}"),
        }
    }
    let mixed = run(&zeros(24, DType::F64), &work, &status);
    assert!(matches!(mixed, Err(KernelError::Device(_))), "{mixed:?}");
}
