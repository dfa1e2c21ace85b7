//! NCCL and RCCL, the collective libraries of NVIDIA's and AMD's GPUs, opened at run time.
//!
//! ```text
//! Library ──┬─ unique_id ─▶ UniqueId ──(to all ranks)──▶ Communicator::init_rank
//!  (table)  ├─ group, mem_alloc                            │ all_reduce, send, …
//!           └─ version, has                                │ split, shrink, revoke
//!                                                          └ async_error, abort, finalize
//! ```
//!
//! Nothing is linked: one table of functions is filled when a library is opened, one for each of
//! the two, which a process may have open side by side. Functions that came after the baseline
//! (2.18) are optional; a call of one that is missing says which version has it ([`LATER`]).
//!
//! Invariants:
//!   * communicators are non-blocking, and no call waits longer than its timeout, drops included;
//!   * nothing panics, and each error says what to do where that is known;
//!   * a communicator that has failed stays so until it is aborted, and after the abort every call
//!     of every thread is an error;
//!   * an id of another job, vendor or version never reaches the library.
//!
//! This crate cannot check the contents of a GPU's memory, so the operations are `unsafe`: their
//! caller vouches for addresses, streams and lifetimes. Lengths, types, alignment and overlap are
//! checked.

mod check;
mod children;
mod collectives;
mod communicator;
mod config;
mod error;
mod group;
mod library;
mod red_op;
mod shared;
mod table;
mod types;
mod unique_id;
mod vendor;
mod version;
mod wait;
mod window;

pub use children::Shrink;
pub use communicator::Communicator;
pub use config::Config;
pub use error::{Attempt, Attempts, Code, End, Error, Seat};
pub use library::Library;
pub use red_op::{PreMulSum, RedOp};
pub use shared::Progress;
pub use table::LATER;
pub use types::{Buffer, DataType, Stream};
pub use unique_id::{JobId, UniqueId};
pub use vendor::Vendor;
pub use version::Version;
pub use window::{DeviceMemory, Registration, Window};
