//! The kernels of attention: rotary positions, joined keys, and attention itself, of vectors with
//! other columns around them.

use candle_core::{Result, Tensor};
use kernels::attention::{self, Heads, JoinKeys, JoinKeysBackward, Panel, Panels};
use kernels::norm::{Rows, Vectors};
use kernels::rope::{self, Pairs};

use super::basic;
use super::op::{Kernels, Op, each_case};
use super::random::Random;

/// Vectors of heads in rows, with columns before the first and after each.
#[derive(Debug, Clone, Copy)]
struct Spread {
    rows: usize,
    before: usize,
    heads: usize,
    width: usize,
    after: usize,
}

impl Spread {
    fn random(random: &mut Random, [rows, heads, width]: [usize; 3]) -> Spread {
        let [before, after] = [random.size(0..=5), random.size(0..=5)];
        Spread { rows, before, heads, width, after }
    }

    fn shape(&self) -> Vec<usize> {
        vec![self.rows, self.before + self.heads * (self.width + self.after)]
    }

    fn vectors(&self, tensor: device::Tensor) -> Vectors {
        let Spread { rows, before, heads, width, after } = *self;
        let rows = Rows::heads(rows, self.shape()[1], before, heads, width).apart(width + after);
        Vectors { tensor, rows }
    }

    fn panel(&self, tensor: device::Tensor) -> Panel {
        Panel { tensor, column: self.before, head_stride: self.width + self.after }
    }

    /// `[rows, heads, width]`.
    fn reference(&self, x: &Tensor) -> Result<Tensor> {
        let head_stride = self.width + self.after;
        let heads = x.narrow(1, self.before, self.heads * head_stride)?;
        heads.reshape((self.rows, self.heads, head_stride))?.narrow(2, 0, self.width)
    }

    /// A gradient that a kernel has written to stale memory: 0 in the columns that it left alone.
    fn read(&self, k: &Kernels, tensor: &device::Tensor) -> Vec<f64> {
        let (stride, head_stride) = (self.shape()[1], self.width + self.after);
        let is_ours = |i: usize| {
            let column = (i % stride).checked_sub(self.before);
            column.is_some_and(|column| column % head_stride < self.width)
        };
        let values = k.read(tensor).into_iter().zip(k.read_added(tensor, true)).enumerate();
        values.map(|(i, (new, added))| if is_ours(i) { new } else { added }).collect()
    }
}

/// Rotation in place: other columns are outputs, too.
struct Rope {
    at: Spread,
    positions: usize,
    pairs: Pairs,
    theta: f64,
}

impl Rope {
    fn run(&self, k: &Kernels, x: &[f64], turn: rope::Turn) -> Vec<f64> {
        let x = k.tensor(&self.at.shape(), x);
        let (width, theta, dtype) = (self.at.width, self.theta, device::DType::F64);
        let table =
            rope::table(&k.device, self.positions, &rope::Turns::geometric(width, theta), dtype)
                .unwrap();
        let (pairs, vectors) = (self.pairs, self.at.vectors(x.clone()));
        k.launch(rope::Rotate { table, x: vectors, pairs, turn });
        k.read(&x)
    }
}

impl Op for Rope {
    fn name(&self) -> String {
        format!("rope of {:?} by {:?}, windows of {}", self.pairs, self.at, self.positions)
    }

    fn shapes(&self) -> Vec<Vec<usize>> {
        vec![self.at.shape()]
    }

    fn forward(&self, k: &Kernels, x: &[Vec<f64>]) -> Vec<f64> {
        self.run(k, &x[0], rope::Turn::Forward)
    }

    fn backward(&self, k: &Kernels, _: &[Vec<f64>], dout: &[f64]) -> Vec<Vec<f64>> {
        vec![self.run(k, dout, rope::Turn::Back)]
    }

    fn reference(&self, x: &[Tensor]) -> Result<Tensor> {
        let Spread { rows, before, heads, width, after } = self.at;
        let vectors = self.at.reference(&x[0])?;
        let by_window = vectors.reshape((rows / self.positions, self.positions, heads, width))?;
        let by_head = by_window.transpose(1, 2)?.contiguous()?;
        let frequencies = basic::frequencies(self.theta, None, width);
        let turned = basic::rotate(&by_head, &frequencies, self.pairs)?.transpose(1, 2)?;
        let turned = turned.reshape((rows, heads, width))?;
        let others = x[0].narrow(1, before, heads * (width + after))?;
        let others = others.reshape((rows, heads, width + after))?.narrow(2, width, after)?;
        let all = basic::join(&[turned, others], 2)?.reshape((rows, heads * (width + after)))?;
        basic::join(&[x[0].narrow(1, 0, before)?, all], 1)
    }
}

