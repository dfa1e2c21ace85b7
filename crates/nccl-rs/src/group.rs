//! Groups of calls that the library starts together.
//!
//! The library keeps an open group per thread, and its calls take part by being made in between.
//! A communicator that has done so is at its disposal until the group ends, so its lease is kept
//! until then.

use std::cell::RefCell;
use std::time::Duration;

use crate::shared::Lease;
use crate::table::{RawSimulation, Table, Told};
use crate::wait::Deadline;
use crate::{Error, Library, Version};

thread_local! {
    static OPEN: RefCell<Vec<OpenGroup>> = const { RefCell::new(Vec::new()) };
}

struct OpenGroup {
    library: Library,
    leases: Vec<Lease>,
}

/// Ends the group however its calls end, a panic among them.
struct Guard<'a> {
    library: &'a Library,
    is_open: bool,
}

impl<'a> Guard<'a> {
    fn start(library: &'a Library) -> Result<Guard<'a>, Error> {
        // SAFETY: has no arguments; what is open is this thread's own.
        library.check(unsafe { library.table().group_start() })?;
        let group = OpenGroup { library: library.clone(), leases: Vec::new() };
        OPEN.with_borrow_mut(|open| open.push(group));
        Ok(Guard { library, is_open: true })
    }

    /// Ends it, and returns the leases of what took part.
    fn end<T>(mut self, end: impl FnOnce(&Table) -> T) -> (T, Vec<Lease>) {
        self.is_open = false;
        let told = end(self.library.table());
        (told, self.leave())
    }

    /// Of a group within another, the other one keeps the leases.
    fn leave(&self) -> Vec<Lease> {
        OPEN.with_borrow_mut(|open| {
            let leases = open.pop().map_or(Vec::new(), |group| group.leases);
            match open.iter_mut().rev().find(|outer| outer.library.is_same(self.library)) {
                Some(outer) => {
                    outer.leases.extend(leases);
                    Vec::new()
                }
                None => leases,
            }
        })
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if self.is_open {
            // SAFETY: the group was started by this thread. What it tells nobody waits for.
            let Told { .. } = unsafe { self.library.table().group_end() };
            drop(self.leave());
        }
    }
}

/// Keeps a lease until the end of the thread's open group; gives it back where there is none.
pub(crate) fn keep(lease: Lease) -> Option<Lease> {
    OPEN.with_borrow_mut(|open| {
        let library = &lease.shared().library;
        match open.iter_mut().rev().find(|group| group.library.is_same(library)) {
            Some(group) => {
                group.leases.push(lease);
                None
            }
            None => Some(lease),
        }
    })
}

/// # Errors
/// The thread has an open group, whose end the call could not wait for.
pub(crate) fn refuse(library: &Library, call: &'static str) -> Result<(), Error> {
    let is_open = OPEN.with_borrow(|open| open.iter().any(|group| group.library.is_same(library)));
    match is_open {
        true => {
            let what = "it cannot be part of a group: call it before or after".to_owned();
            Err(Error::Argument { call, what })
        }
        false => Ok(()),
    }
}

impl Library {
    /// Starts the operations that `calls` makes, on any communicators of this library, together:
    /// sends and receives between the same ranks then cannot wait for each other.
    ///
    /// It waits until they are in their streams, `timeout` at most. A group within a group is a
    /// part of the outer one.
    ///
    /// # Errors
    /// Those of `calls`: [`Error::Group`] if operations were queued before. What the library says
    /// at the group's end, and the deadline.
    pub fn group<T>(
        &self,
        timeout: Duration,
        calls: impl FnOnce() -> Result<T, Error>,
    ) -> Result<T, Error> {
        let guard = Guard::start(self)?;
        let result = calls();
        let deadline = Deadline::after(timeout);
        // SAFETY: the group was started by this thread.
        let (told, leases) = guard.end(|table| unsafe { table.group_end() });
        let queued = leases.len();
        let settled = self.check_begun(told).and_then(|()| {
            let awaited = "the operations of the group were not all in their streams";
            leases.iter().try_for_each(|lease| lease.settle("ncclGroupEnd", deadline, awaited))
        });
        match result {
            Ok(value) => settled.map(|()| value),
            Err(source) if queued == 0 => Err(source),
            Err(source) => Err(Error::Group { queued, source: Box::new(source) }),
        }
    }

    /// How long the operations that `calls` makes would take, in microseconds, as the library
    /// estimates it; they are not started. From NCCL 2.22 on.
    ///
    /// # Errors
    /// The library lacks it; those of `calls`; what the library says.
    pub fn group_simulate(&self, calls: impl FnOnce() -> Result<(), Error>) -> Result<f32, Error> {
        self.table().require_function("ncclGroupSimulateEnd")?;
        let guard = Guard::start(self)?;
        let result = calls();
        let mut simulation = RawSimulation {
            size: size_of::<RawSimulation>(),
            magic: 0x7468_5283,
            version: Version::new(2, 22, 0).code(),
            estimated_us: -1.0,
        };
        // SAFETY: the group was started by this thread; the struct is the header's, and is written.
        let end = |table: &Table| unsafe { table.group_simulate_end(&raw mut simulation) };
        let (told, _leases) = guard.end(end);
        self.check(told?)?;
        result.map(|()| simulation.estimated_us)
    }
}
