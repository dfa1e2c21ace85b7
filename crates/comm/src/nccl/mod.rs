//! Groups whose memory lies on a GPU, over the library of its vendor: NCCL or RCCL.
//!
//! ```text
//! facts of all members ─▶ choice ─▶ Member: communicator, stream, companion
//!
//! submit ─▶ group's thread ─▶ Plan: calls of the library, copies, ordered sums ─▶ device stream
//!                 └─▶ Flights ◀── whoever waits, or the watchdog:
//!                        checks with the companion that all members do the same,
//!                        then waits for the device, and asks the library meanwhile
//! ```
//!
//! The **companion** is the transport that connects the ranks anyway (`shm`, `tcp`). It carries no
//! data here. The library notices neither a peer that does another operation nor one that never
//! comes, and says of no failure whose it is; so beside each operation the members meet there with
//! a digest of it, while the device is at work. What fails there names ranks, operation and number,
//! as for every other transport, and within the same deadlines.
//!
//! Invariants:
//!   * [`crate::Group::submit`] waits for nobody; what enqueues is a thread of the group, since the
//!     library may wait for peers there when it first connects to them;
//!   * an operation is done when its members have agreed on it and the device has done it;
//!   * sums are made by their owner, in the order of their program (`reduce`), unless the options
//!     leave them to the library;
//!   * a communicator that fails is aborted before anything of it is freed, and nothing waits for
//!     it without bound. If even that does not end it, the device is given up.
//!
//! Operations of several groups on one GPU may run at the same time, but the device decides: where
//! it has no room for both, ranks that submit to the groups in different orders wait for each
//! other until the deadline. Members of two groups submit to them in the same order.

mod action;
mod calls;
mod choice;
mod facts;
mod flights;
mod gather;
mod join;
mod member;
mod options;
mod plan;
mod reduce;
mod told;
mod window;

pub use choice::Refusal;
pub use options::{DeviceTransport, GroupOptions, SumOrder};
pub use window::WindowPath;

pub(crate) use choice::{Choice, Way, choose};
pub(crate) use facts::{Facts, library};
pub(crate) use member::{Ending, Member};
pub(crate) use plan::Plan;
pub(crate) use told::is_of_a_peer;
