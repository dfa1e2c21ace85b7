//! Newton–Schulz and its products on devices whose kernels come from modules.
//!
//! ```text
//! shapes ──layout──▶ places ──plan──▶ launches and tables ──execute──▶ device
//!            arch: what kernels there are      modules: where they come from
//!            schedule: units of work           limit: what they must cost
//! ```
//!
//! `tuning` is a measured table over the cost models. `product` and `bandwidth` run the same
//! kernels alone, to be measured. All but these, `execute` and `modules` are pure functions of
//! shapes and of the architecture.

pub mod abi;
pub mod arch;
pub mod bandwidth;
mod bound_launch;
pub mod execute;
pub mod layout;
pub mod limit;
pub mod modules;
pub mod plan;
pub mod product;
pub mod schedule;
pub mod tiles;
pub mod tuning;
