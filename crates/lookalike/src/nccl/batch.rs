//! Operations that begin together: one call, or those of a group, of one communicator in one
//! stream.

use std::sync::Arc;

use super::call::Call;
use super::comm::{Comm, die};
use super::faults::Fault;
use super::frame::Frame;
use super::result;

/// A call with the memory that it reads and writes.
#[derive(Clone)]
pub(crate) struct Prepared {
    /// Without its elements, which are read when it is run.
    pub(crate) call: Call,
    /// Address and bytes; no bytes where this rank does not read, or write.
    pub(crate) from: (u64, u64),
    pub(crate) to: (u64, u64),
}

pub(crate) struct Batch {
    pub(crate) comm: Arc<Comm>,
    calls: Vec<Prepared>,
    /// Memory that it reads and writes: address, bytes, whether it writes.
    touches: Vec<(u64, u64, bool)>,
}

impl Batch {
    pub(crate) fn new(comm: Arc<Comm>, calls: Vec<Prepared>) -> Batch {
        let of =
            |call: &Prepared| [(call.from.0, call.from.1, false), (call.to.0, call.to.1, true)];
        let touches = calls.iter().flat_map(of).filter(|(_, bytes, _)| *bytes > 0).collect();
        Batch { comm, calls, touches }
    }

    pub(crate) fn name(&self) -> &'static str {
        self.calls.first().map_or("ncclGroupEnd", |first| first.call.kind.name())
    }

    pub(crate) fn touches(&self) -> &[(u64, u64, bool)] {
        &self.touches
    }

    /// Runs it, when its stream has come to it, and comes back when it is over or given up.
    ///
    /// # Safety
    /// The memory of its calls is allocated until then.
    pub(crate) unsafe fn run(&self, number: u64) {
        let comm = &self.comm;
        let operation = comm.change(|state| {
            state.running += 1;
            state.operations += self.calls.len() as u64;
            state.operations - self.calls.len() as u64 + 1..state.operations + 1
        });
        let has = |fault| operation.clone().any(|number| comm.fault(fault) == Some(number));
        if has(Fault::Dies) {
            die();
        }
        if has(Fault::Error) {
            comm.fail(result::SYSTEM, "an error on purpose".to_owned());
        }
        if has(Fault::Hangs) || has(Fault::Error) {
            comm.hang(number);
        } else {
            // SAFETY: the caller's.
            unsafe { self.exchange(number) };
        }
        comm.change(|state| {
            state.running -= 1;
            state.outstanding -= 1;
        });
    }

    /// # Safety
    /// As of `run`.
    unsafe fn exchange(&self, number: u64) {
        // SAFETY: the caller's.
        let calls = self.calls.iter().map(|call| unsafe { call.taken() }).collect();
        let Some(results) = self.comm.exchange(number, &Frame::Batch { number, calls }) else {
            return;
        };
        for (call, result) in self.calls.iter().zip(results) {
            let (to, bytes) = call.to;
            assert_eq!(bytes, result.len() as u64, "the hub answers with what was asked for");
            if bytes > 0 {
                // SAFETY: the caller's.
                unsafe { (to as *mut u8).copy_from_nonoverlapping(result.as_ptr(), result.len()) };
            }
        }
    }
}

impl Prepared {
    /// The call with the elements that it reads.
    ///
    /// # Safety
    /// They are there.
    unsafe fn taken(&self) -> Call {
        let (from, bytes) = self.from;
        let mut data = Vec::new();
        if bytes > 0 {
            // SAFETY: the caller's.
            data.extend(unsafe { std::slice::from_raw_parts(from as *const u8, bytes as usize) });
        }
        Call { data, ..self.call.clone() }
    }
}
