//! Which slots there are, and their places: one after another, in whole cache lines.

use device::{DType, Shape};
use kernels::attention::Heads;
use layout::Schema;

use super::{ExpertScratch, ExpertSlots, LayerSlots, MicroBatch, QkSlots, Slot, Slots, Types};
use crate::architecture::{Architecture, Feed, Moe};
use crate::config::{Activation, QkNorm};
use crate::params::Parameters;
use crate::{ModelError, Norm};

/// What a slot is for, in the printed plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    Activations,
    Gradients,
    Logits,
    Widened,
}

const USES: [(Use, &str); 4] = [
    (Use::Activations, "activations"),
    (Use::Gradients, "activation gradients and workspace"),
    (Use::Logits, "logits chunk"),
    (Use::Widened, "the largest weight as f32"),
];

/// An arena before there is memory for it.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub slots: Slots<Slot>,
    pub bytes: usize,
    by_use: [usize; 4],
}

/// Rows of logits that exist at a time: half of the micro-batch, at most 512.
pub(crate) fn logit_rows(rows: usize) -> usize {
    rows.div_ceil(2).min(512)
}

/// Sizes of an attention call.
pub(crate) fn heads(a: &Architecture, batch: MicroBatch) -> Heads {
    Heads {
        windows: batch.windows,
        positions: batch.positions,
        heads: a.heads,
        kv_heads: a.kv_heads,
        head_dim: a.head_dim,
    }
}

/// Columns of the MLP's first projection.
fn up_width(a: &Architecture, width: usize) -> usize {
    if a.activation == Activation::Swiglu { 2 * width } else { width }
}

/// Columns of what a norm saves of each row.
fn stats(a: &Architecture) -> usize {
    if a.norm == Norm::Layer { 2 } else { 1 }
}

/// Elements of the largest weight that the engine uses as one matrix.
fn largest_weight(schema: &Schema) -> usize {
    let (mut most, mut run) = (0, 0);
    for tensor in &schema.tensors {
        run = if tensor.fused { run + tensor.len() } else { tensor.len() };
        most = most.max(run);
    }
    most
}

struct Planner<'a> {
    a: &'a Architecture,
    batch: MicroBatch,
    compute: DType,
    bytes: usize,
    by_use: [usize; 4],
}

