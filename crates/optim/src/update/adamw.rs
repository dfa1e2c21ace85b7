//! AdamW: an update by the averages of gradient and squared gradient.

use device::{Device, Tensor};
use kernels::Op;
use kernels::optimizer::{AdamW, AdamWStep, Spans};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::contract::{Applying, Binding, Group, Launch, Needs, Place, Planned};
use super::contract::{StateKind, Unit, UpdateRule, in_order};
use crate::OptimError;
use crate::bounds::{below_one, positive, within};

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

impl UpdateRule for AdamWConfig {
    fn lr(&self) -> f64 {
        self.lr
    }

    fn check(&self, at: &str) -> Result<(), OptimError> {
        positive(&format!("{at}.lr"), self.lr, 0.003)?;
        below_one(&format!("{at}.beta1"), self.beta1, 0.9)?;
        below_one(&format!("{at}.beta2"), self.beta2, 0.95)?;
        positive(&format!("{at}.eps"), self.eps, 1e-8)?;
        within(&format!("{at}.weight_decay"), self.weight_decay, 0.0, 1e6)
    }

    fn unit(&self) -> Unit {
        Unit::Element
    }

    fn words(&self, _: f64) -> String {
        format!("adamw lr {}, decay {}", self.lr, self.weight_decay)
    }

    fn states(&self, _: usize, _: usize) -> Vec<StateKind> {
        vec![StateKind::same("adam_m"), StateKind::same("adam_v")]
    }

    fn prepare(&self, _: &Group) -> Result<Box<dyn Planned>, OptimError> {
        Ok(Box::new(self.clone()))
    }
}

impl Planned for AdamWConfig {
    fn needs(&self, _: Place) -> Result<Needs, OptimError> {
        Ok(Needs { scratch: Vec::new(), table_bytes: 0 })
    }

    fn bind(&self, at: Binding) -> Result<Box<dyn Launch>, OptimError> {
        let Binding { spans, masters, states, .. } = at;
        let [first, second] = in_order(states);
        let config = self.clone();
        let parts = vec![(0, spans.clone())];
        Ok(Box::new(AdamWLaunch { config, spans, parts, masters, first, second }))
    }
}

struct AdamWLaunch {
    config: AdamWConfig,
    spans: Spans,
    /// The spans by how many updates had been made when their moments began.
    parts: Vec<(i64, Spans)>,
    masters: Option<Tensor>,
    first: Tensor,
    second: Tensor,
}

impl Launch for AdamWLaunch {
    fn apply(&self, to: &Applying) -> Result<(), OptimError> {
        let AdamWConfig { lr, beta1, beta2, eps, weight_decay } = self.config;
        let lr = lr * to.lr_factor;
        for (begun, spans) in &self.parts {
            // The first update of moments corrects them as the first of a run does.
            let step = to.step.saturating_add_signed(begun.saturating_neg()).max(1);
            let step = AdamWStep {
                spans: spans.clone(),
                numbers: AdamW { lr, beta1, beta2, eps, weight_decay, step },
                weights: to.weights(&self.masters),
                grads: to.grads.clone(),
                first: self.first.clone(),
                second: self.second.clone(),
                factors: to.factors.clone(),
            };
            step.launch(to.stream)?;
        }
        Ok(())
    }

    fn set_begun(&mut self, device: &Device, begun: &[i64]) -> Result<(), OptimError> {
        self.parts = self.spans.by_unit(device, |unit| begun[unit])?;
        Ok(())
    }
}
