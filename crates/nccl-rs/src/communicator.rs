//! Communicators: how they begin, what they say of themselves, how they end.

use std::ffi::c_int;
use std::sync::Arc;
use std::time::Duration;

use crate::error::Seat;
use crate::shared::{Need, Progress, Shared};
use crate::table::{Handle, Told};
use crate::wait::{DROP_PATIENCE, Deadline};
use crate::{Config, Error, JobId, Library, UniqueId, group};

/// A rank's end of a communicator: the ranks that do operations together.
///
/// Any thread may use it; calls that enqueue wait for each other, and all calls come back within
/// its timeout. The GPU is the one that was current in the thread that made it. A communicator
/// that is dropped alive is aborted; end it with [`Communicator::finalize`].
///
/// ```no_run
/// use nccl_rs::{Buffer, Communicator, Config, DataType, JobId, Library, RedOp, Stream, Vendor};
///
/// # fn of_rank_0(_: Option<[u8; 168]>) -> [u8; 168] { [0; 168] }
/// # let (rank, ranks, address, stream, job) = (0, 4, 0, 0, JobId([7; 16]));
/// let library = Library::open(Vendor::Nvidia)?;
/// // Rank 0 makes the id, and sends it to the others.
/// let made = (rank == 0).then(|| library.unique_id(job)).transpose()?;
/// let id = nccl_rs::UniqueId::from_bytes(&of_rank_0(made.map(|id| id.to_bytes())))?;
/// let comm = Communicator::init_rank(&library, &id, job, rank, ranks, &Config::default())?;
/// let gradients = Buffer::new(address, 1 << 20, DataType::F32);
/// // SAFETY: the buffer lies in this GPU's memory, and is kept until the stream is done with it.
/// unsafe { comm.all_reduce(gradients, gradients, RedOp::Sum, Stream(stream)) }?;
/// // Wait for the stream, and ask `comm.async_error()` meanwhile.
/// comm.finalize()?;
/// # Ok::<(), nccl_rs::Error>(())
/// ```
pub struct Communicator {
    pub(crate) shared: Arc<Shared>,
}

impl Communicator {
    /// Becomes rank `rank` of `ranks`, and waits until all have come, `config.timeout` at most.
    ///
    /// # Errors
    /// An id of another job, vendor or version; a rank out of range; a field of the config that
    /// the library does not have; what the library says; the deadline.
    pub fn init_rank(
        library: &Library,
        id: &UniqueId,
        job: JobId,
        rank: u32,
        ranks: u32,
        config: &Config,
    ) -> Result<Communicator, Error> {
        let call = "ncclCommInitRankConfig";
        let (of_rank, of_ranks) = within("the rank", rank, ranks)?;
        id.check(library.vendor(), library.version(), job)?;
        group::refuse(library, call)?;
        let deadline = Deadline::after(config.timeout);
        let mut sent = Box::new(config.to_raw(library.vendor(), library.version())?);
        // The library may write the handle once more when it is done in the background.
        let place = Box::into_raw(Box::new(Handle::NULL));
        let raw = &raw mut sent.raw;
        // SAFETY: the handle is written, to a place that stays; the config is the header's struct,
        // and is kept with the communicator.
        let told = unsafe { library.table().init_rank(place, of_ranks, id.raw, of_rank, raw) };
        // SAFETY: a non-blocking call has written the handle before it returns.
        let handle = unsafe { place.read() };
        let begun = library.check_begun(told);
        if begun.is_err() && handle.is_null() {
            // SAFETY: nothing goes on in the background; made above.
            drop(unsafe { Box::from_raw(place) });
        }
        begun?;
        let shared = Shared::new(library, Seat { rank, ranks }, handle, sent, config.timeout);
        // From here on a drop aborts it.
        let comm = Communicator { shared };
        let lease = comm.shared.enter(call, Need::Manage, deadline)?;
        lease.settle(call, deadline, "not all ranks have come")?;
        // SAFETY: the library is done with it; made above.
        drop(unsafe { Box::from_raw(place) });
        drop(lease);
        Ok(comm)
    }

    pub fn rank(&self) -> u32 {
        self.shared.seat().rank
    }

    pub fn ranks(&self) -> u32 {
        self.shared.seat().ranks
    }

    pub fn library(&self) -> &Library {
        &self.shared.library
    }

    /// Longest wait of a call.
    pub fn timeout(&self) -> Duration {
        self.shared.timeout()
    }

    pub fn set_timeout(&self, timeout: Duration) {
        self.shared.set_timeout(timeout);
    }

