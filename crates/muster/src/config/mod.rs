//! Configs: read, checked as a whole, printed with comments.
//!
//! ```text
//! file ─ tree (places) ─┐
//! --set a.b=c ──────────┴▶ check (schema) ─▶ serde ─▶ meaning ─▶ Config
//!                             └──── problems: all of them, each with its line ────┘
//! ```
//! The schema is derived from the types, the printed config from the schema and the defaults:
//! nothing is written twice.

mod check;
mod init;
mod load;
mod meaning;
#[cfg(test)]
mod mesh_offers;
mod nearest;
mod overrides;
mod print;
mod problem;
mod said;
mod schema;
mod tree;

pub use load::{CONFIG_BYTES_MAX, Loaded, load};
pub use meaning::neighbour;
pub use nearest::nearest;
pub use overrides::Override;
pub use print::commented;
pub use said::{Said, Written};
pub use schema::Schema;
