//! Orthogonalizations through the CUDA and the HIP driver interface, whose look-alikes run the
//! simulated kernels: the same bits as on the simulated device, and no complaint about arguments,
//! handles, life times or the order of work.
//!
//! Each look-alike needs a process of its own, because a driver's library is opened once.

mod orthogonalization;

use std::process::Command;

use device::{Arch, Device, DeviceKind, SimOptions};
use kernels::gpu::modules::Family;
use kernels::modules::{file_name, image};
use kernels::newton_schulz::{Algorithm, STATUS_FINITE};
use orthogonalization::Case;

const FAMILIES: [Family; 2] = [Family::Gemm, Family::NewtonSchulz];

/// Wide, and tall with more than one tile; the look-alikes check races, which takes its time.
const SHAPES: [(usize, usize); 2] = [(40, 90), (70, 30)];

/// A driver, the name of its library, what its images are called after, and what stands in.
const DRIVERS: [(&str, &str, &str, Arch); 2] = [
    ("cuda:0", "libcuda.so.1", "cuda", Arch::Sm90a),
    ("hip:0", "libamdhip64.so.6", "gfx942", Arch::Gfx942),
];

#[test]
fn both_drivers_give_the_bits_of_the_simulator() {
    for (kind, library, target, arch) in DRIVERS {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join(library);
        std::os::unix::fs::symlink(lookalike::library().unwrap(), link).unwrap();
        for family in FAMILIES {
            let family = family.name();
            match image(&format!("sim-{arch}"), family) {
                Ok(image) => {
                    std::fs::write(dir.path().join(file_name(target, family)), image).unwrap();
                }
                Err(error) => return eprintln!("nothing was tested: {error}"),
            }
        }
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--ignored", "--nocapture"])
            .env("CHILD_DEVICE", kind)
            .env("CHILD_ARCH", arch.name())
            .env("LD_LIBRARY_PATH", dir.path())
            .env("MUSTER_KERNEL_DIR", dir.path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&[child.stdout, child.stderr].concat()).into_owned();
        assert!(child.status.success() && said.contains("1 passed"), "{kind}: {said}");
        assert!(!said.contains("lookalike:"), "{kind}: {said}");
    }
}

#[test]
#[ignore = "the body of a process: the test above starts it, in every run, with its libraries"]
fn child() {
    let kind: DeviceKind = std::env::var("CHILD_DEVICE").unwrap().parse().unwrap();
    let arch: Arch = std::env::var("CHILD_ARCH").unwrap().parse().unwrap();
    let device = Device::new(kind, 1).unwrap();
    let sim = Device::sim(arch, 1, SimOptions::default()).unwrap();
    assert_eq!(device.properties().arch, Some(arch));
    for algorithm in [Algorithm::Symmetric, Algorithm::Gram] {
        let case = Case { algorithm, steps: 3, ..Case::new(&SHAPES) };
        let (got, expected) = (case.run(&device), case.run(&sim));
        assert_eq!(got.statuses, [STATUS_FINITE; SHAPES.len()]);
        assert_eq!(got.launches, expected.launches);
        assert_eq!(got.outputs, expected.outputs, "{kind} {algorithm:?}");
    }
}
