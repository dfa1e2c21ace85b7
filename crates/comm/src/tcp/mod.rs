//! Ranks anywhere: connections between all of them, and between the members of each group.
//!
//! One watchdog thread per process answers, and holds a signal connection to every peer (`net`). A
//! channel or group has data connections of its own and a single-threaded tokio runtime, driven by
//! whichever thread is inside an operation. (So operations cannot be called from asynchronous code,
//! whose runtime would refuse to block.) Each collective sends one frame to every peer and takes one
//! from every peer, both at the same time; device memory passes through bounded staging buffers that
//! are kept between calls. tokio itself and the lists of futures allocate a little per call; payload
//! memory is not allocated after warm-up.

mod endpoint;
mod exchange;
mod frame;
mod mesh;
mod net;
mod signal;
mod transfer;
mod wire;

pub use frame::HEADER_BYTES;
pub use mesh::{can_listen, listen};
pub(crate) use net::Net;
