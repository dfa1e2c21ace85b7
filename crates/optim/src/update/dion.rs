//! Dion: orthonormalized momentum of low rank, with error feedback.

use device::{DType, Tensor};
use kernels::Op;
use kernels::optimizer::{LowRankAt, LowRankMatrices, LowRankStep, MuonApply, Span, Spans};
use layout::Absent;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::contract::{Applying, Axes, Binding, Group, Launch, MemoryItem, Misfit, Needs, Place};
use super::contract::{Planned, StateKind, Unit, UpdateRule, in_order};
use crate::OptimError;
use crate::bounds::{below_one, positive, value, within};

/// Dion (arXiv 2504.05295): momentum whose largest directions are set to one length, each true
/// matrix by itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DionConfig {
    /// Learning rate before `scale` and schedule.
    pub lr: f64,
    /// Share of what an update has used that stays in the momentum, 0 to below 1; what it has
    /// missed stays whole.
    pub momentum: f64,
    /// Directions of an update as a share of the shorter side of a matrix, up to 1: rounded up.
    pub rank_fraction: f64,
    /// Directions of an update, instead of `rank_fraction`; at most the shorter side of every
    /// matrix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rank: Option<usize>,
    /// Factor on the update of an `[out, in]` matrix: `ratio` is sqrt(out/in), as in the paper;
    /// `none` is 1.
    pub scale: DionScale,
    /// Decoupled weight decay: the weights lose this share times the learning rate (without
    /// `scale`) per step.
    pub weight_decay: f64,
    /// Added to the norm that a basis vector is divided by.
    pub eps: f64,
}

impl Default for DionConfig {
    /// The authors' code, but for a quarter of the rank, which their large models have.
    fn default() -> Self {
        Self {
            lr: 0.01,
            momentum: 0.95,
            rank_fraction: 0.25,
            rank: None,
            scale: DionScale::Ratio,
            weight_decay: 0.01,
            eps: 1e-8,
        }
    }
}

/// How large the update of an `[out, in]` matrix is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DionScale {
    /// sqrt(out/in): the change of the layer's output is as large as its input.
    Ratio,
    /// 1.
    None,
}

impl DionConfig {
    /// Directions of a matrix `[rows, cols]`.
    pub fn rank_of(&self, rows: usize, cols: usize) -> usize {
        let share = (self.rank_fraction * rows.min(cols) as f64).ceil() as usize;
        self.rank.unwrap_or(share.max(1))
    }
}

impl UpdateRule for DionConfig {
    fn lr(&self) -> f64 {
        self.lr
    }

    fn check(&self, at: &str) -> Result<(), OptimError> {
        positive(&format!("{at}.lr"), self.lr, 0.01)?;
        below_one(&format!("{at}.momentum"), self.momentum, 0.95)?;
        let fraction = self.rank_fraction;
        if !(fraction > 0.0 && fraction <= 1.0) {
            let nearest = if fraction > 1.0 { 1.0 } else { 0.25 };
            let allowed = "a number above 0 and at most 1";
            return Err(value(&format!("{at}.rank_fraction"), fraction, allowed, nearest));
        }
        if self.rank == Some(0) {
            return Err(value(&format!("{at}.rank"), 0, "at least 1", 1));
        }
        within(&format!("{at}.weight_decay"), self.weight_decay, 0.0, 1e6)?;
        positive(&format!("{at}.eps"), self.eps, 1e-8)
    }

    fn unit(&self) -> Unit {
        Unit::Matrix
    }

    /// Four products, and Gram–Schmidt twice.
    fn flops(&self, rows: usize, cols: usize) -> Result<f64, OptimError> {
        let rank = self.rank_of(rows, cols) as f64;
        let (rows, cols) = (rows as f64, cols as f64);
        Ok(8.0 * rows * cols * rank + 8.0 * rows * rank * rank)
    }

    fn scale(&self, rows: usize, cols: usize) -> f64 {
        match self.scale {
            DionScale::Ratio => (rows.max(1) as f64 / cols.max(1) as f64).sqrt(),
            DionScale::None => 1.0,
        }
    }

