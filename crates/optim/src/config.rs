//! What a person writes about the optimizer: rules, schedule, clipping.
//!
//! Every struct refuses unknown keys. Values are checked by [`OptimizerConfig::check`].

use kernels::newton_schulz::{self, Iteration, Method};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::OptimError;

/// Which update each parameter gets, how fast, and what happens to gradients first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OptimizerConfig {
    /// The first rule that matches a parameter decides its update. Every parameter needs a rule,
    /// and a rule that decides nothing is an error.
    pub rules: Vec<Rule>,
    /// Multiplies the learning rate of every rule over the run: `{constant: {…}}`,
    /// `{cosine: {…}}`, `{linear: {…}}` or `{wsd: {…}}` (warm-up, stable, decay).
    #[serde(with = "crate::tagged")]
    #[schemars(with = "Schedule")]
    pub schedule: Schedule,
    /// Limits gradient norms (of the mean over tokens): `none`, `{global: X}`,
    /// `{previous_norm: X}` or `{per_matrix: X}`.
    #[serde(with = "crate::tagged")]
    #[schemars(with = "Clip")]
    pub clip: Clip,
    /// What a step with an infinite or NaN gradient does: `stop` the run, or `skip` the update.
    /// Such a gradient is never applied.
    pub non_finite: NonFinite,
    /// Whether a run in which Muon updates no matrix at all is an error.
    pub require_muon: bool,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        let muon = Rule {
            matches: Match { roles: Some(vec![RoleWord::Matrix, RoleWord::Expert]), names: None },
            muon: Some(MuonConfig::default()),
            adamw: None,
        };
        let rest =
            Rule { matches: Match::default(), muon: None, adamw: Some(AdamWConfig::default()) };
        Self {
            rules: vec![muon, rest],
            schedule: Schedule::default(),
            clip: Clip::Global(1.0),
            non_finite: NonFinite::Stop,
            require_muon: true,
        }
    }
}

/// A set of parameters and the update they get: give exactly one of `muon` and `adamw`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Which parameters; `{}` is all of them.
    #[serde(rename = "match", default)]
    pub matches: Match,
    /// Orthogonalized momentum, for matrices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub muon: Option<MuonConfig>,
    /// AdamW, for anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adamw: Option<AdamWConfig>,
}

/// A set of parameters: those that satisfy every key given.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Match {
    /// The parameter has one of these roles.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub roles: Option<Vec<RoleWord>>,
    /// The parameter's name matches one of these patterns: `*` stands for any characters, `?` for
    /// one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub names: Option<Vec<String>>,
}

/// What a parameter is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RoleWord {
    /// A hidden weight matrix.
    Matrix,
    /// A token or position embedding.
    Embedding,
    /// The output projection, where it is not the token embedding.
    Head,
    /// Norm gains and biases.
    Vector,
    /// The matrix that scores experts.
    Router,
    /// A matrix of one expert.
    Expert,
}

impl RoleWord {
    /// The word of `layout::Role`.
    pub fn word(self) -> &'static str {
        match self {
            RoleWord::Matrix => "matrix",
            RoleWord::Embedding => "embedding",
            RoleWord::Head => "head",
            RoleWord::Vector => "vector",
            RoleWord::Router => "router",
            RoleWord::Expert => "expert",
        }
    }
}

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
    /// Newton–Schulz coefficients: `polar_express` (close to orthogonal in few steps), `jordan` (the
    /// first), `polar_express_cushion`, `cans`, `you`, `aol` (rows are balanced first), `cubic5`,
    /// `deepseek_v4` (for 10 steps), `{taylor: {kappa: K}}` (degree 2K+1) or
    /// `{custom: {steps: [[a, b, c], …]}}`.
    #[serde(with = "crate::tagged")]
    #[schemars(with = "Coefficients")]
    pub coefficients: Coefficients,
    /// Divisor of the singular values that `polar_express` is made for, 1 to 1.2: 1.01 if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub safety: Option<f64>,
    /// Newton–Schulz steps, at least 1.
    pub steps: usize,
    /// How the products are arranged: `standard`, `symmetric` (triangles only), `gram` (on the small
    /// Gram matrix), `auto` (gram where it is cheaper, else symmetric) or `svd` (exact, slow, on CPUs).
    /// All but `svd` follow the same polynomial and differ by rounding.
    pub algorithm: Algorithm,
    /// Steps, counted from 0, before which the Gram form starts afresh from the matrix. Chosen by
    /// the slopes of the coefficients if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restarts: Option<Vec<usize>>,
    /// What matrices between products are rounded to: `f32`, or `bf16` or `f16` as on GPUs, which a
    /// CPU emulates.
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
    /// For each step the coefficients of x, x³, x⁵, …; their composition has to stay between 0 and 2
    /// on [0, 1].
    pub steps: Vec<Vec<f64>>,
    /// What follows the last: `repeat` it, or `cycle` through all.
    #[serde(default)]
    pub beyond: Beyond,
}

