//! An optimizer on a device, with gradients and weights on the host, does what one does that has
//! everything there: every bit of weights and states.

mod cluster;

use cluster::{Cluster, Setup, StateRow, TOKENS, fill, noise, rows_of, schema};
use device::{Arch, DType, Device, SimOptions, Tensor};
use half::bf16;
use kernels::gpu::modules::{Family, Kernels};
use optim::{Clip, Offloaded, OptimizerConfig, StepScalars, Verdict, offload_plan, staging_bytes};

const STEPS: u64 = 2;

fn setup(dtype: DType) -> Setup {
    let mut config = OptimizerConfig { clip: Clip::Global(0.5), ..Default::default() };
    let muon = config.rules[0].muon.as_mut().unwrap();
    *muon = serde_yaml::from_str("{storage: bf16, algorithm: symmetric, steps: 2}").unwrap();
    Setup::new(schema(), config, dtype)
}

/// Host devices, and a simulated one of each vendor where the build has its kernels.
fn devices() -> Vec<Device> {
    let sim = |arch| {
        let options = SimOptions { check_races: false, ..SimOptions::default() };
        let device = Device::sim(arch, 1, options).unwrap();
        let kernels = Kernels::of(&device).unwrap();
        let found = kernels.function(Family::Optimizer, "optimizer_apply");
        found.map(|_| device).inspect_err(|error| eprintln!("not tested on {arch}: {error}")).ok()
    };
    let sims = [Arch::Sm90a, Arch::Gfx942].into_iter().filter_map(sim);
    [Device::cpu(1).unwrap(), Device::guarded(2).unwrap()].into_iter().chain(sims).collect()
}

/// The ranks of a run on one host, each with its own copy of the weights.
struct Ranks {
    host: Device,
    ranks: Vec<Offloaded>,
    weights: Vec<Tensor>,
}

impl Ranks {
    fn new(setup: &Setup, device: &Device, world: usize) -> Ranks {
        let host = Device::guarded(1).unwrap();
        let Setup { schema, flat, plans, dtype, .. } = setup;
        let ownership = setup.ownership(world);
        let rank =
            |rank| Offloaded::new(device, schema, flat, &ownership, rank, plans, *dtype).unwrap();
        let mut ranks: Vec<Offloaded> = (0..world).map(rank).collect();
        let initial = host.tensor(&[flat.len], &setup.initial()).unwrap();
        let weights = (0..world).map(|_| host.zeros(&[flat.len], *dtype).unwrap()).collect();
        ranks.iter_mut().for_each(|rank| rank.adopt(&host.stream(), &initial).unwrap());
        Ranks { host, ranks, weights }
    }

    /// A step with the decision that `cluster` made of the same gradients.
    fn step(&mut self, setup: &Setup, cluster: &mut Cluster, step: u64) {
        let grads = noise(setup.flat.len, 100 + step);
        cluster.step(step, &grads);
        let stream = self.host.stream();
        let mut sums = vec![f64::NAN; cluster.ownership.statistics];
        for (rank, offloaded) in self.ranks.iter_mut().enumerate() {
            reduced(offloaded, &cluster.ownership.segments(rank), &grads);
            offloaded.statistics(&mut sums).unwrap();
        }
        let mut decision = optim::ClipDecision::default();
        cluster.clipper.decide(&sums, TOKENS, None, &mut decision).unwrap();
        assert_eq!(decision, cluster.decision);
        let inverse_tokens = 1.0 / TOKENS as f64;
        let scalars = StepScalars { step, lr_factor: 0.5, inverse_tokens, clip: &decision };
        for (rank, weights) in self.ranks.iter_mut().zip(&self.weights) {
            rank.apply(&stream, weights, &scalars).unwrap();
            rank.check_momentum().unwrap();
        }
    }

    /// Bits of this rank's pieces as they lie on the host; the rest must be as it was: zero.
    fn bits(&self, setup: &Setup, rank: usize) -> Vec<u32> {
        let stream = self.host.stream();
        let bits: Vec<u32> = match setup.dtype {
            DType::F32 => {
                let values = stream.to_vec::<f32>(&self.weights[rank]).unwrap();
                values.into_iter().map(f32::to_bits).collect()
            }
            _ => {
                let values = stream.to_vec::<bf16>(&self.weights[rank]).unwrap();
                values.into_iter().map(|x| x.to_bits().into()).collect()
            }
        };
        let mut own = vec![false; bits.len()];
        for segment in setup.ownership(self.ranks.len()).segments(rank) {
            own[segment].fill(true);
        }
        assert!(own.iter().zip(&bits).all(|(own, bits)| *own || *bits == 0));
        bits
    }

    fn states(&self) -> Vec<StateRow> {
        let views = self.ranks.iter().flat_map(|rank| rank.states().unwrap());
        rows_of(self.ranks[0].stream(), views)
    }
}

