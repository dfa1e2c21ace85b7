//! The control plane, transports and groups, over shared memory and TCP, and on GPUs over NCCL and
//! RCCL.
//!
//! ```text
//! rendezvous::Server ◀── join ──▶ peers agree on versions, configuration, addresses
//!        │ Abort, Stop                     │
//!        ▼                                 ▼ connect
//! ControlHandle ──revoke──▶ World (shm: memory of one host │ tcp: full mesh, one watchdog │
//!                             │    shm+tcp: both, a group goes by hosts where its ranks lie so)
//!                             ├─ Control   small messages of hosts; a channel for training, one
//!                             │            for saving
//!                             └─ Group     of the parts of a partition: Windows, and operations
//!                                          that move device memory after a stream's work; a
//!                                          vendor's library moves it where it can (`nccl`)
//! ```
//!
//! Every connection begins with a proof, both ways, of the job's [`Secret`] (`handshake`), inside
//! of TLS where the job has that ([`tls`]).
//!
//! Invariants:
//!   * the members of a channel or group call the same operations in the same order; each has a
//!     sequence number, and ranks that disagree get [`CommError::Mismatch`]. Channels and groups
//!     have orders of their own and never wait for each other;
//!   * every wait has a deadline, which only a rank meets that gets nothing done (the `job` module
//!     says what counts), and which stands still while the process is stopped. Any failure gives up
//!     the whole job, and every rank learns why within 100 ms, whatever it is doing;
//!   * when an operation is done, its windows may be rewritten;
//!   * reductions are made by their owner alone, in the order of a [`layout::SumProgram`]: the bits
//!     depend neither on the number of ranks, nor on the backend, nor on threads or timing. Groups
//!     on GPUs may leave them to the vendor's library instead ([`SumOrder::Vendor`]).

mod algorithm;
pub mod clocks;
mod collectives;
mod control;
mod copies;
mod counters;
mod digest;
mod dispatch;
mod door;
mod elsewhere;
mod ending;
mod error;
pub mod files;
#[cfg(test)]
mod fuzz;
mod group;
mod handshake;
mod hosts;
mod job;
mod lack;
mod looks;
mod meter;
mod nccl;
mod one_shot;
mod op;
mod ordered;
mod patience;
mod primitives;
pub mod rendezvous;
mod revocation;
mod rooted;
mod route;
mod secret;
#[cfg(target_os = "linux")]
pub mod shm;
mod site;
mod source;
mod staged;
mod step;
#[doc(hidden)]
pub mod switches;
pub mod tcp;
pub mod tls;
mod transport;
mod window;
mod world;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use collectives::EvenPlan;
pub use control::{Channel, Control};
pub use counters::{Count, Counters};
pub use elsewhere::SumRoom;
pub use error::{CommError, Damage, Fault, Moved, Operation, TIMEOUT_KEY};
pub use group::{Group, Pending, Prepared};
pub use hosts::{BY_HOSTS_BYTES, sent_by_hosts};
pub use job::{Disturbance, Settings};
pub use kernels::ordered_sum::RedOp;
pub use lack::Lack;
pub use meter::{Timing, Timings, last_operation};
pub use nccl::{DeviceTransport, GroupOptions, Refusal as TransportRefusal, SumOrder, WindowPath};
pub use op::Op;
pub use patience::AwakeClock;
pub use primitives::{AllToAll, Gather, OrderedReduce, P2p, Segments};
pub use revocation::Revocation;
pub use route::Route;
pub use secret::Secret;
pub use window::Window;
pub use world::World;

/// A result of this crate.
pub type Result<T> = std::result::Result<T, CommError>;

/// A backend, as configs, arguments and reports name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BackendWord {
    /// Shared memory, on one host.
    Shm,
    /// TCP.
    Tcp,
}

impl BackendWord {
    pub const ALL: [BackendWord; 2] = [BackendWord::Shm, BackendWord::Tcp];

    /// `shm` or `tcp`.
    pub const fn word(self) -> &'static str {
        match self {
            BackendWord::Shm => "shm",
            BackendWord::Tcp => "tcp",
        }
    }
}

/// How the ranks of a job reach each other.
#[derive(Debug)]
pub enum Backend {
    /// Processes of one host, through memory that was made for one start of a job.
    #[cfg(target_os = "linux")]
    Shm { memory: shm::SharedMemory },
    /// Anywhere: a listener of this rank (see [`tcp::listen`]), the address of every rank's, and a
    /// job name that keeps strangers apart.
    Tcp { listener: std::net::TcpListener, peers: Vec<std::net::SocketAddr>, job: String },
    /// As [`Backend::Tcp`], and the ranks of each host through memory of their own beside: groups
    /// of one host use that alone, and groups with as many neighbouring ranks on each of several
    /// hosts use both.
    #[cfg(target_os = "linux")]
    Hosts {
        listener: std::net::TcpListener,
        peers: Vec<std::net::SocketAddr>,
        job: String,
        /// Of the ranks of this rank's host, made for as many.
        memory: shm::SharedMemory,
        /// The host of every rank, by any numbers.
        host_of: std::sync::Arc<[usize]>,
    },
}

/// Meets the other ranks of a job, with the settings of [`Settings::new`].
///
/// # Errors
/// As [`connect_with`].
pub fn connect(backend: Backend, rank: usize, world: usize, timeout_ms: u64) -> Result<World> {
    connect_with(backend, rank, world, Settings::new(timeout_ms))
}

/// Meets the other ranks of a job; ends early if the revocation gives it up, which it still can
/// afterwards.
///
/// # Errors
/// A rank that is out of range or claimed twice; every rank that is missing after the timeout is
/// named; [`CommError::Revoked`].
pub fn connect_with(
    backend: Backend,
    rank: usize,
    world: usize,
    settings: Settings,
) -> Result<World> {
    World::connect(backend, rank, world, settings)
}
