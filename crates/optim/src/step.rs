//! The optimizer of one rank: the state of the pieces it owns, and their update.
//!
//! It sees flat weights and gradients, and touches only the segments this rank owns. They lie in
//! the memory of the optimizer's device, which may be any that `kernels` has code for. Everything
//! is launched on one stream and nothing is read back, except where a method says so.

use std::collections::BTreeSet;
use std::ops::Range;

use device::{DType, Device, Stream, Tensor};
use kernels::Op;
use kernels::newton_schulz::STATUS_FINITE;
use kernels::optimizer::{CopyToMasters, RoundFromMasters, Spans, StatisticRanges, SumOfSquares};
use layout::{Absent, FlatLayout, Ownership, Schema, StateDecl};

use crate::OptimError;
use crate::clip::{ClipDecision, Verdict};
use crate::group::{BatchSize, LocalPiece, LocalPlan};
use crate::memory_plan::{MemoryItem, Room};
use crate::rules::TensorPlan;
use crate::states::{StateView, declared, firsts};
use crate::update::{Applying, Binding, Launch, Place};

/// The numbers of one step.
#[derive(Debug, Clone, Copy)]
pub struct StepScalars<'a> {
    /// Number of this step in the run, from 1; corrects the bias of averages.
    pub step: u64,
    /// The schedule's factor on every learning rate.
    pub lr_factor: f64,
    /// 1 / tokens of the step: gradients are sums over tokens.
    pub inverse_tokens: f64,
    pub clip: &'a ClipDecision,
}

/// A group that is launched as one.
struct BoundGroup {
    spans: Spans,
    masters: Option<Tensor>,
    launch: Box<dyn Launch>,
}

/// The optimizer of one rank.
pub struct ShardedOptimizer {
    stream: Stream,
    weights_dtype: DType,
    flat_len: usize,
    statistic_count: usize,
    names: Vec<String>,
    /// See [`declared`].
    declared: Vec<StateDecl>,
    /// Of each tensor, the position of its first.
    first_states: Vec<usize>,
    pieces: Vec<LocalPiece>,
    statistics: StatisticRanges,
    groups: Vec<BoundGroup>,
    /// In the order of [`LocalPlan::states`].
    states: Vec<Tensor>,
    masters: Tensor,
    status: Tensor,
    factors: Tensor,
    /// The next contents of `factors`.
    host_factors: Vec<f32>,
    memory: Vec<MemoryItem>,
}

impl ShardedOptimizer {
    /// Allocates the zeroed state of the pieces that `rank` owns, and scratch.
    ///
    /// Call [`ShardedOptimizer::initialize`] before the first step (or load all states), and with
    /// bf16 weights [`ShardedOptimizer::adopt`]: everything starts at zero.
    ///
    /// # Errors
    /// Plans or layout of another schema; weights neither f32 nor bf16; a method that the device
    /// has no kernels for (f32 storage, svd); no memory.
    pub fn new(
        device: &Device,
        schema: &Schema,
        flat: &FlatLayout,
        ownership: &Ownership,
        rank: usize,
        plans: &[TensorPlan],
        weights_dtype: DType,
    ) -> Result<ShardedOptimizer, OptimError> {
        if !matches!(weights_dtype, DType::F32 | DType::Bf16) {
            return Err(OptimError::WeightsDtype { dtype: weights_dtype });
        }
        let local = LocalPlan::new(schema, ownership, rank, plans, BatchSize::of(device))?;
        let room = Room::new(&local, weights_dtype, Place::On(device))?;
        let zeros = |item: &MemoryItem| device.zeros(&[item.elements], item.dtype);
        let states: Vec<Tensor> = room.states.iter().map(zeros).collect::<Result<_, _>>()?;
        let (masters, status) = (zeros(&room.masters)?, zeros(&room.status)?);
        let declared = declared(schema, plans);
        let memory = Memory { device, room: &room, states: &states, masters: &masters };
        Ok(ShardedOptimizer {
            stream: device.stream(),
            weights_dtype,
            flat_len: flat.len,
            statistic_count: ownership.statistics,
            names: schema.tensors.iter().map(|tensor| tensor.name.clone()).collect(),
            first_states: firsts(&declared),
            declared,
            statistics: StatisticRanges::new(device, local.statistics.clone())?,
            groups: memory.bind(&local, &status)?,
            memory: room.items(),
            states,
            masters,
            status,
            factors: zeros(&room.factors)?,
            host_factors: vec![0.0; local.pieces.len()],
            pieces: local.pieces,
        })
    }

    /// The allocations; equals [`crate::memory_plan`].
    pub fn memory_plan(&self) -> &[MemoryItem] {
        &self.memory
    }

