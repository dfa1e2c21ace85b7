//! The fuzzers' targets over the inputs that were kept of them: what a fuzzer has found once is
//! tried in every run of the tests, and none of them is forgotten when what it calls changes.
#![allow(unused_attributes, clippy::duplicate_mod)] // As they stand in crates of their own.

// The name under which the targets find the macro.
extern crate self as libfuzzer_sys;

#[path = "../../../tests/common/corpus.rs"]
mod corpus;

#[path = "../fuzz/fuzz_targets/archive.rs"]
mod archive;
#[path = "../fuzz/fuzz_targets/dcp_metadata.rs"]
mod dcp_metadata;
#[path = "../fuzz/fuzz_targets/pickle.rs"]
mod pickle;
#[path = "../fuzz/fuzz_targets/safetensors_header.rs"]
mod safetensors_header;

#[test]
fn archive_has_no_finding() {
    corpus::over(env!("CARGO_MANIFEST_DIR"), "archive", archive::run);
}

#[test]
fn dcp_metadata_has_no_finding() {
    corpus::over(env!("CARGO_MANIFEST_DIR"), "dcp_metadata", dcp_metadata::run);
}

#[test]
fn pickle_has_no_finding() {
    corpus::over(env!("CARGO_MANIFEST_DIR"), "pickle", pickle::run);
}

#[test]
fn safetensors_header_has_no_finding() {
    corpus::over(env!("CARGO_MANIFEST_DIR"), "safetensors_header", safetensors_header::run);
}
