//! The dense feed-forward part: two matrices around GELU, or three around SwiGLU (Shazeer 2020).

use kernels::Onto;
use kernels::mlp::{GeluBackward, GeluForward, SwigluBackward, SwigluForward};

use crate::arena::Place;
use crate::block::Block;
use crate::config::Activation;
use crate::declare::{Bias, Declare, Init, Linear};
use crate::names::Part;
use crate::run::{Back, Done, Pass};

pub(crate) struct Mlp {
    activation: Activation,
    /// `[F, D]`; with a gate `[2F, D]`, the gate's rows first.
    up: Linear,
    /// `[D, F]`.
    down: Linear,
    /// `[N, F]`, or `[N, 2F]`; from backward on its gradient.
    pre: Place,
    /// `[N, F]`.
    act: Place,
    dact: Place,
    dx: Place,
    dh: Place,
}

impl Mlp {
    /// Of `width` F.
    pub fn dense(d: &mut Declare, width: usize) -> Mlp {
        match d.a.activation {
            Activation::Swiglu => Mlp::gated(d, [Part::Gate, Part::Up, Part::Down], width),
            Activation::Gelu => {
                let (model, bias) = (d.a.d_model, Bias::from(d.a.mlp_bias));
                let up = d.linear(Part::Widen, [width, model], bias, Init::Normal);
                let down = d.linear(Part::Narrow, [model, width], bias, Init::ToResidual);
                Mlp::new(d, Activation::Gelu, up, down)
            }
        }
    }

    /// Of `width` F, with a gate: the parts are gate, up and down.
    pub(crate) fn gated(d: &mut Declare, [gate, up, down]: [Part; 3], width: usize) -> Mlp {
        let model = d.a.d_model;
        let up = d.fused(&[(gate, width), (up, width)], None, model, Bias::Without);
        let down = d.linear(down, [model, width], Bias::Without, Init::ToResidual);
        Mlp::new(d, Activation::Swiglu, up, down)
    }

    fn new(d: &mut Declare, activation: Activation, up: Linear, down: Linear) -> Mlp {
        let (n, width) = (d.rows(), down.weight.cols);
        Mlp {
            activation,
            up,
            down,
            pre: d.saved([n, up.weight.rows]),
            act: d.saved([n, width]),
            dact: d.scratch("dact", [n, width]),
            dx: d.dx(),
            dh: d.dh(),
        }
    }

    /// As [`Block::backward`]; `dh` is overwritten or added to.
    pub(crate) fn backward_onto(&self, b: &Back, h: Place, dh_onto: Onto) -> Done {
        b.linear_back(self.down, self.dx, self.act, (self.dact, Onto::Overwrite))?; // → [N, F]
        let (dy, pre) = (b.at(self.dact), b.at(self.pre));
        match self.activation {
            Activation::Swiglu => b.run(SwigluBackward { dy, gate_up: pre })?, // → [N, 2F]
            Activation::Gelu => b.run(GeluBackward { dy, x: pre })?,           // → [N, F]
        }
        b.linear_back(self.up, self.pre, h, (self.dh, dh_onto)) // → [N, D]
    }
}

impl Block for Mlp {
    fn forward(&self, p: &Pass, h: Place, x: Place) -> Done {
        p.linear(self.up, h, self.pre, Onto::Overwrite)?; // [N, D] → [N, F] or [N, 2F]
        let (pre, y) = (p.at(self.pre), p.at(self.act));
        match self.activation {
            Activation::Swiglu => p.run(SwigluForward { gate_up: pre, y })?, // → [N, F]
            Activation::Gelu => p.run(GeluForward { x: pre, y })?,
        }
        p.linear(self.down, self.act, x, Onto::Add) // [N, F] → += [N, D]
    }

    fn backward(&self, b: &Back, h: Place) -> Done {
        self.backward_onto(b, h, Onto::Overwrite)
    }
}