    /// Everything that decides rounding on this device beside method and config, one line for each
    /// kind of matrix; nothing on a host. Pieces of other ranks may add lines.
    pub fn numeric_plan(&self) -> BTreeSet<String> {
        let lines = self.groups.iter().flat_map(|group| group.launch.numeric_plan());
        lines.chain(self.statistics.numeric_plan()).collect()
    }

    /// Writes the sums of squares of this rank's pieces (flat f32 `grads`) to `sums` (f64, all
    /// statistics of the model; those of other ranks stay as they are).
    ///
    /// # Errors
    /// Tensors of another length or type.
    pub fn statistics(&self, grads: &Tensor, sums: &Tensor) -> Result<(), OptimError> {
        self.check_flat("gradients", grads)?;
        self.check_count("statistics", sums.len(), self.statistic_count)?;
        let (ranges, grads, sums) = (self.statistics.clone(), grads.clone(), sums.clone());
        Ok(SumOfSquares { ranges, grads, sums }.launch(&self.stream)?)
    }

    /// Updates this rank's pieces of the flat `weights` from the flat f32 `grads`.
    ///
    /// Launches nothing if the decision is not to apply.
    ///
    /// # Errors
    /// Tensors of another length or type; a decision about another number of statistics.
    pub fn apply(
        &mut self,
        weights: &Tensor,
        grads: &Tensor,
        scalars: &StepScalars,
    ) -> Result<(), OptimError> {
        if scalars.clip.verdict != Verdict::Apply {
            return Ok(());
        }
        self.check_weights(weights)?;
        self.check_flat("gradients", grads)?;
        self.check_count("clip factors", scalars.clip.factors.len(), self.statistic_count)?;
        for (factor, piece) in self.host_factors.iter_mut().zip(&self.pieces) {
            let clip = scalars.clip.factors[piece.piece.statistics.start];
            *factor = (scalars.inverse_tokens * clip) as f32;
        }
        self.stream.copy_in(&self.factors, &self.host_factors)?;
        let to = Applying {
            stream: &self.stream,
            weights,
            grads,
            factors: &self.factors,
            step: scalars.step,
            lr_factor: scalars.lr_factor,
        };
        self.groups.iter().try_for_each(|group| group.launch.apply(&to))
    }

    /// Takes over, for each tensor of the schema, how many updates had been made when what its
    /// update keeps began: Adam's moments are corrected by how many they have seen since.
    ///
    /// # Errors
    /// Another number of tensors; no memory on the device.
    pub fn set_begun(&mut self, begun: &[i64]) -> Result<(), OptimError> {
        self.check_count("tensors", begun.len(), self.names.len())?;
        let by_piece: Vec<i64> =
            self.pieces.iter().map(|piece| begun[piece.piece.tensor]).collect();
        let device = self.stream.device();
        self.groups.iter_mut().try_for_each(|group| group.launch.set_begun(device, &by_piece))
    }

    /// Waits for the stream and reports a matrix whose momentum was infinite or NaN at the last
    /// step (its update was zero); finite gradients can only do that by overflow.
    ///
    /// # Errors
    /// That matrix; an earlier error of the stream.
    pub fn check_momentum(&self) -> Result<(), OptimError> {
        let status = self.stream.to_vec::<u32>(&self.status)?;
        match status.iter().zip(&self.pieces).find(|(status, _)| **status != STATUS_FINITE) {
            None => Ok(()),
            Some((_, LocalPiece { piece, .. })) => {
                let tensor = self.names[piece.tensor].clone();
                let Range { start, end } = piece.rows;
                Err(OptimError::Momentum { tensor, start, end })
            }
        }
    }

    /// Sets the masters of bf16 weights from flat weights, bf16 or (without rounding) f32. Does
    /// nothing for f32 weights, which have none.
    ///
    /// # Errors
    /// Weights of another length or type.
    pub fn adopt(&mut self, weights: &Tensor) -> Result<(), OptimError> {
        self.check_count("weights", weights.len(), self.flat_len)?;
        for (spans, masters) in self.mastered() {
            let (spans, flat, masters) = (spans.clone(), weights.clone(), masters.clone());
            CopyToMasters { spans, flat, masters }.launch(&self.stream)?;
        }
        Ok(())
    }

    /// Rounds the masters to this rank's pieces of the flat bf16 `weights`, as after loading the
    /// `param` states. Does nothing for f32 weights.
    ///
    /// # Errors
    /// Weights of another length or type.
    pub fn publish(&self, weights: &Tensor) -> Result<(), OptimError> {
        self.check_weights(weights)?;
        for (spans, masters) in self.mastered() {
            let (spans, masters, flat) = (spans.clone(), masters.clone(), weights.clone());
            RoundFromMasters { spans, masters, flat }.launch(&self.stream)?;
        }
        Ok(())
    }

    fn mastered(&self) -> impl Iterator<Item = (&Spans, &Tensor)> {
        self.groups.iter().filter_map(|group| Some((&group.spans, group.masters.as_ref()?)))
    }

