//! Mixture of experts: routing, grouping tokens by expert, products per expert.
//!
//! ```text
//! logits [N, E] ─Route─▶ chosen, weights [N, A] ─▶ grouped: row of each (token, choice) in groups
//! x [N, D] ─GroupRows─▶ [N·A, D] ─products per expert─▶ y [N·A, D] ─Combine─▶ out [N, D]
//! ```
//!
//! No token is dropped: expert `e` has rows `offsets[e] .. offsets[e+1]` of the grouped buffers,
//! tokens in order. All offsets stay on the device.

mod choice;
mod host;
mod products;
mod route;

use device::{DType, Tensor};

pub use products::{ProductForward, ProductInput, ProductWeight};

use crate::KernelError;
use crate::error::expect;
use crate::op::{Inside, Op, host_by_type};
use crate::operands::{expect_all, expect_dtype, expect_real};

/// How logits become scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scores {
    /// The softmax over experts.
    Softmax,
    /// `sigmoid(logit)`, of each expert by itself.
    Sigmoid,
}

/// How the scores of the chosen experts become their weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shares {
    /// They are the weights.
    Scores,
    /// They are divided by their sum.
    Normalized,
}

/// How tokens choose experts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Router {
    /// `E`.
    pub experts: usize,
    /// `A`, at most the experts of `top_groups` groups.
    pub top_k: usize,
    /// Groups of neighbouring experts, two or more in each; 1 is no groups.
    pub groups: usize,
    /// Groups that a token may choose from.
    pub top_groups: usize,
    pub scores: Scores,
    pub shares: Shares,
    /// Factor on the weights.
    pub scale: f64,
    /// Weight of the load-balancing loss (Fedus et al. 2021), per token.
    pub aux_loss: f64,
    /// Weight of the router z-loss (Zoph et al. 2022), per token.
    pub z_loss: f64,
}

impl Router {
    /// Refuses groups that are not there and choices that groups do not hold.
    fn check(&self, kernel: &'static str) -> Result<(), KernelError> {
        let &Router { experts, top_k, groups, top_groups, .. } = self;
        let are_groups =
            groups == 1 || (groups > 1 && experts.is_multiple_of(groups) && experts / groups >= 2);
        let message = if !are_groups {
            format!("{experts} experts do not divide into {groups} groups of two or more")
        } else if !(1..=groups).contains(&top_groups) {
            format!("{top_groups} of {groups} groups")
        } else if !(1..=top_groups * (experts / groups)).contains(&top_k) {
            format!("{top_k} of {experts} experts, in {top_groups} of {groups} groups")
        } else {
            return Ok(());
        };
        Err(KernelError::Argument { kernel, message })
    }
}

/// The decision of a router, on the device.
#[derive(Debug, Clone)]
pub struct Routing {
    /// Scores `[N, E]`, of the type of the logits.
    pub scores: Tensor,
    /// Experts `[N, A]`, u32.
    pub chosen: Tensor,
    /// Their weights `[N, A]`, of the type of the logits.
    pub weights: Tensor,
    /// Grouped row of each choice `[N·A]`, u32.
    pub grouped: Tensor,
    /// Token of each grouped row `[N·A]`, u32.
    pub sources: Tensor,
    /// First grouped row of each expert `[E + 1]`, u32.
    pub offsets: Tensor,
}

impl Routing {
    fn tensors(&self) -> [&Tensor; 6] {
        let Routing { scores, chosen, weights, grouped, sources, offsets } = self;
        [scores, chosen, weights, grouped, sources, offsets]
    }

    /// Refuses other sizes and types than those of `rows` tokens of a router.
    fn check(
        &self,
        kernel: &'static str,
        (router, rows): (&Router, usize),
        dtype: DType,
    ) -> Result<(), KernelError> {
        let (choices, scores) = (rows * router.top_k, rows * router.experts);
        let reals = [("scores", &self.scores, scores), ("weights", &self.weights, choices)];
        expect_all(kernel, dtype, reals)?;
        let integers = [
            ("chosen", &self.chosen, choices),
            ("grouped", &self.grouped, choices),
            ("sources", &self.sources, choices),
            ("offsets", &self.offsets, router.experts + 1),
        ];
        expect_all(kernel, DType::U32, integers)
    }

