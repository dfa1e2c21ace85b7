//! Muon: momentum whose singular values are set to about 1.

use device::{DType, Tensor};
use kernels::Op;
use kernels::newton_schulz::{self, Batch, Bound, Iteration, Matrix, Method, Orthogonalize};
pub use kernels::newton_schulz::{Algorithm, Storage};
use kernels::optimizer::{Momentum, MuonApply, MuonMomentum, Spans};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::contract::{Applying, Binding, Group, Launch, MemoryItem, Needs, Place, Planned};
use super::contract::{StateKind, Unit, UpdateRule, in_order};
use crate::OptimError;
use crate::bounds::{below_one, positive, value, within};

/// Muon: momentum whose singular values are set to about 1, each true matrix by itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MuonConfig {
    /// Learning rate before `scale` and schedule. With `scale: rms` a value good for AdamW is good
    /// here; with `scale: spectral` about 0.02 is usual.
    pub lr: f64,
    /// Decay of the momentum average per step, 0 to below 1.
    pub momentum: f64,
    /// Looks one step ahead: orthogonalizes the average of momentum and gradient.
    pub nesterov: bool,
    /// Newton–Schulz coefficients: `polar_express` (close to orthogonal in few steps), `jordan`
    /// (the first), `polar_express_cushion`, `cans`, `you`, `aol` (rows are balanced first),
    /// `cubic5`, `deepseek_v4` (for 10 steps), `{taylor: {kappa: K}}` (degree 2K+1) or
    /// `{custom: {steps: [[a, b, c], …]}}`.
    #[serde(with = "crate::tagged")]
    #[schemars(with = "Coefficients")]
    pub coefficients: Coefficients,
    /// Divisor of the singular values that `polar_express` is made for, 1 to 1.2: 1.01 if not
    /// given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub safety: Option<f64>,
    /// Newton–Schulz steps, at least 1.
    pub steps: usize,
    /// How the products are arranged: `standard`, `symmetric` (triangles only), `gram` (on the
    /// small Gram matrix), `auto` (gram where it is cheaper, else symmetric) or `svd` (exact, slow,
    /// on CPUs). All but `svd` follow the same polynomial and differ by rounding.
    pub algorithm: Algorithm,
    /// Steps, counted from 0, before which the Gram form starts afresh from the matrix. Chosen by
    /// the slopes of the coefficients if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restarts: Option<Vec<usize>>,
    /// Rounding of matrices between products: `f32` for none, or `bf16` or `f16` as on GPUs, which
    /// a CPU emulates.
    pub storage: Storage,
    /// Factor on the update of an `[out, in]` matrix: `rms` is 0.2·sqrt(max(out, in)), which makes
    /// the update as large as AdamW's; `spectral` is sqrt(max(1, out/in)); `none` is 1.
    pub scale: Scale,
    /// Decoupled weight decay: the weights lose this share times the learning rate per step.
    pub weight_decay: f64,
    /// Least Frobenius norm that an update is divided by: the momentum of an expert that gets no
    /// more tokens fades away instead of being blown up for ever.
    pub eps: f64,
}

impl Default for MuonConfig {
    /// The RMS-matching scale and the decay of "Muon is scalable for LLM training" (arXiv
    /// 2502.16982), so that one learning rate serves matrices and everything else; momentum and
    /// step count of Jordan's Muon; Polar Express because at the same cost its result is closer to
    /// orthogonal (0.85 to 1.13 instead of 0.47 to 1.20).
    fn default() -> Self {
        Self {
            lr: 0.003,
            momentum: 0.95,
            nesterov: true,
            coefficients: Coefficients::PolarExpress,
            safety: None,
            steps: 5,
            algorithm: Algorithm::Auto,
            restarts: None,
            storage: Storage::F32,
            scale: Scale::Rms,
            weight_decay: 0.1,
            eps: 1e-7,
        }
    }
}

