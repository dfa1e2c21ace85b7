//! `muster ckpt reshape`, `plan` and `gc`, by the binary: a run goes on from a checkpoint that was
//! cut for another layout as from its own.

mod common;

use std::os::unix::fs::symlink;
use std::path::Path;

use common::{Done, Workdir, as_nobody};

fn ckpt(run: &Workdir, args: &[&str]) -> Done {
    run.muster(&[&["ckpt"], args].concat())
}

fn whole(run: &Workdir, of: &str) {
    let done = ckpt(run, &["verify", of]);
    assert_eq!(done.code(), Some(0), "{done}");
    // Nothing of the work is left in the directory.
    assert!(!done.stdout.contains("not part of it"), "{done}");
}

#[test]
fn a_run_goes_on_from_any_layout_with_the_same_bits() {
    let run = Workdir::new("reshape-bits");
    let undisturbed = run.digest("whole", &["--ranks", "1"]);
    let done = run.train(&["--name", "half", "--ranks", "2", "--max-steps", "3"]);
    assert_eq!(done.code(), Some(0), "{done}");
    let layouts = ["dp=1", "dp=3", "dp=3,ep=2,tp=2", "pp=2,dp=2,ep=4,tp=2", "pp=2"];
    let mut source = "runs/half".to_owned();
    for (number, layout) in layouts.into_iter().enumerate() {
        let target = format!("cut-{number}");
        let done = ckpt(&run, &["reshape", &source, &target, "--layout", layout]);
        assert_eq!(done.code(), Some(0), "{layout}: {done}");
        whole(&run, &target);
        // Equal to the run's own, by what was cut before.
        let done = ckpt(&run, &["diff", "runs/half", &target]);
        assert_eq!(done.code(), Some(0), "{layout}: {done}");
        source = target;
    }
    for (ranks, from) in [("1", "cut-2"), ("2", "cut-3"), ("4", "cut-4")] {
        let name = format!("from-{from}");
        let args = ["--ranks", ranks, "--threads", "1", "--resume", from];
        assert_eq!(run.digest(&name, &args), undisturbed, "{ranks} ranks from {from}");
    }
}

#[test]
fn the_files_are_those_of_the_layout() {
    let run = Workdir::new("reshape-files");
    run.digest("a", &["--ranks", "1"]);
    let done = ckpt(&run, &["reshape", "runs/a", "cut", "--layout", "dp=2,tp=2"]);
    assert_eq!(done.code(), Some(0), "{done}");
    assert!(done.stdout.contains("dp 2 · tp 2: 4 ranks"), "{done}");
    let attempt = run.path().join("cut/step-00000006.g0001");
    for rank in 0..4 {
        let shard = attempt.join(format!("rank-{rank:05}/shard-000.safetensors"));
        assert!(shard.is_file(), "{}", shard.display());
    }
    let done = ckpt(&run, &["show", "cut", "--json"]);
    let shown: serde_json::Value = serde_json::from_str(&done.stdout).expect("JSON");
    assert_eq!(shown["manifest"]["world"], 4);
    let layout = serde_json::json!({ "pp": 1, "dp": 2, "ep": 1, "tp": 2 });
    assert_eq!(shown["manifest"]["run_state"]["extra"]["layout"], layout);
    let tensors = shown["manifest"]["tensors"].as_array().unwrap();
    let name = "model.layers.0.self_attn.q_proj.weight";
    let query = tensors.iter().find(|tensor| tensor["name"] == name).unwrap();
    // Whole heads of each of two tp ranks.
    let rows = |chunk: &serde_json::Value| chunk["shape"][0].as_u64().unwrap();
    let rows: Vec<u64> = query["chunks"].as_array().unwrap().iter().map(rows).collect();
    assert_eq!(rows, [32, 32]);
    let digest = shown["manifest_blake3"].as_str().unwrap().to_owned();
    let done = ckpt(&run, &["show", "cut", "--tensors"]);
    assert!(done.stdout.contains(&digest) && done.stdout.contains("chunks  ranks"), "{done}");
    assert!(done.stdout.contains("  layout       dp 2 · tp 2\n"), "{done}");
    let done = ckpt(&run, &["plan", "runs/a", "--layout", "dp=2,tp=2", "--rate", "2"]);
    assert_eq!(done.code(), Some(0), "{done}");
    let is_rank = |line: &&str| {
        line.split_whitespace().next().is_some_and(|word| word.parse::<usize>().is_ok())
    };
    assert_eq!(done.stdout.lines().filter(is_rank).count(), 4, "{done}");
    assert!(done.stdout.contains("at 2.000 GB/s, as given"), "{done}");
    let done = ckpt(&run, &["plan", "runs/a", "--layout", "dp=64"]);
    assert!(done.stdout.contains("and 32 ranks more"), "{done}");
    assert!(done.stdout.contains("of it were read and verified"), "{done}");
    plan_for_programs(&run);
}

