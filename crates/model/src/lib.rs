//! model: see below

pub mod config;
mod error;
pub mod presets;

pub use config::{Architecture, Feed, ModelConfig, Moe, Norm, Positions, QkNorm, Scores};
pub use error::ModelError;
pub use presets::Preset;
