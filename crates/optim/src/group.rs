//! How one rank's pieces are kept and launched: a pure function of the plan.
//!
//! ```text
//! momentum, masters │ shape A: piece piece … │ shape B: piece … │  (batches follow each other)
//! moments,  masters │ rule 1: piece piece …  │ rule 2: …        │
//! ```
//!
//! Matrices of one rule and one shape lie side by side and are orthogonalized in batches
//! ([`BatchSize`]).

use device::Device;
use kernels::newton_schulz::{Batch, Iteration, Matrix};
use kernels::optimizer::{SlotRange, Span};
use layout::flat::ALIGN;
use layout::{Ownership, Piece, PieceKind, Schema};

use crate::OptimError;
use crate::config::{AdamWConfig, MuonConfig};
use crate::rules::TensorPlan;
use crate::update::Update;

/// How many matrices of a shape are orthogonalized together, so that a device has enough to do
/// while the scratch stays small. It changes no bit.
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
    pub kept: Kept,
}

/// What a rank keeps of a piece, and where it starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kept {
    /// Momentum, among the rank's Muon elements.
    Muon(usize),
    /// Two moments, among the rank's AdamW elements.
    AdamW(usize),
}

/// Matrices of one shape under one rule that are orthogonalized together.
#[derive(Debug, Clone)]
pub(crate) struct MuonBatch {
    pub config: MuonConfig,
    pub scale: f64,
    /// Elements among the rank's Muon elements.
    pub local: std::ops::Range<usize>,
    /// Positions in [`LocalPlan::pieces`].
    pub pieces: std::ops::Range<usize>,
    /// `Span::local` counts from the start of the batch.
    pub spans: Vec<Span>,
    pub matrices: Batch,
}

/// Elements under one AdamW rule.
#[derive(Debug, Clone)]
pub(crate) struct AdamWGroup {
    pub config: AdamWConfig,
    pub spans: Vec<Span>,
}

/// Everything one rank updates.
#[derive(Debug, Clone)]
pub(crate) struct LocalPlan {
    /// Muon pieces, batch by batch, then AdamW pieces. The position is the unit of a span.
    pub pieces: Vec<LocalPiece>,
    pub muon: Vec<MuonBatch>,
    pub adamw: Vec<AdamWGroup>,
    pub muon_len: usize,
    pub adamw_len: usize,
    /// Number of Muon pieces.
    pub matrices: usize,
    pub slots: Vec<SlotRange>,
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
            muon: Vec::new(),
            adamw: Vec::new(),
            muon_len: 0,
            adamw_len: 0,
            matrices: 0,
            slots: slot_ranges(ownership, rank),
        };
        local.add_matrices(ownership, rank, plans, size)?;
        local.matrices = local.pieces.len();
        local.add_elements(schema, ownership, rank, plans);
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
        for group in matrices.chunk_by(|a, b| same(a) == same(b)) {
            for batch in group.chunks(size.most(group[0].1 * group[0].2)) {
                self.add_batch(batch, plans)?;
            }
        }
        Ok(())
    }

    fn add_batch(
        &mut self,
        batch: &[(&Piece, usize, usize)],
        plans: &[TensorPlan],
    ) -> Result<(), OptimError> {
        let (first, rows, cols) = batch[0];
        let Update::Muon(config) = &plans[first.tensor].update else { return Ok(()) };
        let (start, first_piece) = (self.muon_len, self.pieces.len());
        let (mut spans, mut matrices) = (Vec::new(), Vec::new());
        for &(piece, ..) in batch {
            let (local, len) = (self.muon_len - start, piece.flat.len());
            let unit = self.pieces.len();
            spans.push(Span { flat: piece.flat.start, local, len, unit });
            matrices.push(Matrix::dense(local, local, rows, cols));
            let (piece, kept, row_len) = (piece.clone(), Kept::Muon(self.muon_len), cols);
            self.pieces.push(LocalPiece { piece, row_len, kept });
            self.muon_len += len.next_multiple_of(ALIGN);
        }
        self.muon.push(MuonBatch {
            config: config.clone(),
            scale: config.scale.of(rows, cols),
            local: start..self.muon_len,
            pieces: first_piece..self.pieces.len(),
            spans,
            matrices: Batch::new(&Iteration::new(&config.method())?, matrices)?,
        });
        Ok(())
    }

    fn add_elements(
        &mut self,
        schema: &Schema,
        ownership: &Ownership,
        rank: usize,
        plans: &[TensorPlan],
    ) {
        let elementwise = |piece: &&Piece| matches!(piece.kind, PieceKind::Blocks { .. });
        let mut pieces: Vec<&Piece> = ownership.owned(rank).filter(elementwise).collect();
        pieces.sort_by_key(|piece| plans[piece.tensor].rule);
        for group in pieces.chunk_by(|a, b| plans[a.tensor].rule == plans[b.tensor].rule) {
            let Update::AdamW(config) = &plans[group[0].tensor].update else { continue };
            let mut spans = Vec::new();
            for &piece in group {
                let (local, len) = (self.adamw_len, piece.flat.len());
                spans.push(Span { flat: piece.flat.start, local, len, unit: self.pieces.len() });
                let row_len = schema.tensors[piece.tensor].row_len();
                let (piece, kept) = (piece.clone(), Kept::AdamW(local));
                self.pieces.push(LocalPiece { piece, row_len, kept });
                self.adamw_len += len.next_multiple_of(ALIGN);
            }
            self.adamw.push(AdamWGroup { config: config.clone(), spans });
        }
    }

    /// Elements of the largest batch.
    pub(crate) fn batch_elements(&self) -> usize {
        self.muon.iter().map(|batch| batch.local.len()).max().unwrap_or(0)
    }
}

fn slot_ranges(ownership: &Ownership, rank: usize) -> Vec<SlotRange> {
    let mut ranges = Vec::new();
    for piece in ownership.owned(rank) {
        let block = match piece.kind {
            PieceKind::Matrix { .. } => piece.flat.len().max(1),
            PieceKind::Blocks { block } => block.max(1),
        };
        for (index, slot) in piece.slots.clone().enumerate() {
            let flat = piece.flat.start + index * block;
            let len = block.min(piece.flat.end.saturating_sub(flat));
            ranges.push(SlotRange { flat, len, slot });
        }
    }
    ranges
}
