//! The optimizer with everything in the memory of a simulated device, for both vendors: the host's
//! bits where elements are updated one by one, the host's update within the method's rounding where
//! matrices are orthogonalized, and its own bits at every number of ranks.
//!
//! Where the build had no C++ compiler there are no simulated kernels; each test then says so and
//! checks nothing. `real_devices` does the same on each device that `MUSTER_TEST_DEVICES` names.

mod cluster;

use cluster::{Cluster, Setup, noise};
use device::{Arch, DType, Device, DeviceKind, SimOptions};
use kernels::KernelError;
use kernels::gpu::modules::{Family, Kernels};
use layout::{LogicalTensor, Part, Role, Schema};
use optim::{Clip, OptimError, OptimizerConfig, ShardedOptimizer, Update};

const STEPS: u64 = 2;

/// Two shapes under Muon, one of a fused tensor whose parts do not start at whole quads; a table of
/// several blocks, one row of it odd, and a vector.
fn schema() -> Schema {
    let part = |label: &str, rows| Part { label: label.into(), rows };
    let mut qk = LogicalTensor::new("qk", &[20, 27], Role::Matrix);
    qk.parts = vec![part("q", 0..9), part("k", 9..20)];
    Schema::new(vec![
        LogicalTensor::new("embed", &[700, 13], Role::Embedding),
        LogicalTensor::new("norm", &[27], Role::Vector),
        qk,
        LogicalTensor::new("out", &[27, 20], Role::Matrix),
    ])
    .unwrap()
}

fn setup(clip: Clip, dtype: DType) -> Setup {
    let mut config = OptimizerConfig { clip, ..Default::default() };
    let muon = config.rules[0].muon.as_mut().unwrap();
    *muon = serde_yaml::from_str("{storage: bf16, algorithm: symmetric}").unwrap();
    Setup::new(schema(), config, dtype)
}

fn run(setup: &Setup, device: &Device, world: usize) -> Cluster {
    let mut cluster = Cluster::new(setup, device, world);
    for step in 1..=STEPS {
        cluster.step(step, &noise(setup.flat.len, 100 + step));
    }
    cluster
}

/// Calls `test` with a simulated device of each vendor, unless the build has no kernels for it.
fn with_devices(test: impl Fn(&Device)) {
    for arch in [Arch::Sm90a, Arch::Gfx942] {
        let options = SimOptions { check_races: false, ..SimOptions::default() };
        let device = Device::sim(arch, 1, options).unwrap();
        match Kernels::of(&device).unwrap().function(Family::Optimizer, "optimizer_apply") {
            Err(KernelError::Image(error)) => eprintln!("nothing was tested on {arch}: {error}"),
            Err(error) => panic!("{error}"),
            Ok(_) => test(&device),
        }
    }
}

#[test]
fn on_simulated_devices() {
    with_devices(|device| {
        any_number_of_ranks_gives_the_same_bits(device);
        a_step_is_that_of_the_host(device);
    });
}

#[test]
fn real_devices() {
    let Ok(kinds) = std::env::var("MUSTER_TEST_DEVICES") else {
        eprintln!("skipped: MUSTER_TEST_DEVICES names no devices");
        return;
    };
    for kind in kinds.split(',') {
        let kind: DeviceKind = kind.trim().parse().unwrap();
        let device = Device::new(kind, 2).unwrap();
        any_number_of_ranks_gives_the_same_bits(&device);
        a_step_is_that_of_the_host(&device);
    }
}

fn any_number_of_ranks_gives_the_same_bits(device: &Device) {
    for dtype in [DType::F32, DType::Bf16] {
        let setup = setup(Clip::Global(0.5), dtype);
        let one = run(&setup, device, 1);
        assert!(one.decision.factors[0] < 1.0, "the test clips");
        for world in [2, 3] {
            let several = run(&setup, device, world);
            assert_eq!(several.decision, one.decision);
            for rank in 0..world {
                assert!(several.bits(rank) == one.bits(0), "rank {rank} of {world}");
            }
            assert!(several.state_rows() == one.state_rows(), "states at {world}");
        }
    }
}

