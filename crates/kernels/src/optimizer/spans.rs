//! Where the optimizer's elements lie: lists that are made once, and uploaded to the device that
//! they are made for.

use std::collections::BTreeMap;
use std::sync::Arc;

use device::{DType, Device, Tensor};

use super::{AT, at_least};
use crate::gpu::abi;
use crate::gpu::execute::upload_rows;
use crate::{KernelError, op};

/// A run of elements, by its places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Start in flat tensors (gradients, weights).
    pub flat: usize,
    /// Start in the rank's own tensors (moments, masters, scratch).
    pub local: usize,
    pub len: usize,
    /// Which gradient factor applies.
    pub unit: usize,
}

/// Elements that a thread of the host, or a block of a device, takes at a time: four f32 operands
/// of it fit a level-2 cache.
const CHUNK: usize = abi::SPAN_LEN as usize;

/// Spans that do not overlap, cut into chunks; clones share them.
#[derive(Debug, Clone)]
pub struct Spans {
    pub(super) chunks: Arc<[Span]>,
    /// The chunks, where a device reads them.
    pub(super) table: Option<Tensor>,
    pub(super) units: usize,
    pub(super) elements: usize,
    flat_end: usize,
    local_end: usize,
}

impl Spans {
    /// Spans for launches on `device`.
    ///
    /// # Errors
    /// Two spans that overlap, in the flat tensors or in the rank's own; no memory on the device.
    pub fn new(device: &Device, spans: &[Span]) -> Result<Spans, KernelError> {
        let flat_end = disjoint("flat", spans.iter().map(|span| (span.flat, span.len)))?;
        let local_end = disjoint("local", spans.iter().map(|span| (span.local, span.len)))?;
        let units = end("units", spans.iter().map(|span| (span.unit, 1)))?;
        let elements = spans.iter().map(|span| span.len).sum();
        let chunks: Arc<[Span]> = chunks(spans).collect();
        let table = op::prepare(device, || {
            let rows: Vec<abi::Span> = chunks.iter().map(abi::Span::from).collect();
            upload_rows(device, &rows)
        })?;
        Ok(Spans { chunks, table, units, elements, flat_end, local_end })
    }

    /// The spans by a property of their unit; all of them as they are, where they agree in it.
    ///
    /// # Errors
    /// No memory on the device.
    pub fn by_unit<K: Ord>(
        &self,
        device: &Device,
        key: impl Fn(usize) -> K,
    ) -> Result<Vec<(K, Spans)>, KernelError> {
        let mut parts: BTreeMap<K, Vec<Span>> = BTreeMap::new();
        for chunk in self.chunks.iter() {
            parts.entry(key(chunk.unit)).or_default().push(*chunk);
        }
        if parts.len() <= 1 {
            return Ok(parts.into_keys().map(|key| (key, self.clone())).collect());
        }
        parts.into_iter().map(|(key, of)| Ok((key, Spans::new(device, &of)?))).collect()
    }

    /// Bytes that [`Spans::new`] takes of a device's memory.
    pub fn table_bytes(device: &Device, spans: &[Span]) -> usize {
        op::choose(device, 0, chunks(spans).count() * size_of::<abi::Span>())
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.elements
    }

    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    pub(super) fn check_flat(
        &self,
        operand: &'static str,
        tensor: &Tensor,
    ) -> Result<(), KernelError> {
        at_least(operand, tensor, self.flat_end)
    }

    pub(super) fn check_local(
        &self,
        operand: &'static str,
        tensor: &Tensor,
    ) -> Result<(), KernelError> {
        at_least(operand, tensor, self.local_end)
    }
}

fn chunks(spans: &[Span]) -> impl Iterator<Item = Span> {
    spans.iter().flat_map(|&span| {
        (0..span.len).step_by(CHUNK).map(move |start| Span {
            flat: span.flat + start,
            local: span.local + start,
            len: CHUNK.min(span.len - start),
            unit: span.unit,
        })
    })
}

impl From<&Span> for abi::Span {
    /// Of a chunk, and of one of at most 2^32 units.
    fn from(span: &Span) -> abi::Span {
        let Span { flat, local, len, unit } = *span;
        abi::Span { flat: flat as u64, local: local as u64, len: len as u32, unit: unit as u32 }
    }
}

/// One past the last element of runs that must not overlap.
pub(super) fn disjoint(
    what: &str,
    runs: impl Iterator<Item = (usize, usize)>,
) -> Result<usize, KernelError> {
    let mut runs: Vec<(usize, usize)> = runs.filter(|&(_, len)| len > 0).collect();
    let end = end(what, runs.iter().copied())?;
    runs.sort_unstable();
    for pair in runs.windows(2) {
        if pair[0].0 + pair[0].1 > pair[1].0 {
            let message = format!("{what} spans {:?} and {:?} overlap", pair[0], pair[1]);
            return Err(KernelError::Argument { kernel: AT, message });
        }
    }
    Ok(end)
}

