//! The optimizer's operations on every simulated architecture: the host's bits, element by element,
//! and one order of sums.

mod orthogonalization;
mod updates;

use device::{Arch, Device, SimOptions, Tensor};
use kernels::optimizer::{CopyToMasters, Span, Spans};
use kernels::{KernelError, Op};
use orthogonalization::with_kernels;

const ARCHS: [Arch; 5] = [Arch::Sm90a, Arch::Sm80, Arch::Gfx90a, Arch::Gfx942, Arch::Gfx950];

#[test]
fn elements_have_the_bits_of_the_host_on_every_architecture() {
    for arch in ARCHS {
        let check_races = matches!(arch, Arch::Sm90a | Arch::Gfx942);
        with_kernels(arch, SimOptions { check_races, ..SimOptions::default() }, |device| {
            updates::elements_have_the_bits_of_the_host(&device);
        });
    }
}

#[test]
fn squares_are_summed_in_one_order_on_all_devices() {
    let mut all = Vec::new();
    for (arch, seed) in [(Arch::Sm90a, 0), (Arch::Gfx942, 0), (Arch::Gfx942, 7), (Arch::Gfx950, 1)]
    {
        with_kernels(arch, SimOptions { seed, ..SimOptions::default() }, |device| {
            all.push(updates::squares_are_summed_within_their_bound(&device));
        });
    }
    assert!(all.windows(2).all(|pair| pair[0] == pair[1]), "the bits differ between devices");
}

#[test]
fn lists_and_memory_of_another_device_are_refused() {
    with_kernels(Arch::Gfx942, SimOptions::default(), |device| {
        let (host, span) = (Device::cpu(1).unwrap(), Span { flat: 0, local: 0, len: 4, unit: 0 });
        let four = |device: &Device| device.tensor(&[4], &[1.0_f32; 4]).unwrap();
        let (here, there) = (four(&device), four(&host));
        let spans = [&device, &host].map(|device| Spans::new(device, &[span]).unwrap());
        let stream = device.stream();
        let copy = |spans: &Spans, masters: &Tensor| {
            let (spans, flat, masters) = (spans.clone(), here.clone(), masters.clone());
            CopyToMasters { spans, flat, masters }.launch(&stream)
        };
        let refused = copy(&spans[0], &there).unwrap_err();
        assert!(matches!(refused, KernelError::Device(_)), "{refused}");
        let refused = copy(&spans[1], &four(&device)).unwrap_err();
        assert!(refused.to_string().contains("made for a host device"), "{refused}");
        copy(&spans[0], &four(&device)).unwrap();
    });
}
