//! The face of an update towards rules and ownership, whichever it is.

use crate::OptimError;

/// An optimizer's rule for the parameters it is given, with its numbers.
pub(crate) trait UpdateRule {
    /// Learning rate before `scale` and schedule.
    fn lr(&self) -> f64;

    /// Checks every value; `at` is where they stand in the config.
    ///
    /// # Errors
    /// The first value out of range, with the nearest valid one.
    fn check(&self, at: &str) -> Result<(), OptimError>;

    /// What it acts on as a whole.
    fn unit(&self) -> Unit;

    /// FLOPs of the update of one matrix beside a pass over its elements; for [`Unit::Matrix`].
    ///
    /// # Errors
    /// None after [`UpdateRule::check`].
    fn flops(&self, rows: usize, cols: usize) -> Result<f64, OptimError> {
        let _ = (rows, cols);
        Ok(0.0)
    }

    /// Factor on the update of a matrix `[rows, cols]`, beside the learning rate.
    fn scale(&self, rows: usize, cols: usize) -> f64 {
        let _ = (rows, cols);
        1.0
    }

    /// Its numbers, in a line of the plan; `scale` is that of the matrices there.
    fn words(&self, scale: f64) -> String;

    /// A line below the plan: a promise about the result.
    fn promise(&self) -> Option<String> {
        None
    }
}

/// The part of a parameter that an update needs whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    /// A true matrix, which has one owner.
    Matrix,
    /// An element: rows are shared out.
    Element,
}