/// A family of Newton–Schulz coefficients.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Coefficients {
    /// The same quintic every step (Jordan 2024).
    Jordan,
    /// The best quintic for each step (Polar Express, arXiv 2505.16932).
    PolarExpress,
    /// Polar Express computed with a cushion, for matrices divided by 1.02 times their norm.
    PolarExpressCushion,
    /// Chebyshev-type quintics (CANS, arXiv 2506.10935).
    Cans,
    /// You's quintics.
    You,
    /// Four quintics after a rescale of the rows (Turbo-Muon, arXiv 2512.04632).
    Aol,
    /// Cubics (arXiv 2606.00371).
    Cubic5,
    /// Eight steps of Jordan and two that settle.
    DeepseekV4,
    /// The Taylor polynomial of degree 2κ+1 (arXiv 2601.19156).
    Taylor(TaylorConfig),
    /// The user's own.
    Custom(CustomConfig),
}

/// A degree of the Taylor family.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TaylorConfig {
    /// κ: 1 is the cubic (1.5, -0.5), 2 the quintic (1.875, -1.25, 0.375), up to 12.
    pub kappa: usize,
}

/// Polynomials of one's own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CustomConfig {
    /// For each step the coefficients of x, x³, x⁵, …; their composition has to stay between 0 and
    /// 2 on [0, 1].
    pub steps: Vec<Vec<f64>>,
    /// The continuation after the last: `repeat` it, or `cycle` through all.
    #[serde(default)]
    pub beyond: Beyond,
}

/// Polynomials after the last.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Beyond {
    /// The last again.
    #[default]
    Repeat,
    /// All from the start.
    Cycle,
}

impl Coefficients {
    /// The word in configs.
    pub fn word(&self) -> &'static str {
        self.family(None).word()
    }

    /// The numbers; `safety` is that of Polar Express.
    fn family(&self, safety: Option<f64>) -> newton_schulz::Coefficients {
        use newton_schulz::Coefficients as Family;
        match self {
            Coefficients::Jordan => Family::Jordan,
            Coefficients::PolarExpress => match safety {
                None => Family::polar_express(),
                Some(safety) => Family::PolarExpress { safety },
            },
            Coefficients::PolarExpressCushion => Family::PolarExpressCushion,
            Coefficients::Cans => Family::Cans,
            Coefficients::You => Family::You,
            Coefficients::Aol => Family::Aol,
            Coefficients::Cubic5 => Family::Cubic5,
            Coefficients::DeepseekV4 => Family::DeepseekV4,
            Coefficients::Taylor(taylor) => Family::Taylor { kappa: taylor.kappa },
            Coefficients::Custom(custom) => Family::Custom {
                steps: custom.steps.clone(),
                beyond: match custom.beyond {
                    Beyond::Repeat => newton_schulz::Beyond::Repeat,
                    Beyond::Cycle => newton_schulz::Beyond::Cycle,
                },
            },
        }
    }
}

/// How large the update of an `[out, in]` matrix is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Scale {
    /// sqrt(max(1, out/in)): bounds the change of the layer's output (Jordan 2024).
    Spectral,
    /// 0.2·sqrt(max(out, in)): the root mean square of AdamW's update (arXiv 2502.16982).
    Rms,
    /// 1.
    None,
}

impl Scale {
    /// The factor for a matrix `[out, in]`.
    pub fn of(self, out: usize, into: usize) -> f64 {
        let (out, into) = (out.max(1) as f64, into.max(1) as f64);
        match self {
            Scale::Spectral => (out / into).max(1.0).sqrt(),
            Scale::Rms => 0.2 * out.max(into).sqrt(),
            Scale::None => 1.0,
        }
    }

    /// The word in configs.
    pub fn word(self) -> &'static str {
        match self {
            Scale::Spectral => "spectral",
            Scale::Rms => "rms",
            Scale::None => "none",
        }
    }
}

impl MuonConfig {
    /// The orthogonalization.
    pub fn method(&self) -> Method {
        Method {
            algorithm: self.algorithm,
            restarts: self.restarts.clone(),
            coefficients: self.coefficients.family(self.safety),
            steps: self.steps,
            storage: self.storage,
            least_norm: self.eps,
            ..Method::default()
        }
    }

