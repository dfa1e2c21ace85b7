//! A test double of NCCL and RCCL, for several processes and several threads of one.
//!
//! ```text
//! ncclAllReduce ─▶ Batch, in its stream's order ─▶ socket ─▶ hub, with the other ranks' calls
//!                  (on a thread of its own)      ◀─ result ─┘
//! ```
//!
//! It lies in the same shared object as the drivers' entry points, so operations are work on their
//! streams, checked for order, memory and lifetime as all other work. Elements really move.
//!
//! It is stricter than the originals where they hang or go on with garbage:
//!   * handles, ranks, types, reductions, lengths and alignment are checked in the call;
//!   * calls of ranks that do not fit together are an asynchronous error for all of them, which
//!     says what each calls;
//!   * a call on a communicator whose last one is still in progress is refused;
//!   * at exit it says what was not let go of.
//!
//! As with the originals an operation that lost a peer stays in its stream until the communicator
//! is aborted, revoked, or shrunk with an abort.
//!
//! The environment says more: `LOOKALIKE_NCCL_VERSION` (23007), `LOOKALIKE_NCCL_SEED` (operations
//! of a non-blocking communicator reach their streams only after some polls), and
//! `LOOKALIKE_NCCL_FAULTS` (`faults.rs`). [`library_of`] makes a library without the symbols that
//! came after a version, [`library_without`] one without any others.

mod batch;
mod call;
mod children;
mod comm;
#[allow(non_snake_case)]
pub mod entry;
mod faults;
mod frame;
mod group;
mod hub;
mod number;
mod versions;
mod window;

pub use versions::{library_of, library_without};

pub(crate) use batch::Batch;
pub(crate) use window::held;

/// Codes of `ncclResult_t`.
pub(crate) mod result {
    pub const SUCCESS: i32 = 0;
    pub const UNHANDLED_DRIVER: i32 = 1;
    pub const SYSTEM: i32 = 2;
    pub const INTERNAL: i32 = 3;
    pub const INVALID_ARGUMENT: i32 = 4;
    pub const INVALID_USAGE: i32 = 5;
    pub const REMOTE: i32 = 6;
    pub const IN_PROGRESS: i32 = 7;
}

/// Why a call is refused: a code, and words for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) code: i32,
    pub(crate) text: String,
}

impl Refusal {
    /// A call that is wrong in itself.
    pub(crate) fn argument(text: impl Into<String>) -> Refusal {
        Refusal { code: result::INVALID_ARGUMENT, text: text.into() }
    }

    /// The system refuses something.
    pub(crate) fn system(text: impl Into<String>) -> Refusal {
        Refusal { code: result::SYSTEM, text: text.into() }
    }

    /// A call at the wrong time.
    pub(crate) fn usage(text: impl Into<String>) -> Refusal {
        Refusal { code: result::INVALID_USAGE, text: text.into() }
    }
}

/// The refusal of a call by the driver's entry points, which have told it already.
impl From<i32> for Refusal {
    fn from(code: i32) -> Refusal {
        let text = format!("the driver refused a call with code {code}");
        Refusal { code: result::UNHANDLED_DRIVER, text }
    }
}

/// The version that the environment names.
pub(crate) fn version() -> u32 {
    let named = std::env::var("LOOKALIKE_NCCL_VERSION").ok();
    named.and_then(|text| text.parse().ok()).unwrap_or(23_007)
}
