//! Compiling C++ for the tests of the simulator.

// Each test uses a part of this.
#![allow(dead_code)]

pub mod build;
pub mod gemm;
pub mod module;
pub mod tiles;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// `kernels/` of the repository.
pub fn kernels_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kernels")
}

/// Files beside this one.
pub fn tests_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/simulator")
}

/// The C++ compiler, or nothing, which is said, where there is none: a test then checks nothing.
pub fn compiler() -> Option<PathBuf> {
    let named = std::env::var_os("MUSTER_CXX").map(PathBuf::from);
    let program = named.unwrap_or_else(|| "g++".into());
    match Command::new(&program).arg("--version").output() {
        Ok(output) if output.status.success() => Some(program),
        _ => {
            eprintln!("skipped: no C++ compiler ({}; MUSTER_CXX names another)", program.display());
            None
        }
    }
}

/// Runs a compiler or a program to its end.
///
/// # Panics
/// With what it printed, if it fails.
pub fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let printed = |bytes| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        printed(&output.stdout),
        printed(&output.stderr)
    );
    output
}