    /// Refuses other sizes and types than those of the choices of `rows` tokens; gives their
    /// number.
    fn check_choices(&self, kernel: &'static str, rows: usize) -> Result<usize, KernelError> {
        let choices = rows * self.chosen.dim(1);
        let integers = [
            ("chosen", &self.chosen, choices),
            ("grouped", &self.grouped, choices),
            ("sources", &self.sources, choices),
        ];
        expect_all(kernel, DType::U32, integers)?;
        Ok(choices)
    }
}

/// Routes every token: scores from logits, the `A` largest of `scores + bias` among the experts of
/// the best groups (ties: the lower group, the lower expert; the bias, of loss-free balancing, Wang
/// et al. 2024, only chooses), weights from the scores alone, and the grouping by expert.
pub struct Route {
    pub router: Router,
    /// `[N, E]`, f32 or f64.
    pub logits: Tensor,
    /// `[E]`, of the type of the logits.
    pub bias: Tensor,
    /// Written.
    pub routing: Routing,
    /// Added to, `[E]`, u32: the tokens of each expert.
    pub loads: Tensor,
}

impl Op for Route {
    const NAME: &'static str = "moe_route";

    fn operands(&self, _: Inside) -> impl Iterator<Item = &Tensor> {
        [&self.logits, &self.bias, &self.loads].into_iter().chain(self.routing.tensors())
    }

    fn check(&self) -> Result<(), KernelError> {
        let Route { router, logits, bias, routing, loads } = self;
        let (rows, experts, dtype) = (logits.dim(0), router.experts, logits.dtype());
        router.check(Self::NAME)?;
        expect_real(Self::NAME, logits)?;
        let reals = [("logits", logits, rows * experts), ("bias", bias, experts)];
        expect_all(Self::NAME, dtype, reals)?;
        expect_all(Self::NAME, DType::U32, [("loads", loads, experts)])?;
        routing.check(Self::NAME, (router, rows), dtype)
    }

    host_by_type!(logits);
}

/// Gradient of the routing weights with respect to the logits, plus the auxiliary losses of this
/// micro-batch scaled by `tokens`, since gradients are those of a summed loss.
///
/// Load-balancing loss: `aux · E · Σ_e f_e·P_e` with `f_e` the fraction of choices that fell on
/// expert e and `P_e` the mean over tokens of its share of the scores. z-loss:
/// `z · mean_n logsumexp(logits_n)²`.
pub struct RouteBackward {
    pub router: Router,
    /// `[N, E]`, as of the forward pass.
    pub logits: Tensor,
    /// As the forward pass left it.
    pub routing: Routing,
    /// Gradient of the weights, `[N, A]`, of the type of the logits.
    pub dweights: Tensor,
    pub tokens: f64,
    /// Written, `[N, E]`, of the type of the logits.
    pub dlogits: Tensor,
}

impl Op for RouteBackward {
    const NAME: &'static str = "moe_route_backward";

    fn operands(&self, _: Inside) -> impl Iterator<Item = &Tensor> {
        let own = [&self.logits, &self.dweights, &self.dlogits];
        own.into_iter().chain(self.routing.tensors())
    }

    fn check(&self) -> Result<(), KernelError> {
        let RouteBackward { router, logits, routing, dweights, dlogits, .. } = self;
        let (rows, dtype) = (logits.dim(0), dlogits.dtype());
        expect_real(Self::NAME, dlogits)?;
        let reals = [
            ("logits", logits, rows * router.experts),
            ("dweights", dweights, rows * router.top_k),
            ("dlogits", dlogits, rows * router.experts),
        ];
        expect_all(Self::NAME, dtype, reals)?;
        routing.check(Self::NAME, (router, rows), dtype)
    }

    host_by_type!(dlogits);
}

/// `y[r] = x[sources[r]]`.
pub struct GroupRows {
    pub routing: Routing,
    /// `[N, D]`, of the type of `y`.
    pub x: Tensor,
    /// Written, `[N·A, D]`, f32 or f64.
    pub y: Tensor,
}

