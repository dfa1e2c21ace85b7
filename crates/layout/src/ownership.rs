//! Which rank updates which elements: a pure function of schema, treatment, rank count and costs.
//!
//! A tensor under a whole-matrix rule (Muon) becomes one *piece* per true matrix, never split; the
//! pieces go to ranks longest-processing-time first. A tensor under an elementwise rule is cut at
//! fixed blocks of whole rows (about [`BLOCK`] elements), and runs of blocks fill the ranks up to
//! the balanced share. Statistic slots (one per matrix, one per block) are numbered independently
//! of the rank count, so that norms combine in one canonical order.

use std::ops::Range;

use crate::{FlatLayout, LayoutError, Schema};

/// Elements of an elementwise block, rounded down to whole rows (at least one row).
pub const BLOCK: usize = 4096;

/// How the optimizer treats a tensor.
#[derive(Debug, Clone, PartialEq)]
pub enum Treatment {
    /// Acts on whole matrices; the FLOPs of each, in the order of its rows.
    WholeMatrix { flops: Vec<f64> },
    /// Acts on each element alone.
    Elementwise,
}

/// What work costs, in seconds per unit; only ratios matter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CostTable {
    pub seconds_per_flop: f64,
    pub seconds_per_byte: f64,
}

impl CostTable {
    /// A desktop or server CPU core: about 80 GFLOP/s and 10 GB/s.
    pub const CPU: CostTable = CostTable { seconds_per_flop: 1.0 / 80e9, seconds_per_byte: 1e-10 };

    /// Seconds of the update of a matrix of so many elements that takes `flops`.
    pub fn matrix(&self, elements: usize, flops: f64) -> f64 {
        flops * self.seconds_per_flop + self.elements(elements)
    }

    /// Seconds of an elementwise update: 28 bytes moved per element (AdamW: 16 read, 12 written).
    pub fn elements(&self, elements: usize) -> f64 {
        elements as f64 * 28.0 * self.seconds_per_byte
    }
}

/// What a piece is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PieceKind {
    /// A true matrix `[rows, cols]`.
    Matrix { rows: usize, cols: usize },
    /// A run of blocks; each block but a tensor's last has `block` elements.
    Blocks { block: usize },
}

/// A contiguous part of the flat buffer with one owner.
#[derive(Debug, Clone, PartialEq)]
pub struct Piece {
    /// Position in the schema.
    pub tensor: usize,
    /// Rows of the tensor's first axis.
    pub rows: Range<usize>,
    /// Elements of the flat buffer.
    pub flat: Range<usize>,
    pub kind: PieceKind,
    /// Its statistic slots.
    pub slots: Range<usize>,
    pub owner: usize,
    /// Seconds by the cost table.
    pub cost_s: f64,
}

/// The plan: every element of every tensor in exactly one piece.
#[derive(Debug, Clone, PartialEq)]
pub struct Ownership {
    pub world: usize,
    /// In flat order.
    pub pieces: Vec<Piece>,
    /// Number of statistic slots; independent of `world`.
    pub slots: usize,
    /// The slots of each tensor.
    pub tensor_slots: Vec<Range<usize>>,
    /// Seconds per rank by the cost table.
    pub load_s: Vec<f64>,
}

impl Ownership {
    /// Plans the update of `schema` over `world` ranks.
    ///
    /// # Errors
    /// `treatment` without an entry for each tensor, or without FLOPs for each matrix of one.
    pub fn new(
        schema: &Schema,
        flat: &FlatLayout,
        treatment: &[Treatment],
        world: usize,
        cost: &CostTable,
    ) -> Result<Ownership, LayoutError> {
        flat.check_count("treatments", treatment.len())?;
        let mut plan = Ownership {
            world,
            pieces: Vec::new(),
            slots: 0,
            tensor_slots: Vec::new(),
            load_s: vec![0.0; world],
        };
        let mut elementwise = Vec::new();
        for (tensor, treatment) in treatment.iter().enumerate() {
            let first = plan.slots;
            match treatment {
                Treatment::WholeMatrix { flops } => {
                    plan.matrices(schema, flat, tensor, flops, cost)?;
                }
                Treatment::Elementwise => {
                    elementwise.push(tensor);
                    plan.slots += block_count(schema, tensor);
                }
            }
            plan.tensor_slots.push(first..plan.slots);
        }
        plan.assign_matrices();
        plan.assign_blocks(schema, flat, &elementwise, cost);
        plan.pieces.sort_by_key(|piece| piece.flat.start);
        Ok(plan)
    }

