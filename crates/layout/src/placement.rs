//! Where each tensor lies in a mesh: along every axis, and as boxes per coordinate.
//!
//! ```text
//! q_proj of layer 2 of 4, pp 2, tp 2:   pp  held at stage 1
//!                                       dp  replicated
//!                                       ep  replicated
//!                                       tp  rows sharded by whole heads
//! ```
//! Layers lie on stages in contiguous runs; what comes before them goes with the first stage, what
//! comes after with the last. A token embedding that serves as the head, too, lies on both. Experts
//! lie by index over ep. How tp cuts is a table ([`crate::placement_rules`]).

use std::ops::Range;

use crate::mesh_fit::Demands;
use crate::placement_rules::{Cut, HeadRows, Split, cut, layer};
use crate::share;
use crate::{Axis, Coordinate, LayoutError, LogicalTensor, Mesh, MeshSpec, Region, Role, Schema};

/// How a tensor lies along one axis of the mesh.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Along {
    /// Every rank along the axis has all of it.
    Replicated,
    /// Each rank has a contiguous part of the tensor's axis `axis`: of every run of `runs` on its
    /// own, in whole units of `unit` indices, larger parts first.
    Sharded { axis: usize, split: Split, unit: usize, runs: Vec<Range<usize>> },
    /// The ranks at these numbers along the axis have all of it, the others nothing.
    Held { at: Vec<usize> },
}

/// How one tensor lies in a mesh. Along dp every tensor is replicated.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Placement {
    pub pp: Along,
    pub ep: Along,
    pub tp: Along,
}

impl Placement {
    /// How the tensor lies along `axis`.
    pub fn along(&self, axis: Axis) -> &Along {
        match axis {
            Axis::Pp => &self.pp,
            Axis::Dp => &Along::Replicated,
            Axis::Ep => &self.ep,
            Axis::Tp => &self.tp,
        }
    }

    /// Whether the rank at `at` has any of it.
    fn is_at(&self, at: Coordinate) -> bool {
        Axis::ALL.into_iter().all(|axis| match self.along(axis) {
            Along::Held { at: places } => places.contains(&at.along(axis)),
            _ => true,
        })
    }
}

/// How all tensors of a schema lie in a mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placements {
    pub mesh: Mesh,
    /// Of each tensor, in schema order.
    pub tensors: Vec<Placement>,
    shapes: Vec<Vec<usize>>,
    /// The rows of the true matrices of each tensor.
    matrices: Vec<Vec<Range<usize>>>,
}

impl Placements {
    /// Places `schema` in `mesh` by the default rules.
    ///
    /// # Errors
    /// A mesh that the model does not allow, with the nearest that it does.
    pub fn new(schema: &Schema, heads: HeadRows, mesh: Mesh) -> Result<Placements, LayoutError> {
        let demands = Demands::new(schema, heads);
        let Mesh { pp, dp, ep, tp } = mesh;
        MeshSpec { pp, dp: Some(dp), ep, tp }.fill(mesh.ranks(), &demands)?;
        let places = Places::new(schema, mesh);
        let tensors = (0..schema.tensors.len()).map(|index| Placement {
            pp: places.along_pp(schema, index, &heads),
            ep: along_ep(&schema.tensors[index], mesh),
            tp: along_tp(schema, index, &heads, mesh),
        });
        Ok(Placements {
            mesh,
            tensors: tensors.collect(),
            shapes: schema.tensors.iter().map(|tensor| tensor.shape.clone()).collect(),
            matrices: schema.tensors.iter().map(LogicalTensor::row_ranges).collect(),
        })
    }

