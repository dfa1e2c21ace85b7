//! Whole orthogonalizations on every simulated architecture, against f64 and against each other.
//!
//! Where the build had no C++ compiler there are no simulated kernels; each test then says so and
//! checks nothing.

mod orthogonalization;

use device::{Arch, DType, Device, SimOptions, Tensor};
use kernels::gpu::arch::{Class, Form, TileType};
use kernels::gpu::bandwidth::{self, Traffic};
use kernels::gpu::modules::Kernels;
use kernels::gpu::product::{Products, Shape, Spec};
use kernels::newton_schulz::{
    Algorithm, Bound, Coefficients, Orthogonalize, STATUS_FINITE, STATUS_NON_FINITE, Storage, room,
};
use kernels::{Entries, KernelError, Op as _};
use orthogonalization::{Case, gaussian, reference, relative_error, with_kernels};

const ARCHS: [Arch; 5] = [Arch::Sm90a, Arch::Sm80, Arch::Gfx90a, Arch::Gfx942, Arch::Gfx950];

/// Wide, tall, a row, a column, empty, and one of several units.
const SHAPES: [(usize, usize); 6] = [(70, 100), (90, 33), (1, 50), (40, 1), (0, 7), (130, 140)];

fn fast() -> SimOptions {
    SimOptions { check_races: false, ..SimOptions::default() }
}

/// About twice what rounding costs such matrices. A single singular value is 1, where the
/// polynomials are steep; a Gram form squares the matrix before it rounds.
fn most_error(case: &Case, (rows, cols): (usize, usize)) -> f64 {
    let single = if rows.min(cols) == 1 { 5.0 } else { 1.0 };
    let output = if case.output == DType::Bf16 { 0.004 } else { 0.0 };
    let storage = match case.storage {
        Storage::Bf16 => 0.04,
        _ if case.algorithm == Algorithm::Gram => 0.02,
        _ => 0.006,
    };
    storage * single + output
}

/// Runs a case and compares every member with f64, and its error with that of the CPU.
fn check(device: &Device, case: &Case) {
    let (outcome, twin) = (case.run(device), case.twin());
    for (index, out) in outcome.outputs.iter().enumerate() {
        let expected = reference(case, index);
        let error = relative_error(out, &expected);
        let of_twin = relative_error(&twin[index], &expected);
        let (shape, set) = (case.shapes[index], &case.coefficients);
        let most = most_error(case, shape);
        let Case { algorithm, storage, input, .. } = case;
        let what = format!("{device:?} {algorithm:?} {storage:?} {set:?} {input} {shape:?}");
        assert!(error <= most, "{what}: {error:.2e}");
        assert!(error <= 2.0 * of_twin + most / 4.0, "{what}: {error:.2e}, CPU {of_twin:.2e}");
    }
    assert_eq!(outcome.statuses, vec![STATUS_FINITE; case.shapes.len()]);
}

#[test]
fn every_algorithm_follows_its_polynomial_on_every_architecture() {
    for arch in ARCHS {
        with_kernels(arch, fast(), |device| {
            for (algorithm, storage) in [
                (Algorithm::Standard, Storage::Bf16),
                (Algorithm::Symmetric, Storage::F16),
                (Algorithm::Gram, Storage::F16),
            ] {
                check(&device, &Case { algorithm, storage, ..Case::new(&SHAPES[..5]) });
            }
        });
    }
}

#[test]
fn every_kind_of_polynomial_and_element_is_followed() {
    with_kernels(Arch::Sm90a, fast(), |device| {
        let shapes = [(64, 256), (256, 64), (30, 40)];
        let sets = [
            (Coefficients::Taylor { kappa: 4 }, Algorithm::Symmetric, DType::F32, DType::Bf16),
            (Coefficients::Aol, Algorithm::Symmetric, DType::Bf16, DType::F32),
            (Coefficients::Aol, Algorithm::Gram, DType::F32, DType::F32),
            (Coefficients::Cubic5, Algorithm::Gram, DType::F16, DType::F32),
        ];
        for (coefficients, algorithm, input, output) in sets {
            let steps = coefficients.usual_steps();
            let case = Case { coefficients, algorithm, input, output, steps, ..Case::new(&shapes) };
            check(&device, &case.rounded());
        }
        let faint = Case { least_norm: 100.0, ..Case::new(&[(20, 30)]) };
        check(&device, &faint);
    });
}

