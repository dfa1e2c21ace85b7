//! The fuzzers' targets over the inputs that were kept of them: what a fuzzer has found once is
//! tried in every run of the tests, and none of them is forgotten when what it calls changes.
#![allow(unused_attributes, clippy::duplicate_mod)] // As they stand in crates of their own.

// The name under which the targets find the macro.
extern crate self as libfuzzer_sys;

#[path = "../../../tests/common/corpus.rs"]
mod corpus;

#[path = "../fuzz/fuzz_targets/commit.rs"]
mod commit;
#[path = "../fuzz/fuzz_targets/manifest.rs"]
mod manifest;
#[path = "../fuzz/fuzz_targets/shard.rs"]
mod shard;
#[path = "../fuzz/fuzz_targets/sums.rs"]
mod sums;

#[test]
fn commit_has_no_finding() {
    corpus::over(env!("CARGO_MANIFEST_DIR"), "commit", commit::run);
}

#[test]
fn manifest_has_no_finding() {
    corpus::over(env!("CARGO_MANIFEST_DIR"), "manifest", manifest::run);
}

#[test]
fn shard_has_no_finding() {
    corpus::over(env!("CARGO_MANIFEST_DIR"), "shard", shard::run);
}

#[test]
fn sums_has_no_finding() {
    corpus::over(env!("CARGO_MANIFEST_DIR"), "sums", sums::run);
}