#[test]
fn rotary_positions() {
    for pairs in [Pairs::Halves, Pairs::Neighbours] {
        each_case(|random| {
            let (windows, positions) = (random.size(1..=3), random.size(1..=30));
            let sizes = [windows * positions, random.size(1..=4), 2 * random.size(1..=12)];
            let at = Spread::random(random, sizes);
            Box::new(Rope { at, positions, pairs, theta: 10f64.powi(random.size(1..=6) as i32) })
        });
    }
}

struct Attention {
    h: Heads,
    doc_start: Vec<u32>,
    /// Where queries, keys and values lie in three tensors; else they are packed in one.
    three: Option<[Spread; 3]>,
}

impl Attention {
    fn panels(&self, tensors: &[device::Tensor]) -> Panels {
        let Some([query, key, value]) = self.three else {
            return Panels::packed(self.h, tensors[0].clone());
        };
        Panels {
            query: query.panel(tensors[0].clone()),
            key: key.panel(tensors[1].clone()),
            value: value.panel(tensors[2].clone()),
        }
    }

    fn run(&self, k: &Kernels, x: &[Vec<f64>]) -> (Panels, [device::Tensor; 3]) {
        let (h, rows) = (self.h, self.h.rows());
        let shapes = self.shapes();
        let tensors: Vec<_> = shapes.iter().zip(x).map(|(dims, x)| k.tensor(dims, x)).collect();
        let qkv = self.panels(&tensors);
        let doc_start = k.integers(&[rows], &self.doc_start);
        let (out, lse) = (k.stale(&[rows, h.heads * h.value_dim]), k.stale(&[rows, h.heads]));
        k.launch(attention::Forward {
            heads: h,
            qkv: qkv.clone(),
            doc_start: doc_start.clone(),
            out: out.clone(),
            lse: lse.clone(),
            workspace: k.stale(&[h.forward_workspace()]),
        });
        (qkv, [doc_start, out, lse])
    }
}

impl Op for Attention {
    fn name(&self) -> String {
        format!("attention {:?}, {:?}", self.h, self.three)
    }

    fn shapes(&self) -> Vec<Vec<usize>> {
        match self.three {
            None => vec![vec![self.h.rows(), self.h.stride()]],
            Some(three) => three.iter().map(Spread::shape).collect(),
        }
    }

    fn forward(&self, k: &Kernels, x: &[Vec<f64>]) -> Vec<f64> {
        let (_, [_, out, _]) = self.run(k, x);
        k.read(&out)
    }

    fn backward(&self, k: &Kernels, x: &[Vec<f64>], dout: &[f64]) -> Vec<Vec<f64>> {
        let (h, (qkv, [doc_start, out, lse])) = (self.h, self.run(k, x));
        let gradients: Vec<_> = self.shapes().iter().map(|dims| k.stale(dims)).collect();
        let dout = k.tensor(out.dims(), dout);
        let workspace = k.stale(&[h.backward_workspace()]);
        let dqkv = self.panels(&gradients);
        k.launch(attention::Backward { heads: h, qkv, doc_start, out, lse, dout, dqkv, workspace });
        match self.three {
            None => vec![k.read(&gradients[0])],
            Some(three) => three.iter().zip(&gradients).map(|(at, d)| at.read(k, d)).collect(),
        }
    }

