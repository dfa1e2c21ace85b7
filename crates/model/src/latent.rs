//! Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, §2.1; DeepSeek-V3, 2412.19437):
//! queries, and keys with values, are made of short vectors of each row, and positions turn columns
//! of their own, which all keys of a row share.
//!
//! ```text
//! h ─QueryDown─▶ [N, Rq] ─norm─▶ [N, Rq] ─QueryUp─▶ q [N, H·C] ─turn Cr of each─┐
//!                                                                               ├─▶ [N, H·Cv]
//! h ─KeyValueDown─▶ [N, Rk + Cr] ─norm of Rk─▶ [N, Rk] ─KeyValueUp─▶ k, v ──────┤
//!                         └─turn Cr──────────────────────────────────▶ of all k ┘
//! ```
//! Cn columns of queries and keys are not turned, Cr are: C = Cn + Cr. Values have Cv. Rows of a
//! head are `[Cn | Cr]` in `QueryUp` and `[Cn | Cv]` in `KeyValueUp`, and pairs that turn are
//! neighbours, as in the published weights.

use kernels::Onto;
use kernels::attention::{self, Heads, JoinKeys, JoinKeysBackward, Panel, Panels};
use kernels::norm::{RmsBackward, RmsForward, Rows, Vectors};
use kernels::rope::{Pairs, Rotate, Turn};

use crate::architecture::Latent;
use crate::arena::Place;
use crate::block::Block;
use crate::declare::{Bias, Declare, Init, Linear, Weight};
use crate::names::Part;
use crate::rotary;
use crate::run::{Back, Done, Pass};

pub(crate) struct LatentAttention {
    sizes: Latent,
    heads: Heads,
    query: Query,
    key_value: LowRank,
    /// `[D, H·Cv]`.
    out: Linear,
    /// Queries and keys as attention reads them, each `[N, H·C]`.
    q: Place,
    k: Place,
    /// Of each head the keys' own columns, then its values, `[N, H·(Cn + Cv)]`.
    kv: Place,
    /// `[N, H·Cv]`.
    out_at: Place,
    /// Logsumexp of the scores, `[B, H, T]`.
    lse: Place,
    doc_start: Place,
    workspaces: [Place; 2],
    dq: Place,
    dk: Place,
    dkv: Place,
    dout: Place,
    dx: Place,
    dh: Place,
}

/// How queries are made.
enum Query {
    /// By one matrix, `[H·C, D]`.
    Whole(Linear),
    LowRank(LowRank),
}

/// Two matrices with a norm between them, over a vector of R columns.
struct LowRank {
    /// `[R + more, D]`.
    down: Linear,
    /// `[R]`.
    gain: Weight,
    eps: f64,
    /// `[outputs, R]`.
    up: Linear,
    /// `[N, R + more]`, of which the first R columns are normalized.
    short: Place,
    rows: Rows,
    /// `[N, R]`.
    normed: Place,
    /// 1/rms of each row.
    rstd: Place,
    dshort: Place,
    dnormed: Place,
    dh: Place,
}

impl LatentAttention {
    pub fn new(d: &mut Declare, sizes: Latent) -> LatentAttention {
        let (a, n) = (d.a, d.rows());
        let Latent { q_rank, kv_rank, nope_dim, rope_dim, value_dim, .. } = sizes;
        let (keys, values) = (a.heads * sizes.key_dim(), a.heads * value_dim);
        let own = a.heads * nope_dim + values;
        let heads = Heads {
            windows: d.batch.windows,
            positions: d.batch.positions,
            heads: a.heads,
            kv_heads: a.heads,
            key_dim: sizes.key_dim(),
            value_dim,
            sharpness: rotary::sharpness(a.positions),
        };
        d.rotary = rotary::turns(a.positions, rope_dim);
        let parts = [Part::KeyValueDown, Part::KeyValueDownNorm, Part::KeyValueUp];
        LatentAttention {
            sizes,
            heads,
            query: Query::new(d, q_rank, keys),
            key_value: LowRank::new(d, parts, [kv_rank, rope_dim, own], KEY_VALUE_SCRATCH),
            out: d.linear(Part::AttentionOut, [a.d_model, values], Bias::Without, Init::ToResidual),
            q: d.saved([n, keys]),
            k: d.saved([n, keys]),
            kv: d.saved([n, own]),
            out_at: d.saved([n, values]),
            lse: d.saved([heads.windows, heads.heads, heads.positions]),
            doc_start: d.inputs.doc_start,
            workspaces: [heads.forward_workspace(), heads.backward_workspace()]
                .map(|elements| d.scratch("attention workspace", [elements])),
            dq: d.scratch("dq", [n, keys]),
            dk: d.scratch("dk", [n, keys]),
            dkv: d.scratch("dkv", [n, own]),
            dout: d.scratch("dattention", [n, values]),
            dx: d.dx(),
            dh: d.dh(),
        }
    }