/// Puts the gradients of a rank's segments where they belong; what lies between is nobody's.
fn reduced(offloaded: &Offloaded, segments: &[std::ops::Range<usize>], grads: &[f32]) {
    let stream = offloaded.stream();
    let mut own = vec![f32::NAN; offloaded.gradients().len()];
    for segment in segments {
        let start = offloaded.place(segment.start).unwrap();
        assert_eq!(offloaded.place(segment.end - 1), Some(start + segment.len() - 1));
        assert_eq!(start % 16, segment.start % 16, "as aligned as on the host");
        own[start..start + segment.len()].copy_from_slice(&grads[segment.clone()]);
    }
    stream.copy_in(offloaded.gradients(), &own).unwrap();
}

fn same(setup: &Setup, offloaded: &Ranks, cluster: &Cluster) {
    for rank in 0..offloaded.ranks.len() {
        let (got, want) = (offloaded.bits(setup, rank), cluster.bits(rank));
        for segment in cluster.ownership.segments(rank) {
            assert!(got[segment.clone()] == want[segment], "{:?} rank {rank}", cluster.device);
        }
    }
}

#[test]
fn it_does_what_an_optimizer_on_the_device_does() {
    for device in devices() {
        for dtype in [DType::F32, DType::Bf16] {
            let setup = setup(dtype);
            let mut cluster = Cluster::new(&setup, &device, 2);
            let mut offloaded = Ranks::new(&setup, &device, 2);
            for step in 1..=STEPS {
                offloaded.step(&setup, &mut cluster, step);
                same(&setup, &offloaded, &cluster);
            }
            assert!(offloaded.states() == cluster.state_rows(), "{device:?}");
            // Loading all states into new optimizers gives the same weights, on the host too.
            let mut loaded = Ranks::new(&setup, &device, 2);
            let host = loaded.host.stream();
            let saved = offloaded.states();
            for rank in &loaded.ranks {
                fill(rank.stream(), rank.states().unwrap(), &saved);
            }
            for (rank, weights) in loaded.ranks.iter_mut().zip(&loaded.weights) {
                rank.publish(&host, weights).unwrap();
            }
            same(&setup, &loaded, &cluster);
        }
    }
}

#[test]
fn a_step_that_is_not_applied_changes_nothing() {
    let (setup, device) = (setup(DType::Bf16), Device::cpu(1).unwrap());
    let mut ranks = Ranks::new(&setup, &device, 1);
    let before = ranks.states();
    let clip = optim::ClipDecision { verdict: Verdict::Skip, ..Default::default() };
    let scalars = StepScalars { step: 1, lr_factor: 1.0, inverse_tokens: 1.0, clip: &clip };
    let host = ranks.host.stream();
    ranks.ranks[0].apply(&host, &ranks.weights[0], &scalars).unwrap();
    assert!(ranks.states() == before);
    assert!(ranks.bits(&setup, 0).iter().all(|&bits| bits == 0));
}

/// On the device; and bf16 weights are taken over as they are, masters included.
#[test]
fn memory_is_what_was_planned_and_weights_of_both_types_are_taken_over() {
    for device in devices() {
        let setup = setup(DType::Bf16);
        let Setup { schema, flat, plans, dtype, .. } = &setup;
        let (ownership, host) = (setup.ownership(2), Device::cpu(1).unwrap());
        let plan = offload_plan(&device, schema, &ownership, 1, plans, *dtype).unwrap();
        let before = device.allocated_bytes();
        let mut offloaded =
            Offloaded::new(&device, schema, flat, &ownership, 1, plans, *dtype).unwrap();
        let bytes: usize = plan.iter().map(|item| item.bytes()).sum();
        assert_eq!(device.allocated_bytes() - before, bytes);
        assert_eq!(offloaded.memory_plan(), plan);
        assert_eq!(offloaded.pinned_bytes(), staging_bytes(&ownership, 1));
        let halves: Vec<bf16> = setup.initial().into_iter().map(bf16::from_f32).collect();
        let weights = host.tensor(&[flat.len], &halves).unwrap();
        offloaded.adopt(&host.stream(), &weights).unwrap();
        let zeros = host.zeros(&[flat.len], *dtype).unwrap();
        offloaded.publish(&host.stream(), &zeros).unwrap();
        let back = host.stream().to_vec::<bf16>(&zeros).unwrap();
        for segment in ownership.segments(1) {
            assert!(back[segment.clone()] == halves[segment]);
        }
        let short = host.zeros(&[flat.len - 1], DType::F32).unwrap();
        let error = offloaded.adopt(&host.stream(), &short).unwrap_err();
        assert!(error.to_string().contains("weights on the host"), "{error}");
        let error = offloaded.adopt(&host.stream(), &host.zeros(&[flat.len], DType::U32).unwrap());
        assert!(error.unwrap_err().to_string().contains("read u32 memory as bf16"));
        let mut sums = vec![0.0; ownership.statistics + 1];
        let error = offloaded.statistics(&mut sums).unwrap_err();
        assert!(error.to_string().contains("statistics"), "{error}");
    }
}
