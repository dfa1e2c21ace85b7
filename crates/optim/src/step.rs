//! The optimizer of one rank: the state of the pieces it owns, and their update.
//!
//! It sees flat weights and gradients, and touches only the segments this rank owns. They lie in
//! the memory of the optimizer's device, which may be any that `kernels` has code for. Everything
//! is launched on one stream and nothing is read back, except where a method says so.

use std::collections::BTreeSet;
use std::ops::Range;

use device::{DType, Device, Stream, Tensor};
use kernels::Op;
use kernels::newton_schulz::{Bound, Orthogonalize, STATUS_FINITE};
use kernels::optimizer::{AdamW, AdamWStep, CopyToMasters, Momentum, MuonApply, MuonMomentum};
use kernels::optimizer::{RoundFromMasters, SlotRanges, Spans, SumOfSquares, Weights};
use layout::{FlatLayout, Ownership, Schema, StateDecl};

use crate::OptimError;
use crate::clip::{ClipDecision, Verdict};
use crate::config::{AdamWConfig, MuonConfig};
use crate::group::{BatchSize, Kept, LocalPiece, LocalPlan};
use crate::memory::{self, MemoryItem, Room};
use crate::rules::TensorPlan;
use crate::states::{StateView, declared, firsts};

/// The numbers of one step.
#[derive(Debug, Clone, Copy)]
pub struct StepScalars<'a> {
    /// Number of this step in the run, from 1; corrects the bias of AdamW's moments.
    pub step: u64,
    /// The schedule's factor on every learning rate.
    pub lr_factor: f64,
    /// 1 / tokens of the step: gradients are sums over tokens.
    pub inverse_tokens: f64,
    pub clip: &'a ClipDecision,
}

struct MuonLaunch {
    config: MuonConfig,
    scale: f64,
    spans: Spans,
    momentum: Tensor,
    masters: Option<Tensor>,
    update: Tensor,
    direction: Tensor,
    /// From `update` to `direction`.
    orthogonalize: Bound,
}

struct AdamWLaunch {
    config: AdamWConfig,
    spans: Spans,
    masters: Option<Tensor>,
}

/// The optimizer of one rank.
pub struct ShardedOptimizer {
    stream: Stream,
    weights_dtype: DType,
    flat_len: usize,
    slot_count: usize,
    names: Vec<String>,
    /// Declared; see [`declared`].
    states: Vec<StateDecl>,
    /// Of each tensor, the position of its first.
    first_states: Vec<usize>,
    pieces: Vec<LocalPiece>,
    muon_len: usize,
    slots: SlotRanges,
    muon: Vec<MuonLaunch>,
    adamw: Vec<AdamWLaunch>,
    momentum: Tensor,
    adam_m: Tensor,
    adam_v: Tensor,
    masters: Tensor,
    status: Tensor,
    factors: Tensor,
    /// What `factors` will hold next.
    host_factors: Vec<f32>,
    memory: Vec<MemoryItem>,
}