/// One past the last element of runs, which every check of bounds relies on.
fn end(what: &str, runs: impl Iterator<Item = (usize, usize)>) -> Result<usize, KernelError> {
    runs.map(|(start, len)| start.checked_add(len)).try_fold(0, |most, end| {
        let beyond = || format!("{what} reach beyond {} elements", usize::MAX);
        let refused = || KernelError::Argument { kernel: AT, message: beyond() };
        end.map(|end| most.max(end)).ok_or_else(refused)
    })
}

/// One range of the gradients whose squares are summed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatisticRange {
    /// Start in the flat gradients.
    pub flat: usize,
    pub len: usize,
    /// Where the sum goes.
    pub statistic: usize,
}

/// Ranges with a statistic each; clones share the list.
#[derive(Debug, Clone)]
pub struct StatisticRanges {
    pub(super) ranges: Arc<[StatisticRange]>,
    pub(super) tables: Option<SquareTables>,
    pub(super) flat_end: usize,
    pub(super) statistic_end: usize,
}

/// The tables that a device needs to sum squares.
#[derive(Debug, Clone)]
pub(super) struct SquareTables {
    pub strips: Tensor,
    pub strip_count: u32,
    /// Of ranges of several strips.
    pub long_ranges: Tensor,
    pub long_range_count: u32,
    /// f64, one for each strip of those.
    pub partials: Tensor,
}

impl SquareTables {
    fn new(device: &Device, ranges: &[StatisticRange]) -> Result<SquareTables, KernelError> {
        let Strips { strips, long_ranges, partials } = Strips::of(ranges);
        Ok(SquareTables {
            strips: upload_rows(device, &strips)?,
            strip_count: strips.len() as u32,
            long_ranges: upload_rows(device, &long_ranges)?,
            long_range_count: long_ranges.len() as u32,
            partials: device.zeros(&[partials], DType::F64)?,
        })
    }
}

impl StatisticRanges {
    /// Ranges for launches on `device`. They may share a stream only: long ones have their partial
    /// sums in memory of the list's own.
    ///
    /// # Errors
    /// Two ranges with one statistic; no memory on the device.
    pub fn new(
        device: &Device,
        ranges: Vec<StatisticRange>,
    ) -> Result<StatisticRanges, KernelError> {
        let statistic_end = disjoint("statistic", ranges.iter().map(|range| (range.statistic, 1)))?;
        let flat_end = end("ranges", ranges.iter().map(|range| (range.flat, range.len)))?;
        let tables = op::prepare(device, || SquareTables::new(device, &ranges))?;
        Ok(StatisticRanges { ranges: ranges.into(), tables, flat_end, statistic_end })
    }

    /// The numeric plan: the order of the sums on a device; `None` on a host, whose order is one of
    /// its own.
    pub fn numeric_plan(&self) -> Option<String> {
        let by_blocks = |_| format!("sums of squares over blocks of {} elements", abi::SQUARES_LEN);
        self.tables.as_ref().map(by_blocks)
    }

    /// Bytes that [`StatisticRanges::new`] takes of a device's memory.
    pub fn table_bytes(device: &Device, ranges: &[StatisticRange]) -> usize {
        let Strips { strips, long_ranges, partials } = Strips::of(ranges);
        let tables = size_of_val(&strips[..]) + size_of_val(&long_ranges[..]);
        op::choose(device, 0, tables + partials * size_of::<f64>())
    }
}

/// Ranges as blocks of a device take them.
struct Strips {
    strips: Vec<abi::Strip>,
    long_ranges: Vec<abi::LongRange>,
    partials: usize,
}

impl Strips {
    fn of(ranges: &[StatisticRange]) -> Strips {
        let (mut strips, mut long_ranges, mut partials) = (Vec::new(), Vec::new(), 0_usize);
        for &StatisticRange { flat, len, statistic } in ranges {
            let most = abi::SQUARES_LEN as usize;
            // An empty range has a sum, too.
            let count = len.div_ceil(most).max(1);
            for index in 0..count {
                let start = index * most;
                let is_whole = count == 1;
                let to = if is_whole { statistic } else { partials + index };
                let (flat, len) = (flat + start, most.min(len - start));
                let (start, to, len) = (flat as u64, to as u64, len as u32);
                strips.push(abi::Strip { start, to, len, is_whole: u32::from(is_whole) });
            }
            if count > 1 {
                let (first, statistic, count32) = (partials as u64, statistic as u64, count as u32);
                long_ranges.push(abi::LongRange { first, statistic, count: count32, reserved: 0 });
                partials += count;
            }
        }
        Strips { strips, long_ranges, partials }
    }
}
