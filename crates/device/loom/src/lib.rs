//! `device`'s own sources, compiled with loom's locks and threads, and small programs over them
//! that run in every interleaving. What the sources need of the rest of `device` stands in
//! [`stand_in`].
#![cfg(test)]
#![allow(dead_code, clippy::type_complexity)]

mod abort;
mod grants;
mod host;
mod models;
mod random;
mod ring;
mod stand_in;
mod sync;

use stand_in::{Device, DeviceError, DeviceKind, Kernel, Tensor, memory, work};
