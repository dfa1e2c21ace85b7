//! `muster train --dry-run` with a mesh, and what a person reads where a mesh is refused.

use std::path::Path;
use std::process::{Command, Output};

/// Three layers, two heads of keys and values, four experts; a vocabulary that 3 does not divide.
const CONFIG: &str = "\
name: planned
model:
  preset: tiny-moe
  layers: 3
  d_model: 64
  heads: 4
  kv_heads: 2
  vocab_size: 320
  moe: {experts: 4, top_k: 2, d_ff: 48}
data:
  files: text.txt
batch:
  leaves: 4
";

fn muster(dir: &Path, config: &str, args: &[&str]) -> Output {
    std::fs::write(dir.join("run.yaml"), config).unwrap();
    std::fs::write(dir.join("text.txt"), "some text").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_muster"));
    command.args(["train", "run.yaml", "--threads", "1"]).args(args);
    command.current_dir(dir).env("COLUMNS", "100").output().unwrap()
}

/// Everything that was printed, after the exit code.
fn transcript(config: &str, args: &[&str]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let output = muster(dir.path(), config, args);
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let code = output.status.code().map_or("killed".into(), |code| code.to_string());
    let typed = ["train", "run.yaml"].iter().chain(args).copied().collect::<Vec<_>>().join(" ");
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(!dir.path().join("runs").exists(), "a plan writes nothing");
    format!("$ muster {typed}\n[exit {code}]\n{out}{err}")
}

fn with_mesh(ranks: usize, mesh: &str) -> String {
    format!("{CONFIG}ranks:\n  count: {ranks}\n  mesh: {mesh}\n")
}

#[test]
fn every_axis() {
    insta::assert_snapshot!(transcript(
        &with_mesh(16, "{pp: 2, dp: 2, ep: 2, tp: 2}"),
        &["--dry-run"]
    ));
}

#[test]
fn published_models() {
    let dense = "model: {preset: gpt2-124m}\ndata: {files: text.txt}\nbatch: {leaves: 2}\nranks: \
                 {count: 8, mesh: {pp: 1, ep: 1, tp: 4}}\n";
    let experts = "model: {preset: qwen3-moe-30b}\ndata: {files: text.txt}\nbatch: {leaves: 64}\n\
                   ranks: {count: 64, mesh: {pp: 5, ep: 8, tp: 1}}\n";
    let latent = "model: {preset: deepseek-v3}\ndata: {files: text.txt}\nbatch: {leaves: 512}\n\
                  ranks: {count: 2048, mesh: {pp: 16, ep: 64, tp: 2}}\n";
    let all = [
        transcript(dense, &["--dry-run"]),
        transcript(experts, &["--dry-run", "--ranks", "80"]),
        transcript(latent, &["--dry-run"]),
    ];
    insta::assert_snapshot!(all.join("\n"));
}

#[test]
fn refusals() {
    let cases = [
        // Axes that do not fill the ranks.
        with_mesh(6, "{pp: 2, tp: 2}"),
        with_mesh(8, "{pp: 2, dp: 3, ep: 1, tp: 1}"),
        with_mesh(2, "{dp: 4}"),
        // Numbers that do not divide.
        with_mesh(4, "{tp: 4}"),
        with_mesh(3, "{tp: 3}"),
        with_mesh(3, "{ep: 3}"),
        with_mesh(4, "{pp: 4}"),
        // Ranks that would have no sample.
        with_mesh(16, "{tp: 2}"),
        // No mesh at all.
        with_mesh(17, "{tp: 17}"),
        // Values that no mesh has.
        with_mesh(4, "{pp: 0, tp: two, cp: 2}"),
        with_mesh(4, "4"),
    ];
    let mut all: Vec<String> =
        cases.iter().map(|config| transcript(config, &["--dry-run"])).collect();
    let dense = "model: {preset: gpt2-124m}\ndata: {files: text.txt}\nranks: {count: 4, mesh: \
                 {ep: 2}}\n";
    all.push(transcript(dense, &["--dry-run"]));
    all.push(transcript(&with_mesh(4, "{dp: 4}"), &["--dry-run", "--ranks", "2"]));
    all.push(transcript(&with_mesh(4, "{tp: 2}"), &["--dry-run", "--set", "model.kv_heads=1"]));
    insta::assert_snapshot!(all.join("\n"));
}

#[test]
fn another_mesh_than_one_of_data_is_not_run() {
    insta::assert_snapshot!(transcript(&with_mesh(4, "{pp: 1, ep: 2, tp: 2}"), &[]), @r"
    $ muster train run.yaml
    [exit 2]
    error: ranks.mesh asks for pp 1 · dp 1 · ep 2 · tp 2: training is parallel over data alone for now; `--dry-run` plans this mesh, and without ranks.mesh the 4 ranks train
    ");
}

/// Where a mesh is to be run, only those that can be are offered; and none with more ranks than
/// leaves.
#[test]
fn offers_can_be_taken() {
    let cases = [("{tp: 3}", 4), ("{dp: 3}", 8), ("{dp: 8}", 8)];
    let both = cases.iter().flat_map(|&(mesh, ranks)| {
        [&["--dry-run"][..], &[]].map(|args| transcript(&with_mesh(ranks, mesh), args))
    });
    insta::assert_snapshot!(both.collect::<Vec<_>>().join("\n"));
}

/// A mesh of data alone is what a run without one is: the same plan, the same header but for the
/// digest of the config, in which it stands.
#[test]
fn a_mesh_of_data_alone_is_none() {
    let lines = |config: &str| {
        let text = transcript(config, &["--dry-run"]);
        assert!(text.contains("[exit 0]"), "{text}");
        let lines = text.lines().filter(|line| !line.starts_with("  run "));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let plain = format!("{CONFIG}ranks:\n  count: 2\n");
    let with = with_mesh(2, "{pp: 1, dp: 2, ep: 1, tp: 1}");
    assert_eq!(lines(&with), lines(&plain));
    assert_eq!(lines(&plain).last().unwrap(), "  mesh       pp 1 · dp 2 · ep 1 · tp 1 = 2 ranks");
}

#[test]
fn what_a_plan_without_a_mesh_refuses_is_refused_with_one() {
    let three = ["--dry-run", "--backend", "tcp", "--nodes", "3", "--node-rank", "0"];
    let three = [&three[..], &["--rendezvous", "127.0.0.1:4444"]].concat();
    let said = transcript(&with_mesh(4, "{pp: 2}"), &three);
    assert!(said.contains("[exit 2]"), "{said}");
    assert!(said.contains("4 ranks do not divide over 3 nodes; use --ranks 3"), "{said}");
    let absent = ["--dry-run", "--set", "ranks.optimizer_device=cuda:900"];
    let said = transcript(&with_mesh(4, "{pp: 2}"), &absent);
    assert!(said.contains("[exit 3]"), "{said}");
    assert!(said.contains("ranks.optimizer_device cuda:900"), "{said}");
}
