//! The final weights and the validation losses have the same bits for every number of ranks and
//! threads, over shared memory and over TCP.
//!
//! Every run is processes of its own, as a user starts them; digests are compared, which are
//! equal if and only if all weights and router biases are.

mod common;

use common::{DENSE, LATENT, MOE, Workdir};

/// Trains with every number of ranks over both backends, threads alternating (or both), and
/// compares with one rank of one thread. Returns the digest.
fn same_for_all(run: &Workdir, tag: &str, sets: &[&str], every_thread_count: bool) -> String {
    let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
    let mut reference = None;
    for ranks in 1..=4 {
        for (index, backend) in ["shm", "tcp"].into_iter().enumerate() {
            for threads in 1..=2 {
                if !every_thread_count && threads != 1 + (ranks + index + 1) % 2 {
                    continue;
                }
                let name = format!("{tag}-{ranks}-{threads}-{backend}");
                let (ranks, threads) = (ranks.to_string(), threads.to_string());
                let place = ["--ranks", &ranks, "--threads", &threads, "--backend", backend];
                let digest = run.digest(&name, &[&sets[..], &place].concat());
                assert_eq!(reference.get_or_insert(digest.clone()), &digest, "{name} {sets:?}");
            }
        }
    }
    reference.unwrap()
}

#[test]
fn a_mixture_of_experts() {
    let run = Workdir::new("bits-moe");
    let four = same_for_all(&run, "v4", &[], true);
    let six = same_for_all(&run, "v6", &["batch.leaves=6", "batch.radices=[2,3]"], false);
    assert_ne!(four, six);
}

#[test]
fn a_dense_model() {
    let run = Workdir::new("bits-dense");
    let model = format!("model={DENSE}");
    let four = same_for_all(&run, "v4", &[&model], false);
    let sets = [&model, "batch.leaves=6", "batch.radices=[2,3]"];
    let six = same_for_all(&run, "v6", &sets, false);
    assert_ne!(four, six);
}

#[test]
fn latent_attention() {
    let run = Workdir::new("bits-latent");
    let model = format!("model={LATENT}");
    let f32 = same_for_all(&run, "f32", &[&model], false);
    let bf16 = same_for_all(&run, "bf16", &[&model, "train.weights=bf16"], false);
    assert_ne!(f32, bf16);
}

/// Saved by two ranks, gone on with by three, then by one.
#[test]
fn latent_attention_saved_and_resumed_by_other_numbers_of_ranks() {
    let run = Workdir::new("bits-latent-resumed");
    let sets = ["--set", &format!("model={LATENT}"), "--set", "checkpoint.every=2"];
    let expected = run.digest("whole", &sets);
    for (steps, ranks, backend) in [("2", "2", "shm"), ("4", "3", "tcp"), ("6", "1", "shm")] {
        let place = ["--max-steps", steps, "--ranks", ranks, "--backend", backend];
        let done = run.train(&[&sets[..], &place].concat());
        assert_eq!(done.code(), Some(0), "{ranks} ranks: {done}");
    }
    let resumed = run.events_of(&run.name, "resumed");
    let steps: Vec<u64> = resumed.iter().map(|event| event["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, [2, 4]);
    assert_eq!(run.final_digest(&run.name), expected);
}

#[test]
fn weights_in_bf16() {
    let run = Workdir::new("bits-bf16");
    let bf16 = "train.weights=bf16";
    let moe = same_for_all(&run, "moe", &[bf16], false);
    assert_ne!(moe, run.digest("f32", &[]), "bf16 weights were not used");
    let model = format!("model={DENSE}");
    same_for_all(&run, "dense", &[bf16, &model], false);
}

/// Validation windows are shared out in chunks of a micro-batch, and the last chunk is not full:
/// its other rows must not depend on what its rank has read before.
#[test]
fn the_validation_loss() {
    let run = Workdir::new("bits-eval");
    let sets = ["batch.micro_batch=2", "train.eval_every=2", "train.eval_samples=5"];
    let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
    let mut reference = None;
    for ranks in 1..=4 {
        for backend in ["shm", "tcp"] {
            let name = format!("{ranks}-{backend}");
            let place = ["--ranks", &ranks.to_string(), "--backend", backend];
            run.digest(&name, &[&sets[..], &place].concat());
            let losses: Vec<(u64, u64)> = run
                .events_of(&name, "evaluation")
                .iter()
                .map(|event| {
                    assert_eq!(event["samples"], 5);
                    let bits = event["loss"].as_f64().unwrap().to_bits();
                    (event["step"].as_u64().unwrap(), bits)
                })
                .collect();
            assert_eq!(losses.len(), 3);
            assert_eq!(reference.get_or_insert(losses.clone()), &losses, "{name}");
        }
    }
}

/// Changes that must change the bits do, so that the tests above can fail.
#[test]
fn another_seed_order_or_model_has_other_bits() {
    let run = Workdir::new("bits-other");
    let model = format!("model={MOE}");
    let digests = [
        run.digest("base", &["--set", &model]),
        run.digest("seed", &["--set", "seed=2"]),
        run.digest("steps", &["--set", "train.steps=5"]),
        run.digest("tree", &["--set", "batch.radices=[4]"]),
    ];
    for (i, a) in digests.iter().enumerate() {
        assert!(!digests[..i].contains(a), "{digests:?}");
    }
    assert_eq!(digests[0], run.digest("again", &[]));
}
