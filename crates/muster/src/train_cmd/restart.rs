//! Whether ranks that have failed are started again: a pure decision over what has failed so far.
//!
//! ```text
//! failure ─┬ of the same kind, at the same step as the one before  ─▶ ends, with the reason
//!          ├ more than `ranks.restarts` since the last checkpoint   ─▶ ends
//!          └ else ─▶ again, after a wait that doubles from one to the next
//! ```

use std::time::Duration;

/// The first wait, and the longest.
const WAITS: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(60)];

/// A failure of the ranks of a start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The last step that any rank told of.
    pub step: Option<u64>,
    /// The reason, in words.
    pub why: String,
}

impl Failure {
    /// Of the message that the command would end with: its first line.
    pub fn new(step: Option<u64>, message: &str) -> Failure {
        let first = message.lines().next().unwrap_or_default();
        Failure { step, why: first.trim_end_matches(':').to_owned() }
    }

    /// Whether it is the same again: apart from numbers, such as those of ranks and milliseconds.
    fn is_like(&self, other: &Failure) -> bool {
        let words = |failure: &Failure| -> String {
            failure.why.chars().filter(|c| !c.is_ascii_digit()).collect()
        };
        self.step == other.step && words(self) == words(other)
    }
}

/// The answer to a failure.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Start again, for the so manyth time since a checkpoint, after a wait.
    Again { number: u32, wait: Duration },
    /// End; with a reason if it is another one than that none was allowed.
    End(Option<String>),
}

/// The failures so far.
#[derive(Debug)]
pub struct Restarts {
    most: u32,
    since_save: u32,
    last: Option<Failure>,
}

impl Restarts {
    /// Nothing has; so many restarts are allowed between two checkpoints.
    pub fn new(most: u32) -> Restarts {
        Restarts { most, since_save: 0, last: None }
    }

    /// A checkpoint was committed: the run gets on.
    pub fn saved(&mut self) {
        self.since_save = 0;
    }

    /// Decides after a failure.
    pub fn next(&mut self, failure: Failure) -> Next {
        if self.most == 0 {
            return Next::End(None);
        }
        let before = self.last.replace(failure.clone());
        if before.is_some_and(|before| before.is_like(&failure)) {
            let at = failure.step.map_or("before the first step".to_owned(), |step| match step {
                0 => "before the first step".to_owned(),
                step => format!("after step {step}"),
            });
            return Next::End(Some(format!(
                "It was the same failure twice {at}, so the ranks were not started again."
            )));
        }
        if self.since_save >= self.most {
            return Next::End(Some(format!(
                "The ranks were started again {} times since the last checkpoint, as often as \
                 ranks.restarts allows.",
                self.most
            )));
        }
        self.since_save += 1;
        let [first, longest] = WAITS;
        let wait = first.saturating_mul(1 << (self.since_save - 1).min(16)).min(longest);
        Next::Again { number: self.since_save, wait }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(step: u64, why: &str) -> Failure {
        Failure::new(Some(step), why)
    }

    #[test]
    fn waits_double_up_to_the_number_allowed() {
        let mut restarts = Restarts::new(3);
        let mut waits = Vec::new();
        for step in 0..3 {
            match restarts.next(failure(step, "rank 1 failed: killed by signal 9")) {
                Next::Again { number, wait } => waits.push((number, wait.as_secs())),
                Next::End(why) => panic!("{why:?}"),
            }
        }
        assert_eq!(waits, [(1, 1), (2, 2), (3, 4)]);
        let Next::End(Some(why)) = restarts.next(failure(3, "x")) else { panic!("it goes on") };
        assert!(why.contains("3 times since the last checkpoint"), "{why}");
        restarts.saved();
        let again = restarts.next(failure(4, "x"));
        assert_eq!(again, Next::Again { number: 1, wait: WAITS[0] });
    }

    #[test]
    fn the_same_failure_at_the_same_step_ends_it() {
        let mut restarts = Restarts::new(9);
        let first = failure(7, "rank 1 failed: it said nothing for 3001 ms\nmore");
        assert!(matches!(restarts.next(first), Next::Again { .. }));
        let other_step = failure(8, "rank 0 failed: it said nothing for 3005 ms");
        assert!(matches!(restarts.next(other_step), Next::Again { .. }));
        let other_why = failure(8, "rank 0 failed: killed by signal 9");
        assert!(matches!(restarts.next(other_why), Next::Again { .. }));
        let same = failure(8, "rank 2 failed: killed by signal 9");
        let Next::End(Some(why)) = restarts.next(same) else { panic!("it goes on") };
        assert!(why.contains("the same failure twice after step 8"), "{why}");
    }

    #[test]
    fn none_is_allowed_by_zero() {
        assert_eq!(Restarts::new(0).next(failure(1, "x")), Next::End(None));
    }

    #[test]
    fn no_wait_is_longer_than_a_minute() {
        let mut restarts = Restarts::new(u32::MAX);
        for step in 0..100 {
            match restarts.next(failure(step, "x")) {
                Next::Again { wait, .. } => assert!(wait <= WAITS[1]),
                Next::End(why) => panic!("{why:?}"),
            }
        }
    }
}
