//! Which rank updates which elements: a pure function of schema, treatment, rank count and costs.
//!
//! A tensor under a whole-matrix rule (Muon) becomes one *piece* per true matrix, never split; the
//! pieces go to ranks longest-processing-time first. A tensor under an elementwise rule is cut at
//! fixed blocks of whole rows (about [`BLOCK`] elements), and runs of blocks fill the ranks up to
//! the balanced share. Statistics (one per matrix, one per block) are numbered independently
//! of mesh and rank count, so that norms combine in one canonical order.
//!
//! The plan is one of a group of ranks that hold the same parts of the same tensors: all ranks
//! where the mesh is one of data alone ([`Ownership::new`]), else see [`crate::GroupPlan`].

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

/// Costs of work, in seconds per unit; only ratios matter.
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

/// The form of a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PieceKind {
    /// A true matrix `[rows, cols]`.
    Matrix { rows: usize, cols: usize },
    /// A run of blocks; each block but a tensor's last has `block` elements, and where tp cuts rows
    /// the first and last of a part may have fewer.
    Blocks { block: usize },
}

/// A contiguous part of the flat buffer with one owner.
#[derive(Debug, Clone, PartialEq)]
pub struct Piece {
    /// Position in the schema.
    pub tensor: usize,
    /// Rows of the whole tensor's first axis.
    pub rows: Range<usize>,
    /// Elements of the flat buffer.
    pub flat: Range<usize>,
    pub kind: PieceKind,
    /// Its statistics.
    pub statistics: Range<usize>,
    /// Position in the group.
    pub owner: usize,
    /// Seconds by the cost table.
    pub cost_s: f64,
}

/// The plan: every element that the group holds in exactly one piece.
#[derive(Debug, Clone, PartialEq)]
pub struct Ownership {
    pub world: usize,
    /// In flat order.
    pub pieces: Vec<Piece>,
    /// Number of statistics; independent of `world`.
    pub statistics: usize,
    /// The statistics of each tensor.
    pub tensor_statistics: Vec<Range<usize>>,
    /// Seconds per rank by the cost table.
    pub load_s: Vec<f64>,
}

/// Which members of a group may own a tensor: every `step`th from `first` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owners {
    pub first: usize,
    pub step: usize,
}

impl Owners {
    pub const ALL: Owners = Owners { first: 0, step: 1 };

    fn of(self, world: usize) -> impl Iterator<Item = usize> + Clone {
        (self.first..world).step_by(self.step)
    }

    fn least_loaded(self, load_s: &[f64]) -> usize {
        let members = self.of(load_s.len());
        members.min_by(|&a, &b| load_s[a].total_cmp(&load_s[b])).unwrap_or(self.first)
    }
}

/// The part of a tensor that a group holds.
#[derive(Debug, Clone)]
pub(crate) struct Held<'a> {
    /// Position in the schema.
    pub tensor: usize,
    pub treatment: &'a Treatment,
    /// Elements of a row, and how many of them are held.
    pub row_len: usize,
    pub cols: usize,
    /// Rows that are held: of each true matrix where the treatment is of matrices, with its
    /// number; else as few runs as there are.
    pub runs: Vec<(Range<usize>, usize)>,
    /// Elements of each whole matrix.
    pub matrix_len: Vec<usize>,
    /// Where the first element lies; the others follow.
    pub flat_start: usize,
    pub owners: Owners,
}

/// The statistics of a schema: functions of shapes and treatment alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Statistics {
    pub count: usize,
    pub of: Vec<Range<usize>>,
}

impl Statistics {
    /// Numbers the statistics.
    ///
    /// # Errors
    /// `treatment` without an entry for each tensor, or without FLOPs for each matrix of one.
    pub fn new(schema: &Schema, treatment: &[Treatment]) -> Result<Statistics, LayoutError> {
        let (got, expected) = (treatment.len(), schema.tensors.len());
        if got != expected {
            return Err(LayoutError::Count { what: "treatments", got, expected });
        }
        let mut statistics = Statistics { count: 0, of: Vec::with_capacity(expected) };
        for (tensor, treatment) in treatment.iter().enumerate() {
            let first = statistics.count;
            statistics.count += match treatment {
                Treatment::WholeMatrix { flops } => {
                    let (got, tensor) = (flops.len(), &schema.tensors[tensor]);
                    let expected = tensor.row_ranges().len();
                    if got != expected {
                        let name = tensor.name.clone();
                        return Err(LayoutError::Matrices { name, got, expected });
                    }
                    got
                }
                Treatment::Elementwise => block_count(schema, tensor),
            };
            statistics.of.push(first..statistics.count);
        }
        Ok(statistics)
    }
}

