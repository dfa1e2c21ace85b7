//! Groups of devices whose memory the host cannot reach: bytes that move go through memory of the
//! host, where a transport takes and leaves them.
//!
//! ```text
//! device memory ──out──▶ pinned ──▶ mirror ──transport (shm, tcp)──▶ mirror ──▶ pinned ──back──▶
//! ```
//!
//! A window has a mirror on the host, of the same size; other tensors get one when an operation is
//! prepared. Only what others have not yet, or have made, is copied: of a reduction this member's
//! partials of what its peers own (by hosts, of what anybody owns), and nothing back, because sums
//! are made on the device (`elsewhere`). All copies run on a stream of their own, through two
//! pinned buffers of bounded size, from the group's thread, which may wait for them.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use device::{BounceBuffers, DType, Device, Placement, Stream, Tensor};

use crate::copies::{load, store};
use crate::hosts::{Copied, GatherByHosts};
use crate::ordered::Reduction;
use crate::primitives::{AllToAll, Gather, OrderedReduce, P2p};
use crate::step::Step;
use crate::{CommError, Result, Window};

/// Bytes that are copied at a time.
const PART: usize = 4 << 20;

/// The host side of a group on such a device.
pub(crate) struct Staging {
    pub host: Device,
    copies: Stream,
    bounce: Mutex<BounceBuffers>,
}

/// A step on mirrors, and what has to be copied before and after it.
pub(crate) struct Staged {
    pub step: Step,
    pub out: Vec<Pair>,
    pub back: Vec<Pair>,
}

impl Staged {
    /// A step on memory that the host reaches.
    pub(crate) fn of(step: Step) -> Staged {
        Staged { step, out: Vec::new(), back: Vec::new() }
    }
}

/// The same bytes on the device and on the host, [`PART`] at most.
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
        let bounce = Mutex::new(BounceBuffers::new(device, PART)?);
        Ok(Some(Staging { host, copies, bounce }))
    }

    /// A window on the device with `host` as its mirror.
    ///
    /// # Errors
    /// Memory.
    pub(crate) fn window(&self, device: &Device, host: Window) -> Result<Window> {
        let mine = device.alloc(host.bytes(), &Placement::Private)?;
        Ok(host.on_device(mine))
    }

    /// After a panic there is at most something stale in them.
    fn bounce(&self) -> MutexGuard<'_, BounceBuffers> {
        self.bounce.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Copies from the device; returns when that is done.
    ///
    /// # Errors
    /// The device's.
    pub(crate) fn bring(&self, pairs: &[Pair]) -> Result<()> {
        let from = |part: usize| Ok(pairs[part].device.clone());
        let take = |part: usize, bytes: &[u8]| store(&self.host, bytes, &pairs[part].host);
        self.bounce().download(&self.copies, pairs.len(), from, take)
    }

    /// Copies to the device; returns when that is done.
    ///
    /// # Errors
    /// The device's.
    pub(crate) fn take_back(&self, pairs: &[Pair]) -> Result<()> {
        let to = |part: usize| Ok(pairs[part].device.clone());
        let fill = |part: usize, bytes: &mut [u8]| load(&self.host, &pairs[part].host, bytes);
        self.bounce().upload(&self.copies, pairs.len(), to, fill)?;
        Ok(self.copies.synchronize()?)
    }

    /// The step of the member at `place` on mirrors.
    ///
    /// # Errors
    /// Memory; a window without a mirror.
    pub(crate) fn stage(&self, step: Step, place: usize) -> Result<Staged> {
        match step {
            Step::Barrier => Ok(Staged::of(Step::Barrier)),
            // Groups that are staged have no boxes, and peers do not reach their windows.
            Step::OneShot(_) | Step::ReduceToAll(..) => Err(CommError::ForeignWindow),
            Step::Reduce(reduction) => reduce(reduction, place),
            Step::ReduceByHosts(reduction) => {
                // Each member of the host adds a part of what any other holds.
                let out = partials(&reduction.op, place, |_, _| true)?;
                Ok(Staged { step: Step::ReduceByHosts(reduction), out, back: Vec::new() })
            }
            Step::GatherByHosts(op) => self.gather_by_hosts(*op),
            Step::Gather(op, digest) => {
                let size = op.element_bytes;
                let others = op.segments.iter().enumerate().filter(|(member, _)| *member != place);
                let others = others.flat_map(|(_, segments)| segments);
                let out = pairs(&op.window, size, op.segments[place].iter())?;
                let back = pairs(&op.window, size, others)?;
                let window = mirror(&op.window)?.clone();
                Ok(Staged { step: Step::Gather(Gather { window, ..op }, digest), out, back })
            }
            Step::AllToAll(op) => {
                let size = op.into.dtype().bytes();
                let out = pairs(&op.from, size, op.send.iter())?;
                let into = self.twin(&op.into)?;
                let (device, host) = (op.into.as_bytes(), into.as_bytes());
                let back = cut(&device, &host, runs(size, op.receive.iter()))?;
                let from = mirror(&op.from)?.clone();
                Ok(Staged { step: Step::AllToAll(AllToAll { from, into, ..op }), out, back })
            }
            Step::Exchange(messages) => self.exchange(messages),
        }
    }

    fn gather_by_hosts(&self, mut op: GatherByHosts) -> Result<Staged> {
        let out = pairs(&op.window, 1, op.own.iter())?;
        let back = match &mut op.apart {
            None => pairs(&op.window, 1, op.brought().collect::<Vec<_>>().iter())?,
            Some(apart) => {
                // Of results only those of this round, one after another.
                let len = op.copied.iter().map(|copied| copied.to.len()).sum();
                let (twin, mut end, mut back) =
                    (self.host.zeros(&[len], DType::U8)?, 0, Vec::new());
                for Copied { to, .. } in &mut op.copied {
                    let at = end..end + to.len();
                    let there = apart.into.flat(std::mem::replace(to, at.clone()))?;
                    let all = 0..at.len();
                    back.extend(cut(&there, &twin.flat(at)?, std::iter::once(all))?);
                    end += to.len();
                }
                apart.into = twin;
                back
            }
        };
        let window = mirror(&op.window)?.clone();
        let step = Step::GatherByHosts(Box::new(GatherByHosts { window, ..op }));
        Ok(Staged { step, out, back })
    }

    fn exchange(&self, messages: Vec<P2p>) -> Result<Staged> {
        let (mut out, mut back) = (Vec::new(), Vec::new());
        let messages = messages.into_iter().map(|message| {
            let tensor = self.twin(message.tensor())?;
            let (device, host) = (message.tensor().as_bytes(), tensor.as_bytes());
            let pairs = cut(&device, &host, std::iter::once(0..device.len()))?;
            Ok(match message {
                P2p::Send { to, .. } => {
                    out.extend(pairs);
                    P2p::Send { to, tensor }
                }
                P2p::Receive { from, .. } => {
                    back.extend(pairs);
                    P2p::Receive { from, tensor }
                }
            })
        });
        let messages = messages.collect::<Result<_>>()?;
        Ok(Staged { step: Step::Exchange(messages), out, back })
    }

    /// A tensor like `tensor` on the host.
    fn twin(&self, tensor: &Tensor) -> Result<Tensor> {
        Ok(self.host.zeros(&[tensor.len()], tensor.dtype())?)
    }
}

