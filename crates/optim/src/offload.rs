//! The optimizer of one rank on a device, while gradients and weights lie on the host.
//!
//! ```text
//! host                                   device (this rank's pieces alone, each at an aligned place)
//! flat gradients ──owned pieces──▶ pinned ──▶ gradients ──statistics──▶ sums ──▶ pinned ──▶ sums
//! flat weights  ◀──owned pieces─── pinned ◀── weights ◀────apply──── moments, momentum, masters
//! ```
//!
//! Copies go in parts: while one is on its way the host packs or unpacks the next. States are
//! those of [`ShardedOptimizer`], in the device's memory.

use std::ops::Range;

use device::{DType, Device, Element, Stream, Tensor};
use half::bf16;
use layout::flat::ALIGN;
use layout::{FlatLayout, Ownership, Schema};

use crate::memory::{MemoryItem, memory_plan_on};
use crate::rules::TensorPlan;
use crate::staged::Staged;
use crate::{OptimError, ShardedOptimizer, StateView, StepScalars};

/// Elements of a part: enough for a bus to be busy, few enough to overlap.
const PART: usize = 1 << 22;

/// An optimizer whose state lies on a device and whose operands on the host.
pub struct Offloaded {
    optimizer: ShardedOptimizer,
    stream: Stream,
    flat_len: usize,
    weights_dtype: DType,
    weights: Tensor,
    grads: Tensor,
    slots: Tensor,
    parts: Vec<Part>,
    sums: Staged,
    /// Statistic slots of this rank's pieces.
    own_slots: Vec<Range<usize>>,
    memory: Vec<MemoryItem>,
}

/// Elements of the host's flat tensors, and where they start in compact ones.
type Placed = (Range<usize>, usize);

/// Pieces that are copied together.
struct Part {
    /// By where they start in the part.
    pieces: Vec<Placed>,
    /// Elements of the device's tensors.
    range: Range<usize>,
    /// As many elements of gradients …
    grads: Staged,
    /// … and of weights.
    weights: Staged,
}

/// Which of a part's copies.
#[derive(Clone, Copy)]
enum Of {
    Grads,
    Weights,
}

/// The pieces of `rank` one after another, each at an aligned place: the same ownership over a flat
/// layout that holds nothing else of this rank's, and its length.
fn compact(ownership: &Ownership, rank: usize) -> (Ownership, usize) {
    let (mut compact, mut end) = (ownership.clone(), 0);
    for piece in compact.pieces.iter_mut().filter(|piece| piece.owner == rank) {
        let len = piece.flat.len();
        piece.flat = end..end + len;
        end += len.next_multiple_of(ALIGN);
    }
    (compact, end)
}

/// What [`Offloaded::new`] allocates on the device, exactly.
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
    let (ownership, len) = compact(ownership, rank);
    let mut items = memory_plan_on(device, schema, &ownership, rank, plans, weights)?;
    let item = |name, elements, dtype| MemoryItem { name, elements, dtype };
    items.push(item("owned weights", len, weights));
    items.push(item("owned gradients", len, DType::F32));
    items.push(item("sums of squares", ownership.slots, DType::F64));
    Ok(items)
}

/// Bytes of pinned memory that [`Offloaded::new`] takes on the host.
pub fn staging_bytes(ownership: &Ownership, rank: usize, weights: DType) -> usize {
    let (_, len) = compact(ownership, rank);
    len * (size_of::<f32>() + weights.bytes()) + ownership.slots * size_of::<f64>()
}

