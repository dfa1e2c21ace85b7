//! The optimizer's part of a config: rules, schedule, clipping.
//!
//! Every struct refuses unknown keys. Values are checked by [`OptimizerConfig::check`].

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::OptimError;
use crate::bounds::{positive, within};
pub use crate::selection::{Match, RoleWord};
pub use crate::update::Rule;
pub use crate::update::muon::{Algorithm, Beyond, CustomConfig, Storage, TaylorConfig};
pub use crate::update::sections::*;

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
    /// Reaction to an infinite or NaN gradient: `stop` the run, or `skip` the update.
    /// Such a gradient is never applied.
    pub non_finite: NonFinite,
    /// Whether a run in which neither Muon nor its like updates a matrix is an error.
    pub require_muon: bool,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        let muon = Rule {
            matches: Match { roles: Some(vec![RoleWord::Matrix, RoleWord::Expert]), names: None },
            muon: Some(MuonConfig::default()),
            ..Rule::default()
        };
        let rest = Rule { adamw: Some(AdamWConfig::default()), ..Rule::default() };
        Self {
            rules: vec![muon, rest],
            schedule: Schedule::default(),
            clip: Clip::Global(1.0),
            non_finite: NonFinite::Stop,
            require_muon: true,
        }
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

/// Reaction to an infinite or NaN gradient.
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
    fn every_update_has_a_section_with_valid_defaults() {
        for (index, word) in crate::Update::WORDS.iter().enumerate() {
            let config = parse(&format!("rules: [{{match: {{}}, {word}: {{}}}}]")).unwrap();
            config.check().unwrap();
            let update = config.rules[0].update(0).unwrap();
            assert_eq!((update.word(), &update), (*word, &crate::Update::all()[index]));
            let text = serde_yaml::to_string(&config).unwrap();
            assert!(!text.contains('!'), "{text}");
            assert_eq!(parse(&text).unwrap(), config);
            let slip = parse(&format!("rules: [{{match: {{}}, {word}: {{rate: 1}}}}]"));
            assert!(slip.unwrap_err().to_string().contains("unknown field `rate`"), "{word}");
        }
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
