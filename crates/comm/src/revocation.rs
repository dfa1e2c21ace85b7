//! Giving up, from any thread: a group that works, or ranks that are still about to meet.

use std::sync::{Arc, OnceLock};

use tokio::sync::Notify;

use crate::{CommError, Result};

/// Whether, and why, a group is given up; the first reason stays. Clones are handles to the same.
#[derive(Debug, Clone, Default)]
pub struct Revocation {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    why: OnceLock<String>,
    notify: Notify,
}

impl Revocation {
    /// Gives up; returns the reason, which may be an earlier one.
    pub fn revoke(&self, why: &str) -> &str {
        let why = self.inner.why.get_or_init(|| why.to_owned());
        self.inner.notify.notify_waiters();
        why
    }

    /// The reason.
    pub fn why(&self) -> Option<&str> {
        self.inner.why.get().map(String::as_str)
    }

    pub(crate) fn check(&self) -> Result<()> {
        self.why().map_or(Ok(()), |why| Err(CommError::Revoked { why: why.to_owned() }))
    }

    /// Fails as soon as it is given up; waits for ever if it is not.
    pub(crate) async fn wait(&self) -> CommError {
        loop {
            let notified = self.inner.notify.notified();
            tokio::pin!(notified);
            // Registered before the reason is looked at, so that nothing falls in between.
            notified.as_mut().enable();
            if let Err(error) = self.check() {
                return error;
            }
            notified.await;
        }
    }
}
