//! The checkpoint that a run goes on from when its checkpoints are damaged, cannot be read or lie
//! elsewhere.

mod common;

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use common::{Done, Workdir, as_nobody, skip};

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
    // Whoever runs the tests, a link to itself cannot be followed.
    let manifest = newer.join("manifest.json");
    std::fs::rename(&manifest, newer.join("kept")).unwrap();
    symlink("manifest.json", &manifest).unwrap();
    let done = run.train(&[]);
    assert_eq!(done.code(), Some(2), "{done}");
    insta::assert_snapshot!(message(&run, &done), @"
    error: cannot read runs/resume-io/checkpoints/step-00000004.g0001/manifest.json: Too many levels of symbolic links (os error 40)
    What is there may be whole, so nothing older is gone on from in its place; to do that, name one with --resume PATH
    ");
    assert!(run.events_of(&run.name, "resumed").is_empty());
    // A manifest that is no file is no checkpoint's.
    std::fs::remove_file(&manifest).unwrap();
    std::fs::create_dir(&manifest).unwrap();
    let done = run.train(&["--max-steps", "3"]);
    assert_eq!(done.code(), Some(0), "{done}");
    assert!(done.stdout.contains("manifest.json is a directory, not a file"), "{done}");
    assert_eq!(run.events_of(&run.name, "resumed")[0]["step"], 2);
}