    /// The boxes of tensor `index` that the rank at `at` holds, in row order; none where it holds
    /// nothing. It is one box, except where tp cuts a tensor that was published fused: then it is
    /// one of each true matrix, since their parts do not touch.
    ///
    /// # Errors
    /// A coordinate outside the mesh.
    pub fn regions(&self, index: usize, at: Coordinate) -> Result<Vec<Region>, LayoutError> {
        let whole = 0..self.shapes[index].first().copied().unwrap_or(1);
        let mut merged: Vec<Region> = Vec::new();
        for region in self.boxes(index, at, std::slice::from_ref(&whole))? {
            match merged.last_mut() {
                Some(last) if touch(last, &region) => last.shape[0] += region.shape[0],
                _ => merged.push(region),
            }
        }
        Ok(merged)
    }

    /// The box of tensor `index` that the rank at `at` holds; `None` where it holds nothing, or
    /// more than one box ([`Placements::regions`]).
    ///
    /// # Errors
    /// A coordinate outside the mesh.
    pub fn region(&self, index: usize, at: Coordinate) -> Result<Option<Region>, LayoutError> {
        let mut regions = self.regions(index, at)?;
        Ok(if regions.len() == 1 { regions.pop() } else { None })
    }

    /// As [`Placements::regions`], but a box for each true matrix.
    ///
    /// # Errors
    /// A coordinate outside the mesh.
    pub fn matrices(&self, index: usize, at: Coordinate) -> Result<Vec<Region>, LayoutError> {
        self.boxes(index, at, &self.matrices[index])
    }

    /// Of each run of rows the box that `at` holds.
    fn boxes(
        &self,
        index: usize,
        at: Coordinate,
        rows: &[Range<usize>],
    ) -> Result<Vec<Region>, LayoutError> {
        self.mesh.check(at)?;
        let (placement, shape) = (&self.tensors[index], &self.shapes[index]);
        if !placement.is_at(at) {
            return Ok(Vec::new());
        }
        if shape.is_empty() {
            return Ok(vec![Region::whole(shape)]);
        }
        let of_rows = |rows: &Range<usize>| {
            let mut region = Region::whole(shape);
            (region.offset[0], region.shape[0]) = (rows.start, rows.len());
            region
        };
        let parts = |run: &Range<usize>, unit| part(run, unit, self.mesh.tp, at.tp);
        let boxes: Vec<Region> = match &placement.tp {
            Along::Sharded { axis: 0, unit, runs, .. } => {
                runs.iter().map(|run| of_rows(&parts(run, *unit))).collect()
            }
            Along::Sharded { axis, unit, .. } => {
                let cut = parts(&(0..shape[*axis]), *unit);
                let narrow = |rows| {
                    let mut region = of_rows(rows);
                    (region.offset[*axis], region.shape[*axis]) = (cut.start, cut.len());
                    region
                };
                rows.iter().map(narrow).collect()
            }
            _ => rows.iter().map(of_rows).collect(),
        };
        Ok(boxes.into_iter().filter(|region| !region.shape.contains(&0)).collect())
    }

    /// How many elements of tensor `index` the rank at `at` holds: those of its regions.
    ///
    /// # Errors
    /// A coordinate outside the mesh.
    pub fn elements(&self, index: usize, at: Coordinate) -> Result<usize, LayoutError> {
        self.mesh.check(at)?;
        let (placement, shape) = (&self.tensors[index], &self.shapes[index]);
        let all: usize = shape.iter().product();
        Ok(match &placement.tp {
            _ if !placement.is_at(at) => 0,
            Along::Sharded { axis, unit, runs, .. } => {
                let parts = runs.iter().map(|run| part(run, *unit, self.mesh.tp, at.tp).len());
                all / shape[*axis].max(1) * parts.sum::<usize>()
            }
            _ => all,
        })
    }

    /// Whether the rank at `at` holds the first copy of its part of tensor `index` along pp and tp:
    /// what is summed over a whole model, such as a norm, counts the others' no second time.
    pub fn is_first_copy(&self, index: usize, at: Coordinate) -> bool {
        [Axis::Pp, Axis::Tp].into_iter().all(|axis| match self.tensors[index].along(axis) {
            Along::Replicated => at.along(axis) == 0,
            Along::Sharded { .. } => true,
            Along::Held { at: places } => places.first() == Some(&at.along(axis)),
        })
    }

