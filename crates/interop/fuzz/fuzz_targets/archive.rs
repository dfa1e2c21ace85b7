//! A parameter's file of any bytes, as of DeepSpeed's universal checkpoints.
#![no_main]

mod support;

use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;

use interop::open_universal;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    // A checkpoint of one parameter.
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    let dir = DIR.get_or_init(support::directory);
    fs::create_dir_all(dir.join("zero/x")).unwrap();
    for file in ["fp32.pt", "step.pt"] {
        fs::write(dir.join("zero/x").join(file), data).unwrap();
    }
    let Ok(checkpoint) = open_universal(dir) else { return };
    // No more than the file has.
    assert!(checkpoint.foreign.tensors.values().all(|tensor| tensor.len() <= data.len()));
    support::read_all(&checkpoint.foreign);
});
