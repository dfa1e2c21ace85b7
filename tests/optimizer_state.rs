//! The optimizer's state after the number of ranks and the size of buckets have changed: all of it,
//! at its place, and what is missing is named.

mod common;

use std::path::Path;

use checkpoint::{Attempt, Checkpoint, Chunk, ExpectedTensor, Region, Store, WriteOptions};
use common::Workdir;
use layout::slabs;
use serde_json::Value;

fn newest(run: &Workdir, name: &str) -> Checkpoint {
    let store = Store::new(run.run_dir(name).join("checkpoints"));
    store.newest().unwrap().checkpoint.expect("a checkpoint")
}

fn warnings(run: &Workdir, name: &str) -> Vec<String> {
    let text = |warning: Value| warning["message"].as_str().unwrap().to_owned();
    run.events_of(name, "warning").into_iter().map(text).collect()
}

/// Others go on with moments that are zero, or of another step, or of another rank's part
/// (DeepSpeed 6691 and 8147, Megatron 6920): the loss looks as usual.
#[test]
fn it_is_whole_at_another_width_and_bucket_size() {
    let run = Workdir::new("optimizer-state-whole");
    let undisturbed = run.digest("whole", &["--ranks", "1"]);
    let name = "changed";
    for (ranks, buckets, steps) in [("2", "16384", "2"), ("3", "1048576", "4"), ("1", "4096", "6")]
    {
        let buckets = format!("ranks.bucket_bytes={buckets}");
        let args = ["--name", name, "--ranks", ranks, "--set", &buckets, "--max-steps", steps];
        let done = run.train(&args);
        assert_eq!(done.code(), Some(0), "{done}");
        let told = warnings(&run, name);
        assert!(!told.iter().any(|text| text.contains("starts")), "{told:?}");
    }
    assert_eq!(run.final_digest(name), undisturbed);
    // Not the weights alone: every state, and the place in the data, is that of one rank.
    let [one, other] = ["whole", name].map(|name| newest(&run, name));
    let difference = checkpoint::diff(&one, &other).unwrap();
    assert!(difference.is_equal(), "{:?}", difference.tensors);
    assert_eq!(one.run_state().samples, other.run_state().samples);
    assert!(one.tensors().iter().any(|tensor| tensor.slot == "momentum"));
}

/// Writes a run's newest checkpoint again without one state.
fn without(dir: &Path, name: &str, slot: &str) {
    let store = Store::new(dir);
    let whole = store.newest().unwrap().checkpoint.unwrap();
    let generation = store.claim_generation().unwrap();
    let attempt = Attempt { generation, ..whole.attempt() };
    let mut chunks = Vec::new();
    let mut expected = Vec::new();
    for tensor in whole.tensors().iter().filter(|t| (&*t.name, &*t.slot) != (name, slot)) {
        let (key, dtype, global_shape) = (tensor.key(), tensor.dtype, tensor.shape.clone());
        if !slabs(&global_shape, usize::MAX).is_empty() {
            let bytes = whole.read_tensor(&key).unwrap();
            let all = Region::whole(&global_shape);
            chunks.push(Chunk::new(key.clone(), dtype, &global_shape, all, bytes));
        }
        expected.push(ExpectedTensor { key, dtype, global_shape });
    }
    assert_eq!(expected.len() + 1, whole.tensors().len());
    let report = store.write_rank(attempt, 0, 1, &chunks, &WriteOptions::default()).unwrap();
    store.commit(attempt, &whole.schema(), &expected, &[report], whole.run_state()).unwrap();
}