impl Planner<'_> {
    /// A slot of the compute type.
    fn real<const RANK: usize>(
        &mut self,
        what: Use,
        name: &'static str,
        dims: [usize; RANK],
    ) -> Slot {
        let [slot] = self.shared(what, [(name, dims)]);
        slot
    }

    /// Slots of the compute type that are never in use together: one place for all.
    fn shared<const COUNT: usize, const RANK: usize>(
        &mut self,
        what: Use,
        slots: [(&'static str, [usize; RANK]); COUNT],
    ) -> [Slot; COUNT] {
        self.place(what, self.compute, slots)
    }

    /// A slot of u32.
    fn integers<const RANK: usize>(&mut self, name: &'static str, dims: [usize; RANK]) -> Slot {
        let [slot] = self.place(Use::Activations, DType::U32, [(name, dims)]);
        slot
    }

    fn place<const COUNT: usize, const RANK: usize>(
        &mut self,
        what: Use,
        dtype: DType,
        slots: [(&'static str, [usize; RANK]); COUNT],
    ) -> [Slot; COUNT] {
        const LINE: usize = 64;
        // A plan beyond the address space says so by its size; whoever allocates it is refused.
        let size =
            |dims: &[usize]| dims.iter().fold(dtype.bytes(), |all, n| all.saturating_mul(*n));
        let bytes = slots.iter().map(|(_, dims)| size(dims)).max().unwrap_or(0);
        let bytes = bytes.checked_next_multiple_of(LINE).unwrap_or(usize::MAX);
        let offset_bytes = self.bytes;
        self.bytes = offset_bytes.saturating_add(bytes);
        let index = USES.iter().position(|(u, _)| *u == what).expect("USES lists every use");
        self.by_use[index] = self.by_use[index].saturating_add(bytes);
        slots.map(|(name, dims)| {
            let shape = Shape::new(&dims).expect("slots have at most three axes");
            Slot { name, shape, dtype, offset_bytes }
        })
    }

    /// `dact` is the gradient's place for a layer of this kind.
    fn layer(&mut self, layer: usize, dact: impl Fn(Feed) -> Slot) -> LayerSlots<Slot> {
        let (a, act) = (self.a, Use::Activations);
        let (n, d, h) = (self.batch.rows(), a.d_model, heads(a, self.batch));
        let feed = a.feed(layer);
        let x = self.real(act, "x", [n, d]);
        let stats1 = self.real(act, "stats1", [n, stats(a)]);
        let h1 = self.real(act, "h1", [n, d]);
        let qkv = self.real(act, "qkv", [n, h.stride()]);
        let attention = self.real(act, "attention", [n, a.heads * a.head_dim]);
        let lse = self.real(act, "lse", [self.batch.windows, a.heads, self.batch.positions]);
        let x_mid = self.real(act, "x_mid", [n, d]);
        let stats2 = self.real(act, "stats2", [n, stats(a)]);
        let h2 = self.real(act, "h2", [n, d]);
        let qk_norm = (a.qk_norm != QkNorm::None).then(|| self.qk_norm());
        let (experts, width) = match (feed, &a.moe) {
            (Feed::Experts, Some(moe)) => (Some(self.experts(moe)), moe.shared_experts * moe.d_ff),
            _ => (None, a.d_ff),
        };
        let up = self.real(act, "up", [n, up_width(a, width)]);
        let (dact, act) = (dact(feed), self.real(act, "act", [n, width]));
        LayerSlots {
            x,
            stats1,
            h1,
            qkv,
            attention,
            lse,
            x_mid,
            stats2,
            h2,
            qk_norm,
            experts,
            up,
            act,
            dact,
        }
    }

    fn qk_norm(&mut self) -> QkSlots<Slot> {
        let (a, n, act) = (self.a, self.batch.rows(), Use::Activations);
        let heads_of = |heads| if a.qk_norm == QkNorm::Head { heads } else { 1 };
        QkSlots {
            raw: self.real(act, "qkv_raw", [n, heads(a, self.batch).stride()]),
            q_rstd: self.real(act, "q_rstd", [n, heads_of(a.heads)]),
            k_rstd: self.real(act, "k_rstd", [n, heads_of(a.kv_heads)]),
        }
    }

    fn experts(&mut self, moe: &Moe) -> ExpertSlots<Slot> {
        let (n, act) = (self.batch.rows(), Use::Activations);
        let (experts, top_k) = (moe.experts, moe.top_k);
        ExpertSlots {
            logits: self.real(act, "router logits", [n, experts]),
            scores: self.real(act, "scores", [n, experts]),
            chosen: self.integers("chosen", [n, top_k]),
            weights: self.real(act, "routing weights", [n, top_k]),
            slots: self.integers("slots", [n * top_k]),
            sources: self.integers("sources", [n * top_k]),
            offsets: self.integers("offsets", [experts + 1]),
            gate_up: self.real(act, "experts' gate_up", [n * top_k, 2 * moe.d_ff]),
            act: self.real(act, "experts' act", [n * top_k, moe.d_ff]),
            y: self.real(act, "experts' y", [n * top_k, self.a.d_model]),
        }
    }

    fn expert_scratch(&mut self, moe: &Moe) -> ExpertScratch<Slot> {
        let (n, d, back) = (self.batch.rows(), self.a.d_model, Use::Gradients);
        let rows = n * moe.top_k;
        ExpertScratch {
            grouped: self.real(back, "grouped", [rows, d]),
            dgrouped: self.real(back, "dgrouped", [rows, d]),
            dact: self.real(back, "experts' dact", [rows, moe.d_ff]),
            dweights: self.real(back, "dweights", [n, moe.top_k]),
            drouter: self.real(back, "drouter", [n, moe.experts]),
        }
    }

    /// The place of the gradient of `act`, by what follows attention.
    fn dact(&mut self) -> impl Fn(Feed) -> Slot + use<> {
        let (a, n) = (self.a, self.batch.rows());
        let dense = if a.moe_layers() < a.layers { a.d_ff } else { 0 };
        let shared = a.moe.as_ref().map_or(0, |moe| moe.shared_experts * moe.d_ff);
        let slots = [("dact", [n, dense]), ("shared experts' dact", [n, shared])];
        let [dense, shared] = self.shared(Use::Gradients, slots);
        move |feed| if feed == Feed::Experts { shared } else { dense }
    }

    fn slots(&mut self, largest: usize) -> Slots<Slot> {
        let a = self.a;
        let (n, d, h) = (self.batch.rows(), a.d_model, heads(a, self.batch));
        let (act, back) = (Use::Activations, Use::Gradients);
        let dact = self.dact();
        let workspaces = [
            ("attention forward workspace", [h.forward_workspace()]),
            ("attention backward workspace", [h.backward_workspace()]),
        ];
        let [forward_workspace, backward_workspace] = self.shared(back, workspaces);
        let vector = h.stride().max(d).max(up_width(a, a.d_ff));
        let vector = if largest > 0 { vector } else { 0 };
        Slots {
            layers: (0..a.layers).map(|layer| self.layer(layer, &dact)).collect(),
            tokens: self.integers("tokens", [n]),
            targets: self.integers("targets", [n]),
            doc_start: self.integers("doc_start", [n]),
            x_final: self.real(act, "x_final", [n, d]),
            stats_final: self.real(act, "stats_final", [n, stats(a)]),
            h_final: self.real(act, "h_final", [n, d]),
            losses: self.real(act, "losses", [n]),
            dx: self.real(back, "dx", [n, d]),
            dh: self.real(back, "dh", [n, d]),
            dqkv: self.real(back, "dqkv", [n, h.stride()]),
            dattention: self.real(back, "dattention", [n, a.heads * a.head_dim]),
            forward_workspace,
            backward_workspace,
            experts: a.moe.as_ref().map(|moe| self.expert_scratch(moe)),
            logits: self.real(Use::Logits, "logits", [logit_rows(n), a.vocab_size]),
            widened: self.real(Use::Widened, "widened", [largest]),
            widened_vectors: self.real(Use::Widened, "widened vectors", [2, vector]),
        }
    }
}

impl Plan {
    /// Plans the arena of a micro-batch.
    pub fn new(a: &Architecture, schema: &Schema, batch: MicroBatch, types: Types) -> Plan {
        let largest = if types.widens() { largest_weight(schema) } else { 0 };
        let mut planner = Planner { a, batch, compute: types.compute, bytes: 0, by_use: [0; 4] };
        let slots = planner.slots(largest);
        Plan { slots, bytes: planner.bytes, by_use: planner.by_use }
    }

    /// Whether every weight has room where it is widened.
    ///
    /// # Errors
    /// The first that has not.
    pub fn check_widened(&self, params: &Parameters) -> Result<(), ModelError> {
        let Slots { widened, widened_vectors, .. } = &self.slots;
        for weight in params.matrices() {
            widened.check_use("a weight of", &[weight.rows, weight.cols])?;
        }
        for weight in params.vectors() {
            widened_vectors.check_use("two vectors of", &[2, weight.len()])?;
        }
        Ok(())
    }
}

/// Bytes of the arena by use, without allocating it, where weights are stored as `weights`.
pub fn memory_plan(
    a: &Architecture,
    schema: &Schema,
    batch: MicroBatch,
    weights: DType,
) -> Vec<(&'static str, usize)> {
    let plan = Plan::new(a, schema, batch, Types::stored_as(weights));
    let uses = USES.iter().zip(plan.by_use).map(|((_, name), bytes)| (*name, bytes));
    uses.filter(|(_, bytes)| *bytes > 0).collect()
}
