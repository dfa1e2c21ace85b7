//! A training run: what is decided before it, one step of it, and what it keeps.
//!
//! ```text
//! Config ─▶ Engine::declared ─▶ RunPlan (tree, ownership, states, memory) ─▶ Trainer (one rank)
//!
//! Trainer::take_step:
//!                 leaves ─▶ Engine forward, backward ─▶ folds of the tree
//!                 ─▶ ordered reduction to owners ─▶ statistics ─▶ vote (all ranks decide the same)
//!                 ─▶ owners update ─▶ gather of weights
//! ```
//!
//! Invariants:
//!   * nothing that outlives a step is written before the vote, and every rank votes the same;
//!   * the weights have the same bits for every number of ranks, threads and restarts;
//!   * whatever a run says is an [`event::Event`]; the trainer prints nothing.

mod agree;
mod begin_save;
mod begun;
pub mod config;
mod diagnose;
mod engine;
mod error;
mod evaluate;
pub mod event;
mod forward;
mod header;
pub mod here;
mod hooks;
pub mod laps;
mod load;
mod local;
mod local_resume;
mod marked_disk;
pub mod mesh_plan;
mod nan;
mod native;
pub mod numeric_plan;
mod optimizer;
mod optimizer_device;
mod plan;
pub mod pulse;
pub mod rank_times;
mod ranks;
mod report;
pub mod resident;
mod retention;
mod room;
mod run;
mod sample;
mod save;
mod save_beside;
mod save_boxes;
mod save_outcome;
mod state;
mod step;
mod trainer;
mod vote;

/// Which build this is: equal for equal sources, dependencies and compilers (`build.rs`).
pub const BUILD: &str = env!("MUSTER_BUILD");

pub use config::Config;
pub use engine::{Declared, Engine, Load};
pub use error::TrainError;
pub use event::Event;
pub use local_resume::LoadedLocally;
pub use marked_disk::MarkedDisk;
pub use mesh_plan::MeshPlan;
pub use model::{Gradients, HookError, Hooks, Inputs, MicroBatch, NoHooks};
pub use native::NativeEngine;
pub use plan::RunPlan;
pub use run::Outcome;
pub use sample::{Sampler, Sampling};
pub use save::Loaded;
pub use trainer::{Parts, Taken, Trainer};
pub use vote::Wants;
