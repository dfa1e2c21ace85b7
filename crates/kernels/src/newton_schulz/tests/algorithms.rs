//! Every algorithm, set and storage against the definition, and the ways a batch is laid out.

use super::*;

fn all(algorithm: Algorithm, coefficients: &Coefficients, steps: usize) -> Iteration {
    let coefficients = coefficients.clone();
    Iteration::new(&Method { algorithm, coefficients, steps, ..Method::default() }).unwrap()
}

fn sets() -> Vec<Coefficients> {
    vec![
        Coefficients::Jordan,
        Coefficients::PolarExpress { safety: 1.05 },
        Coefficients::PolarExpressCushion,
        Coefficients::Cans,
        Coefficients::You,
        Coefficients::Taylor { kappa: 1 },
        Coefficients::Taylor { kappa: 4 },
        Coefficients::Cubic5,
        Coefficients::DeepseekV4,
        Coefficients::Custom {
            steps: vec![
                vec![2.5, -2.0, 0.5],
                vec![1.5, -0.5],
                vec![2.1875, -2.1875, 1.3125, -0.3125],
            ],
            beyond: Beyond::Cycle,
        },
    ]
}

const ARRANGED: [Algorithm; 3] = [Algorithm::Standard, Algorithm::Symmetric, Algorithm::Gram];

#[test]
fn every_arrangement_follows_the_polynomial() {
    for coefficients in sets() {
        for (seed, shape) in [(1, 9), (9, 1), (30, 77), (77, 30), (50, 50)].into_iter().enumerate()
        {
            let x = matrix(shape.0, shape.1, seed as u64);
            for algorithm in ARRANGED {
                for steps in [1, 3, 6] {
                    let iteration = all(algorithm, &coefficients, steps);
                    let got = alone::<f64>(&iteration, shape, &dense(&x));
                    let error = relative_error(&got, &reference(&x, &iteration));
                    let place = format!("{coefficients:?} {algorithm:?} {steps} {shape:?}");
                    assert!(error < 1e-10, "{place}: {error}");
                }
            }
        }
    }
}

/// The rescale by rows, and then the polynomial of what it leaves.
#[test]
fn aol_is_the_polynomial_of_the_rescaled() {
    for (rows, cols) in [(20, 50), (50, 20), (33, 33), (1, 8)] {
        let x = matrix(rows, cols, 3);
        let wide = if rows > cols { x.transpose().to_owned() } else { x };
        let (n, m) = (wide.nrows(), wide.ncols());
        let gram = &wide * wide.transpose();
        let factor = |i: usize| {
            let sum: f64 = (0..n).map(|j| gram[(i, j)].abs()).sum();
            1.0 / sum.sqrt()
        };
        let rescaled = Mat::from_fn(n, m, |i, j| factor(i) * wide[(i, j)]);
        let svd = rescaled.thin_svd().unwrap();
        assert!(svd.S()[0] <= 1.0 + 1e-12);
        for algorithm in ARRANGED {
            let iteration = all(algorithm, &Coefficients::Aol, 4);
            let values = Mat::from_fn(n, n, |i, j| svd.U()[(i, j)] * iteration.at(svd.S()[j]));
            let want = values * svd.V().transpose();
            let want = if rows > cols { want.transpose().to_owned() } else { want };
            let x = if rows > cols { wide.transpose().to_owned() } else { wide.clone() };
            let got = alone::<f64>(&iteration, (rows, cols), &dense(&x));
            let error = relative_error(&got, &dense(&want));
            assert!(error < 1e-11, "{algorithm:?} {rows}×{cols}: {error}");
        }
    }
}

#[test]
fn svd_is_the_polar_factor() {
    let method = Method { algorithm: Algorithm::Svd, ..Method::default() };
    let iteration = Iteration::new(&method).unwrap();
    for shape in [(1, 1), (5, 1), (1, 5), (40, 90), (90, 40), (64, 64)] {
        let x = matrix(shape.0, shape.1, 4);
        let got = alone::<f32>(&iteration, shape, &dense(&x));
        let error = relative_error(&got, &reference(&x, &iteration));
        assert!(error < 1e-6, "{shape:?}: {error}");
    }
    // Of low rank: nothing is made of what is not there.
    let x = with_spectrum(30, 40, |i| if i < 3 { 1.0 + i as f64 } else { 0.0 });
    let got = alone::<f64>(&iteration, (30, 40), &dense(&x));
    let squares: f64 = got.iter().map(|x| x * x).sum();
    assert!((squares - 3.0).abs() < 1e-9, "{squares}");
}

