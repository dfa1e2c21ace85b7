//! Where the time of a rank goes, by a clock that is never off: from one lap to the next everything
//! belongs to one part.
//!
//! ```text
//! step ─▶ data ▶ forward ▶ backward ▶ … ▶ reduce ▶ vote ▶ optimizer ▶ gather ─▶ saves ─▶ step
//! ```
//!
//! What a step took is complete when the next one begins, and goes to the other ranks with the
//! next vote (`crate::vote`). Every lap is also a span of the trace, while one is recorded.

use comm::Timings;
use device::trace::{self, Detail, Span};

/// A part of a step, or of what follows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Reading samples.
    Data,
    Forward,
    Backward,
    /// Adding the gradients of this rank's leaves.
    Fold,
    /// Waiting until all ranks' gradients are added.
    Reduce,
    /// Statistics and the vote, in which ranks wait for each other.
    Vote,
    /// Orthogonalizing and updating.
    Optimizer,
    /// Exchanging the weights.
    Gather,
    Evaluation,
    Saves,
    /// Telling events and looking at signals, from the step's end on.
    Between,
}

impl Part {
    /// Every part, in numeric order.
    pub const ALL: [Part; 11] = [
        Part::Data,
        Part::Forward,
        Part::Backward,
        Part::Fold,
        Part::Reduce,
        Part::Vote,
        Part::Optimizer,
        Part::Gather,
        Part::Evaluation,
        Part::Saves,
        Part::Between,
    ];

    /// Its name in events and traces.
    pub fn name(self) -> &'static str {
        match self {
            Part::Data => "data",
            Part::Forward => "forward",
            Part::Backward => "backward",
            Part::Fold => "fold",
            Part::Reduce => "reduce",
            Part::Vote => "vote",
            Part::Optimizer => "optimizer",
            Part::Gather => "gather",
            Part::Evaluation => "evaluation",
            Part::Saves => "saves",
            Part::Between => "between",
        }
    }
}

/// What a step and what followed it took on one rank.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spent {
    parts_ns: [u64; Part::ALL.len()],
    /// Operations of all channels and groups, whichever thread ran them.
    pub operations: Timings,
}

impl Spent {
    pub fn part_ns(&self, part: Part) -> u64 {
        self.parts_ns[part as usize]
    }

    /// As words: the parts, then the operations.
    pub fn words(&self) -> impl Iterator<Item = u64> + '_ {
        self.parts_ns.iter().copied().chain(self.operations.words())
    }

    /// From [`Spent::words`]; what is missing is 0.
    pub fn from_words(mut words: impl Iterator<Item = u64>) -> Spent {
        let parts_ns = Part::ALL.map(|_| words.next().unwrap_or(0));
        Spent { parts_ns, operations: Timings::from_words(words) }
    }

    /// Of both together.
    pub fn plus(&self, other: &Spent) -> Spent {
        Spent::from_words(self.words().zip(other.words()).map(|(a, b)| a + b))
    }
}

/// The clock of one rank.
#[derive(Debug, Default)]
pub(crate) struct Laps {
    /// The step that is measured; 0 before the first.
    step: u64,
    begin_ns: u64,
    last_ns: u64,
    spent: Spent,
    /// Totals of operations when it began.
    before: Timings,
}

impl Laps {
    /// A step begins, and the one before it ends: that and what it took, if there was one.
    pub(crate) fn begin(&mut self, step: u64, operations: Timings) -> Option<(u64, Spent)> {
        let before = (self.step > 0).then(|| self.end(operations));
        let now_ns = trace::now_ns();
        let (spent, before_it) = (Spent::default(), operations);
        *self = Laps { step, begin_ns: now_ns, last_ns: now_ns, spent, before: before_it };
        before
    }

    /// Whether no step has begun since the last one ended.
    pub(crate) fn is_idle(&self) -> bool {
        self.step == 0
    }

    /// The last step ends.
    pub(crate) fn end(&mut self, operations: Timings) -> (u64, Spent) {
        self.lap(Part::Between);
        self.spent.operations = operations.since(&self.before);
        (std::mem::take(&mut self.step), self.spent)
    }

    /// All since the last lap was `part`.
    pub(crate) fn lap(&mut self, part: Part) {
        let (begin_ns, end_ns) = (self.last_ns, trace::now_ns());
        self.spent.parts_ns[part as usize] += end_ns - begin_ns;
        self.last_ns = end_ns;
        // Nobody looks for what is between.
        if trace::is_on() && part != Part::Between {
            trace::record(Span { name: part.name(), begin_ns, end_ns, detail: Detail::Part });
        }
    }

    /// The step itself is done: nanoseconds since it began, up to the last lap.
    pub(crate) fn step_done(&self) -> u64 {
        let Laps { step, begin_ns, last_ns: end_ns, .. } = *self;
        if trace::is_on() {
            trace::record(Span { name: "step", begin_ns, end_ns, detail: Detail::Step(step) });
        }
        end_ns - begin_ns
    }

    /// What the step took so far.
    pub(crate) fn spent(&self) -> &Spent {
        &self.spent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_are_all_of_the_time_and_survive_as_words() {
        let mut laps = Laps::default();
        assert_eq!(laps.begin(1, Timings::default()), None);
        for part in Part::ALL {
            std::hint::black_box((0..1000).sum::<u64>());
            laps.lap(part);
        }
        let took = laps.step_done();
        let parts = |spent: &Spent| Part::ALL.map(|part| spent.part_ns(part)).iter().sum::<u64>();
        assert_eq!(parts(laps.spent()), took);
        let (step, spent) = laps.begin(2, Timings::default()).unwrap();
        assert!(step == 1 && parts(&spent) >= took);
        assert_eq!(Spent::from_words(spent.words()), spent);
        let twice = spent.plus(&spent);
        assert_eq!(twice.part_ns(Part::Vote), 2 * spent.part_ns(Part::Vote));
        assert_eq!(laps.end(Timings::default()).0, 2);
    }

    #[test]
    fn every_part_has_its_number_and_a_name_of_its_own() {
        for (index, part) in Part::ALL.into_iter().enumerate() {
            assert_eq!(part as usize, index);
            assert_eq!(Part::ALL.iter().filter(|other| other.name() == part.name()).count(), 1);
        }
    }
}
