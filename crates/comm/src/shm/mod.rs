//! Processes of one host: peers' windows are mapped and read where they lie.
//!
//! An operation enters (announces itself, waits for every peer's data), reads, and leaves (waits
//! until every peer has read); the `board` module has the protocol and its memory order. After
//! warm-up nothing here allocates, except where the result is the caller's vector.

mod beside;
mod block;
mod board;
mod channel;
mod endpoint;
mod exchange;
mod host;
mod places;
mod presence;
mod process;
mod push;
mod shared_memory;
mod system;
mod transfer;

pub(crate) use endpoint::Endpoint;
pub(crate) use host::Host;
pub use shared_memory::SharedMemory;
