//! The residual stream begins: token embedding, and a table of positions where there is one.

use kernels::embedding::{AddPositions, Gather, PositionsBackward, ScatterAdd};
use kernels::{Onto, elementwise};
use layout::Role;

use crate::arena::Place;
use crate::config::Positions;
use crate::declare::{Declare, Init, Weight};
use crate::names::Part;
use crate::run::{Back, Done, Pass};

pub(crate) struct Embedding {
    /// `[V, D]`.
    pub table: Weight,
    /// `[longest window, D]`.
    positions: Option<Weight>,
    /// It is the output projection, too.
    is_tied: bool,
    tokens: Place,
    dx: Place,
}

impl Embedding {
    pub fn new(d: &mut Declare) -> Embedding {
        let (vocab, width) = (d.a.vocab_size, d.a.d_model);
        let mut table = |part, rows| d.matrix(part, [rows, width], Role::Embedding, Init::Normal);
        let tokens = table(Part::Embedding, vocab);
        let positions = match d.a.positions {
            Positions::Learned { max } => {
                Some(d.matrix(Part::Positions, [max, width], Role::Embedding, Init::Normal))
            }
            Positions::Rotary { .. } => None,
        };
        let is_tied = d.a.tie_embeddings;
        Embedding { table: tokens, positions, is_tied, tokens: d.inputs.tokens, dx: d.dx() }
    }

    /// To `x [N, D]`.
    pub fn forward(&self, p: &Pass, x: Place) -> Done {
        let (tokens, table, y) = (p.at(self.tokens), p.stored(self.table)?, p.at(x));
        p.run(Gather { tokens, table, y: y.clone() })?; // [N], [V, D] → [N, D]
        let Some(table) = self.positions else { return Ok(()) };
        p.run(AddPositions { table: p.matrix(table)?, positions: p.core.batch.positions, y })
    }

    /// From `dx`. A tied table holds the gradient of the output projection already.
    pub fn backward(&self, b: &Back) -> Done {
        let (tokens, dy, dtable) = (b.at(self.tokens), b.at(self.dx), b.gradient(self.table)?);
        if !self.is_tied && b.to.onto == Onto::Overwrite {
            b.run(elementwise::Zero { y: dtable.clone() })?;
        }
        b.run(ScatterAdd { tokens, dy: dy.clone(), dtable })?; // [N, D] → [V, D]
        let Some(table) = self.positions else { return Ok(()) };
        let (dtable, positions) = (b.gradient(table)?, b.core.batch.positions);
        b.run(PositionsBackward { dy, positions, dtable, dtable_onto: b.to.onto })
    }
}