impl ShardedOptimizer {
    /// Allocates the zeroed state of the pieces that `rank` owns, and scratch.
    ///
    /// With bf16 weights call [`ShardedOptimizer::adopt`] (or load the `param` states) before the
    /// first step: the masters start at zero.
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
        let memory = local.memory(weights_dtype, &Room::on(device, &local)?);
        let mut tensors = Vec::with_capacity(memory.len());
        for item in &memory[..memory::TABLES] {
            tensors.push(device.zeros(&[item.elements], item.dtype)?);
        }
        let states = declared(schema, plans);
        let launches = Launches { device, local: &local, tensors: &tensors, weights_dtype };
        Ok(ShardedOptimizer {
            stream: device.stream(),
            weights_dtype,
            flat_len: flat.len,
            slot_count: ownership.slots,
            names: schema.tensors.iter().map(|tensor| tensor.name.clone()).collect(),
            first_states: firsts(&states),
            states,
            muon_len: local.muon_len,
            slots: SlotRanges::new(device, local.slots.clone())?,
            muon: launches.muon()?,
            adamw: launches.adamw()?,
            momentum: tensors[memory::MOMENTUM].clone(),
            adam_m: tensors[memory::ADAM_M].clone(),
            adam_v: tensors[memory::ADAM_V].clone(),
            masters: tensors[memory::MASTERS].clone(),
            status: tensors[memory::STATUS].clone(),
            factors: tensors[memory::FACTORS].clone(),
            host_factors: vec![0.0; local.pieces.len()],
            pieces: local.pieces,
            memory: memory.to_vec(),
        })
    }

    /// What was allocated; equals [`crate::memory_plan`].
    pub fn memory_plan(&self) -> &[MemoryItem] {
        &self.memory
    }

    /// What decides rounding on this device beside method and config, one line for each kind of
    /// matrix; nothing on a host. Pieces of other ranks may add lines.
    pub fn numeric_plan(&self) -> BTreeSet<String> {
        let batches = self.muon.iter().map(|batch| batch.orthogonalize.numeric_plan());
        let lines = batches.flatten().cloned();
        lines.chain(self.slots.numeric_plan()).collect()
    }

    /// Writes the sum of squares of each slot of this rank's pieces (flat f32 `grads`) to `slots`
    /// (f64, all slots of the model; those of other ranks stay as they are).
    ///
    /// # Errors
    /// Tensors of another length or type.
    pub fn statistics(&self, grads: &Tensor, slots: &Tensor) -> Result<(), OptimError> {
        self.check_flat("gradients", grads)?;
        self.check_count("statistic slots", slots.len(), self.slot_count)?;
        let (ranges, grads, sums) = (self.slots.clone(), grads.clone(), slots.clone());
        Ok(SumOfSquares { ranges, grads, sums }.launch(&self.stream)?)
    }

    /// Updates this rank's pieces of the flat `weights` from the flat f32 `grads`.
    ///
    /// Launches nothing if the decision is not to apply.
    ///
    /// # Errors
    /// Tensors of another length or type; a decision about another number of slots.
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
        self.check_count("clip factors", scalars.clip.factors.len(), self.slot_count)?;
        for (factor, piece) in self.host_factors.iter_mut().zip(&self.pieces) {
            let clip = scalars.clip.factors[piece.piece.slots.start];
            *factor = (scalars.inverse_tokens * clip) as f32;
        }
        self.stream.copy_in(&self.factors, &self.host_factors)?;
        for batch in &self.muon {
            self.apply_muon(batch, weights, grads, scalars)?;
        }
        for group in &self.adamw {
            self.apply_adamw(group, weights, grads, scalars)?;
        }
        Ok(())
    }

    fn apply_muon(
        &self,
        batch: &MuonLaunch,
        weights: &Tensor,
        grads: &Tensor,
        scalars: &StepScalars,
    ) -> Result<(), OptimError> {
        let MuonLaunch { config, spans, update, direction, .. } = batch;
        let momentum = MuonMomentum {
            spans: spans.clone(),
            mu: config.momentum,
            form: if config.nesterov { Momentum::Nesterov } else { Momentum::Classical },
            grads: grads.clone(),
            momentum: batch.momentum.clone(),
            update: update.clone(),
            factors: self.factors.clone(),
        };
        momentum.launch(&self.stream)?;
        batch.orthogonalize.launch(&self.stream)?;
        let lr = config.lr * scalars.lr_factor;
        let (keep, rate) = (1.0 - lr * config.weight_decay, lr * batch.scale);
        let weights = place(weights, &batch.masters);
        let (spans, direction) = (spans.clone(), direction.clone());
        Ok(MuonApply { spans, keep, rate, weights, direction }.launch(&self.stream)?)
    }

    fn apply_adamw(
        &self,
        group: &AdamWLaunch,
        weights: &Tensor,
        grads: &Tensor,
        scalars: &StepScalars,
    ) -> Result<(), OptimError> {
        let AdamWConfig { lr, beta1, beta2, eps, weight_decay } = group.config;
        let (lr, step) = (lr * scalars.lr_factor, scalars.step);
        let step = AdamWStep {
            spans: group.spans.clone(),
            numbers: AdamW { lr, beta1, beta2, eps, weight_decay, step },
            weights: place(weights, &group.masters),
            grads: grads.clone(),
            first: self.adam_m.clone(),
            second: self.adam_v.clone(),
            factors: self.factors.clone(),
        };
        Ok(step.launch(&self.stream)?)
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
        let muon = self.muon.iter().map(|batch| (&batch.spans, &batch.masters));
        let adamw = self.adamw.iter().map(|group| (&group.spans, &group.masters));
        muon.chain(adamw).filter_map(|(spans, masters)| Some((spans, masters.as_ref()?)))
    }

    /// Every state of the parameters, in the order of [`StateView::state`].
    pub fn declared(&self) -> &[StateDecl] {
        &self.states
    }

    /// The boxes of states that this rank keeps, piece by piece: the f32 parameters (`weights`
    /// themselves, or the masters of bf16 weights) and the moments. The views are the memory
    /// itself: copying into one loads it (then [`ShardedOptimizer::publish`]).
    ///
    /// # Errors
    /// Weights of another length or type.
    pub fn states(&self, weights: &Tensor) -> Result<Vec<StateView>, OptimError> {
        self.check_weights(weights)?;
        let mut views = Vec::new();
        for LocalPiece { piece, row_len, kept } in &self.pieces {
            let from = |start: usize| start..start + piece.flat.len();
            let master = match *kept {
                Kept::Muon(start) => start,
                Kept::AdamW(start) => self.muon_len + start,
            };
            let param = match self.weights_dtype {
                DType::Bf16 => (&self.masters, from(master)),
                _ => (weights, piece.flat.clone()),
            };
            let moments = match *kept {
                Kept::Muon(start) => vec![(&self.momentum, from(start))],
                Kept::AdamW(start) => {
                    vec![(&self.adam_m, from(start)), (&self.adam_v, from(start))]
                }
            };
            let first = self.first_states[piece.tensor];
            for (state, (of, range)) in (first..).zip([param].into_iter().chain(moments)) {
                let view = of.flat(range)?.reshape(&[piece.rows.len(), *row_len])?;
                let region = self.states[state].rows(piece.rows.clone());
                views.push(StateView { state, region, view });
            }
        }
        Ok(views)
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

fn place(weights: &Tensor, masters: &Option<Tensor>) -> Weights {
    match masters {
        None => Weights::InPlace(weights.clone()),
        Some(masters) => Weights::Mastered { masters: masters.clone(), flat: weights.clone() },
    }
}

/// Binds the launches of a plan to the tensors of [`LocalPlan::memory`].
struct Launches<'a> {
    device: &'a Device,
    local: &'a LocalPlan,
    tensors: &'a [Tensor],
    weights_dtype: DType,
}

