//! How one rank's pieces are kept and launched: a pure function of the plan.
//!
//! ```text
//! masters      │ group 0: piece piece … │ group 1: piece … │ …  (matrices, then runs of rows)
//! each state   │ group 0: piece piece … │ … of those groups whose update has it
//! ```
//!
//! Matrices of one rule and one shape lie side by side and are updated in batches ([`BatchSize`]);
//! runs of rows are one group for each rule.

use std::ops::Range;

use device::Device;
use kernels::optimizer::{Span, StatisticRange};
use layout::flat::ALIGN;
use layout::{Ownership, Piece, PieceKind, Schema};

use crate::OptimError;
use crate::rules::TensorPlan;
use crate::update::{Group, Planned, Unit, Update};

/// How many matrices of a shape are updated together, so that a device has enough to do while the
/// scratch stays small. It changes no bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BatchSize {
    /// So many in any case …
    matrices: usize,
    /// … and more, up to so many elements.
    elements: usize,
}

impl BatchSize {
    /// One matrix for each thread of a host.
    pub(crate) fn of_threads(threads: usize) -> BatchSize {
        BatchSize { matrices: threads.max(1), elements: 1 << 21 }
    }

    /// A device works on all matrices at once: 128 MiB each of updates and of directions.
    pub(crate) fn of(device: &Device) -> BatchSize {
        match device.kind().is_host() {
            true => BatchSize::of_threads(device.threads()),
            false => BatchSize { matrices: 1, elements: 1 << 25 },
        }
    }

    fn most(self, elements_each: usize) -> usize {
        (self.elements / elements_each.max(1)).max(self.matrices)
    }
}

/// Where the state of one piece lies.
#[derive(Debug, Clone)]
pub(crate) struct LocalPiece {
    pub piece: Piece,
    /// Elements per row.
    pub row_len: usize,
    /// Its part of the masters.
    pub masters: Range<usize>,
    /// Its part of each state of its update.
    pub states: Vec<KeptState>,
}

/// Part of a state that goes with a piece.
#[derive(Debug, Clone)]
pub(crate) struct KeptState {
    /// Position in [`LocalPlan::states`], and elements there.
    pub stored: usize,
    pub range: Range<usize>,
    /// Rows of the whole state of the parameter, and elements of each.
    pub rows: Range<usize>,
    pub row_len: usize,
}

/// A group, and where it lies.
pub(crate) struct LocalGroup {
    pub group: Group,
    pub planned: Box<dyn Planned>,
    /// Positions in [`LocalPlan::pieces`].
    pub pieces: Range<usize>,
    pub masters: Range<usize>,
    pub states: Vec<(usize, Range<usize>)>,
}

/// One state of all pieces of a rank that have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stored {
    pub slot: &'static str,
    pub len: usize,
}

/// Everything one rank updates.
pub(crate) struct LocalPlan {
    /// Matrices, batch by batch, then runs of rows. The position is the unit of a span.
    pub pieces: Vec<LocalPiece>,
    pub groups: Vec<LocalGroup>,
    /// Of every update, in the order of the registry.
    pub states: Vec<Stored>,
    /// Elements of the masters, gaps included.
    pub len: usize,
    /// Number of matrices.
    pub matrices: usize,
    pub statistics: Vec<StatisticRange>,
}

impl LocalPlan {
    pub(crate) fn new(
        schema: &Schema,
        ownership: &Ownership,
        rank: usize,
        plans: &[TensorPlan],
        size: BatchSize,
    ) -> Result<LocalPlan, OptimError> {
        if plans.len() != schema.tensors.len() {
            let (got, expected) = (plans.len(), schema.tensors.len());
            return Err(OptimError::Count { what: "tensor plans", got, expected });
        }
        let mut local = LocalPlan {
            pieces: Vec::new(),
            groups: Vec::new(),
            states: every_state(),
            len: 0,
            matrices: 0,
            statistics: statistic_ranges(ownership, rank),
        };
        local.add_matrices(ownership, rank, plans, size)?;
        local.matrices = local.pieces.len();
        local.add_rows(schema, ownership, rank, plans)?;
        Ok(local)
    }

    fn add_matrices(
        &mut self,
        ownership: &Ownership,
        rank: usize,
        plans: &[TensorPlan],
        size: BatchSize,
    ) -> Result<(), OptimError> {
        let mut matrices: Vec<(&Piece, usize, usize)> = Vec::new();
        for piece in ownership.owned(rank) {
            if let PieceKind::Matrix { rows, cols } = piece.kind {
                matrices.push((piece, rows, cols));
            }
        }
        let same = |&(piece, rows, cols): &(&Piece, usize, usize)| {
            (std::cmp::Reverse(rows * cols), rows, plans[piece.tensor].rule)
        };
        // Stable: pieces of a group keep their flat order.
        matrices.sort_by_key(same);
        for alike in matrices.chunk_by(|a, b| same(a) == same(b)) {
            let (_, rows, cols) = alike[0];
            for batch in alike.chunks(size.most(rows * cols)) {
                let pieces: Vec<_> = batch.iter().map(|&(piece, ..)| (piece, cols)).collect();
                self.add_group(&pieces, (rows, cols), plans)?;
            }
        }
        Ok(())
    }

