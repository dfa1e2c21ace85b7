//! A group: some ranks that move device memory among themselves, in an order of their own.
//!
//! ```text
//! compute stream  ──■ backward ────────────────■ optimizer ─▶
//!                    ╲ submit: after            ╱ Pending::then
//! group's stream      ╲──■ reduce bucket 0 ──■ reduce bucket 1 ─▶      blocks, waits for peers
//! ```
//!
//! A group's operations run one after another on a stream of its own, each after the work that was
//! on another stream when it was submitted. So whoever submits goes on at once, and only the
//! group's own thread ever waits for peers. Groups do not wait for each other.

use std::iter::once;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use device::{Device, DeviceError, Event, Stream};

use crate::error::Moved;
use crate::op::{Op, Step};
use crate::patience;
use crate::transport::Transport;
use crate::{CommError, Operation, Result, Window};

/// Numbers of groups in this process.
static GROUPS: AtomicU64 = AtomicU64::new(1);

/// How long an operation may take to let go when the job is given up; it takes 100 ms, unless the
/// device hangs.
const LETS_GO: Duration = Duration::from_secs(2);

/// A member's end of a group of ranks, made by [`crate::World::split`]. Dropping it waits for
/// nothing: what was submitted is still done.
pub struct Group {
    shared: Arc<Shared>,
    stream: Stream,
    /// Operations so far.
    submitted: Mutex<u64>,
}

/// What operations in progress see of a group.
struct Shared {
    transport: Arc<dyn Transport>,
    device: Device,
    number: u64,
    begun: AtomicU64,
    done: AtomicU64,
}

/// An operation that is checked and ready to be submitted again and again; clones are handles to
/// the same.
#[derive(Clone)]
pub struct Prepared {
    job: Arc<dyn Fn() -> std::result::Result<(), DeviceError> + Send + Sync>,
    /// The first of what it consists of.
    operation: Operation,
    group: u64,
}

/// An operation that was submitted.
pub struct Pending {
    shared: Arc<Shared>,
    event: Event,
    operation: Operation,
    number: u64,
}

impl Group {
    pub(crate) fn new(transport: Arc<dyn Transport>, device: &Device) -> Result<Group> {
        let number = GROUPS.fetch_add(1, Ordering::Relaxed);
        let (begun, done) = (AtomicU64::new(0), AtomicU64::new(0));
        let shared = Shared { transport, device: device.clone(), number, begun, done };
        let (stream, submitted) = (device.new_stream()?, Mutex::new(0));
        Ok(Group { shared: Arc::new(shared), stream, submitted })
    }

    /// The ranks in the group, in its order.
    pub fn members(&self) -> &[usize] {
        &self.shared.transport.members().ranks
    }

    /// The place of this rank among the members.
    pub fn place(&self) -> usize {
        self.shared.transport.members().place
    }

    /// Zeroed memory of `bytes` bytes, the same on every member, that peers may read. Collective;
    /// waits for what was submitted before, and for the other members.
    ///
    /// # Errors
    /// Memory; as an operation.
    pub fn window(&self, bytes: usize) -> Result<Window> {
        let submitted = self.submitted.lock().unwrap_or_else(PoisonError::into_inner);
        let Shared { transport, device, number, .. } = &*self.shared;
        self.pending(Operation::Window, *submitted)?.wait()?;
        transport.window(device, *number, bytes)
    }

    /// Checks an operation once, for all times that it is submitted.
    ///
    /// # Errors
    /// Arguments out of bounds, of another group or of a type that cannot be summed. Since the
    /// other members would wait for this one, the job is given up.
    pub fn prepare(&self, op: Op) -> Result<Prepared> {
        let (shared, name) = (Arc::clone(&self.shared), op.name());
        let Shared { transport, number: group, .. } = &*self.shared;
        let steps = op.steps(*group, transport.members()).inspect_err(|error| {
            let job = transport.job();
            job.revocation().revoke(&format!("rank {}: {name}: {error}", job.rank));
        })?;
        let operation = steps.first().map_or(Operation::Exchange, Step::operation);
        let job = Arc::new(move || shared.run(&steps));
        Ok(Prepared { job, operation, group: *group })
    }

