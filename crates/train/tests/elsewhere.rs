//! An optimizer on a device of its own takes the steps of one beside the weights: with a second
//! host device in that place the rounding is the same, and so is every bit. What it allocates there
//! is what was planned.

mod rank;

use device::{Arch, Device, SimOptions};
use kernels::gpu::modules::{Family, Kernels};
use train::{Config, Wants};

const STEPS: u64 = 3;

/// Digests of the weights of all ranks after some steps, with and without a device for the
/// optimizer.
fn digests(config: &Config, kind: &str, world: usize, elsewhere: Option<fn() -> Device>) -> String {
    let dir = tempfile::tempdir().unwrap();
    let digests = rank::with_group(kind, world, |world| {
        let device = Device::cpu(2).unwrap();
        let cache = dir.path().join(world.rank().to_string());
        let there = elsewhere.map(|device| device());
        let mut trainer = rank::trainer_with(config, &cache, world, &device, there);
        for _ in 0..STEPS {
            trainer.take_step(Wants::default()).unwrap();
        }
        trainer.weights_digest().unwrap()
    });
    assert!(digests.iter().all(|digest| *digest == digests[0]), "{kind} {world}");
    digests[0].clone()
}

#[test]
fn steps_have_the_bits_of_an_optimizer_beside_the_weights() {
    let dir = tempfile::tempdir().unwrap();
    // Six leaves fold on one rank and two, and are partials of their own on others.
    for mut config in [rank::config(dir.path(), 6), rank::dense_bf16(dir.path(), 6)] {
        // Many buckets, most of which are on their way before backward ends.
        config.ranks.bucket_bytes = Some(4 << 10);
        let here = digests(&config, "shm", 1, None);
        let places: [fn() -> Device; 2] =
            [|| Device::guarded(2).unwrap(), || Device::cpu(2).unwrap()];
        for (world, kind) in [(1, "shm"), (2, "shm"), (2, "tcp"), (4, "shm")] {
            for (index, place) in places.into_iter().enumerate() {
                let there = digests(&config, kind, world, Some(place));
                assert_eq!(there, here, "{kind}, {world} ranks, place {index}");
            }
        }
    }
}

#[test]
fn a_device_holds_what_is_planned() {
    for arch in [Arch::Sm90a, Arch::Gfx942] {
        let new = || Device::sim(arch, 1, SimOptions::default()).unwrap();
        let kernels = Kernels::of(&new()).unwrap();
        if let Err(error) = kernels.function(Family::Optimizer, "optimizer_apply") {
            eprintln!("skipped what needs kernels of {arch}: {error}");
            continue;
        }
        let dir = tempfile::tempdir().unwrap();
        let mut config = rank::dense_bf16(dir.path(), 6);
        config.ranks.bucket_bytes = Some(4 << 10);
        config.optimizer.rules[0].muon.as_mut().unwrap().storage =
            serde_json::from_value("bf16".into()).unwrap();
        config.ranks.optimizer_device =
            serde_json::from_value(format!("sim:{arch}").into()).unwrap();
        rank::with_group("shm", 2, |world| {
            let (device, there, rank) = (Device::cpu(1).unwrap(), new(), world.rank());
            let cache = dir.path().join(rank.to_string());
            let there_too = Some(there.clone());
            let trainer = rank::trainer_with(&config, &cache, world, &device, there_too);
            let planned = trainer.plan().offload(&there, rank).unwrap();
            assert_eq!(there.allocated_bytes() as u64, planned.bytes(), "{:?}", planned.memory);
        });
    }
}