/// The f32 parameters of a tensor: the weights, or the masters of bf16 ones.
fn params(cluster: &Cluster, tensor: &str) -> Vec<f32> {
    let states = cluster.ranks[0].declared();
    let is_param = |state: usize| states[state].name == tensor && states[state].slot == "param";
    let rows = cluster.state_rows().into_iter().filter(|(state, ..)| is_param(*state));
    rows.flat_map(|(.., bits)| bits).map(f32::from_bits).collect()
}

fn distance(x: &[f32], y: &[f32]) -> f64 {
    let squares = x.iter().zip(y).map(|(x, y)| (f64::from(*x) - f64::from(*y)).powi(2));
    squares.sum::<f64>().sqrt()
}

fn a_step_is_that_of_the_host(device: &Device) {
    for dtype in [DType::F32, DType::Bf16] {
        // Without a norm in it, what a gradient is multiplied by is the same number.
        let setup = setup(Clip::None, dtype);
        let here = run(&setup, device, 2);
        let there = run(&setup, &Device::cpu(2).unwrap(), 2);
        for plan in &setup.plans {
            let range = setup.flat.range(plan.tensor);
            let name = &setup.schema.tensors[plan.tensor].name;
            let (got, want) = (params(&here, name), params(&there, name));
            if matches!(plan.update, Update::AdamW(_)) {
                assert!(got == want, "{device:?} {name}");
                assert!(here.bits(0)[range.clone()] == there.bits(0)[range], "{device:?} {name}");
                continue;
            }
            // Each is within 4 % of the polynomial, by the rounding of bf16 tiles.
            let error = distance(&got, &want) / distance(&want, &setup.initial()[range]);
            assert!(error > 0.0 && error <= 0.08, "{device:?} {dtype} {name}: {error:.2e}");
        }
        // Moments and momentum depend on no weight.
        let moments = |cluster: &Cluster| {
            let states = cluster.ranks[0].declared();
            let rows = cluster.state_rows().into_iter();
            rows.filter(|(state, ..)| states[*state].slot != "param").collect::<Vec<_>>()
        };
        assert!(moments(&here) == moments(&there), "{device:?}");
    }
}

#[test]
fn the_memory_plan_is_what_is_allocated() {
    with_devices(|device| {
        let setup = setup(Clip::None, DType::Bf16);
        let ownership = setup.ownership(2);
        for rank in 0..2 {
            let Setup { schema, flat, plans, dtype, .. } = &setup;
            let plan =
                optim::memory_plan_on(device, schema, &ownership, rank, plans, *dtype).unwrap();
            let before = device.allocated_bytes();
            let optimizer =
                ShardedOptimizer::new(device, schema, flat, &ownership, rank, plans, *dtype);
            let optimizer = optimizer.unwrap();
            let bytes: usize = plan.iter().map(|item| item.bytes()).sum();
            assert_eq!(device.allocated_bytes() - before, bytes);
            assert_eq!(optimizer.memory_plan(), plan);
            let lines = optimizer.numeric_plan();
            let arch = device.properties().arch.unwrap().to_string();
            assert!(lines.iter().any(|line| line.starts_with(&arch)), "{lines:?}");
            assert!(lines.iter().any(|line| line.starts_with("sums of squares")), "{lines:?}");
        }
    });
}

#[test]
fn a_method_without_kernels_is_refused() {
    with_devices(|device| {
        let setup = Setup::new(schema(), OptimizerConfig::default(), DType::F32);
        let Setup { schema, flat, plans, dtype, .. } = &setup;
        let made =
            ShardedOptimizer::new(device, schema, flat, &setup.ownership(1), 0, plans, *dtype);
        let error = made.err().unwrap();
        assert!(matches!(error, OptimError::Kernel(_)), "{error}");
        assert!(error.to_string().contains("use bf16 or f16"), "{error}");
    });
}