/// All ranks of a plan, and what they add up to.
fn plan_for_programs(run: &Workdir) {
    let json = |args: &[&str]| -> serde_json::Value {
        let all = [&["plan", "runs/a", "--layout", "dp=32,tp=2", "--json"], args].concat();
        let done = ckpt(run, &all);
        assert_eq!(done.code(), Some(0), "{done}");
        serde_json::from_str(&done.stdout).expect("JSON")
    };
    let plan = json(&["--rate", "2"]);
    assert_eq!(plan["layout"], serde_json::json!({"pp": 1, "dp": 32, "ep": 1, "tp": 2}));
    assert_eq!((&plan["gb_per_s"], &plan["timed_bytes"]), (&2.0.into(), &().into()));
    let ranks = plan["ranks"].as_array().unwrap();
    assert_eq!(ranks.len(), 64);
    let sum: u64 = ranks.iter().map(|rank| rank["bytes"].as_u64().unwrap()).sum();
    assert_eq!(plan["bytes"], sum);
    assert_eq!(plan["seconds_alone"], sum as f64 / 1e9);
    let last = &ranks[63];
    assert_eq!(last["at"], serde_json::json!({"pp": 0, "dp": 31, "ep": 0, "tp": 1}));
    assert!(last["boxes"].as_u64().unwrap() > 0);
    assert!(json(&[])["timed_bytes"].as_u64().unwrap() > 0);
}

/// Standard error of a command that is refused.
fn refused(run: &Workdir, args: &[&str]) -> String {
    let done = ckpt(run, args);
    assert_eq!((done.code(), &*done.stdout), (Some(2), ""), "{done}");
    done.stderr.trim_end().replace(run.path().to_str().unwrap(), "HERE")
}

#[test]
fn mistakes_are_named_and_nothing_is_touched() {
    let run = Workdir::new("reshape-mistakes");
    run.digest("a", &["--ranks", "1"]);
    let here = run.path();
    std::fs::create_dir(here.join("full")).unwrap();
    std::fs::write(here.join("full/notes.txt"), "mine").unwrap();
    std::fs::write(here.join("file"), "mine").unwrap();
    symlink(here.join("elsewhere"), here.join("link")).unwrap();
    let reshape =
        |target, layout| refused(&run, &["reshape", "runs/a", target, "--layout", layout]);
    let mut told = Vec::new();
    for layout in ["tp=3", "ep=3", "pp=3", "ep=2,tp=64", "dp=2000000", "cp=2", "dp=1,dp=2", "4"] {
        told.push(format!("{layout}: {}", reshape("new", layout)));
    }
    let inside = run.attempts("a").pop().unwrap().join("cut");
    let inside = inside.strip_prefix(here).unwrap().to_str().unwrap();
    for target in ["full", "file", "link", "/dev/null", "runs/a/checkpoints", inside] {
        told.push(format!("{target}: {}", reshape(target, "dp=2")));
    }
    told.push(refused(&run, &["reshape", "runs/none", "new", "--layout", "dp=2"]));
    told.push(refused(&run, &["plan", "runs/a", "--layout", "dp=2", "--rate", "0"]));
    insta::assert_snapshot!("reshape_mistakes", told.join("\n\n"));
    assert!(!here.join("new").exists());
    assert_eq!(std::fs::read_to_string(here.join("full/notes.txt")).unwrap(), "mine");
    whole(&run, "runs/a");
}

