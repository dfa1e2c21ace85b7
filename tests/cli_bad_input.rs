//! What a person gets to read after a mistake: the whole message, from the real binary.
//!
//! Every case runs in an empty directory of its own, so that paths in messages are short and
//! equal everywhere; the directory's own path is replaced where it appears.

use std::path::Path;
use std::process::{Command, Output};

/// An empty directory to run `muster` in.
struct Desk {
    dir: tempfile::TempDir,
}

impl Desk {
    fn new() -> Desk {
        Desk { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn put(&self, name: &str, content: impl AsRef<[u8]>) {
        std::fs::write(self.path().join(name), content).unwrap();
    }

    fn muster(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_muster"));
        command.args(args).current_dir(self.path()).env_remove("RUST_BACKTRACE");
        // Help and errors are wrapped to the terminal's width.
        command.env("COLUMNS", "100").env("CARGO_HOME", self.path().join("no-cargo-home"));
        command.output().unwrap()
    }

    /// What was typed, the exit code, and everything that was printed.
    fn transcript(&self, args: &[&str]) -> String {
        let output = self.muster(args);
        let text = |bytes: &[u8]| {
            let text = String::from_utf8(bytes.to_vec()).expect("messages are text");
            // macOS reports its temporary directory under two names.
            let real = self.path().canonicalize().unwrap();
            text.replace(real.to_str().unwrap(), "HERE")
                .replace(self.path().to_str().unwrap(), "HERE")
        };
        let code = output.status.code().map_or("killed".into(), |code| code.to_string());
        let typed: Vec<String> = args
            .iter()
            .map(|arg| if arg.contains(' ') { format!("'{arg}'") } else { arg.to_string() })
            .collect();
        format!(
            "$ muster {}\n[exit {code}]\n{}{}",
            typed.join(" "),
            text(&output.stdout),
            text(&output.stderr)
        )
    }
}

const SMALL: &str = "\
model:
  preset: tiny-moe
data:
  files: text.txt
";

fn check(desk: &Desk, config: &str, sets: &[&str]) -> String {
    desk.put("run.yaml", config);
    let mut args = vec!["config", "check", "run.yaml"];
    for set in sets {
        args.extend(["--set", set]);
    }
    desk.transcript(&args)
}

#[test]
fn misspelt_and_misplaced_keys() {
    let desk = Desk::new();
    desk.put("text.txt", "some text");
    let config = "\
nam: x
model:
  preset: tiny-moe
  d_modle: 128
  moe:
    expert: 8
data:
  files: text.txt
optimizer:
  rules:
    - match: {role: [matrix]}
      muon: {momentun: 0.9}
    - match: {}
      adamw: {}
  clip: {globl: 1.0}
train:
  stepz: 10
layers: 4
ranks:
  flavour: mint
";
    insta::assert_snapshot!(check(&desk, config, &[]));
}

#[test]
fn wrong_types_and_ranges() {
    let desk = Desk::new();
    desk.put("text.txt", "some text");
    let config = "\
seed: -1
model:
  preset: tiny-mo
  layers: 0
  heads: four
  tie_embeddings: yes
  positions: {rotary: {theta: 1e4}, learned: {max: 3}}
data:
  files: text.txt
  tokenizer: gtp2
batch:
  leaves: 1_024
  seq_len: \"256\"
  micro_batch: 2.5
optimizer:
  rules: none
train:
  steps: 99999999999999999999
checkpoint:
  resume: sometimes
ranks:
  backend: nccl
";
    insta::assert_snapshot!(check(&desk, config, &[]));
}

#[test]
fn impossible_shapes() {
    let desk = Desk::new();
    desk.put("text.txt", "some text");
    let cases: [&[&str]; 10] = [
        &["model.d_model=100", "model.heads=6"],
        &["model.d_model=1048573", "model.heads=6"],
        &["model.moe.first_dense_layers=4", "model.d_ff=128"],
        &["model.kv_heads=3"],
        &["model.moe.top_k=9"],
        &["model.vocab_size=100"],
        &["batch.radices=[2, 3]", "batch.leaves=8"],
        &["ranks.count=5"],
        &["model.positions.learned.max=64"],
        &["batch.micro_batches=1048576", "batch.seq_len=16777216"],
    ];
    let all: Vec<String> = cases.iter().map(|sets| check(&desk, SMALL, sets)).collect();
    insta::assert_snapshot!(all.join("\n"));
}

#[test]
fn sizes_beyond_all_machines() {
    let desk = Desk::new();
    desk.put("text.txt", "some text");
    let config = "\
model:
  preset: tiny-moe
  layers: 1000000000
  d_model: 1000000000000
  positions: {rotary: {theta: 0}}
  moe: {experts: 4294967296, shared_experts: 100000}
data:
  files: text.txt
  tokenizer: {ids: 4294967295}
batch:
  leaves: 999999999989
  radices: [1, 4294967296]
train:
  steps: 1e15
ranks:
  threads: 1000000
  timeout_ms: 1e18
";
    let mut all = vec![check(&desk, config, &[])];
    let cases: [&[&str]; 8] = [
        &["batch.radices=[65536, 65536]"],
        &["model.positions.rotary.theta=-1"],
        // A prime: one level of the tree, and no smaller number of ranks without extra bytes.
        &["batch.leaves=65521"],
        &["batch.radices=[65536, 65536, 65536, 65536]"],
        &["model.d_model=1048576", "model.layers=10000", "model.moe.d_ff=16777216"],
        &["model.moe.experts=65536", "model.layers=1000"],
        &["batch.micro_batch=1048576", "batch.seq_len=4096"],
        &["train.steps=1000000000000", "batch.micro_batches=1048576"],
    ];
    all.extend(cases.iter().map(|sets| check(&desk, SMALL, sets)));
    insta::assert_snapshot!(all.join("\n"));
}

#[test]
fn a_refused_flag_is_named_and_not_the_file() {
    let desk = Desk::new();
    desk.put("text.txt", "some text");
    let config = "\
model:
  preset: tiny-moe
  d_model: 128
  heads: 4
  positions: {learned: {max: 512}}
data:
  files: text.txt
batch:
  leaves: 4
  radices: [2, 2]
ranks:
  count: 2
optimizer:
  rules:
    - match: {roles: [matrix, expert]}
      muon: {}
    - match: {}
      adamw: {}
";
    let sets = [
        "model.preset=nonsense",
        "model.preset=null",
        "model.preset=#",
        "model=nonsense",
        "model.heads=3",
        "model.positions.learned.max=-1",
        "batch.seq_len=1024",
        "batch.leaves=8",
        "batch.radices[0]=3",
        "batch.leaves=1",
        "data.tokenizer=gpt2x",
        "data.files=none.txt",
        "name=/a",
        "optimizer.rules[0].match.roles=[head]",
        "optimizer.rules[1].adamw.beta1=1",
        "checkpoint.resume.from=nowhere",
    ];
    let mut all = Vec::new();
    for set in sets {
        let said = check(&desk, config, &[set]);
        assert!(!said.contains("run.yaml:"), "{said}");
        all.push(said);
    }
    insta::assert_snapshot!(all.join("\n"));
}

#[test]
fn optimizer_rules_that_do_not_fit_the_model() {
    let desk = Desk::new();
    desk.put("text.txt", "some text");
    let cases: [&[&str]; 5] = [
        &["optimizer.rules=[{match: {roles: [matrix, expert]}, muon: {}}]"],
        &["optimizer.rules=[{match: {}, adamw: {}}]"],
        &["optimizer.rules=[{match: {}, muon: {}}]"],
        &["optimizer.rules[0].muon.steps=0"],
        &["optimizer.rules[0].muon.momentum=1"],
    ];
    let config = format!(
        "{SMALL}optimizer:\n  rules:\n    - match: {{roles: [matrix, expert]}}\n      muon: \
         {{}}\n    - match: {{}}\n      adamw: {{}}\n"
    );
    let all: Vec<String> = cases.iter().map(|sets| check(&desk, &config, sets)).collect();
    insta::assert_snapshot!(all.join("\n"));
}

#[test]
fn overrides() {
    let desk = Desk::new();
    desk.put("text.txt", "some text");
    let cases: [&[&str]; 6] = [
        &["model.layer=2"],
        &["layers=2"],
        &["train.steps=many"],
        &["optimizer.rules[7].muon.lr=1"],
        &["batch.seq_len"],
        &["data.files=[a.txt"],
    ];
    let all: Vec<String> = cases.iter().map(|sets| check(&desk, SMALL, sets)).collect();
    insta::assert_snapshot!(all.join("\n"));
}

#[test]
fn text_that_is_not_there() {
    let desk = Desk::new();
    desk.put("text.txt", "some text");
    std::fs::create_dir(desk.path().join("books")).unwrap();
    let cases: [&[&str]; 6] = [
        &["data.files=txet.txt"],
        &["data.files=[text.txt, books, other.jsonl]"],
        &["data.files=[]"],
        &["data.files=[]", "data.crates=[serde, raion]"],
        &["data.tokenizer.file=tokenizer.json"],
        &["data.mixture=[{name: a, files: text.txt, weight: 0}]", "data.files=[]"],
    ];
    let all: Vec<String> = cases.iter().map(|sets| check(&desk, SMALL, sets)).collect();
    insta::assert_snapshot!(all.join("\n"));
}

#[test]
fn files_that_are_not_configs() {
    let desk = Desk::new();
    desk.put("text.txt", "some text");
    desk.put("binary.yaml", [0xff_u8, 0xfe, 0]);
    let mut all = vec![
        check(&desk, "model:\n  layers: 2\n d_model: 3\n", &[]),
        check(&desk, "name: a\nname: b\ndata: {files: text.txt}\nmodel: {preset: tiny-moe}\n", &[]),
        check(&desk, "- a\n- b\n", &[]),
        check(&desk, "model: &m {layers: 2}\n", &[]),
        check(&desk, "optimizer:\n  clip: !global 1.0\n", &[]),
        check(&desk, "", &[]),
    ];
    for args in [["config", "check", "binary.yaml"], ["config", "check", "rum.yaml"]] {
        all.push(desk.transcript(&args));
    }
    insta::assert_snapshot!(all.join("\n"));
}

#[test]
fn token_files() {
    let desk = Desk::new();
    desk.put("text.txt", "some text to tokenize");
    desk.put("bad.jsonl", "{\"text\": \"fine\"}\n{\"body\": 1}\n");
    desk.put("broken.bin", b"nothing of the kind");
    assert!(desk.muster(&["data", "tokenize", "text.txt", "text.tok"]).status.success());
    let whole = std::fs::read(desk.path().join("text.tok")).unwrap();
    desk.put("short.tok", &whole[..whole.len() - 5]);
    let mut flipped = whole.clone();
    flipped[4100] ^= 1;
    desk.put("flipped.tok", flipped);
    let cases: [&[&str]; 10] = [
        &["data", "tokenize", "text.txt", "text.txt"],
        &["data", "tokenize", "text.tok", "again.tok"],
        &["data", "tokenize", "missing.txt", "out.tok"],
        &["data", "tokenize", "bad.jsonl", "out.tok"],
        &["data", "tokenize", "--tokenizer", "gtp2", "text.txt", "out.tok"],
        &["data", "tokenize", "--tokenizer", "gone.json", "text.txt", "out.tok"],
        &["data", "show", "short.tok"],
        &["data", "show", "flipped.tok"],
        &["data", "show", "broken.bin"],
        &["data", "show", "missing.tok"],
    ];
    let all: Vec<String> = cases.iter().map(|args| desk.transcript(args)).collect();
    insta::assert_snapshot!(all.join("\n"));
}

#[test]
fn files_that_are_no_text() {
    let desk = Desk::new();
    let files: [(&str, &[u8]); 12] = [
        ("wide.txt", b"\xFF\xFEw\0i\0d\0e\0"),
        ("unmarked.jsonl", b"{\0\"\0t\0\"\0:\x001\0}\0"),
        ("nul.txt", b"text, and then\0"),
        ("plain.jsonl.gz", b"{\"text\": \"not compressed\"}\n"),
        // The first bytes of gzip, and no more.
        ("cut.txt.gz", b"\x1F\x8B\x08\0\0\0\0\0\0\x03KLJN"),
        ("a.txt.bz2", b"BZh91AY&SY\xB1\x68"),
        ("a.arrow", b"ARROW1\0\0\xFF\xFF\xFF\xFF"),
        ("a.zip", b"PK\x03\x04\x14\0"),
        ("array.json", b"[{\"text\": \"a\"}]"),
        ("pretty.json", b"{\n  \"text\": \"a\"\n}\n"),
        ("half.jsonl", b"{\"text\": \"ok\"}\n{\"text\": \"a\\ud83d b\"}\n"),
        ("two.jsonl", b"\xEF\xBB\xBF{\"text\": \"a\"}\n\xEF\xBB\xBF{\"text\": \"b\"}\n"),
    ];
    let mut all = Vec::new();
    for (name, content) in files {
        desk.put(name, content);
        all.push(desk.transcript(&["data", "tokenize", name, "out.tok"]));
    }
    assert!(!desk.path().join("out.tok").exists());
    let sets = ["data.files=[wide.txt, a.txt.bz2, cut.txt.gz]"];
    all.push(check(&desk, SMALL, &sets));
    insta::assert_snapshot!(all.join("\n"));
}

#[test]
fn what_has_no_end_or_comes_once() {
    let desk = Desk::new();
    desk.put("text.txt", "some text");
    desk.put("run.yaml", SMALL);
    for name in ["pipe", "pipe.tok"] {
        let made = Command::new("mkfifo").arg(desk.path().join(name)).status().unwrap();
        assert!(made.success());
    }
    let mut large = SMALL.to_string();
    large.extend(std::iter::repeat_n("# filler\n", 500_000));
    desk.put("large.yaml", large);
    let cases: [&[&str]; 8] = [
        &["config", "check", "/dev/zero"],
        &["config", "check", "large.yaml"],
        // Nobody writes to it.
        &["config", "check", "pipe"],
        &["config", "check", "run.yaml", "--set", "data.files=[pipe, pipe.tok, /dev/zero]"],
        &["config", "check", "run.yaml", "--set", "data.tokenizer.file=pipe"],
        &["data", "tokenize", "/dev/zero", "out.tok"],
        &["data", "show", "pipe.tok"],
        &["orthogonalize", "/dev/zero", "out.safetensors"],
    ];
    let all: Vec<String> = cases.iter().map(|args| desk.transcript(args)).collect();
    insta::assert_snapshot!(all.join("\n"));
}

#[test]
fn a_pipe_is_read_once_and_whole() {
    use std::io::Write;
    use std::process::Stdio;
    let desk = Desk::new();
    desk.put("text.txt", "some text");
    let with_input = |args: &[&str], input: &str| {
        let mut child = Command::new(env!("CARGO_BIN_EXE_muster"))
            .args(args)
            .current_dir(desk.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    };
    let said = with_input(&["data", "tokenize", "/dev/stdin", "out.tok"], "ABCDEFGHIJKLMNOP\n");
    assert!(said.starts_with("out.tok: 18 tokens (byte) from 17 B in 1 document"), "{said}");
    let shown = desk.transcript(&["data", "show", "out.tok"]);
    assert!(shown.contains("first tokens  65 66 67 68"), "{shown}");
    with_input(&["config", "check", "/dev/stdin"], SMALL);
}

#[test]
fn checkpoints_that_are_not_there() {
    let desk = Desk::new();
    std::fs::create_dir_all(desk.path().join("runs/quickstart/checkpoints")).unwrap();
    std::fs::create_dir_all(desk.path().join("half/step-00000010.g0001")).unwrap();
    let cases: [&[&str]; 5] = [
        &["ckpt", "ls", "runs/quickstrat"],
        &["ckpt", "ls", "runs/quickstart"],
        &["ckpt", "show", "runs/quickstart"],
        &["ckpt", "verify", "half/step-00000010.g0001"],
        &["ckpt", "show", "half"],
    ];
    let all: Vec<String> = cases.iter().map(|args| desk.transcript(args)).collect();
    insta::assert_snapshot!(all.join("\n"));
}

/// The first of two hosts.
fn hosts<'a>(meet: &'a str, bind: &'a str) -> Vec<&'a str> {
    let place = "train run.yaml --backend tcp --ranks 2 --nodes 2 --node-rank 0";
    place.split(' ').chain(["--rendezvous", meet, "--bind", bind]).collect()
}

#[test]
fn the_command_line() {
    let desk = Desk::new();
    desk.put("text.txt", "some text");
    desk.put("run.yaml", "{model: {preset: tiny-moe}, data: {tokenizer: byte, files: text.txt}}\n");
    let cases: [&[&str]; 11] = [
        &["trian", "run.yaml"],
        &["train"],
        &["train", "run.yaml", "--rank", "2"],
        &["train", "run.yaml", "--ranks", "two"],
        &["train", "run.yaml", "--nodes", "2"],
        &["train", "run.yaml", "--bind", "localhost"],
        &["train", "run.yaml", "--bind", "10.0.0.7:4000"],
        &["train", "run.yaml", "--bind", "127.0.0.1"],
        &hosts("127.0.0.1:0", "127.0.0.1"),
        &hosts("0.0.0.0:4000", "0.0.0.0"),
        &hosts("10.0.0.7:4000", "127.0.0.1"),
    ];
    let all: Vec<String> = cases.iter().map(|args| desk.transcript(args)).collect();
    insta::assert_snapshot!(all.join("\n"));
}

#[test]
fn a_closed_pipe_is_no_mistake() {
    use std::process::Stdio;
    let mut child = Command::new(env!("CARGO_BIN_EXE_muster"))
        .args(["config", "schema"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), b"".as_slice()));
}