impl Launches<'_> {
    fn masters(&self, range: Range<usize>) -> Result<Option<Tensor>, OptimError> {
        match self.weights_dtype {
            DType::Bf16 => Ok(Some(self.tensors[memory::MASTERS].flat(range)?)),
            _ => Ok(None),
        }
    }

    fn muon(&self) -> Result<Vec<MuonLaunch>, OptimError> {
        let batches = self.local.muon.iter().map(|batch| {
            let part = |item: usize, range: Range<usize>| self.tensors[item].flat(range);
            let update = part(memory::UPDATE, 0..batch.local.len())?;
            let direction = part(memory::DIRECTION, 0..batch.local.len())?;
            let orthogonalize = Orthogonalize {
                batch: batch.matrices.clone(),
                input: update.clone(),
                output: direction.clone(),
                // Batches run one after another, so they share scratch and workspace.
                workspace: self.tensors[memory::WORKSPACE].clone(),
                status: part(memory::STATUS, batch.pieces.clone())?,
            };
            Ok(MuonLaunch {
                config: batch.config.clone(),
                scale: batch.scale,
                spans: Spans::new(self.device, &batch.spans)?,
                momentum: part(memory::MOMENTUM, batch.local.clone())?,
                masters: self.masters(batch.local.clone())?,
                update,
                direction,
                orthogonalize: Bound::new(&self.device.stream(), orthogonalize)?,
            })
        });
        batches.collect()
    }

    fn adamw(&self) -> Result<Vec<AdamWLaunch>, OptimError> {
        let LocalPlan { muon_len, adamw_len, .. } = *self.local;
        let groups = self.local.adamw.iter().map(|group| {
            Ok(AdamWLaunch {
                config: group.config.clone(),
                spans: Spans::new(self.device, &group.spans)?,
                masters: self.masters(muon_len..muon_len + adamw_len)?,
            })
        });
        groups.collect()
    }
}
