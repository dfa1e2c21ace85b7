//! Bytes that any of several ranks may write, divided so that in the end all write as much.
//!
//! ```text
//! level ─ ─ ─ ┬───┬ ─ ─ ─ ┬───┬ ─ ─ ┌───┐ ─      what a rank writes in any case, filled up with
//!        ┌───┐│ + │ ┌───┐ │ + │     │   │        rows of what all ranks hold, in their order
//!        │   ││   │ │   │ ├───┤     │   │
//! ```
//! A pure function, so that no rank has to ask another.

use std::ops::Range;

/// Tensors are cut at multiples of so many bytes, rounded up to whole rows: pages of a shard.
const UNIT_BYTES: u64 = 4096;

/// A tensor that every rank holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Everywhere {
    pub rows: usize,
    pub row_bytes: u64,
}

impl Everywhere {
    fn bytes(self) -> u64 {
        self.rows as u64 * self.row_bytes
    }

    /// Rows between places to cut at.
    fn unit(self) -> usize {
        UNIT_BYTES.div_ceil(self.row_bytes.max(1)) as usize
    }
}

/// The rows that each rank writes, as (tensor, rows) in order; `own` are the bytes that each writes
/// beside them. Every row is written by one rank, and no rank writes more than the most that any
/// must, but for the bytes between two places to cut at.
pub fn spread(own: &[u64], tensors: &[Everywhere]) -> Vec<Vec<(usize, Range<usize>)>> {
    let mut ranks = vec![Vec::new(); own.len()];
    let all = tensors.iter().map(|tensor| tensor.bytes()).sum();
    let (mut at, mut until) = ((0, 0), 0);
    for (rank, quota) in ranks.iter_mut().zip(quotas(own, all)) {
        until += quota;
        let end = if until == all { (tensors.len(), 0) } else { place(tensors, until) };
        while at < end {
            let (tensor, row) = at;
            let last = if tensor == end.0 { end.1 } else { tensors[tensor].rows };
            if row < last {
                rank.push((tensor, row..last));
            }
            at = if tensor == end.0 { end } else { (tensor + 1, 0) };
        }
    }
    ranks
}

/// How many of `bytes` each rank gets beside its `own`, so that the largest sum is least.
fn quotas(own: &[u64], bytes: u64) -> Vec<u64> {
    let mut sorted = own.to_vec();
    sorted.sort_unstable();
    // As many of the least loaded as can be filled up to one level.
    let (mut filled, mut sum) = (0, 0);
    for (count, &load) in sorted.iter().enumerate() {
        if load * count as u64 > sum + bytes {
            break;
        }
        (filled, sum) = (count as u64 + 1, sum + load);
    }
    let (level, mut extra) = match filled {
        0 => (0, 0),
        _ => ((sum + bytes) / filled, (sum + bytes) % filled),
    };
    let quota = |&load: &u64| {
        if load > level {
            return 0;
        }
        let one_more = u64::from(extra > 0);
        extra -= one_more;
        level - load + one_more
    };
    own.iter().map(quota).collect()
}

/// The place to cut at that is nearest to byte `at` of all tensors: a tensor, and a row of it.
fn place(tensors: &[Everywhere], at: u64) -> (usize, usize) {
    let mut start = 0;
    for (number, tensor) in tensors.iter().enumerate() {
        if at < start + tensor.bytes() {
            let unit = tensor.unit();
            let unit_bytes = unit as u64 * tensor.row_bytes;
            let row = ((at - start + unit_bytes / 2) / unit_bytes) as usize * unit;
            return (number, row.min(tensor.rows));
        }
        start += tensor.bytes();
    }
    (tensors.len(), 0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_row_is_written_once_and_no_rank_writes_much_more_than_must_be(
            own in prop::collection::vec(0_u64..1_000_000, 1..9),
            tensors in prop::collection::vec((0_usize..900, 0_u64..6000), 0..30),
        ) {
            let tensors: Vec<Everywhere> = tensors
                .into_iter()
                .map(|(rows, row_bytes)| Everywhere { rows, row_bytes })
                .collect();
            let ranks = spread(&own, &tensors);
            prop_assert_eq!(&ranks, &spread(&own, &tensors));
            let mut next = vec![0; tensors.len()];
            for (tensor, rows) in ranks.iter().flatten() {
                prop_assert_eq!(rows.start, next[*tensor]);
                prop_assert!(rows.end > rows.start);
                next[*tensor] = rows.end;
            }
            let written = |(next, tensor): (&usize, &Everywhere)| {
                tensor.bytes() == 0 || *next == tensor.rows
            };
            prop_assert!(next.iter().zip(&tensors).all(written));
            let bytes = |(tensor, rows): &(usize, Range<usize>)| {
                rows.len() as u64 * tensors[*tensor].row_bytes
            };
            let all: u64 = tensors.iter().map(|tensor| tensor.bytes()).sum();
            // No division at all has a smaller maximum.
            let least = (own.iter().sum::<u64>() + all).div_ceil(own.len() as u64);
            let least = least.max(own.iter().copied().max().unwrap_or(0));
            let unit = tensors.iter().map(|t| t.unit() as u64 * t.row_bytes).max().unwrap_or(0);
            for (own, rows) in own.iter().zip(&ranks) {
                let total = own + rows.iter().map(bytes).sum::<u64>();
                prop_assert!(total <= least + unit, "{total} of {least} and {unit}");
            }
        }

        #[test]
        fn quotas_fill_up_to_one_level(
            own in prop::collection::vec(0_u64..1000, 1..9), bytes in 0_u64..9000,
        ) {
            let quotas = quotas(&own, bytes);
            prop_assert_eq!(quotas.iter().sum::<u64>(), bytes);
            let totals: Vec<u64> = own.iter().zip(&quotas).map(|(a, b)| a + b).collect();
            let filled = totals.iter().zip(&quotas).filter(|(_, quota)| **quota > 0);
            let level = filled.map(|(total, _)| *total).max().unwrap_or(0);
            for (total, quota) in totals.iter().zip(&quotas) {
                prop_assert!(*total + 1 >= level, "{totals:?}");
                prop_assert!(*quota == 0 || *total <= level);
            }
        }
    }

    #[test]
    fn equal_ranks_write_equal_parts() {
        let table = Everywhere { rows: 4096, row_bytes: 1024 };
        let vector = Everywhere { rows: 1024, row_bytes: 4 };
        let ranks = spread(&[0, 0], &[table, vector]);
        assert_eq!(ranks, [vec![(0, 0..2052)], vec![(0, 2052..4096), (1, 0..1024)]]);
        // Who has enough of its own writes nothing else.
        let ranks = spread(&[0, 9 << 20], &[table]);
        assert_eq!(ranks, [vec![(0, 0..4096)], vec![]]);
        assert_eq!(spread(&[5], &[]), [vec![]]);
    }
}
