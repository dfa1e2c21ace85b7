//! Optimizers (Muon, AdamW), schedules and the sharded step.
//!
//! ```text
//! OptimizerConfig ─▶ plan ──▶ treatments ─▶ layout::Ownership
//!   (rules, schedule,  │                          │
//!    clip)             └────────────┬─────────────┘
//!                                   ▼
//! grads ─▶ ShardedOptimizer::statistics ─▶ sums per slot ─▶ (all ranks) ─▶ Clipper::decide
//!                                                                              │
//! weights, grads ─▶ ShardedOptimizer::apply ◀── StepScalars {step, lr, tokens} ┘
//! ```
//!
//! Invariants:
//!   * every parameter has exactly one rule, and every rule has a parameter;
//!   * the new bits of a weight depend on its matrix or itself, as its update's unit is, the
//!     statistics of all slots and the config: not on the rank that owns it, the number of ranks or
//!     threads;
//!   * after the first step, a step allocates nothing.

mod bounds;
pub mod clip;
pub mod config;
mod error;
pub mod glob;
mod group;
mod memory_plan;
pub mod offload;
pub mod rules;
pub mod schedule;
mod selection;
mod states;
pub mod step;
mod tagged;
mod update;

pub use clip::{ClipDecision, Clipper, Verdict};
pub use config::{Clip, Match, NonFinite, OptimizerConfig, RoleWord, Rule, Schedule};
pub use error::OptimError;
pub use memory_plan::{MemoryItem, memory_plan, memory_plan_on};
pub use offload::{Offloaded, offload_plan, staging_bytes};
pub use rules::{TensorPlan, plan, table, treatments};
pub use schedule::factor;
pub use states::{StateView, declared, kept_boxes};
pub use step::{ShardedOptimizer, StepScalars};
pub use update::Update;
pub use update::sections::*;
