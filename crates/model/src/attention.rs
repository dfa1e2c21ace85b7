//! Attention with as many or fewer heads of keys and values as of queries (Ainslie et al. 2023),
//! rotary positions (Su et al. 2021), and norms of queries and keys.

use kernels::Onto;
use kernels::attention::{self, Heads, Panels};
use kernels::norm::{RmsBackwardInPlace, RmsForward, Rows, Vectors};
use kernels::rope::{Pairs, Rotate, Turn};

use crate::arena::Place;
use crate::block::Block;
use crate::config::{Positions, QkNorm};
use crate::declare::{Bias, Declare, Init, Linear, Weight};
use crate::names::Part;
use crate::rotary;
use crate::run::{Back, Done, Pass};

pub(crate) struct Attention {
    heads: Heads,
    is_rotary: bool,
    /// `[(H + 2K)·C, D]`.
    qkv: Linear,
    norms: Option<QkNorms>,
    /// `[D, H·C]`.
    out: Linear,
    /// Queries, keys and values as attention reads them, `[N, (H + 2K)·C]`.
    qkv_at: Place,
    /// `[N, H·C]`.
    out_at: Place,
    /// Logsumexp of the scores, `[B, H, T]`.
    lse: Place,
    doc_start: Place,
    workspaces: [Place; 2],
    dqkv: Place,
    dout: Place,
    dx: Place,
    dh: Place,
}

/// Norms of queries and keys.
struct QkNorms {
    eps: f64,
    /// Before the norms, `[N, (H + 2K)·C]`.
    raw: Place,
    /// Of queries and of keys: gain, the vectors inside qkv, and their 1/rms.
    each: [(Weight, Rows, Place); 2],
}

/// Sizes of a call.
fn heads(d: &Declare) -> Heads {
    let (batch, a) = (d.batch, d.a);
    Heads::packed(batch.windows, batch.positions, a.heads, a.kv_heads, a.head_dim)
}

impl Attention {
    pub fn new(d: &mut Declare) -> Attention {
        let (a, n, heads) = (d.a, d.rows(), heads(d));
        let (q, kv) = (a.heads * a.head_dim, a.kv_heads * a.head_dim);
        let members = [(Part::Query, q), (Part::Key, kv), (Part::Value, kv)];
        let bias = Bias::from(a.attention_bias);
        let qkv = d.fused(&members, Some(Part::QueryKeyValue), a.d_model, bias);
        let norms = QkNorms::new(d, heads.stride());
        d.rotary = rotary::turns(a.positions, a.head_dim);
        Attention {
            heads,
            is_rotary: matches!(a.positions, Positions::Rotary { .. }),
            qkv,
            norms,
            out: d.linear(Part::AttentionOut, [a.d_model, q], bias, Init::ToResidual),
            qkv_at: d.saved([n, heads.stride()]),
            out_at: d.saved([n, q]),
            lse: d.saved([heads.windows, heads.heads, heads.positions]),
            doc_start: d.inputs.doc_start,
            workspaces: [heads.forward_workspace(), heads.backward_workspace()]
                .map(|elements| d.scratch("attention workspace", [elements])),
            dqkv: d.scratch("dqkv", [n, heads.stride()]),
            dout: d.scratch("dattention", [n, q]),
            dx: d.dx(),
            dh: d.dh(),
        }
    }

    /// Turns queries and keys by their positions, where the model does so.
    fn rotate(&self, p: &Pass, x: Place, turn: Turn) -> Done {
        let table = p.core.angles.clone().filter(|_| self.is_rotary);
        let Some(table) = table else { return Ok(()) };
        let (x, h) = (p.at(x), self.heads);
        let rows = Rows::heads(x.dim(0), x.dim(1), 0, h.heads + h.kv_heads, h.key_dim);
        let x = Vectors { tensor: x, rows };
        p.run(Rotate { table, x, pairs: Pairs::Halves, turn })
    }
}

