//! Groups of devices whose memory the host cannot reach: bytes go through memory of the host, where
//! a transport moves and sums them.
//!
//! ```text
//! device memory ──out──▶ mirror ──transport (shm, tcp)──▶ mirror ──back──▶ device memory
//! ```
//!
//! A window has a mirror on the host, of the same size; other tensors get one when an operation is
//! prepared. So the transports know nothing of devices, and a result has the bits of the host's. All
//! copies run on a stream of their own, from the group's thread, which may wait for them.

use std::ops::Range;

use device::{DType, Device, Placement, Stream, Tensor};

use crate::memory::bytes_of;
use crate::op::{AllToAll, Gather, Op, OrderedReduce, P2p};
use crate::{CommError, Result, Window};

/// What a group on such a device has.
pub(crate) struct Staging {
    pub host: Device,
    copies: Stream,
}

/// An operation on mirrors, and what has to be copied before and after it.
pub(crate) struct Staged {
    pub op: Op,
    pub out: Vec<Pair>,
    pub back: Vec<Pair>,
}

/// The same bytes on the device and on the host.
#[derive(Clone)]
pub(crate) struct Pair {
    device: Tensor,
    host: Tensor,
}

impl Staging {
    /// None for a device whose memory is the host's.
    ///
    /// # Errors
    /// The device or the host refuses.
    pub(crate) fn of(device: &Device) -> Result<Option<Staging>> {
        if device.kind().is_host() {
            return Ok(None);
        }
        let (host, copies) = (Device::cpu(device.threads())?, device.new_stream()?);
        Ok(Some(Staging { host, copies }))
    }

    /// A window on the device with `host` as its mirror.
    ///
    /// # Errors
    /// Memory.
    pub(crate) fn window(&self, device: &Device, host: Window) -> Result<Window> {
        let mine = device.alloc(host.bytes(), &Placement::Private)?;
        Ok(host.on_device(mine))
    }

    /// Copies from the device; returns when that is done.
    ///
    /// # Errors
    /// The device's.
    pub(crate) fn bring(&self, pairs: &[Pair]) -> Result<()> {
        for Pair { device, host } in pairs {
            self.host
                .with_memory("bring", |k| self.copies.copy_out(device, k.write::<u8>(host)?))?;
        }
        Ok(())
    }

    /// Copies to the device; returns when that is done.
    ///
    /// # Errors
    /// The device's.
    pub(crate) fn take_back(&self, pairs: &[Pair]) -> Result<()> {
        for Pair { device, host } in pairs {
            self.host
                .with_memory("take_back", |k| self.copies.copy_in(device, k.read::<u8>(host)?))?;
        }
        Ok(self.copies.synchronize()?)
    }

    /// The operation on mirrors.
    ///
    /// # Errors
    /// A window of another group; memory; ranges out of bounds.
    pub(crate) fn stage(&self, op: Op) -> Result<Staged> {
        match op {
            Op::Barrier => Ok(Staged { op, out: Vec::new(), back: Vec::new() }),
            Op::ReduceScatterOrdered(op) => self.reduce(op),
            Op::AllGatherSegments(op) => {
                let size = op.element_bytes;
                let all = hull(op.segments.iter().flatten());
                let pair = pair(&op.window, all.start * size..all.end * size)?;
                let window = mirror(&op.window)?.clone();
                both(Op::AllGatherSegments(Gather { window, ..op }), pair)
            }
            Op::AllReduce { window, plan } => {
                let pair = pair(&window, plan.bytes())?;
                both(Op::AllReduce { window: mirror(&window)?.clone(), plan }, pair)
            }
            Op::ReduceScatter { window, plan, out } => {
                let partials = pair(&window, plan.bytes())?;
                let (host, sums) = self.output(std::slice::from_ref(&window), &out)?;
                let window = mirror(&window)?.clone();
                let op = Op::ReduceScatter { window, plan, out: host };
                Ok(Staged { op, out: vec![partials, sums.clone()], back: vec![sums] })
            }
            Op::AllGather { window, plan } => {
                let pair = pair(&window, plan.bytes())?;
                both(Op::AllGather { window: mirror(&window)?.clone(), plan }, pair)
            }
            Op::Broadcast { window, root, element_bytes, range } => {
                let pair = pair(&window, range.start * element_bytes..range.end * element_bytes)?;
                let window = mirror(&window)?.clone();
                both(Op::Broadcast { window, root, element_bytes, range }, pair)
            }
            Op::AllToAll(op) => {
                let size = op.into.dtype().bytes();
                let sent = hull(op.send.iter());
                let from = pair(&op.from, sent.start * size..sent.end * size)?;
                let (into, received) = self.twin(&op.into)?;
                let op = AllToAll { from: mirror(&op.from)?.clone(), into, ..op };
                Ok(Staged {
                    op: Op::AllToAll(op),
                    out: vec![from, received.clone()],
                    back: vec![received],
                })
            }
            Op::Exchange(messages) => self.exchange(messages),
        }
    }