    fn reference(&self, x: &[Tensor]) -> Result<Tensor> {
        let h = self.h;
        let (heads, kv, rows) = (h.heads, h.kv_heads, h.rows());
        let packed = |before, heads, width| {
            let at = Spread { rows, before, heads, width, after: 0 };
            at.reference(&x[0])
        };
        let [q, k, v] = match self.three {
            None => [
                packed(0, heads, h.key_dim)?,
                packed(heads * h.key_dim, kv, h.key_dim)?,
                packed((heads + kv) * h.key_dim, kv, h.value_dim)?,
            ],
            Some([q, k, v]) => [q.reference(&x[0])?, k.reference(&x[1])?, v.reference(&x[2])?],
        };
        let by_head = |x: Tensor| {
            let (_, heads, width) = x.dims3()?;
            let x = x.reshape((h.windows, h.positions, heads, width))?;
            x.transpose(1, 2)?.contiguous()
        };
        let mask = basic::mask(&self.doc_start, h.positions, q.dtype())?;
        let out = basic::attention(&by_head(q)?, &by_head(k)?, &by_head(v)?, &mask)?;
        out.transpose(1, 2)?.reshape((rows, heads * h.value_dim))
    }
}

fn heads(random: &mut Random) -> (Heads, Vec<u32>) {
    let (windows, positions) = (random.size(1..=2), random.size(1..=200));
    let (kv_heads, head_dim) = (random.size(1..=3), random.size(1..=20));
    let heads = kv_heads * random.size(1..=3);
    let doc_start = random.doc_start(windows, positions);
    (Heads::packed(windows, positions, heads, kv_heads, head_dim), doc_start)
}

#[test]
fn grouped_query_attention() {
    each_case(|random| {
        let (h, doc_start) = heads(random);
        Box::new(Attention { h, doc_start, three: None })
    });
}

#[test]
fn attention_with_values_of_another_width() {
    for packed in [true, false] {
        each_case(|random| {
            let (h, doc_start) = heads(random);
            let h = Heads { value_dim: random.size(1..=20), ..h };
            let vectors =
                [(h.heads, h.key_dim), (h.kv_heads, h.key_dim), (h.kv_heads, h.value_dim)];
            let places =
                vectors.map(|(heads, width)| Spread::random(random, [h.rows(), heads, width]));
            Box::new(Attention { h, doc_start, three: (!packed).then_some(places) })
        });
    }
}

/// Keys of a part of each head and one that all share.
struct Join {
    per_head: Spread,
    shared: Spread,
}

impl Join {
    fn keys(&self) -> Spread {
        let width = self.per_head.width + self.shared.width;
        Spread { before: 0, after: 0, width, ..self.per_head }
    }
}

impl Op for Join {
    fn name(&self) -> String {
        format!("keys of {:?} and {:?}", self.per_head, self.shared)
    }

    fn shapes(&self) -> Vec<Vec<usize>> {
        vec![self.per_head.shape(), self.shared.shape()]
    }

    fn forward(&self, k: &Kernels, x: &[Vec<f64>]) -> Vec<f64> {
        let (at, keys) = (self.keys(), k.stale(&self.keys().shape()));
        k.launch(JoinKeys {
            per_head: self.per_head.vectors(k.tensor(&self.per_head.shape(), &x[0])),
            shared: self.shared.vectors(k.tensor(&self.shared.shape(), &x[1])),
            keys: at.vectors(keys.clone()),
        });
        k.read(&keys)
    }

    fn backward(&self, k: &Kernels, _: &[Vec<f64>], dout: &[f64]) -> Vec<Vec<f64>> {
        let dper_head = k.stale(&self.per_head.shape());
        let dshared = k.stale(&self.shared.shape());
        k.launch(JoinKeysBackward {
            dkeys: self.keys().vectors(k.tensor(&self.keys().shape(), dout)),
            dper_head: self.per_head.vectors(dper_head.clone()),
            dshared: self.shared.vectors(dshared.clone()),
        });
        vec![self.per_head.read(k, &dper_head), self.shared.read(k, &dshared)]
    }

    fn reference(&self, x: &[Tensor]) -> Result<Tensor> {
        let (per_head, shared) = (self.per_head.reference(&x[0])?, self.shared.reference(&x[1])?);
        let all = shared.broadcast_as((self.per_head.rows, self.per_head.heads, self.shared.width));
        Tensor::cat(&[per_head, all?.contiguous()?], 2)
    }
}

#[test]
fn joined_keys() {
    each_case(|random| {
        let (rows, heads) = (random.size(1..=60), random.size(1..=5));
        let [own, common] = [random.size(1..=20), random.size(1..=20)];
        let per_head = Spread::random(random, [rows, heads, own]);
        let shared = Spread::random(random, [rows, 1, common]);
        Box::new(Join { per_head, shared })
    });
}
