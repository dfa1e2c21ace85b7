//! Which rank of a mesh writes which bytes of a checkpoint: every element once, by a rank that
//! holds it, and as many bytes by one as by another.
//!
//! ```text
//! tensor, boxes of all coordinates ─▶ equal boxes: one, held by several ranks
//!   ─▶ cut by rows among its holders ─▶ largest first, each to the holder with the least so far
//! ```
//! A pure function, so that no rank has to ask another.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use crate::{Coordinate, LayoutError, Mesh, Placements, Region};

/// A box is not cut into parts of fewer bytes.
const PART_BYTES: usize = 4 << 20;

/// A tensor to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    pub shape: Vec<usize>,
    pub element_bytes: usize,
    /// The tensor of the schema whose placement it has; without one every rank holds all of it.
    pub like: Option<usize>,
}

/// One box of a tensor, and who may write it.
struct Part {
    tensor: usize,
    region: Region,
    bytes: usize,
    /// Ranks, in order.
    holders: std::rc::Rc<[usize]>,
}

/// The boxes that each rank writes, as (tensor, box) in order.
///
/// # Errors
/// A mesh that is not that of the placements.
pub fn write_plan(
    placements: &Placements,
    tensors: &[Written],
) -> Result<Vec<Vec<(usize, Region)>>, LayoutError> {
    let mesh = placements.mesh;
    let mut parts = Vec::new();
    for (number, tensor) in tensors.iter().enumerate() {
        for (region, holders) in boxes(placements, tensor)? {
            let row_bytes = region.elements().unwrap_or(0) * tensor.element_bytes;
            let most = holders.len().min(row_bytes.div_ceil(PART_BYTES)).max(1);
            for region in cut(&region, most) {
                let bytes = region.elements().unwrap_or(0) * tensor.element_bytes;
                parts.push(Part { tensor: number, region, bytes, holders: holders.clone() });
            }
        }
    }
    // Stable: of equal parts the earlier goes first.
    parts.sort_by_key(|part| Reverse(part.bytes));
    let mut load = vec![0_usize; mesh.ranks()];
    let mut ranks = vec![Vec::new(); mesh.ranks()];
    for Part { tensor, region, bytes, holders } in parts {
        let Some(&rank) = holders.iter().min_by_key(|&&rank| load[rank]) else { continue };
        load[rank] += bytes;
        ranks[rank].push((tensor, region));
    }
    ranks.iter_mut().for_each(|boxes| boxes.sort());
    Ok(ranks)
}

type Boxes = BTreeMap<Region, std::rc::Rc<[usize]>>;

/// The different boxes of a tensor that coordinates hold, each with the ranks that hold it.
fn boxes(placements: &Placements, tensor: &Written) -> Result<Boxes, LayoutError> {
    let mesh = placements.mesh;
    if tensor.shape.contains(&0) {
        return Ok(Boxes::new());
    }
    let Some(like) = tensor.like else {
        return Ok([(Region::whole(&tensor.shape), (0..mesh.ranks()).collect())].into());
    };
    let mut holders: BTreeMap<Region, Vec<usize>> = BTreeMap::new();
    let Mesh { pp, dp, ep, tp } = mesh;
    for at in (Mesh { pp, dp: 1, ep, tp }).coordinates() {
        for region in placements.regions(like, at)? {
            let ranks = (0..dp).map(|dp| mesh.rank(Coordinate { dp, ..at }));
            holders.entry(region).or_default().extend(ranks.collect::<Result<Vec<_>, _>>()?);
        }
    }
    Ok(holders
        .into_iter()
        .map(|(region, mut ranks)| {
            ranks.sort_unstable();
            (region, ranks.into())
        })
        .collect())
}

