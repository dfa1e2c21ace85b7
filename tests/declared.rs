//! A file in `tests/` or `benches/` that no crate declares would be skipped without a word.

use std::path::{Path, PathBuf};

#[test]
fn every_test_and_bench_is_declared() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut manifests = String::new();
    for entry in std::fs::read_dir(root.join("crates")).unwrap() {
        let manifest = entry.unwrap().path().join("Cargo.toml");
        manifests += &std::fs::read_to_string(manifest).unwrap_or_default();
    }
    let mut files: Vec<PathBuf> = Vec::new();
    // Folders of `tests/` are modules of its files; those of `benches/` are not.
    for dir in ["tests", "benches", "benches/cpu", "benches/peers"] {
        for entry in std::fs::read_dir(root.join(dir)).into_iter().flatten() {
            let name = entry.unwrap().file_name();
            let path = Path::new(dir).join(name);
            if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    assert!(files.contains(&PathBuf::from("tests/declared.rs")));
    for file in files {
        let line = format!("path = \"../../{}\"", file.display());
        assert!(
            manifests.contains(&line),
            "{} is declared by no crate: add it to crates/muster/Cargo.toml as [[test]] or [[bench]]",
            file.display()
        );
    }
}
