//! What a person writes about the optimizer: rules, schedule, clipping.
//!
//! Every struct refuses unknown keys. Values are checked by [`OptimizerConfig::check`].

mod muon;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::OptimError;
pub use muon::{
    Algorithm, Beyond, Coefficients, CustomConfig, MuonConfig, Scale, Storage, TaylorConfig,
};

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
    /// No limit.
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
  muon: {lr: 0.02, momentum: 0.95, nesterov: true, coefficients: jordan, steps: 5,
         scale: spectral, weight_decay: 0.01}
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
        let coefficients = kernels::newton_schulz::Coefficients::PolarExpress { safety: 1.05 };
        assert_eq!(safe.method().coefficients, coefficients);
        checked.unwrap();
        let refused = |text: &str| muon(text).1.unwrap_err();
        assert_eq!(
            refused("{coefficients: {custom: {steps: [[3.0, -3.2]]}}, steps: 1}"),
            "optimizer.rules[0].muon: coefficients custom: 1 step maps singular values of 0 to 1 \
             to -0.200 to 1.118; use polynomials that stay in 0 to 2"
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
            "optimizer.rules[0].muon.steps is 1001; it must be a whole number from 1 to 1000: \
             use 1000"
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
