//! A part of a layer, between a norm and the residual stream.

use crate::arena::Place;
use crate::run::{Back, Done, Pass};

/// A form of attention or of the MLP. It declares its parameters and places when it is made, and
/// runs on the residual stream of width D in both passes.
pub(crate) trait Block: Send + Sync {
    /// `x [N, D]` += block(`h [N, D]`).
    fn forward(&self, pass: &Pass, h: Place, x: Place) -> Done;

    /// From `dx [N, D]`, which stays, to `dh [N, D]`, which is overwritten; gradients of the
    /// weights as the pass says.
    fn backward(&self, back: &Back, h: Place) -> Done;
}
