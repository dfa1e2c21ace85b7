//! The transformer: layers with explicit forward and backward, presets, published names.
//!
//! ```text
//! ModelConfig ─resolve─▶ Architecture ─▶ blocks declare parameters, places and states
//!                                            │
//!                                            ├─▶ Schema, memory plan, initial weights
//!                                            └─▶ Model (one arena)
//!
//! forward:  tokens ─embed─▶ x ─[norm, attention, norm, MLP or experts]×layers─▶ norm ─▶ h
//! backward: h ─head and cross-entropy in chunks─▶ dh ─[…]×layers─▶ gradients, last layers first
//! ```
//!
//! A block is one file, which has its parameters, its places and both of its passes. To read them:
//! [`transformer`](self) for the order of things, then `attention`, `latent`, `mlp`, `experts`.
//!
//! Invariants:
//!   * weights and gradients are views into flat buffers that the caller owns;
//!   * no allocation after [`Model::new`];
//!   * gradients are those of the *summed* loss of the micro-batch;
//!   * a backward pass consumes the stash of its forward pass; several may be in flight.

mod architecture;
mod arena;
mod attention;
mod block;
mod check;
pub mod config;
mod declare;
mod embedding;
mod error;
mod experts;
mod head;
mod hooks;
mod init;
mod latent;
mod mlp;
mod names;
mod norm;
pub mod presets;
mod resolve;
mod rotary;
mod run;
mod stash;
mod transformer;

pub use architecture::{Architecture, Feed, Latent, Moe};
pub use arena::{MicroBatch, Types};
pub use config::{ModelConfig, Norm, Positions, Preset, QkNorm, RotaryScaling, Scores};
pub use error::ModelError;
pub use hooks::{HookError, Hooks, NoHooks};
pub use init::initialize;
pub use run::{Gradients, State};
pub use stash::Stash;
pub use transformer::{Inputs, Model, Parameters, active_parameters, memory_plan, parameters};
