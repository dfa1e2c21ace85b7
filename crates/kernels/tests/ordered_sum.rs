//! Ordered sums have the bits of their program on the host devices and on simulated ones.

mod orthogonalization;
mod sums;

use device::{Arch, DType, Device, SimOptions, Tensor};
use half::{bf16, f16};
use kernels::ordered_sum::{OrderedSum, RedOp, Summation};
use orthogonalization::with_kernels;
use proptest::prelude::*;
use sums::{Case, program, tower};

fn hosts() -> [Device; 3] {
    [Device::cpu(1).unwrap(), Device::cpu(3).unwrap(), Device::guarded(2).unwrap()]
}

#[test]
fn sums_have_the_bits_of_their_program_on_hosts() {
    for device in hosts() {
        sums::sums_have_the_bits_of_their_program(&device);
        sums::mistakes_are_refused(&device);
    }
}

#[test]
fn sums_have_the_bits_of_their_program_on_every_architecture() {
    for arch in [Arch::Sm90a, Arch::Sm80, Arch::Gfx90a, Arch::Gfx942, Arch::Gfx950] {
        let check_races = matches!(arch, Arch::Sm90a | Arch::Gfx942);
        with_kernels(arch, SimOptions { check_races, ..SimOptions::default() }, |device| {
            sums::sums_have_the_bits_of_their_program(&device);
            sums::mistakes_are_refused(&device);
        });
    }
}

#[test]
fn programs_of_several_tiles_and_of_deep_stacks_are_summed() {
    // More than a tile of a host, and more than its threads' scratch holds.
    let (long, inputs) = program(&[61], 61);
    let deep = tower(130);
    let redop = RedOp::Sum;
    for device in hosts() {
        for in_place in [None, Some(30)] {
            let case = Case { redop, program: &long, inputs, len: 70_000, offset: 1, in_place };
            case.check::<f32>(&device).unwrap();
            Case { redop: RedOp::Avg, ..case }.check_rounded::<bf16>(&device).unwrap();
            let case = Case { program: &deep, inputs: 130, len: 3000, offset: 0, ..case };
            case.check_all(&device);
        }
    }
    with_kernels(Arch::Sm80, SimOptions::default(), |device| {
        let run = |inputs| {
            let program = &tower(inputs);
            let case = Case { redop, program, inputs, len: 50, offset: 0, in_place: None };
            case.check::<f64>(&device)
        };
        run(16).unwrap();
        let error = run(17).unwrap_err().to_string();
        assert!(error.contains("keeps 17 sums, and kernels of devices 16"), "{error}");
    });
}

#[test]
fn sums_are_ready_where_they_are_one_kernel() {
    let device = Device::cpu(1).unwrap();
    let zeros = |len| device.zeros(&[len], DType::F32).unwrap();
    for (members, is_one) in [(2, true), (24, true), (25, false), (130, false)] {
        let (program, inputs) = program(&[members], members);
        let sum = &OrderedSum::new(&program, inputs, RedOp::Sum).unwrap();
        let all: Vec<Tensor> = (0..inputs).map(|_| zeros(8)).collect();
        let (out, workspace) = (&zeros(8), &zeros(0));
        let summation = Summation { sum, inputs: &all, out, workspace };
        assert_eq!(summation.ready(&device).unwrap().is_some(), is_one, "{members}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn any_tree_and_world_is_summed(
        radices in prop::collection::vec(2_usize..5, 0..4),
        world in 1_usize..40, len in 0_usize..6000, offset in 0_usize..5, place in 0_usize..200,
    ) {
        let leaves: usize = radices.iter().product();
        let (program, inputs) = program(&radices, world.min(leaves));
        let in_place = (place < inputs).then_some(place);
        let redop = RedOp::ALL[(len + offset) % 5];
        let case = Case { redop, program: &program, inputs, len, offset, in_place };
        for device in hosts() {
            case.check::<f32>(&device).unwrap();
            case.check_rounded::<f16>(&device).unwrap();
            Case { in_place: None, ..case }.check::<bf16>(&device).unwrap();
        }
    }
}
