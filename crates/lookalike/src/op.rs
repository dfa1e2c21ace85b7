//! Operations of streams, as data: a graph keeps them, the queue has them in the order of the
//! calls.

use std::ffi::c_void;
use std::sync::Arc;

use device::Grid;
use device::simulated::SimModule;

use crate::nccl::Batch;
use crate::order::Clock;

/// One operation as it was asked for.
#[derive(Clone)]
pub(crate) enum Work {
    /// Bytes that were taken when the copy was enqueued.
    Write {
        to: u64,
        from: Arc<[u8]>,
    },
    /// Copies from or to page-locked memory happen when they are run.
    FromPinned {
        to: u64,
        from: u64,
        bytes: u64,
    },
    ToPinned {
        to: u64,
        from: u64,
        bytes: u64,
    },
    Copy {
        to: u64,
        from: u64,
        bytes: u64,
    },
    Fill {
        to: u64,
        byte: u8,
        bytes: u64,
    },
    Launch {
        function: u64,
        code: Arc<SimModule>,
        index: usize,
        grid: Grid,
        args: Arc<[u8]>,
    },
    Record {
        event: u64,
        generation: u64,
    },
    /// A function and what it is given.
    Host {
        function: unsafe extern "C" fn(*mut c_void),
        data: u64,
    },
    /// Operations of several ranks, and which of its communicator's they are.
    Operations {
        batch: Arc<Batch>,
        number: u64,
    },
}

/// An operation in the queue.
pub(crate) struct Op {
    pub(crate) stream: u64,
    /// Its number among the operations of the stream, and what is known to be over before it.
    pub(crate) count: u64,
    pub(crate) clock: Clock,
    pub(crate) work: Work,
    pub(crate) name: &'static str,
}

impl Op {
    pub(crate) fn function(&self) -> Option<u64> {
        match self.work {
            Work::Launch { function, .. } => Some(function),
            _ => None,
        }
    }
}