/// Cuts a box along its first axis of several indices into at most `parts` parts.
fn cut(region: &Region, parts: usize) -> Vec<Region> {
    let Some(axis) = region.shape.iter().position(|&extent| extent > 1) else {
        return vec![region.clone()];
    };
    let extent = region.shape[axis];
    let parts = parts.min(extent);
    let part = |index| {
        let share = crate::share(extent, parts, index);
        let mut part = region.clone();
        part.offset[axis] += share.start;
        part.shape[axis] = share.len();
        part
    };
    (0..parts).map(part).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::region::prove_cover;
    use crate::{HeadRows, LogicalTensor, Role, Schema};

    fn schema(layers: usize) -> Schema {
        let mut tensors =
            vec![LogicalTensor::new("model.embed_tokens.weight", &[4096, 512], Role::Embedding)];
        for layer in 0..layers {
            let name = |what: &str| format!("model.layers.{layer}.{what}.weight");
            let matrix =
                |what: &str, shape: &[usize]| LogicalTensor::new(name(what), shape, Role::Matrix);
            tensors.push(matrix("self_attn.q_proj", &[1024, 512]));
            tensors.push(matrix("self_attn.o_proj", &[512, 1024]));
            tensors.push(LogicalTensor::new(name("input_layernorm"), &[512], Role::Vector));
            for index in 0..4 {
                let role = Role::Expert { index, of: 4 };
                let up = name(&format!("mlp.experts.{index}.up_proj"));
                tensors.push(LogicalTensor::new(up, &[1024, 512], role));
            }
        }
        Schema::new(tensors).unwrap()
    }

    proptest! {
        #[test]
        fn every_element_is_written_once_by_one_that_holds_it(
            pp in 1_usize..3, dp in 1_usize..5, ep in 0_usize..3, tp in 0_usize..3,
        ) {
            let mesh = Mesh { pp, dp, ep: 1 << ep, tp: 1 << tp };
            let schema = schema(4);
            let placements = Placements::new(&schema, HeadRows::of(64), mesh).unwrap();
            let mut tensors: Vec<Written> = schema.tensors.iter().enumerate().map(|(index, t)| {
                Written { shape: t.shape.clone(), element_bytes: 4, like: Some(index) }
            }).collect();
            tensors.push(Written { shape: vec![4, 4], element_bytes: 4, like: None });
            tensors.push(Written { shape: vec![], element_bytes: 8, like: None });
            tensors.push(Written { shape: vec![0, 3], element_bytes: 8, like: Some(0) });
            let ranks = write_plan(&placements, &tensors).unwrap();
            prop_assert_eq!(&ranks, &write_plan(&placements, &tensors).unwrap());
            for (number, tensor) in tensors.iter().enumerate() {
                let mut all = Vec::new();
                for (rank, boxes) in ranks.iter().enumerate() {
                    let held = match tensor.like {
                        Some(like) => placements.regions(like, mesh.coordinate(rank).unwrap()),
                        None => Ok(vec![Region::whole(&tensor.shape)]),
                    };
                    let held = held.unwrap();
                    for (_, region) in boxes.iter().filter(|(of, _)| *of == number) {
                        let holds =
                            |whole: &Region| whole.intersect(region).as_ref() == Some(region);
                        prop_assert!(tensor.shape.is_empty() || held.iter().any(holds));
                        all.push(region.clone());
                    }
                }
                prop_assert_eq!(prove_cover(&tensor.shape, &all), Ok(()));
            }
        }
    }

    #[test]
    fn replicas_share_the_bytes_up_to_one_part() {
        let schema = schema(12);
        let mesh = Mesh::data_parallel(8);
        let placements = Placements::new(&schema, HeadRows::of(64), mesh).unwrap();
        let tensors = schema.tensors.iter().enumerate().map(|(index, t)| Written {
            shape: t.shape.clone(),
            element_bytes: 4,
            like: Some(index),
        });
        let tensors: Vec<Written> = tensors.collect();
        let ranks = write_plan(&placements, &tensors).unwrap();
        let bytes = |boxes: &Vec<(usize, Region)>| {
            boxes.iter().map(|(_, region)| 4 * region.elements().unwrap()).sum::<usize>()
        };
        let loads: Vec<usize> = ranks.iter().map(bytes).collect();
        let (least, most) = (loads.iter().min().unwrap(), loads.iter().max().unwrap());
        assert!(most - least <= PART_BYTES, "{loads:?}");
        // One large table alone is cut, and shared to a row.
        let table = [Written { shape: vec![80_003, 512], element_bytes: 4, like: Some(0) }];
        let embedding =
            LogicalTensor::new("model.embed_tokens.weight", &[80_003, 512], Role::Embedding);
        let alone = Schema::new(vec![embedding]).unwrap();
        let placements = Placements::new(&alone, HeadRows::of(64), mesh).unwrap();
        let ranks = write_plan(&placements, &table).unwrap();
        let loads: Vec<usize> = ranks.iter().map(bytes).collect();
        assert!(loads.iter().max().unwrap() - loads.iter().min().unwrap() <= 4 * 512, "{loads:?}");
    }
}
