//! A mixture of experts: a router, experts of which each token visits the best, and shared ones
//! that every token visits (DeepSeekMoE, Dai et al. 2024).

use kernels::Onto;
use kernels::mlp::{SwigluBackward, SwigluForward};
use kernels::moe::{
    Combine, CombineBackward, GroupRows, GroupRowsBackward, ProductForward, ProductInput,
    ProductWeight, Route, RouteBackward, Router, Routing, Scores, Shares,
};
use layout::Role;

use crate::architecture::Moe;
use crate::arena::Place;
use crate::block::Block;
use crate::config;
use crate::declare::{Declare, Init, Linear, Weight};
use crate::mlp::Mlp;
use crate::names::Part;
use crate::run::{Back, Done, Pass};

pub(crate) struct Experts {
    options: Router,
    /// The number of this mixture among those of the model: its row of biases and loads.
    row: usize,
    /// `[E, D]`.
    router: Weight,
    /// Each expert's `[2F, D]`, as `[E·2F, D]`.
    gate_up: Weight,
    /// Each expert's `[D, F]`, as `[E·D, F]`.
    down: Weight,
    shared: Option<Mlp>,
    /// `[N, E]`.
    logits: Place,
    routing: RoutingPlaces,
    /// `[N·A, 2F]`; from backward on its gradient.
    gate_up_at: Place,
    /// `[N·A, F]`.
    act: Place,
    /// `[N·A, D]`; from backward on its gradient.
    y: Place,
    scratch: Scratch,
    dx: Place,
    dh: Place,
}

/// Of a [`Routing`].
struct RoutingPlaces {
    /// `[N, E]`.
    scores: Place,
    /// `[N, A]`, u32.
    chosen: Place,
    /// `[N, A]`.
    weights: Place,
    /// `[N·A]`, u32.
    grouped: Place,
    /// `[N·A]`, u32.
    sources: Place,
    /// `[E + 1]`, u32.
    offsets: Place,
}

/// For one layer at a time.
struct Scratch {
    /// Rows by expert, `[N·A, D]`.
    grouped: Place,
    /// Their gradient, `[N·A, D]`.
    dgrouped: Place,
    /// Gradient of `act`, `[N·A, F]`.
    dact: Place,
    /// Gradient of the routing weights, `[N, A]`.
    dweights: Place,
    /// Gradient of the router's logits, `[N, E]`.
    drouter: Place,
}

fn options(moe: &Moe) -> Router {
    Router {
        experts: moe.experts,
        top_k: moe.top_k,
        groups: moe.groups,
        top_groups: moe.top_groups,
        scores: match moe.scores {
            config::Scores::Softmax => Scores::Softmax,
            config::Scores::Sigmoid => Scores::Sigmoid,
        },
        shares: match moe.normalize_top_k {
            true => Shares::Normalized,
            false => Shares::Scores,
        },
        scale: moe.route_scale,
        aux_loss: moe.aux_loss,
        z_loss: moe.z_loss,
    }
}

impl Experts {
    pub fn new(d: &mut Declare, moe: &Moe) -> Experts {
        let (n, width, experts, visits) = (d.rows(), d.a.d_model, moe.experts, moe.top_k);
        let (gate, up) = (Part::ExpertGate, Part::ExpertUp);
        let shared = [Part::SharedGate, Part::SharedUp, Part::SharedDown];
        Experts {
            options: options(moe),
            row: d.router_bias(),
            router: d.matrix(Part::Router, [experts, width], Role::Router, Init::Normal),
            gate_up: d.experts(&[gate, up], experts, [moe.d_ff, width], Init::Normal),
            down: d.experts(&[Part::ExpertDown], experts, [width, moe.d_ff], Init::ToResidual),
            shared: (moe.shared_experts > 0)
                .then(|| Mlp::gated(d, shared, moe.shared_experts * moe.d_ff)),
            logits: d.saved([n, experts]),
            routing: RoutingPlaces {
                scores: d.saved([n, experts]),
                chosen: d.saved_integers([n, visits]),
                weights: d.saved([n, visits]),
                grouped: d.saved_integers([n * visits]),
                sources: d.saved_integers([n * visits]),
                offsets: d.saved_integers([experts + 1]),
            },
            gate_up_at: d.saved([n * visits, 2 * moe.d_ff]),
            act: d.saved([n * visits, moe.d_ff]),
            y: d.saved([n * visits, width]),
            scratch: Scratch {
                grouped: d.scratch("grouped", [n * visits, width]),
                dgrouped: d.scratch("dgrouped", [n * visits, width]),
                dact: d.scratch("experts' dact", [n * visits, moe.d_ff]),
                dweights: d.scratch("dweights", [n, visits]),
                drouter: d.scratch("drouter", [n, experts]),
            },
            dx: d.dx(),
            dh: d.dh(),
        }
    }

