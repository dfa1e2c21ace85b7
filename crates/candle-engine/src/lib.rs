//! Any candle model in Muster's trainer: Muon, ranks, bit-equality, checkpoints and resume.
//!
//! ```text
//! VarMap ──Builder──▶ schema (names, roles, parts) ─▶ train::RunPlan
//!                        │
//! closure: Tokens ─▶ summed loss
//!                        ▼
//! flat weights ─▶ Vars ─▶ loss ─▶ backward ─▶ flat gradients ─▶ reduce, vote, update
//! ```
//!
//! The trainer's flat buffers hold the truth; the model's variables are copies that are renewed by
//! the first pass after each step. `docs/candle.md` trains an ordinary transformer on two ranks.
//!
//! Invariants:
//!   * every variable that the loss reads is one of the map's, and gets a gradient: candle drops
//!     those of several operations without a word, and a weight that never moves looks like one
//!     that has converged;
//!   * the closure gives the *sum* of the losses of its targets; the trainer divides once, by their
//!     number over all ranks ([`cross_entropy`] is such a sum);
//!   * bits may depend on candle's number of threads, which is in the numeric plan.

mod engine;
mod error;
mod gradients;
mod init;
mod loss;
mod parameter;
mod schema;

pub use engine::{CandleEngine, Pass, Tokens};
pub use error::CandleError;
pub use init::{Init, seed};
pub use loss::cross_entropy;
pub use schema::Builder;

/// The worked example of the documentation, as a test.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/candle.md")]
struct WorkedExample;
