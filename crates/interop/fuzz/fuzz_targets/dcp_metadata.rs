//! `.metadata` of any bytes, beside the files of a true checkpoint.
#![no_main]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use interop::Elements;
use interop::dcp::open_dcp;
use libfuzzer_sys::fuzz_target;

/// A directory with the fixture's files, in memory where there is such a place.
fn directory() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        let memory = Path::new("/dev/shm");
        let above = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let dir = tempfile::tempdir_in(above).unwrap().keep();
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../tests/fixtures/interop");
        for entry in fs::read_dir(fixture.join("dcp")).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), dir.join(entry.file_name())).unwrap();
        }
        dir
    })
}

fuzz_target!(|data: &[u8]| {
    let dir = directory();
    fs::write(dir.join(".metadata"), data).unwrap();
    let Ok(checkpoint) = open_dcp(dir) else { return };
    for (name, tensor) in &checkpoint.foreign.tensors {
        let mut bytes = vec![0; tensor.len() * tensor.dtype.size_bytes()];
        let reader = checkpoint.foreign.tensor(name).unwrap();
        let _ = reader.read(0, &mut bytes);
    }
});
