//! A parameter's file of any bytes, as of DeepSpeed's universal checkpoints.
#![no_main]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use interop::{Elements, open_universal};
use libfuzzer_sys::fuzz_target;

/// A checkpoint of one parameter.
fn directory() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        let memory = Path::new("/dev/shm");
        let above = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let dir = tempfile::tempdir_in(above).unwrap().keep();
        fs::create_dir_all(dir.join("zero/x")).unwrap();
        dir
    })
}

fuzz_target!(|data: &[u8]| {
    let dir = directory();
    for file in ["fp32.pt", "step.pt"] {
        fs::write(dir.join("zero/x").join(file), data).unwrap();
    }
    let Ok(checkpoint) = open_universal(dir) else { return };
    for (name, tensor) in &checkpoint.foreign.tensors {
        // No more than the file has.
        assert!(tensor.len() <= data.len());
        let mut bytes = vec![0; tensor.len() * tensor.dtype.size_bytes()];
        let _ = checkpoint.foreign.tensor(name).unwrap().read(0, &mut bytes);
    }
});
