//! Meeting of the ranks, and the control connection that stays afterwards.
//!
//! ```text
//! worker ── Hello {rank, world, version, identity, listen, …} ──▶ server (supervisor of node 0)
//!        ◀─ Hint ──────────── what people should hear meanwhile
//!        ◀─ Joined {peers, …} once all are there and agree
//!        ◀─ Refused ───────── who is missing, taken, or differs in what: to everyone
//!        ── Status {step} ──▶       ◀── Stop ──  finish the step, save, leave
//!        ── Bye ────────────▶       ◀── Abort ── a rank is lost: the group is given up
//!        ── Blame ──────────▶                    this one leaves because another failed
//! supervisor ── Ended {rank, reason} ──▶         how a rank of its host ended
//!            ── Attend ─────────────────▶         stays for as long as the job (`channel`)
//! ```
//!
//! Instead of a hello, the process that would have started a host's workers may say that they will
//! not come (`Absent`); where that is node 0, it serves for a moment to say so. A host that cannot
//! prove itself says that without a proof, which ends no meeting ([`crate::Lack`]). Who is none of
//! the job's is answered, or ignored, and costs nobody anything.
//!
//! The server stays for as long as the job, and so may the supervisors of the other hosts: where
//! ranks that failed are started again, each start is a meeting of its own (`point`).
//!
//! A worker whose connection ends without `Bye` or `Blame` is lost; so is one that its supervisor
//! reports, which knows the signal and what the worker did last: that of node 0 is the server's own
//! process, those of other hosts come with a message. A connection begins with the proof of the
//! job's secret, by both ends, in which other versions can be told apart (`crate::handshake`). Then
//! come frames: a length, a postcard message, and its tag. All of it goes over TLS where the job
//! has that ([`crate::tls`]). Who has another secret, authority or none is told so and turned away;
//! the server remembers some of them (`strangers`), and the supervisor tells people.

mod absent;
mod attend;
mod attending;
mod channel;
mod client;
mod codec;
#[cfg(test)]
mod fuzz;
mod link;
mod meeting;
mod point;
mod protocol;
mod seats;
mod server;
mod strangers;

pub use absent::{
    Absent, Reported, report_absent, report_end, report_lack, serve_absence, serve_lack,
};
pub use attending::{Leave, Report};
pub use channel::ToHost;
pub use client::{Aborted, ControlHandle, Joined, join, join_hearing, join_with};
pub use link::{Attending, Link, News};
pub use protocol::{Entries, Hello, Refusal};
pub use seats::{HostState, Presence};
pub use server::{Server, can_serve};