/// Peers read this member's partials of what they own in the mirrors, and the sums of its own are
/// made where `out` lies; so its own are copied only if that is another device.
fn reduce(reduction: Box<Reduction>, place: usize) -> Result<Staged> {
    let device = reduction.op.out.buffer().device();
    let is_own_there = |window: &Window| window.buffer().device().is_same(device);
    let is_read = |owner: usize, window: &Window| owner != place || !is_own_there(window);
    let out = partials(&reduction.op, place, is_read)?;
    Ok(Staged { step: Step::Reduce(reduction), out, back: Vec::new() })
}

/// The partials of the member at `place`, of what the owners own for whom `is_read` says so.
fn partials(
    op: &OrderedReduce,
    place: usize,
    is_read: impl Fn(usize, &Window) -> bool,
) -> Result<Vec<Pair>> {
    let OrderedReduce { buffers, partials, segments, dtype, .. } = op;
    let mut brought = Vec::new();
    let mut used: Vec<usize> = partials[place].iter().map(|(_, buffer)| *buffer).collect();
    used.sort_unstable();
    used.dedup();
    for window in used.into_iter().map(|buffer| &buffers[buffer]) {
        let read = segments.iter().enumerate().filter(|(owner, _)| is_read(*owner, window));
        let read = read.flat_map(|(_, segments)| segments);
        brought.extend(pairs(window, dtype.bytes(), read)?);
    }
    Ok(brought)
}

fn mirror(window: &Window) -> Result<&Window> {
    window.mirror().ok_or(CommError::ForeignWindow)
}

/// Elements of a window, of `size` bytes each, and of its mirror.
fn pairs<'a>(
    window: &Window,
    size: usize,
    elements: impl Iterator<Item = &'a Range<usize>>,
) -> Result<Vec<Pair>> {
    let view = |window: &Window| window.tensor(0, &[window.bytes()], DType::U8);
    cut(&view(window)?, &view(mirror(window)?)?, runs(size, elements))
}

/// Ranges of elements as ranges of bytes, in order; those that touch are one.
fn runs<'a>(size: usize, elements: impl Iterator<Item = &'a Range<usize>>) -> Vec<Range<usize>> {
    let filled = elements.filter(|range| !range.is_empty());
    let mut all: Vec<_> = filled.map(|range| range.start * size..range.end * size).collect();
    all.sort_unstable_by_key(|range| range.start);
    let mut runs: Vec<Range<usize>> = Vec::new();
    for range in all {
        match runs.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => runs.push(range),
        }
    }
    runs
}

/// Ranges of bytes on both sides, in parts.
fn cut(
    device: &Tensor,
    host: &Tensor,
    runs: impl IntoIterator<Item = Range<usize>>,
) -> Result<Vec<Pair>> {
    let mut pairs = Vec::new();
    for run in runs {
        for start in run.clone().step_by(PART) {
            let part = start..(start + PART).min(run.end);
            pairs.push(Pair { device: device.flat(part.clone())?, host: host.flat(part)? });
        }
    }
    Ok(pairs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_touch_are_copied_as_one_and_long_ones_in_parts() {
        let ranges = [8..10, 0..3, 3..3, 3..5, 20..22, 9..12];
        assert_eq!(runs(4, ranges.iter()), [0..20, 32..48, 80..88]);
        let host = Device::cpu(1).unwrap();
        let bytes = |len: usize| host.zeros(&[len], DType::U8).unwrap();
        let (a, b) = (bytes(3 * PART), bytes(3 * PART));
        let pairs = cut(&a, &b, [7..9, 100..100 + 2 * PART + 1]).unwrap();
        let at: Vec<_> = pairs.iter().map(|pair| (pair.device.offset(), pair.host.len())).collect();
        assert_eq!(at, [(7, 2), (100, PART), (100 + PART, PART), (100 + 2 * PART, 1)]);
    }
}