    fn matrices(
        &mut self,
        schema: &Schema,
        flat: &FlatLayout,
        tensor: usize,
        flops: &[f64],
        cost: &CostTable,
    ) -> Result<(), LayoutError> {
        let cols = schema.tensors[tensor].row_len();
        let matrices = schema.tensors[tensor].row_ranges();
        if flops.len() != matrices.len() {
            let name = schema.tensors[tensor].name.clone();
            return Err(LayoutError::Matrices { name, got: flops.len(), expected: matrices.len() });
        }
        for (rows, &flops) in matrices.into_iter().zip(flops) {
            let start = flat.offsets[tensor] + rows.start * cols;
            self.pieces.push(Piece {
                tensor,
                flat: start..start + rows.len() * cols,
                kind: PieceKind::Matrix { rows: rows.len(), cols },
                slots: self.slots..self.slots + 1,
                owner: 0,
                cost_s: cost.matrix(rows.len() * cols, flops),
                rows,
            });
            self.slots += 1;
        }
        Ok(())
    }

    /// Longest processing time first: at most 4/3 of the best makespan (Graham 1969).
    fn assign_matrices(&mut self) {
        let mut order: Vec<usize> = (0..self.pieces.len()).collect();
        order.sort_by(|&a, &b| {
            let (a_cost, b_cost) = (self.pieces[a].cost_s, self.pieces[b].cost_s);
            b_cost.total_cmp(&a_cost).then(a.cmp(&b))
        });
        for index in order {
            let owner = least_loaded(&self.load_s);
            self.pieces[index].owner = owner;
            self.load_s[owner] += self.pieces[index].cost_s;
        }
    }

    fn assign_blocks(
        &mut self,
        schema: &Schema,
        flat: &FlatLayout,
        tensors: &[usize],
        cost: &CostTable,
    ) {
        let elements: usize = tensors.iter().map(|&tensor| flat.lens[tensor]).sum();
        let total: f64 = self.load_s.iter().sum::<f64>() + cost.elements(elements);
        let share = total / self.world as f64;
        let mut owner = least_loaded(&self.load_s);
        for &tensor in tensors {
            let (rows, cols) = (schema.tensors[tensor].rows(), schema.tensors[tensor].row_len());
            let block_rows = block_rows(cols);
            let block_cost = cost.elements(block_rows * cols);
            let mut row = 0;
            while row < rows {
                if self.load_s[owner] + 0.5 * block_cost > share {
                    owner = least_loaded(&self.load_s);
                }
                let room = ((share - self.load_s[owner]) / block_cost).round().max(1.0) as usize;
                let end = row.saturating_add(room.saturating_mul(block_rows)).min(rows);
                let start = flat.offsets[tensor] + row * cols;
                let first = self.tensor_slots[tensor].start + row / block_rows;
                let piece = Piece {
                    tensor,
                    rows: row..end,
                    flat: start..start + (end - row) * cols,
                    kind: PieceKind::Blocks { block: block_rows * cols },
                    slots: first..first + (end - row).div_ceil(block_rows),
                    owner,
                    cost_s: cost.elements((end - row) * cols),
                };
                self.load_s[owner] += piece.cost_s;
                self.pieces.push(piece);
                row = end;
            }
        }
    }

    /// The pieces of one rank, in flat order.
    pub fn owned(&self, rank: usize) -> impl Iterator<Item = &Piece> {
        self.pieces.iter().filter(move |piece| piece.owner == rank)
    }

    /// The flat ranges of one rank, adjacent ones merged, in order.
    pub fn segments(&self, rank: usize) -> Vec<Range<usize>> {
        let mut segments: Vec<Range<usize>> = Vec::new();
        for piece in self.owned(rank) {
            match segments.last_mut() {
                Some(last) if last.end == piece.flat.start => last.end = piece.flat.end,
                _ => segments.push(piece.flat.clone()),
            }
        }
        segments
    }

    /// Seconds of the most loaded rank.
    pub fn makespan_s(&self) -> f64 {
        self.load_s.iter().copied().fold(0.0, f64::max)
    }

    /// Mean load over makespan: 1 is perfect.
    pub fn balance(&self) -> f64 {
        let makespan = self.makespan_s();
        if makespan == 0.0 {
            return 1.0;
        }
        self.load_s.iter().sum::<f64>() / (self.world as f64 * makespan)
    }

    /// The costliest matrix: no plan that keeps matrices whole is faster than it.
    pub fn critical(&self) -> Option<&Piece> {
        let matrices = self.pieces.iter().filter(|p| matches!(p.kind, PieceKind::Matrix { .. }));
        matrices.max_by(|a, b| a.cost_s.total_cmp(&b.cost_s))
    }

    /// BLAKE3 over pieces and owners; ranks compare it when they meet.
    pub fn digest(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        for piece in &self.pieces {
            let Piece { tensor, flat, kind, slots, owner, .. } = piece;
            hasher.update(format!("{tensor} {flat:?} {kind:?} {slots:?} {owner}\n").as_bytes());
        }
        *hasher.finalize().as_bytes()
    }
}

