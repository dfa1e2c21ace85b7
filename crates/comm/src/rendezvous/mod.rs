//! Meeting of the ranks, and the control connection that stays afterwards.
//!
//! ```text
//! worker ── Hello {rank, world, version, identity, listen} ──▶ server (supervisor of node 0)
//!        ◀─ Joined {peers, …} once all are there and agree
//!        ◀─ Refused ───────── who is missing, taken, or differs in what: to everyone
//!        ── Status {step} ──▶       ◀── Stop ──  finish the step, save, leave
//!        ── Bye ────────────▶       ◀── Abort ── a rank is lost: the group is given up
//!        ── Blame ──────────▶                    this one leaves because another failed
//! ```
//!
//! Instead of a hello, the process that would have started a host's workers may say that they will
//! not come (`Absent`). Who is none of the job's is answered, or ignored, and costs nobody anything.
//!
//! A worker whose connection ends without `Bye` or `Blame` is lost; so is one that the supervisor
//! reports. Frames carry a length and a postcard message; the first one in each
//! direction starts with the protocol's number, so that other versions can be told apart.

mod client;
mod codec;
#[cfg(test)]
mod fuzz;
mod protocol;
mod server;

pub use client::{Aborted, ControlHandle, Joined, join, report_absent};
pub use protocol::{Hello, Refusal};
pub use server::{Server, can_serve};
