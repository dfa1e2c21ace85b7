//! `muster train`, `muster generate` and the worker processes.
//!
//! ```text
//! train ── prepare data, plan, header ── start ranks ──▶ worker 0 … N−1 (processes of their own)
//!   │                                                       │
//!   └─ supervise: events of rank 0 ─▶ console, events.jsonl ┘ logs, exits, signals of every rank
//! ```

pub mod address;
mod alone;
pub mod blame;
mod buckets;
mod coordinate;
mod fit;
mod follow;
mod generate;
mod job;
pub mod life;
pub mod line;
mod local;
mod mesh;
mod offload;
pub mod others;
pub mod place;
mod planned;
pub mod reach;
mod records;
mod restart;
mod resume;
pub mod room;
pub mod shared_memory;
pub mod signals;
mod starting;
mod supervise;
mod verdict;
pub mod voice;
pub mod watch;
mod worker;

pub use generate::generate;
pub use job::{BUCKETS, COMMAND, KIND_OF_CPU, OPTIMIZER_DEVICE};
pub use records::as_yaml;
pub use supervise::train;
pub use worker::worker;
