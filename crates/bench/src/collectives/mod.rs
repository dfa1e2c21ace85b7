//! Benchmarks of collective operations. All but [`run`] are pure functions of what was measured, or
//! of what another program wrote.
//!
//! ```text
//! Sweep, Op::extent ─▶ cases ─▶ run ─▶ Sampler ─▶ Times ─▶ Row ┐
//! nccl-tests, rccl-tests: text, JSON, CSV ─▶ read ────────────────┴▶ Report
//!                                                                     ├▶ table, JSON, CSV, SVG
//!                                                                     ├▶ plausible: what cannot be
//!                                                                     ├▶ fit ─▶ curves ─▶ bucket
//!                                                                     ├▶ links, a table of them
//!                                                                     └▶ compare, of two reports
//! ```
//!
//! Invariants:
//!   * algbw, busbw and sizes are what nccl-tests means by them ([`Op`]);
//!   * nothing is gated on a mean where a median is known;
//!   * a report holds no secrets of the environment ([`environment`]).
//!
//! From rows to a table of links and a size of buckets:
//!
//! ```
//! use bench::collectives::bucket::Bounds;
//! use bench::collectives::links::LinkTable;
//! use bench::collectives::roofline::{KnownLink, Roof};
//! use bench::collectives::{ElementType, Key, Op, RedOp, Report, Row, Times, Tool, curve};
//!
//! # fn main() -> Result<(), bench::BenchError> {
//! let tool = Tool { name: "example".into(), version: None, commit: None };
//! let mut report = Report::new(tool);
//! for log in 10..30 {
//!     let bytes = 1_u64 << log;
//!     let key = Key {
//!         op: Op::AllReduce,
//!         dtype: ElementType::F32,
//!         redop: Some(RedOp::Sum),
//!         root: None,
//!         ranks: Some(8),
//!         bytes,
//!         in_place: false,
//!         algorithm: None,
//!         transport: Some("nccl".into()),
//!         ordered: None,
//!     };
//!     // 20 µs, and 200 GB/s.
//!     let times = Times { p50_us: Some(20.0 + bytes as f64 / 200e3), ..Times::default() };
//!     report.rows.push(Row::new(key, Some(bytes / 4), times));
//! }
//! let roof = Roof::Link(KnownLink::named("nvlink4")?);
//! report.curves = curve::of_rows(&report.rows, &roof, |_| Bounds::default());
//! println!("{}", curve::text(&report.curves, &roof));
//!
//! let table = LinkTable::from_json(&LinkTable::of(&report, 1).to_json()?)?;
//! let curve = table.gradients(8, "nccl").unwrap();
//! // 90 % of the bandwidth, where 20 µs are a tenth.
//! let bucket = curve.bucket.unwrap();
//! assert!((30 << 20..40 << 20).contains(&bucket.bytes), "{bucket:?}");
//! # Ok(())
//! # }
//! ```

pub mod bucket;
pub mod compare;
pub mod curve;
pub mod dtype;
pub mod environment;
pub mod fit;
pub mod formula;
mod host;
pub mod links;
pub mod merge;
pub mod plausible;
pub mod plot;
pub mod read;
pub mod report;
pub mod roofline;
pub mod row;
pub mod run;
pub mod size;
pub mod stats;
pub mod stop;
pub mod table;

pub use dtype::{ElementType, RedOp};
pub use formula::{Extent, Op, Parts};
pub use host::Host;
pub use report::{Report, Tool};
pub use row::{Check, FirstBad, Key, Overlap, Path, RankTimes, Row, Skew};
pub use size::{Step, Sweep, parse_size};
pub use stats::{Interval, Times};
pub use stop::{Sampler, Stop, StopRule};
