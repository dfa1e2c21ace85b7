//! The fuzzers' targets over the inputs that were kept of them: what a fuzzer has found once is
//! tried in every run of the tests, and none of them is forgotten when what it calls changes.
#![allow(unused_attributes, clippy::duplicate_mod)] // As they stand in crates of their own.

use std::fs;
use std::path::Path;

// The name under which the targets find the macro.
extern crate self as libfuzzer_sys;

#[path = "../fuzz/fuzz_targets/commit.rs"]
mod commit;
#[path = "../fuzz/fuzz_targets/manifest.rs"]
mod manifest;
#[path = "../fuzz/fuzz_targets/shard.rs"]
mod shard;
#[path = "../fuzz/fuzz_targets/sums.rs"]
mod sums;

/// In place of the library's: a function that takes one input.
#[macro_export]
macro_rules! fuzz_target {
    (|$data:ident: &[u8]| $body:block) => {
        pub fn run($data: &[u8]) $body
    };
}

/// Runs a target over its inputs; the empty one and some bytes belong to each.
fn over_corpus(name: &str, run: fn(&[u8])) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let mut kept = 0;
    for entry in fs::read_dir(&dir).unwrap() {
        run(&fs::read(entry.unwrap().path()).unwrap());
        kept += 1;
    }
    assert!(kept > 2, "{kept} inputs in {}", dir.display());
    run(&[]);
    run(&[0xff; 100]);
}

#[test]
fn commit_has_no_finding() {
    over_corpus("commit", commit::run);
}

#[test]
fn manifest_has_no_finding() {
    over_corpus("manifest", manifest::run);
}

#[test]
fn shard_has_no_finding() {
    over_corpus("shard", shard::run);
}

#[test]
fn sums_has_no_finding() {
    over_corpus("sums", sums::run);
}
