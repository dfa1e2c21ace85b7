//! Crates as text: the sources that this very test was built from.

mod common;

use common::*;
use data::{DataConfig, DataError, Dataset, Split, prepare};

#[test]
fn crates_are_read_from_the_registry() {
    let lock = include_str!("../../../Cargo.lock");
    let dir = tempfile::tempdir().unwrap();
    let cfg: DataConfig =
        serde_json::from_value(serde_json::json!({"crates": ["crc-fast", "memmap2"]})).unwrap();
    let once = || prepare(&cfg, dir.path(), lock, &mut |_| {});
    let prepared = match once() {
        Err(DataError::CrateSources { looked, .. }) => {
            eprintln!("skipped: built without a cargo registry (looked in {looked})");
            return;
        }
        other => other.unwrap(),
    };
    let source = &prepared.sources[0];
    assert!(source.text_files > 5 && source.bytes.unwrap() > 50_000, "{source:?}");
    assert_ne!(source.text_digest, [0; 32]);
    assert_eq!(once().unwrap(), prepared);
    let data = Dataset::open(&prepared, 128, 0, 0.05).unwrap();
    let (sample, info) = read(&data, Split::Train, 0);
    assert!(info.target_bytes.unwrap() > 100 && sample.inputs.iter().all(|&t| t < 257));
}
