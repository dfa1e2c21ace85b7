//! A reduction by hosts, prepared: what this member adds of its host's inputs, and what is added of
//! all hosts' results by the owners of its column.

use std::ops::Range;
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, MutexGuard, PoisonError};

use device::{DType, Stream, Tensor};
use kernels::ordered_sum::{OrderedSum, RedOp, computed_in};
use layout::{Node, SumProgram};

use super::shape::{self, Hosts, Shape};
use super::split::{self, Split};
use crate::Result;
use crate::ordered::{Reduction, Sums};
use crate::primitives::OrderedReduce;
use crate::site::Site;

/// A checked ordered reduction by hosts.
pub(crate) struct ReduceByHosts {
    /// The flat one.
    pub op: OrderedReduce,
    pub digest: u64,
    pub hosts: Hosts,
    /// Where each input of the program lies: member and buffer.
    pub inputs: Vec<(usize, usize)>,
    /// This host's partials: of which inputs, and how.
    pub parts: Vec<(Range<usize>, OrderedSum)>,
    /// Of the members of this one's column, whose places are those of their hosts: their hosts'
    /// partials. Its buffers hold none of them.
    pub across: Reduction,
    /// Bytes read out of the windows of each member of this host, by column.
    pub reads: Vec<AtomicU64>,
    making: Mutex<Making>,
}

/// Stream and memory that sums of partials need. Used by one operation at a time, and kept.
pub(crate) struct Making {
    pub stream: Stream,
    pub inputs: Vec<Tensor>,
    pub workspace: Option<Tensor>,
    /// The tile that was made last for each host.
    pub made: Vec<Option<usize>>,
}

impl ReduceByHosts {
    /// `op` by hosts, where that is what the group does with it: `None` of few bytes.
    ///
    /// # Errors
    /// A program that does not add each partial once and in order; the device refuses a stream.
    pub(crate) fn of(op: &OrderedReduce, site: &Site) -> Result<Option<ReduceByHosts>> {
        let elements: usize = op.segments.iter().flatten().map(|range| range.len()).sum();
        let Some(hosts) = site.hosts_for(elements * op.dtype.bytes()) else {
            return Ok(None);
        };
        let partials: Vec<usize> = op.partials.iter().map(Vec::len).collect();
        let Some((Split { parts, rest }, dtype)) = cut(&op.program, (hosts, &partials), op.dtype)
        else {
            return Ok(None);
        };
        let (host, column) = hosts.of(site.members.place);
        let count = partials.iter().sum();
        let within = if op.redop == RedOp::Avg { RedOp::Sum } else { op.redop };
        let own = parts[host].iter().map(|part| {
            let sum = OrderedSum::new(&part.program, part.inputs.len(), within)?;
            Ok((part.inputs.clone(), sum))
        });
        let own = own.collect::<Result<_>>()?;
        let all = parts.iter().map(Vec::len).sum();
        let sum = OrderedSum::of_parts(&rest, all, op.redop, count)?;
        let node = |range: &Range<usize>| (Node { leaves: range.clone() }, 0);
        let partials = parts.iter().map(|parts| parts.iter().map(|p| node(&p.inputs)).collect());
        let segments = (0..hosts.count).map(|h| op.segments[hosts.place(h, column)].clone());
        let across = OrderedReduce {
            partials: partials.collect(),
            program: rest.into(),
            segments: segments.collect(),
            dtype,
            ..op.clone()
        };
        let (sums, digest) = (Sums::of(&across, sum, (host, true), site.lanes)?, op.digest());
        let inputs = op.partials.iter().enumerate();
        let inputs = inputs.flat_map(|(m, partials)| partials.iter().map(move |(_, s)| (m, *s)));
        let making = Making {
            stream: match op.buffers.first() {
                Some(window) => window.on_host().buffer().device().new_stream()?,
                None => op.out.buffer().device().new_stream()?,
            },
            inputs: Vec::with_capacity(count),
            workspace: None,
            made: vec![None; hosts.count],
        };
        Ok(Some(ReduceByHosts {
            digest,
            hosts,
            inputs: inputs.collect(),
            parts: own,
            across: Reduction { op: across, sums, digest },
            reads: (0..hosts.each).map(|_| AtomicU64::new(0)).collect(),
            making: Mutex::new(making),
            op: op.clone(),
        }))
    }

