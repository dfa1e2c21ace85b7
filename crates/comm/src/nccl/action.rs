//! The steps of a plan for a vendor's library, in the order in which they are enqueued.

use device::Tensor;

use super::calls::Move;

/// A step.
pub(super) enum Action {
    /// Operations of the library that begin together.
    Moves(Vec<Move>),
    /// Bytes, from the first to the second.
    Copy(Tensor, Tensor),
    Sum(Sum),
}

/// One launch of the ordered sum.
pub(super) struct Sum {
    /// Which of the plan's reductions it is of.
    pub(super) index: usize,
    pub(super) inputs: Vec<Tensor>,
    pub(super) out: Tensor,
    pub(super) workspace: Tensor,
}
