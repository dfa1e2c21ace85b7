//! The transformer: layers with explicit forward and backward, presets, published names.
//!
//! ```text
//! ModelConfig ─resolve─▶ Architecture ─▶ parameters(): Schema + Parameters (where each lies)
//!                             │
//!                             └─▶ Slots (every activation, planned) ─▶ Model (one arena)
//!
//! forward:  tokens ─embed─▶ x ─[norm, attention, norm, MLP or experts]×layers─▶ norm ─▶ h
//! backward: h ─head and cross-entropy in chunks─▶ dh ─[…]×layers─▶ gradients, last layers first
//! ```
//!
//! Invariants:
//!   * weights and gradients are views into flat buffers that the caller owns;
//!   * no allocation after [`Model::new`];
//!   * gradients are those of the *summed* loss of the micro-batch;
//!   * a backward pass consumes the activations of the forward pass before it.

mod architecture;
mod backward;
mod check;
pub mod config;
mod error;
mod forward;
mod init;
mod params;
pub mod presets;
mod resolve;
mod slots;

pub use architecture::{Architecture, Feed, Moe};
pub use backward::Gradients;
pub use config::{ModelConfig, Norm, Positions, Preset, QkNorm, Scores};
pub use error::ModelError;
pub use forward::{Inputs, Model, State};
pub use init::initialize;
pub use params::{Parameters, active_parameters, parameters};
pub use slots::{MicroBatch, Types, memory_plan};

/// Told how far a pass has come; the trainer moves buckets meanwhile.
pub trait Hooks {
    /// Weights from this flat element on are about to be read, and none below it yet.
    fn need(&mut self, from: usize);
    /// Gradients from this flat element on are complete.
    fn ready(&mut self, from: usize);
}

/// Hooks that do nothing.
pub struct NoHooks;

impl Hooks for NoHooks {
    fn need(&mut self, _from: usize) {}
    fn ready(&mut self, _from: usize) {}
}