/// What follows the last polynomial.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Beyond {
    /// The last again.
    #[default]
    Repeat,
    /// All from the start.
    Cycle,
}

/// How the products of Newton–Schulz are arranged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Algorithm {
    /// Gram where it is cheaper, else symmetric.
    Auto,
    /// Every product in full.
    Standard,
    /// Symmetric products by one triangle.
    Symmetric,
    /// On the Gram matrix.
    Gram,
    /// The exact polar factor.
    Svd,
}

impl Algorithm {
    fn kernel(self) -> newton_schulz::Algorithm {
        match self {
            Algorithm::Auto => newton_schulz::Algorithm::Auto,
            Algorithm::Standard => newton_schulz::Algorithm::Standard,
            Algorithm::Symmetric => newton_schulz::Algorithm::Symmetric,
            Algorithm::Gram => newton_schulz::Algorithm::Gram,
            Algorithm::Svd => newton_schulz::Algorithm::Svd,
        }
    }
}

/// What matrices between products are rounded to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Storage {
    /// Nothing.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
    F16,
}

impl Storage {
    fn kernel(self) -> newton_schulz::Storage {
        match self {
            Storage::F32 => newton_schulz::Storage::F32,
            Storage::Bf16 => newton_schulz::Storage::Bf16,
            Storage::F16 => newton_schulz::Storage::F16,
        }
    }
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

/// AdamW with decoupled weight decay.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AdamWConfig {
    /// Learning rate before the schedule.
    pub lr: f64,
    /// Decay of the average gradient per step, 0 to below 1.
    pub beta1: f64,
    /// Decay of the average squared gradient per step, 0 to below 1.
    pub beta2: f64,
    /// Added to the root of the average squared gradient.
    pub eps: f64,
    /// Decoupled weight decay: the weights lose this share times the learning rate per step.
    pub weight_decay: f64,
}

impl Default for AdamWConfig {
    /// No decay, as these are norm gains, biases and embeddings next to Muon.
    fn default() -> Self {
        Self { lr: 0.003, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.0 }
    }
}

/// The learning-rate factor over a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// Warm-up, then 1.
    Constant(ConstantSchedule),
    /// Warm-up, then half a cosine wave down to the end of the run.
    Cosine(DecaySchedule),
    /// Warm-up, then a straight line down to the end of the run.
    Linear(DecaySchedule),
    /// Warm-up, stable at 1, then a straight line down over the last steps.
    Wsd(WsdSchedule),
}

impl Default for Schedule {
    fn default() -> Self {
        Schedule::Wsd(WsdSchedule::default())
    }
}

/// Warm-up alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ConstantSchedule {
    /// Steps over which the factor rises to 1.
    #[schemars(range(max = 1_000_000_000_000_u64))]
    pub warmup_steps: u64,
}

impl Default for ConstantSchedule {
    fn default() -> Self {
        Self { warmup_steps: 20 }
    }
}

/// Decay over the whole run after warm-up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DecaySchedule {
    /// Steps over which the factor rises to 1.
    #[schemars(range(max = 1_000_000_000_000_u64))]
    pub warmup_steps: u64,
    /// The factor after the last step, 0 to 1.
    pub final_fraction: f64,
}

impl Default for DecaySchedule {
    fn default() -> Self {
        Self { warmup_steps: 20, final_fraction: 0.0 }
    }
}

/// Warm-up, stable, decay.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct WsdSchedule {
    /// Steps over which the factor rises to 1.
    #[schemars(range(max = 1_000_000_000_000_u64))]
    pub warmup_steps: u64,
    /// The last steps of the run, over which the factor falls.
    #[schemars(range(max = 1_000_000_000_000_u64))]
    pub decay_steps: u64,
    /// The factor after the last step, 0 to 1.
    pub final_fraction: f64,
}

impl Default for WsdSchedule {
    fn default() -> Self {
        Self { warmup_steps: 20, decay_steps: 100, final_fraction: 0.0 }
    }
}

