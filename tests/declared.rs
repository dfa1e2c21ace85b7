//! A file in `tests/` or `benches/` that no crate declares would be skipped without a word.

use std::path::{Path, PathBuf};

#[test]
fn every_test_and_bench_is_declared() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut lines: Vec<String> = Vec::new();
    for entry in std::fs::read_dir(root.join("crates")).unwrap() {
        let manifest = entry.unwrap().path().join("Cargo.toml");
        let text = std::fs::read_to_string(manifest).unwrap_or_default();
        lines.extend(text.lines().map(|line| line.trim().to_owned()));
    }
    // Folders of `tests/` are modules of its files; those of `benches/` are not.
    let mut files = rust_files(&root, Path::new("tests"), false);
    files.extend(rust_files(&root, Path::new("benches"), true));
    for known in ["tests/declared.rs", "benches/peers/small_candle.rs"] {
        assert!(files.contains(&PathBuf::from(known)), "{known} is not among {files:?}");
    }
    for file in files {
        // A whole line, so that one behind a `#` does not count.
        let line = format!("path = \"../../{}\"", file.display());
        assert!(
            lines.contains(&line),
            "{} is declared by no crate: add it to crates/muster/Cargo.toml as [[test]] or \
             [[bench]]",
            file.display()
        );
    }
}

/// The `.rs` files of a directory of the repository, and of those in it where asked.
fn rust_files(root: &Path, dir: &Path, deep: bool) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(root.join(dir)).unwrap() {
        let entry = entry.unwrap();
        let path = dir.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true if deep => files.extend(rust_files(root, &path, deep)),
            false if path.extension().is_some_and(|extension| extension == "rs") => {
                files.push(path);
            }
            _ => {}
        }
    }
    files
}
