//! What a run goes on from when its checkpoints are damaged, cannot be read or lie elsewhere.

mod common;

use std::path::{Path, PathBuf};

use common::{Done, Workdir};

/// Saves after steps 2 and 4 of 6, and keeps both.
const TWO: [&str; 6] =
    ["--set", "checkpoint.every=2", "--set", "checkpoint.keep=0", "--max-steps", "4"];

/// Trains until there are two checkpoints, and returns them, older first.
fn two_checkpoints(run: &Workdir, ranks: &str) -> [PathBuf; 2] {
    let done = run.train(&[&TWO[..], &["--ranks", ranks]].concat());
    assert_eq!(done.code(), Some(0), "{done}");
    run.attempts(&run.name).try_into().unwrap()
}

/// Flips one bit of a file.
fn flip(path: &Path, at: impl Fn(usize) -> usize) {
    let mut bytes = std::fs::read(path).unwrap();
    let at = at(bytes.len());
    bytes[at] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

/// Standard error with the directory and digests replaced.
fn message(run: &Workdir, done: &Done) -> String {
    let text = done.stderr.replace(run.path().to_str().unwrap(), "HERE");
    let word = |word: &str| {
        let hex = word.trim_matches(|c: char| !c.is_ascii_hexdigit());
        let is_digest = hex.len() >= 8 && hex.chars().all(|c| c.is_ascii_hexdigit());
        if is_digest { word.replace(hex, "DIGEST") } else { word.to_owned() }
    };
    let line = |line: &str| line.split(' ').map(word).collect::<Vec<_>>().join(" ");
    text.trim_end().lines().map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_run_without_a_usable_checkpoint_does_not_start_over_by_itself() {
    let run = Workdir::new("resume-none");
    let [older, newer] = two_checkpoints(&run, "2");
    flip(&newer.join("manifest.json"), |len| len / 2);
    std::fs::remove_file(older.join("rank-00001/shard-000.safetensors")).unwrap();
    let before = run.events_of(&run.name, "step").len();
    let done = run.train(&["--ranks", "2"]);
    assert_eq!(done.code(), Some(2), "{done}");
    insta::assert_snapshot!(message(&run, &done), @"
    error: no checkpoint in runs/resume-none/checkpoints can be used:
      runs/resume-none/checkpoints/step-00000004.g0001: runs/resume-none/checkpoints/step-00000004.g0001/manifest.json is damaged: BLAKE3 is DIGEST, recorded is DIGEST
      runs/resume-none/checkpoints/step-00000002.g0001: runs/resume-none/checkpoints/step-00000002.g0001/rank-00001/shard-000.safetensors is missing
    restore one from a copy, or start over with --resume never
    ");
    assert_eq!(run.events_of(&run.name, "step").len(), before);
    let done = run.train(&["--resume", "never"]);
    assert_eq!(done.code(), Some(0), "{done}");
}

#[test]
fn a_checkpoint_that_cannot_be_read_is_not_passed_over() {
    let run = Workdir::new("resume-io");
    let [_, newer] = two_checkpoints(&run, "1");
    // Whoever runs the tests, a directory cannot be read as a file.
    std::fs::remove_file(newer.join("manifest.json")).unwrap();
    std::fs::create_dir(newer.join("manifest.json")).unwrap();
    let done = run.train(&[]);
    assert_eq!(done.code(), Some(2), "{done}");
    insta::assert_snapshot!(message(&run, &done), @"error: cannot read runs/resume-io/checkpoints/step-00000004.g0001/manifest.json: Is a directory (os error 21)");
    assert!(run.events_of(&run.name, "resumed").is_empty());
}

/// Flips a bit in the data of the second rank's part of a checkpoint.
fn damage(checkpoint: &Path) {
    flip(&checkpoint.join("rank-00001/shard-000.safetensors"), |len| len - 3);
}

#[test]
fn damaged_data_are_passed_over_and_the_weights_come_out_the_same() {
    let run = Workdir::new("resume-data");
    let expected = run.digest("undisturbed", &[]);
    let [older, newer] = two_checkpoints(&run, "2");
    damage(&newer);
    let done = run.train(&["--ranks", "3", "--backend", "tcp"]);
    assert_eq!(done.code(), Some(0), "{done}");
    let told = done.stdout.lines().skip_while(|line| !line.starts_with("passed over"));
    let told: Vec<String> = told.take(2).map(str::to_owned).collect();
    let told = Done { stderr: told.join("\n"), ..done };
    insta::assert_snapshot!(message(&run, &told), @"
    passed over runs/resume-data/checkpoints/step-00000004.g0001: runs/resume-data/checkpoints/step-00000004.g0001/rank-00001/shard-000.safetensors is damaged in bytes 0..588288, which hold model.embed_tokens.weight:param, model.embed_tokens.weight:adam_m, model.embed_tokens.weight:adam_v and 71 more: CRC32C is DIGEST, recorded is DIGEST
    resuming after step 2 from runs/resume-data/checkpoints/step-00000002.g0001 (saved by 2 ranks)
    ");
    let resumed = &run.events_of(&run.name, "resumed")[0];
    assert_eq!(resumed["step"], 2);
    assert!(older.ends_with(resumed["path"].as_str().unwrap().rsplit('/').next().unwrap()));
    assert_eq!(resumed["skipped"].as_array().unwrap().len(), 1);
    assert_eq!(run.final_digest(&run.name), expected);
}

#[test]
fn damaged_data_everywhere_end_the_start() {
    let run = Workdir::new("resume-data-all");
    let checkpoints = two_checkpoints(&run, "2");
    checkpoints.iter().for_each(|checkpoint| damage(checkpoint));
    let done = run.train(&["--ranks", "2"]);
    assert_eq!(done.code(), Some(2), "{done}");
    insta::assert_snapshot!(message(&run, &done), @"
    error: no checkpoint in runs/resume-data-all/checkpoints can be used:
      runs/resume-data-all/checkpoints/step-00000004.g0001: runs/resume-data-all/checkpoints/step-00000004.g0001/rank-00001/shard-000.safetensors is damaged in bytes 0..588288, which hold model.embed_tokens.weight:param, model.embed_tokens.weight:adam_m, model.embed_tokens.weight:adam_v and 71 more: CRC32C is DIGEST, recorded is DIGEST
      runs/resume-data-all/checkpoints/step-00000002.g0001: runs/resume-data-all/checkpoints/step-00000002.g0001/rank-00001/shard-000.safetensors is damaged in bytes 0..588288, which hold model.embed_tokens.weight:param, model.embed_tokens.weight:adam_m, model.embed_tokens.weight:adam_v and 71 more: CRC32C is DIGEST, recorded is DIGEST
    restore one from a copy, or start over with --resume never
    ");
}

#[test]
fn another_run_is_gone_on_from_at_its_newest_checkpoint() {
    let run = Workdir::new("resume-other");
    let expected = run.digest("undisturbed", &[]);
    let [_, newer] = two_checkpoints(&run, "2");
    let from = format!("runs/{}", run.name);
    assert_eq!(run.digest("next", &["--resume", &from]), expected);
    let resumed = &run.events_of("next", "resumed")[0];
    assert_eq!(resumed["step"], 4);
    assert!(newer.ends_with(resumed["path"].as_str().unwrap().rsplit('/').next().unwrap()));
    // One that is named is the one that is meant: no older one takes its place.
    damage(&newer);
    let done = run.train(&["--name", "exact", "--resume", newer.to_str().unwrap()]);
    assert_eq!(done.code(), Some(2), "{done}");
    assert!(done.stderr.contains("is damaged in bytes"), "{done}");
    assert!(run.events_of("exact", "step").is_empty());
    std::fs::create_dir_all(run.path().join("runs/empty")).unwrap();
    let done = run.train(&["--name", "none", "--resume", "runs/empty"]);
    assert_eq!(done.code(), Some(2), "{done}");
    insta::assert_snapshot!(message(&run, &done), @"error: there is no checkpoint in runs/empty");
}

#[test]
fn old_checkpoints_that_cannot_be_removed_are_a_warning() {
    let run = Workdir::new("resume-keep");
    let keep = ["--set", "checkpoint.every=1", "--set", "checkpoint.keep=1", "--ranks", "2"];
    let done = run.train(&[&keep[..], &["--max-steps", "3"]].concat());
    assert_eq!(done.code(), Some(0), "{done}");
    assert_eq!(run.attempts(&run.name).len(), 1, "one is kept");
    assert!(!run.events_of(&run.name, "removed").is_empty());
    // The claim of a generation that is over, as nobody can delete a file.
    let claim = run.run_dir(&run.name).join("checkpoints/generation-0001");
    std::fs::remove_file(&claim).unwrap();
    std::fs::create_dir(&claim).unwrap();
    let done = run.train(&keep);
    assert_eq!(done.code(), Some(0), "{done}");
    let warnings = run.events_of(&run.name, "warning");
    let text = warnings[0]["message"].as_str().unwrap();
    assert!(text.starts_with("older checkpoints were not removed: cannot delete "), "{text}");
    assert_eq!(run.finished(&run.name)["reason"], "complete");
    assert_eq!(run.verify(&run.name), 1);
}

#[test]
fn a_run_that_is_being_trained_is_not_started_again() {
    let run = Workdir::new("resume-locked");
    let long = ["--set", "train.steps=100000"];
    let mut first = run.start(&long);
    assert!(first.wait_until(|| !run.events_of(&run.name, "step").is_empty()));
    let done = run.train(&[]);
    assert_eq!(done.code(), Some(2), "{done}");
    insta::assert_snapshot!(message(&run, &done), @"error: runs/resume-locked is being trained already, by the process that holds runs/resume-locked/node0.lock; stop that one first, or give this run a name of its own with --name");
    first.signal(libc::SIGTERM);
    let done = first.wait();
    assert_eq!(done.code(), Some(75), "{done}");
    // Who has ended holds nothing.
    let done = run.train(&["--resume", "never"]);
    assert_eq!(done.code(), Some(0), "{done}");
}

#[test]
fn a_run_whose_newest_checkpoint_is_damaged_is_not_verified() {
    let run = Workdir::new("resume-verify");
    let [older, newer] = two_checkpoints(&run, "2");
    let shard = newer.join("rank-00000/shard-000.safetensors");
    let bytes = std::fs::read(&shard).unwrap();
    std::fs::write(&shard, &bytes[..bytes.len() - 8]).unwrap();
    let done = run.muster(&["ckpt", "verify", "runs/resume-verify"]);
    assert_eq!(done.code(), Some(2), "{done}");
    for part in [newer.to_str().unwrap(), older.to_str().unwrap(), "every checksum right"] {
        let here = part.strip_prefix(&format!("{}/", run.path().display())).unwrap_or(part);
        assert!(done.stderr.contains(here), "{here}: {done}");
    }
    let done = run.muster(&["ckpt", "show", "runs/resume-verify"]);
    assert_eq!(done.code(), Some(0), "{done}");
    assert!(done.stderr.starts_with("warning: passed over runs/resume-verify"), "{done}");
}