    fn iteration(&self, at: &str) -> Result<Iteration, OptimError> {
        let refused =
            |source| OptimError::NewtonSchulz { at: at.to_owned(), source: Box::new(source) };
        Iteration::new(&self.method()).map_err(refused)
    }

    fn check_safety(&self, at: &str) -> Result<(), OptimError> {
        let Some(safety) = self.safety else { return Ok(()) };
        if self.coefficients == Coefficients::PolarExpress {
            return within(at, safety, 1.0, 1.2);
        }
        let allowed = format!("left out with {}", self.coefficients.word());
        Err(value(at, safety, &allowed, "polar_express with it"))
    }
}

impl UpdateRule for MuonConfig {
    fn lr(&self) -> f64 {
        self.lr
    }

    fn check(&self, at: &str) -> Result<(), OptimError> {
        positive(&format!("{at}.lr"), self.lr, 0.003)?;
        below_one(&format!("{at}.momentum"), self.momentum, 0.95)?;
        within(&format!("{at}.weight_decay"), self.weight_decay, 0.0, 1e6)?;
        within(&format!("{at}.eps"), self.eps, 0.0, 1.0)?;
        self.check_safety(&format!("{at}.safety"))?;
        let most = newton_schulz::MAX_STEPS;
        if !(1..=most).contains(&self.steps) {
            let allowed = format!("a whole number from 1 to {most}");
            let nearest = self.steps.clamp(1, most);
            return Err(value(&format!("{at}.steps"), self.steps, &allowed, nearest));
        }
        self.iteration(at).map(|_| ())
    }

    fn unit(&self) -> Unit {
        Unit::Matrix
    }

    /// Those of one orthogonalization as it runs.
    fn flops(&self, rows: usize, cols: usize) -> Result<f64, OptimError> {
        let (short, long) = (rows.min(cols), rows.max(cols));
        if self.algorithm == Algorithm::Svd {
            // The thin R-SVD with both factors is 6mn² + 20n³ (Golub and Van Loan, Matrix
            // Computations, 4th ed., figure 8.6.1), and their product 2mn².
            let (n, m) = (short as f64, long as f64);
            return Ok(8.0 * m * n * n + 20.0 * n * n * n);
        }
        Ok(Iteration::new(&self.method())?.program(short, long).flops())
    }

    fn scale(&self, rows: usize, cols: usize) -> f64 {
        self.scale.of(rows, cols)
    }

    fn words(&self, scale: f64) -> String {
        format!(
            "muon lr {} × {scale:.3} ({}), {} steps {}, decay {}",
            self.lr,
            self.scale.word(),
            self.steps,
            self.coefficients.word(),
            self.weight_decay,
        )
    }

    /// The fate of singular values.
    fn promise(&self) -> Option<String> {
        let iteration = Iteration::new(&self.method()).ok()?;
        let Method { algorithm, storage, .. } = iteration.method();
        let (algorithm, storage) = (algorithm.word(), storage.word());
        Some(format!("{iteration}; algorithm {algorithm} in {storage}"))
    }

    fn states(&self, _: usize, _: usize) -> Vec<StateKind> {
        vec![StateKind::same("momentum")]
    }

    fn prepare(&self, group: &Group) -> Result<Box<dyn Planned>, OptimError> {
        Ok(Box::new(PlannedMuon::new(self, group)?))
    }
}

/// Matrices of one shape that are orthogonalized together.
pub(super) struct PlannedMuon {
    config: MuonConfig,
    scale: f64,
    matrices: Batch,
    /// Elements of the group.
    len: usize,
}

impl PlannedMuon {
    pub(super) fn new(config: &MuonConfig, group: &Group) -> Result<PlannedMuon, OptimError> {
        let (rows, cols) = group.shape;
        let matrices = group.spans.iter().map(|span| {
            let local = span.local;
            Matrix::dense(local, local, rows, cols)
        });
        Ok(PlannedMuon {
            config: config.clone(),
            scale: config.scale.of(rows, cols),
            matrices: Batch::new(&Iteration::new(&config.method())?, matrices.collect())?,
            len: group.len,
        })
    }

