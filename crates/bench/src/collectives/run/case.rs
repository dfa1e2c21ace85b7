//! One operation of one size on one rank: its memory, what it is filled with, and what must come out.
//!
//! ```text
//!                  in place                      out of place
//! all_reduce       A                             —
//! reduce_scatter   A, own part of A              A, own part of B
//! all_gather       A, where the own part lies    —
//! broadcast        A                             —
//! all_to_all       —                             A to B
//! send_recv        —                             A to the next rank's B
//! ```

use std::ops::Range;

use comm::{AllToAll, EvenPlan, Group, P2p, Prepared, Window};
use device::{DType, Stream, Tensor};
use layout::Tree;
use serde::{Deserialize, Serialize};

use super::Place;
use super::pattern::{self, Pattern, value};
use crate::BenchError;
use crate::collectives::{ElementType, Key, Op, Parts};

/// What a result holds before the operation: no element of any type is all ones here.
const POISON: u8 = 0xFF;

/// The operations that can be measured, and the types that they take.
pub fn supports(op: Op, dtype: ElementType) -> bool {
    let moved = matches!(op, Op::AllGather | Op::Broadcast | Op::AllToAll | Op::SendRecv);
    let summed = matches!(op, Op::AllReduce | Op::ReduceScatter);
    let is_sum_type = matches!(dtype, ElementType::F32 | ElementType::F64);
    op == Op::Barrier || moved || summed && is_sum_type
}

/// Whether an operation can be measured so.
pub fn has(op: Op, place: Place) -> bool {
    match op {
        Op::ReduceScatter => true,
        Op::AllToAll | Op::SendRecv => place == Place::Out,
        _ => place == Place::In,
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
    dtype: ElementType,
    ranks: usize,
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
        let (stream, ranks) = (stream.clone(), parts.ranks);
        Ok(Case { op, stream, dtype: key.dtype, ranks, inputs, results })
    }

    pub fn launch(&self, group: &Group) -> Result<(), BenchError> {
        Ok(group.call(&self.stream, &self.op)?)
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
            let size = self.dtype.bytes() as usize;
            let found = self.read(&region.bytes, |got| {
                let (wrong, at) = pattern.compare(region.start, got);
                let bad = at.map(|at| Bad {
                    offset: (before + at) as u64,
                    got: pattern::decode(self.dtype, &got[at * size..(at + 1) * size]),
                    expected: pattern.text(self.dtype, region.start + at),
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
        Pattern::new(self.dtype, |index| match of {
            Of::Rank(rank) => value(rank, index, salt),
            Of::All => (0..self.ranks).map(|rank| value(rank, index, salt)).sum(),
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
        let (a, b, mine) = (&self.buffers.a, &self.buffers.b, Of::Rank(self.place));
        let size = self.dtype.bytes() as usize;
        let one = |region: Region| vec![region];
        let tree = Tree::for_leaves(self.ranks);
        Ok(match key.op {
            Op::Barrier => (comm::Op::Barrier, Vec::new(), Vec::new()),
            Op::AllReduce => {
                let plan = EvenPlan::new(&tree, 0..self.count, summed(self.dtype)?);
                let op = comm::Op::AllReduce { window: a.clone(), plan };
                let region = |of| self.region(a, 0..self.count, of).map(one);
                (op, region(mine)?, region(Of::All)?)
            }
            Op::ReduceScatter => {
                let dtype = summed(self.dtype)?;
                let plan = EvenPlan::new(&tree, self.whole(), dtype);
                let to = if key.in_place { a } else { b };
                let out = to.tensor(0, &[to.bytes() / size], dtype)?;
                let op = comm::Op::ReduceScatter { window: a.clone(), plan, out };
                let results = self.region(to, self.part(self.place), Of::All)?;
                (op, one(self.region(a, self.whole(), mine)?), one(results))
            }
            Op::AllGather => {
                let plan = EvenPlan::new(&tree, self.whole(), moved(self.dtype));
                let op = comm::Op::AllGather { window: a.clone(), plan };
                let own = self.region(a, self.part(self.place), mine)?;
                let parts =
                    (0..self.ranks).map(|rank| self.region(a, self.part(rank), Of::Rank(rank)));
                (op, one(own), parts.collect::<Result<_, _>>()?)
            }
            Op::Broadcast => {
                let root = key.root.unwrap_or(0);
                let (window, range) = (a.clone(), 0..self.count);
                let op = comm::Op::Broadcast { window, root, element_bytes: size, range };
                let region = || self.region(a, 0..self.count, Of::Rank(root)).map(one);
                let inputs = if root == self.place { region()? } else { Vec::new() };
                (op, inputs, region()?)
            }
            Op::AllToAll => self.all_to_all()?,
            Op::SendRecv => self.ring()?,
            op => return Err(BenchError::Argument(format!("{op} cannot be measured yet"))),
        })
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

/// The type in which sums are made.
fn summed(dtype: ElementType) -> Result<DType, BenchError> {
    match dtype {
        ElementType::F32 => Ok(DType::F32),
        ElementType::F64 => Ok(DType::F64),
        other => {
            Err(BenchError::Argument(format!("sums of {other} cannot be measured yet; use f32")))
        }
    }
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
