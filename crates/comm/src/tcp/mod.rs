//! Ranks anywhere: a full mesh of TCP connections.
//!
//! A group owns a single-threaded tokio runtime, driven by whichever thread is inside an
//! operation, so nothing runs between operations. (So operations cannot be called from
//! asynchronous code, whose runtime would refuse to block.) Each collective sends one frame to
//! every peer and takes one from every peer, both at the same time; device memory passes through
//! bounded staging buffers that are kept between calls. tokio itself and the lists of futures
//! allocate a little per call; payload memory is not allocated after warm-up.

mod exchange;
mod frame;
mod group;
mod mesh;
mod signal;
mod transfer;
mod wire;

pub use frame::HEADER_BYTES;
pub use group::{Member, Tcp};
pub use mesh::{can_listen, listen};
