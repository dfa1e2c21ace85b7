//! Processes of one host: peers' windows are mapped and read where they lie.
//!
//! An operation enters (announces itself, waits for every peer's data), reads, and leaves (waits
//! until every peer has read); the control module has the protocol and its memory order. After
//! warm-up nothing here allocates, except where the result is the caller's vector.

mod channel;
mod control;
mod group;
mod memory;
mod system;
mod transfer;

pub use group::Shm;
pub use memory::SharedMemory;
