//! A reduction by hosts, prepared: what this member adds of its host's inputs, and what is added of
//! all hosts' results by the owners of its column.

use std::ops::Range;
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, MutexGuard, PoisonError};

use device::{DType, Stream, Tensor};
use kernels::ordered_sum::{OrderedSum, RedOp, computed_in};
use layout::{Node, Program};

use super::shape::Hosts;
use super::split::{self, Split};
use crate::Result;
use crate::op::{OrderedReduce, Reduction, Site};
use crate::ordered::Sums;

/// A checked ordered reduction by hosts.
pub(crate) struct ReduceByHosts {
    /// The flat one.
    pub op: OrderedReduce,
    pub digest: u64,
    pub hosts: Hosts,
    /// Where each input of the program lies: member and slot.
    pub inputs: Vec<(usize, usize)>,
    /// This host's partials: of which inputs, and how.
    pub parts: Vec<(Range<usize>, OrderedSum)>,
    /// Of the members of this one's column, whose places are those of their hosts: their hosts'
    /// partials. Its slots hold none of them.
    pub across: Reduction,
    /// Bytes read out of the windows of each member of this host, by column.
    pub reads: Vec<AtomicU64>,
    making: Mutex<Making>,
}

/// What sums of partials need. Used by one operation at a time, and kept.
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
        let Some(hosts) = Hosts::are_for(site, elements * op.dtype.bytes()) else {
            return Ok(None);
        };
        let members = op.partials.chunks(hosts.each);
        let counts: Vec<usize> =
            members.map(|members| members.iter().map(Vec::len).sum()).collect();
        let Some((Split { parts, rest }, dtype)) = cut(&op.program, &counts, op.dtype) else {
            return Ok(None);
        };
        let (host, column) = hosts.of(site.members.place);
        let count = counts.iter().sum();
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
        let (sums, digest) = (Sums::of(&across, sum, host, site.lanes)?, op.digest());
        let inputs = op.partials.iter().enumerate();
        let inputs = inputs.flat_map(|(m, partials)| partials.iter().map(move |(_, s)| (m, *s)));
        let making = Making {
            stream: match op.slots.first() {
                Some(slot) => slot.buffer().device().new_stream()?,
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

/// `program` at the borders of hosts that give so many inputs each, and the type of the partials
/// that go between them.
///
/// The bits of a sum are those of its additions in the type that is computed in, from the inputs as
/// they are given to the one rounding in the end, if there is one. So what is added in a host must
/// leave it in that type: a partial of 16-bit inputs is f32, the bytes of two of them. Where the
/// tree adds most of a host's inputs to those of other hosts first, its partials would be more bytes
/// than its inputs, and all inputs go as they are. So never more goes between hosts than in the flat
/// reduction.
fn cut(program: &Program, counts: &[usize], dtype: DType) -> Option<(Split, DType)> {
    let split = split::split(program, counts)?;
    let computed = computed_in(dtype)?;
    let (parts, inputs) = (split.parts.iter().map(Vec::len).sum::<usize>(), counts.iter().sum::<usize>());
    match parts * computed.bytes() <= inputs * dtype.bytes() {
        true => Some((split, computed)),
        false => Some((split::apart(program, counts), dtype)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use layout::Tree;

    /// Partials of each host, and their type.
    fn cut_of(radices: &[usize], counts: &[usize], dtype: DType) -> (Vec<usize>, DType) {
        let inputs = counts.iter().sum();
        let nodes: Vec<Node> = (0..inputs).map(|at| Node { leaves: at..at + 1 }).collect();
        let program = Tree::new(radices).unwrap().combine(&nodes);
        let (split, wire) = cut(&program, counts, dtype).unwrap();
        (split.parts.iter().map(Vec::len).collect(), wire)
    }

    #[test]
    fn partials_of_16_bit_inputs_are_f32_where_those_are_no_more_bytes() {
        for half in [DType::Bf16, DType::F16] {
            assert_eq!(cut_of(&[2, 2], &[2, 2], half), (vec![1, 1], DType::F32));
            assert_eq!(cut_of(&[2, 3], &[3, 3], half), (vec![1, 1], DType::F32));
            // 5 and 4 partials of 6 inputs.
            assert_eq!(cut_of(&[2, 3], &[2, 2, 2], half), (vec![2, 2, 2], half));
            assert_eq!(cut_of(&[6], &[3, 3], half), (vec![3, 3], half));
            assert_eq!(cut_of(&[8], &[6, 2], half), (vec![1, 2], DType::F32));
        }
        assert_eq!(cut_of(&[2, 3], &[2, 2, 2], DType::F32), (vec![1, 2, 2], DType::F32));
        assert_eq!(cut_of(&[6], &[3, 3], DType::U8), (vec![1, 3], DType::U8));
    }
}
