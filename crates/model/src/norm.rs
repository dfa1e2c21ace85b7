//! Norms of the residual stream: RMS (Zhang & Sennrich 2019) and LayerNorm (Ba et al. 2016).

use kernels::Onto;
use kernels::norm::{LayerBackward, LayerForward, RmsBackward, RmsForward, Vectors};

use crate::arena::Place;
use crate::config;
use crate::declare::{Declare, Weight};
use crate::names::Part;
use crate::run::{Back, Done, Pass};

pub(crate) struct Norm {
    gain: Weight,
    /// Of LayerNorm.
    bias: Option<Weight>,
    eps: f64,
    /// Input, `[N, D]`.
    pub x: Place,
    /// Output, `[N, D]`.
    pub h: Place,
    /// 1/rms of each row; of LayerNorm mean and 1/std.
    stats: Place,
    dh: Place,
    dx: Place,
}

impl Norm {
    /// Of `x [N, D]`.
    pub fn new(d: &mut Declare, part: Part, x: Place) -> Norm {
        let (n, width) = (d.rows(), d.a.d_model);
        let is_layer = d.a.norm == config::Norm::Layer;
        Norm {
            gain: d.gain(part, width),
            bias: is_layer.then(|| d.bias(part, width)),
            eps: d.a.norm_eps,
            x,
            h: d.saved([n, width]),
            stats: d.saved([n, if is_layer { 2 } else { 1 }]),
            dh: d.dh(),
            dx: d.dx(),
        }
    }

    /// The first of its parameters, an index into the schema.
    pub(crate) fn first_tensor(&self) -> usize {
        self.gain.tensor
    }

    /// From `x` to `h`.
    pub fn forward(&self, p: &Pass) -> Done {
        let (x, y, stats) = (p.at(self.x), p.at(self.h), p.at(self.stats));
        let (gain, eps) = (p.vector(self.gain)?, self.eps);
        match self.bias {
            Some(bias) => {
                let bias = p.second_vector(bias)?;
                p.run(LayerForward { x, gain, bias, eps, y, stats })
            }
            None => {
                let (x, y) = (Vectors::rows_of(x), Vectors::rows_of(y));
                p.run(RmsForward { x, gain, eps, y, rstd: stats })
            }
        }
    }

    /// From `dh` to `dx`, which may hold the gradient of the residual stream already.
    pub fn backward(&self, b: &Back, dx_onto: Onto) -> Done {
        let (dy, x, dx, stats) = (b.at(self.dh), b.at(self.x), b.at(self.dx), b.at(self.stats));
        let gain = b.vector(self.gain)?;
        let dgain = b.gradient_vector(self.gain)?;
        match self.bias {
            Some(bias) => b.run(LayerBackward {
                dy,
                x,
                gain,
                stats,
                dx,
                dx_onto,
                dgain,
                dbias: b.gradient_vector(bias)?,
                weights_onto: b.to.onto,
            }),
            None => b.run(RmsBackward {
                dy: Vectors::rows_of(dy),
                x: Vectors::rows_of(x),
                gain,
                rstd: stats,
                dx: Vectors::rows_of(dx),
                dx_onto,
                dgain,
                dgain_onto: b.to.onto,
            }),
        }
    }
}
