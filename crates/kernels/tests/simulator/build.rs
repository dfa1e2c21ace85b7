//! Building a simulated module from a source of the test's own, by `kernels/sim/build.sh`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{kernels_dir, run};

/// The simulated architectures.
pub const ARCHS: [&str; 5] = ["sm_80", "sm_90a", "gfx90a", "gfx942", "gfx950"];

/// Builds the module of a family, or of a source of its own, for one architecture. The runtime's
/// objects are kept for all tests.
pub fn module(compiler: &Path, directory: &Path, source: &Path, arch: &str) {
    run(Command::new("bash")
        .arg(kernels_dir().join("sim/build.sh"))
        .arg(directory)
        .arg(source)
        .arg(arch)
        .env("MUSTER_SIM_RUNTIME", concat!(env!("CARGO_TARGET_TMPDIR"), "/simulator"))
        .env("MUSTER_CXX", compiler));
}

/// The module of `source(arch)` for each of `ARCHS`.
pub fn modules(
    compiler: &Path,
    directory: &Path,
    source: impl Fn(&str) -> PathBuf + Sync,
) -> Vec<PathBuf> {
    let build = |arch: &str| module(compiler, directory, &source(arch), arch);
    // The first may compile the runtime. Then two at a time: compilers are other processes, and
    // tests share the machine.
    let (first, others) = ARCHS.split_first().unwrap();
    build(first);
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(arch) = others.get(next.fetch_add(1, Ordering::Relaxed)) {
                    build(arch);
                }
            });
        }
    });
    let image = |arch: &str| {
        let stem = source(arch).file_stem().unwrap().to_string_lossy().into_owned();
        directory.join(format!("{stem}.sim-{arch}.so"))
    };
    ARCHS.map(image).to_vec()
}
