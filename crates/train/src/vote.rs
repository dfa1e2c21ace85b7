//! The vote of the ranks once a step, and its result: pure functions over bytes.
//!
//! A ballot, little-endian: flags u64, target tokens u64, target bytes u64 (all ones: unknown),
//! micro-batches u64, statistics u64, counts u64, times u64, saves u64 (how many it has seen end),
//! then that many losses f64 (leaf order), statistics f64 (in the order of the sender), counts u32
//! and times u64: the step before this one and what it took ([`Spent::words`]), or none.

use std::iter::once;
use std::ops::Range;

use crate::TrainError;
use crate::laps::Spent;

/// Set in the flags when the sender was asked to stop.
const STOP: u64 = 1;

/// Set when it was a request to save and be requeued.
const TERMINATE: u64 = 2;

/// A rank's contribution to a vote.
#[derive(Debug, Default, Clone)]
pub(crate) struct Ballot {
    pub stop: bool,
    pub terminate: bool,
    pub target_tokens: u64,
    pub target_bytes: Option<u64>,
    /// Summed loss of each of this rank's micro-batches, leaves in order.
    pub losses: Vec<f64>,
    /// Sums of squares of this rank's statistics, in its own order.
    pub statistics: Vec<f64>,
    /// The engine's, over this rank's leaves.
    pub counts: Vec<u32>,
    /// Saves beside the training that the sender has seen end.
    pub saves: u64,
    /// The step before this one and what it took, if this process took it.
    pub spent: Option<(u64, Spent)>,
}

/// The result of a vote, the same on every rank.
#[derive(Debug, Default, Clone)]
pub struct Tally {
    pub stop: bool,
    pub terminate: bool,
    pub target_tokens: u64,
    pub target_bytes: Option<u64>,
    /// Summed loss, micro-batches added in leaf order.
    pub loss: f64,
    /// Sums of squares, every statistic.
    pub statistics: Vec<f64>,
    /// The engine's, over all leaves.
    pub counts: Vec<u64>,
    /// Saves that every rank has seen end.
    pub saves: u64,
    /// The step that the ranks tell the times of; 0 for none.
    pub spent_step: u64,
    /// Of each rank that did.
    pub spent: Vec<Spent>,
}

/// Requests to end the run; one rank's wish is everyone's after the next vote.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wants {
    /// Finish the step, save, end.
    pub stop: bool,
    /// The same, to be started again later.
    pub terminate: bool,
}

/// Bytes before the losses.
const HEAD: usize = 64;

impl Ballot {
    /// The bytes, into `out`, whose memory is reused.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.clear();
        let flags = u64::from(self.stop) * STOP + u64::from(self.terminate) * TERMINATE;
        let lens = [self.losses.len(), self.statistics.len(), self.counts.len()];
        let lens = lens.map(|len| len as u64);
        let times = || self.spent.iter().flat_map(|(step, spent)| once(*step).chain(spent.words()));
        let bytes = self.target_bytes.unwrap_or(u64::MAX);
        let head = [flags, self.target_tokens, bytes, lens[0], lens[1], lens[2]];
        for word in head.into_iter().chain([times().count() as u64, self.saves]) {
            out.extend_from_slice(&word.to_le_bytes());
        }
        for value in self.losses.iter().chain(&self.statistics) {
            out.extend_from_slice(&value.to_le_bytes());
        }
        for count in &self.counts {
            out.extend_from_slice(&count.to_le_bytes());
        }
        for word in times() {
            out.extend_from_slice(&word.to_le_bytes());
        }
    }
}

impl Tally {
    /// Counts the ballots of all ranks, in rank order; `numbers` says, per rank, which of the
    /// model's statistics its are.
    ///
    /// # Errors
    /// A ballot of another length than its header says.
    pub fn count(
        &mut self,
        ballots: &[Vec<u8>],
        numbers: &[Vec<Range<usize>>],
    ) -> Result<(), TrainError> {
        (self.stop, self.terminate, self.loss) = (false, false, 0.0);
        (self.target_tokens, self.target_bytes) = (0, Some(0));
        self.counts.fill(0);
        self.saves = u64::MAX;
        self.spent_step = 0;
        self.spent.clear();
        for (rank, (ballot, numbers)) in ballots.iter().zip(numbers).enumerate() {
            self.add(rank, ballot, numbers)?;
        }
        Ok(())
    }

