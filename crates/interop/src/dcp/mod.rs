//! Checkpoints of PyTorch: its pickles and archives, and the directories made of them.

pub(crate) mod archive;
mod metadata;
pub mod pickle;
mod pickle_out;
mod plain;
pub(crate) mod read;
mod sharded_safetensors;
pub(crate) mod tensor;
mod write;
mod zip_out;

pub use plain::{LeftOut, Plain};
pub use read::{TorchCheckpoint, open_dcp};
pub use sharded_safetensors::open_dcp_safetensors;
pub use write::{DcpOptions, DcpWritten, write_dcp};
