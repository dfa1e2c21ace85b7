//! Communicators made of others.

use std::ffi::c_int;
use std::sync::atomic::{AtomicPtr, Ordering};

use crate::config::{RawConfig, Sent};
use crate::error::Seat;
use crate::shared::{Need, Progress, Shared};
use crate::table::{Handle, Told};
use crate::wait::Deadline;
use crate::{Communicator, Config, Error, group};

/// The end of the parent's operations when it is shrunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shrink {
    /// There are none, and it is sound.
    Idle,
    /// They are ended first: a rank was lost.
    Abort,
}

/// Where the library puts a child, in the background and some time after the call.
struct Place {
    handle: AtomicPtr<std::ffi::c_void>,
    config: Sent,
}

impl Communicator {
    /// Ranks that name the same color come together in a new communicator, in the order of their
    /// keys and then of their ranks; one without a color stays out. All ranks call it.
    ///
    /// # Errors
    /// The communicator has failed or is over; what the library says; the deadline.
    pub fn split(
        &self,
        color: Option<u32>,
        key: i32,
        config: &Config,
    ) -> Result<Option<Communicator>, Error> {
        const NO_COLOR: c_int = -1;
        let call = "ncclCommSplit";
        let color = color.map_or(Ok(NO_COLOR), c_int::try_from).map_err(|_| {
            let what = format!("the color is above {}", c_int::MAX);
            Error::Argument { call, what }
        })?;
        let table = self.library().table();
        self.child(call, config, color != NO_COLOR, |comm, place, config| {
            // SAFETY: the lease keeps the communicator; place and config stay until the call is
            // over in the background.
            Ok(unsafe { table.split(comm, color, key, place, config) })
        })
    }

    /// A new communicator without the ranks `exclude`; the others keep their order. All the others
    /// call it, with the same ranks. From NCCL 2.27 on.
    ///
    /// # Errors
    /// As [`Communicator::split`]; the library lacks it; ranks that are not, or this one.
    pub fn shrink(
        &self,
        exclude: &[u32],
        parent: Shrink,
        config: &Config,
    ) -> Result<Communicator, Error> {
        let (call, ranks) = ("ncclCommShrink", self.ranks());
        let table = self.library().table();
        table.require_function(call)?;
        let mut excluded: Vec<c_int> = Vec::with_capacity(exclude.len());
        for &rank in exclude {
            excluded.push(crate::communicator::within("an excluded rank", rank, ranks)?.0);
        }
        excluded.sort_unstable();
        excluded.dedup();
        if exclude.is_empty() || exclude.contains(&self.rank()) {
            let what = format!("{exclude:?} must name other ranks than this one, at least one");
            return Err(Error::Argument { call, what });
        }
        let flags = match parent {
            Shrink::Idle => 0,
            Shrink::Abort => 1,
        };
        let count = excluded.len() as c_int;
        let child = self.child(call, config, true, |comm, place, config| {
            // SAFETY: as in `split`; the list is read in the call.
            unsafe { table.shrink(comm, excluded.as_mut_ptr(), count, place, config, flags) }
        })?;
        child.ok_or_else(|| {
            let what = "the library made no communicator, and told no error".to_owned();
            Error::Argument { call, what }
        })
    }

    fn child(
        &self,
        call: &'static str,
        config: &Config,
        is_expected: bool,
        begin: impl FnOnce(Handle, *mut Handle, *mut RawConfig) -> Result<Told, Error>,
    ) -> Result<Option<Communicator>, Error> {
        let library = self.library();
        group::refuse(library, call)?;
        let deadline = Deadline::after(config.timeout);
        let timeout = config.timeout;
        let config = config.to_raw(library.vendor(), library.version())?;
        let lease = self.shared.enter(call, Need::Manage, deadline)?;
        // An error that the parent has is why it is shrunk.
        let had_failed = matches!(lease.progress(call), Err(Error::Async { .. }));
        let handle = AtomicPtr::new(std::ptr::null_mut());
        let place = Box::into_raw(Box::new(Place { handle, config }));
        // SAFETY: just made. `Handle` is a pointer and nothing else.
        let (to, raw) = unsafe { ((*place).handle.as_ptr().cast(), &raw mut (*place).config.raw) };
        let told = begin(lease.handle(), to, raw)?;
        // From here on the place is the library's, until it says that it is done; where it never
        // does, the place is left to it.
        library.check_begun(told)?;
        loop {
            // SAFETY: never freed before.
            let is_there = !unsafe { (*place).handle.load(Ordering::Acquire) }.is_null();
            match lease.progress(call) {
                Ok(Progress::Done) if is_there || !is_expected => break,
                Err(Error::Async { .. }) if had_failed && is_there => break,
                Err(Error::Async { .. }) if had_failed => {}
                Err(error) => return Err(error),
                Ok(_) => {}
            }
            if deadline.is_over() {
                return Err(self.shared.late(call, deadline, "not all ranks have come"));
            }
            deadline.pause();
        }
        drop(lease);
        // SAFETY: made above, and the library is done with it.
        let place = unsafe { Box::from_raw(place) };
        let handle = Handle(place.handle.load(Ordering::Acquire));
        if handle.is_null() {
            return Ok(None);
        }
        let config = Box::new(place.config);
        let child = Shared::new(library, self.shared.seat(), handle, config, timeout);
        self.adopt(call, Communicator { shared: child }, deadline).map(Some)
    }

    /// A child that is there, made ready. A drop before aborts it.
    fn adopt(
        &self,
        call: &'static str,
        child: Communicator,
        deadline: Deadline,
    ) -> Result<Communicator, Error> {
        let (library, table) = (self.library(), self.library().table());
        let lease = child.shared.enter(call, Need::Manage, deadline)?;
        lease.settle(call, deadline, "not all ranks have come")?;
        let (mut rank, mut ranks) = (0, 0);
        // SAFETY: the lease keeps the communicator; `rank` is written.
        library.check(unsafe { table.user_rank(lease.handle(), &raw mut rank) })?;
        // SAFETY: as above, of `ranks`.
        library.check(unsafe { table.count(lease.handle(), &raw mut ranks) })?;
        drop(lease);
        child.shared.set_seat(Seat { rank: rank.unsigned_abs(), ranks: ranks.unsigned_abs() });
        Ok(child)
    }
}
