//! The optimizer of one rank on a device, while weights lie on the host.
//!
//! ```text
//! host                                   device (this rank's segments alone, aligned as there)
//! everyone's partials ──ordered reduction──▶ gradients ──statistics──▶ sums ──▶ pinned ──▶ sums
//! flat weights  ◀──own segments── pinned ◀── weights ◀────apply──── moments, momentum, masters
//! ```
//!
//! Gradients are summed into [`Offloaded::gradients`] by whoever reduces them. Weights are copied
//! in parts: while one is on its way the host packs or unpacks the next. States are those of
//! [`ShardedOptimizer`], in the device's memory.

use std::ops::Range;

use device::{BounceBuffers, DType, Device, DeviceError, Staged, Stream, Tensor};
use layout::flat::ALIGN;
use layout::{FlatLayout, Ownership, Schema};

use crate::memory_plan::{MemoryItem, memory_plan_on};
use crate::rules::TensorPlan;
use crate::{OptimError, ShardedOptimizer, StateView, StepScalars};

/// Elements of a part, at most: enough for a bus to be busy, few enough to overlap.
const PART: usize = 1 << 20;

/// An optimizer whose state and gradients lie on a device, and whose weights on the host.
pub struct Offloaded {
    optimizer: ShardedOptimizer,
    stream: Stream,
    flat_len: usize,
    weights_dtype: DType,
    weights: Tensor,
    grads: Tensor,
    statistics: Tensor,
    segments: Vec<Placed>,
    parts: Vec<Part>,
    bounce: BounceBuffers,
    sums: Staged,
    /// Statistics of this rank's pieces.
    own_statistics: Vec<Range<usize>>,
    memory: Vec<MemoryItem>,
}

/// Elements of the host's flat tensors, and where they start in compact ones.
type Placed = (Range<usize>, usize);

/// Pieces that are copied together.
#[derive(Debug, PartialEq)]
struct Part {
    /// Elements of the host's tensors, by where they start in the part.
    pieces: Vec<Placed>,
    /// Elements of the device's tensors.
    range: Range<usize>,
}

/// The segments of a rank one after another: a flat layout that holds nothing else.
struct Compact {
    /// The same ownership over it.
    ownership: Ownership,
    segments: Vec<Placed>,
    len: usize,
}

impl Compact {
    fn new(ownership: &Ownership, rank: usize) -> Compact {
        let (mut ownership, mut end) = (ownership.clone(), 0_usize);
        let placed = ownership.segments(rank).into_iter().map(|segment| {
            // Aligned there is aligned here.
            let start = end.next_multiple_of(ALIGN) + segment.start % ALIGN;
            end = start + segment.len();
            (segment, start)
        });
        let segments: Vec<Placed> = placed.collect();
        for piece in ownership.pieces.iter_mut().filter(|piece| piece.owner == rank) {
            let start = match piece.flat.is_empty() {
                true => 0,
                false => place(&segments, piece.flat.start)
                    .expect("the segments of a rank hold its pieces"),
            };
            piece.flat = start..start + piece.flat.len();
        }
        Compact { ownership, segments, len: end.next_multiple_of(ALIGN) }
    }
}

/// Where flat element `element` lies in compact tensors, if in one of `segments`.
fn place(segments: &[Placed], element: usize) -> Option<usize> {
    let after = segments.partition_point(|(segment, _)| segment.start <= element);
    let (segment, start) = segments.get(after.checked_sub(1)?)?;
    segment.contains(&element).then(|| start + element - segment.start)
}

/// The allocations of [`Offloaded::new`] on the device, exactly.
///
/// # Errors
/// As [`memory_plan_on`].
pub fn offload_plan(
    device: &Device,
    schema: &Schema,
    ownership: &Ownership,
    rank: usize,
    plans: &[TensorPlan],
    weights: DType,
) -> Result<Vec<MemoryItem>, OptimError> {
    let Compact { ownership, len, .. } = Compact::new(ownership, rank);
    let mut items = memory_plan_on(device, schema, &ownership, rank, plans, weights)?;
    let item = |name, elements, dtype| MemoryItem { name, elements, dtype };
    items.push(item("owned weights", len, weights));
    items.push(item("owned gradients", len, DType::F32));
    items.push(item("sums of squares", ownership.statistics, DType::F64));
    Ok(items)
}

