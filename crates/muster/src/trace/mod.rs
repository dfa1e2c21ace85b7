//! Traces of runs: what every rank did and when, for a viewer of Chrome's trace events.
//!
//! ```text
//! rank ── device::trace ─▶ recorder, a thread ─▶ FILE.parts/rank-NNNNN.json ─┐ when the ranks
//! rank ── device::trace ─▶ recorder, a thread ─▶ FILE.parts/rank-NNNNN.json ─┴─▶ have ended: FILE
//! ```
//!
//! A part is a trace by itself and lacks nothing but its last bracket, which viewers do without: so
//! what the ranks of a killed run have written can be read, or merged later. Each host merges its
//! own ranks, because hosts need not share a directory; `muster trace merge` puts several files
//! together. Times are on rank 0's clock already, so merging changes none. `docs/trace.md` has the
//! format.

mod chrome;
mod command;
mod merge;
mod plan;
mod recorder;

pub use command::run;
pub use plan::{Parts, Plan, Steps, Traced};
pub use recorder::Recorder;