    fn add_rows(
        &mut self,
        schema: &Schema,
        ownership: &Ownership,
        rank: usize,
        plans: &[TensorPlan],
    ) -> Result<(), OptimError> {
        let is_run = |piece: &&Piece| matches!(piece.kind, PieceKind::Blocks { .. });
        let mut pieces: Vec<&Piece> = ownership.owned(rank).filter(is_run).collect();
        pieces.sort_by_key(|piece| plans[piece.tensor].rule);
        for group in pieces.chunk_by(|a, b| plans[a.tensor].rule == plans[b.tensor].rule) {
            let row_len = |piece: &Piece| schema.tensors[piece.tensor].row_len();
            let group: Vec<_> = group.iter().map(|&piece| (piece, row_len(piece))).collect();
            self.add_group(&group, (0, 0), plans)?;
        }
        Ok(())
    }

    /// Adds pieces of one rule, each with the length of its rows.
    fn add_group(
        &mut self,
        members: &[(&Piece, usize)],
        shape: (usize, usize),
        plans: &[TensorPlan],
    ) -> Result<(), OptimError> {
        let first = self.pieces.len();
        let mut group = Group { shape, spans: Vec::new(), len: 0 };
        for (unit, (piece, _)) in (first..).zip(members) {
            let len = piece.flat.len();
            group.spans.push(Span { flat: piece.flat.start, local: group.len, len, unit });
            group.len += len.next_multiple_of(ALIGN);
        }
        let start = self.len;
        for (span, &(piece, row_len)) in group.spans.iter().zip(members) {
            let masters = start + span.local..start + span.local + span.len;
            let (piece, states) = (piece.clone(), Vec::new());
            self.pieces.push(LocalPiece { piece, row_len, masters, states });
        }
        self.len += group.len;
        let rule = plans[members[0].0.tensor].update.rule();
        let kinds = rule.states(shape.0, shape.1);
        let states = kinds.iter().enumerate();
        let states = states.map(|(index, kind)| self.add_state(first, (index, kind.slot), plans));
        let states = states.collect();
        self.groups.push(LocalGroup {
            planned: rule.prepare(&group)?,
            group,
            pieces: first..self.pieces.len(),
            masters: start..self.len,
            states,
        });
        Ok(())
    }

    /// Makes room for state number `index`, of `slot`, of the pieces from `first` on, and says
    /// where.
    fn add_state(
        &mut self,
        first: usize,
        (index, slot): (usize, &str),
        plans: &[TensorPlan],
    ) -> (usize, Range<usize>) {
        let stored = self.states.iter().position(|stored| stored.slot == slot);
        let stored = stored.expect("the registry has every update, and so every state");
        let start = self.states[stored].len;
        let mut end = start;
        for piece in &mut self.pieces[first..] {
            let of = (&piece.piece, piece.row_len);
            let (rows, row_len) = rows_of(&plans[piece.piece.tensor], of, index);
            let range = end..end + rows.len() * row_len;
            end = range.end.next_multiple_of(ALIGN);
            piece.states.push(KeptState { stored, range, rows, row_len });
        }
        self.states[stored].len = end;
        (stored, start..end)
    }
}

/// Rows of state number `index` of a parameter that go with a piece, whose rows have `row_len`
/// elements, and elements of each.
pub(crate) fn rows_of(
    plan: &TensorPlan,
    (piece, row_len): (&Piece, usize),
    index: usize,
) -> (Range<usize>, usize) {
    let rule = plan.update.rule();
    let extent = |rows: usize| rule.states(rows, row_len)[index].extent(rows, row_len);
    let rows = piece.rows.clone();
    let (count, row_len) = extent(rows.len());
    let start = match rule.unit() {
        Unit::Element => rows.start,
        Unit::Matrix => {
            let before = plan.parts.iter().filter(|part| part.rows.start < rows.start);
            before.map(|part| extent(part.rows.len()).0).sum()
        }
    };
    (start..start + count, row_len)
}

/// Every state of any update, once, still empty.
fn every_state() -> Vec<Stored> {
    let mut all: Vec<Stored> = Vec::new();
    for kind in Update::all().iter().flat_map(|update| update.rule().states(1, 1)) {
        if all.iter().all(|stored| stored.slot != kind.slot) {
            all.push(Stored { slot: kind.slot, len: 0 });
        }
    }
    all
}

fn statistic_ranges(ownership: &Ownership, rank: usize) -> Vec<StatisticRange> {
    let mut ranges = Vec::new();
    for piece in ownership.owned(rank) {
        let block = match piece.kind {
            PieceKind::Matrix { .. } => piece.flat.len().max(1),
            PieceKind::Blocks { block } => block.max(1),
        };
        for (index, statistic) in piece.statistics.clone().enumerate() {
            let flat = piece.flat.start + index * block;
            let len = block.min(piece.flat.end.saturating_sub(flat));
            ranges.push(StatisticRange { flat, len, statistic });
        }
    }
    ranges
}
