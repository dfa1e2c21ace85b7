//! The messages after a mistake in a config or a command: whole, from the real binary.

mod common;

use std::process::Command;

use common::desk::{Desk, SMALL, check};

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

/// A size may have been written with its unit; what is advised instead is right.
#[test]
fn sizes_are_numbers_of_bytes() {
    let desk = Desk::new();
    desk.put("text.txt", "some text");
    let unit = check(&desk, SMALL, &["ranks.bucket_bytes=64KiB"]);
    assert!(unit.contains("write the number of bytes: `bucket_bytes: 65536`"), "{unit}");
    let far = check(&desk, SMALL, &["ranks.bucket_bytes=900TiB"]);
    assert!(far.contains("`bucket_bytes: 1099511627776`"), "{far}");
    let word = check(&desk, SMALL, &["ranks.bucket_bytes=many"]);
    assert!(word.contains("`bucket_bytes: 1048576`"), "{word}");
    for bytes in [65_536_u64, 1 << 40, 1 << 20] {
        let right = check(&desk, SMALL, &[&format!("ranks.bucket_bytes={bytes}")]);
        assert!(right.contains("[exit 0]"), "{right}");
    }
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

/// The nearest value of a range may still not fit the rest of the model.
#[test]
fn the_nearest_value_is_offered_where_it_would_be_taken() {
    let desk = Desk::new();
    desk.put("text.txt", "some text");
    let layers = check(&desk, SMALL, &["model.layers=0"]);
    assert!(layers.contains("from 1 to 10000; the nearest is 1\n"), "{layers}");
    assert!(check(&desk, SMALL, &["model.layers=1"]).contains("[exit 0]"));
    // The preset has four heads.
    let width = check(&desk, SMALL, &["model.d_model=0"]);
    assert!(width.contains("help: write a whole number from 1 to 1048576\n"), "{width}");
}

#[test]
fn impossible_shapes() {
    let desk = Desk::new();
    desk.put("text.txt", "some text");
    let cases: [&[&str]; 16] = [
        &["model.d_model=100", "model.heads=6"],
        &["model.d_model=97", "model.heads=6"],
        &["model.d_model=100", "model.heads=4"],
        &["ranks.count=5", "batch.radices=[2, 2]"],
        &["model.d_model=1048573", "model.heads=6"],
        &["model.moe.first_dense_layers=4", "model.d_ff=128"],
        &["model.kv_heads=3"],
        &["model.moe.top_k=9"],
        &["model.moe.groups=3"],
        &["model.moe.groups=4", "model.moe.top_groups=5"],
        &["model.moe.groups=4", "model.moe.top_k=3"],
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
fn what_latent_attention_excludes() {
    let desk = Desk::new();
    desk.put("text.txt", "some text");
    let config = "\
model:
  layers: 2
  d_model: 64
  heads: 4
  d_ff: 96
  latent: {kv_rank: 16, nope_dim: 16, rope_dim: 8, value_dim: 16}
data:
  files: text.txt
";
    let cases: [&[&str]; 12] = [
        &[],
        &["model.kv_heads=2"],
        &["model.head_dim=32"],
        &["model.qk_norm=head"],
        &["model.positions={learned: {max: 256}}"],
        &["model.attention_bias=true"],
        &["model.names=llama"],
        &["model.latent.rope_dim=7"],
        &["model.latent.kv_rank=0"],
        &["model.latent.kv_rnk=8"],
        &["model.latent={q_rank: 8, kv_rank: 8}"],
        // All at once, of a preset.
        &["model.preset=tiny-moe"],
    ];
    let all: Vec<String> = cases.iter().map(|sets| check(&desk, config, sets)).collect();
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
    let cases: [&[&str]; 7] = [
        &["optimizer.rules=[{match: {roles: [matrix, expert]}, muon: {}}]"],
        &[concat!(
            "optimizer.rules=[{match: {roles: [matrix, expert]}, dion: {rank: 768}}, ",
            "{match: {}, sgd: {}}]"
        )],
        &["optimizer.rules=[{match: {}, muon: {}, sgd: {}}]"],
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
        // The command as it was typed is the first line.
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
