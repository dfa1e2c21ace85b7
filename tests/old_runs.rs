//! Checkpoints of an earlier build load, at any number of ranks, with one warning: of the build.
//!
//! `fixtures/run-v1-*` hold step 3 of a mixture of experts whose weights are f32 and bf16, saved by
//! two ranks. They are never written anew: what they hold is what people's old runs hold.

mod common;

use std::path::Path;

use common::Workdir;

/// The run of the fixtures, but for the weights' type.
const CONFIG: &str = "name: old
model: {preset: tiny-moe, layers: 2, d_model: 8, heads: 2, d_ff: 12, \
        moe: {experts: 3, top_k: 2, d_ff: 4, shared_experts: 1}}
data: {tokenizer: byte, files: text.txt}
batch: {leaves: 4, micro_batches: 2, micro_batch: 1, seq_len: 32}
train: {steps: 6, eval_every: 0, eval_samples: 4, sample_tokens: 0}
checkpoint: {every: 0, keep: 2}
ranks: {threads: 1, timeout_ms: 60000}
";

fn fixture(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)
}

/// Goes on for two steps on 1 and 3 ranks; returns the digests of weights and the warnings.
fn resumed(weights: &str, from: &str) -> (Vec<String>, Vec<String>) {
    let run = Workdir::new(&format!("old-{weights}"));
    std::fs::copy(fixture("oracle-text.txt"), run.path().join("text.txt")).unwrap();
    std::fs::write(run.path().join("run.yaml"), CONFIG).unwrap();
    let checkpoint = fixture(from).join("step-00000003.g0001");
    let weights = format!("train.weights={weights}");
    let (mut digests, mut warnings) = (Vec::new(), Vec::new());
    for ranks in ["1", "3"] {
        let from = ["--resume", checkpoint.to_str().unwrap(), "--max-steps", "5"];
        digests
            .push(run.digest(ranks, &[&from[..], &["--ranks", ranks, "--set", &weights]].concat()));
        let told = run.events_of(ranks, "warning");
        warnings.extend(told.iter().map(|told| told["message"].as_str().unwrap().to_owned()));
    }
    (digests, warnings)
}

#[test]
fn an_old_run_goes_on_at_another_width_and_names_the_build_alone() {
    let mut both = Vec::new();
    for (weights, from) in [("f32", "run-v1-moe"), ("bf16", "run-v1-bf16")] {
        let (digests, warnings) = resumed(weights, from);
        assert_eq!(digests[0], digests[1]);
        both.push(digests[0].clone());
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        for warning in warnings {
            assert!(warning.contains("build (0.1.0 c35fd3eea5a18dcc there, "), "{warning}");
            for entry in ["model", "optimizer", "leaves", "schedule", "weights", "clip"] {
                assert!(!warning.contains(&format!("{entry} (")), "{warning}");
                assert!(!warning.contains(&format!("{entry}.")), "{warning}");
            }
        }
    }
    assert_ne!(both[0], both[1]);
}
