//! Memory that the library allocates, and memory that communicators are told of.

use std::sync::{Mutex, PoisonError};

use super::comm::{self, Comm};
use super::{Refusal, comm::fresh};
use crate::world::{ApiCall, Needs};

/// Alignment of what the library allocates, which a window needs.
const ALIGNMENT: usize = 4096;

/// Addresses of what was allocated and not freed.
static ALLOCATED: Mutex<Vec<u64>> = Mutex::new(Vec::new());

fn allocated<T>(with: impl FnOnce(&mut Vec<u64>) -> T) -> T {
    with(&mut ALLOCATED.lock().unwrap_or_else(PoisonError::into_inner))
}

pub(crate) fn alloc(call: &mut ApiCall, bytes: usize) -> Result<u64, Refusal> {
    let start = call.alloc_aligned(bytes, false, ALIGNMENT)?;
    allocated(|all| all.push(start));
    Ok(start)
}

pub(crate) fn free(call: &mut ApiCall, address: u64) -> Result<(), Refusal> {
    if !allocated(|all| all.contains(&address)) {
        let what = format!("{address:#x} was not allocated by ncclMemAlloc, or was freed already");
        return Err(Refusal::argument(what));
    }
    let bytes = call.memory.get(&address).map_or(0, |block| block.bytes);
    let range = address..address + bytes;
    let comms: Vec<_> = comm::all().values().cloned().collect();
    if comms.iter().any(|comm| comm.state().known.values().any(|(at, _)| range.contains(at))) {
        let what = "memory is freed that a communicator still has registered";
        return Err(Refusal::usage(what));
    }
    call.free(address, false)?;
    allocated(|all| all.retain(|start| *start != address));
    Ok(())
}

/// A registration, or a window where the memory must be `ncclMemAlloc`'s.
pub(crate) fn register(
    comm: &Comm,
    (address, bytes): (u64, u64),
    is_window: bool,
) -> Result<u64, Refusal> {
    if bytes == 0 {
        return Err(Refusal::argument("a buffer of no bytes"));
    }
    let name = if is_window { "ncclCommWindowRegister" } else { "ncclCommRegister" };
    let mut call = ApiCall::of_library(name, Needs::Device)?;
    call.on_device(comm.device, |call| call.inside(address, bytes))?;
    if is_window {
        let block = call.memory.range(..=address).next_back().map(|(start, _)| *start);
        if !block.is_some_and(|start| allocated(|all| all.contains(&start))) {
            return Err(Refusal::argument("a window of memory that is not ncclMemAlloc's"));
        }
        if !address.is_multiple_of(ALIGNMENT as u64) {
            return Err(Refusal::argument(format!("{address:#x} is not aligned to {ALIGNMENT}")));
        }
    }
    let handle = fresh();
    comm.change(|state| state.known.insert(handle, (address, bytes)));
    Ok(handle)
}

pub(crate) fn deregister(comm: &Comm, handle: u64) -> Result<(), Refusal> {
    match comm.change(|state| state.known.remove(&handle)) {
        Some(_) => Ok(()),
        None => Err(Refusal::argument(format!("{handle:#x} is not registered"))),
    }
}

/// Handles that were not let go of, for the report at exit.
pub(crate) fn held() -> [(usize, &'static str); 4] {
    let comms: Vec<_> = comm::all().values().cloned().collect();
    let sum = |of: fn(&comm::State) -> usize| comms.iter().map(|comm| of(&comm.state())).sum();
    [
        (allocated(|all| all.len()), "allocations of ncclMemAlloc"),
        (comms.len(), "communicators"),
        (sum(|state| state.known.len()), "registrations"),
        (sum(|state| state.factors.len()), "reductions"),
    ]
}
