//! A group: some ranks that move device memory among themselves, in an order of their own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use device::{Device, Stream};

use crate::op::{Op, Step};
use crate::transport::Transport;
use crate::{CommError, Result, Window};

/// Numbers of groups in this process.
static GROUPS: AtomicU64 = AtomicU64::new(1);

/// A member's end of a group of ranks, made by [`crate::World::split`].
pub struct Group {
    transport: Arc<dyn Transport>,
    number: u64,
    device: Device,
}

/// An operation that is checked and ready to be submitted again and again; clones are handles to
/// the same.
#[derive(Clone)]
pub struct Prepared {
    steps: Arc<[Step]>,
    group: u64,
}

impl Group {
    pub(crate) fn new(transport: Arc<dyn Transport>, device: &Device) -> Result<Group> {
        let number = GROUPS.fetch_add(1, Ordering::Relaxed);
        Ok(Group { transport, number, device: device.clone() })
    }

    /// The ranks in the group, in its order.
    pub fn members(&self) -> &[usize] {
        &self.transport.members().ranks
    }

    /// The place of this rank among the members.
    pub fn place(&self) -> usize {
        self.transport.members().place
    }

    /// Zeroed memory of `bytes` bytes, the same on every member, that peers may read. Collective.
    ///
    /// # Errors
    /// Memory; as an operation.
    pub fn window(&self, bytes: usize) -> Result<Window> {
        self.transport.window(&self.device, self.number, bytes)
    }

    /// Checks an operation once, for all times that it is submitted.
    ///
    /// # Errors
    /// Arguments out of bounds, of another group or of a type that cannot be summed. Since the
    /// other members would wait for this one, the job is given up.
    pub fn prepare(&self, op: Op) -> Result<Prepared> {
        let name = op.name();
        let steps = op.steps(self.number, self.transport.members()).map_err(|error| {
            let job = self.transport.job();
            job.revocation().revoke(&format!("rank {}: {name}: {error}", job.rank));
            error
        })?;
        Ok(Prepared { steps: steps.into(), group: self.number })
    }

    /// Runs an operation after everything on `after`; returns when it is done.
    ///
    /// # Errors
    /// As [`Group::prepare`] and the operation.
    pub fn run(&self, after: &Stream, op: Op) -> Result<()> {
        let prepared = self.prepare(op)?;
        self.run_prepared(after, &prepared)
    }

    pub fn run_prepared(&self, after: &Stream, op: &Prepared) -> Result<()> {
        if op.group != self.number {
            return Err(CommError::ForeignWindow);
        }
        after.synchronize()?;
        op.steps.iter().try_for_each(|step| self.transport.run(after, step))
    }
}
