//! Measurements of kernels, memory and collectives: cases, timing, limits, and reports of them.
//!
//! ```text
//! shapes × algorithms × … ─▶ cases ─▶ measure (warm-up, cold caches, median) ─▶ rows ─▶ Report
//!                                                                   table, JSON, CSV, SVG ◀─┘
//! ```
//!
//! Invariants:
//!   * inputs are random: zeros run faster than data on real devices and hide unwritten results;
//!   * a result is compared with f64 before its time is believed;
//!   * a simulated device yields no times.

pub mod collectives;
mod error;
pub mod gemm;
mod measure;
pub mod newton_schulz;
pub mod pairs;
mod report;
mod shape;
mod svg;
mod timing;
pub mod traffic;

pub use error::BenchError;
pub use measure::Bench;
pub use report::{Environment, Report, Row};
pub use shape::{BatchShape, Matrices, ProductShape};
pub use svg::Bar;
pub use timing::{Repeat, Timing};
