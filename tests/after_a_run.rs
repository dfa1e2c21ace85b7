//! The files that a run leaves, and the output and exit codes of the commands that look at it.

mod common;

use std::path::Path;

use common::{Done, Workdir};

/// Every word that is a number becomes `N`, whatever brackets and commas are around it; text of
/// the model and digests go, too.
fn without_numbers(text: &str) -> String {
    let word = |word: &str| {
        let bare = word.trim_matches(|c: char| !c.is_ascii_alphanumeric());
        let hex = bare.len() >= 12 && bare.bytes().all(|b| b.is_ascii_hexdigit());
        let number = bare.starts_with(|c: char| c.is_ascii_digit());
        let name = if hex { "DIGEST" } else { "N" };
        if hex || number { word.replace(bare, name) } else { word.to_owned() }
    };
    let line = |line: &str| match line.starts_with("  │") {
        true => "  │ TEXT".to_owned(),
        false => line.split(' ').map(word).collect::<Vec<_>>().join(" "),
    };
    let mut lines: Vec<String> = text.lines().map(line).collect();
    lines.dedup_by(|a, b| a == b && a == "  │ TEXT");
    lines.join("\n")
}

const SAMPLE: [&str; 4] = ["--set", "train.sample_tokens=12", "--set", "train.sample_prompt=fn "];

#[test]
fn a_complete_run_sums_up_and_says_how_to_go_on() {
    let run = Workdir::new("after-complete");
    let done = run.train(&[&SAMPLE[..], &["--ranks", "2"]].concat());
    assert_eq!(done.code(), Some(0), "{done}");
    assert_eq!(done.stderr, "", "{done}");
    let (steps, summary) = done.stdout.split_once("order-2 byte model").expect("a baseline");
    assert_eq!(steps.lines().filter(|line| line.starts_with("step ")).count(), 6 + 2, "{done}");
    let summary = without_numbers(&format!("order-2 byte model{summary}"));
    // Which part took longest is chance.
    let (before, time) = summary.split_once("  time ").expect("where the time went");
    let (time, after) = time.split_once('\n').unwrap();
    for part in ["forward and backward", "optimizer", "reduce", "gather", "saves", "other"] {
        assert!(time.contains(&format!("{part} N %")), "{time}");
    }
    // And so is how it was spread over the ranks.
    let (table, after) = after.split_once("\n  validation").expect("a result");
    assert!(table.starts_with("  ranks") && table.contains("slowest"), "{table}");
    assert!(table.contains("forward") && table.contains("rank N"), "{table}");
    let all = format!("{before}  time TIMES\n  ranks TABLE\n  validation{after}");
    insta::assert_snapshot!("a_complete_run", all);
    let svg = std::fs::read_to_string(run.run_dir(&run.name).join("loss.svg")).unwrap();
    assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{svg}");
    assert!(svg.contains("<polyline"), "no curve in {svg}");
    assert_eq!(run.events_of(&run.name, "sample").len(), 1);
    assert_eq!(run.events_of(&run.name, "baseline").len(), 1);

    let again = run.train(&SAMPLE);
    assert_eq!(again.code(), Some(0), "{again}");
    let (_, summary) = again.stdout.split_once("resuming after").expect("it resumes");
    insta::assert_snapshot!("run_again", without_numbers(&format!("resuming after{summary}")));
}

#[test]
fn tokens_without_a_tokenizer_end_without_a_sample() {
    let run = Workdir::new("after-ids");
    let done = run.muster(&["data", "tokenize", "text.txt", "text.tok"]);
    assert_eq!(done.code(), Some(0), "{done}");
    let ids = ["--set", "data={tokenizer: {ids: 257}, files: text.tok}"];
    let done = run.train(&[&SAMPLE[..], &ids].concat());
    assert_eq!(done.code(), Some(2), "{done}");
    insta::assert_snapshot!("ids_and_a_prompt", done.stderr.trim_end());
    let done = run.train(&[&ids[..], &["--set", "train.sample_tokens=12"]].concat());
    assert_eq!(done.code(), Some(0), "{done}");
    assert_eq!(run.finished(&run.name)["reason"], "complete");
    assert_eq!(run.events_of(&run.name, "sample").len(), 0);
}

/// Runs `muster ckpt …`, shortens what differs between machines.
fn ckpt(run: &Workdir, args: &[&str]) -> (Option<i32>, String) {
    let done = run.muster(&[&["ckpt"], args].concat());
    let text = done.stdout.replace(run.path().to_str().unwrap(), "HERE");
    (done.code(), format!("{}{}", text, done.stderr).trim_end().to_owned())
}