    /// Lets an operation run after everything that is on `after` now, and after what was submitted
    /// to this group before; returns at once. Members submit in the same order.
    ///
    /// # Errors
    /// An operation of another group; the job is given up; the device refuses. What becomes of the
    /// operation itself, [`Pending::wait`] tells.
    pub fn submit(&self, after: &Stream, op: &Prepared) -> Result<Pending> {
        let Shared { transport, number, .. } = &*self.shared;
        if op.group != *number {
            return Err(CommError::ForeignWindow);
        }
        let mut submitted = self.submitted.lock().unwrap_or_else(PoisonError::into_inner);
        *submitted += 1;
        let given_up = transport.job().revocation().error(op.operation, *submitted);
        given_up.map_or(Ok(()), Err)?;
        self.stream.wait_for(&after.record()?)?;
        self.stream.host_shared(Arc::clone(&op.job))?;
        self.pending(op.operation, *submitted)
    }

    /// Runs an operation that is not worth preparing, and waits for it.
    ///
    /// # Errors
    /// As [`Group::prepare`] and [`Pending::wait`].
    pub fn run(&self, after: &Stream, op: Op) -> Result<()> {
        self.submit(after, &self.prepare(op)?)?.wait()
    }

    /// What was submitted so far, the last of which has this number.
    fn pending(&self, operation: Operation, number: u64) -> Result<Pending> {
        let (shared, event) = (Arc::clone(&self.shared), self.stream.record()?);
        Ok(Pending { shared, event, operation, number })
    }
}

impl Shared {
    fn run(&self, steps: &[Step]) -> std::result::Result<(), DeviceError> {
        self.begun.fetch_add(1, Ordering::Release);
        let ran = steps.iter().try_for_each(|step| self.transport.run(&self.device, step));
        self.done.fetch_add(1, Ordering::Release);
        ran.map_err(|error| DeviceError::Host(Box::new(error)))
    }

    /// Whether an operation runs, whose own deadline then holds.
    fn is_running(&self) -> bool {
        let done = self.done.load(Ordering::Acquire);
        self.begun.load(Ordering::Acquire) > done
    }
}

impl Pending {
    /// Lets the later work of `stream` wait for the operation; the caller goes on. If the operation
    /// fails, that work is left out.
    ///
    /// # Errors
    /// A stream of another device.
    pub fn then(&self, stream: &Stream) -> Result<()> {
        Ok(stream.wait_for(&self.event)?)
    }

    /// Whether the operation is done.
    ///
    /// # Errors
    /// As [`Pending::wait`].
    pub fn is_done(&self) -> Result<bool> {
        self.event.query().map_err(|error| self.explain(error))
    }

    /// Returns when the operation is done, and all that was submitted to its group before.
    ///
    /// # Errors
    /// [`CommError::Timeout`], which names the ranks that stood still for the job's timeout, this
    /// one among them if it does not get to the operation; [`CommError::PeerLost`],
    /// [`CommError::Mismatch`], [`CommError::Revoked`]; an error of the work before it. Whatever
    /// the error, the job is given up.
    pub fn wait(&self) -> Result<()> {
        let (job, members) = (self.shared.transport.job(), self.shared.transport.members());
        let call = (self.operation, self.number);
        let (mut patience, mut given_up) = (job.patience(), None);
        loop {
            let reached = self.event.wait_until(Instant::now() + patience::LOOK);
            if reached.map_err(|error| self.explain(error))? {
                return Ok(());
            }
            if let Some(error) = job.revocation().error(self.operation, self.number) {
                let since = given_up.get_or_insert_with(Instant::now);
                if since.elapsed() > LETS_GO {
                    return Err(error);
                }
            }
            if self.shared.is_running() {
                patience = job.patience();
            } else if job.is_over(members, &patience, once(members.place)) {
                let (missing, timeout_ms) = (vec![members.place], job.timeout_ms());
                let (operation, sequence) = call;
                let moved = Moved::default();
                let error = CommError::Timeout { operation, sequence, missing, timeout_ms, moved };
                return job.settle(members, call, Err(error));
            }
        }
    }

    /// What a failure on the group's stream was.
    fn explain(&self, error: DeviceError) -> CommError {
        let (job, call) = (self.shared.transport.job(), (self.operation, self.number));
        let error = match error {
            DeviceError::Host(inner) => match inner.downcast::<CommError>() {
                Ok(error) => return *error,
                Err(inner) => DeviceError::Host(inner),
            },
            error => error,
        };
        // What fails later fails because of the first.
        let first = job.revocation().error(call.0, call.1);
        first.unwrap_or_else(|| {
            let members = self.shared.transport.members();
            let settled = job.settle::<()>(members, call, Err(error.into()));
            settled.expect_err("an error stays one")
        })
    }
}