/// Bytes of pinned memory that [`Offloaded::new`] takes on the host.
pub fn staging_bytes(ownership: &Ownership, rank: usize) -> usize {
    let parts = parts(&Compact::new(ownership, rank).segments);
    2 * part_bytes(&parts) + ownership.statistics * size_of::<f64>()
}

/// Bytes of the largest part: masters are f32, whatever weights are.
fn part_bytes(parts: &[Part]) -> usize {
    parts.iter().map(|part| part.range.len()).max().unwrap_or(0) * size_of::<f32>()
}

impl Offloaded {
    /// Allocates the zeroed state of the pieces that `rank` owns, on `device`, and pinned memory
    /// for copies. Call [`Offloaded::adopt`] before the first step.
    ///
    /// # Errors
    /// As [`ShardedOptimizer::new`]; a device with less memory than that takes.
    pub fn new(
        device: &Device,
        schema: &Schema,
        flat: &FlatLayout,
        ownership: &Ownership,
        rank: usize,
        plans: &[TensorPlan],
        weights_dtype: DType,
    ) -> Result<Offloaded, OptimError> {
        let memory = offload_plan(device, schema, ownership, rank, plans, weights_dtype)?;
        check_room(device, &memory)?;
        let own_statistics = ownership.owned(rank).map(|piece| piece.statistics.clone()).collect();
        let statistics = ownership.statistics;
        let Compact { ownership, segments, len } = Compact::new(ownership, rank);
        let layout = FlatLayout { len, ..flat.clone() };
        let optimizer =
            ShardedOptimizer::new(device, schema, &layout, &ownership, rank, plans, weights_dtype)?;
        let parts = parts(&segments);
        Ok(Offloaded {
            optimizer,
            stream: device.stream(),
            flat_len: flat.len,
            weights_dtype,
            weights: device.zeros(&[len], weights_dtype)?,
            grads: device.zeros(&[len], DType::F32)?,
            statistics: device.zeros(&[statistics], DType::F64)?,
            bounce: BounceBuffers::new(device, part_bytes(&parts))?,
            sums: Staged::new(device, statistics * size_of::<f64>())?,
            segments,
            parts,
            own_statistics,
            memory,
        })
    }

    /// The allocations on the device; equals [`offload_plan`].
    pub fn memory_plan(&self) -> &[MemoryItem] {
        &self.memory
    }

    /// Where this rank's gradients go before [`Offloaded::statistics`]: flat f32 on the device,
    /// its segments alone ([`Offloaded::place`]). Between [`Offloaded::apply`] and then nothing
    /// else uses it.
    pub fn gradients(&self) -> &Tensor {
        &self.grads
    }

    /// Where element `element` of the flat buffer lies in [`Offloaded::gradients`], if this rank
    /// owns it; elements of one segment lie side by side there.
    pub fn place(&self, element: usize) -> Option<usize> {
        place(&self.segments, element)
    }

    /// As [`ShardedOptimizer::numeric_plan`].
    pub fn numeric_plan(&self) -> std::collections::BTreeSet<String> {
        self.optimizer.numeric_plan()
    }

    /// Bytes of pinned memory on the host; equals [`staging_bytes`].
    pub fn pinned_bytes(&self) -> usize {
        self.sums.bytes() + self.bounce.bytes()
    }

    /// The stream of the device, for copies from and to [`Offloaded::states`].
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Writes the sum of squares of each of this rank's statistics of [`Offloaded::gradients`] to
    /// `sums` (all statistics of the model; others stay as they are). Waits.
    ///
    /// # Errors
    /// Another number of statistics; an earlier error of the stream.
    pub fn statistics(&mut self, sums: &mut [f64]) -> Result<(), OptimError> {
        self.check_count("statistics", sums.len(), self.statistics.len())?;
        self.optimizer.statistics(&self.grads, &self.statistics)?;
        self.sums.download(&self.stream, &self.statistics)?;
        let all = self.sums.read::<f64>()?;
        for statistics in &self.own_statistics {
            sums[statistics.clone()].copy_from_slice(&all[statistics.clone()]);
        }
        Ok(())
    }