    /// # Errors
    /// As [`Planned::bind`].
    pub(super) fn bind_orthogonalized(&self, at: Binding) -> Result<Orthogonalized, OptimError> {
        let ([momentum], [update, direction, workspace]) =
            (in_order(at.states), in_order(at.scratch));
        let (update, direction) = (update.flat(0..self.len)?, direction.flat(0..self.len)?);
        let orthogonalize = Orthogonalize {
            batch: self.matrices.clone(),
            input: update.clone(),
            output: direction.clone(),
            workspace,
            status: at.status,
        };
        Ok(Orthogonalized {
            config: self.config.clone(),
            spans: at.spans,
            momentum,
            masters: at.masters,
            update,
            direction,
            orthogonalize: Bound::new(&at.device.stream(), orthogonalize)?,
        })
    }
}

impl Planned for PlannedMuon {
    fn needs(&self, place: Place) -> Result<Needs, OptimError> {
        let item = |name, elements, dtype| MemoryItem { name, elements, dtype };
        let (elements, dtype, table_bytes) = match place {
            Place::Threads(threads) => (self.matrices.workspace_elements(threads), DType::F32, 0),
            Place::On(device) => {
                let types = (DType::F32, DType::F32);
                let room = newton_schulz::room(device, &self.matrices, types)?;
                (room.workspace_elements, room.workspace_dtype, room.table_bytes)
            }
        };
        let scratch = vec![
            item("muon update", self.len, DType::F32),
            item("muon direction", self.len, DType::F32),
            item("newton-schulz workspace", elements, dtype),
        ];
        Ok(Needs { scratch, table_bytes })
    }

    fn bind(&self, at: Binding) -> Result<Box<dyn Launch>, OptimError> {
        let (matrices, scale) = (self.bind_orthogonalized(at)?, self.scale);
        Ok(Box::new(MuonLaunch { matrices, scale }))
    }
}

/// Momentum, its orthogonalization, and the step along it.
pub(super) struct Orthogonalized {
    config: MuonConfig,
    spans: Spans,
    momentum: Tensor,
    masters: Option<Tensor>,
    update: Tensor,
    direction: Tensor,
    /// From `update` to `direction`.
    orthogonalize: Bound,
}

impl Orthogonalized {
    /// The result of [`Orthogonalized::orthogonalize`].
    pub(super) fn direction(&self) -> &Tensor {
        &self.direction
    }

    /// # Errors
    /// As [`Launch::apply`].
    pub(super) fn orthogonalize(&self, to: &Applying) -> Result<(), OptimError> {
        let momentum = MuonMomentum {
            spans: self.spans.clone(),
            mu: self.config.momentum,
            form: if self.config.nesterov { Momentum::Nesterov } else { Momentum::Classical },
            grads: to.grads.clone(),
            momentum: self.momentum.clone(),
            update: self.update.clone(),
            factors: to.factors.clone(),
        };
        momentum.launch(to.stream)?;
        Ok(self.orthogonalize.launch(to.stream)?)
    }

    /// A step of `scale` directions.
    ///
    /// # Errors
    /// As [`Launch::apply`].
    pub(super) fn apply(&self, to: &Applying, scale: f64) -> Result<(), OptimError> {
        let lr = self.config.lr * to.lr_factor;
        let (keep, rate) = (1.0 - lr * self.config.weight_decay, lr * scale);
        let (spans, direction) = (self.spans.clone(), self.direction.clone());
        let weights = to.weights(&self.masters);
        Ok(MuonApply { spans, keep, rate, weights, direction }.launch(to.stream)?)
    }

    pub(super) fn numeric_plan(&self) -> Vec<String> {
        self.orthogonalize.numeric_plan().iter().cloned().collect()
    }
}

struct MuonLaunch {
    matrices: Orthogonalized,
    scale: f64,
}

impl Launch for MuonLaunch {
    fn apply(&self, to: &Applying) -> Result<(), OptimError> {
        self.matrices.orthogonalize(to)?;
        self.matrices.apply(to, self.scale)
    }

    fn numeric_plan(&self) -> Vec<String> {
        self.matrices.numeric_plan()
    }
}