#[test]
fn rows_with_gaps_are_read_and_written() {
    with_kernels(Arch::Sm80, fast(), |device| {
        for (gap, output) in [(3, DType::F32), (4, DType::Bf16)] {
            let case = Case::new(&[(64, 70), (70, 20), (0, 3), (3, 0)]);
            check(&device, &Case { gap, output, scale: 0.25, steps: 2, ..case });
        }
    });
}

#[test]
fn the_entry_point_runs_a_batch_in_the_workspace_that_it_gets() {
    with_kernels(Arch::Gfx942, fast(), |device| {
        let case = Case { steps: 2, ..Case::new(&[(20, 30), (30, 20), (9, 9)]) };
        let expected = case.run(&device).outputs.concat();
        let (stream, batch) = (device.stream(), case.batch().unwrap());
        let input = device.tensor(&[expected.len()], &case.matrices.concat()).unwrap();
        let status = device.zeros(&[3], DType::U32).unwrap();
        let run = |bytes| {
            let output = device.zeros(&[expected.len()], DType::F32).unwrap();
            let workspace = device.zeros(&[bytes], DType::U8).unwrap();
            let [input, to, status] = [&input, &output, &status].map(Tensor::clone);
            let batch = batch.clone();
            Orthogonalize { batch, input, output: to, workspace, status }.launch(&stream)?;
            Ok::<_, KernelError>(stream.to_vec::<f32>(&output).unwrap())
        };
        let whole = case.prepare(&device).unwrap().workspace_bytes();
        assert_eq!(run(whole).unwrap(), expected);
        assert_eq!(run(whole / 2).unwrap(), expected);
        let refused = run(whole / 10).unwrap_err();
        assert!(matches!(refused, KernelError::Operand { .. }), "{refused}");
    });
}

#[test]
fn a_batch_gives_the_bits_of_its_members_in_any_order_and_in_parts() {
    for arch in [Arch::Sm90a, Arch::Gfx942] {
        with_kernels(arch, fast(), |device| {
            let case = Case { algorithm: Algorithm::Gram, steps: 3, ..Case::new(&SHAPES) };
            let whole = case.run(&device);
            let order = [4, 2, 0, 5, 3, 1];
            let turned = case.part(&order).run(&device);
            for (at, &index) in order.iter().enumerate() {
                assert_eq!(turned.outputs[at], whole.outputs[index], "{arch} {:?}", SHAPES[index]);
                let alone = case.part(&[index]).run(&device);
                assert_eq!(alone.outputs[0], whole.outputs[index], "{arch} {:?}", SHAPES[index]);
            }
            let lines = |case: &Case| case.prepare(&device).unwrap().numeric_plan();
            assert!(lines(&case).is_superset(&lines(&case.part(&[0, 5]))));
            let parts = Case { limit: Some(1 << 20), ..case.clone() }.run(&device);
            assert_eq!(parts.outputs, whole.outputs);
            assert!(parts.launches > whole.launches);
        });
    }
}

#[test]
fn bits_do_not_depend_on_the_order_of_work_and_nothing_races() {
    let shapes = [(20, 30), (65, 12)];
    for arch in ARCHS {
        let mut bits = Vec::new();
        for (seed, multiprocessors, check_races) in [(0, 4, false), (1, 1, true), (2, 7, true)] {
            let options = SimOptions { seed, multiprocessors, check_races };
            with_kernels(arch, options, |device| {
                let case = Case { coefficients: Coefficients::Aol, steps: 2, ..Case::new(&shapes) };
                bits.push(case.run(&device).outputs);
            });
        }
        assert!(bits.windows(2).all(|pair| pair[0] == pair[1]), "{arch}");
    }
}

#[test]
fn a_matrix_that_is_not_finite_is_named_and_harms_no_other() {
    with_kernels(Arch::Sm90a, fast(), |device| {
        let good = Case { steps: 2, ..Case::new(&[(20, 30), (70, 5), (30, 30), (9, 9)]) };
        let mut bad = good.clone();
        bad.matrices[1][13] = f32::NAN;
        bad.matrices[2][77] = f32::NEG_INFINITY;
        bad.matrices[3].fill(0.0);
        let (good, bad) = (good.run(&device), bad.run(&device));
        let non_finite = [STATUS_FINITE, STATUS_NON_FINITE, STATUS_NON_FINITE, STATUS_FINITE];
        assert_eq!(bad.statuses, non_finite);
        assert_eq!(bad.outputs[0], good.outputs[0]);
        assert!(bad.outputs[1..].concat().iter().all(|&x| x == 0.0));
    });
}