#[test]
fn checkpoints_are_listed_shown_and_compared() {
    let run = Workdir::new("after-ckpt");
    let every = ["--set", "checkpoint.every=3"];
    run.digest("a", &[&every[..], &["--ranks", "1"]].concat());
    run.digest("b", &[&every[..], &["--ranks", "3"]].concat());
    run.digest("c", &["--set", "seed=2"]);

    let (code, text) = ckpt(&run, &["ls", "runs/a"]);
    assert_eq!(code, Some(0), "{text}");
    insta::assert_snapshot!("ckpt_ls", without_numbers(&text));
    assert_eq!(text.matches("committed").count(), 2, "{text}");
    let (code, text) = ckpt(&run, &["show", "runs/b"]);
    assert_eq!(code, Some(0), "{text}");
    insta::assert_snapshot!("ckpt_show", without_numbers(&text));
    assert!(text.contains("3 ranks") && text.contains("step         6 "), "{text}");
    let (code, text) = ckpt(&run, &["show", "runs/b", "--tensors"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("  model.layers.0.self_attn.q_proj.weight  "), "{text}");

    // Runs of another name and another number of ranks: all bits are equal all the same.
    let (code, text) = ckpt(&run, &["diff", "runs/a", "runs/b"]);
    assert_eq!(code, Some(0), "{text}");
    insta::assert_snapshot!("ckpt_diff_equal", without_numbers(&text));
    let (code, text) = ckpt(&run, &["diff", "runs/a", "runs/b", "--parameters-only"]);
    assert_eq!(code, Some(0), "{text}");
    insta::assert_snapshot!("ckpt_diff_equal_parameters", without_numbers(&text));

    let (code, text) = ckpt(&run, &["diff", "runs/a", "runs/c"]);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("seed: 1 in a, 2 in b"), "{text}");
    assert!(text.contains(":momentum "), "{text}");
    assert!(text.contains(" relative), norm ") && text.contains(" of "), "{text}");
    let older = run.attempts("a").swap_remove(0);
    let older = older.to_str().unwrap();
    let (code, text) = ckpt(&run, &["diff", older, "runs/a", "--parameters-only"]);
    assert_eq!(code, Some(2), "{text}");
    // The bias of the router is part of the model, the state of the optimizer is not.
    assert!(text.contains("router_bias") && !text.contains("momentum"), "{text}");
    assert!(!text.contains("samples: "), "{text}");
}

fn generate(run: &Workdir, args: &[&str]) -> Done {
    let done = run.muster(&[&["generate", "runs/text", "--tokens", "40"], args].concat());
    assert_eq!(done.code(), Some(0), "{done}");
    done
}

#[test]
fn text_is_generated_from_a_run_and_follows_the_seed() {
    let run = Workdir::new("after-text");
    run.digest("text", &[]);
    let one = generate(&run, &["--prompt", "pub fn", "--seed", "7"]);
    assert!(one.stdout.starts_with("pub fn"), "{one}");
    assert!(one.stdout.len() > "pub fn".len() + 20, "{one}");
    let same = generate(&run, &["--prompt", "pub fn", "--seed", "7"]);
    assert_eq!(one.stdout, same.stdout);
    let other = generate(&run, &["--prompt", "pub fn", "--seed", "8"]);
    assert_ne!(one.stdout, other.stdout);
    let checkpoint = run.attempts("text").pop().unwrap();
    assert!(Path::new(&checkpoint).is_dir());
    let args = ["generate", checkpoint.to_str().unwrap(), "--tokens", "40", "--prompt", "pub fn"];
    let named = run.muster(&[&args[..], &["--seed", "7"]].concat());
    assert_eq!(named.stdout, one.stdout);
    // From a directory inside it.
    let mut above = std::process::Command::new(common::MUSTER);
    above.args(["generate", "..", "--tokens", "40", "--prompt", "pub fn", "--seed", "7"]);
    above.current_dir(checkpoint.join("rank-00000"));
    assert_eq!(String::from_utf8_lossy(&above.output().unwrap().stdout), one.stdout);
    for bad in ["-1", "nan"] {
        let done = run.muster(&["generate", "runs/text", "--temperature", bad]);
        assert_eq!(done.code(), Some(2), "{done}");
        assert!(done.stderr.contains("is no temperature; give 0 or more"), "{done}");
    }
}