/// Rounding to a type gives a matrix of low rank small singular values in all other directions;
/// they are no part of it. A matrix of full rank keeps every direction.
#[test]
fn svd_makes_nothing_of_rounding_error() {
    let (rows, cols) = (40, 96);
    let (a, b) = (noise(rows, 1), noise(cols, 2));
    let exact: Vec<f64> = (0..rows * cols).map(|i| a[i / cols] * b[i % cols]).collect();
    // Rows that are multiples of one another carry the same errors.
    let alike: Vec<f64> =
        (0..rows * cols).map(|i| [1.0, 3.0][i / cols % 2] * b[i % cols]).collect();
    let full = dense(&matrix(rows, cols, 4));
    let bf16 = |x: f64| half::bf16::from_f64(x).to_f64();
    let f16 = |x: f64| half::f16::from_f64(x).to_f64();
    let f32 = |x: f64| f64::from(x as f32);
    let types: [(f64, &dyn Fn(f64) -> f64); 3] =
        [(0.0, &f32), (2_f64.powi(-8), &bf16), (2_f64.powi(-11), &f16)];
    for (input_roundoff, round) in types {
        let method = Method { algorithm: Algorithm::Svd, input_roundoff, ..Method::default() };
        let iteration = Iteration::new(&method).unwrap();
        for (values, rank) in [(&exact, 1.0), (&alike, 1.0), (&full, rows as f64)] {
            let rounded: Vec<f64> = values.iter().map(|&x| round(x)).collect();
            let got = alone::<f32>(&iteration, (rows, cols), &rounded);
            let squares: f64 = got.iter().map(|&x| f64::from(x).powi(2)).sum();
            assert!((squares - rank).abs() < 1e-3, "{input_roundoff}: {squares} of {rank}");
        }
    }
}

/// The quick algorithms of many steps come where the exact one is.
#[test]
fn eight_steps_agree_with_the_svd() {
    let x = with_spectrum(48, 120, |i| 1.0 / (i + 1) as f64);
    let exact = Method { algorithm: Algorithm::Svd, ..Method::default() };
    let exact = alone::<f64>(&Iteration::new(&exact).unwrap(), (48, 120), &dense(&x));
    for (set, steps, within) in [
        (Coefficients::polar_express(), 8, 1e-6),
        (Coefficients::DeepseekV4, 10, 1e-3),
        (Coefficients::Taylor { kappa: 3 }, 12, 1e-9),
    ] {
        for algorithm in ARRANGED {
            let got = alone::<f32>(&all(algorithm, &set, steps), (48, 120), &dense(&x));
            let error = relative_error(&got, &exact);
            assert!(error < within + 2e-5, "{set:?} {algorithm:?}: {error}");
        }
    }
}

/// One matrix inside rows of others: strides, a factor, and nothing beyond it.
#[test]
fn strides_and_scale_change_no_bits_and_nothing_else() {
    let device = Device::cpu(2).unwrap();
    let stream = device.stream();
    for algorithm in ARRANGED {
        for storage in [Storage::F32, Storage::F16] {
            let method = Method { algorithm, storage, ..Method::default() };
            let iteration = Iteration::new(&method).unwrap();
            for (rows, cols) in [(12, 31), (31, 12), (1, 6), (6, 1), (200, 210)] {
                let x: Vec<f64> =
                    noise(rows * cols, 8).iter().map(|&x| f64::from(x as f32)).collect();
                let plain = alone::<f32>(&iteration, (rows, cols), &x);
                let (input_stride, output_stride) = (cols + 3, cols + 5);
                let mut gaps = vec![f32::NAN; 2 + rows * input_stride];
                for (at, &x) in x.iter().enumerate() {
                    gaps[2 + at / cols * input_stride + at % cols] = x as f32;
                }
                let dense = Matrix::dense(2, 1, rows, cols);
                let matrix = Matrix { input_stride, output_stride, scale: 0.25, ..dense };
                let list = Batch::new(&iteration, vec![matrix]).unwrap();
                let input = device.tensor(&[gaps.len()], &gaps).unwrap();
                let sentinel = vec![9.0_f32; rows * output_stride + 1];
                let output = device.tensor(&[sentinel.len()], &sentinel).unwrap();
                let work = device.zeros(&[list.workspace_elements(1)], DType::F32).unwrap();
                let status = device.zeros(&[1], DType::U32).unwrap();
                let (batch, output_of) = (list, output.clone());
                let once =
                    Orthogonalize { batch, input, output: output_of, workspace: work, status };
                once.launch(&stream).unwrap();
                let got = stream.to_vec::<f32>(&output).unwrap();
                for (at, &got) in got.iter().enumerate() {
                    // The gap before the first row counts as the end of a row before it.
                    let along = at + output_stride - 1;
                    let (row, col) = (along / output_stride, along % output_stride);
                    let inside = row > 0 && col < cols;
                    let want = if inside { 0.25 * plain[(row - 1) * cols + col] } else { 9.0 };
                    assert_eq!(got.to_bits(), want.to_bits(), "{algorithm:?} {rows}×{cols} {at}");
                }
            }
        }
    }
}

