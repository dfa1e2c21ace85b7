//! Every pair of ranks by itself: which host, rail, rank or link is slower than its like.
//!
//! ```text
//! rounds of disjoint pairs ─▶ run: both directions, each alone, and round trips ─▶ Edges
//!                              ▲                                                     │
//!                              └── again: what seems slow ── judge ◀── diagnose ◀────┘
//!                                                              └─▶ findings ─▶ Report
//! ```
//!
//! Collectives are as slow as their slowest link and do not say which that is; pairs do.

pub mod crowd;
pub mod diagnose;
mod edge;
pub mod judge;
pub mod report;
pub mod rounds;
pub mod run;

pub use crowd::Crowd;
pub use diagnose::{Finding, Part, diagnose};
pub use edge::{Edge, Seat};
pub use judge::{Dismissed, Judgement, Told, judge};
pub use report::Report;
pub use run::{Measured, Plan};
