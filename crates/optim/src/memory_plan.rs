//! Allocations of the optimizer of one rank, planned before they are made.

use device::{DType, Device};
use kernels::optimizer::{Spans, StatisticRanges};
use layout::{Ownership, Schema};

use crate::OptimError;
use crate::group::{BatchSize, LocalPlan};
use crate::rules::TensorPlan;
pub use crate::update::MemoryItem;
use crate::update::{Needs, Place};

/// The allocations of `ShardedOptimizer::new` with the same arguments on a host device with
/// `threads` threads: exactly these.
///
/// # Errors
/// Plans that are not those of the schema.
pub fn memory_plan(
    schema: &Schema,
    ownership: &Ownership,
    rank: usize,
    plans: &[TensorPlan],
    weights: DType,
    threads: usize,
) -> Result<Vec<MemoryItem>, OptimError> {
    let size = BatchSize::of_threads(threads);
    let local = LocalPlan::new(schema, ownership, rank, plans, size)?;
    Ok(Room::new(&local, weights, Place::Threads(threads))?.items())
}

/// As [`memory_plan`], on any device.
///
/// # Errors
/// Plans that are not those of the schema; a method that the device has no kernels for.
pub fn memory_plan_on(
    device: &Device,
    schema: &Schema,
    ownership: &Ownership,
    rank: usize,
    plans: &[TensorPlan],
    weights: DType,
) -> Result<Vec<MemoryItem>, OptimError> {
    let local = LocalPlan::new(schema, ownership, rank, plans, BatchSize::of(device))?;
    Ok(Room::new(&local, weights, Place::On(device))?.items())
}

/// The allocations of a plan, by what for.
pub(crate) struct Room {
    /// In the order of [`LocalPlan::states`].
    pub states: Vec<MemoryItem>,
    pub masters: MemoryItem,
    /// Shared by groups, by name.
    pub scratch: Vec<MemoryItem>,
    /// Of each group, the positions in `scratch` of what it needs.
    pub scratch_of: Vec<Vec<usize>>,
    pub status: MemoryItem,
    pub factors: MemoryItem,
    /// The lists of spans and ranges and bound groups allocate these themselves.
    tables: MemoryItem,
}

impl Room {
    pub(crate) fn new(local: &LocalPlan, weights: DType, place: Place) -> Result<Room, OptimError> {
        let item = |name, elements, dtype| MemoryItem { name, elements, dtype };
        let masters = if weights == DType::Bf16 { local.len } else { 0 };
        let states = local.states.iter();
        let mut room = Room {
            states: states.map(|state| item(state.slot, state.len, DType::F32)).collect(),
            masters: item("f32 masters of the weights", masters, DType::F32),
            scratch: Vec::new(),
            scratch_of: Vec::new(),
            status: item("status of matrices", local.matrices, DType::U32),
            factors: item("gradient factors", local.pieces.len(), DType::F32),
            tables: item("tables of launches", 0, DType::U8),
        };
        if let Place::On(device) = place {
            let spans = local.groups.iter().map(|group| &group.group.spans);
            let bytes: usize = spans.map(|spans| Spans::table_bytes(device, spans)).sum();
            room.tables.elements = bytes + StatisticRanges::table_bytes(device, &local.statistics);
        }
        for group in &local.groups {
            let Needs { scratch, table_bytes } = group.planned.needs(place)?;
            room.tables.elements += table_bytes;
            let positions = scratch.into_iter().map(|item| room.share(item));
            let positions = positions.collect();
            room.scratch_of.push(positions);
        }
        Ok(room)
    }

    /// Makes room for scratch beside that of other groups, and says where.
    fn share(&mut self, item: MemoryItem) -> usize {
        match self.scratch.iter().position(|shared| shared.name == item.name) {
            Some(at) => {
                self.scratch[at].elements = self.scratch[at].elements.max(item.elements);
                at
            }
            None => {
                self.scratch.push(item);
                self.scratch.len() - 1
            }
        }
    }

    /// The memory plan.
    pub(crate) fn items(&self) -> Vec<MemoryItem> {
        let states = self.states.iter().chain([&self.masters]).chain(&self.scratch);
        states.chain([&self.status, &self.factors, &self.tables]).cloned().collect()
    }
}
