//! Stochastic gradient descent with momentum, for anything.

use device::Tensor;
use kernels::Op;
use kernels::optimizer::{HeavyBall, Momentum, Spans};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::contract::{Applying, Binding, Group, Launch, Needs, Place, Planned};
use super::contract::{StateKind, Unit, UpdateRule, in_order};
use crate::OptimError;
use crate::bounds::{below_one, positive, within};

/// Stochastic gradient descent with momentum and decoupled weight decay.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SgdConfig {
    /// Learning rate before the schedule. Momentum makes a step 1/(1-momentum) times as long.
    pub lr: f64,
    /// Share of the momentum that is kept per step, 0 to below 1. The momentum is a sum of
    /// gradients, not an average.
    pub momentum: f64,
    /// Looks one step ahead: adds the gradient to what is kept of the new momentum.
    pub nesterov: bool,
    /// Decoupled weight decay: the weights lose this share times the learning rate per step.
    pub weight_decay: f64,
}

impl Default for SgdConfig {
    /// The momentum of Sutskever et al. (2013); no decay.
    fn default() -> Self {
        Self { lr: 0.01, momentum: 0.9, nesterov: false, weight_decay: 0.0 }
    }
}

impl UpdateRule for SgdConfig {
    fn lr(&self) -> f64 {
        self.lr
    }

    fn check(&self, at: &str) -> Result<(), OptimError> {
        positive(&format!("{at}.lr"), self.lr, 0.01)?;
        below_one(&format!("{at}.momentum"), self.momentum, 0.9)?;
        within(&format!("{at}.weight_decay"), self.weight_decay, 0.0, 1e6)
    }

    fn unit(&self) -> Unit {
        Unit::Element
    }

    fn words(&self, _: f64) -> String {
        let SgdConfig { lr, momentum, weight_decay, .. } = self;
        format!("sgd lr {lr}, momentum {momentum}, decay {weight_decay}")
    }

    /// A slot of its own: Muon's `momentum` is an average, this is a sum.
    fn states(&self, _: usize, _: usize) -> Vec<StateKind> {
        vec![StateKind::same("sgd_momentum")]
    }

    fn prepare(&self, _: &Group) -> Result<Box<dyn Planned>, OptimError> {
        Ok(Box::new(self.clone()))
    }
}

impl Planned for SgdConfig {
    fn needs(&self, place: Place) -> Result<Needs, OptimError> {
        if let Place::On(device) = place {
            HeavyBall::check_device(device)?;
        }
        Ok(Needs { scratch: Vec::new(), table_bytes: 0 })
    }

    fn bind(&self, at: Binding) -> Result<Box<dyn Launch>, OptimError> {
        let Binding { spans, masters, states, .. } = at;
        let [momentum] = in_order(states);
        Ok(Box::new(SgdLaunch { config: self.clone(), spans, masters, momentum }))
    }
}

struct SgdLaunch {
    config: SgdConfig,
    spans: Spans,
    masters: Option<Tensor>,
    momentum: Tensor,
}

impl Launch for SgdLaunch {
    fn apply(&self, to: &Applying) -> Result<(), OptimError> {
        let SgdConfig { lr, momentum: mu, nesterov, weight_decay } = self.config;
        let rate = lr * to.lr_factor;
        let step = HeavyBall {
            spans: self.spans.clone(),
            mu,
            form: if nesterov { Momentum::Nesterov } else { Momentum::Classical },
            keep: 1.0 - rate * weight_decay,
            rate,
            weights: to.weights(&self.masters),
            grads: to.grads.clone(),
            momentum: self.momentum.clone(),
            factors: to.factors.clone(),
        };
        Ok(step.launch(to.stream)?)
    }
}
