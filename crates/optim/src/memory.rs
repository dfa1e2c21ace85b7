//! What the optimizer of one rank will allocate, before it does.

use device::DType;
use layout::{Ownership, Schema};

use crate::OptimError;
use crate::group::LocalPlan;
use crate::rules::TensorPlan;

/// One allocation.
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

/// The allocations of `ShardedOptimizer::new` with the same arguments on a device with `threads`
/// threads: exactly these.
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
    let local = LocalPlan::new(schema, ownership, rank, plans, threads)?;
    Ok(local.memory(weights, threads).to_vec())
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

impl LocalPlan {
    pub(crate) fn memory(&self, weights: DType, threads: usize) -> [MemoryItem; 9] {
        let item = |name, elements, dtype| MemoryItem { name, elements, dtype };
        let masters = match weights {
            DType::Bf16 => self.muon_len + self.adamw_len,
            _ => 0,
        };
        let batch = self.batch_elements();
        let workspace = self.workspace_elements(threads);
        [
            item("momentum", self.muon_len, DType::F32),
            item("adam_m", self.adamw_len, DType::F32),
            item("adam_v", self.adamw_len, DType::F32),
            item("f32 masters of the weights", masters, DType::F32),
            item("muon update", batch, DType::F32),
            item("muon direction", batch, DType::F32),
            item("newton-schulz workspace", workspace, DType::F32),
            item("newton-schulz status", self.matrices, DType::U32),
            item("gradient factors", self.pieces.len(), DType::F32),
        ]
    }
}