#[test]
fn a_power_of_two_changes_no_bit() {
    with_kernels(Arch::Gfx950, fast(), |device| {
        let case = Case { steps: 2, ..Case::new(&[(20, 30)]) };
        let expected = case.run(&device).outputs;
        for factor in [2_f32.powi(-110), 2_f32.powi(120), 2_f32.powi(-7)] {
            let mut scaled = case.clone();
            scaled.matrices[0].iter_mut().for_each(|x| *x *= factor);
            assert_eq!(scaled.run(&device).outputs, expected, "{factor:e}");
        }
    });
}

#[test]
fn what_has_no_kernels_is_refused() {
    with_kernels(Arch::Sm80, fast(), |device| {
        let case = Case::new(&[(4, 8)]);
        let refused = |case: Case| case.try_run(&device).err().map(|error| error.to_string());
        let storage = refused(Case { storage: Storage::F32, ..case.clone() }).unwrap();
        assert!(storage.contains("bf16 or f16"), "{storage}");
        let svd = refused(Case { algorithm: Algorithm::Svd, ..case.clone() }).unwrap();
        assert!(svd.contains("on CPUs"), "{svd}");
        let input = refused(Case { output: DType::F16, ..case }).unwrap();
        assert!(input.contains("f16"), "{input}");
    });
    let cpu = Device::cpu(1).unwrap();
    assert!(matches!(Kernels::of(&cpu), Err(KernelError::Argument { .. })));
}

/// Each has its own tables: a run of one leaves nothing behind that the other reads.
#[test]
fn two_bound_batches_share_a_workspace() {
    for arch in [Arch::Sm90a, Arch::Gfx942] {
        with_kernels(arch, fast(), |device| {
            let cases = [
                Case { steps: 2, ..Case::new(&[(40, 30), (30, 70)]) },
                Case { steps: 3, algorithm: Algorithm::Gram, ..Case::new(&[(20, 90)]) },
            ];
            let (stream, f32s) = (device.stream(), (DType::F32, DType::F32));
            let batches = cases.each_ref().map(|case| case.batch().unwrap());
            let rooms = batches.each_ref().map(|batch| room(&device, batch, f32s).unwrap());
            let bytes = rooms.iter().map(|room| room.workspace_elements).max().unwrap();
            let workspace = device.zeros(&[bytes], rooms[0].workspace_dtype).unwrap();
            let bound: Vec<(Bound, Tensor)> = cases
                .iter()
                .zip(&batches)
                .map(|(case, batch)| {
                    let values = case.matrices.concat();
                    let input = device.tensor(&[values.len()], &values).unwrap();
                    let output = device.zeros(&[values.len()], DType::F32).unwrap();
                    let status = device.zeros(&[case.shapes.len()], DType::U32).unwrap();
                    let once = Orthogonalize {
                        batch: batch.clone(),
                        input,
                        output: output.clone(),
                        workspace: workspace.clone(),
                        status,
                    };
                    (Bound::new(&stream, once).unwrap(), output)
                })
                .collect();
            for _ in 0..2 {
                for ((bound, output), (case, room)) in bound.iter().zip(cases.iter().zip(&rooms)) {
                    stream.fill(output, 0xff).unwrap();
                    bound.launch(&stream).unwrap();
                    let got = stream.to_vec::<f32>(output).unwrap();
                    assert_eq!(got, case.run(&device).outputs.concat(), "{arch}");
                    assert_eq!(bound.table_bytes(), room.table_bytes);
                }
            }
        });
    }
}

#[test]
fn a_graph_runs_as_often_as_wanted() {
    with_kernels(Arch::Gfx942, fast(), |device| {
        let case = Case { steps: 2, ..Case::new(&[(20, 30), (30, 20)]) };
        let expected = case.run(&device).outputs.concat();
        let input = device.tensor(&[1200], &case.matrices.concat()).unwrap();
        let output = device.zeros(&[1200], DType::F32).unwrap();
        let prepared = case.prepare(&device).unwrap();
        let workspace = device.zeros(&[prepared.workspace_bytes()], DType::U8).unwrap();
        let status = device.zeros(&[2], DType::U32).unwrap();
        let stream = device.new_stream().unwrap();
        let bound = prepared.bind(&stream, &input, &output, &workspace, &status).unwrap();
        let captured = bound.capture(&stream).unwrap();
        for _ in 0..2 {
            stream.fill(&output, 0xff).unwrap();
            captured.launch(&stream).unwrap();
            assert_eq!(stream.to_vec::<f32>(&output).unwrap(), expected);
        }
    });
}

