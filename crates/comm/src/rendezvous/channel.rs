//! Messages between the supervisors of a job's hosts, over connections that outlive its ranks.
//!
//! ```text
//! host N ── Attend {node, session, incarnation} ──▶ node 0, the coordinator
//!        ◀─ Start {incarnation, hosts} ──────────── these hosts start their ranks
//!        ── Ended {incarnation, exit, why, …} ────▶ how that ended here
//!        ◀─ Notice ──────────────────────────────── what people should hear
//!        ◀─ Start {…}, or End {exit, why} ───────── on every host alike
//!        ── Beat ─▶  ◀─ Beat ──                     this process lives
//!        ◀─ Overtaken ───────────────────────────── it was taken for gone, and the job went on
//!        ── Leave ───────────────────────────────▶  people have asked this host to end
//! ```
//!
//! An *incarnation* is one start of the ranks of all hosts; its number only rises, and node 0 alone
//! raises it. Ranks tell it in their hello, so those of an older one are turned away.
//!
//! Later kinds of messages go to the ends of the enums: on the wire a kind is its place there.

use serde::{Deserialize, Serialize};

use super::attending::{Leave, Report};
use super::protocol::{self, Refusal};

/// From a host's supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum FromHost {
    Beat,
    Ended(Report),
    Leave(Leave),
}

/// To a host's supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToHost {
    Beat,
    /// Start the ranks of these hosts, which are numbered as they were at the beginning; the ranks
    /// count along the list.
    Start {
        incarnation: u64,
        hosts: Vec<usize>,
    },
    Notice(String),
    /// The job is over.
    End {
        exit: u8,
        why: String,
    },
    /// The host was taken for gone, for this reason, and is none of the job's until the next start.
    Overtaken {
        incarnation: u64,
        why: String,
    },
    Refused(Refusal),
}

impl FromHost {
    /// As much of it as a frame holds.
    pub(super) fn fitted(mut self) -> FromHost {
        match &mut self {
            FromHost::Beat => {}
            FromHost::Ended(Report { why, .. }) | FromHost::Leave(Leave { why, .. }) => {
                *why = protocol::cut(why).to_owned();
            }
        }
        self
    }
}

impl ToHost {
    /// As much of it as a frame holds.
    pub(super) fn fitted(self) -> ToHost {
        let cut = |text: String| protocol::cut(&text).to_owned();
        match self {
            ToHost::Notice(text) => ToHost::Notice(cut(text)),
            ToHost::End { exit, why } => ToHost::End { exit, why: cut(why) },
            ToHost::Overtaken { incarnation, why } => {
                ToHost::Overtaken { incarnation, why: cut(why) }
            }
            ToHost::Refused(refusal) => ToHost::Refused(refusal.fitted()),
            other @ (ToHost::Beat | ToHost::Start { .. }) => other,
        }
    }
}