    /// As attention reads them, or their gradients: `q` and `k [N, H·C]`, values in
    /// `kv [N, H·(Cn + Cv)]`.
    fn panels(&self, p: &Pass, [q, k, kv]: [Place; 3]) -> Panels {
        let (key_dim, nope_dim) = (self.heads.key_dim, self.sizes.nope_dim);
        let panel = |place, column, head_stride| Panel { tensor: p.at(place), column, head_stride };
        Panels {
            query: panel(q, 0, key_dim),
            key: panel(k, 0, key_dim),
            value: panel(kv, nope_dim, nope_dim + self.heads.value_dim),
        }
    }

    /// Keys of all heads in `k`, their own columns in `kv`, and those they share in `short`.
    fn keys(&self, p: &Pass, [k, kv, short]: [Place; 3]) -> [Vectors; 3] {
        let (n, heads) = (self.heads.rows(), self.heads.heads);
        let Latent { kv_rank, nope_dim, rope_dim, value_dim, .. } = self.sizes;
        let vectors = |place: Place, column, heads, len| {
            let tensor = p.at(place);
            Vectors { rows: Rows::heads(n, tensor.dim(1), column, heads, len), tensor }
        };
        let mut own = vectors(kv, 0, heads, nope_dim);
        own.rows = own.rows.apart(nope_dim + value_dim);
        let shared = vectors(short, kv_rank, 1, rope_dim);
        [vectors(k, 0, heads, self.heads.key_dim), own, shared]
    }

    /// Turns the columns for it of queries `q [N, H·C]` and of what keys share, in
    /// `short [N, Rk + Cr]`.
    fn rotate(&self, p: &Pass, [q, short]: [Place; 2], turn: Turn) -> Done {
        let Some(table) = p.core.angles.clone() else { return Ok(()) };
        let Latent { kv_rank, nope_dim, rope_dim, .. } = self.sizes;
        let (n, heads, key_dim) = (self.heads.rows(), self.heads.heads, self.heads.key_dim);
        let of_queries = Rows::heads(n, heads * key_dim, nope_dim, heads, rope_dim).apart(key_dim);
        let of_keys = Rows::heads(n, kv_rank + rope_dim, kv_rank, 1, rope_dim);
        for (place, rows) in [(q, of_queries), (short, of_keys)] {
            let x = Vectors { tensor: p.at(place), rows };
            p.run(Rotate { table: table.clone(), x, pairs: Pairs::Neighbours, turn })?;
        }
        Ok(())
    }
}

impl Block for LatentAttention {
    fn forward(&self, p: &Pass, h: Place, x: Place) -> Done {
        self.query.forward(p, h, self.q)?; // [N, D] → [N, H·C]
        self.key_value.forward(p, h, self.kv)?; // [N, D] → [N, Rk + Cr] → [N, H·(Cn + Cv)]
        self.rotate(p, [self.q, self.key_value.short], Turn::Forward)?; // by position
        let [keys, per_head, shared] = self.keys(p, [self.k, self.kv, self.key_value.short]);
        p.run(JoinKeys { per_head, shared, keys })?; // [N, H·Cn], [N, Cr] → [N, H·C]
        p.run(attention::Forward {
            heads: self.heads,
            qkv: self.panels(p, [self.q, self.k, self.kv]),
            doc_start: p.at(self.doc_start),
            out: p.at(self.out_at), // → [N, H·Cv]
            lse: p.at(self.lse),    // → [B, H, T]
            workspace: p.at(self.workspaces[0]),
        })?;
        p.linear(self.out, self.out_at, x, Onto::Add) // [N, H·Cv] → += [N, D]
    }

