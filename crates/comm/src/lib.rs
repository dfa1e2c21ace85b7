//! Process groups and collectives over shared memory and TCP.
//!
//! ```text
//! rendezvous::Server ◀── join ──▶ peers agree on versions, configuration, addresses
//!        │ Abort, Stop                     │
//!        ▼                                 ▼ connect
//! ControlHandle ──revoke──▶ Communicator (shm: memory of one host │ tcp: full mesh)
//!                                │
//!                    OrderedReduce over Windows: owners sum partials in one fixed order
//! ```
//!
//! Invariants:
//!   * every rank calls the same operations in the same order; each has a sequence number, and
//!     ranks that disagree get [`CommError::Mismatch`];
//!   * every wait has a deadline, which stands still while the process is stopped and over tcp begins
//!     anew when bytes move; any failure gives up the whole group, and everyone learns why;
//!   * when an operation returns, its windows may be rewritten;
//!   * sums are made by their owner alone, in the order of a [`layout::Program`]: the bits depend
//!     neither on the number of ranks, nor on the backend, nor on threads or timing.

mod collectives;
mod combine;
mod counters;
mod door;
mod error;
mod memory;
mod patience;
mod reduce;
pub mod rendezvous;
mod revocation;
#[cfg(target_os = "linux")]
pub mod shm;
pub mod tcp;
mod window;

use std::ops::Range;
use std::sync::Arc;

use device::{Device, Stream, Tensor};

pub use collectives::{AllToAll, EvenPlan};
pub use counters::{Count, Counters};
pub use error::{CommError, Fault, Moved, Operation};
pub use patience::AwakeClock;
pub use reduce::OrderedReduce;
pub use revocation::Revocation;
pub use window::Window;

/// A result of this crate.
pub type Result<T> = std::result::Result<T, CommError>;

/// A group of ranks. All operations but `send`, `recv`, `counters` and `revoke` are collective:
/// every rank calls the same ones in the same order. They block, at most for the group's timeout.
///
/// # Errors
/// Each operation fails with [`CommError::Timeout`], [`CommError::PeerLost`],
/// [`CommError::Mismatch`], [`CommError::Revoked`], or for arguments out of bounds. Whatever the
/// error, the group is given up: this rank's later operations are `Revoked`, and so is whatever
/// another rank is doing or does next that needs a rank which gave up.
pub trait Communicator: Send + Sync {
    fn rank(&self) -> usize;

    /// Number of ranks.
    fn world(&self) -> usize;

    /// `shm` or `tcp`.
    fn backend(&self) -> &'static str;

    /// Zeroed device memory of `bytes` bytes, the same on every rank, that peers may read.
    fn window(&self, device: &Device, bytes: usize) -> Result<Window>;

    /// Returns once every rank has called it.
    fn barrier(&self) -> Result<()>;

    /// Gives every rank every rank's message, in rank order, reusing the memory of `all`; for
    /// small control messages of any lengths.
    fn all_gather_bytes_into(&self, mine: &[u8], all: &mut Vec<Vec<u8>>) -> Result<()>;

    /// As [`Communicator::all_gather_bytes_into`], into new memory.
    fn all_gather_bytes(&self, mine: &[u8]) -> Result<Vec<Vec<u8>>> {
        let mut all = Vec::new();
        self.all_gather_bytes_into(mine, &mut all)?;
        Ok(all)
    }

    /// Replaces `bytes` on every rank by those of `root`.
    fn broadcast_bytes(&self, root: usize, bytes: &mut Vec<u8>) -> Result<()>;

    /// Each owner sums the partials of all ranks over its segments; see [`OrderedReduce`].
    fn reduce_scatter_ordered(&self, stream: &Stream, op: &OrderedReduce) -> Result<()>;

    /// Afterwards every rank's window holds the segments of every rank. `segments` are, per rank,
    /// the elements (of `element_bytes` each) that it holds before; disjoint.
    fn all_gather_segments(
        &self,
        stream: &Stream,
        window: &Window,
        element_bytes: usize,
        segments: &[Vec<Range<usize>>],
    ) -> Result<()>;

    /// Each rank gives every rank a part of its window; see [`AllToAll`].
    fn all_to_all(&self, stream: &Stream, op: &AllToAll) -> Result<()>;