impl Block for Attention {
    fn forward(&self, p: &Pass, h: Place, x: Place) -> Done {
        let projected = self.norms.as_ref().map_or(self.qkv_at, |norms| norms.raw);
        p.linear(self.qkv, h, projected, Onto::Overwrite)?; // [N, D] → [N, (H + 2K)·C]
        if let Some(norms) = &self.norms {
            norms.forward(p, self.qkv_at)?; // of each query and key
        }
        self.rotate(p, self.qkv_at, Turn::Forward)?; // by position
        p.run(attention::Forward {
            heads: self.heads,
            qkv: Panels::packed(self.heads, p.at(self.qkv_at)),
            doc_start: p.at(self.doc_start),
            out: p.at(self.out_at), // → [N, H·C]
            lse: p.at(self.lse),    // → [B, H, T]
            workspace: p.at(self.workspaces[0]),
        })?;
        p.linear(self.out, self.out_at, x, Onto::Add) // [N, H·C] → += [N, D]
    }

    fn backward(&self, b: &Back, h: Place) -> Done {
        b.linear_back(self.out, self.dx, self.out_at, (self.dout, Onto::Overwrite))?; // → [N, H·C]
        b.run(attention::Backward {
            heads: self.heads,
            qkv: Panels::packed(self.heads, b.at(self.qkv_at)),
            doc_start: b.at(self.doc_start),
            out: b.at(self.out_at),
            lse: b.at(self.lse),
            dout: b.at(self.dout),
            dqkv: Panels::packed(self.heads, b.at(self.dqkv)), // → [N, (H + 2K)·C]
            workspace: b.at(self.workspaces[1]),
        })?;
        self.rotate(b, self.dqkv, Turn::Back)?;
        if let Some(norms) = &self.norms {
            norms.backward(b, self.dqkv)?;
        }
        b.linear_back(self.qkv, self.dqkv, h, (self.dh, Onto::Overwrite)) // → [N, D]
    }
}

impl QkNorms {
    /// Inside rows of `stride` elements.
    fn new(d: &mut Declare, stride: usize) -> Option<QkNorms> {
        let (a, n) = (d.a, d.rows());
        let (q, kv) = (a.heads * a.head_dim, a.kv_heads * a.head_dim);
        // How many vectors there are in a row, and how wide each is.
        let [queries, keys] = match a.qk_norm {
            QkNorm::None => return None,
            QkNorm::Head => [(a.heads, a.head_dim), (a.kv_heads, a.head_dim)],
            QkNorm::Projection => [(1, q), (1, kv)],
        };
        let gains = [d.gain(Part::QueryNorm, queries.1), d.gain(Part::KeyNorm, keys.1)];
        let raw = d.saved([n, stride]);
        let mut each = |gain, start, (count, width)| {
            (gain, Rows::heads(n, stride, start, count, width), d.saved([n, count]))
        };
        let each = [each(gains[0], 0, queries), each(gains[1], q, keys)];
        Some(QkNorms { eps: a.norm_eps, raw, each })
    }

    /// From `raw` to `qkv`, which gets the values too.
    fn forward(&self, p: &Pass, qkv: Place) -> Done {
        p.copy(self.raw, qkv)?;
        for &(gain, rows, rstd) in &self.each {
            p.run(RmsForward {
                x: Vectors { tensor: p.at(self.raw), rows },
                gain: p.vector(gain)?,
                eps: self.eps,
                y: Vectors { tensor: p.at(qkv), rows },
                rstd: p.at(rstd),
            })?;
        }
        Ok(())
    }

    /// In place of `dqkv`.
    fn backward(&self, b: &Back, dqkv: Place) -> Done {
        for &(gain, rows, rstd) in &self.each {
            b.run(RmsBackwardInPlace {
                d: b.at(dqkv),
                x: b.at(self.raw),
                rows,
                gain: b.vector(gain)?,
                rstd: b.at(rstd),
                dgain: b.gradient_vector(gain)?,
                dgain_onto: b.to.onto,
            })?;
        }
        Ok(())
    }
}