impl Offloaded {
    /// Allocates the zeroed state of the pieces that `rank` owns, on `device`, and pinned memory
    /// for their weights and gradients. Call [`Offloaded::adopt`] before the first step.
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
        let (compacted, len) = compact(ownership, rank);
        let layout = FlatLayout { len, ..flat.clone() };
        let optimizer =
            ShardedOptimizer::new(device, schema, &layout, &compacted, rank, plans, weights_dtype)?;
        let pieces = ownership.owned(rank).zip(compacted.owned(rank));
        let pieces = pieces.map(|(on_host, here)| (on_host.flat.clone(), here.flat.start));
        Ok(Offloaded {
            optimizer,
            stream: device.stream(),
            flat_len: flat.len,
            weights_dtype,
            weights: device.zeros(&[len], weights_dtype)?,
            grads: device.zeros(&[len], DType::F32)?,
            slots: device.zeros(&[ownership.slots], DType::F64)?,
            parts: parts(device, pieces, weights_dtype)?,
            sums: Staged::new(device, ownership.slots * size_of::<f64>())?,
            own_slots: ownership.owned(rank).map(|piece| piece.slots.clone()).collect(),
            memory,
        })
    }

    /// What was allocated on the device; equals [`offload_plan`].
    pub fn memory_plan(&self) -> &[MemoryItem] {
        &self.memory
    }

    /// As [`ShardedOptimizer::numeric_plan`].
    pub fn numeric_plan(&self) -> std::collections::BTreeSet<String> {
        self.optimizer.numeric_plan()
    }

    /// Bytes of pinned memory on the host.
    pub fn pinned_bytes(&self) -> usize {
        let of = |part: &Part| part.grads.bytes() + part.weights.bytes();
        self.sums.bytes() + self.parts.iter().map(of).sum::<usize>()
    }

    /// The stream of the device, for copies from and to [`Offloaded::states`].
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Uploads this rank's pieces of the host's flat gradients (f32), and writes the sum of squares
    /// of each of its slots to `sums` (all slots of the model; others stay as they are). Waits.
    ///
    /// # Errors
    /// Tensors of another length or type; an earlier error of either stream.
    pub fn statistics(
        &mut self,
        host: &Stream,
        grads: &Tensor,
        sums: &mut [f64],
    ) -> Result<(), OptimError> {
        self.check_count("statistic slots", sums.len(), self.slots.len())?;
        self.upload::<f32>(host, grads, Of::Grads, &self.grads.clone())?;
        self.optimizer.statistics(&self.grads, &self.slots)?;
        self.sums.download(&self.stream, &self.slots)?;
        let all = self.sums.read::<f64>()?;
        for slots in &self.own_slots {
            sums[slots.clone()].copy_from_slice(&all[slots.clone()]);
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

    /// Takes over this rank's pieces of the host's flat weights: of the run's type, or f32 for the
    /// masters of bf16 weights.
    ///
    /// # Errors
    /// Weights of another length or type; an earlier error of either stream.
    pub fn adopt(&mut self, host: &Stream, weights: &Tensor) -> Result<(), OptimError> {
        match (weights.dtype(), self.weights_dtype) {
            (DType::F32, DType::Bf16) => {
                let masters = self.grads.clone();
                self.upload::<f32>(host, weights, Of::Grads, &masters)?;
                self.optimizer.adopt(&masters)?;
                Ok(self.optimizer.publish(&self.weights)?)
            }
            (_, DType::Bf16) => {
                let to = self.weights.clone();
                self.upload::<bf16>(host, weights, Of::Weights, &to)?;
                self.optimizer.adopt(&to)
            }
            _ => {
                let to = self.weights.clone();
                self.upload::<f32>(host, weights, Of::Weights, &to)
            }
        }
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

    /// As [`ShardedOptimizer::load`]; call [`Offloaded::publish`] afterwards.
    ///
    /// # Errors
    /// As there.
    pub fn load(
        &mut self,
        tensor: usize,
        slot: &str,
        rows: Range<usize>,
        values: &[f32],
    ) -> Result<usize, OptimError> {
        self.optimizer.load(&self.weights, tensor, slot, rows, values)
    }

    /// Copies this rank's pieces of the host's `from` to `to` on the device.
    fn upload<T: Element>(
        &mut self,
        host: &Stream,
        from: &Tensor,
        of: Of,
        to: &Tensor,
    ) -> Result<(), OptimError> {
        self.check_count("elements on the host", from.len(), self.flat_len)?;
        let (stream, parts) = (&self.stream, &mut self.parts);
        host.with_memory("pack_owned", |k| {
            let from = k.read::<T>(from)?;
            for Part { pieces, range, grads, weights } in parts {
                let staged = match of {
                    Of::Grads => grads,
                    Of::Weights => weights,
                };
                let packed = staged.write::<T>()?;
                for (piece, start) in pieces.iter() {
                    packed[*start..start + piece.len()].copy_from_slice(&from[piece.clone()]);
                }
                staged.upload(stream, &to.flat(range.clone())?)?;
            }
            Ok(())
        })?;
        Ok(())
    }

    /// Copies the device's weights to this rank's pieces of the host's.
    fn download(&mut self, host: &Stream, weights: &Tensor) -> Result<(), OptimError> {
        self.check_count("weights on the host", weights.len(), self.flat_len)?;
        for part in &mut self.parts {
            let from = self.weights.flat(part.range.clone())?;
            part.weights.download(&self.stream, &from)?;
        }
        match self.weights_dtype {
            DType::Bf16 => self.unpack::<bf16>(host, weights),
            _ => self.unpack::<f32>(host, weights),
        }
    }

    fn unpack<T: Element>(&mut self, host: &Stream, weights: &Tensor) -> Result<(), OptimError> {
        let parts = &mut self.parts;
        host.with_memory("unpack_owned", |k| {
            let to = k.write::<T>(weights)?;
            for Part { pieces, weights, .. } in parts {
                let packed = weights.read::<T>()?;
                for (piece, start) in pieces.iter() {
                    to[piece.clone()].copy_from_slice(&packed[*start..start + piece.len()]);
                }
            }
            Ok(())
        })?;
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

/// Pieces, in order, in parts of about [`PART`] elements; a larger piece is one alone.
fn parts(
    device: &Device,
    pieces: impl Iterator<Item = Placed>,
    weights: DType,
) -> Result<Vec<Part>, OptimError> {
    let mut groups: Vec<(Range<usize>, Vec<Placed>)> = Vec::new();
    for (piece, start) in pieces {
        let end = start + piece.len();
        match groups.last_mut() {
            Some((range, pieces)) if end - range.start <= PART => {
                pieces.push((piece, start - range.start));
                range.end = end;
            }
            _ => groups.push((start..end, vec![(piece, 0)])),
        }
    }
    let part = |(range, pieces): (Range<usize>, Vec<Placed>)| {
        let staged = |dtype: DType| Staged::new(device, range.len() * dtype.bytes());
        let (grads, weights) = (staged(DType::F32)?, staged(weights)?);
        Ok(Part { pieces, range, grads, weights })
    };
    groups.into_iter().map(part).collect()
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
    fn pieces_are_cut_into_parts_without_gaps_between_what_is_copied() {
        let device = Device::cpu(1).unwrap();
        let sizes = [10, PART - 16, PART + 1, 3, 3];
        let mut start = 0;
        let pieces = sizes.map(|len| {
            let piece = (2 * start..2 * start + len, start);
            start += len.next_multiple_of(ALIGN);
            piece
        });
        let parts = parts(&device, pieces.clone().into_iter(), DType::Bf16).unwrap();
        let ranges: Vec<_> = parts.iter().map(|part| part.range.clone()).collect();
        let far = PART + PART + 32;
        assert_eq!(ranges, [0..PART, PART..2 * PART + 1, far - 16..far + 3]);
        let all = parts.iter().flat_map(|part| {
            let at = part.range.start;
            part.pieces.iter().map(move |(piece, start)| (piece.clone(), start + at))
        });
        assert!(all.eq(pieces));
        assert!(parts.iter().all(|part| part.grads.bytes() == 2 * part.weights.bytes()));
    }
}
