//! Communicators made of others: splits and shrinks.
//!
//! A child is reached under a name that all its ranks derive from the parent's, and its rank 0 has
//! the hub. A split exchanges colors and keys over the parent; a shrink needs nobody who is lost.

use std::sync::Arc;

use super::call::{Call, Kind};
use super::comm::{CHILD_PREFIX, Comm, FINALIZED};
use super::frame::Frame;
use super::{Refusal, hub};

/// Where the caller wants a handle written when it is there.
pub(crate) struct Place(pub(crate) *mut u64);

// SAFETY: the caller keeps the place until the call is over in the background.
unsafe impl Send for Place {}

impl Place {
    /// # Safety
    /// The caller of the entry point still keeps the place.
    pub(crate) unsafe fn put(&self, handle: u64) {
        // SAFETY: the caller's; a handle is as aligned as a pointer.
        let place = unsafe { std::sync::atomic::AtomicU64::from_ptr(self.0) };
        place.store(handle, std::sync::atomic::Ordering::Release);
    }
}

/// Rank and size of the child, and what its name has beyond the parent's.
struct Child {
    rank: u32,
    ranks: u32,
    suffix: String,
}

pub(crate) const NO_COLOR: i32 = -1;

/// FNV-1a, so that names stay short however deep children go.
fn derived(name: &str, suffix: &str) -> String {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    let hash = name.bytes().chain(suffix.bytes()).fold(0xcbf2_9ce4_8422_2325, step);
    format!("{CHILD_PREFIX}{hash:016x}")
}

/// The child of this rank: those of its color, by key and then by rank.
fn of_split(said: &[(i32, i32)], rank: usize, count: u32) -> Option<Child> {
    let (color, _) = said[rank];
    let mut group: Vec<(i32, usize)> = said
        .iter()
        .enumerate()
        .filter(|(_, (of, _))| *of == color)
        .map(|(rank, (_, key))| (*key, rank))
        .collect();
    group.sort_unstable();
    let own = group.iter().position(|(_, of)| *of == rank)?;
    let suffix = format!("/{count}c{color}");
    (color != NO_COLOR).then_some(Child { rank: own as u32, ranks: group.len() as u32, suffix })
}

fn of_shrink(ranks: u32, excluded: &[u32], rank: u32, count: u32) -> Option<Child> {
    let rest: Vec<u32> = (0..ranks).filter(|rank| !excluded.contains(rank)).collect();
    let own = rest.iter().position(|of| *of == rank)?;
    let suffix = format!("/{count}x{rest:?}");
    Some(Child { rank: own as u32, ranks: rest.len() as u32, suffix })
}

/// Makes the child in the background and puts its handle where the caller wants it.
fn grow(
    parent: &Arc<Comm>,
    child: impl FnOnce(&Comm) -> Option<Child> + Send + 'static,
    place: Place,
    is_blocking: bool,
) {
    let parent = Arc::clone(parent);
    parent.change(|state| state.busy += 1);
    let work = move || {
        let made = child(&parent).map(|child| {
            let name = derived(&parent.name, &child.suffix);
            let comm = Comm::new(&name, child.rank, child.ranks, parent.device, is_blocking);
            if child.rank == 0
                && let Err(error) = hub::start(&name)
            {
                comm.fail(super::result::SYSTEM, error.to_string());
            }
            comm.begin();
            comm
        });
        if let Some(comm) = made {
            // The child has its own errors, once it is there.
            let _ = comm.wait_until_ready();
            // SAFETY: the parent says that it is in progress until the next line.
            unsafe { place.put(comm.handle) };
        }
        parent.change(|state| state.busy -= 1);
    };
    match is_blocking {
        true => work(),
        false => drop(std::thread::spawn(work)),
    }
}

pub(crate) fn split(comm: &Arc<Comm>, (color, key): (i32, i32), place: Place, is_blocking: bool) {
    let (rank, count) = (
        comm.rank as usize,
        comm.change(|state| {
            state.children += 1;
            state.children
        }),
    );
    let number = comm.take_number();
    let ask = move |comm: &Comm| {
        let said = [color.to_le_bytes(), key.to_le_bytes()].concat();
        let calls = vec![Call::exchange(Kind::Split, said)];
        let all = comm.exchange(number, &Frame::Batch { number, calls });
        comm.change(|state| state.outstanding -= 1);
        let all = all?.pop()?;
        let int = |bytes: &[u8]| bytes.try_into().map_or(0, i32::from_le_bytes);
        let said: Vec<(i32, i32)> =
            all.chunks_exact(8).map(|both| (int(&both[..4]), int(&both[4..]))).collect();
        of_split(&said, rank, count)
    };
    grow(comm, ask, place, is_blocking);
}

/// # Errors
/// Operations are in flight, or it has failed, and they shall not be given up.
pub(crate) fn shrink(
    comm: &Arc<Comm>,
    excluded: Vec<u32>,
    aborts: bool,
    place: Place,
    is_blocking: bool,
) -> Result<(), Refusal> {
    if aborts {
        comm.cancel();
    } else {
        let state = comm.state();
        if let Some(failure) = &state.failure {
            return Err(failure.clone());
        }
        if state.outstanding > 0 {
            return Err(Refusal::usage("a shrink without abort while operations are in flight"));
        }
    }
    let (rank, ranks) = (comm.rank, comm.ranks);
    let count = comm.change(|state| {
        state.children += 1;
        state.children
    });
    grow(comm, move |_| of_shrink(ranks, &excluded, rank, count), place, is_blocking);
    Ok(())
}

/// Waits in the background until all ranks are here and nothing is in flight.
pub(crate) fn finalize(comm: &Arc<Comm>) {
    comm.change(|state| {
        state.end = Some(FINALIZED);
        state.busy += 1;
    });
    let comm = Arc::clone(comm);
    let work = move || {
        if comm.wait_until_idle() {
            let number = comm.take_number();
            let calls = vec![Call::exchange(Kind::Finalize, Vec::new())];
            if comm.exchange(number, &Frame::Batch { number, calls }).is_some() {
                comm.say_goodbye();
            }
            comm.change(|state| state.outstanding -= 1);
        }
        comm.change(|state| state.busy -= 1);
    };
    std::thread::spawn(work);
}