    /// The progress of the operations so far. Ask while a stream is waited for: a peer that fails
    /// leaves the operations of the others hanging there, and is told here.
    ///
    /// # Errors
    /// The communicator has failed, or is over. Abort it, or revoke and shrink it.
    pub fn async_error(&self) -> Result<Progress, Error> {
        let call = "ncclCommGetAsyncError";
        let lease = self.shared.enter(call, Need::Look, Deadline::after(self.timeout()))?;
        lease.progress(call)
    }

    /// Ends the communicator at once, from any thread. Operations in streams end, with whatever
    /// they have done by then; waits of other threads return [`Error::Ended`]. A second one does
    /// nothing.
    ///
    /// # Errors
    /// [`Error::Deadline`]: the library did not come back within the timeout. The communicator is
    /// over all the same, and freed when it does.
    pub fn abort(&self) -> Result<(), Error> {
        self.shared.abort(Deadline::after(self.timeout()))
    }

    /// Stops the operations in flight, of this rank, and all later ones; what remains is to make a
    /// smaller communicator of it ([`Communicator::shrink`]), and to abort it. From NCCL 2.28.7 on.
    ///
    /// # Errors
    /// The library lacks it, or fails; the deadline.
    pub fn revoke(&self) -> Result<(), Error> {
        let (call, deadline) = ("ncclCommRevoke", Deadline::after(self.timeout()));
        group::refuse(self.library(), call)?;
        let table = self.library().table();
        table.require_function(call)?;
        self.shared.mark_revoked(call)?;
        let lease = self.shared.enter(call, Need::Manage, deadline)?;
        // SAFETY: the lease keeps the communicator.
        let told = unsafe { table.revoke(lease.handle(), 0) }?;
        self.library().check_begun(told)?;
        loop {
            match lease.progress(call) {
                Ok(Progress::Done) => return Ok(()),
                // The error that the communicator is revoked for may stay with it.
                Err(Error::Async { .. }) => return Ok(()),
                Err(error) => return Err(error),
                Ok(Progress::InProgress) if deadline.is_over() => {
                    return Err(self.shared.late(call, deadline, "operations are still in flight"));
                }
                Ok(Progress::InProgress) => deadline.pause(),
            }
        }
    }

    /// Waits until all operations of all ranks are over, and ends the communicator. All ranks call
    /// it.
    ///
    /// # Errors
    /// The communicator has failed or is over; the deadline. It is still to be aborted then.
    pub fn finalize(&self) -> Result<(), Error> {
        self.finalize_while(|| true)
    }

    /// As [`Communicator::finalize`], as long as `goes_on`: others may know that no rank that is
    /// missing will come.
    ///
    /// # Errors
    /// As [`Communicator::finalize`]; [`Error::Deadline`], with the time until then, when it does
    /// not go on.
    pub fn finalize_while(&self, goes_on: impl Fn() -> bool) -> Result<(), Error> {
        let (call, deadline) = ("ncclCommFinalize", Deadline::after(self.timeout()));
        group::refuse(self.library(), call)?;
        let lease = self.shared.enter(call, Need::Operation, deadline)?;
        // SAFETY: the lease keeps the communicator.
        let told = unsafe { self.library().table().finalize(lease.handle()) };
        self.library().check_begun(told)?;
        let awaited = "operations are still in flight, or a rank has not come";
        lease.settle_while(call, deadline, awaited, goes_on)?;
        self.shared.destroy(lease, deadline)
    }

    /// A call that puts work into a stream: waits until it is there, or, in a group, leaves the
    /// wait to the group's end.
    pub(crate) fn enqueue(
        &self,
        call: &'static str,
        begin: impl FnOnce(Handle) -> Result<Told, Error>,
    ) -> Result<(), Error> {
        let deadline = Deadline::after(self.timeout());
        let lease = self.shared.enter(call, Need::Operation, deadline)?;
        let told = begin(lease.handle())?;
        self.library().check_begun(told)?;
        match group::keep(lease) {
            None => Ok(()),
            Some(lease) => lease.settle(call, deadline, "the operation was not in its stream"),
        }
    }
}

impl std::fmt::Debug for Communicator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Communicator({}, {:?})", self.shared.seat(), self.library())
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        let patience = self.timeout().min(DROP_PATIENCE);
        // Its error has nobody to hear it.
        let _ = self.shared.abort(Deadline::after(patience));
    }
}

/// The library's integers for a rank, or a root, or a peer.
pub(crate) fn within(what: &'static str, rank: u32, ranks: u32) -> Result<(c_int, c_int), Error> {
    match (c_int::try_from(rank), c_int::try_from(ranks)) {
        (Ok(of_rank), Ok(of_ranks)) if rank < ranks => Ok((of_rank, of_ranks)),
        _ => Err(Error::Rank { what, rank, ranks }),
    }
}