    fn backward(&self, b: &Back, h: Place) -> Done {
        b.linear_back(self.out, self.dx, self.out_at, (self.dout, Onto::Overwrite))?; // → [N, H·Cv]
        b.run(attention::Backward {
            heads: self.heads,
            qkv: self.panels(b, [self.q, self.k, self.kv]),
            doc_start: b.at(self.doc_start),
            out: b.at(self.out_at),
            lse: b.at(self.lse),
            dout: b.at(self.dout),
            dqkv: self.panels(b, [self.dq, self.dk, self.dkv]), // → [N, H·C] twice, [N, H·Cv]
            workspace: b.at(self.workspaces[1]),
        })?;
        let [dkeys, dper_head, dshared] = self.keys(b, [self.dk, self.dkv, self.key_value.dshort]);
        b.run(JoinKeysBackward { dkeys, dper_head, dshared })?; // [N, H·C] → [N, H·Cn], [N, Cr]
        self.rotate(b, [self.dq, self.key_value.dshort], Turn::Back)?;
        self.key_value.backward(b, self.dkv, h, Onto::Overwrite)?; // → [N, D]
        match &self.query {
            Query::Whole(w) => b.linear_back(*w, self.dq, h, (self.dh, Onto::Add)), // → += [N, D]
            Query::LowRank(pair) => pair.backward(b, self.dq, h, Onto::Add),
        }
    }
}

impl Query {
    /// Of so many columns in all, H·C.
    fn new(d: &mut Declare, rank: Option<usize>, columns: usize) -> Query {
        let Some(rank) = rank else {
            let shape = [columns, d.a.d_model];
            return Query::Whole(d.linear(Part::Query, shape, Bias::Without, Init::Normal));
        };
        let parts = [Part::QueryDown, Part::QueryDownNorm, Part::QueryUp];
        Query::LowRank(LowRank::new(d, parts, [rank, 0, columns], QUERY_SCRATCH))
    }

    /// From `h [N, D]` to `q [N, H·C]`.
    fn forward(&self, p: &Pass, h: Place, q: Place) -> Done {
        match self {
            Query::Whole(matrix) => p.linear(*matrix, h, q, Onto::Overwrite),
            Query::LowRank(pair) => pair.forward(p, h, q),
        }
    }
}

/// Gradients of the short vector, and of it after its norm.
const QUERY_SCRATCH: [&str; 2] = ["dshort of queries", "dnormed"];
const KEY_VALUE_SCRATCH: [&str; 2] = ["dshort of keys and values", "dnormed"];

impl LowRank {
    /// Over `rank` columns, beside which `more` are made and left alone, to `outputs`.
    fn new(
        d: &mut Declare,
        [down, norm, up]: [Part; 3],
        [rank, more, outputs]: [usize; 3],
        [dshort, dnormed]: [&'static str; 2],
    ) -> LowRank {
        let (n, width) = (d.rows(), rank + more);
        LowRank {
            down: d.linear(down, [width, d.a.d_model], Bias::Without, Init::Normal),
            gain: d.gain(norm, rank),
            eps: d.a.latent.and_then(|latent| latent.norm_eps).unwrap_or(d.a.norm_eps),
            up: d.linear(up, [outputs, rank], Bias::Without, Init::Normal),
            short: d.saved([n, width]),
            rows: Rows::heads(n, width, 0, 1, rank),
            normed: d.saved([n, rank]),
            rstd: d.saved([n]),
            dshort: d.scratch(dshort, [n, width]),
            dnormed: d.scratch(dnormed, [n, rank]),
            dh: d.dh(),
        }
    }

    /// From `h [N, D]` to `y [N, outputs]`.
    fn forward(&self, p: &Pass, h: Place, y: Place) -> Done {
        p.linear(self.down, h, self.short, Onto::Overwrite)?; // [N, D] → [N, R + more]
        p.run(RmsForward {
            x: Vectors { tensor: p.at(self.short), rows: self.rows },
            gain: p.vector(self.gain)?,
            eps: self.eps,
            y: Vectors::rows_of(p.at(self.normed)), // → [N, R]
            rstd: p.at(self.rstd),
        })?;
        p.linear(self.up, self.normed, y, Onto::Overwrite) // [N, R] → [N, outputs]
    }

    /// From `dy [N, outputs]`, and the columns of `dshort` that are left alone, to `dh [N, D]`.
    fn backward(&self, b: &Back, dy: Place, h: Place, dh_onto: Onto) -> Done {
        b.linear_back(self.up, dy, self.normed, (self.dnormed, Onto::Overwrite))?; // → [N, R]
        b.run(RmsBackward {
            dy: Vectors::rows_of(b.at(self.dnormed)),
            x: Vectors { tensor: b.at(self.short), rows: self.rows },
            gain: b.vector(self.gain)?,
            rstd: b.at(self.rstd),
            dx: Vectors { tensor: b.at(self.dshort), rows: self.rows }, // → [N, R]
            dx_onto: Onto::Overwrite,
            dgain: b.gradient_vector(self.gain)?,
            dgain_onto: b.to.onto,
        })?;
        b.linear_back(self.down, self.dshort, h, (self.dh, dh_onto)) // [N, R + more] → [N, D]
    }
}
