//! What the optimizer of one rank will allocate, before it does.

use device::{DType, Device};
use kernels::newton_schulz;
use kernels::optimizer::{SlotRanges, Spans};
use layout::{Ownership, Schema};

use crate::OptimError;
use crate::group::{BatchSize, LocalPlan};
use crate::rules::TensorPlan;

/// One allocation, or several of one kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryItem {
    pub name: &'static str,
    pub elements: usize,
    pub dtype: DType,
}

impl MemoryItem {
    pub fn bytes(&self) -> usize {
        self.elements * self.dtype.bytes()
    }
}

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
    Ok(local.memory(weights, &Room::on_host(&local, threads)).to_vec())
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
    Ok(local.memory(weights, &Room::on(device, &local)?).to_vec())
}

/// What depends on where the launches run.
pub(crate) struct Room {
    workspace: (usize, DType),
    /// Of spans, ranges and bound batches.
    table_bytes: usize,
}

impl Room {
    /// Of a host that nothing has begun yet.
    fn on_host(local: &LocalPlan, threads: usize) -> Room {
        let batches = local.muon.iter();
        let elements = batches.map(|batch| batch.matrices.workspace_elements(threads)).max();
        Room { workspace: (elements.unwrap_or(0), DType::F32), table_bytes: 0 }
    }

    pub(crate) fn on(device: &Device, local: &LocalPlan) -> Result<Room, OptimError> {
        let spans = local.muon.iter().map(|batch| &batch.spans);
        let spans = spans.chain(local.adamw.iter().map(|group| &group.spans));
        let mut table_bytes = SlotRanges::table_bytes(device, &local.slots);
        table_bytes += spans.map(|spans| Spans::table_bytes(device, spans)).sum::<usize>();
        let mut workspace = (0, DType::F32);
        for batch in &local.muon {
            let room = newton_schulz::room(device, &batch.matrices, (DType::F32, DType::F32))?;
            workspace = (room.workspace_elements.max(workspace.0), room.workspace_dtype);
            table_bytes += room.table_bytes;
        }
        Ok(Room { workspace, table_bytes })
    }
}

/// Positions in [`LocalPlan::memory`].
pub(crate) const MOMENTUM: usize = 0;
pub(crate) const ADAM_M: usize = 1;
pub(crate) const ADAM_V: usize = 2;
pub(crate) const MASTERS: usize = 3;
pub(crate) const UPDATE: usize = 4;
pub(crate) const DIRECTION: usize = 5;
pub(crate) const WORKSPACE: usize = 6;
pub(crate) const STATUS: usize = 7;
pub(crate) const FACTORS: usize = 8;
/// The lists of spans and ranges and the bound batches allocate these themselves.
pub(crate) const TABLES: usize = 9;

impl LocalPlan {
    pub(crate) fn memory(&self, weights: DType, room: &Room) -> [MemoryItem; 10] {
        let item = |name, elements, dtype| MemoryItem { name, elements, dtype };
        let masters = match weights {
            DType::Bf16 => self.muon_len + self.adamw_len,
            _ => 0,
        };
        let batch = self.batch_elements();
        let (workspace, workspace_dtype) = room.workspace;
        [
            item("momentum", self.muon_len, DType::F32),
            item("adam_m", self.adamw_len, DType::F32),
            item("adam_v", self.adamw_len, DType::F32),
            item("f32 masters of the weights", masters, DType::F32),
            item("muon update", batch, DType::F32),
            item("muon direction", batch, DType::F32),
            item("newton-schulz workspace", workspace, workspace_dtype),
            item("newton-schulz status", self.matrices, DType::U32),
            item("gradient factors", self.pieces.len(), DType::F32),
            item("tables of launches", room.table_bytes, DType::U8),
        ]
    }
}
