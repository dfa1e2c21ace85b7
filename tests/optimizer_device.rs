//! Training whose optimizer has a device of its own, here the simulator of either vendor: the same
//! bits at every number of ranks, checkpoints that any place can go on from, and mistakes named.

mod common;

use common::{Done, Job, Workdir, free_port, message};

/// A handful of small matrices: a simulated step of Newton–Schulz takes seconds.
const MODEL: &str = "model={layers: 1, d_model: 16, heads: 2, d_ff: 24}";
const RULES: &str = "optimizer.rules=[{match: {roles: [matrix]}, muon: {storage: bf16, algorithm: \
                     symmetric}}, {match: {}, adamw: {}}]";
/// The first update is a whole one.
const SCHEDULE: &str = "optimizer.schedule={constant: {warmup_steps: 0}}";
const LEAVES: [&str; 2] = ["batch.leaves=6", "batch.radices=[2,3]"];
/// Several, so that some are on their way before backward ends.
const BUCKETS: &str = "ranks.bucket_bytes=4096";

fn sets<'a>(device: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let all = [MODEL, RULES, SCHEDULE, BUCKETS, "train.steps=2", device].into_iter();
    let all = all.chain(LEAVES);
    all.chain(more.iter().copied()).flat_map(|set| ["--set", set]).collect()
}

/// Why nothing is tested, where the build had no compiler for the simulated kernels.
fn lacks_kernels(run: &Workdir, device: &str) -> bool {
    let done = run.train(&[&sets(device, &["train.steps=1"])[..], &["--name", "probe"]].concat());
    let lacks = done.stderr.contains("this build of muster has no");
    if lacks {
        common::skip("the build has no simulated kernels");
    }
    lacks
}

/// A run that ends well.
fn well(run: &Workdir, args: &[&str]) -> Done {
    let done = run.train(args);
    assert_eq!(done.code(), Some(0), "{done}");
    done
}

/// The losses of the first and the last step.
fn losses(run: &Workdir, name: &str) -> [f64; 2] {
    let steps = run.events_of(name, "step");
    let of = |step: Option<&serde_json::Value>| step.unwrap()["loss"].as_f64().unwrap();
    [of(steps.first()), of(steps.last())]
}

#[test]
fn any_number_of_ranks_gives_the_same_bits() {
    let run = Workdir::new("device-ranks");
    if lacks_kernels(&run, "ranks.optimizer_device=sim:sm_90a") {
        return;
    }
    let beside = run.digest("cpu", &sets("ranks.optimizer_device=cpu", &[]));
    for arch in ["sm_90a", "gfx942"] {
        let device = format!("ranks.optimizer_device=sim:{arch}");
        let mut first = None;
        let places =
            [("1", "shm"), ("2", "shm"), ("2", "tcp"), ("3", "shm"), ("3", "tcp"), ("4", "shm")];
        for (ranks, backend) in places {
            let name = format!("{arch}-{ranks}-{backend}");
            let place = ["--ranks", ranks, "--backend", backend];
            let digest = run.digest(&name, &[&sets(&device, &[])[..], &place].concat());
            assert_eq!(first.get_or_insert(digest.clone()), &digest, "{name}");
            // The same step but for the rounding of bf16 products.
            let ([first, here], [_, there]) = (losses(&run, "cpu"), losses(&run, &name));
            assert!((here / there - 1.0).abs() < 1e-3, "{name}: {here} and {there}");
            // Which is less than what the first update changes.
            assert!((first / here - 1.0).abs() > 3e-3, "{name}: {first} became {here}");
            assert_ne!(digest, beside, "it was not used");
        }
    }
}

#[test]
fn a_checkpoint_goes_on_at_another_place() {
    let run = Workdir::new("device-resume");
    let device = "ranks.optimizer_device=sim:gfx942";
    if lacks_kernels(&run, device) {
        return;
    }
    let whole = run.digest("whole", &[&sets(device, &[])[..], &["--ranks", "1"]].concat());
    let part = ["--ranks", "2", "--max-steps", "1", "--name", "part"];
    well(&run, &[&sets(device, &[])[..], &part].concat());
    let rest = run.digest("part", &[&sets(device, &[])[..], &["--ranks", "3"]].concat());
    assert_eq!(rest, whole);
    // Beside the weights, too, and it is said that bits may differ.
    well(&run, &[&sets(device, &[])[..], &["--max-steps", "1", "--name", "moved"]].concat());
    let here = sets("ranks.optimizer_device=cpu", &[]);
    let done = well(&run, &[&here[..], &["--name", "moved"]].concat());
    let said = format!("{}{}", done.stdout, done.stderr);
    assert!(said.contains("optimizer device (sim:gfx942 there, not recorded here)"), "{said}");
}

