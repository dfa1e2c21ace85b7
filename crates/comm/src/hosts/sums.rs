//! A reduction by hosts, prepared: what this member adds of its host's inputs, and what is added of
//! all hosts' results by the owners of its column.

use std::ops::Range;
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, MutexGuard, PoisonError};

use device::{Stream, Tensor};
use kernels::ordered_sum::{OrderedSum, RedOp, computed_in};
use layout::Node;

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
    /// `op` by hosts, where that is what the group does with it: `None` of few bytes, and of 16-bit
    /// types, whose sums within a host have twice the bytes of what they are sums of.
    ///
    /// # Errors
    /// A program that does not add each partial once and in order; the device refuses a stream.
    pub(crate) fn of(op: &OrderedReduce, site: &Site) -> Result<Option<ReduceByHosts>> {
        let elements: usize = op.segments.iter().flatten().map(|range| range.len()).sum();
        let hosts = Hosts::are_for(site, elements * op.dtype.bytes());
        let Some(hosts) = hosts.filter(|_| computed_in(op.dtype) == Some(op.dtype)) else {
            return Ok(None);
        };
        let members = op.partials.chunks(hosts.each);
        let counts: Vec<usize> =
            members.map(|members| members.iter().map(Vec::len).sum()).collect();
        let Some(Split { parts, rest }) = split::split(&op.program, &counts) else {
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
