//! The control plane: small messages between the hosts of ranks.

use crate::Result;

/// A channel of the control plane. Each has its own order of operations, memory and connections,
/// so that what goes through one is not held up by another, nor by what groups do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    /// Votes, and whatever else the training loop agrees on.
    Training,
    /// Messages of checkpoints.
    Saving,
}

impl Channel {
    pub const ALL: [Channel; 2] = [Channel::Training, Channel::Saving];

    pub(crate) fn number(self) -> u64 {
        self as u64
    }

    /// The name that its operations are shown under.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Channel::Training => "channel training",
            Channel::Saving => "channel saving",
        }
    }
}

/// A rank's end of a channel. All operations are collective: every rank calls the same ones in the
/// same order. They block the thread; what stands still for the job's timeout is named.
///
/// # Errors
/// Each operation fails with [`crate::CommError::Timeout`], [`crate::CommError::PeerLost`],
/// [`crate::CommError::Mismatch`] or [`crate::CommError::Revoked`]. Whatever the error, the job is
/// given up: later operations of every rank, on any channel and in any group, fail with it.
pub trait Control: Send + Sync {
    /// Returns once every rank has called it.
    fn barrier(&self) -> Result<()>;

    /// Gives every rank every rank's message, in rank order, reusing the memory of `all`; for
    /// messages of any lengths.
    fn all_gather_bytes_into(&self, mine: &[u8], all: &mut Vec<Vec<u8>>) -> Result<()>;

    /// As [`Control::all_gather_bytes_into`], into new memory.
    fn all_gather_bytes(&self, mine: &[u8]) -> Result<Vec<Vec<u8>>> {
        let mut all = Vec::new();
        self.all_gather_bytes_into(mine, &mut all)?;
        Ok(all)
    }

    /// Gives `root` every rank's message, in rank order; for messages of any lengths. The others
    /// get empty ones, and return, as from every operation, once all ranks have called it: so all
    /// of them name a rank that does not come.
    fn gather_bytes_to(&self, root: usize, mine: &[u8]) -> Result<Vec<Vec<u8>>>;

    /// Replaces `bytes` on every rank by those of `root`.
    fn broadcast_bytes(&self, root: usize, bytes: &mut Vec<u8>) -> Result<()>;
}