/// Rows per elementwise block of a tensor with `row_len` elements per row.
pub fn block_rows(row_len: usize) -> usize {
    (BLOCK / row_len.max(1)).max(1)
}

fn block_count(schema: &Schema, tensor: usize) -> usize {
    let tensor = &schema.tensors[tensor];
    tensor.rows().div_ceil(block_rows(tensor.row_len()))
}

fn least_loaded(load_s: &[f64]) -> usize {
    let ranks = load_s.iter().enumerate();
    ranks.min_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(rank, _)| rank)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{LogicalTensor, Role};
    use proptest::prelude::*;

    fn plan(shapes: &[(usize, usize, bool)], world: usize) -> (Schema, FlatLayout, Ownership) {
        let tensors = shapes.iter().enumerate();
        let tensors = tensors
            .map(|(i, &(r, c, _))| LogicalTensor::new(format!("t{i}"), &[r, c], Role::Matrix));
        let schema = Schema::new(tensors.collect()).unwrap();
        let flat = FlatLayout::new(&schema, 1 << 16);
        let treatment: Vec<Treatment> = shapes
            .iter()
            .map(|&(rows, cols, muon)| match muon {
                true => Treatment::WholeMatrix { flops: vec![quintics(rows, cols)] },
                false => Treatment::Elementwise,
            })
            .collect();
        let plan = Ownership::new(&schema, &flat, &treatment, world, &CostTable::CPU).unwrap();
        (schema, flat, plan)
    }

    /// Five quintic steps with every product in full: two of `n²·m`, one of `n³` each.
    fn quintics(rows: usize, cols: usize) -> f64 {
        let (n, m) = (rows.min(cols) as f64, rows.max(cols) as f64);
        10.0 * (2.0 * n * n * m + n * n * n)
    }

    proptest! {
        #[test]
        fn every_element_has_one_owner_and_slots_ignore_the_world(
            shapes in prop::collection::vec((1_usize..300, 1_usize..300, any::<bool>()), 1..12),
            world in 1_usize..6,
        ) {
            let (_, flat, plan) = self::plan(&shapes, world);
            let (_, _, alone) = self::plan(&shapes, 1);
            prop_assert_eq!(plan.slots, alone.slots);
            prop_assert_eq!(&plan.tensor_slots, &alone.tensor_slots);
            let mut owners = vec![0_u8; flat.len];
            let mut slots = vec![0_u8; plan.slots];
            for piece in &plan.pieces {
                prop_assert!(piece.owner < world);
                owners[piece.flat.clone()].iter_mut().for_each(|count| *count += 1);
                slots[piece.slots.clone()].iter_mut().for_each(|count| *count += 1);
            }
            prop_assert!(slots.iter().all(|&count| count == 1));
            for tensor in 0..shapes.len() {
                prop_assert!(owners[flat.range(tensor)].iter().all(|&count| count == 1));
            }
            let segments: usize =
                (0..world).flat_map(|r| plan.segments(r)).map(|range| range.len()).sum();
            prop_assert_eq!(segments, flat.lens.iter().sum::<usize>());
        }
    }

    #[test]
    fn equal_matrices_balance() {
        let (_, _, plan) = plan(&[(64, 256, true); 8], 4);
        assert!(plan.balance() > 0.999, "{:?}", plan.load_s);
        assert_eq!(plan.critical().unwrap().kind, PieceKind::Matrix { rows: 64, cols: 256 });
    }

    #[test]
    fn matrices_of_a_shape_are_dealt_by_their_flops() {
        let tensors = (0..4).map(|i| LogicalTensor::new(format!("t{i}"), &[64, 64], Role::Matrix));
        let schema = Schema::new(tensors.collect()).unwrap();
        let flat = FlatLayout::new(&schema, 1 << 16);
        let plan = |flops: [&[f64]; 4]| {
            let whole = |flops: &[f64]| Treatment::WholeMatrix { flops: flops.to_vec() };
            Ownership::new(&schema, &flat, &flops.map(whole), 2, &CostTable::CPU)
        };
        let owners =
            |flops| plan(flops).unwrap().pieces.iter().map(|p| p.owner).collect::<Vec<_>>();
        assert_eq!(owners([&[9e9], &[3e9], &[3e9], &[2e9]]), [0, 1, 1, 1]);
        assert_eq!(owners([&[3e9], &[3e9], &[3e9], &[3e9]]), [0, 1, 0, 1]);
        let error = plan([&[1e9], &[1e9, 1e9], &[1e9], &[1e9]]).unwrap_err();
        assert_eq!(error.to_string(), "`t1`: FLOPs of 2 matrices for 1");
    }

    #[test]
    fn a_large_table_fills_the_ranks_that_have_less_to_do() {
        let (_, _, plan) = plan(&[(512, 512, true), (900_000, 64, false)], 3);
        assert!(plan.balance() > 0.95, "{:?}", plan.load_s);
    }
}