    /// The experts that each token visits, `[N, A]` u32.
    pub fn chosen(&self) -> Place {
        self.routing.chosen
    }

    fn routing(&self, p: &Pass) -> Routing {
        let RoutingPlaces { scores, chosen, weights, grouped, sources, offsets } = self.routing;
        Routing {
            scores: p.at(scores),
            chosen: p.at(chosen),
            weights: p.at(weights),
            grouped: p.at(grouped),
            sources: p.at(sources),
            offsets: p.at(offsets),
        }
    }

    /// From the gradient in `y` to `dgrouped`, through the experts' matrices.
    fn products_backward(&self, b: &Back, h: Place, routing: &Routing) -> Done {
        let Scratch { grouped, dgrouped, dact, .. } = self.scratch;
        let (grouped, dgrouped, dact) = (b.at(grouped), b.at(dgrouped), b.at(dact));
        let (gate_up, dy, dw_onto) = (b.at(self.gate_up_at), b.at(self.y), b.to.onto);
        let offsets = || routing.offsets.clone();
        let (w, dw) = (b.matrix(self.down)?, b.gradient(self.down)?);
        b.run(ProductInput { offsets: offsets(), dy: dy.clone(), w, dx: dact.clone() })?;
        b.run(ProductWeight { offsets: offsets(), dy, x: b.at(self.act), dw, dw_onto })?;
        b.run(SwigluBackward { dy: dact, gate_up: gate_up.clone() })?; // → [N·A, 2F]
        b.run(GroupRows { routing: routing.clone(), x: b.at(h), y: grouped.clone() })?;
        let (dy, dw) = (gate_up.clone(), b.gradient(self.gate_up)?);
        b.run(ProductWeight { offsets: offsets(), dy, x: grouped, dw, dw_onto })?;
        let w = b.matrix(self.gate_up)?;
        b.run(ProductInput { offsets: offsets(), dy: gate_up, w, dx: dgrouped }) // → [N·A, D]
    }
}

impl Block for Experts {
    fn forward(&self, p: &Pass, h: Place, x: Place) -> Done {
        let (logits, row) = (p.at(self.logits), self.row..self.row + 1);
        p.product(&p.at(h), &p.matrix(self.router)?, &logits, Onto::Overwrite)?; // → [N, E]
        let routing = self.routing(p);
        p.run(Route {
            router: self.options,
            logits,
            bias: p.state.router_bias.rows(row.clone())?,
            routing: routing.clone(),
            loads: p.state.loads.rows(row)?,
        })?;
        if let Some(shared) = &self.shared {
            shared.forward(p, h, x)?;
        }
        let (grouped, gate_up) = (p.at(self.scratch.grouped), p.at(self.gate_up_at));
        let (act, y, offsets) = (p.at(self.act), p.at(self.y), routing.offsets.clone());
        let of = routing.clone();
        p.run(GroupRows { routing: of, x: p.at(h), y: grouped.clone() })?; // → [N·A, D]
        let w = p.matrix(self.gate_up)?;
        p.run(ProductForward { offsets: offsets.clone(), x: grouped, w, y: gate_up.clone() })?;
        p.run(SwigluForward { gate_up, y: act.clone() })?; // [N·A, 2F] → [N·A, F]
        let w = p.matrix(self.down)?;
        p.run(ProductForward { offsets, x: act, w, y: y.clone() })?; // → [N·A, D]
        p.run(Combine { routing, y, out: p.at(x) }) // → += [N, D]
    }

    fn backward(&self, b: &Back, h: Place) -> Done {
        let Scratch { dgrouped, dweights, drouter, .. } = self.scratch;
        let (routing, dweights) = (self.routing(b), b.at(dweights));
        b.run(CombineBackward {
            routing: routing.clone(),
            dout: b.at(self.dx),
            y: b.at(self.y),
            dweights: dweights.clone(),
        })?;
        self.products_backward(b, h, &routing)?;
        b.run(RouteBackward {
            router: self.options,
            logits: b.at(self.logits),
            routing: routing.clone(),
            dweights,
            tokens: b.to.tokens,
            dlogits: b.at(drouter),
        })?;
        let router = Linear { weight: self.router, bias: None };
        b.linear_back(router, drouter, h, (self.dh, Onto::Overwrite))?; // → [N, D]
        if let Some(shared) = &self.shared {
            shared.backward_onto(b, h, Onto::Add)?;
        }
        b.run(GroupRowsBackward { routing, dy: b.at(dgrouped), dx: b.at(self.dh) })
    }
}
