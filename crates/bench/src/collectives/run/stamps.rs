//! The times of ranks, put together: when each came to an operation and when it was done.

use serde::{Deserialize, Serialize};

use super::super::{Check, FirstBad, Key, RankTimes, Row, Sampler, Skew, Times};
use super::{Launch, Plan, case::Bad};
use crate::BenchError;
use crate::collectives::stats;

/// Launches of one rank, told to the others.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Batch {
    arrived_ns: Vec<u64>,
    done_ns: Vec<u64>,
    checked: u64,
    wrong: u64,
    first_bad: Option<Bad>,
}

impl Batch {
    pub(super) fn add(&mut self, launch: Launch) {
        self.arrived_ns.push(launch.arrived_ns);
        self.done_ns.push(launch.done_ns);
        if let Some((wrong, bad)) = launch.checked {
            self.checked += 1;
            self.wrong += wrong;
            self.first_bad = self.first_bad.take().or(bad);
        }
    }

    pub fn bytes(&self) -> Result<Vec<u8>, BenchError> {
        postcard::to_stdvec(self).map_err(BenchError::Stamps)
    }
}

/// All launches of a case so far.
pub(crate) struct Combined {
    ranks: usize,
    common_clock: bool,
    last: Vec<f64>,
    skews_us: Vec<f64>,
    /// By rank: its own times, and how often it came last.
    own_us: Vec<Vec<f64>>,
    came_last: Vec<u64>,
    check: Check,
}

impl Combined {
    pub fn new(key: &Key, common_clock: bool) -> Combined {
        let ranks = key.ranks.unwrap_or(1);
        let check = Check { launches: Some(0), ..Check::default() };
        let (own_us, came_last) = (vec![Vec::new(); ranks], vec![0; ranks]);
        let (last, skews_us) = (Vec::new(), Vec::new());
        Combined { ranks, common_clock, last, skews_us, own_us, came_last, check }
    }

    /// Takes a batch of every rank, and returns the times of its operations; those before the
    /// counted ones are checked alone.
    pub fn add(&mut self, all: &[Vec<u8>], is_counted: bool) -> Result<Vec<f64>, BenchError> {
        let read = |bytes: &Vec<u8>| postcard::from_bytes(bytes).map_err(BenchError::Stamps);
        let batches: Vec<Batch> =
            all.iter().take(self.ranks).map(read).collect::<Result<_, _>>()?;
        let launches = batches.iter().map(|batch| batch.checked).max().unwrap_or(0);
        self.check.launches = self.check.launches.map(|all| all + launches);
        for (rank, batch) in batches.iter().enumerate() {
            self.check.wrong += batch.wrong;
            if let (None, Some(bad)) = (&self.check.first_bad, &batch.first_bad) {
                let Bad { offset, got, expected } = bad.clone();
                self.check.first_bad = Some(FirstBad { rank, offset, got, expected });
            }
        }
        let count = batches.iter().map(|batch| batch.arrived_ns.len()).min().unwrap_or(0);
        self.last = (0..count).map(|index| self.combine(&batches, index, is_counted)).collect();
        Ok(if is_counted { self.last.clone() } else { Vec::new() })
    }

    /// The time of one operation, in microseconds.
    fn combine(&mut self, batches: &[Batch], index: usize, is_counted: bool) -> f64 {
        let stamps = batches.iter().map(|batch| (batch.arrived_ns[index], batch.done_ns[index]));
        let us = |from: u64, to: u64| to.saturating_sub(from) as f64 / 1e3;
        let (last, arrived) = stamps
            .clone()
            .map(|(arrived, _)| arrived)
            .enumerate()
            .max_by_key(|x| x.1)
            .unwrap_or((0, 0));
        let first = stamps.clone().map(|(arrived, _)| arrived).min().unwrap_or(0);
        let done = stamps.clone().map(|(_, done)| done).max().unwrap_or(0);
        let longest = stamps.clone().map(|(arrived, done)| us(arrived, done)).fold(0.0, f64::max);
        let slowest = || {
            let took = stamps.clone().map(|(arrived, done)| done.saturating_sub(arrived));
            took.enumerate().max_by_key(|took| took.1).map_or(0, |took| took.0)
        };
        let last = if self.common_clock { last } else { slowest() };
        if is_counted {
            self.came_last[last] += 1;
            for (own, (arrived, done)) in self.own_us.iter_mut().zip(stamps) {
                own.push(us(arrived, done));
            }
            if self.common_clock {
                self.skews_us.push(us(first, arrived));
            }
        }
        if self.common_clock { us(arrived, done) } else { longest }
    }

