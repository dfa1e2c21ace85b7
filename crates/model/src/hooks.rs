//! The progress of passes, for whoever moves weights and gradients meanwhile.
//!
//! ```text
//! forward    need(embedding) ▶ need(attention 0) ▶ need(MLP 0) ▶ … ▶ need(final norm)
//! evaluate   need(head)
//! backward   need(head) ready(head) ▶ need(final norm) ready(final norm) ▶ need(MLP L) ▶ …
//!            ▶ ready(attention 0) ▶ ready(embedding)
//! ```
//!
//! Ranges are elements of the flat buffers, padding included. Those of `ready` tile the buffer,
//! from its end to its beginning. A tied table is needed as embedding and as head, and is ready
//! once, last.

use std::ops::Range;

/// Error of a hook; it ends the pass.
pub type HookError = Box<dyn std::error::Error + Send + Sync>;

/// Calls at points of a pass.
pub trait Hooks {
    /// These weights are about to be read.
    ///
    /// # Errors
    /// The pass ends with it, before they are.
    fn need(&mut self, weights: Range<usize>) -> Result<(), HookError>;

    /// These gradients are complete as far as this pass goes, once the stream has come so far. No
    /// element is in two ranges of a pass.
    ///
    /// # Errors
    /// The pass ends with it.
    fn ready(&mut self, gradients: Range<usize>) -> Result<(), HookError>;
}

/// Hooks that do nothing.
pub struct NoHooks;

impl Hooks for NoHooks {
    fn need(&mut self, _weights: Range<usize>) -> Result<(), HookError> {
        Ok(())
    }

    fn ready(&mut self, _gradients: Range<usize>) -> Result<(), HookError> {
        Ok(())
    }
}