impl Ownership {
    /// Plans the update of `schema` over `world` ranks that hold all of it.
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
        let statistics = Statistics::new(schema, treatment)?;
        let held =
            schema.tensors.iter().zip(treatment).enumerate().map(|(index, (t, treatment))| {
                let matrices = t.row_ranges();
                let (rows, cols) = (t.rows(), t.row_len());
                Held {
                    tensor: index,
                    treatment,
                    row_len: cols,
                    cols,
                    matrix_len: matrices.iter().map(|rows| rows.len() * cols).collect(),
                    runs: match treatment {
                        Treatment::WholeMatrix { .. } => matrices.into_iter().zip(0..).collect(),
                        Treatment::Elementwise => vec![(0..rows, 0)],
                    },
                    flat_start: flat.offsets[index],
                    owners: Owners::ALL,
                }
            });
        Ok(Ownership::among(world, &held.collect::<Vec<_>>(), &statistics, cost))
    }

    /// Plans the update of what the `world` members of a group hold. Tensors that only some may
    /// own come first, so that the others even the loads out.
    pub(crate) fn among(
        world: usize,
        held: &[Held],
        statistics: &Statistics,
        cost: &CostTable,
    ) -> Ownership {
        let mut plan = Ownership {
            world,
            pieces: Vec::new(),
            statistics: statistics.count,
            tensor_statistics: statistics.of.clone(),
            load_s: vec![0.0; world],
        };
        let mut classes: Vec<Owners> = Vec::new();
        for owners in held.iter().map(|held| held.owners) {
            if !classes.contains(&owners) {
                classes.push(owners);
            }
        }
        classes.sort_by_key(|owners| (std::cmp::Reverse(owners.step), owners.first));
        for owners in classes {
            let mine = held.iter().filter(|held| held.owners == owners);
            let (matrices, blocks): (Vec<&Held>, Vec<&Held>) =
                mine.partition(|held| matches!(held.treatment, Treatment::WholeMatrix { .. }));
            plan.assign_matrices(&matrices, owners, cost);
            plan.assign_blocks(&blocks, owners, cost);
        }
        plan.pieces.sort_by_key(|piece| piece.flat.start);
        plan
    }

    /// Longest processing time first: at most 4/3 of the best makespan (Graham 1969).
    fn assign_matrices(&mut self, held: &[&Held], owners: Owners, cost: &CostTable) {
        let mut pieces: Vec<Piece> = Vec::new();
        for held in held {
            pieces.extend(held.matrices(&self.tensor_statistics[held.tensor], cost));
        }
        let mut order: Vec<usize> = (0..pieces.len()).collect();
        order.sort_by(|&a, &b| pieces[b].cost_s.total_cmp(&pieces[a].cost_s).then(a.cmp(&b)));
        for index in order {
            let owner = owners.least_loaded(&self.load_s);
            pieces[index].owner = owner;
            self.load_s[owner] += pieces[index].cost_s;
        }
        self.pieces.append(&mut pieces);
    }

    fn assign_blocks(&mut self, held: &[&Held], owners: Owners, cost: &CostTable) {
        let elements: usize = held.iter().map(|held| held.len()).sum();
        let load: f64 = owners.of(self.world).map(|owner| self.load_s[owner]).sum();
        let share = (load + cost.elements(elements)) / owners.of(self.world).count() as f64;
        let mut owner = owners.least_loaded(&self.load_s);
        for held in held {
            let block_rows = block_rows(held.row_len);
            let block_cost = cost.elements(block_rows * held.cols);
            let first = self.tensor_statistics[held.tensor].start;
            let mut start = held.flat_start;
            for (run, _) in &held.runs {
                let mut row = run.start;
                while row < run.end {
                    if self.load_s[owner] + 0.5 * block_cost > share {
                        owner = owners.least_loaded(&self.load_s);
                    }
                    let room = ((share - self.load_s[owner]) / block_cost).round().max(1.0);
                    // A part may begin inside a block; pieces end where blocks do.
                    let block = row - row % block_rows;
                    let end = block.saturating_add((room as usize).saturating_mul(block_rows));
                    let end = end.min(run.end);
                    let elements = (end - row) * held.cols;
                    let piece = Piece {
                        tensor: held.tensor,
                        rows: row..end,
                        flat: start..start + elements,
                        kind: PieceKind::Blocks { block: block_rows * held.cols },
                        statistics: first + row / block_rows..first + end.div_ceil(block_rows),
                        owner,
                        cost_s: cost.elements(elements),
                    };
                    self.load_s[owner] += piece.cost_s;
                    self.pieces.push(piece);
                    (row, start) = (end, start + elements);
                }
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
    pub(crate) fn makespan_s(&self) -> f64 {
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
            let Piece { tensor, flat, kind, statistics, owner, .. } = piece;
            hasher
                .update(format!("{tensor} {flat:?} {kind:?} {statistics:?} {owner}\n").as_bytes());
        }
        *hasher.finalize().as_bytes()
    }
}

impl Held<'_> {
    /// Elements that are held.
    fn len(&self) -> usize {
        self.runs.iter().map(|(run, _)| run.len() * self.cols).sum()
    }

    /// A piece of each matrix, without an owner. The FLOPs of one of which others hold parts are
    /// divided as its elements are.
    fn matrices(&self, statistics: &Range<usize>, cost: &CostTable) -> Vec<Piece> {
        let Treatment::WholeMatrix { flops } = self.treatment else { return Vec::new() };
        let mut start = self.flat_start;
        let piece = |(rows, matrix): &(Range<usize>, usize)| {
            let elements = rows.len() * self.cols;
            let share = elements as f64 / self.matrix_len[*matrix] as f64;
            let statistic = statistics.start + matrix;
            start += elements;
            Piece {
                tensor: self.tensor,
                rows: rows.clone(),
                flat: start - elements..start,
                kind: PieceKind::Matrix { rows: rows.len(), cols: self.cols },
                statistics: statistic..statistic + 1,
                owner: 0,
                cost_s: cost.matrix(elements, flops[*matrix] * share),
            }
        };
        self.runs.iter().map(piece).collect()
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
        fn every_element_has_one_owner_and_statistics_ignore_the_world(
            shapes in prop::collection::vec((1_usize..300, 1_usize..300, any::<bool>()), 1..12),
            world in 1_usize..6,
        ) {
            let (_, flat, plan) = self::plan(&shapes, world);
            let (_, _, alone) = self::plan(&shapes, 1);
            prop_assert_eq!(plan.statistics, alone.statistics);
            prop_assert_eq!(&plan.tensor_statistics, &alone.tensor_statistics);
            let mut owners = vec![0_u8; flat.len];
            let mut statistics = vec![0_u8; plan.statistics];
            for piece in &plan.pieces {
                prop_assert!(piece.owner < world);
                owners[piece.flat.clone()].iter_mut().for_each(|count| *count += 1);
                statistics[piece.statistics.clone()].iter_mut().for_each(|count| *count += 1);
            }
            prop_assert!(statistics.iter().all(|&count| count == 1));
            for tensor in 0..shapes.len() {
                prop_assert!(owners[flat.range(tensor)].iter().all(|&count| count == 1));
            }
            let segments: usize =
                (0..world).flat_map(|r| plan.segments(r)).map(|range| range.len()).sum();
            prop_assert_eq!(segments, flat.lens.iter().sum::<usize>());
        }
    }

    /// Plans decide who sums what: these are the owners that released runs have had.
    #[test]
    fn plans_are_those_of_earlier_builds() {
        let mut random = 1_u64;
        let mut below = |n: usize| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (random >> 33) as usize % n
        };
        let mut hasher = blake3::Hasher::new();
        for _ in 0..200 {
            let tensors = 1 + below(30);
            let shape = |_| (1 + below(400), 1 + below(300), below(3) > 0);
            let shapes: Vec<(usize, usize, bool)> = (0..tensors).map(shape).collect();
            for world in [1, 2, 3, 5, 8] {
                hasher.update(&plan(&shapes, world).2.digest());
            }
        }
        assert_eq!(hasher.finalize().to_hex()[..16], *"f778d3e53453d2c9");
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
