//! Giving up, from any thread: a job that works, or ranks that are still about to meet.

use std::sync::{Arc, OnceLock};

use tokio::sync::Notify;

use crate::error::{Moved, ranks};
use crate::{CommError, Operation, Result};

/// Whether, and why, a job is given up: one for all that a rank has of it. The first reason stays.
/// Clones are handles to the same.
#[derive(Debug, Clone, Default)]
pub struct Revocation {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    reason: OnceLock<Reason>,
    notify: Notify,
}

/// Why a job is given up.
#[derive(Debug, Clone)]
pub(crate) struct Reason {
    pub why: String,
    pub lost: Option<Lost>,
}

/// Who was lost while nobody waited for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Lost {
    /// This rank, and how.
    Gone(usize, String),
    /// These, which have said nothing for the timeout.
    Silent { ranks: Vec<usize>, timeout_ms: u64 },
}

impl Reason {
    /// `rank` is lost.
    pub(crate) fn loss(rank: usize, cause: &str) -> Reason {
        let why = format!("rank {rank} is lost: {cause}");
        Reason { why, lost: Some(Lost::Gone(rank, cause.to_owned())) }
    }

    /// Nothing comes from `silent` any more.
    pub(crate) fn silence(silent: Vec<usize>, timeout_ms: u64) -> Reason {
        let why = format!("no sign of life of {} within {timeout_ms} ms", ranks(&silent));
        Reason { why, lost: Some(Lost::Silent { ranks: silent, timeout_ms }) }
    }
}

impl Revocation {
    /// Gives up; returns the reason, which may be an earlier one.
    pub fn revoke(&self, why: &str) -> &str {
        &self.give_up(|| Reason { why: why.to_owned(), lost: None }).why
    }

    pub(crate) fn give_up(&self, reason: impl FnOnce() -> Reason) -> &Reason {
        let reason = self.inner.reason.get_or_init(reason);
        self.inner.notify.notify_waiters();
        reason
    }

    /// The reason.
    pub fn why(&self) -> Option<&str> {
        self.reason().map(|reason| reason.why.as_str())
    }

    pub(crate) fn reason(&self) -> Option<&Reason> {
        self.inner.reason.get()
    }

    pub(crate) fn check(&self) -> Result<()> {
        self.why().map_or(Ok(()), |why| Err(CommError::Revoked { why: why.to_owned() }))
    }

    /// The error of an operation that meets the revocation: a lost rank is named as one.
    pub(crate) fn error(&self, operation: Operation, sequence: u64) -> Option<CommError> {
        let Reason { why, lost } = self.reason()?.clone();
        Some(match lost {
            Some(Lost::Gone(rank, cause)) => {
                CommError::PeerLost { rank, operation, sequence, cause }
            }
            Some(Lost::Silent { ranks: missing, timeout_ms }) => {
                let moved = Moved::default();
                CommError::Timeout { operation, sequence, missing, timeout_ms, moved }
            }
            None => CommError::Revoked { why },
        })
    }

    /// Returns the reason as soon as it is given up; waits for ever if it is not.
    pub(crate) async fn wait(&self) -> &Reason {
        loop {
            let notified = self.inner.notify.notified();
            tokio::pin!(notified);
            // Registered before the reason is looked at, so that nothing falls in between.
            notified.as_mut().enable();
            if let Some(reason) = self.reason() {
                return reason;
            }
            notified.await;
        }
    }
}
