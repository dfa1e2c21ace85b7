//! Test doubles of the CUDA driver, of the HIP runtime, and of NCCL and RCCL ([`nccl`]), in one
//! shared object.
//!
//! ```text
//! device ──dlopen──▶ libcuda.so.1, libamdhip64.so.6 (links to this) ──▶ simulated modules
//! ```
//!
//! It has the entry points that `device` uses, under both vendors' names, and is stricter than the
//! originals: every handle, address, length, context and state is checked, and what is wrong is
//! said on the standard error stream, in a line that begins with `lookalike:`, beside the error
//! code that the original returns. At the end of the process it says what was not released.
//!
//! Invariants:
//!   * work is run late: when somebody waits, in the order of enqueueing, which is always legal;
//!   * a copy or a fill that touches memory which unordered work of another stream touches is
//!     reported, and a kernel does not see memory that unordered copies and fills write to;
//!   * new memory is not zero;
//!   * after a kernel has failed every call fails.
//!
//! The environment says what it stands for: `LOOKALIKE_DEVICES` (1), `LOOKALIKE_ARCH` (`sm_90a` or
//! `gfx942` by the vendor), `LOOKALIKE_MEMORY` (bytes).

// The entry points have their vendors' names.
#[allow(non_snake_case)]
pub mod entry;
mod launch;
mod leaks;
pub mod nccl;
mod op;
mod order;
mod work;
mod world;

use std::path::PathBuf;

/// The shared object, which cargo has built beside the running test.
///
/// # Errors
/// The program was not built by cargo, or is no test of a package that depends on this one.
pub fn library() -> std::io::Result<PathBuf> {
    const NAME: &str = "liblookalike.so";
    let program = std::env::current_exe()?;
    let beside = program.ancestors().skip(1).take(2).map(|dir| dir.join(NAME));
    let found = beside.into_iter().find(|path| path.exists());
    found.ok_or_else(|| std::io::Error::other(format!("{NAME} is not beside {program:?}")))
}