    /// Gives `tensor` to rank `to`, which calls [`Communicator::recv`]. Messages from one rank
    /// to another arrive in the order in which they were sent.
    fn send(&self, stream: &Stream, to: usize, tensor: &Tensor) -> Result<()>;

    /// Takes the next message from rank `from`, of exactly the size of `tensor`.
    fn recv(&self, stream: &Stream, from: usize, tensor: &Tensor) -> Result<()>;

    /// What this rank has moved so far.
    fn counters(&self) -> Counters;

    /// Gives the group up, from any thread: blocked operations of every rank fail within 100 ms,
    /// later ones at once, with [`CommError::Revoked`]. The first reason stays.
    fn revoke(&self, why: &str);

    /// Sums the windows of all ranks in the order of the plan's tree (leaf `i` is rank `i`) and
    /// gives every rank the result: an ordered reduction in place, then a gather. Counted as those.
    fn all_reduce(&self, stream: &Stream, window: &Window, plan: &EvenPlan) -> Result<()> {
        let out = plan.tensor(window)?;
        self.reduce_scatter(stream, window, plan, &out)?;
        self.all_gather(stream, window, plan)
    }

    /// As [`Communicator::all_reduce`] without the gather: `out`, indexed like the window, holds
    /// the sums of this rank's even share.
    fn reduce_scatter(
        &self,
        stream: &Stream,
        window: &Window,
        plan: &EvenPlan,
        out: &Tensor,
    ) -> Result<()> {
        self.reduce_scatter_ordered(stream, &plan.reduce(window, out))
    }

    /// Afterwards every window holds every rank's even share.
    fn all_gather(&self, stream: &Stream, window: &Window, plan: &EvenPlan) -> Result<()> {
        self.all_gather_segments(stream, window, plan.dtype().bytes(), plan.segments())
    }

    /// Copies `range` (elements of `element_bytes` each) of the window of `root` to every window.
    fn broadcast(
        &self,
        stream: &Stream,
        window: &Window,
        root: usize,
        element_bytes: usize,
        range: Range<usize>,
    ) -> Result<()> {
        let world = self.world();
        let mut segments = vec![Vec::new(); world];
        let slot = segments.get_mut(root).ok_or(CommError::NoSuchRank { rank: root, world });
        match slot {
            Ok(slot) => slot.push(range),
            Err(error) => {
                self.revoke(&format!("rank {}: broadcast: {error}", self.rank()));
                return Err(error);
            }
        }
        self.all_gather_segments(stream, window, element_bytes, &segments)
    }
}

/// How the ranks of a group reach each other.
#[derive(Debug)]
pub enum Backend {
    /// Processes of one host, through memory that was made for one start of a group.
    #[cfg(target_os = "linux")]
    Shm { memory: shm::SharedMemory },
    /// Anywhere: a listener of this rank (see [`tcp::listen`]), the address of every rank's, and a
    /// job name that keeps strangers apart.
    Tcp { listener: std::net::TcpListener, peers: Vec<std::net::SocketAddr>, job: String },
}

/// Meets the other ranks of a group.
///
/// # Errors
/// As the backend's own `connect`; every rank that is missing after `timeout_ms` is named. The
/// same timeout holds for each later operation.
pub fn connect(
    backend: Backend,
    rank: usize,
    world: usize,
    timeout_ms: u64,
) -> Result<Arc<dyn Communicator>> {
    connect_unless(backend, rank, world, timeout_ms, Revocation::default())
}

/// As [`connect`]; ends early if `revocation` gives the group up, which it still can afterwards.
///
/// # Errors
/// As [`connect`], and [`CommError::Revoked`].
pub fn connect_unless(
    backend: Backend,
    rank: usize,
    world: usize,
    timeout_ms: u64,
    revocation: Revocation,
) -> Result<Arc<dyn Communicator>> {
    match backend {
        #[cfg(target_os = "linux")]
        Backend::Shm { memory } => {
            Ok(Arc::new(shm::Shm::connect(memory, rank, world, timeout_ms, revocation)?))
        }
        Backend::Tcp { listener, peers, job } => {
            let (what, got, expected) = ("peer addresses", peers.len(), world);
            if got != expected {
                return Err(CommError::PerRank { what, got, expected });
            }
            let me = tcp::Member { job: &job, rank, timeout_ms };
            Ok(Arc::new(tcp::Tcp::connect(listener, &peers, me, revocation)?))
        }
    }
}