impl Op for GroupRows {
    const NAME: &'static str = "moe_group_rows";

    fn operands(&self, _: Inside) -> impl Iterator<Item = &Tensor> {
        [&self.x, &self.y].into_iter().chain(self.routing.tensors())
    }

    fn check(&self) -> Result<(), KernelError> {
        let GroupRows { routing, x, y } = self;
        expect_real(Self::NAME, y)?;
        expect_dtype(Self::NAME, "x", x, y.dtype())?;
        let choices = routing.check_choices(Self::NAME, x.dim(0))?;
        expect(Self::NAME, "y", y, choices * x.dim(1))
    }

    host_by_type!(y);
}

/// Gradient of [`GroupRows`], added: `dx[n] += Σ_a dy[grouped[n, a]]`, choices in order.
pub struct GroupRowsBackward {
    pub routing: Routing,
    /// `[N·A, D]`, of the type of `dx`.
    pub dy: Tensor,
    /// Added to, `[N, D]`, f32 or f64.
    pub dx: Tensor,
}

impl Op for GroupRowsBackward {
    const NAME: &'static str = "moe_group_rows_backward";

    fn operands(&self, _: Inside) -> impl Iterator<Item = &Tensor> {
        [&self.dy, &self.dx].into_iter().chain(self.routing.tensors())
    }

    fn check(&self) -> Result<(), KernelError> {
        let GroupRowsBackward { routing, dy, dx } = self;
        expect_real(Self::NAME, dx)?;
        let choices = routing.check_choices(Self::NAME, dx.dim(0))?;
        expect_all(Self::NAME, dx.dtype(), [("dy", dy, choices * dx.dim(1))])
    }

    host_by_type!(dx);
}

/// `out[n] += Σ_a weights[n, a] · y[grouped[n, a]]`, choices in order.
pub struct Combine {
    pub routing: Routing,
    /// `[N·A, D]`, of the type of `out`.
    pub y: Tensor,
    /// Added to, `[N, D]`, f32 or f64.
    pub out: Tensor,
}

impl Op for Combine {
    const NAME: &'static str = "moe_combine";

    fn operands(&self, _: Inside) -> impl Iterator<Item = &Tensor> {
        [&self.y, &self.out].into_iter().chain(self.routing.tensors())
    }

    fn check(&self) -> Result<(), KernelError> {
        let Combine { routing, y, out } = self;
        expect_real(Self::NAME, out)?;
        let choices = routing.check_choices(Self::NAME, out.dim(0))?;
        let reals = [("y", y, choices * out.dim(1)), ("weights", &routing.weights, choices)];
        expect_all(Self::NAME, out.dtype(), reals)
    }

    host_by_type!(out);
}

/// Gradient of [`Combine`]: `dweights[n, a] = dout[n] · y[grouped[n, a]]`, and that of `y`, which
/// is `weights[n, a] · dout[n]`.
pub struct CombineBackward {
    pub routing: Routing,
    /// Gradient of `out`, `[N, D]`, f32 or f64.
    pub dout: Tensor,
    /// `[N·A, D]`, of the type of `dout`: as of the forward pass before, its gradient after.
    pub y: Tensor,
    /// Written, `[N, A]`, of the type of `dout`.
    pub dweights: Tensor,
}

impl Op for CombineBackward {
    const NAME: &'static str = "moe_combine_backward";

    fn operands(&self, _: Inside) -> impl Iterator<Item = &Tensor> {
        [&self.dout, &self.y, &self.dweights].into_iter().chain(self.routing.tensors())
    }

    fn check(&self) -> Result<(), KernelError> {
        let CombineBackward { routing, dout, y, dweights } = self;
        expect_real(Self::NAME, dout)?;
        let choices = routing.check_choices(Self::NAME, dout.dim(0))?;
        let reals = [
            ("y", y, choices * dout.dim(1)),
            ("weights", &routing.weights, choices),
            ("dweights", dweights, choices),
        ];
        expect_all(Self::NAME, dout.dtype(), reals)
    }

    host_by_type!(dout);
}