#[test]
fn a_momentum_that_is_missing_is_named_and_begins_alike_everywhere() {
    let lost = "model.layers.0.self_attn.q_proj.weight";
    let mut digests = Vec::new();
    for ranks in ["1", "3"] {
        let run = Workdir::new(&format!("optimizer-state-lost-{ranks}"));
        let done = run.train(&["--ranks", "2", "--max-steps", "3"]);
        assert_eq!(done.code(), Some(0), "{done}");
        without(&run.run_dir(&run.name).join("checkpoints"), lost, "momentum");
        let done = run.train(&["--ranks", ranks]);
        assert_eq!(done.code(), Some(0), "{done}");
        let told = warnings(&run, &run.name);
        let expected = format!("the checkpoint has no momentum of {lost}; it starts at zero");
        assert!(told.contains(&expected), "{told:?}");
        digests.push(run.final_digest(&run.name));
    }
    assert_eq!(digests[0], digests[1]);
}

#[test]
fn a_parameter_that_is_missing_is_an_error() {
    let run = Workdir::new("optimizer-state-parameter");
    let done = run.train(&["--ranks", "1", "--max-steps", "3"]);
    assert_eq!(done.code(), Some(0), "{done}");
    let dir = run.run_dir(&run.name).join("checkpoints");
    let store = Store::new(&dir);
    let before = store.newest().unwrap().checkpoint.unwrap();
    let norm = "model.norm.weight";
    assert!(before.tensor(&checkpoint::TensorKey::new(norm, "param")).is_ok());
    without(&dir, norm, "param");
    let done = run.train(&["--ranks", "2"]);
    assert_eq!(done.code(), Some(2), "{done}");
    assert!(done.stderr.contains(norm), "{done}");
}

fn weights(run: &Workdir, name: &str) -> Vec<f32> {
    let key = checkpoint::TensorKey::new("model.layers.0.self_attn.q_proj.weight", "param");
    let bytes = newest(run, name).read_tensor(&key).unwrap();
    bytes.as_chunks().0.iter().map(|&four| f32::from_le_bytes(four)).collect()
}

/// Adam's first update of a weight is as long as its rate, whatever the gradient: the run's own
/// count of updates would make moments that begin later three times too long.
#[test]
fn moments_that_begin_later_are_corrected_from_their_own_beginning() {
    let run = Workdir::new("optimizer-state-late");
    let constant = ["--set", "optimizer.schedule={constant: {warmup_steps: 0}}"];
    let train = |rules: &[&str], steps: &str, ranks: &str| {
        let args = [&constant[..], rules, &["--ranks", ranks, "--max-steps", steps]].concat();
        let done = run.train(&args);
        assert_eq!(done.code(), Some(0), "{done}");
        weights(&run, &run.name)
    };
    let adam = [
        "--set",
        "optimizer.rules=[{match: {}, adamw: {lr: 0.001, beta2: 0.999}}]",
        "--set",
        "optimizer.require_muon=false",
    ];
    let before = train(&[], "4", "2");
    let first = train(&adam, "5", "1");
    let mut moved: Vec<f32> =
        before.iter().zip(&first).map(|(a, b)| (a - b).abs() / 0.001).collect();
    moved.sort_by(f32::total_cmp);
    let median = moved[moved.len() / 2];
    assert!((0.95..1.05).contains(&median), "{median}");
    // It is remembered when they began, by any number of ranks.
    let digest = |name: &str, ranks: &[&str]| {
        let from = newest(&run, &run.name).path().display().to_string();
        for (at, ranks) in ranks.iter().enumerate() {
            let steps = (6 + at).to_string();
            let from = ["--resume", if at == 0 { &from } else { "auto" }];
            let args = ["--ranks", ranks, "--max-steps", &steps, "--name", name];
            let done = run.train(&[&constant[..], &adam, &from, &args].concat());
            assert_eq!(done.code(), Some(0), "{done}");
        }
        run.final_digest(name)
    };
    let began = newest(&run, &run.name).run_state().extra["begun"].clone();
    assert_eq!(began["model.layers.0.self_attn.q_proj.weight"], 4, "{began}");
    assert_eq!(began["model.norm.weight"], Value::Null, "{began}");
    assert_eq!(digest("one", &["1", "1"]), digest("others", &["3", "2"]));
}