    fn words(&self, scale: f64) -> String {
        let word = match self.scale {
            DionScale::Ratio => "ratio",
            DionScale::None => "none",
        };
        let rank = match self.rank {
            Some(rank) => format!("rank {rank}"),
            None => format!("rank {} of the shorter side", self.rank_fraction),
        };
        format!("dion lr {} × {scale:.3} ({word}), {rank}, decay {}", self.lr, self.weight_decay)
    }

    fn states(&self, rows: usize, cols: usize) -> Vec<StateKind> {
        let axes = Axes::Rows(self.rank_of(rows, cols), cols);
        // A zero basis would stay zero, and so would every direction.
        let basis = StateKind { slot: "dion_basis", axes, absent: Absent::Initial };
        vec![StateKind::same("dion_momentum"), basis]
    }

    fn fits(&self, rows: usize, cols: usize) -> Result<(), Misfit> {
        let (rank, most) = (self.rank_of(rows, cols), rows.min(cols));
        if rank <= most {
            return Ok(());
        }
        Err(Misfit { key: "rank", got: rank, state: "basis", shape: [rank, cols], most })
    }

    fn prepare(&self, group: &Group) -> Result<Box<dyn Planned>, OptimError> {
        let (rows, cols) = group.shape;
        let rank = self.rank_of(rows, cols);
        let at = |(index, span): (usize, &Span)| LowRankAt {
            grads: span.flat,
            unit: span.unit,
            local: span.local,
            basis: Group::state_start(index, rank * cols),
        };
        let matrices = group.spans.iter().enumerate().map(at).collect();
        Ok(Box::new(PlannedDion {
            config: self.clone(),
            scale: self.scale(rows, cols),
            matrices: LowRankMatrices::new((rows, cols), rank, matrices)?,
            len: group.len,
        }))
    }
}

/// Matrices of one shape that are updated together.
struct PlannedDion {
    config: DionConfig,
    scale: f64,
    matrices: LowRankMatrices,
    /// Elements of the group.
    len: usize,
}

impl Planned for PlannedDion {
    fn needs(&self, place: Place) -> Result<Needs, OptimError> {
        let threads = match place {
            Place::Threads(threads) => threads,
            Place::On(device) => {
                LowRankStep::check_device(device)?;
                device.threads()
            }
        };
        let workspace = self.matrices.workspace_elements(threads);
        let item = |name, elements| MemoryItem { name, elements, dtype: DType::F32 };
        let scratch = vec![item("dion direction", self.len), item("dion workspace", workspace)];
        Ok(Needs { scratch, table_bytes: 0 })
    }

    fn bind(&self, at: Binding) -> Result<Box<dyn Launch>, OptimError> {
        let ([momentum, basis], [direction, workspace]) =
            (in_order(at.states), in_order(at.scratch));
        Ok(Box::new(DionLaunch {
            config: self.config.clone(),
            scale: self.scale,
            matrices: self.matrices.clone(),
            spans: at.spans,
            masters: at.masters,
            momentum,
            basis,
            direction,
            workspace,
            status: at.status,
        }))
    }
}

struct DionLaunch {
    config: DionConfig,
    scale: f64,
    matrices: LowRankMatrices,
    spans: Spans,
    masters: Option<Tensor>,
    momentum: Tensor,
    basis: Tensor,
    direction: Tensor,
    workspace: Tensor,
    status: Tensor,
}

impl Launch for DionLaunch {
    fn apply(&self, to: &Applying) -> Result<(), OptimError> {
        let step = LowRankStep {
            matrices: self.matrices.clone(),
            mu: self.config.momentum,
            eps: self.config.eps,
            grads: to.grads.clone(),
            factors: to.factors.clone(),
            momentum: self.momentum.clone(),
            basis: self.basis.clone(),
            direction: self.direction.clone(),
            workspace: self.workspace.clone(),
            status: self.status.clone(),
        };
        step.launch(to.stream)?;
        let lr = self.config.lr * to.lr_factor;
        let (keep, rate) = (1.0 - lr * self.config.weight_decay, lr * self.scale);
        let (spans, weights) = (self.spans.clone(), to.weights(&self.masters));
        let direction = self.direction.clone();
        Ok(MuonApply { spans, keep, rate, weights, direction }.launch(to.stream)?)
    }
}