/// Matrices side by side in the same rows, as the parts of a fused projection are.
#[test]
fn results_side_by_side_are_told_from_results_that_overlap() {
    let iteration = of(&Coefficients::Jordan, 5);
    let part = |at: usize, cols: usize, stride: usize| Matrix {
        input_stride: stride,
        output_stride: stride,
        ..Matrix::dense(at, at, 4, cols)
    };
    let fits = |matrices| Batch::new(&iteration, matrices).is_ok();
    assert!(fits(vec![part(0, 5, 12), part(5, 4, 12), part(9, 3, 12)]));
    assert!(fits(vec![part(9, 3, 12), part(0, 5, 12), part(48, 12, 12)]));
    assert!(!fits(vec![part(0, 5, 12), part(4, 4, 12)]));
    assert!(!fits(vec![part(0, 5, 12), part(5, 4, 13)]));
    // Around the end of a row into the next.
    assert!(!fits(vec![part(0, 5, 12), part(9, 4, 12)]));
    assert!(!fits(vec![part(0, 5, 4)]));
}

#[test]
fn every_storage_and_algorithm_has_the_bits_of_its_members_alone() {
    for algorithm in ARRANGED {
        for storage in [Storage::Bf16, Storage::F16, Storage::F32] {
            let method = Method { algorithm, storage, ..Method::default() };
            let iteration = Iteration::new(&method).unwrap();
            let mut members: Vec<(usize, usize, Vec<f32>)> = SHAPES
                .iter()
                .enumerate()
                .map(|(seed, &(rows, cols))| {
                    let x = noise(rows * cols, seed as u64);
                    (rows, cols, x.iter().map(|&x| x as f32).collect())
                })
                .collect();
            let mut one_by_one: Vec<Vec<u32>> = members
                .iter()
                .map(|member| {
                    let member = std::slice::from_ref(member);
                    bits(&batch(&Device::cpu(1).unwrap(), &iteration, member, 1).0[0])
                })
                .collect();
            members.reverse();
            one_by_one.reverse();
            let (together, _) = batch(&Device::cpu(3).unwrap(), &iteration, &members, 2);
            for ((got, want), member) in together.iter().zip(&one_by_one).zip(&members) {
                let place = format!("{algorithm:?} {storage:?} {}×{}", member.0, member.1);
                assert!(&bits(got) == want, "{place}");
            }
        }
    }
}

#[test]
fn nothing_gives_nothing() {
    let iteration = of(&Coefficients::Jordan, 5);
    let device = Device::cpu(2).unwrap();
    let (out, status) = batch::<f32>(&device, &iteration, &[], 1);
    assert!(out.is_empty() && status.is_empty());
    let members = [(0, 0, vec![]), (0, 4, vec![]), (4, 0, vec![])];
    let (out, status) = batch::<f32>(&device, &iteration, &members, 1);
    assert!(out.iter().all(Vec::is_empty) && status == [0, 0, 0]);
}

/// A matrix below its least norm comes out as the polynomial of its small singular values; the
/// rescaled and the exact forms fade with it, too.
#[test]
fn what_fades_away_leaves_no_update() {
    let x: Vec<f64> = noise(10 * 30, 6).iter().map(|x| x * 1e-17).collect();
    for algorithm in [Algorithm::Symmetric, Algorithm::Gram, Algorithm::Svd] {
        for coefficients in [Coefficients::Jordan, Coefficients::Aol] {
            let method = Method { algorithm, coefficients, least_norm: 1e-3, ..Method::default() };
            let out = alone::<f32>(&Iteration::new(&method).unwrap(), (10, 30), &x);
            let norm = out.iter().map(|x| x * x).sum::<f32>().sqrt();
            assert!(norm > 0.0 && norm < 1e-2, "{method:?}: {norm}");
        }
    }
}

#[test]
fn a_status_becomes_an_error_with_the_name() {
    let iteration = of(&Coefficients::Jordan, 5);
    let device = Device::cpu(1).unwrap();
    let list = Batch::new(&iteration, (0..3).map(|i| Matrix::dense(4 * i, 4 * i, 2, 2)).collect());
    let list = list.unwrap();
    let mut x = vec![1.0_f32; 12];
    let stream = device.stream();
    let run = |x: &[f32]| {
        let input = device.tensor(&[12], x).unwrap();
        let output = device.zeros(&[12], DType::F32).unwrap();
        let work = device.zeros(&[list.workspace_elements(1)], DType::F32).unwrap();
        let status = device.zeros(&[3], DType::U32).unwrap();
        let (batch, told) = (list.clone(), status.clone());
        let once = Orthogonalize { batch, input, output, workspace: work, status: told };
        once.launch(&stream).unwrap();
        check_status(&stream, &status, |index| format!("layer {index}"))
    };
    run(&x).unwrap();
    x[5] = f32::NAN;
    let error = run(&x).unwrap_err().to_string();
    assert_eq!(error, "matrix 1 (layer 1) holds an infinity or NaN");
}