    /// After a panic there is at most something stale in it.
    pub(crate) fn making(&self) -> MutexGuard<'_, Making> {
        self.making.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Of a reduction of windows of `bytes` bytes by all ranks: the bytes of an element that each host
/// sends to any other, where it goes by hosts. Rank `r` has `partials[r]` partials of type `dtype`
/// and is on host `host_of[r]`; what goes by hosts has `from_bytes` bytes at least
/// ([`BY_HOSTS_BYTES`](super::BY_HOSTS_BYTES)).
pub fn sent_by_hosts(
    program: &SumProgram,
    (partials, dtype): (&[usize], DType),
    bytes: usize,
    (host_of, from_bytes): (&[usize], usize),
) -> Option<Vec<usize>> {
    let ranks: Vec<usize> = (0..partials.len()).collect();
    let (Shape::ByHosts(hosts), _) = shape::shape(&ranks, host_of, from_bytes) else {
        return None;
    };
    let (split, dtype) =
        hosts.carry(bytes).then(|| cut(program, (hosts, partials), dtype)).flatten()?;
    Some(split.parts.iter().map(|parts| parts.len() * dtype.bytes()).collect())
}

/// `program` at the borders of hosts whose members give so many inputs each, and the type of the
/// partials that go between them.
///
/// The bits of a sum are those of its additions in the type that is computed in, from the inputs as
/// they are given to the one rounding in the end, if there is one. So what is added in a host must
/// leave it in that type: a partial of 16-bit inputs is f32, the bytes of two of them. Where the
/// tree adds most of a host's inputs to those of other hosts first, its partials would be more
/// bytes than its inputs, and all inputs go as they are. So never more goes between hosts than in
/// the flat reduction.
fn cut(
    program: &SumProgram,
    (hosts, partials): (Hosts, &[usize]),
    dtype: DType,
) -> Option<(Split, DType)> {
    let counts = partials.chunks(hosts.each).map(|members| members.iter().sum());
    let counts: &[usize] = &counts.collect::<Vec<_>>();
    let split = split::split(program, counts)?;
    let computed = computed_in(dtype)?;
    let (parts, inputs) =
        (split.parts.iter().map(Vec::len).sum::<usize>(), counts.iter().sum::<usize>());
    match parts * computed.bytes() <= inputs * dtype.bytes() {
        true => Some((split, computed)),
        false => Some((split::apart(program, counts), dtype)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use layout::Tree;

    /// Bytes of an element that each host sends, of one partial a rank.
    fn sent(radices: &[usize], each: usize, dtype: DType) -> Vec<usize> {
        let inputs = radices.iter().product();
        let nodes: Vec<Node> = (0..inputs).map(|at| Node { leaves: at..at + 1 }).collect();
        let program = Tree::new(radices).unwrap().combine(&nodes);
        let host_of: Vec<usize> = (0..inputs).map(|rank| rank / each).collect();
        sent_by_hosts(&program, (&vec![1; inputs], dtype), 8, (&host_of, 8)).unwrap()
    }

    #[test]
    fn partials_of_16_bit_inputs_are_f32_where_those_are_no_more_bytes() {
        for half in [DType::Bf16, DType::F16] {
            assert_eq!(sent(&[2, 2], 2, half), [4, 4]);
            assert_eq!(sent(&[2, 3], 3, half), [4, 4]);
            // One partial, and twice two: five of f32 would be more than six inputs.
            assert_eq!(sent(&[2, 3], 2, half), [4, 4, 4]);
            // One partial and three; and one and four, of eight inputs.
            assert_eq!(sent(&[6], 3, half), [6, 6]);
            assert_eq!(sent(&[8], 4, half), [8, 8]);
            assert_eq!(sent(&[3, 2, 2], 4, half), [4, 4, 4]);
        }
        assert_eq!(sent(&[2, 3], 2, DType::F32), [4, 8, 8]);
        assert_eq!(sent(&[6], 3, DType::U8), [1, 3]);
    }

    #[test]
    fn what_is_small_or_lies_unevenly_goes_flat() {
        let program = Tree::new(&[2, 2]).unwrap();
        let nodes: Vec<Node> = (0..4).map(|at| Node { leaves: at..at + 1 }).collect();
        let program = program.combine(&nodes);
        let sent = |bytes, host_of: &[usize]| {
            sent_by_hosts(&program, (&[1; 4], DType::F32), bytes, (host_of, 100))
        };
        assert_eq!(sent(100, &[0, 0, 1, 1]), Some(vec![4, 4]));
        assert_eq!(sent(99, &[0, 0, 1, 1]), None);
        assert_eq!(sent(100, &[0, 0, 0, 1]), None);
        assert_eq!(sent(100, &[0, 0, 0, 0]), None);
    }
}
