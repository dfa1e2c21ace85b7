//! Where the time of a rank goes, by a clock that is never off: from one lap to the next everything
//! belongs to one part.
//!
//! ```text
//! step ─▶ data ▶ forward ▶ backward ▶ … ▶ reduce ▶ vote ▶ optimizer ▶ gather ─▶ saves ─▶ step
//! ```
//!
//! The times of a step are complete when the next one begins, but for the exchange of its weights,
//! which goes on until they are read. They go to the other ranks with the next vote
//! (`crate::vote`). Every lap is also a span of the trace, while one is recorded.

use comm::Timings;
use device::trace::{self, Detail, Span};

/// A part of a step, or of what follows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Reading samples.
    Data,
    Forward,
    Backward,
    /// Adding the gradients of this rank's leaves; those of the last one are added in its backward.
    Fold,
    /// Waiting until all ranks' gradients are added.
    Reduce,
    /// Statistics and the vote, in which ranks wait for each other.
    Vote,
    /// Orthogonalizing and updating.
    Optimizer,
    /// Submitting the exchange of the weights, and waiting for it where they are read.
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

/// Times of one rank for a step and for what followed it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spent {
    parts_ns: [u64; Part::ALL.len()],
    /// Operations of all channels and groups, whichever thread ran them.
    pub operations: Timings,
}

impl Spent {
    pub(crate) fn part_ns(&self, part: Part) -> u64 {
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
    /// The step before it, and what that took.
    ended: Option<(u64, Spent)>,
    /// Whether operations of the step before may still run.
    is_moving: bool,
    /// Totals of operations when its own began.
    before: Timings,
}

impl Laps {
    /// A step begins, and the one before it ends.
    pub(crate) fn begin(&mut self, step: u64) {
        self.lap(Part::Between);
        self.ended = (self.step > 0).then_some((self.step, self.spent));
        (self.step, self.spent, self.is_moving) = (step, Spent::default(), true);
        self.begin_ns = trace::now_ns();
        self.last_ns = self.begin_ns;
    }

    /// The operations of the step before are done and those of this one have not begun. Only the
    /// first call of a step counts.
    pub(crate) fn moved(&mut self, operations: Timings) {
        if !std::mem::take(&mut self.is_moving) {
            return;
        }
        if let Some((_, spent)) = &mut self.ended {
            spent.operations = operations.since(&self.before);
        }
        self.before = operations;
    }

    /// The step before this one and what it took, if this process took it: after [`Laps::moved`].
    pub(crate) fn ended(&self) -> Option<(u64, Spent)> {
        self.ended
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

    /// The times of the step so far.
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
        laps.begin(1);
        laps.moved(Timings::default());
        assert_eq!(laps.ended(), None);
        for part in Part::ALL {
            std::hint::black_box((0..1000).sum::<u64>());
            laps.lap(part);
        }
        let took = laps.step_done();
        let parts = |spent: &Spent| Part::ALL.map(|part| spent.part_ns(part)).iter().sum::<u64>();
        assert_eq!(parts(laps.spent()), took);
        laps.begin(2);
        laps.moved(Timings::default());
        let (step, spent) = laps.ended().unwrap();
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
