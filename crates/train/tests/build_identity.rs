//! The identity of a build follows from its sources alone.

use std::path::Path;

#[allow(dead_code)] // Its `main` is cargo's.
#[path = "../build.rs"]
mod build;

fn copy(from: &Path, to: &Path) {
    if !from.is_dir() {
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(from, to).unwrap();
        return;
    }
    for entry in std::fs::read_dir(from).unwrap() {
        let name = entry.unwrap().file_name();
        copy(&from.join(&name), &to.join(&name));
    }
}

#[test]
fn it_follows_every_source_and_no_path() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let there = tempfile::tempdir().unwrap();
    for place in build::places() {
        assert!(here.join(&place).exists(), "{place}");
        copy(&here.join(&place), &there.path().join(&place));
    }
    let before = build::digest(&here, b"rustc 1");
    let now = || build::digest(there.path(), b"rustc 1");
    assert_eq!(now(), before, "it depends on where the sources lie");
    assert_ne!(build::digest(&here, b"rustc 2"), before);
    let files = [
        "crates/kernels/src/gemm/mod.rs",
        "crates/optim/Cargo.toml",
        "Cargo.lock",
        "kernels/tile.h",
    ];
    for place in files {
        let path = there.path().join(place);
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, [&whole[..], b" "].concat()).unwrap();
        assert_ne!(now(), before, "{place}");
        std::fs::write(&path, whole).unwrap();
        assert_eq!(now(), before);
    }
    let gemm = there.path().join("crates/kernels/src/gemm/mod.rs");
    std::fs::rename(&gemm, gemm.with_file_name("other.rs")).unwrap();
    assert_ne!(now(), before, "a file was renamed");
}

#[test]
fn every_crate_below_is_in_it() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let manifest = std::fs::read_to_string(manifest).unwrap();
    let dependencies = manifest.split("[dependencies]").nth(1).unwrap();
    let dependencies = dependencies.split("\n[").next().unwrap();
    let crates = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("..")).unwrap();
    let crates = crates.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let needed = crates.filter(|name| dependencies.contains(&format!("\n{name}.workspace")));
    let places = build::places();
    let mut count = 0;
    for name in needed {
        assert!(places.contains(&format!("crates/{name}/src")), "{name}");
        count += 1;
    }
    assert_eq!(count, 8);
    assert_eq!(train::BUILD.len(), 16);
}
