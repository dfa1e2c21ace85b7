//! Groups: what a thread calls between a start and an end begins together.

use std::cell::RefCell;
use std::sync::Arc;

use super::batch::{Batch, Prepared};
use super::comm::Comm;
use super::{Refusal, result};
use crate::op::Work;
use crate::world::{ApiCall, Needs};

thread_local! {
    static GROUP: RefCell<Group> = const { RefCell::new(Group::new()) };
}

struct Queued {
    comm: Arc<Comm>,
    stream: u64,
    call: Prepared,
}

struct Group {
    depth: u32,
    calls: Vec<Queued>,
    /// A call of it was refused: so is its end.
    failure: Option<Refusal>,
}

impl Group {
    const fn new() -> Group {
        Group { depth: 0, calls: Vec::new(), failure: None }
    }
}

/// The outcome of a call that was not refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Begun {
    Done,
    InProgress,
}

pub(crate) fn start() {
    GROUP.with_borrow_mut(|group| group.depth += 1);
}

pub(crate) fn is_open() -> bool {
    GROUP.with_borrow(|group| group.depth > 0)
}

/// Remembers why the end of an open group will be refused.
pub(crate) fn spoil(refusal: &Refusal) {
    GROUP.with_borrow_mut(|group| {
        if group.depth > 0 {
            group.failure.get_or_insert_with(|| refusal.clone());
        }
    });
}

/// Queues a call for the end of the group, or enqueues it.
pub(crate) fn add(comm: Arc<Comm>, stream: u64, call: Prepared) -> Result<Begun, Refusal> {
    let queued = Queued { comm, stream, call };
    match is_open() {
        true => {
            GROUP.with_borrow_mut(|group| group.calls.push(queued));
            Ok(Begun::Done)
        }
        false => launch(vec![queued]),
    }
}

/// The queued calls, at the end of the outermost group.
fn leave() -> Result<Option<Vec<Queued>>, Refusal> {
    GROUP.with_borrow_mut(|group| {
        group.depth = match group.depth {
            0 => return Err(Refusal::usage("the end of a group that was not started")),
            depth => depth - 1,
        };
        if group.depth > 0 {
            return Ok(None);
        }
        let calls = std::mem::take(&mut group.calls);
        group.failure.take().map_or(Ok(Some(calls)), Err)
    })
}

pub(crate) fn end() -> Result<Begun, Refusal> {
    leave()?.map_or(Ok(Begun::Done), launch)
}

/// Bytes and calls of the group, which is not launched.
pub(crate) fn simulate() -> Result<(u64, usize), Refusal> {
    let calls = leave()?.unwrap_or_default();
    let bytes = calls.iter().map(|queued| queued.call.from.1.max(queued.call.to.1)).sum();
    Ok((bytes, calls.len()))
}

/// Puts the calls into their streams, those of one communicator and stream as one.
fn launch(calls: Vec<Queued>) -> Result<Begun, Refusal> {
    let mut batches: Vec<(Arc<Comm>, u64, Vec<Prepared>)> = Vec::new();
    for Queued { comm, stream, call } in calls {
        let is_same = |(of, at, _): &&mut (Arc<Comm>, u64, Vec<Prepared>)| {
            Arc::ptr_eq(of, &comm) && *at == stream
        };
        match batches.iter_mut().find(is_same) {
            Some((.., calls)) => calls.push(call),
            None => batches.push((comm, stream, vec![call])),
        }
    }
    let mut begun = Begun::Done;
    for (comm, stream, calls) in batches {
        let (batch, polls) = (Arc::new(Batch::new(Arc::clone(&comm), calls)), polls(&comm));
        if polls == 0 || comm.is_blocking {
            enqueue(stream, batch)?;
            continue;
        }
        comm.change(|state| {
            state.held.push(Box::new(move || enqueue(stream, batch)));
            state.polls = polls;
        });
        begun = Begun::InProgress;
    }
    Ok(begun)
}

/// After how many polls operations reach their streams: by the seed, the rank and the time.
fn polls(comm: &Comm) -> u32 {
    let Ok(seed) = std::env::var("LOOKALIKE_NCCL_SEED") else { return 0 };
    let seed = seed.parse().unwrap_or(0_u64);
    let number = comm.state().next;
    let mixed = (seed ^ number << 8 ^ u64::from(comm.rank)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 60) as u32
}

fn enqueue(stream: u64, batch: Arc<Batch>) -> Result<(), Refusal> {
    let device = batch.comm.device;
    let mut call = ApiCall::of_library(batch.name(), Needs::Device)?;
    let work = Work::Operations { batch, number: 0 };
    Ok(call.on_device(device, |call| call.enqueue(stream, work))?)
}

/// A poll of a communicator: what is held may get on. It is in progress until it is in its stream,
/// also for other threads that poll meanwhile.
pub(crate) fn poll(comm: &Comm) -> Result<(), Refusal> {
    let held = comm.change(|state| {
        state.polls = state.polls.saturating_sub(1);
        let held = if state.polls == 0 { std::mem::take(&mut state.held) } else { Vec::new() };
        state.busy += u32::from(!held.is_empty());
        held
    });
    if held.is_empty() {
        return Ok(());
    }
    let enqueued = held.into_iter().try_for_each(|enqueue| enqueue());
    comm.change(|state| state.busy -= 1);
    enqueued.inspect_err(|refusal| comm.fail(result::UNHANDLED_DRIVER, refusal.text.clone()))
}
