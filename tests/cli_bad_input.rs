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
        self.command(args).output().unwrap()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_muster"));
        command.args(args).current_dir(self.path()).env_remove("RUST_BACKTRACE");
        // Help and errors are wrapped to the terminal's width.
        command.env("COLUMNS", "100").env("CARGO_HOME", self.path().join("no-cargo-home"));
        command
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
    let cases: [&[&str]; 13] = [
        &["model.d_model=100", "model.heads=6"],
        &["model.d_model=97", "model.heads=6"],
        &["model.d_model=100", "model.heads=4"],
        &["ranks.count=5", "batch.radices=[2, 2]"],
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
        check(&desk, "- a\n", &["train.steps=3"]),
        check(&desk, "42\n", &["train.steps=3"]),
        check(&desk, "train:\nname: a\nseed:\nmodel: {layers: , moe: }\n", &[]),
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

/// Whatever a command prints: nobody can read it, which is not the user's mistake.
#[test]
fn a_full_disk_is_an_error() {
    let desk = Desk::new();
    desk.put("text.txt", "some text to tokenize, some text to tokenize");
    desk.put("run.yaml", SMALL);
    let made = desk.muster(&["data", "tokenize", "text.txt", "text.tok"]);
    assert!(made.status.success());
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/fixtures/checkpoint-v1/step-00000012.g0003");
    let checkpoint = fixture.to_str().unwrap();
    let quick = ["--sizes", "64KiB", "--iterations", "1", "--warmup", "0", "--threads", "1"];
    let bench = [&["bench", "memory"][..], &quick].concat();
    let cases: [&[&str]; 14] = [
        &["--help"],
        &["--version"],
        &["train", "--help"],
        &["help", "ckpt"],
        &["config", "default"],
        &["config", "schema"],
        &["config", "check", "run.yaml"],
        &["train", "run.yaml", "--dry-run"],
        &["ckpt", "show", checkpoint],
        &["ckpt", "verify", checkpoint],
        &["ckpt", "diff", checkpoint, checkpoint],
        &["data", "show", "text.tok"],
        &["data", "tokenize", "text.txt", "again.tok"],
        &bench,
    ];
    for args in cases {
        let mut command = desk.command(args);
        command.stdout(std::fs::File::options().write(true).open("/dev/full").unwrap());
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{args:?}\n{said}");
        let error = "error: cannot write to standard output: No space left on device";
        assert!(said.contains(error), "{args:?}\n{said}");
    }
    for file in ["--json", "--csv", "--svg"] {
        let output = desk.muster(&[&bench[..], &[file, "/dev/full"]].concat());
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{file}\n{said}");
        assert!(said.contains("cannot write /dev/full: No space left on device"), "{said}");
        // The measurement is not lost with the file.
        assert!(!output.stdout.is_empty());
    }
}

/// What was measured goes through links, and to devices, and replaces neither.
#[test]
fn links_and_devices_stay_what_they_are() {
    let desk = Desk::new();
    desk.put("text.txt", "some text to tokenize");
    std::fs::create_dir(desk.path().join("there")).unwrap();
    for (link, target) in [("r.json", "there/r.json"), ("t.tok", "there/t.tok")] {
        std::os::unix::fs::symlink(target, desk.path().join(link)).unwrap();
    }
    let bench = "bench memory --sizes 64KiB --iterations 1 --warmup 0 --threads 1 --json r.json";
    let bench: Vec<&str> = bench.split(' ').chain(["--csv", "/dev/null"]).collect();
    for args in [&bench[..], &["data", "tokenize", "text.txt", "t.tok"]] {
        let output = desk.muster(args);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    for name in ["r.json", "t.tok"] {
        assert!(desk.path().join(name).is_symlink(), "{name}");
        assert!(std::fs::metadata(desk.path().join("there").join(name)).unwrap().len() > 0);
    }
    // A token file's header is written last: it needs a place that can be gone back to.
    std::os::unix::fs::symlink("/dev/null", desk.path().join("null.tok")).unwrap();
    let said = desk.transcript(&["data", "tokenize", "text.txt", "null.tok"]);
    assert!(said.contains("[exit 2]") && said.contains("is a character device"), "{said}");
}

#[test]
fn nothing_that_was_written_steers_the_terminal() {
    let desk = Desk::new();
    desk.put("text.txt", "some text");
    let escape = "\x1b[31m\u{9b}2J\u{202e}";
    let config = format!("\"{}\": 1\n", "\\e[31m\\x9b2J\\u202e");
    for said in [
        check(&desk, &config, &[]),
        check(&desk, SMALL, &[&format!("model.{escape}=1")]),
        desk.transcript(&[escape]),
        desk.transcript(&["config", "check", escape]),
        desk.transcript(&["ckpt", "ls", escape]),
        desk.transcript(&["data", "tokenize", escape, "out.tok"]),
        desk.transcript(&["orthogonalize", escape, "out"]),
        desk.transcript(&["bench", "memory", "--sizes", escape]),
    ] {
        // What was typed is the first line.
        let (_, said) = said.split_once("\n[exit").unwrap();
        assert!(!said.contains(['\x1b', '\u{9b}', '\u{202e}']), "{said:?}");
        assert!(said.starts_with(" 2]"), "{said}");
    }
    assert!(check(&desk, &config, &[]).contains("␛[31m"));
}

/// Refused before anything is started, in words and not by whatever kills a rank.
#[test]
fn plans_beyond_the_memory_of_this_host() {
    let desk = Desk::new();
    desk.put("text.txt", "some text");
    desk.put("run.yaml", SMALL);
    let huge = ["--set", "batch.micro_batch=1048576"];
    let said = desk.transcript(&[&["train", "run.yaml"][..], &huge].concat());
    assert!(said.contains("[exit 2]\nerror: the run plans "), "{said}");
    assert!(said.contains("largest parts of a rank: activations "), "{said}");
    assert!(said.contains("\n    batch.micro_batch="), "{said}");
    assert!(!desk.path().join("runs").exists(), "{said}");
    // Every way that is named is one: none of them is refused.
    let ways: Vec<&str> =
        said.lines().filter(|line| line.starts_with("    ")).map(str::trim).collect();
    for way in ways {
        let words = way.split(" (").next().unwrap().split([' ', ',']);
        let sets = words.filter(|word| word.contains('=')).flat_map(|set| ["--set", set]);
        let dry = ["train", "run.yaml", "--dry-run"].into_iter().chain(huge).chain(sets);
        let said = desk.transcript(&dry.collect::<Vec<_>>());
        assert!(said.contains("[exit 0]") && !said.contains("warning"), "{way}\n{said}");
    }
    let dry = [&["train", "run.yaml", "--dry-run"][..], &huge].concat();
    let said = desk.transcript(&dry);
    assert!(said.contains("[exit 0]") && said.contains("warning: the run plans"), "{said}");
}

/// A limit on the address space counts for each rank.
#[test]
fn plans_beyond_the_address_space_of_a_rank() {
    let desk = Desk::new();
    desk.put("text.txt", "some text");
    desk.put("run.yaml", SMALL);
    let train = format!(
        "ulimit -v 1000000; exec '{}' train run.yaml --set batch.micro_batch=512 --ranks 2",
        env!("CARGO_BIN_EXE_muster")
    );
    let mut command = Command::new("sh");
    let output = command.args(["-c", &train]).current_dir(desk.path()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("of address space that a process may use (ulimit -v)"), "{said}");
}

/// A training is worth more than its lines: it ends as it would have, and says once what is lost.
#[test]
fn a_training_goes_on_unseen() {
    let desk = Desk::new();
    desk.put("text.txt", "some text that is long enough to train on\n".repeat(40));
    desk.put("run.yaml", SMALL);
    let mut train = desk.command(&["train", "run.yaml", "--ranks", "1"]);
    for set in ["model.layers=1", "batch.seq_len=16", "train.steps=2", "train.sample_tokens=0"] {
        train.args(["--set", set]);
    }
    let full = || std::fs::File::options().write(true).open("/dev/full").unwrap();
    let output = train.stdout(full()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert_eq!(said.matches("warning: cannot write to standard output: ").count(), 1, "{said}");
    // What it saved is whole, and can be used.
    assert!(desk.muster(&["ckpt", "verify", "runs/run"]).status.success());
    for args in [&["ckpt", "ls", "runs/run"][..], &["generate", "runs/run", "--tokens", "2"]] {
        let output = desk.command(args).stdout(full()).output().unwrap();
        assert_eq!(output.status.code(), Some(3), "{args:?}");
    }
}
