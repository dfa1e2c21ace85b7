//! Fixtures that other trainers wrote, copies of them, and their elements.

use std::fs;
use std::path::{Path, PathBuf};

use interop::{Elements, Error, Foreign};

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/interop").join(name)
}

/// A copy of a fixture that may be damaged.
pub fn copy(name: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    copy_dir(&fixture(name), dir.path());
    dir
}

fn copy_dir(from: &Path, to: &Path) {
    let mut entries: Vec<_> = fs::read_dir(from).unwrap().map(|entry| entry.unwrap()).collect();
    // Metadata last, as their writers do.
    entries.sort_by_key(|entry| entry.file_name() == ".metadata");
    for entry in entries {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            fs::create_dir(&target).unwrap();
            copy_dir(&entry.path(), &target);
        } else {
            fs::write(target, fs::read(entry.path()).unwrap()).unwrap();
        }
    }
}

/// Bytes of a tensor, read in steps.
pub fn bytes(foreign: &Foreign, name: &str) -> Result<Vec<u8>, Error> {
    let tensor = foreign.tensor(name)?;
    let size = tensor.dtype().size_bytes();
    let mut all = vec![0; tensor.len() * size];
    for (number, out) in all.chunks_mut(5 * size).enumerate() {
        tensor.read(5 * number, out)?;
    }
    Ok(all)
}

/// Where `wanted` first is.
pub fn find(bytes: &[u8], wanted: &[u8]) -> usize {
    bytes.windows(wanted.len()).position(|window| window == wanted).unwrap()
}
