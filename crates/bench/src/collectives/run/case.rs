//! One operation of one size on one rank: its memory, what it is filled with, and what must come
//! out.
//!
//! ```text
//!                  in place                      out of place
//! all_reduce       A                             A to B
//! reduce_scatter   A, own part of A              A, own part of B
//! all_gather       A, where the own part lies    own part of A to B
//! broadcast        A                             A of the root to B
//! reduce           A                             A to B of the root
//! gather           A, where the own part lies    own part of A to B of the root
//! scatter          A of the root to own part     A of the root to B
//! all_to_all       —                             A to B
//! send_recv        —                             A to the next rank's B
//! ```

use std::ops::Range;

use comm::{AllToAll, EvenPlan, Group, P2p, Prepared, Window};
use device::{DType, Stream, Tensor};
use layout::Tree;
use serde::{Deserialize, Serialize};

use super::Place;
use super::pattern::{self, Contents, Pattern};
use crate::BenchError;
use crate::collectives::{ElementType, Key, Op, Parts, RedOp};

/// The byte that fills a result before the operation: no element of any type is all ones here.
const POISON: u8 = 0xFF;

/// The operations that can be measured, and the types that they take.
pub fn supports(op: Op, dtype: ElementType) -> bool {
    match op {
        Op::AllReduce | Op::ReduceScatter | Op::Reduce => reduced(dtype).is_some(),
        Op::AllToAllV | Op::Hypercube => false,
        _ => true,
    }
}

/// The reduction, where it can be measured.
pub fn reduction(redop: RedOp) -> Option<comm::RedOp> {
    Some(match redop {
        RedOp::Sum => comm::RedOp::Sum,
        RedOp::Prod => comm::RedOp::Prod,
        RedOp::Min => comm::RedOp::Min,
        RedOp::Max => comm::RedOp::Max,
        RedOp::Avg => comm::RedOp::Avg,
        RedOp::MulSum => return None,
    })
}

/// Whether an operation can be measured so.
pub fn has(op: Op, place: Place) -> bool {
    match op {
        Op::AllToAll | Op::SendRecv => place == Place::Out,
        Op::Barrier => place == Place::In,
        _ => true,
    }
}

/// The one way of an operation that has no other.
pub fn only(op: Op) -> Vec<Place> {
    [Place::Out, Place::In].into_iter().filter(|place| has(op, *place)).collect()
}

/// Memory of a rank for all cases.
pub struct Buffers {
    a: Window,
    b: Window,
}

impl Buffers {
    pub fn new(group: &Group, bytes: usize) -> Result<Buffers, BenchError> {
        Ok(Buffers { a: group.window(bytes)?, b: group.window(bytes)? })
    }
}

/// An element that is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bad {
    /// In elements of the result.
    pub offset: u64,
    pub got: String,
    pub expected: String,
}

/// Bytes of a buffer, and what they are: which rank's elements from which on, or the sum of all.
struct Region {
    bytes: Tensor,
    start: usize,
    of: Of,
}

#[derive(Clone, Copy)]
enum Of {
    Rank(usize),
    All,
}

/// A case on a rank.
pub struct Case {
    op: Prepared,
    stream: Stream,
    /// Of launch 0.
    contents: Contents,
    inputs: Vec<Region>,
    results: Vec<Region>,
}

impl Case {
    pub fn new(
        group: &Group,
        stream: &Stream,
        buffers: &Buffers,
        key: &Key,
    ) -> Result<Case, BenchError> {
        let parts = Shape::new(group, buffers, key);
        let (op, inputs, results) = parts.operation(key)?;
        let op = group.prepare(op)?;
        let (dtype, redop, ranks) = (key.dtype, key.redop, parts.ranks);
        let contents = Contents { dtype, redop, ranks, salt: 0 };
        Ok(Case { op, stream: stream.clone(), contents, inputs, results })
    }

    /// Whether shared memory is a part of its way, and tcp the other.
    pub fn is_by_hosts(&self) -> bool {
        self.op.is_by_hosts()
    }

    pub fn launch(&self, group: &Group) -> Result<(), BenchError> {
        Ok(group.call(&self.stream, &self.op)?)
    }

    /// Lets the group run it after everything on `after`; the caller goes on.
    pub fn submit(&self, group: &Group, after: &Stream) -> Result<comm::Pending, BenchError> {
        Ok(group.submit(after, &self.op)?)
    }