/// How gradient norms are limited.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Clip {
    /// Not at all.
    None,
    /// Each matrix (each whole parameter under AdamW) to this norm, by itself.
    PerMatrix(f64),
    /// All gradients by one factor, chosen so that the previous step's norm would have been this
    /// at most; the first step uses its own norm. Does not wait for this step's norm.
    PreviousNorm(f64),
    /// All gradients by one factor, so that their norm together is this at most.
    Global(f64),
}

/// As a config has it.
impl std::fmt::Display for Clip {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Clip::None => write!(f, "none"),
            Clip::PerMatrix(norm) => write!(f, "per_matrix({norm:?})"),
            Clip::PreviousNorm(norm) => write!(f, "previous_norm({norm:?})"),
            Clip::Global(norm) => write!(f, "global({norm:?})"),
        }
    }
}

/// What a step with an infinite or NaN gradient does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NonFinite {
    /// Ends the run and names the parameters.
    Stop,
    /// Leaves weights and moments as they are, and goes on.
    Skip,
}

impl OptimizerConfig {
    /// Checks every value.
    ///
    /// # Errors
    /// The first value out of range, with its place under `optimizer` and the nearest valid one;
    /// a rule with no update or with two.
    pub fn check(&self) -> Result<(), OptimError> {
        self.problems().into_iter().next().map_or(Ok(()), Err)
    }

    /// The first mistake of each rule, of the schedule and of the clip.
    pub fn problems(&self) -> Vec<OptimError> {
        let rules = self.rules.iter().enumerate().map(|(index, rule)| rule.check(index));
        let all = rules.chain([self.schedule.check(), self.clip.check()]);
        all.filter_map(Result::err).collect()
    }
}

impl Rule {
    fn check(&self, index: usize) -> Result<(), OptimError> {
        let at = |key: &str| format!("optimizer.rules[{index}].{key}");
        match (&self.muon, &self.adamw) {
            (Some(muon), None) => muon.check(&at("muon")),
            (None, Some(adamw)) => adamw.check(&at("adamw")),
            (None, None) => Err(OptimError::NoUpdate { rule: index }),
            (Some(_), Some(_)) => Err(OptimError::TwoUpdates { rule: index }),
        }
    }
}

impl Schedule {
    fn check(&self) -> Result<(), OptimError> {
        let (kind, fraction) = match self {
            Schedule::Constant(_) => return Ok(()),
            Schedule::Cosine(cosine) => ("cosine", cosine.final_fraction),
            Schedule::Linear(linear) => ("linear", linear.final_fraction),
            Schedule::Wsd(wsd) => ("wsd", wsd.final_fraction),
        };
        within(&format!("optimizer.schedule.{kind}.final_fraction"), fraction, 0.0, 1.0)
    }
}

impl Clip {
    fn check(&self) -> Result<(), OptimError> {
        match *self {
            Clip::None => Ok(()),
            Clip::PerMatrix(norm) => positive("optimizer.clip.per_matrix", norm, 1.0),
            Clip::PreviousNorm(norm) => positive("optimizer.clip.previous_norm", norm, 1.0),
            Clip::Global(norm) => positive("optimizer.clip.global", norm, 1.0),
        }
    }
}

impl MuonConfig {
    /// The orthogonalization.
    pub fn method(&self) -> Method {
        Method {
            algorithm: self.algorithm.kernel(),
            restarts: self.restarts.clone(),
            coefficients: self.coefficients.family(self.safety),
            steps: self.steps,
            storage: self.storage.kernel(),
            least_norm: self.eps,
        }
    }

    fn check(&self, at: &str) -> Result<(), OptimError> {
        positive(&format!("{at}.lr"), self.lr, 0.003)?;
        below_one(&format!("{at}.momentum"), self.momentum, 0.95)?;
        within(&format!("{at}.weight_decay"), self.weight_decay, 0.0, 1e6)?;
        within(&format!("{at}.eps"), self.eps, 0.0, 1.0)?;
        self.check_safety(&format!("{at}.safety"))?;
        let most = newton_schulz::MAX_STEPS;
        if !(1..=most).contains(&self.steps) {
            return Err(OptimError::Value {
                at: format!("{at}.steps"),
                got: self.steps.to_string(),
                allowed: format!("a whole number from 1 to {most}"),
                nearest: self.steps.clamp(1, most).to_string(),
            });
        }
        let refused =
            |source| OptimError::NewtonSchulz { at: at.to_owned(), source: Box::new(source) };
        Iteration::new(&self.method()).map(|_| ()).map_err(refused)
    }

