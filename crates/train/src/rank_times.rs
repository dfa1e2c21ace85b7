//! Times of the ranks of a run, side by side: of each step, and of all steps together.

use std::collections::BTreeMap;

use comm::{Operation, Timing};
use serde::{Deserialize, Serialize};

use crate::laps::{Part, Spent};
use crate::nan::null_is_nan;

/// Most ranks whose times of a step are told one by one: each makes the line of every step longer.
pub(crate) const ONE_BY_ONE: usize = 64;

/// Times of the ranks for a step and for what followed it up to the next: one by one, or where
/// there are more than 64, their spread. Lists of the former have an entry per rank;
/// parts and operations that no rank spent time on are left out.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RankTimes {
    pub step: u64,
    /// Milliseconds by part ([`Part::name`]).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub parts_ms: BTreeMap<String, Vec<f64>>,
    /// By kind of operation, those of all channels and groups. Groups run them beside the parts.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub operations: BTreeMap<String, OperationTimes>,
    /// In place of both where there are many ranks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub spreads: Vec<Spread>,
}

/// The operations of one kind in a step.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct OperationTimes {
    pub calls: Vec<u64>,
    /// From beginning to end.
    pub ms: Vec<f64>,
    /// The part of it before the last rank had come.
    pub waited_ms: Vec<f64>,
}

/// How something was spread over the ranks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    pub name: String,
    #[serde(deserialize_with = "null_is_nan")]
    pub min_ms: f64,
    /// The higher one of two.
    #[serde(deserialize_with = "null_is_nan")]
    pub median_ms: f64,
    #[serde(deserialize_with = "null_is_nan")]
    pub max_ms: f64,
    /// The first rank with the most.
    pub slowest: usize,
}

/// Whole microseconds.
fn ms(ns: u64) -> f64 {
    (ns / 1000) as f64 / 1e3
}

impl RankTimes {
    /// Of the ranks in order.
    pub fn new(step: u64, ranks: &[Spent]) -> RankTimes {
        let mut times = RankTimes { step, ..RankTimes::default() };
        if ranks.len() > ONE_BY_ONE {
            times.spreads = spreads(ranks);
            return times;
        }
        for part in Part::ALL {
            if ranks.iter().any(|spent| spent.part_ns(part) > 0) {
                let of = ranks.iter().map(|spent| ms(spent.part_ns(part)));
                times.parts_ms.insert(part.name().to_owned(), of.collect());
            }
        }
        for operation in Operation::ALL {
            let of: Vec<Timing> =
                ranks.iter().map(|spent| spent.operations.of(operation)).collect();
            if of.iter().any(|timing| timing.calls > 0) {
                let calls = of.iter().map(|timing| timing.calls).collect();
                let waited_ms = of.iter().map(|timing| ms(timing.waited_ns)).collect();
                let ms = of.iter().map(|timing| ms(timing.ns)).collect();
                let operation_times = OperationTimes { calls, ms, waited_ms };
                times.operations.insert(operation.name().to_owned(), operation_times);
            }
        }
        times
    }
}

/// The spread of every part and operation that any rank spent time on, in the order of a step.
pub fn spreads(ranks: &[Spent]) -> Vec<Spread> {
    let mut all = Vec::new();
    let mut add = |name: String, of: &dyn Fn(&Spent) -> u64| {
        let each: Vec<u64> = ranks.iter().map(of).collect();
        let mut sorted = each.clone();
        sorted.sort_unstable();
        let Some(&max) = sorted.last().filter(|&&max| max > 0) else { return };
        let slowest = each.iter().position(|&ns| ns == max).unwrap_or(0);
        let (min_ms, median_ms) = (ms(sorted[0]), ms(sorted[sorted.len() / 2]));
        all.push(Spread { name, min_ms, median_ms, max_ms: ms(max), slowest });
    };
    for part in Part::ALL {
        add(part.name().to_owned(), &|spent| spent.part_ns(part));
    }
    for operation in Operation::ALL {
        let of = |spent: &Spent| spent.operations.of(operation);
        add(format!("{operation} waiting"), &|spent| of(spent).waited_ns);
        add(format!("{operation} moving"), &|spent| {
            of(spent).ns.saturating_sub(of(spent).waited_ns)
        });
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A rank whose parts take 1, 2, 3, … times `ms`, and whose operations come after.
    fn spent(ms: u64) -> Spent {
        Spent::from_words((1..).map(|number| number * ms * 1_000_000))
    }

    #[test]
    fn ranks_stand_side_by_side() {
        let times = RankTimes::new(7, &[spent(1), spent(3)]);
        assert_eq!(times.parts_ms["data"], [1.0, 3.0]);
        assert_eq!(times.parts_ms["between"], [11.0, 33.0]);
        let join = &times.operations["join"];
        assert_eq!(
            (&join.calls[..], &join.ms[..]),
            (&[12_000_000, 36_000_000][..], &[13.0, 39.0][..])
        );
        assert_eq!(join.waited_ms, [14.0, 42.0]);
        let text = serde_json::to_string(&times).unwrap();
        assert_eq!(serde_json::from_str::<RankTimes>(&text).unwrap(), times);
        let nothing = RankTimes::new(7, &[Spent::default(); 2]);
        assert_eq!((nothing.parts_ms.len(), nothing.operations.len()), (0, 0));
    }

    #[test]
    fn of_many_ranks_a_line_has_the_spread_and_does_not_grow() {
        let line = |ranks: usize| {
            let all: Vec<Spent> = (1..=ranks as u64).map(spent).collect();
            let times = RankTimes::new(7, &all);
            let text = serde_json::to_string(&times).unwrap();
            assert_eq!(serde_json::from_str::<RankTimes>(&text).unwrap(), times);
            (times, text.len())
        };
        let (each, _) = line(ONE_BY_ONE);
        assert_eq!((each.parts_ms["data"].len(), each.spreads.len()), (ONE_BY_ONE, 0));
        let (spread, bytes) = line(ONE_BY_ONE + 1);
        assert_eq!((spread.parts_ms.len(), spread.operations.len()), (0, 0));
        let data =
            Spread { name: "data".into(), min_ms: 1.0, median_ms: 33.0, max_ms: 65.0, slowest: 64 };
        assert_eq!(spread.spreads[0], data);
        let (_, of_thousands) = line(4096);
        assert!(of_thousands < bytes + bytes / 2, "{bytes} and {of_thousands} bytes");
        // As lines were written before.
        let text = r#"{"step":3,"parts_ms":{"data":[1.0]},"operations":{}}"#;
        let times: RankTimes = serde_json::from_str(text).unwrap();
        assert_eq!((times.step, &times.parts_ms["data"][..]), (3, &[1.0][..]));
    }

    #[test]
    fn a_spread_names_the_slowest_rank() {
        let all = spreads(&[spent(2), spent(9), spent(4), spent(9)]);
        let data =
            Spread { name: "data".into(), min_ms: 2.0, median_ms: 9.0, max_ms: 9.0, slowest: 1 };
        assert_eq!(all[0], data);
        assert_eq!(spreads(&[Spent::default(); 3]), []);
    }
}
