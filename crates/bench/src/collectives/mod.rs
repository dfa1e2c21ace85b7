//! Benchmarks of collective operations. All but [`run`] are pure functions of what was measured, or
//! of what another program wrote.
//!
//! ```text
//! Sweep, Op::extent ─▶ cases ─▶ run ─▶ Sampler ─▶ Times ─▶ Row ┐
//! nccl-tests, rccl-tests: text, JSON, CSV ─▶ read ────────────────┴▶ Report
//!                                                                     ├▶ table, JSON, CSV, SVG
//!                                                                     ├▶ plausible: what cannot be
//!                                                                     ├▶ fit ─▶ links, a table
//!                                                                     └▶ compare, of two reports
//! ```
//!
//! Invariants:
//!   * algbw, busbw and sizes are what nccl-tests means by them ([`Op`]);
//!   * nothing is gated on a mean where a median is known;
//!   * a report holds no secrets of the environment ([`environment`]).

pub mod compare;
pub mod dtype;
pub mod environment;
pub mod fit;
pub mod formula;
pub mod links;
pub mod merge;
pub mod plausible;
pub mod plot;
pub mod read;
pub mod report;
pub mod row;
pub mod run;
pub mod size;
pub mod stats;
pub mod stop;
pub mod table;

pub use dtype::{ElementType, RedOp};
pub use formula::{Bandwidths, Extent, Op, Parts};
pub use report::{Host, Report, Tool};
pub use row::{Check, FirstBad, Key, Path, RankTimes, Row, Skew};
pub use size::{Step, Sweep, parse_size};
pub use stats::{Interval, Times};
pub use stop::{Sampler, Stop, StopRule};