    fn check_safety(&self, at: &str) -> Result<(), OptimError> {
        let Some(safety) = self.safety else { return Ok(()) };
        if self.coefficients == Coefficients::PolarExpress {
            return within(at, safety, 1.0, 1.2);
        }
        Err(OptimError::Value {
            at: at.to_owned(),
            got: safety.to_string(),
            allowed: format!("left out with {}", self.coefficients.word()),
            nearest: "polar_express with it".to_owned(),
        })
    }
}

impl AdamWConfig {
    fn check(&self, at: &str) -> Result<(), OptimError> {
        positive(&format!("{at}.lr"), self.lr, 0.003)?;
        below_one(&format!("{at}.beta1"), self.beta1, 0.9)?;
        below_one(&format!("{at}.beta2"), self.beta2, 0.95)?;
        positive(&format!("{at}.eps"), self.eps, 1e-8)?;
        within(&format!("{at}.weight_decay"), self.weight_decay, 0.0, 1e6)
    }
}

fn value(at: &str, got: f64, allowed: &str, nearest: f64) -> OptimError {
    let (at, allowed) = (at.to_owned(), allowed.to_owned());
    OptimError::Value { at, got: got.to_string(), allowed, nearest: nearest.to_string() }
}

fn positive(at: &str, got: f64, usual: f64) -> Result<(), OptimError> {
    if got > 0.0 && got.is_finite() {
        return Ok(());
    }
    Err(value(at, got, "a positive number", usual))
}

fn below_one(at: &str, got: f64, usual: f64) -> Result<(), OptimError> {
    if (0.0..1.0).contains(&got) {
        return Ok(());
    }
    let nearest = if got < 0.0 { 0.0 } else { usual };
    Err(value(at, got, "a number from 0 to below 1", nearest))
}