    fn add(
        &mut self,
        rank: usize,
        ballot: &[u8],
        numbers: &[Range<usize>],
    ) -> Result<(), TrainError> {
        let got = ballot.len();
        let short = |expected| TrainError::Vote { rank, got, expected };
        let head = ballot.get(..HEAD).ok_or_else(|| short(HEAD))?;
        let word =
            |i: usize| u64::from_le_bytes(head[8 * i..8 * i + 8].try_into().unwrap_or([0; 8]));
        let [losses, statistics, counts, times] = [3, 4, 5, 6].map(|i| word(i) as usize);
        let owned: usize = numbers.iter().map(ExactSizeIterator::len).sum();
        let sizes = [(losses, 8), (owned, 8), (counts, 4), (times, 8)];
        let expected = sizes.iter().try_fold(HEAD, |sum, (count, bytes)| {
            sum.checked_add(usize::checked_mul(*count, *bytes)?)
        });
        // A header that tells of more than can be told is wrong, too.
        let expected = expected.unwrap_or(usize::MAX);
        if got != expected || statistics != owned {
            return Err(short(expected));
        }
        if counts != self.counts.len() {
            return Err(short(got - 4 * counts + 4 * self.counts.len()));
        }
        self.stop |= word(0) & STOP != 0;
        self.terminate |= word(0) & TERMINATE != 0;
        self.saves = self.saves.min(word(7));
        self.target_tokens += word(1);
        self.target_bytes = match (self.target_bytes, word(2)) {
            (Some(sum), bytes) if bytes != u64::MAX => Some(sum + bytes),
            _ => None,
        };
        let (floats, integers) = ballot[HEAD..].split_at(8 * (losses + statistics));
        let (integers, words) = integers.split_at(4 * counts);
        let mut floats = floats
            .chunks_exact(8)
            .map(|bytes| f64::from_le_bytes(bytes.try_into().unwrap_or([0; 8])));
        for loss in floats.by_ref().take(losses) {
            self.loss += loss;
        }
        for number in numbers.iter().flat_map(Clone::clone) {
            self.statistics[number] = floats.next().unwrap_or(f64::NAN);
        }
        for (sum, bytes) in self.counts.iter_mut().zip(integers.chunks_exact(4)) {
            *sum += u64::from(u32::from_le_bytes(bytes.try_into().unwrap_or([0; 4])));
        }
        let mut words = words.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word));
        if let Some(step) = words.next() {
            self.spent_step = step;
            self.spent.push(Spent::from_words(words));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ballots_add_up_in_any_grouping() {
        let losses = [0.1, 1e16, -1e16, 0.3];
        let spent = |rank: usize| Spent::from_words(100 * rank as u64 + 1..);
        let tally = |groups: &[&[f64]]| {
            let mut ballots = Vec::new();
            for (rank, losses) in groups.iter().enumerate() {
                let ballot = Ballot {
                    losses: losses.to_vec(),
                    target_tokens: 5,
                    target_bytes: Some(4),
                    counts: vec![rank as u32, 2],
                    saves: 7 - rank as u64,
                    statistics: if rank == 0 { vec![7.0, 8.0] } else { vec![] },
                    spent: Some((9, spent(rank))),
                    ..Ballot::default()
                };
                let mut bytes = Vec::new();
                ballot.encode(&mut bytes);
                ballots.push(bytes);
            }
            let mut numbers = vec![Vec::new(); groups.len()];
            numbers[0] = vec![1..2, 0..1];
            let (statistics, counts) = (vec![0.0; 2], vec![0; 2]);
            let mut tally = Tally { statistics, counts, ..Tally::default() };
            tally.count(&ballots, &numbers).unwrap();
            tally
        };
        let one = tally(&[&losses]);
        let three = tally(&[&losses[..1], &losses[1..3], &losses[3..]]);
        assert_eq!(one.loss.to_bits(), three.loss.to_bits());
        assert_eq!(one.statistics, [8.0, 7.0]);
        assert_eq!((three.target_tokens, three.target_bytes), (15, Some(12)));
        assert_eq!(three.counts, [3, 6]);
        assert_eq!((one.saves, three.saves), (7, 5));
        assert_eq!((three.spent_step, three.spent), (9, [0, 1, 2].map(spent).to_vec()));
    }

    #[test]
    fn a_torn_ballot_is_refused() {
        let mut bytes = Vec::new();
        Ballot { losses: vec![1.0], ..Ballot::default() }.encode(&mut bytes);
        bytes.pop();
        let result = Tally::default().count(&[bytes], &[Vec::new()]);
        assert!(matches!(result, Err(TrainError::Vote { rank: 0, got: 71, expected: 72 })));
        // Of an engine that counts something else.
        let mut bytes = Vec::new();
        Ballot { counts: vec![1, 2], ..Ballot::default() }.encode(&mut bytes);
        let result = Tally::default().count(&[bytes], &[Vec::new()]);
        assert!(matches!(result, Err(TrainError::Vote { rank: 0, got: 72, expected: 64 })));
        // A number of losses whose bytes no integer counts, and whose low bits would fit.
        for count in [u64::MAX, 1 << 61] {
            let mut bytes = Vec::new();
            Ballot::default().encode(&mut bytes);
            bytes[24..32].copy_from_slice(&count.to_le_bytes());
            let result = Tally::default().count(&[bytes], &[Vec::new()]);
            assert!(matches!(result, Err(TrainError::Vote { rank: 0, got: 64, .. })), "{count}");
        }
    }
}
