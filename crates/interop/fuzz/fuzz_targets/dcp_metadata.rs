//! `.metadata` of any bytes, beside the files of a true checkpoint.
#![no_main]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use interop::dcp::open_dcp;
use libfuzzer_sys::fuzz_target;

/// A directory with the fixture's files.
fn directory() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        let dir = support::directory();
        let above = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
        let mut fixture = above.map(|dir| dir.join("tests/fixtures/interop/dcp"));
        for entry in fs::read_dir(fixture.find(|dir| dir.is_dir()).unwrap()).unwrap() {
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
    support::read_all(&checkpoint.foreign);
});
