//! The output projection and the loss, a chunk of rows at a time: the logits of the whole
//! micro-batch never exist.

use std::ops::Range;

use device::Tensor;
use kernels::Onto;
use kernels::loss::{Becomes, CrossEntropy, Total};
use layout::Role;

use crate::ModelError;
use crate::arena::{Place, Use};
use crate::declare::{Declare, Init, Weight};
use crate::names::Part;
use crate::run::{Back, Done, Pass};

pub(crate) struct Head {
    /// `[V, D]`; the embedding's where they are tied.
    output: Weight,
    /// The first parameter of its own, an index into the schema.
    pub own_tensor: Option<usize>,
    /// Output of the final norm, `[N, D]`.
    h: Place,
    targets: Place,
    /// `[N]`.
    losses: Place,
    /// `[logit_rows(N), V]`.
    logits: Place,
    dh: Place,
    rows: usize,
}

/// Rows of logits that exist at a time: half of the micro-batch, at most 512.
fn logit_rows(rows: usize) -> usize {
    rows.div_ceil(2).min(512)
}

impl Head {
    /// Of what the final norm gives, `h [N, D]`; `embedding` is its table where they are tied.
    pub fn new(d: &mut Declare, h: Place, embedding: Weight) -> Head {
        let (rows, vocab, width) = (d.rows(), d.a.vocab_size, d.a.d_model);
        let own = (!d.a.tie_embeddings)
            .then(|| d.matrix(Part::Head, [vocab, width], Role::Head, Init::Normal));
        Head {
            output: own.unwrap_or(embedding),
            own_tensor: own.map(|weight| weight.tensor),
            h,
            targets: d.inputs.targets,
            losses: d.saved([rows]),
            logits: d.scratch_for(Use::Logits, "logits", [logit_rows(rows), vocab]),
            dh: d.dh(),
            rows,
        }
    }

    /// Of the matrix that it multiplies by, an index into the schema.
    pub(crate) fn output_tensor(&self) -> usize {
        self.output.tensor
    }

    /// The rows of each chunk.
    fn chunks(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let (rows, step) = (self.rows, logit_rows(self.rows).max(1));
        (0..rows).step_by(step).map(move |start| start..rows.min(start + step))
    }

    /// Logits of a chunk, `[chunk, V]`.
    fn logits(&self, p: &Pass, head: &Tensor, chunk: Range<usize>) -> Result<Tensor, ModelError> {
        let logits = p.at(self.logits).rows(0..chunk.len())?;
        p.product(&p.at(self.h).rows(chunk)?, head, &logits, Onto::Overwrite)?;
        Ok(logits)
    }

    /// Logits of one row.
    pub fn row_logits(&self, p: &Pass, row: usize) -> Result<Tensor, ModelError> {
        self.logits(p, &p.matrix(self.output)?, row..row + 1)
    }

    /// Sum of the cross-entropies, to `loss [1]` f64.
    pub fn evaluate(&self, p: &Pass, loss: &Tensor) -> Done {
        let (losses, targets) = (p.at(self.losses), p.at(self.targets));
        let head = p.matrix(self.output)?; // [V, D]
        for chunk in self.chunks() {
            p.run(CrossEntropy {
                logits: self.logits(p, &head, chunk.clone())?,
                logits_become: Becomes::Unchanged,
                targets: targets.flat(chunk.clone())?,
                losses: losses.flat(chunk)?,
            })?;
        }
        p.run(Total { values: losses, out: loss.clone(), out_onto: Onto::Overwrite })
    }

    /// Loss, `dh` of the final norm, and the gradient of the output projection.
    pub fn backward(&self, b: &Back) -> Done {
        let (losses, targets) = (b.at(self.losses), b.at(self.targets));
        let (h, dh) = (b.at(self.h), b.at(self.dh));
        let (head, dhead) = (b.matrix(self.output)?, b.gradient(self.output)?); // [V, D]
        for chunk in self.chunks() {
            let dhead_onto = if chunk.start > 0 { Onto::Add } else { b.to.onto };
            let logits = self.logits(b, &head, chunk.clone())?; // [chunk, V]
            b.run(CrossEntropy {
                logits: logits.clone(),
                logits_become: Becomes::Gradient,
                targets: targets.flat(chunk.clone())?,
                losses: losses.flat(chunk.clone())?,
            })?;
            b.input_gradient(&logits, &head, &dh.rows(chunk.clone())?, Onto::Overwrite)?;
            b.weight_gradient(&logits, &h.rows(chunk)?, &dhead, dhead_onto)?;
        }
        b.run(Total { values: losses, out: b.to.loss.clone(), out_onto: Onto::Overwrite })
    }
}