    /// Writes the inputs of launch `salt`, over whatever is where results go.
    pub fn fill(&mut self, salt: u64) -> Result<(), BenchError> {
        for region in &self.results {
            self.stream.fill(&region.bytes, POISON)?;
        }
        for region in &self.inputs {
            let pattern = self.pattern(region.of, salt);
            self.write(&region.bytes, |bytes| pattern.write(region.start, bytes))?;
        }
        Ok(())
    }

    /// How many elements of the results of launch `salt` are wrong, and the first of them.
    pub fn check(&self, salt: u64) -> Result<(u64, Option<Bad>), BenchError> {
        let (mut wrong, mut first, mut before) = (0, None, 0);
        for region in &self.results {
            let pattern = self.pattern(region.of, salt);
            let dtype = self.contents.dtype;
            let size = dtype.bytes() as usize;
            let found = self.read(&region.bytes, |got| {
                let (wrong, at) = pattern.compare(region.start, got);
                let bad = at.map(|at| Bad {
                    offset: (before + at) as u64,
                    got: pattern::decode(dtype, &got[at * size..(at + 1) * size]),
                    expected: pattern.text(dtype, region.start + at),
                });
                (wrong, bad)
            })?;
            before += region.bytes.len() / size;
            wrong += found.0;
            first = first.or(found.1);
        }
        Ok((wrong, first))
    }

    /// Flips the lowest bit of the first result.
    pub fn flip(&self) -> Result<(), BenchError> {
        let Some(region) = self.results.iter().find(|region| !region.bytes.is_empty()) else {
            return Ok(());
        };
        let first = region.bytes.flat(0..1)?;
        let byte = self.read(&first, |bytes| bytes[0])?;
        self.write(&first, |bytes| bytes[0] = byte ^ 1)
    }

    /// Lets `fill` write all bytes of a tensor, where they lie or on their way there.
    fn write(&self, to: &Tensor, fill: impl FnOnce(&mut [u8])) -> Result<(), BenchError> {
        if to.buffer().device().kind().is_host() {
            return Ok(self.stream.with_memory("fill", |k| {
                fill(k.write::<u8>(to)?);
                Ok(())
            })?);
        }
        let mut bytes = vec![0; to.len()];
        fill(&mut bytes);
        Ok(self.stream.copy_in(to, &bytes)?)
    }

    /// Lets `look` read all bytes of a tensor, where they lie or as they came from there.
    fn read<R>(&self, from: &Tensor, look: impl FnOnce(&[u8]) -> R) -> Result<R, BenchError> {
        match from.buffer().device().kind().is_host() {
            true => Ok(self.stream.with_memory("check", |k| Ok(look(k.read::<u8>(from)?)))?),
            false => Ok(look(&self.stream.to_vec::<u8>(from)?)),
        }
    }

    fn pattern(&self, of: Of, salt: u64) -> Pattern {
        let contents = Contents { salt, ..self.contents };
        Pattern::new(contents.dtype, |index| match of {
            Of::Rank(rank) => f64::from(contents.given(rank, index)),
            Of::All => contents.reduced(index),
        })
    }
}

type Operation = (comm::Op, Vec<Region>, Vec<Region>);

/// Where the parts of a case lie.
struct Shape<'a> {
    buffers: &'a Buffers,
    dtype: ElementType,
    ranks: usize,
    place: usize,
    /// Elements: see [`crate::collectives::Extent`].
    count: usize,
}