#[test]
fn a_damaged_source_is_told_and_the_target_is_no_checkpoint() {
    let run = Workdir::new("reshape-damaged");
    run.digest("a", &["--ranks", "2"]);
    let attempt = run.attempts("a").pop().unwrap();
    let shard = attempt.join("rank-00001/shard-000.safetensors");
    let mut bytes = std::fs::read(&shard).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&shard, &bytes).unwrap();
    let told = refused(&run, &["reshape", "runs/a", "cut", "--layout", "dp=3"]);
    assert!(told.contains("rank-00001/shard-000.safetensors") && told.contains("CRC32C"), "{told}");
    let done = ckpt(&run, &["show", "cut"]);
    assert_eq!(done.code(), Some(2), "{done}");
    // Mended, the same command does it.
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&shard, &bytes).unwrap();
    let done = ckpt(&run, &["reshape", "runs/a", "cut", "--layout", "dp=3"]);
    assert_eq!(done.code(), Some(0), "{done}");
    whole(&run, "cut");
}

#[test]
fn a_directory_that_may_not_be_written_is_told() {
    let run = Workdir::new("reshape-read-only");
    run.digest("a", &["--ranks", "1"]);
    let done = as_nobody(&run, &["ckpt", "reshape", "runs/a", "new", "--layout", "dp=2"]);
    assert_eq!(done.code(), Some(2), "{done}");
    assert!(done.stderr.contains("ermission denied"), "{done}");
    assert!(!run.path().join("new").exists());
}

fn attempts(dir: &Path) -> usize {
    let names = std::fs::read_dir(dir).unwrap().flatten().map(|entry| entry.file_name());
    names.filter(|name| name.to_str().unwrap().starts_with("step-")).count()
}

#[test]
fn old_checkpoints_are_collected_after_the_newest_was_read() {
    let run = Workdir::new("reshape-gc");
    run.digest("a", &["--ranks", "1", "--set", "checkpoint={every: 1, keep: 0, mode: sync}"]);
    let dir = run.run_dir("a").join("checkpoints");
    let before = attempts(&dir);
    assert!(before >= 5, "{before}");
    let mut told = Vec::new();
    for args in
        [&["gc", "runs/a", "--keep", "2", "--dry-run"][..], &["gc", "runs/a", "--keep", "2"]]
    {
        let done = ckpt(&run, args);
        assert_eq!(done.code(), Some(0), "{done}");
        told.push(done.stdout);
        let expected = if args.len() == 5 { before } else { 2 };
        assert_eq!(attempts(&dir), expected);
    }
    assert_eq!(told[0].matches("would be removed: ").count(), before - 2, "{told:?}");
    assert!(told[1].contains(&format!("{} checkpoints of {before} removed", before - 2)));
    whole(&run, "runs/a");
    // The newest is damaged: nothing is removed on its word, and the older whole one stays.
    let newest = run.attempts("a").pop().unwrap().join("rank-00000/shard-000.safetensors");
    let mut bytes = std::fs::read(&newest).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&newest, bytes).unwrap();
    let done = ckpt(&run, &["gc", "runs/a", "--keep", "1"]);
    assert_eq!((done.code(), attempts(&dir)), (Some(2), 2), "{done}");
    assert!(done.stdout.contains("damaged, and stays: "), "{done}");
    for elsewhere in ["runs", "."] {
        assert_eq!(ckpt(&run, &["gc", elsewhere, "--keep", "1"]).code(), Some(2));
    }
    assert_eq!(ckpt(&run, &["gc", "runs/a", "--keep", "0"]).code(), Some(2));
}
