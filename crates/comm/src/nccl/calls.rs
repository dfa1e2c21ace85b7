//! The calls of the library: the one place here that hands it addresses.

use device::{DType, DeviceError, Stream, Tensor};
use nccl_rs::{Buffer, Communicator, DataType};

use crate::{RedOp, Result};

type Told<T> = std::result::Result<T, nccl_rs::Error>;

/// One operation of the library, on memory of the group's device.
pub(super) enum Move {
    Send {
        from: Tensor,
        peer: usize,
    },
    Receive {
        to: Tensor,
        peer: usize,
    },
    /// The root's bytes, to all others; in place.
    Broadcast {
        bytes: Tensor,
        root: usize,
    },
    /// This member's part of `all`, at its place there.
    AllGather {
        own: Tensor,
        all: Tensor,
    },
    /// Out of place, or in place where both are the same.
    AllReduce {
        from: Tensor,
        to: Tensor,
        redop: RedOp,
    },
    ReduceScatter {
        from: Tensor,
        to: Tensor,
        redop: RedOp,
    },
    /// `to` is the root's alone.
    Reduce {
        from: Tensor,
        to: Option<Tensor>,
        root: usize,
        redop: RedOp,
    },
}

impl Move {
    fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        let (one, other) = match self {
            Move::Send { from: one, .. }
            | Move::Receive { to: one, .. }
            | Move::Broadcast { bytes: one, .. } => (one, None),
            Move::AllGather { own: one, all: other }
            | Move::AllReduce { from: one, to: other, .. }
            | Move::ReduceScatter { from: one, to: other, .. } => (one, Some(other)),
            Move::Reduce { from, to, .. } => (from, to.as_ref()),
        };
        std::iter::once(one).chain(other)
    }

    /// # Errors
    /// Memory of another device than that of `stream`.
    pub(super) fn check(&self, stream: &Stream) -> Result<()> {
        let is_here = |tensor: &Tensor| tensor.buffer().device().is_same(stream.device());
        match self.tensors().all(is_here) {
            true => Ok(()),
            false => Err(DeviceError::Foreign { kernel: "a collective" }.into()),
        }
    }
}

/// Runs `call` with the device of `stream` current in this thread, for a library of its vendor.
///
/// # Errors
/// The device's; inside are those of `call`.
pub(super) fn with_device<T>(
    stream: &Stream,
    call: impl FnOnce(nccl_rs::Stream) -> Told<T>,
) -> Result<Told<T>> {
    // SAFETY: what is enqueued here goes on this stream alone (`enqueue`). A buffer that a plan
    // names is kept by the plan until it is enqueued, and a free of device memory waits for the
    // work of all streams, or leaves the memory to the end of the process.
    let told = unsafe { stream.foreign(|own| Ok(call(nccl_rs::Stream(own.stream as u64)))) };
    Ok(told?)
}

/// Enqueues operations that begin together.
///
/// # Errors
/// As [`with_device`].
pub(super) fn enqueue(comm: &Communicator, stream: &Stream, moves: &[Move]) -> Result<Told<()>> {
    for step in moves {
        step.check(stream)?;
    }
    with_device(stream, |own| match moves {
        // SAFETY: as in `with_device`; the memory is that of the stream's device.
        [one] => unsafe { perform(comm, own, one) },
        many => comm.library().group(comm.timeout(), || {
            // SAFETY: as above.
            many.iter().try_for_each(|step| unsafe { perform(comm, own, step) })
        }),
    })
}

/// # Safety
/// The tensors are memory of the communicator's device, and stay until the stream is done.
unsafe fn perform(comm: &Communicator, stream: nccl_rs::Stream, step: &Move) -> Told<()> {
    // SAFETY: the caller's, for all of the calls.
    unsafe {
        match step {
            Move::Send { from, peer } => comm.send(bytes(from), *peer as u32, stream),
            Move::Receive { to, peer } => comm.recv(bytes(to), *peer as u32, stream),
            Move::Broadcast { bytes: all, root } => {
                comm.broadcast(Some(bytes(all)), bytes(all), *root as u32, stream)
            }
            Move::AllGather { own, all } => comm.all_gather(bytes(own), bytes(all), stream),
            Move::AllReduce { from, to, redop } => {
                comm.all_reduce(elements(from), elements(to), named(*redop), stream)
            }
            Move::ReduceScatter { from, to, redop } => {
                comm.reduce_scatter(elements(from), elements(to), named(*redop), stream)
            }
            Move::Reduce { from, to, root, redop } => {
                let to = to.as_ref().map(elements);
                comm.reduce(elements(from), to, named(*redop), *root as u32, stream)
            }
        }
    }
}

/// The bytes of a tensor that is only moved, without its type.
fn bytes(tensor: &Tensor) -> Buffer {
    Buffer::new(tensor.address(), tensor.bytes(), DataType::U8)
}

fn elements(tensor: &Tensor) -> Buffer {
    match summed(tensor.dtype()) {
        Some(dtype) => Buffer::new(tensor.address(), tensor.len(), dtype),
        // Plans have no others; the library would say which type it is.
        None => bytes(tensor),
    }
}

/// The library's name of a type that it reduces.
pub(super) fn summed(dtype: DType) -> Option<DataType> {
    match dtype {
        DType::F32 => Some(DataType::F32),
        DType::F64 => Some(DataType::F64),
        DType::Bf16 => Some(DataType::Bf16),
        DType::F16 => Some(DataType::F16),
        DType::I32 => Some(DataType::I32),
        DType::I64 => Some(DataType::I64),
        DType::U8 => Some(DataType::U8),
        _ => None,
    }
}

/// The library's name of a reduction.
fn named(redop: RedOp) -> nccl_rs::RedOp<'static> {
    match redop {
        RedOp::Sum => nccl_rs::RedOp::Sum,
        RedOp::Prod => nccl_rs::RedOp::Prod,
        RedOp::Min => nccl_rs::RedOp::Min,
        RedOp::Max => nccl_rs::RedOp::Max,
        RedOp::Avg => nccl_rs::RedOp::Avg,
    }
}
