//! Parts that the fuzzers of directories share.

use std::path::{Path, PathBuf};

use interop::{Elements, Foreign};

/// A new directory, in memory where there is such a place.
pub fn directory() -> PathBuf {
    let memory = Path::new("/dev/shm");
    let above = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    tempfile::tempdir_in(above).unwrap().keep()
}

/// Reads every tensor, whatever comes of it.
pub fn read_all(foreign: &Foreign) {
    for (name, tensor) in &foreign.tensors {
        let mut bytes = vec![0; tensor.len() * tensor.dtype.size_bytes()];
        let _ = foreign.tensor(name).unwrap().read(0, &mut bytes);
    }
}