#[test]
fn products_are_those_of_plain_loops() {
    for arch in [Arch::Sm90a, Arch::Gfx90a] {
        with_kernels(arch, fast(), |device| {
            let kernels = Kernels::of(&device).unwrap();
            for (form, entries, class) in [
                (Form::Nt, Entries::All, Class::Large),
                (Form::Nn, Entries::All, Class::Small),
                (Form::Nt, Entries::Triangle, Class::Small),
            ] {
                let (m, n, k) = match entries {
                    Entries::Triangle => (130, 130, 70),
                    Entries::All => (60, 150, 70),
                };
                let shape = Shape { batch: 2, m, n, k };
                let spec = Spec { shape, entries, form, tiles: TileType::F16, class };
                check_product(&device, &kernels, &spec);
            }
        });
    }
}

fn check_product(device: &Device, kernels: &Kernels, spec: &Spec) {
    let Spec { shape: Shape { batch, m, n, k }, entries, form, .. } = *spec;
    let a = gaussian(1, batch * m * k);
    let b = if entries == Entries::Triangle { a.clone() } else { gaussian(2, batch * n * k) };
    let on_device = |x: &[f32]| device.tensor(&[x.len()], x).unwrap();
    let products = Products::new(kernels, *spec).unwrap();
    let workspace = device.zeros(&[products.workspace_bytes()], DType::U8).unwrap();
    let stream = device.stream();
    let operands = (&on_device(&a), &on_device(&b));
    let bound = products.bind(&stream, operands, &workspace).unwrap();
    bound.launch(&stream).unwrap();
    let at = |i: usize, j: usize, p: usize| match form {
        Form::Nt => b[(i * n + j) * k + p],
        Form::Nn => b[(i * k + p) * n + j],
    };
    for i in 0..batch {
        let dot = |row: usize, col: usize| -> f64 {
            (0..k).map(|p| f64::from(a[(i * m + row) * k + p]) * f64::from(at(i, col, p))).sum()
        };
        let expected: Vec<f64> = (0..m * n).map(|e| dot(e / n, e % n)).collect();
        let error = relative_error(&bound.result(&stream, i).unwrap(), &expected);
        assert!(error < 1e-3, "{spec:?}: {error:.2e}");
    }
}

#[test]
fn memory_is_copied_filled_and_read() {
    with_kernels(Arch::Sm80, fast(), |device| {
        let kernels = Kernels::of(&device).unwrap();
        let stream = device.stream();
        // More than the chunks that all threads have in flight, and a rest.
        let words: Vec<u32> = (0..4 * 80_001).map(|i: u32| i.wrapping_mul(0x9e37_79b9)).collect();
        let source = device.tensor(&[words.len()], &words).unwrap();
        let target = device.zeros(&[words.len()], DType::U32).unwrap();
        let run = |traffic, target, value| {
            bandwidth::launch(&kernels, &stream, traffic, (&source, target), value)
        };
        run(Traffic::Copy, &target, 0).unwrap();
        assert_eq!(stream.to_vec::<u32>(&target).unwrap(), words);
        run(Traffic::Write, &target, 77).unwrap();
        assert!(stream.to_vec::<u32>(&target).unwrap().iter().all(|&word| word == 77));
        // The first thread's words are those of every so many chunks.
        let threads = bandwidth::read_target_bytes(&kernels) / 4;
        let sums = device.zeros(&[threads], DType::U32).unwrap();
        let first = words.chunks(4 * threads).flat_map(|row| &row[..4]).fold(0, |a, b| a ^ b);
        run(Traffic::Read, &sums, first).unwrap();
        assert_eq!(stream.to_vec::<u32>(&sums).unwrap()[0], first);
        let odd = source.flat(1..5).unwrap();
        let refused = bandwidth::launch(&kernels, &stream, Traffic::Copy, (&odd, &target), 0);
        assert!(matches!(refused, Err(KernelError::Argument { .. })));
    });
}
