//! A host's supervisor, as it introduces itself to node 0's, and what it reports.

use serde::{Deserialize, Serialize};

/// The introduction of a supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Attend {
    pub job: String,
    pub node: usize,
    pub nodes: usize,
    /// Another number for each process.
    pub session: u64,
    /// The newest incarnation that it was told to start; a connection that broke is made anew.
    pub incarnation: Option<u64>,
    /// How that ended, if it has.
    pub report: Option<Report>,
    /// People have asked it to end.
    pub leave: Option<Leave>,
}

/// How the ranks of a host ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub incarnation: u64,
    /// The exit code that this would be.
    pub exit: u8,
    /// The reason, in a line.
    pub why: String,
    /// The last step that any rank of the host told of.
    pub step: Option<u64>,
    /// Whether its ranks had met the others.
    pub has_met: bool,
    /// Whether the host waits for another start; one that does not is done, and may leave.
    pub waits: bool,
    /// The exit code for a request of people to stop, if there was one.
    pub asked: Option<u8>,
}

/// The request of people, on one host, that the job end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leave {
    /// The exit code for all hosts.
    pub exit: u8,
    pub why: String,
}