    /// Every state of the parameters, in the order of [`StateView::state`].
    pub fn declared(&self) -> &[StateDecl] {
        &self.declared
    }

    /// The boxes of states that this rank keeps, piece by piece: the f32 parameters (`weights`
    /// themselves, or the masters of bf16 weights) and what updates keep. The views are the memory
    /// itself: copying into one loads it (then [`ShardedOptimizer::publish`]).
    ///
    /// # Errors
    /// Weights of another length or type.
    pub fn states(&self, weights: &Tensor) -> Result<Vec<StateView>, OptimError> {
        self.check_weights(weights)?;
        let mut views = Vec::new();
        for piece in &self.pieces {
            let (param, range) = match self.weights_dtype {
                DType::Bf16 => (&self.masters, &piece.masters),
                _ => (weights, &piece.piece.flat),
            };
            let (first, rows) = (self.first_states[piece.piece.tensor], &piece.piece.rows);
            views.push(self.view(first, param, range, (rows, piece.row_len))?);
            for (state, kept) in (first + 1..).zip(&piece.states) {
                let of = &self.states[kept.stored];
                views.push(self.view(state, of, &kept.range, (&kept.rows, kept.row_len))?);
            }
        }
        Ok(views)
    }

    /// Rows of state number `state`, whose elements are `range` of `of`.
    fn view(
        &self,
        state: usize,
        of: &Tensor,
        range: &Range<usize>,
        (rows, row_len): (&Range<usize>, usize),
    ) -> Result<StateView, OptimError> {
        let view = of.flat(range.clone())?.reshape(&[rows.len(), row_len])?;
        Ok(StateView { state, region: self.declared[state].rows(rows.clone()), view })
    }

    /// Begins the states of a run with this seed; all are zero but those that declare another
    /// beginning.
    ///
    /// # Errors
    /// An earlier error of the stream.
    pub fn initialize(&mut self, seed: u64) -> Result<(), OptimError> {
        for piece in &self.pieces {
            let first = self.first_states[piece.piece.tensor];
            for (state, kept) in (first + 1..).zip(&piece.states) {
                let declared = &self.declared[state];
                if declared.absent == Absent::Initial {
                    let values = declared.initial(seed, kept.rows.clone());
                    let to = self.states[kept.stored].flat(kept.range.clone())?;
                    self.stream.copy_in(&to, &values)?;
                }
            }
        }
        Ok(())
    }

    fn check_weights(&self, weights: &Tensor) -> Result<(), OptimError> {
        if weights.dtype() != self.weights_dtype {
            return Err(OptimError::WeightsDtype { dtype: weights.dtype() });
        }
        self.check_flat("weights", weights)
    }

    fn check_flat(&self, what: &'static str, tensor: &Tensor) -> Result<(), OptimError> {
        self.check_count(what, tensor.len(), self.flat_len)
    }

    fn check_count(
        &self,
        what: &'static str,
        got: usize,
        expected: usize,
    ) -> Result<(), OptimError> {
        if got == expected { Ok(()) } else { Err(OptimError::Count { what, got, expected }) }
    }
}

/// The tensors that a plan's groups are bound to.
struct Memory<'a> {
    device: &'a Device,
    room: &'a Room,
    states: &'a [Tensor],
    masters: &'a Tensor,
}

impl Memory<'_> {
    fn bind(&self, local: &LocalPlan, status: &Tensor) -> Result<Vec<BoundGroup>, OptimError> {
        let scratch = self.room.scratch.iter();
        let scratch = scratch.map(|item| self.device.zeros(&[item.elements], item.dtype));
        let scratch: Vec<Tensor> = scratch.collect::<Result<_, _>>()?;
        let mut groups = Vec::with_capacity(local.groups.len());
        for (group, scratch_of) in local.groups.iter().zip(&self.room.scratch_of) {
            let part =
                |(state, range): &(usize, Range<usize>)| self.states[*state].flat(range.clone());
            let has_masters = !self.masters.is_empty();
            let masters = has_masters.then(|| self.masters.flat(group.masters.clone()));
            let (spans, masters) =
                (Spans::new(self.device, &group.group.spans)?, masters.transpose()?);
            let (first, last) =
                (group.pieces.start.min(local.matrices), group.pieces.end.min(local.matrices));
            let at = Binding {
                device: self.device,
                spans: spans.clone(),
                masters: masters.clone(),
                states: group.states.iter().map(part).collect::<Result<_, _>>()?,
                scratch: scratch_of.iter().map(|&at| scratch[at].clone()).collect(),
                status: status.flat(first..last)?,
            };
            groups.push(BoundGroup { spans, masters, launch: group.planned.bind(at)? });
        }
        Ok(groups)
    }
}