    /// Updates this rank's pieces from the gradients of the last [`Offloaded::statistics`], and
    /// writes them to the host's flat `weights`. Does nothing if the decision is not to apply.
    /// Waits.
    ///
    /// # Errors
    /// As [`ShardedOptimizer::apply`]; an earlier error of either stream.
    pub fn apply(
        &mut self,
        host: &Stream,
        weights: &Tensor,
        scalars: &StepScalars,
    ) -> Result<(), OptimError> {
        if scalars.clip.verdict != crate::Verdict::Apply {
            return Ok(());
        }
        self.optimizer.apply(&self.weights, &self.grads, scalars)?;
        self.download(host, weights)
    }

    /// As [`ShardedOptimizer::set_begun`].
    ///
    /// # Errors
    /// As there.
    pub fn set_begun(&mut self, begun: &[i64]) -> Result<(), OptimError> {
        self.optimizer.set_begun(begun)
    }

    /// As [`ShardedOptimizer::initialize`].
    ///
    /// # Errors
    /// As there.
    pub fn initialize(&mut self, seed: u64) -> Result<(), OptimError> {
        self.optimizer.initialize(seed)
    }

    /// Takes over this rank's pieces of the host's flat weights: of the run's type, or f32 for the
    /// masters of bf16 weights.
    ///
    /// # Errors
    /// Weights of another length or type; an earlier error of either stream.
    pub fn adopt(&mut self, host: &Stream, weights: &Tensor) -> Result<(), OptimError> {
        let are_masters = (weights.dtype(), self.weights_dtype) == (DType::F32, DType::Bf16);
        let to = if are_masters { self.grads.clone() } else { self.weights.clone() };
        self.upload(host, weights, &to)?;
        if self.weights_dtype == DType::Bf16 {
            self.optimizer.adopt(&to)?;
        }
        if are_masters {
            self.optimizer.publish(&self.weights)?;
        }
        Ok(self.stream.synchronize()?)
    }

    /// Writes this rank's pieces to the host's flat `weights`, as after loading `param` states.
    ///
    /// # Errors
    /// Weights of another length or type; an earlier error of either stream.
    pub fn publish(&mut self, host: &Stream, weights: &Tensor) -> Result<(), OptimError> {
        self.optimizer.publish(&self.weights)?;
        self.download(host, weights)
    }

    /// As [`ShardedOptimizer::check_momentum`].
    ///
    /// # Errors
    /// As there.
    pub fn check_momentum(&self) -> Result<(), OptimError> {
        self.optimizer.check_momentum()
    }

    /// As [`ShardedOptimizer::states`], in the device's memory.
    ///
    /// # Errors
    /// As there.
    pub fn states(&self) -> Result<Vec<StateView>, OptimError> {
        self.optimizer.states(&self.weights)
    }

    /// Copies this rank's segments of the host's `from` to `to` on the device.
    fn upload(&mut self, host: &Stream, from: &Tensor, to: &Tensor) -> Result<(), OptimError> {
        self.check_host(from, to.dtype())?;
        let Offloaded { stream, parts, bounce, .. } = self;
        let (size, from) = (to.dtype().bytes(), from.as_bytes());
        let to = |part: usize| to.flat(parts[part].range.clone());
        Ok(host.with_memory("pack_owned", |k| {
            let from = k.read::<u8>(&from)?;
            bounce.upload(stream, parts.len(), to, |part, bytes| {
                for (piece, at) in &parts[part].pieces {
                    let piece = &from[piece.start * size..piece.end * size];
                    bytes[at * size..][..piece.len()].copy_from_slice(piece);
                }
                Ok(())
            })
        })?)
    }