    /// The median of the last batch.
    pub(crate) fn typical_us(&self) -> f64 {
        let mut sorted = self.last.clone();
        sorted.sort_by(f64::total_cmp);
        stats::median(&sorted).unwrap_or(0.0)
    }

    pub fn row(mut self, key: &Key, sampler: Sampler, plan: &Plan) -> Row {
        let times = Times::of(sampler.samples_us(), plan.rule.confidence);
        let count =
            key.op.extent(key.bytes, key.dtype.bytes(), self.ranks, super::Parts::Exact).count;
        let mut row = Row::new(key.clone(), Some(count), times);
        row.check = plan.check.then_some(self.check);
        self.skews_us.sort_by(f64::total_cmp);
        let at = |percent| stats::percentile(&self.skews_us, percent);
        row.skew = match (stats::median(&self.skews_us), at(99), self.skews_us.last()) {
            (Some(p50_us), Some(p99_us), Some(&max_us)) => Some(Skew { p50_us, p99_us, max_us }),
            _ => None,
        };
        let launches = sampler.samples_us().len().max(1) as f64;
        for (rank, own) in self.own_us.iter_mut().enumerate() {
            own.sort_by(f64::total_cmp);
            if let (Some(p50_us), [min_us, ..], [.., max_us]) =
                (stats::median(own), &own[..], &own[..])
            {
                let last_share = self.came_last[rank] as f64 / launches;
                row.per_rank.push(RankTimes {
                    rank,
                    p50_us,
                    min_us: *min_us,
                    max_us: *max_us,
                    last_share,
                });
            }
        }
        row
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collectives::row::tests::key;

    fn batch(stamps: &[(u64, u64)]) -> Vec<u8> {
        let mut batch = Batch::default();
        for &(arrived_ns, done_ns) in stamps {
            batch.add(Launch { arrived_ns, done_ns, checked: None });
        }
        batch.bytes().unwrap()
    }

    #[test]
    fn an_operation_lasts_from_the_last_arrival_to_the_last_end() {
        let mut key = key(1024);
        key.ranks = Some(2);
        let all =
            [batch(&[(1000, 9000), (20_000, 21_000)]), batch(&[(6000, 8000), (20_500, 22_500)])];
        let mut shared = Combined::new(&key, true);
        assert_eq!(shared.add(&all, true).unwrap(), [3.0, 2.0]);
        assert_eq!((shared.skews_us, shared.came_last), (vec![5.0, 0.5], vec![0, 2]));
        assert_eq!(Combined::new(&key, false).add(&all, true).unwrap(), [8.0, 2.0]);
        assert!(Combined::new(&key, true).add(&all, false).unwrap().is_empty());
    }

    #[test]
    fn the_first_wrong_element_names_its_rank() {
        let bad = Bad { offset: 7, got: "1.0".into(), expected: "2.0".into() };
        let launch = Launch { arrived_ns: 0, done_ns: 1, checked: Some((3, Some(bad))) };
        let mut wrong = Batch::default();
        wrong.add(launch);
        let mut key = key(1024);
        key.ranks = Some(2);
        let mut combined = Combined::new(&key, true);
        combined.add(&[batch(&[(0, 1)]), wrong.bytes().unwrap()], true).unwrap();
        assert_eq!((combined.check.wrong, combined.check.first_bad.unwrap().rank), (3, 1));
    }
}
