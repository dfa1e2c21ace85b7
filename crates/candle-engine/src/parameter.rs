//! A trained variable and its place.

use std::ops::Range;

use candle_core::Var;
use layout::Part;

/// A parameter: a variable of the map.
#[derive(Debug, Clone)]
pub(crate) struct Parameter {
    pub name: String,
    pub var: Var,
    /// Elements of the flat buffers.
    pub flat: Range<usize>,
    /// The true matrices inside.
    pub parts: Vec<Part>,
    pub may_lack_gradient: bool,
}
