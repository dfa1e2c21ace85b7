//! Checkpoints of PyTorch: its pickles and archives, and the directories made of them.

pub mod pickle;
mod plain;

pub use plain::{LeftOut, Plain};