    /// Copies the device's weights to this rank's segments of the host's.
    fn download(&mut self, host: &Stream, weights: &Tensor) -> Result<(), OptimError> {
        self.check_host(weights, self.weights_dtype)?;
        let Offloaded { stream, parts, bounce, weights: here, .. } = self;
        let (size, to) = (weights.dtype().bytes(), weights.as_bytes());
        let from = |part: usize| here.flat(parts[part].range.clone());
        Ok(host.with_memory("unpack_owned", |k| {
            let to = k.write::<u8>(&to)?;
            bounce.download(stream, parts.len(), from, |part, bytes| {
                for (piece, at) in &parts[part].pieces {
                    let piece = &mut to[piece.start * size..piece.end * size];
                    piece.copy_from_slice(&bytes[at * size..][..piece.len()]);
                }
                Ok(())
            })
        })?)
    }

    /// Weights on the host: all of them, of this type.
    fn check_host(&self, weights: &Tensor, expected: DType) -> Result<(), OptimError> {
        self.check_count("weights on the host", weights.len(), self.flat_len)?;
        match weights.dtype() {
            got if got == expected => Ok(()),
            got => Err(DeviceError::Dtype { kernel: "copy_owned", got: expected, expected: got }),
        }?;
        Ok(())
    }

    fn check_count(
        &self,
        what: &'static str,
        got: usize,
        expected: usize,
    ) -> Result<(), OptimError> {
        if got == expected { Ok(()) } else { Err(OptimError::Count { what, got, expected }) }
    }
}

/// Segments, in order, in parts of at most [`PART`] elements; longer ones are cut.
fn parts(segments: &[Placed]) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::new();
    for (segment, start) in segments {
        for at in (0..segment.len()).step_by(PART) {
            let len = PART.min(segment.len() - at);
            let (piece, start) = (segment.start + at..segment.start + at + len, start + at);
            match parts.last_mut() {
                Some(Part { pieces, range }) if start + len - range.start <= PART => {
                    pieces.push((piece, start - range.start));
                    range.end = start + len;
                }
                _ => parts.push(Part { pieces: vec![(piece, 0)], range: start..start + len }),
            }
        }
    }
    parts
}

fn check_room(device: &Device, memory: &[MemoryItem]) -> Result<(), OptimError> {
    let needed: usize = memory.iter().map(MemoryItem::bytes).sum();
    let has = device.properties().memory_bytes;
    if has == 0 || needed as u64 <= has {
        return Ok(());
    }
    let largest = memory.iter().max_by_key(|item| item.bytes()).map_or("", |item| item.name);
    let device = device.kind();
    Err(OptimError::Room { device, needed: needed as u64, has, largest })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_too_small_is_named_with_what_is_needed() {
        let device = Device::cpu(1).unwrap();
        let item = |name, elements| MemoryItem { name, elements, dtype: DType::F32 };
        check_room(&device, &[item("momentum", 1000)]).unwrap();
        let most = [item("momentum", 1 << 50), item("adam_m", 1 << 51)];
        let error = check_room(&device, &most).unwrap_err().to_string();
        for part in ["needs 13510798.88 GB on cpu", "most of it: adam_m", "use more ranks"] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn segments_are_cut_into_parts_without_gaps_between_what_is_copied() {
        let mut start = 0;
        let segments = [10, PART - 16, PART + 1, 3, 3].map(|len| {
            let segment = (2 * start..2 * start + len, start);
            start += len.next_multiple_of(ALIGN);
            segment
        });
        let parts = parts(&segments);
        let ranges: Vec<_> = parts.iter().map(|part| part.range.clone()).collect();
        assert_eq!(ranges, [0..PART, PART..2 * PART, 2 * PART..2 * PART + 35]);
        for (element, start) in segments.iter().map(|(segment, start)| (segment.end - 1, start)) {
            let found = place(&segments, element).unwrap();
            assert!(found >= *start);
            let part = parts.iter().find(|part| part.range.contains(&found)).unwrap();
            let piece = part.pieces.iter().find(|(piece, _)| piece.contains(&element)).unwrap();
            assert_eq!(part.range.start + piece.1 + element - piece.0.start, found);
            assert_eq!(place(&segments, element + 1), None);
        }
        assert_eq!(part_bytes(&parts), 4 * PART);
    }
}
