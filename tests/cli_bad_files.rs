//! The messages for files, pipes and devices that are not what a command needs: whole, from the
//! real binary.

mod common;

use std::path::Path;
use std::process::Command;

use common::desk::{Desk, SMALL, check};

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
    let made = std::process::Command::new("mkfifo").arg(desk.path().join("pipe")).status();
    assert!(made.unwrap().success());
    for file in ["--json", "--csv", "--svg"] {
        // Whether anybody reads a pipe is known when it is written to.
        let output = desk.muster(&[&bench[..], &[file, "pipe"]].concat());
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{file}\n{said}");
        assert!(said.contains("pipe is a pipe that nobody reads"), "{said}");
        // The measurement is not lost with the file.
        assert!(!output.stdout.is_empty());
        // A device that takes no file is known before.
        let output = desk.muster(&[&bench[..], &[file, "/dev/full"]].concat());
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{file}\n{said}");
        assert!(said.contains("/dev/full is a device that takes no file"), "{said}");
        assert!(output.stdout.is_empty());
    }
}

/// Results go through links, and to devices, and replace neither.
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
    // The checkpoint that it saved is whole, and can be used.
    assert!(desk.muster(&["ckpt", "verify", "runs/run"]).status.success());
    for args in [&["ckpt", "ls", "runs/run"][..], &["generate", "runs/run", "--tokens", "2"]] {
        let output = desk.command(args).stdout(full()).output().unwrap();
        assert_eq!(output.status.code(), Some(3), "{args:?}");
    }
}
