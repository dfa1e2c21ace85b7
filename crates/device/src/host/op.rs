//! The operations of a stream of a host device.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use super::job::{HostJob, caught};
use crate::memory::Mapping;
use crate::sync::OnceLock;
use crate::{Device, DeviceError, Kernel, Tensor};

/// A kernel that waits for its turn, in a seat.
pub(crate) trait Waiting: Any + Send {
    /// Runs the kernel and leaves the seat empty.
    fn run(&mut self, k: &Kernel) -> Result<(), DeviceError>;
}

/// The memory of a kernel of one type.
struct Seat<F>(Option<F>);

impl<F> Waiting for Seat<F>
where
    F: FnOnce(&Kernel) -> Result<(), DeviceError> + Send + 'static,
{
    fn run(&mut self, k: &Kernel) -> Result<(), DeviceError> {
        self.0.take().map_or(Ok(()), |kernel| kernel(k))
    }
}

/// Empty seats by their types, so that what waits in every step allocates in the first one: as
/// many as ever waited at a time.
#[derive(Default)]
pub(super) struct Seats(HashMap<TypeId, Vec<Box<dyn Waiting>>>);

impl Seats {
    /// Seats `kernel`.
    pub(super) fn take<F>(&mut self, kernel: F) -> Box<dyn Waiting>
    where
        F: FnOnce(&Kernel) -> Result<(), DeviceError> + Send + 'static,
    {
        let kind = TypeId::of::<Seat<F>>();
        let free = self.0.get_mut(&kind).and_then(Vec::pop);
        let mut seat = free.unwrap_or_else(|| Box::new(Seat::<F>(None)));
        if let Some(Seat(place)) = (&mut *seat as &mut dyn Any).downcast_mut::<Seat<F>>() {
            *place = Some(kernel);
        }
        seat
    }

    /// Takes an empty seat back.
    pub(super) fn give_back(&mut self, seat: Box<dyn Waiting>) {
        let kind = (&*seat as &dyn Any).type_id();
        self.0.entry(kind).or_default().push(seat);
    }
}

pub(crate) enum Op {
    Kernel { device: Device, name: &'static str, kernel: Box<dyn Waiting> },
    CopyIn { to: Tensor, from: Arc<Mapping> },
    CopyOut { to: Arc<Mapping>, from: Tensor },
    Host(HostJob),
    Record(Arc<Stamp>),
    Wait { source: usize, stamp: Arc<Stamp> },
}

/// How an event was reached.
#[derive(Clone)]
pub(crate) struct Outcome {
    pub(crate) at: Instant,
    /// The failure of work before it that had not been told by then.
    pub(crate) lost: Option<Arc<str>>,
}

/// An event that is recorded behind other work.
#[derive(Default)]
pub(crate) struct Stamp(pub(crate) OnceLock<Outcome>);

impl Op {
    /// Runs what is not an event; a kernel leaves its seat.
    pub(super) fn run(self) -> (Result<(), DeviceError>, Option<Box<dyn Waiting>>) {
        match self {
            Op::Kernel { device, name, mut kernel } => {
                let run = || Kernel::run(name, &device, |k| kernel.run(k));
                (caught(name, run), Some(kernel))
            }
            other => (other.run_once(), None),
        }
    }

    fn run_once(self) -> Result<(), DeviceError> {
        match self {
            Op::CopyIn { to, from } => {
                let device = to.buffer.device();
                Kernel::run("copy_in_async", device, |k| {
                    // SAFETY: the lengths were compared, and whoever enqueued the copy vouches
                    // that nothing writes to `from` meanwhile.
                    let bytes =
                        unsafe { std::slice::from_raw_parts(from.start().as_ptr(), to.len()) };
                    k.write::<u8>(&to)?.copy_from_slice(bytes);
                    Ok(())
                })
            }
            Op::CopyOut { to, from } => {
                let device = from.buffer.device();
                Kernel::run("copy_out_async", device, |k| {
                    let from = k.read::<u8>(&from)?;
                    // SAFETY: the lengths were compared, and whoever enqueued the copy vouches
                    // that nothing touches `to` meanwhile.
                    unsafe {
                        from.as_ptr().copy_to_nonoverlapping(to.start().as_ptr(), from.len())
                    };
                    Ok(())
                })
            }
            Op::Host(job) => job.run(),
            Op::Kernel { .. } | Op::Record(_) | Op::Wait { .. } => Ok(()),
        }
    }
}
