//! Fuzzers' targets as functions, and the inputs that were kept of them.

use std::fs;
use std::path::Path;

/// In place of libFuzzer's: a function that takes one input.
#[macro_export]
macro_rules! fuzz_target {
    (|$data:ident: &[u8]| $body:block) => {
        pub fn run($data: &[u8]) $body
    };
}

/// Runs a target over its inputs in `fuzz/corpus` of the crate in `manifest_dir`; the empty one and
/// some bytes belong to each.
pub fn over(manifest_dir: &str, name: &str, run: fn(&[u8])) {
    let dir = Path::new(manifest_dir).join("fuzz/corpus").join(name);
    let mut kept = 0;
    for entry in fs::read_dir(&dir).unwrap() {
        run(&fs::read(entry.unwrap().path()).unwrap());
        kept += 1;
    }
    assert!(kept > 2, "{kept} inputs in {}", dir.display());
    run(&[]);
    run(&[0xff; 100]);
}
