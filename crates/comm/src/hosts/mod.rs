//! Groups whose members lie on several hosts, as many on each: memory is shared within a host and
//! frames go between hosts, once for all of a host's members.
//!
//! ```text
//!            host 0                 host 1
//! column 0   member 0 ◀──frames──▶ member 2      what goes to owners of this column
//!               ▲ ▼                   ▲ ▼        windows that are mapped
//! column 1   member 1 ◀──frames──▶ member 3
//! ```
//!
//! **A reduction** (`sums`). For the owners of its column a member adds, from the windows of its
//! host's members and in the program's order, what of the sum lies wholly in its host (`split`):
//! where that is one node of the tree, one partial. Members of a column send each other those, tile
//! by tile, and each owner finishes the program. The additions are those of the flat reduction, so
//! the bits are too.
//!
//! **A gather** (`gathers`). What the members of a host hold is divided evenly among the columns,
//! whoever holds it; each column carries its part to the other hosts, and there the members read
//! each other's windows. Where those are to stay as they are, each column brings its part into
//! *trays*, windows of the group's own that it makes when it first needs them, in as many rounds as
//! it takes.
//!
//! **Between hosts everything goes directly**, not by recursive halving. With H hosts of L members,
//! and a window of B bytes, a member sends H − 1 messages of B/(H·L) bytes to its column, that is
//! B/L · (H − 1)/H bytes, the ring's. Halving sends as many bytes in log2 H messages, each of which
//! waits for the one before and for the sum of it. Of a bucket of 32 MiB on 64 hosts of 8 a direct
//! message still has 64 KiB, far more than what its frame costs, so training gains nothing by
//! halving; operations of some 100 KiB among dozens of hosts would, in latency.
//!
//! **One operation.** Members that are in no column with this one get an empty frame, so that each
//! knows that all do the same and who does not come: number, fingerprint, deadline and blame are
//! those of the flat operation. An empty frame from a member of the same host says that its window
//! is ready, too. The end alone is met in shared memory (`shm::beside`): there whoever waits for a
//! member that itself waits gives it time to name the one at fault.

#![cfg_attr(not(target_os = "linux"), allow(dead_code))]

use std::sync::Arc;

use crate::transport::Transport;

mod gathers;
#[cfg(target_os = "linux")]
mod plane;
mod shape;
mod split;
mod sums;
#[cfg(target_os = "linux")]
mod transport;

pub(crate) use gathers::{Copied, GatherByHosts, within};
#[cfg(target_os = "linux")]
pub(crate) use plane::Plane;
pub use shape::BY_HOSTS_BYTES;
pub(crate) use shape::Hosts;
pub(crate) use sums::ReduceByHosts;
pub use sums::sent_by_hosts;

/// A group's transport, the name of it, and why it is this one.
pub(crate) struct Connected {
    pub transport: Arc<dyn Transport>,
    pub name: &'static str,
    pub hosts: Option<Hosts>,
    pub why: String,
}