fn within(at: &str, got: f64, least: f64, most: f64) -> Result<(), OptimError> {
    if (least..=most).contains(&got) {
        return Ok(());
    }
    let nearest = if got.is_nan() { least } else { got.clamp(least, most) };
    Err(value(at, got, &format!("a number from {least} to {most}"), nearest))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "
rules:
- match: {roles: [matrix, expert], names: ['*']}
  muon: {lr: 0.02, momentum: 0.95, nesterov: true, coefficients: jordan, steps: 5, scale: spectral, weight_decay: 0.01}
- match: {}
  adamw: {lr: 0.003, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.0}
schedule: {cosine: {warmup_steps: 20, final_fraction: 0.1}}
clip: {per_matrix: 2.0}
non_finite: skip
require_muon: false
";

    fn parse(text: &str) -> Result<OptimizerConfig, serde_yaml::Error> {
        serde_yaml::from_str(text)
    }

    #[test]
    fn yaml_reads_words_and_maps_and_writes_what_it_reads() {
        let config = parse(TEXT).unwrap();
        assert_eq!(config.rules[0].muon.as_ref().unwrap().scale, Scale::Spectral);
        assert_eq!(config.clip, Clip::PerMatrix(2.0));
        assert_eq!(config.clip.to_string(), "per_matrix(2.0)");
        let cosine = DecaySchedule { warmup_steps: 20, final_fraction: 0.1 };
        assert_eq!(config.schedule, Schedule::Cosine(cosine));
        for config in [config, OptimizerConfig::default()] {
            let text = serde_yaml::to_string(&config).unwrap();
            assert!(!text.contains('!'), "{text}");
            assert_eq!(parse(&text).unwrap(), config);
            let json = serde_json::to_string(&config).unwrap();
            assert_eq!(serde_json::from_str::<OptimizerConfig>(&json).unwrap(), config);
        }
        assert_eq!(parse("{clip: none}").unwrap().clip, Clip::None);
        assert_eq!(parse("{}").unwrap(), OptimizerConfig::default());
    }

    #[test]
    fn slips_are_named() {
        let message = |text: &str| parse(text).unwrap_err().to_string();
        assert!(message("clip: {globl: 1}").contains("unknown variant `globl`"));
        assert!(message("schedule: {wsd: {warmup: 1}}").contains("unknown field `warmup`"));
        assert!(message("rules: [{match: {role: []}}]").contains("unknown field `role`"));
        let roles = message("rules: [{match: {roles: [matrx]}, adamw: {}}]");
        assert!(roles.contains("unknown variant `matrx`, expected one of `matrix`"), "{roles}");
    }

    #[test]
    fn role_words_are_those_of_the_layout() {
        let all = [
            RoleWord::Matrix,
            RoleWord::Embedding,
            RoleWord::Head,
            RoleWord::Vector,
            RoleWord::Router,
            RoleWord::Expert,
        ];
        assert_eq!(all.map(RoleWord::word), layout::Role::WORDS);
        for word in all {
            assert_eq!(serde_json::to_value(word).unwrap(), word.word());
        }
    }

    #[test]
    fn the_schema_offers_maps_not_tags() {
        let schema = serde_json::to_value(schemars::schema_for!(OptimizerConfig)).unwrap();
        let clip = schema["$defs"]["Clip"].to_string();
        assert!(clip.contains("\"global\"") && clip.contains("\"none\""), "{clip}");
    }

    #[test]
    fn every_coefficient_set_is_read_written_and_checked() {
        let muon = |text: &str| {
            let text = format!("rules: [{{match: {{}}, muon: {text}}}]");
            let config = parse(&text).unwrap();
            let written = serde_yaml::to_string(&config).unwrap();
            assert!(!written.contains('!'), "{written}");
            assert_eq!(parse(&written).unwrap(), config);
            (config.rules[0].muon.clone().unwrap(), config.check().map_err(|e| e.to_string()))
        };
        let words = "jordan polar_express polar_express_cushion cans you aol cubic5 deepseek_v4";
        for word in words.split(' ') {
            let (config, checked) = muon(&format!("{{coefficients: {word}, steps: 12}}"));
            assert_eq!(config.coefficients.word(), word);
            checked.unwrap();
        }
        let (taylor, checked) = muon("{coefficients: {taylor: {kappa: 3}}, algorithm: gram}");
        assert_eq!(taylor.coefficients, Coefficients::Taylor(TaylorConfig { kappa: 3 }));
        checked.unwrap();
        let custom = "{custom: {steps: [[1.5, -0.5], [1.875, -1.25, 0.375]], beyond: cycle}}";
        let (custom, checked) = muon(&format!("{{coefficients: {custom}, storage: f16}}"));
        assert_eq!(custom.method().coefficients.word(), "custom");
        checked.unwrap();
        let (safe, checked) = muon("{safety: 1.05, algorithm: gram, restarts: [2]}");
        let coefficients = newton_schulz::Coefficients::PolarExpress { safety: 1.05 };
        assert_eq!(safe.method().coefficients, coefficients);
        checked.unwrap();
        let refused = |text: &str| muon(text).1.unwrap_err();
        assert_eq!(
            refused("{coefficients: {custom: {steps: [[3.0, -3.2]]}}, steps: 1}"),
            "optimizer.rules[0].muon: coefficients custom: 1 step maps singular values of 0 to 1 to \
             -0.200 to 1.118; use polynomials that stay in 0 to 2"
        );
        assert!(refused("{coefficients: {taylor: {kappa: 0}}}").contains("kappa 0; use 1 to 12"));
        assert!(refused("{coefficients: jordan, safety: 1.05}").contains("left out with jordan"));
        assert!(refused("{restarts: [7]}").contains("use rising numbers from 1 to 4"));
    }

    #[test]
    fn values_out_of_range_are_refused_with_the_nearest() {
        OptimizerConfig::default().check().unwrap();
        let check = |change: &dyn Fn(&mut OptimizerConfig)| {
            let mut config = OptimizerConfig::default();
            change(&mut config);
            config.check().unwrap_err().to_string()
        };
        let muon = |change: fn(&mut MuonConfig)| {
            check(&move |config| change(config.rules[0].muon.as_mut().unwrap()))
        };
        assert_eq!(
            muon(|muon| muon.steps = 1001),
            "optimizer.rules[0].muon.steps is 1001; it must be a whole number from 1 to 1000: use 1000"
        );
        assert_eq!(
            muon(|muon| muon.momentum = 1.0),
            "optimizer.rules[0].muon.momentum is 1; it must be a number from 0 to below 1: use 0.95"
        );
        assert!(muon(|muon| muon.lr = f64::NAN).contains("a positive number"));
        assert_eq!(
            check(&|config| config.clip = Clip::Global(0.0)),
            "optimizer.clip.global is 0; it must be a positive number: use 1"
        );
        assert!(check(&|config| config.rules[1].adamw = None).contains("no update"));
        assert!(
            check(&|config| config.rules[1].muon = Some(MuonConfig::default()))
                .contains("both `muon` and `adamw`")
        );
    }
}
