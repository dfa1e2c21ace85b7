//! Which build this is: a digest of the code that decides bits and what ranks say to each other.
//!
//! It is taken over the sources of every crate that this one is built from, itself included, over
//! the device kernels, over the versions of their dependencies and over the compiler: no git, no
//! clock, no path of this machine. All of it makes cargo build this crate again anyway, so that
//! nothing more is rebuilt. The binary above is left out: it decides no bits, and a reworded
//! message on a console is no reason to warn of another build.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The crates on the floors up to this one.
const CRATES: [&str; 10] = [
    "checkpoint",
    "comm",
    "data",
    "device",
    "kernels",
    "layout",
    "model",
    "nccl-rs",
    "optim",
    "train",
];

fn main() {
    let root = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo"));
    let root = root.join("../..");
    for place in places() {
        println!("cargo::rerun-if-changed={}", root.join(place).display());
    }
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let compiler = Command::new(rustc).arg("--version").output();
    let compiler = compiler.map(|output| output.stdout).unwrap_or_default();
    println!("cargo::rustc-env=MUSTER_BUILD={:016x}", digest(&root, &compiler));
}

/// The places that go into the digest: files, and directories with all that is in them.
pub fn places() -> Vec<String> {
    let crates = CRATES.iter();
    let mut places: Vec<String> = crates
        .flat_map(|name| [format!("crates/{name}/Cargo.toml"), format!("crates/{name}/src")])
        .collect();
    // Device code decides bits as well, and how it is compiled.
    places.extend(
        ["Cargo.lock", "crates/kernels/build", "crates/kernels/build.rs", "kernels"]
            .map(String::from),
    );
    places
}

/// FNV-1a (Fowler, Noll, Vo) of the compiler, and of each file's place, length and content.
pub fn digest(root: &Path, compiler: &[u8]) -> u64 {
    let mut files: Vec<String> = places().iter().flat_map(|place| files(root, place)).collect();
    files.sort();
    let mut hash = 0xcbf2_9ce4_8422_2325;
    let mut add = |bytes: &[u8]| {
        for &byte in (bytes.len() as u64).to_le_bytes().iter().chain(bytes) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    };
    add(compiler);
    for file in files {
        add(file.as_bytes());
        add(&std::fs::read(root.join(&file)).unwrap_or_default());
    }
    hash
}

/// The files at a place, with `/` between names on every system.
fn files(root: &Path, place: &str) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(root.join(place)) else { return vec![place.to_owned()] };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    names.flat_map(|name| files(root, &format!("{place}/{name}"))).collect()
}