    /// The same with ep folded into dp: what the ranks of one stage and tp number hold together.
    pub(crate) fn fold_experts(&self) -> Placements {
        let Mesh { pp, dp, ep, tp } = self.mesh;
        let mut folded = self.clone();
        folded.mesh = Mesh { pp, dp: dp * ep, ep: 1, tp };
        folded.tensors.iter_mut().for_each(|placement| placement.ep = Along::Replicated);
        folded
    }

    /// How many ranks hold each element of tensor `index`.
    pub fn copies(&self, index: usize) -> usize {
        let along = |axis| match self.tensors[index].along(axis) {
            Along::Replicated => self.mesh.along(axis),
            Along::Sharded { .. } => 1,
            Along::Held { at } => at.len(),
        };
        Axis::ALL.into_iter().map(along).product()
    }
}

/// Whether `next` goes on where `last` ends, along the first axis.
fn touch(last: &Region, next: &Region) -> bool {
    last.offset[0] + last.shape[0] == next.offset[0]
        && last.offset[1..] == next.offset[1..]
        && last.shape[1..] == next.shape[1..]
}

/// Number `index` of `parts` parts of `run`, in whole units; the last takes what is no whole unit.
fn part(run: &Range<usize>, unit: usize, parts: usize, index: usize) -> Range<usize> {
    let units = share(run.len() / unit, parts, index);
    let end = if index + 1 == parts { run.end } else { run.start + units.end * unit };
    run.start + units.start * unit..end
}

/// The facts of a schema and a mesh that decide the stages of each tensor.
struct Places {
    stages: usize,
    layers: usize,
    /// Position of the first tensor of a layer.
    first_layered: usize,
    tied: bool,
}

impl Places {
    fn new(schema: &Schema, mesh: Mesh) -> Places {
        let layers = schema.tensors.iter().filter_map(|tensor| layer(&tensor.name));
        Places {
            stages: mesh.pp,
            layers: layers.max().map_or(0, |last| last + 1),
            first_layered: schema
                .tensors
                .iter()
                .position(|tensor| layer(&tensor.name).is_some())
                .unwrap_or(schema.tensors.len()),
            tied: !schema.tensors.iter().any(|tensor| tensor.role == Role::Head),
        }
    }

    fn along_pp(&self, schema: &Schema, index: usize, heads: &HeadRows) -> Along {
        let (tensor, last) = (&schema.tensors[index], self.stages - 1);
        let vocabulary = cut(tensor, heads) == Some(Cut::Rows(Split::Vocabulary));
        let at = match layer(&tensor.name) {
            Some(layer) => {
                let holds =
                    |stage: &usize| share(self.layers, self.stages, *stage).contains(&layer);
                vec![(0..self.stages).find(holds).unwrap_or(last)]
            }
            None if index >= self.first_layered => vec![last],
            None if vocabulary && self.tied && last > 0 => vec![0, last],
            None => vec![0],
        };
        Along::Held { at }
    }
}

fn along_ep(tensor: &LogicalTensor, mesh: Mesh) -> Along {
    match tensor.role {
        Role::Expert { index, of } => {
            let each = (of as usize / mesh.ep).max(1);
            Along::Held { at: vec![index as usize / each] }
        }
        _ => Along::Replicated,
    }
}

fn along_tp(schema: &Schema, index: usize, heads: &HeadRows, mesh: Mesh) -> Along {
    let (axis, split) = match cut(&schema.tensors[index], heads) {
        Some(Cut::Rows(split)) if mesh.tp > 1 => (0, split),
        Some(Cut::Columns(split)) if mesh.tp > 1 => (1, split),
        _ => return Along::Replicated,
    };
    Along::Sharded { axis, split, unit: split.unit(heads), runs: schema.runs(index, axis) }
}
