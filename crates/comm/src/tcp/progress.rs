//! The operation in progress: what it is, how far it has come, and when it has stood still.

use std::cell::Cell;
use std::time::Duration;

use super::frame::Header;
use crate::error::{Damage, Moved};
use crate::job::{Job, Members};
use crate::patience::Patience;
use crate::{CommError, Operation, Result};

/// How long a broken connection is not reported, since the peer's signal may say why.
const GRACE: Duration = Duration::from_millis(50);
/// How often it is looked at meanwhile whether it has.
const GRACE_LOOK: Duration = Duration::from_millis(5);

/// Advice about a connection that broke.
pub(super) const BROKEN: &str = "see whether its process and its host are there, and the network";

/// The operation in progress, or one of its messages.
#[derive(Debug, Clone, Copy)]
pub(super) struct TcpCall {
    pub operation: Operation,
    pub token: u64,
    pub sequence: u64,
    pub digest: u64,
}

impl TcpCall {
    /// The header of a frame without payload.
    pub(super) fn header(&self) -> Header {
        let TcpCall { operation, token, sequence, digest } = *self;
        let (operation, total, length, number, checksum) = (operation as u32, 0, 0, 0, 0);
        Header { operation, token, sequence, digest, total, length, number, checksum }
    }

    pub(super) fn lost(&self, rank: usize, cause: impl ToString) -> CommError {
        let TcpCall { operation, sequence, .. } = *self;
        CommError::PeerLost { rank, operation, sequence, cause: cause.to_string() }
    }

    pub(super) fn damaged(&self, rank: usize, damage: Damage) -> CommError {
        let TcpCall { operation, sequence, .. } = *self;
        CommError::Damaged { rank, operation, sequence, damage }
    }

    /// A connection broke.
    pub(super) fn lost_by(&self, rank: usize, error: &std::io::Error, job: &Job) -> CommError {
        for _ in 0..GRACE.as_millis() / GRACE_LOOK.as_millis() {
            if let Err(revoked) = job.revocation().check() {
                return revoked;
            }
            std::thread::sleep(GRACE_LOOK);
        }
        match error.kind() {
            std::io::ErrorKind::InvalidData => self.damaged(rank, Damage::Record),
            std::io::ErrorKind::UnexpectedEof => self.lost(rank, "it closed the connection"),
            _ => self.lost(rank, format!("its connection broke ({error}; {BROKEN})")),
        }
    }

    pub(super) fn mismatch(&self, rank: usize, theirs: &Header) -> CommError {
        let name = match Operation::from_code(u64::from(theirs.operation)) {
            Some(operation) => operation.name().to_owned(),
            None => format!("operation {}", theirs.operation),
        };
        let same = (theirs.operation, theirs.sequence) == (self.operation as u32, self.sequence);
        let suffix = if same { " with other arguments" } else { "" };
        let theirs = format!("{name} #{}{suffix}", theirs.sequence);
        let TcpCall { operation, sequence, .. } = *self;
        CommError::Mismatch { operation, sequence, rank, theirs }
    }
}

/// How far an operation has come: for its deadline, and for the message when that passes.
pub(super) struct Progress<'a> {
    pub job: &'a Job,
    members: &'a Members,
    /// Payload bytes, sent and received, so far and in all.
    moved: Moved,
    /// Whether bytes have moved, headers among them, since patience began anew.
    has_moved: bool,
    patience: Cell<Patience>,
}

impl<'a> Progress<'a> {
    pub(super) fn new(job: &'a Job, members: &'a Members) -> Progress<'a> {
        let (moved, patience) = (Moved::default(), job.patience());
        Progress { job, members, moved, has_moved: false, patience }
    }

    /// Expects `bytes` more.
    pub(super) fn expect(&mut self, bytes: usize) {
        self.moved.of += bytes as u64;
    }

    /// Counts what one call of the system has moved; how many bytes of payload.
    pub(super) fn advance(&mut self, payload_bytes: usize) {
        self.has_moved = true;
        self.moved.bytes += payload_bytes as u64;
    }

    /// Between two parts of the operation.
    pub(super) fn part_done(&self) {
        self.job.part_done();
    }

    /// Before this rank sleeps: patience begins anew if something has moved.
    pub(super) fn before_sleep(&mut self) {
        if std::mem::take(&mut self.has_moved) {
            self.patience.set(self.patience.get().afresh());
            self.job.got_on();
        }
        let mut patience = self.patience.get();
        patience.begin();
        self.patience.set(patience);
    }

    /// After a sleep in which nothing came.
    ///
    /// # Errors
    /// The timeout of `call`, if one of the `missing` peers has stood still for so long, and so
    /// much `later`.
    pub(super) fn after_sleep(
        &self,
        call: &TcpCall,
        later: Duration,
        missing: impl Iterator<Item = usize> + Clone,
    ) -> Result<()> {
        let Progress { job, members, moved, patience, .. } = self;
        if !job.is_over_by(later, members, patience, missing.clone()) {
            return Ok(());
        }
        let missing = job.standing(members, patience, missing);
        let TcpCall { operation, sequence, .. } = *call;
        let (timeout_ms, moved) = (job.timeout_ms(), *moved);
        Err(CommError::Timeout { operation, sequence, missing, timeout_ms, moved })
    }
}
