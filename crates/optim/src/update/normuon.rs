//! NorMuon: Muon whose rows are divided by the running root mean squares of their elements.

use kernels::Op;
use kernels::optimizer::{Frobenius, NormalizeRows, RowMatrices, RowsAt, Span};
use layout::Absent;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::contract::{Applying, Axes, Binding, Group, Launch, Needs, Place, Planned};
use super::contract::{StateKind, Unit, UpdateRule};
use super::muon::{
    Algorithm, Coefficients, MuonConfig, Orthogonalized, PlannedMuon, Scale, Storage,
};
use crate::OptimError;
use crate::bounds::below_one;

/// Muon with rows normalized by their second moments (arXiv 2510.05491), each true matrix by
/// itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NorMuonConfig {
    /// Learning rate before `scale` and schedule, as Muon's.
    pub lr: f64,
    /// Decay of the momentum average per step, 0 to below 1.
    pub momentum: f64,
    /// Looks one step ahead: orthogonalizes the average of momentum and gradient.
    pub nesterov: bool,
    /// Decay of the average squared update of each row per step, 0 to below 1.
    pub beta2: f64,
    /// Newton–Schulz coefficients, as Muon's.
    #[serde(with = "crate::tagged")]
    #[schemars(with = "Coefficients")]
    pub coefficients: Coefficients,
    /// Newton–Schulz steps, at least 1.
    pub steps: usize,
    /// How the products are arranged, as Muon's.
    pub algorithm: Algorithm,
    /// Rounding of matrices between products: `f32` for none, `bf16` or `f16`.
    pub storage: Storage,
    /// Norm of the update of an `[out, in]` matrix: with `rms` the root mean square of its elements
    /// is 0.2, as the paper has it; with `spectral` and `none` its Frobenius norm is that of Muon's
    /// update, as the authors' code has it.
    pub scale: Scale,
    /// Decoupled weight decay: the weights lose this share times the learning rate per step.
    pub weight_decay: f64,
    /// Least Frobenius norm that an update is divided by, as Muon's.
    pub eps: f64,
}

impl Default for NorMuonConfig {
    /// Both decays and no look ahead as in the paper; the rest as Muon's.
    fn default() -> Self {
        let muon = MuonConfig::default();
        Self {
            lr: muon.lr,
            momentum: 0.95,
            nesterov: false,
            beta2: 0.95,
            coefficients: muon.coefficients,
            steps: muon.steps,
            algorithm: muon.algorithm,
            storage: muon.storage,
            scale: muon.scale,
            weight_decay: muon.weight_decay,
            eps: muon.eps,
        }
    }
}

/// Added to the root of the average squared update of a row, as in the paper.
const EPS: f64 = 1e-8;

/// Root mean square of an update's elements where `scale` is `rms`, as in the paper.
const RMS: f64 = 0.2;

impl NorMuonConfig {
    /// The Muon in it.
    pub fn muon(&self) -> MuonConfig {
        MuonConfig {
            lr: self.lr,
            momentum: self.momentum,
            nesterov: self.nesterov,
            coefficients: self.coefficients.clone(),
            steps: self.steps,
            algorithm: self.algorithm,
            storage: self.storage,
            scale: self.scale,
            weight_decay: self.weight_decay,
            eps: self.eps,
            safety: None,
            restarts: None,
        }
    }
}

impl UpdateRule for NorMuonConfig {
    fn lr(&self) -> f64 {
        self.lr
    }

    fn check(&self, at: &str) -> Result<(), OptimError> {
        below_one(&format!("{at}.beta2"), self.beta2, 0.95)?;
        self.muon().check(at)
    }

    fn unit(&self) -> Unit {
        Unit::Matrix
    }

    /// Muon's, and a pass that squares and one that multiplies.
    fn flops(&self, rows: usize, cols: usize) -> Result<f64, OptimError> {
        Ok(self.muon().flops(rows, cols)? + 4.0 * rows as f64 * cols as f64)
    }

    fn scale(&self, rows: usize, cols: usize) -> f64 {
        match self.scale {
            Scale::Rms => RMS,
            scale => scale.of(rows, cols),
        }
    }

    fn words(&self, scale: f64) -> String {
        let (lr, steps, decay) = (self.lr, self.steps, self.weight_decay);
        let (word, coefficients) = (self.scale.word(), self.coefficients.word());
        format!(
            "normuon lr {lr} × {scale:.3} ({word}), {steps} steps {coefficients}, decay {decay}"
        )
    }

    fn promise(&self) -> Option<String> {
        self.muon().promise()
    }

    /// The momentum is Muon's, so that a run may change from one to the other.
    fn states(&self, rows: usize, _: usize) -> Vec<StateKind> {
        let axes = Axes::Rows(rows, 1);
        let variance = StateKind { slot: "row_variance", axes, absent: Absent::Zero };
        vec![StateKind::same("momentum"), variance]
    }

    fn prepare(&self, group: &Group) -> Result<Box<dyn Planned>, OptimError> {
        let (rows, cols) = group.shape;
        let at = |(index, span): (usize, &Span)| RowsAt {
            direction: span.local,
            variance: Group::state_start(index, rows),
        };
        let matrices = group.spans.iter().enumerate().map(at).collect();
        Ok(Box::new(PlannedNorMuon {
            muon: PlannedMuon::new(&self.muon(), group)?,
            matrices: RowMatrices::new(rows, cols, matrices)?,
            shape: (rows, cols),
            config: self.clone(),
        }))
    }
}

/// Matrices of one shape that are updated together.
struct PlannedNorMuon {
    muon: PlannedMuon,
    matrices: RowMatrices,
    shape: (usize, usize),
    config: NorMuonConfig,
}

impl Planned for PlannedNorMuon {
    fn needs(&self, place: Place) -> Result<Needs, OptimError> {
        if let Place::On(device) = place {
            NormalizeRows::check_device(device)?;
        }
        self.muon.needs(place)
    }

    fn bind(&self, mut at: Binding) -> Result<Box<dyn Launch>, OptimError> {
        let variance = at.states.remove(1);
        let (rows, cols) = self.shape;
        let muon = self.muon.bind_orthogonalized(at)?;
        let (norm, scale) = match self.config.scale {
            Scale::Rms => (Frobenius::Is(RMS * ((rows * cols) as f64).sqrt()), 1.0),
            scale => (Frobenius::Kept, scale.of(rows, cols)),
        };
        let normalize = NormalizeRows {
            matrices: self.matrices.clone(),
            beta2: self.config.beta2,
            eps: EPS,
            norm,
            direction: muon.direction().clone(),
            variance,
        };
        Ok(Box::new(NorMuonLaunch { muon, normalize, scale }))
    }
}

struct NorMuonLaunch {
    muon: Orthogonalized,
    normalize: NormalizeRows,
    scale: f64,
}

impl Launch for NorMuonLaunch {
    fn apply(&self, to: &Applying) -> Result<(), OptimError> {
        self.muon.orthogonalize(to)?;
        self.normalize.clone().launch(to.stream)?;
        self.muon.apply(to, self.scale)
    }

    fn numeric_plan(&self) -> Vec<String> {
        self.muon.numeric_plan()
    }
}
