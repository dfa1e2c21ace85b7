//! Before the first step all ranks hold the same weights, or say which differ: an engine that
//! makes them up by itself may have another seed on each.

use comm::Control;
use device::{DType, Stream, Tensor};

use crate::{RunPlan, TrainError};

/// Bytes of a digest that are compared.
const BYTES: usize = 16;

/// Refuses flat `weights` that are not those of rank 0. Collective.
///
/// # Errors
/// The first rank whose weights differ, and the first tensor; as an operation.
pub(crate) fn on_weights(
    control: &dyn Control,
    stream: &Stream,
    plan: &RunPlan,
    weights: &Tensor,
) -> Result<(), TrainError> {
    if plan.world == 1 {
        return Ok(());
    }
    let all = control.all_gather_bytes(&digest(stream, weights)?)?;
    if all.iter().all(|one| one == &all[0]) {
        return Ok(());
    }
    let mut each = Vec::with_capacity(BYTES * plan.schema.tensors.len());
    for tensor in 0..plan.schema.tensors.len() {
        each.extend_from_slice(&digest(stream, &weights.flat(plan.flat.range(tensor))?)?);
    }
    let all = control.all_gather_bytes(&each)?;
    let differs = |theirs: &Vec<u8>| {
        theirs.chunks(BYTES).zip(all[0].chunks(BYTES)).position(|(theirs, ours)| theirs != ours)
    };
    let found = all.iter().enumerate().find_map(|(rank, theirs)| Some((rank, differs(theirs)?)));
    match found {
        Some((rank, tensor)) => {
            let tensor = plan.schema.tensors[tensor].name.clone();
            Err(TrainError::InitialWeights { rank, tensor })
        }
        None => Ok(()),
    }
}

fn digest(stream: &Stream, weights: &Tensor) -> Result<[u8; BYTES], TrainError> {
    let hash = stream.with_memory("compare the initial weights", |k| {
        Ok(match weights.dtype() {
            DType::F32 => blake3::hash(bytemuck::cast_slice(k.read::<f32>(weights)?)),
            _ => blake3::hash(bytemuck::cast_slice(k.read::<half::bf16>(weights)?)),
        })
    })?;
    let mut bytes = [0; BYTES];
    bytes.copy_from_slice(&hash.as_bytes()[..BYTES]);
    Ok(bytes)
}
