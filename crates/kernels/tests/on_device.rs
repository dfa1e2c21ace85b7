//! The simulator's tests of whole orthogonalizations, of the optimizer's other operations and of
//! ordered sums, on real devices: on each that `MUSTER_TEST_DEVICES` names (`cuda:0`,
//! `hip:0,hip:1`). Without it nothing is tested, which is said.

mod orthogonalization;
mod sums;
mod updates;

use device::{DType, Device, DeviceKind};
use kernels::newton_schulz::{Algorithm, Coefficients, STATUS_FINITE, STATUS_NON_FINITE, Storage};
use orthogonalization::{Case, gaussian, reference, relative_error};

/// Both block classes, several clusters, tall, thin, and no elements at all.
const SHAPES: [(usize, usize); 7] =
    [(512, 1024), (300, 700), (515, 130), (1, 50), (40, 1), (0, 7), (256, 256)];

#[test]
fn real_devices() {
    let Ok(kinds) = std::env::var("MUSTER_TEST_DEVICES") else {
        eprintln!("skipped: MUSTER_TEST_DEVICES names no devices");
        return;
    };
    for kind in kinds.split(',') {
        let kind: DeviceKind = kind.trim().parse().unwrap();
        let device = Device::new(kind, 2).unwrap();
        eprintln!("{kind}: {:?}", device.properties());
        updates::elements_have_the_bits_of_the_host(&device);
        updates::squares_are_summed_within_their_bound(&device);
        sums::sums_have_the_bits_of_their_program(&device);
        sums::mistakes_are_refused(&device);
        results_follow_the_polynomial(&device);
        a_batch_has_the_bits_of_its_members(&device);
        what_is_not_finite_is_named(&device);
        bits_are_the_same_every_time(&device);
        if !device.properties().simulated {
            large_ones_keep_their_bits(&device);
        }
    }
}

fn results_follow_the_polynomial(device: &Device) {
    let expected: Vec<Vec<f64>> =
        (0..SHAPES.len()).map(|index| reference(&Case::new(&SHAPES), index)).collect();
    for (algorithm, storage, most) in [
        (Algorithm::Standard, Storage::Bf16, 0.04),
        (Algorithm::Standard, Storage::F16, 0.006),
        (Algorithm::Symmetric, Storage::Bf16, 0.04),
        (Algorithm::Symmetric, Storage::F16, 0.006),
        (Algorithm::Gram, Storage::F16, 0.006),
    ] {
        let outcome = Case { algorithm, storage, ..Case::new(&SHAPES) }.run(device);
        for ((shape, out), expected) in SHAPES.iter().zip(&outcome.outputs).zip(&expected) {
            let error = relative_error(out, expected);
            let most = match algorithm {
                // A single singular value is 1, where the polynomials are steep.
                _ if shape.0.min(shape.1) == 1 => 5.0 * most,
                // Of square matrices the least singular values are squared below f16's rounding.
                Algorithm::Gram if shape.0 == shape.1 => 10.0 * most,
                _ => most,
            };
            eprintln!("{algorithm:?} {storage:?} {shape:?}: {error:.2e}");
            assert!(error <= most, "{algorithm:?} {storage:?} {shape:?}: {error:.2e}");
        }
        assert_eq!(outcome.statuses, vec![STATUS_FINITE; SHAPES.len()]);
    }
}

fn a_batch_has_the_bits_of_its_members(device: &Device) {
    for algorithm in [Algorithm::Symmetric, Algorithm::Gram] {
        let case = Case { algorithm, output: DType::Bf16, ..Case::new(&SHAPES) };
        let whole = case.run(device);
        let order = [4, 2, 0, 6, 5, 3, 1];
        let turned = case.part(&order).run(device);
        for (at, &index) in order.iter().enumerate() {
            let alone = case.part(&[index]).run(device);
            assert_eq!(turned.outputs[at], whole.outputs[index], "{:?}", SHAPES[index]);
            assert_eq!(alone.outputs[0], whole.outputs[index], "{:?}", SHAPES[index]);
        }
    }
}

fn what_is_not_finite_is_named(device: &Device) {
    let good = Case::new(&[(200, 300), (70, 5), (300, 300)]);
    let mut bad = good.clone();
    bad.matrices[1][13] = f32::NAN;
    bad.matrices[2][77] = f32::NEG_INFINITY;
    let (good, bad) = (good.run(device), bad.run(device));
    assert_eq!(bad.statuses, [STATUS_FINITE, STATUS_NON_FINITE, STATUS_NON_FINITE]);
    assert_eq!(bad.outputs[0], good.outputs[0]);
    assert!(bad.outputs[1..].concat().iter().all(|&x| x == 0.0));
}

/// Products of both classes in one program, chained stages, many rounds: too much for a simulator.
fn large_ones_keep_their_bits(device: &Device) {
    let case = Case {
        algorithm: Algorithm::Gram,
        output: DType::Bf16,
        ..Case::new(&[(2048, 3328), (3328, 2048), (768, 3072)])
    };
    let whole = case.run(device).outputs;
    for _ in 0..3 {
        assert!(case.run(device).outputs == whole, "bits differ between runs");
    }
    for (index, of_batch) in whole.iter().enumerate() {
        let alone = case.part(&[index]).run(device);
        assert!(alone.outputs[0] == *of_batch, "{:?} alone has other bits", case.shapes[index]);
        assert!(of_batch.iter().all(|x| x.is_finite()) && of_batch.iter().any(|&x| x != 0.0));
    }
}

/// A race that a simulator's model misses shows here sooner or later.
fn bits_are_the_same_every_time(device: &Device) {
    let shapes = [(384, 900), (900, 384), (130, 640), (256, 512)];
    for (algorithm, coefficients) in [
        (Algorithm::Gram, Coefficients::polar_express()),
        (Algorithm::Symmetric, Coefficients::Aol),
    ] {
        let mut case = Case { algorithm, coefficients, ..Case::new(&shapes) };
        case.matrices[0] = gaussian(77, 384 * 900);
        let first = case.run(device).outputs;
        for _ in 0..20 {
            assert!(case.run(device).outputs == first, "{algorithm:?}: bits differ between runs");
        }
    }
}
