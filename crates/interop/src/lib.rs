//! Checkpoints of other trainers and libraries: read into Muster's, and written from them.
//!
//! ```text
//! directory ─▶ Foreign (names, types, shapes; where each box of a tensor lies) ─▶ Elements
//! Elements ─▶ (rows of others, transposed, cast, scales applied) ─▶ Elements ─▶ a checkpoint
//! checkpoint ─▶ Elements ─▶ … ─▶ Outgoing ─▶ files of another format
//! ```
//! Invariants:
//! - nothing that a file holds is executed, and no memory is taken on its word alone;
//! - a foreign tensor is proved to be covered, each element once, before any of it is read;
//! - sums that a format keeps are checked as the bytes pass;
//! - a type is changed only where the caller says so;
//! - a directory of another format appears whole, or not at all.

mod adapt;
mod arriving;
mod convert;
pub mod dcp;
mod deepspeed;
mod elements;
mod error;
mod files;
mod find;
mod foreign;
mod fp8;
pub mod hf;
mod import;
mod nearest;
mod origin;
mod rules;
mod safetensors_file;
mod saved;
mod source;
mod states;
mod unread;

pub use arriving::{Arriving, Dead};
pub use convert::Types;
pub use deepspeed::open_universal;
pub use elements::{Bytes, Elements, Outgoing};
pub use error::Error;
pub use foreign::{Foreign, Located, Piece};
pub use import::{ImportPlan, Imported, plan_as_is};
pub use origin::Origin;
pub use rules::Rules;
pub use safetensors_file::{SafetensorsEntry, SafetensorsHeader};
pub use states::States;
