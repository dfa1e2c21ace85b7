//! Directories as Hugging Face's transformers reads and writes them.
//!
//! ```text
//! config.json ─▶ family, model section     *.safetensors (+ index) ─▶ Foreign
//!          └────────────▶ what each tensor of the model is made of ◀────┘
//! ```
//! A family is a table of `config.json` keys (`families`) beside its table of names, which is the
//! model's own: tensors of a checkpoint are called as published.

mod directory;
mod export;
mod families;
mod published;
mod rope;
mod table;
mod write;

pub use directory::read_safetensors;
pub use export::{Exported, Matrices, export};
pub use published::{Published, companions, plan_model, plan_saved};
pub use write::{SafetensorsOptions, Written, write_safetensors};