/// Sets the permissions of a file or directory.
fn permit(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_checkpoint_that_may_not_be_read_is_not_called_damaged() {
    let run = Workdir::new("resume-modes");
    let [_, newer] = two_checkpoints(&run, "2");
    permit(run.path(), 0o755);
    let root = run.run_dir(&run.name);
    let probe = as_nobody(&run, &["ckpt", "ls", root.to_str().unwrap()]);
    if probe.code() != Some(0) {
        return skip(&format!("no other user can look here: {}", probe.stderr.trim()));
    }
    let places = [
        (newer.clone(), 0o755),
        (newer.join("COMMIT"), 0o644),
        (newer.join("manifest.json"), 0o644),
        (newer.join("rank-00001"), 0o755),
        (newer.join("rank-00001/shard-000.sums"), 0o644),
        (newer.join("rank-00001/shard-000.safetensors"), 0o644),
    ];
    let whole = newer.to_str().unwrap();
    for (place, mode) in &places {
        permit(place, 0);
        for command in [&["verify"][..], &["verify", "--deep"], &["show"], &["diff", whole]] {
            for path in [root.to_str().unwrap(), whole] {
                let done = as_nobody(&run, &[&["ckpt"], command, &[path]].concat());
                let text = format!("{place:?} {command:?}: {done}");
                assert!(!text.contains("damaged") && !text.contains("remove"), "{text}");
                // To show and to verify as a whole need not all of it.
                if command[0] == "verify" {
                    assert_eq!(done.code(), Some(2), "{text}");
                    assert!(done.stderr.contains("Permission denied"), "{text}");
                }
            }
        }
        let done = as_nobody(&run, &["ckpt", "ls", root.to_str().unwrap()]);
        assert_eq!(done.code(), Some(0), "{done}");
        assert!(!done.stdout.contains("UNUSABLE"), "{done}");
        let shown = done.stdout.contains("NOT READABLE, perhaps whole: cannot ");
        // To list opens everything but the data.
        assert_eq!(shown, !place.ends_with("shard-000.safetensors"), "{place:?}: {done}");
        permit(place, *mode);
    }
    for place in [root.join("checkpoints"), root.clone()] {
        permit(&place, 0);
        for path in [root.to_str().unwrap(), whole] {
            let done = as_nobody(&run, &["ckpt", "verify", path]);
            assert_eq!(done.code(), Some(2), "{done}");
            assert!(done.stderr.contains("Permission denied"), "{done}");
        }
        permit(&place, 0o755);
    }
    assert_eq!(run.verify(&run.name), 2);
}

#[test]
fn a_checkpoint_is_what_its_manifest_says_and_not_its_name() {
    let run = Workdir::new("resume-names");
    let expected = run.digest("undisturbed", &[]);
    let [older, newer] = two_checkpoints(&run, "1");
    let claims = older.with_file_name("step-00000009.g0001");
    std::fs::rename(&older, &claims).unwrap();
    let done = run.muster(&["ckpt", "verify", claims.to_str().unwrap()]);
    assert_eq!(done.code(), Some(2), "{done}");
    insta::assert_snapshot!(message(&run, &done), @"error: HERE/runs/resume-names/checkpoints/step-00000009.g0001 holds step 2 of generation 1: it was renamed, or copied under another name; rename it to step-00000002.g0001, or remove it if that is there");
    // To go on from just that one says the same, once, and not that it is damaged.
    let done = run.train(&["--resume", claims.to_str().unwrap()]);
    assert_eq!(done.code(), Some(2), "{done}");
    insta::assert_snapshot!(message(&run, &done), @"error: HERE/runs/resume-names/checkpoints/step-00000009.g0001 holds step 2 of generation 1: it was renamed, or copied under another name; rename it to step-00000002.g0001, or remove it if that is there");
    let done = run.muster(&["ckpt", "ls", "runs/resume-names"]);
    assert!(done.stdout.contains("UNUSABLE: runs/resume-names"), "{done}");
    // The newest is the one of step 4, which is gone on from; the other is left where it is.
    assert_eq!(run.digest(&run.name, &["--set", "checkpoint.keep=1"]), expected);
    let resumed = &run.events_of(&run.name, "resumed")[0];
    assert_eq!((&resumed["step"], resumed["skipped"].as_array().unwrap().len()), (&4.into(), 1));
    let why = resumed["skipped"][0][1].as_str().unwrap();
    assert!(why.starts_with("it holds step 2 of generation 1: it was renamed"), "{why}");
    assert!(claims.is_dir() && !newer.exists());
    std::fs::rename(&claims, &older).unwrap();
    assert_eq!(run.verify(&run.name), 2);
}

#[test]
fn a_checkpoint_of_another_run_is_told() {
    let run = Workdir::new("resume-stranger");
    two_checkpoints(&run, "1");
    std::fs::rename(run.run_dir(&run.name), run.run_dir("renamed")).unwrap();
    let done = run.train(&["--name", "renamed"]);
    assert_eq!(done.code(), Some(0), "{done}");
    let warnings = run.events_of("renamed", "warning");
    assert_eq!(warnings.len(), 1, "{done}");
    insta::assert_snapshot!(warnings[0]["message"].as_str().unwrap(), @"runs/renamed/checkpoints/step-00000004.g0001 was saved by the run `resume-stranger`, not by `renamed`; if this run was not renamed, move it elsewhere and start again");
    let done = run.muster(&["ckpt", "show", "runs/renamed"]);
    assert!(done.stdout.contains("  run          renamed\n"), "{done}");
    // One that is asked for by its path may be anyone's.
    let done = run.train(&["--name", "third", "--resume", "runs/renamed"]);
    assert_eq!(done.code(), Some(0), "{done}");
    assert_eq!(run.events_of("third", "warning").len(), 0, "{done}");
}

#[test]
fn other_rules_are_told_in_words_and_by_every_rank() {
    let run = Workdir::new("resume-rules");
    let moved = "*.o_proj.weight";
    let rules = |first: &str, lr: &str| {
        format!(
            "optimizer.rules=[{first}{{match: {{roles: [matrix, expert]}}, muon: {{lr: {lr}}}}}, \
             {{match: {{}}, adamw: {{}}}}]"
        )
    };
    let adamw = rules(&format!("{{match: {{names: ['{moved}']}}, adamw: {{}}}}, "), "0.003");
    let constant = "optimizer.schedule={constant: {warmup_steps: 2}}";
    let common = ["--ranks", "2", "--set", constant];
    let done = run.train(&[&common[..], &["--set", &adamw, "--max-steps", "2"]].concat());
    assert_eq!(done.code(), Some(0), "{done}");
    let muon = rules("", "0.006");
    let done = run.train(&[&common[..], &["--set", &muon, "--max-steps", "4"]].concat());
    assert_eq!(done.code(), Some(0), "{done}");
    let warnings = run.events_of(&run.name, "warning");
    let texts: Vec<&str> = warnings.iter().map(|w| w["message"].as_str().unwrap()).collect();
    insta::assert_snapshot!(texts.join("\n"), @r#"
    the checkpoint has no momentum of model.layers.0.self_attn.o_proj.weight, model.layers.1.self_attn.o_proj.weight; it starts at zero
    different from the checkpoint: optimizer.rules[0].adamw ({"lr":0.003,"beta1":0.9,"beta2":0.95,"eps":1e-8,"weight_decay":0.0} there, not set here), optimizer.rules[0].match.names (["*.o_proj.weight"] there, not set here), optimizer.rules[0].match.roles (not set there, ["matrix","expert"] here), optimizer.rules[0].muon (not set there, {"lr":0.006,"momentum":0.95,"nesterov":true,"coefficients":"polar_express","steps":5,"algorithm":"auto","storage":"f32","scale":"rms","weight_decay":0.1,"eps":1e-7} here), optimizer.rules[1].adamw (not set there, {"lr":0.003,"beta1":0.9,"beta2":0.95,"eps":1e-8,"weight_decay":0.0} here), optimizer.rules[1].match.roles (["matrix","expert"] there, not set here), optimizer.rules[1].muon ({"lr":0.003,"momentum":0.95,"nesterov":true,"coefficients":"polar_express","steps":5,"algorithm":"auto","storage":"f32","scale":"rms","weight_decay":0.1,"eps":1e-7} there, not set here), optimizer.rules[2] ({"match":{},"adamw":{"lr":0.003,"beta1":0.9,"beta2":0.95,"eps":1e-8,"weight_decay":0.0}} there, not set here); the weights may not have the bits of an undisturbed run
    "#);
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
    passed over runs/resume-data/checkpoints/step-00000004.g0001: runs/resume-data/checkpoints/step-00000004.g0001/rank-00001/shard-000.safetensors is damaged in bytes 0..606880, which hold model.embed_tokens.weight:adam_m, model.embed_tokens.weight:adam_v, model.layers.0.input_layernorm.weight:adam_m and 72 more: CRC32C is DIGEST, recorded is DIGEST
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
      runs/resume-data-all/checkpoints/step-00000004.g0001: runs/resume-data-all/checkpoints/step-00000004.g0001/rank-00001/shard-000.safetensors is damaged in bytes 0..606880, which hold model.embed_tokens.weight:adam_m, model.embed_tokens.weight:adam_v, model.layers.0.input_layernorm.weight:adam_m and 72 more: CRC32C is DIGEST, recorded is DIGEST
      runs/resume-data-all/checkpoints/step-00000002.g0001: runs/resume-data-all/checkpoints/step-00000002.g0001/rank-00001/shard-000.safetensors is damaged in bytes 0..606880, which hold model.embed_tokens.weight:adam_m, model.embed_tokens.weight:adam_v, model.layers.0.input_layernorm.weight:adam_m and 72 more: CRC32C is DIGEST, recorded is DIGEST
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
    let keep = ["--set", "checkpoint={every: 1, keep: 1, mode: sync}", "--ranks", "2"];
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
