//! Ranks anywhere: connections between all of them, and between the members of each group.
//!
//! One watchdog thread per process answers, and holds a signal connection to every peer (`net`). A
//! channel or group has data connections of its own, which do not block; whichever thread is inside
//! an operation moves all of it itself (`drive`), and nothing is handed to another thread:
//!
//! ```text
//! transfer   an operation ─▶ Traffic   its messages, where they lie, when their frames may go
//!                             (sums, moves, ring: which of the two a gather is, route decides)
//! drive      the loop      ─▶ Link     sending and receiving: frames with checksums (frame)
//! ```
//!
//! With TLS ([`crate::tls`]) the same threads drive a session over the same sockets; what that
//! holds back of an operation belongs to it (`link`).
//!
//! Payload is sent from where it lies and received where it belongs, where that is memory of the
//! host; what is summed goes through a few tiles that are kept. After the first call an operation
//! allocates nothing, but the records of TLS.
//!
//! Meeting is asynchronous, so operations cannot be called from asynchronous code, whose runtime
//! would refuse to block.

mod drive;
mod endpoint;
mod frame;
#[cfg(test)]
mod fuzz;
mod host_sums;
mod hosts;
mod link;
mod mesh;
mod moves;
mod net;
mod poll;
mod progress;
mod receiving;
#[cfg(test)]
mod rig;
mod ring;
mod route;
mod runtime;
mod sending;
mod signal;
mod silence;
mod sums;
mod tiles;
mod traffic;
mod transfer;
mod turn;

pub(crate) use endpoint::Endpoint;
pub(crate) use frame::FRAME_BYTES;
pub use frame::HEADER_BYTES;
pub use host_sums::host_sum_room_bytes;
pub use mesh::{can_listen, listen};
pub(crate) use net::Net;
pub(crate) use route::RING_BYTES;
pub use sums::sum_room_bytes;
pub(crate) use transfer::ONE_ROUND_BYTES;