    fn reduce(&self, op: OrderedReduce) -> Result<Staged> {
        let size = op.out.dtype().bytes();
        let bucket = op.range.start * size..op.range.end * size;
        let slots = op.slots.iter();
        let mut out = slots.map(|slot| pair(slot, bucket.clone())).collect::<Result<Vec<_>>>()?;
        let (host, _) = self.output(&op.slots, &op.out)?;
        let sums = Pair {
            device: bytes_of(&op.out)?.flat(bucket.clone())?,
            host: bytes_of(&host)?.flat(bucket)?,
        };
        out.push(sums.clone());
        let slots = op.slots.iter().map(|slot| mirror(slot).cloned()).collect::<Result<_>>()?;
        let op = Op::ReduceScatterOrdered(OrderedReduce { slots, out: host, ..op });
        Ok(Staged { op, out, back: vec![sums] })
    }

    fn exchange(&self, messages: Vec<P2p>) -> Result<Staged> {
        let (mut out, mut back) = (Vec::new(), Vec::new());
        let messages = messages.into_iter().map(|message| {
            let (host, pair) = self.twin(message.tensor())?;
            Ok(match message {
                P2p::Send { to, .. } => {
                    out.push(pair);
                    P2p::Send { to, tensor: host }
                }
                P2p::Receive { from, .. } => {
                    back.push(pair);
                    P2p::Receive { from, tensor: host }
                }
            })
        });
        let messages = messages.collect::<Result<_>>()?;
        Ok(Staged { op: Op::Exchange(messages), out, back })
    }

    /// Where sums go on the host: the mirror of the window that `out` is the memory of, or memory of
    /// its own.
    fn output(&self, windows: &[Window], out: &Tensor) -> Result<(Tensor, Pair)> {
        let is_it = |window: &&Window| window.buffer().address() == out.address();
        match windows.iter().find(is_it) {
            None => self.twin(out),
            Some(window) => {
                let host = mirror(window)?.tensor(0, &[out.len()], out.dtype())?;
                let pair = Pair { device: bytes_of(out)?, host: bytes_of(&host)? };
                Ok((host, pair))
            }
        }
    }

    /// A tensor like `tensor` on the host.
    fn twin(&self, tensor: &Tensor) -> Result<(Tensor, Pair)> {
        let host = self.host.zeros(&[tensor.len()], tensor.dtype())?;
        let pair = Pair { device: bytes_of(tensor)?, host: bytes_of(&host)? };
        Ok((host, pair))
    }
}

fn mirror(window: &Window) -> Result<&Window> {
    window.mirror().ok_or(CommError::ForeignWindow)
}

/// Bytes `range` of a window.
fn pair(window: &Window, range: Range<usize>) -> Result<Pair> {
    let view = |window: &Window| window.tensor(range.start, &[range.len()], DType::U8);
    Ok(Pair { device: view(window)?, host: view(mirror(window)?)? })
}

/// An operation that changes what it reads.
fn both(op: Op, pair: Pair) -> Result<Staged> {
    Ok(Staged { op, out: vec![pair.clone()], back: vec![pair] })
}

/// The smallest range that holds all of them.
fn hull<'a>(ranges: impl Iterator<Item = &'a Range<usize>> + Clone) -> Range<usize> {
    let filled = ranges.filter(|range| !range.is_empty());
    let start = filled.clone().map(|range| range.start).min().unwrap_or(0);
    start..filled.map(|range| range.end).max().unwrap_or(0).max(start)
}