impl<'a> Shape<'a> {
    fn new(group: &Group, buffers: &'a Buffers, key: &Key) -> Shape<'a> {
        let ranks = group.members().len();
        let extent = key.op.extent(key.bytes, key.dtype.bytes(), ranks, Parts::Exact);
        let (dtype, place, count) = (key.dtype, group.place(), extent.count as usize);
        Shape { buffers, dtype, ranks, place, count }
    }

    /// Elements of a rank's part.
    fn part(&self, rank: usize) -> Range<usize> {
        rank * self.count..(rank + 1) * self.count
    }

    fn bytes(&self, window: &Window, elements: Range<usize>) -> Result<Tensor, BenchError> {
        let size = self.dtype.bytes() as usize;
        let (start, len) = (elements.start * size, elements.len() * size);
        Ok(window.tensor(start, &[len], DType::U8)?)
    }

    /// Elements of a window, which are those of `of` with the same numbers.
    fn region(
        &self,
        window: &Window,
        elements: Range<usize>,
        of: Of,
    ) -> Result<Region, BenchError> {
        let start = elements.start;
        Ok(Region { bytes: self.bytes(window, elements)?, start, of })
    }

    fn whole(&self) -> Range<usize> {
        0..self.count * self.ranks
    }

    fn operation(&self, key: &Key) -> Result<Operation, BenchError> {
        match key.op {
            Op::Barrier => Ok((comm::Op::Barrier, Vec::new(), Vec::new())),
            Op::AllReduce => self.all_reduce(key),
            Op::ReduceScatter => self.reduce_scatter(key),
            Op::Reduce => self.reduce(key),
            Op::AllGather => self.all_gather(key.in_place),
            Op::Broadcast => self.broadcast(key),
            Op::Gather => self.gather(key),
            Op::Scatter => self.scatter(key),
            Op::AllToAll => self.all_to_all(),
            Op::SendRecv => self.ring(),
            op => Err(BenchError::Argument(format!("{op} cannot be measured yet"))),
        }
    }

    /// A plan of `elements` elements, and what is combined by what.
    fn plan(&self, key: &Key, elements: usize) -> Result<EvenPlan, BenchError> {
        let dtype = if key.op.reduces() { reduced(self.dtype) } else { Some(moved(self.dtype)) };
        let redop = reduction(key.redop.unwrap_or(RedOp::Sum));
        let (Some(dtype), Some(redop)) = (dtype, redop) else {
            let (op, dtype) = (key.op, self.dtype);
            return Err(BenchError::Argument(format!("{op} of {dtype} cannot be measured yet")));
        };
        Ok(EvenPlan::new(&Tree::for_leaves(self.ranks), 0..elements, dtype).reducing(redop))
    }

    /// Memory of B that is filled from its first element on.
    fn apart(&self, plan: &EvenPlan, elements: usize) -> Result<Tensor, BenchError> {
        Ok(self.buffers.b.tensor(0, &[elements], plan.dtype())?)
    }

    fn all_reduce(&self, key: &Key) -> Result<Operation, BenchError> {
        let (a, b, whole) = (&self.buffers.a, &self.buffers.b, 0..self.count);
        let (window, plan) = (a.clone(), self.plan(key, self.count)?);
        let (to, op) = match key.in_place {
            true => (a, comm::Op::AllReduce { window, plan }),
            false => (b, comm::Op::AllReduceInto { window, plan, into: b.clone() }),
        };
        let input = self.region(a, whole.clone(), Of::Rank(self.place))?;
        Ok((op, vec![input], vec![self.region(to, whole, Of::All)?]))
    }

    fn reduce_scatter(&self, key: &Key) -> Result<Operation, BenchError> {
        let (a, plan) = (&self.buffers.a, self.plan(key, self.whole().end)?);
        let to = if key.in_place { a } else { &self.buffers.b };
        let out = to.tensor(0, &[to.bytes() / plan.dtype().bytes()], plan.dtype())?;
        let op = comm::Op::ReduceScatter { window: a.clone(), plan, out };
        let input = self.region(a, self.whole(), Of::Rank(self.place))?;
        Ok((op, vec![input], vec![self.region(to, self.part(self.place), Of::All)?]))
    }

    fn reduce(&self, key: &Key) -> Result<Operation, BenchError> {
        let (a, root, whole) = (&self.buffers.a, key.root.unwrap_or(0), 0..self.count);
        let plan = self.plan(key, self.count)?;
        let to = if key.in_place { a } else { &self.buffers.b };
        let out = (!key.in_place).then(|| self.apart(&plan, self.count)).transpose()?;
        let op = comm::Op::Reduce { window: a.clone(), plan, root, out };
        let input = self.region(a, whole.clone(), Of::Rank(self.place))?;
        let result = self.region(to, whole, Of::All)?;
        Ok((op, vec![input], if root == self.place { vec![result] } else { Vec::new() }))
    }

    fn all_gather(&self, in_place: bool) -> Result<Operation, BenchError> {
        let a = &self.buffers.a;
        let dtype = moved(self.dtype);
        let plan = EvenPlan::new(&Tree::for_leaves(self.ranks), self.whole(), dtype);
        let (to, op) = match in_place {
            true => (a, comm::Op::AllGather { window: a.clone(), plan }),
            false => {
                let into = self.apart(&plan, self.whole().end)?;
                (&self.buffers.b, comm::Op::AllGatherInto { window: a.clone(), plan, into })
            }
        };
        let own = self.region(a, self.part(self.place), Of::Rank(self.place))?;
        Ok((op, vec![own], self.parts(to)?))
    }

    /// The parts of all ranks in one window.
    fn parts(&self, window: &Window) -> Result<Vec<Region>, BenchError> {
        (0..self.ranks).map(|rank| self.region(window, self.part(rank), Of::Rank(rank))).collect()
    }

    fn broadcast(&self, key: &Key) -> Result<Operation, BenchError> {
        let (a, b, root) = (&self.buffers.a, &self.buffers.b, key.root.unwrap_or(0));
        let (window, range) = (a.clone(), 0..self.count);
        let element_bytes = self.dtype.bytes() as usize;
        let (to, op) = match key.in_place {
            true => (a, comm::Op::Broadcast { window, root, element_bytes, range }),
            false => {
                let into = self.bytes(b, range.clone())?;
                (b, comm::Op::BroadcastInto { window, root, element_bytes, range, into })
            }
        };
        let region = |window| self.region(window, 0..self.count, Of::Rank(root));
        let inputs = if root == self.place { vec![region(a)?] } else { Vec::new() };
        Ok((op, inputs, vec![region(to)?]))
    }

    fn gather(&self, key: &Key) -> Result<Operation, BenchError> {
        let (a, root) = (&self.buffers.a, key.root.unwrap_or(0));
        let plan = self.plan(key, self.whole().end)?;
        let to = if key.in_place { a } else { &self.buffers.b };
        let into = (!key.in_place).then(|| self.apart(&plan, self.whole().end)).transpose()?;
        let op = comm::Op::Gather { window: a.clone(), plan, root, into };
        let own = self.region(a, self.part(self.place), Of::Rank(self.place))?;
        let results = if root == self.place { self.parts(to)? } else { Vec::new() };
        Ok((op, vec![own], results))
    }

    fn scatter(&self, key: &Key) -> Result<Operation, BenchError> {
        let (a, root, part) = (&self.buffers.a, key.root.unwrap_or(0), self.part(self.place));
        let plan = self.plan(key, self.whole().end)?;
        let into = (!key.in_place).then(|| self.apart(&plan, self.count)).transpose()?;
        let bytes = match key.in_place {
            true => self.bytes(a, part.clone())?,
            false => self.bytes(&self.buffers.b, 0..self.count)?,
        };
        let op = comm::Op::Scatter { window: a.clone(), plan, root, into };
        let inputs = match root == self.place {
            true => vec![self.region(a, self.whole(), Of::Rank(root))?],
            false => Vec::new(),
        };
        Ok((op, inputs, vec![Region { bytes, start: part.start, of: Of::Rank(root) }]))
    }

    fn all_to_all(&self) -> Result<Operation, BenchError> {
        let (a, b) = (&self.buffers.a, &self.buffers.b);
        let parts: Vec<Range<usize>> = (0..self.ranks).map(|rank| self.part(rank)).collect();
        let into = b.tensor(0, &[self.count * self.ranks], moved(self.dtype))?;
        let op = AllToAll { from: a.clone(), send: parts.clone(), into, receive: parts };
        let result = |rank: usize| {
            // Part `place` of what `rank` gives.
            let bytes = self.bytes(b, self.part(rank))?;
            Ok(Region { bytes, start: self.part(self.place).start, of: Of::Rank(rank) })
        };
        let results = (0..self.ranks).map(result).collect::<Result<_, BenchError>>()?;
        let input = self.region(a, self.whole(), Of::Rank(self.place))?;
        Ok((comm::Op::AllToAll(op), vec![input], results))
    }

    fn ring(&self) -> Result<Operation, BenchError> {
        let (a, b) = (&self.buffers.a, &self.buffers.b);
        let (next, last) =
            ((self.place + 1) % self.ranks, (self.place + self.ranks - 1) % self.ranks);
        let input = self.region(a, 0..self.count, Of::Rank(self.place))?;
        let result = self.region(b, 0..self.count, Of::Rank(last))?;
        let messages = match self.ranks {
            1 => Vec::new(),
            _ => vec![
                P2p::Send { to: next, tensor: input.bytes.clone() },
                P2p::Receive { from: last, tensor: result.bytes.clone() },
            ],
        };
        let results = if self.ranks == 1 { Vec::new() } else { vec![result] };
        Ok((comm::Op::Exchange(messages), vec![input], results))
    }
}

/// A type that can be reduced.
fn reduced(dtype: ElementType) -> Option<DType> {
    Some(match dtype {
        ElementType::F32 => DType::F32,
        ElementType::F64 => DType::F64,
        ElementType::Bf16 => DType::Bf16,
        ElementType::F16 => DType::F16,
        ElementType::I32 => DType::I32,
        ElementType::I64 => DType::I64,
        ElementType::U8 => DType::U8,
        _ => return None,
    })
}

/// A type of the same size.
fn moved(dtype: ElementType) -> DType {
    match dtype.bytes() {
        1 => DType::U8,
        2 => DType::Bf16,
        4 => DType::F32,
        _ => DType::F64,
    }
}