#[test]
fn mistakes_are_named() {
    let run = Workdir::new("device-mistakes");
    let refused = |device: &str, more: &[&str], code: i32, words: &[&str]| {
        let done: Done = run.train(&sets(device, more));
        let said = done.stderr.clone();
        assert_eq!(done.code(), Some(code), "{said}");
        for word in words {
            assert!(said.contains(word), "{word}: {said}");
        }
    };
    let choice = &["ranks.optimizer_device", "use `cpu` (there are `cpu`, `cuda:N`, "][..];
    refused("ranks.optimizer_device=gpu", &[], 2, choice);
    refused("ranks.optimizer_device=guarded", &[], 2, choice);
    refused("ranks.optimizer_device=sim:sm_12", &[], 2, &["sm_12", "gfx942"]);
    let nothing = &["`sim:` names no architecture; use `sim:sm_90a` ("][..];
    refused("ranks.optimizer_device=sim:", &[], 2, nothing);
    let absent = &["ranks.optimizer_device cuda:7", "`cpu` needs no device"][..];
    refused("ranks.optimizer_device=cuda:7", &[], 3, absent);
    // The plan without the device is shown.
    let done =
        run.train(&[&sets("ranks.optimizer_device=cuda:7", &[])[..], &["--dry-run"]].concat());
    assert_eq!(done.code(), Some(3), "{done}");
    assert!(done.stdout.contains("copies for the optimizer's device"), "{done}");
    assert!(done.stderr.contains("ranks.optimizer_device cuda:7"), "{done}");
    let rules = "optimizer.rules=[{match: {roles: [matrix]}, muon: {storage: f32}}, {match: {}, \
                 adamw: {}}]";
    let storage = &["ranks.optimizer_device sim:sm_90a", "`storage: bf16`"][..];
    refused("ranks.optimizer_device=sim:sm_90a", &[rules], 2, storage);
}

/// Two hosts of one rank each, whose optimizers are on these devices.
fn two_hosts(run: &Workdir, devices: [&str; 2]) -> [Job; 2] {
    let port = free_port();
    [0, 1].map(|node| {
        let place = format!(
            "--rendezvous 127.0.0.1:{port} --nodes 2 --node-rank {node} --ranks 2 --backend tcp"
        );
        let device = format!("ranks.optimizer_device={}", devices[node]);
        run.start(&[&place.split(' ').collect::<Vec<_>>()[..], &sets(&device, &[])].concat())
    })
}

#[test]
fn hosts_whose_devices_differ_in_kind_are_told_each_other() {
    let run = Workdir::new("device-hosts");
    if lacks_kernels(&run, "ranks.optimizer_device=sim:sm_90a") {
        return;
    }
    for devices in [["cpu", "sim:sm_90a"], ["sim:sm_90a", "sim:gfx942"]] {
        let [first, second] = devices;
        let expected = format!(
            "error: the ranks differ in ranks.optimizer_device: {first} on rank 0, {second} on \
             rank 1; start every rank with the same ranks.optimizer_device: {first} or {second}"
        );
        for done in two_hosts(&run, devices).map(Job::wait) {
            assert_eq!(done.code(), Some(2), "{done}");
            assert_eq!(message(&run, &done, &[]), expected);
        }
    }
    assert!(run.events_of(&run.name, "step").is_empty());
}

#[test]
fn the_plan_tells_what_the_device_holds() {
    let run = Workdir::new("device-plan");
    let args = [&sets("ranks.optimizer_device=sim:sm_90a", &[])[..], &["--dry-run"]].concat();
    let done = run.train(&args);
    if done.stderr.contains("this build of muster has no") {
        return common::skip("the build has no simulated kernels");
    }
    assert_eq!(done.code(), Some(0), "{done}");
    for word in
        ["sim:sm_90a for the optimizer: ", "momentum ", "owned gradients ", "partials to be "]
    {
        assert!(done.stdout.contains(word), "{word}: {}", done.stdout);
    }
    for word in ["copies for the optimizer's device", "memory of the simulated device"] {
        assert!(done.stdout.contains(word), "{word}: {}", done.stdout);
    }
}

#[test]
fn memory_stays_within_its_plan() {
    let run = Workdir::new("device-memory");
    let within = |name: &str| {
        let bytes = |key: &str| run.finished(name)[key].as_u64().unwrap();
        let (peak, planned) = (bytes("peak_anonymous_bytes"), bytes("planned_bytes"));
        assert!(peak <= planned, "{name}: {peak} bytes at the peak, {planned} planned");
    };
    // Rank 0 reads each checkpoint back while the next ones are written.
    let saves = ["--ranks", "2", "--set", "train.steps=12", "--set", "checkpoint.every=1"];
    run.digest("saves", &saves);
    within("saves");
    // Bytes that come over sockets are kept once, not for every bucket.
    let buckets = ["--ranks", "4", "--backend", "tcp", "--set", "ranks.bucket_bytes=10000"];
    run.digest("buckets", &[&saves[2..], &buckets].concat());
    within("buckets");
    if lacks_kernels(&run, "ranks.optimizer_device=sim:sm_90a") {
        return;
    }
    run.digest("simulated", &sets("ranks.optimizer_device=sim:sm_90a", &[]));
    within("simulated");
}
