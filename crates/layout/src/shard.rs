//! The shard of one coordinate of a mesh, as a schema and a flat buffer of its own.

use crate::{Coordinate, FlatLayout, LayoutError, LogicalTensor, Part, Placements, Region, Schema};

/// The part of a schema that a rank holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shard {
    pub at: Coordinate,
    /// Position of each tensor held in the whole schema.
    pub tensors: Vec<usize>,
    /// Its boxes of the whole tensor, in row order.
    pub regions: Vec<Vec<Region>>,
    /// The same tensors with the shapes that are held here.
    pub schema: Schema,
    /// Where they lie in the rank's buffers.
    pub flat: FlatLayout,
}

impl Shard {
    /// The part of `schema` that the rank at `at` holds, in buckets of `bucket_elements`.
    ///
    /// # Errors
    /// A coordinate outside the mesh.
    pub fn new(
        schema: &Schema,
        placements: &Placements,
        at: Coordinate,
        bucket_elements: usize,
    ) -> Result<Shard, LayoutError> {
        let (mut tensors, mut regions, mut held) = (Vec::new(), Vec::new(), Vec::new());
        for (index, tensor) in schema.tensors.iter().enumerate() {
            let boxes = placements.regions(index, at)?;
            if boxes.is_empty() {
                continue;
            }
            let matrices = placements.matrices(index, at)?;
            // A tensor is fused with the one before it only if that is held here, too.
            let follows = index > 0 && tensors.last() == Some(&(index - 1));
            held.push(local(tensor, &boxes, &matrices, follows));
            tensors.push(index);
            regions.push(boxes);
        }
        let schema = Schema::new(held)?;
        let flat = FlatLayout::new(&schema, bucket_elements);
        Ok(Shard { at, tensors, regions, schema, flat })
    }
}

/// The tensor that these boxes of `tensor` are, one under the other.
fn local(
    tensor: &LogicalTensor,
    boxes: &[Region],
    matrices: &[Region],
    follows: bool,
) -> LogicalTensor {
    let mut shape = boxes[0].shape.clone();
    if let Some(rows) = shape.first_mut() {
        *rows = boxes.iter().map(|region| region.shape[0]).sum();
    }
    let mut start = 0;
    let parts = tensor.parts.iter().filter_map(|part| {
        let inside = |region: &&Region| part.rows.contains(&region.offset[0]);
        let rows = matrices.iter().find(inside)?.shape[0];
        start += rows;
        Some(Part { label: part.label.clone(), rows: start - rows..start })
    });
    let parts = parts.collect();
    LogicalTensor { shape, parts, fused: tensor.fused && follows, ..tensor.clone() }
}
