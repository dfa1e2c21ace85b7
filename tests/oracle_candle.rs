//! The engine beside a second implementation: a model, its gradients and its optimizers written
//! from the architecture alone on candle's basic operations and autograd.
//!
//! ```text
//! oracle/basic      softmax, norms, attention, routing … of basic operations
//! oracle/reference  the model: schema names ─▶ variables ─▶ loss ─▶ gradients
//! oracle/optimizers AdamW and Muon in f64
//! oracle/engine     the model and kernels under test, with values as f64 vectors
//!
//! oracle/dense_ops, norm_ops, moe_ops
//!                   each kernel's gradient, also against central differences
//! oracle/gradients  loss and gradients of presets and of random architectures
//! oracle/training   50 steps of real text on both sides
//! ```
//!
//! Nothing fused is used of candle: its fused operations lose gradients without an error, and the
//! gradient of its `scatter_add` is wrong.

mod oracle;
