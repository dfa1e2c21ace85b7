//! The judgement on several measurements: a pure function.
//!
//! Whatever else runs on a machine makes a pair slower and never faster, so an edge is as good as
//! its best measurement. What seems slow is measured again, until it is not, or has been slow
//! [`TRIES`] times: by chance that is rare, and a link that is slow always is.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::crowd::Crowd;
use super::diagnose::{Finding, diagnose};
use super::edge::{Edge, Seat};

/// How often all edges of a part are measured before it is said to be slow.
pub const TRIES: usize = 3;

/// Measurements in all. New suspects may come with each, since the others have become better.
const MEASUREMENTS_MOST: usize = 6;

/// The slow parts, or the pairs to measure again before that can be said.
#[derive(Debug, Clone, PartialEq)]
pub enum Judgement {
    /// These pairs, lower rank first, have something that seems slow.
    Again(BTreeSet<(usize, usize)>),
    Told(Told),
}

/// The result of all measurements.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Told {
    /// The best of each, by ranks.
    pub edges: Vec<Edge>,
    pub findings: Vec<Finding>,
    pub dismissed: Vec<Dismissed>,
}

/// A part that seemed slow, and is not called so.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Dismissed {
    pub finding: Finding,
    pub why: Why,
}

/// Why it is not.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Why {
    /// Measured again it was as fast as its like, or part of something larger.
    Faster { gb_per_s: f64 },
    /// It was not measured often enough: others seemed slow before.
    TooFew { tries: usize },
}

impl fmt::Display for Dismissed {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}", self.finding)?;
        match self.why {
            Why::Faster { gb_per_s } => write!(f, "; measured again, {gb_per_s:.3} GB/s"),
            Why::TooFew { tries } => write!(f, "; seen {tries} times only"),
        }
    }
}

/// Judges the ranks at `seats`, some of them on machines that are crowded, whose edges were
/// measured so: first all, then some again.
pub fn judge(seats: &[Seat], measured: &[Vec<Edge>], crowds: &[Crowd]) -> Judgement {
    let edges = best(measured);
    let mut counts: BTreeMap<(usize, usize), usize> = BTreeMap::new();
    for edge in measured.iter().flatten() {
        *counts.entry((edge.from, edge.to)).or_default() += 1;
    }
    let tries = |edge: &Edge| counts.get(&(edge.from, edge.to)).copied().unwrap_or(0);
    let of = |finding: &Finding| {
        let finding = finding.clone();
        edges.iter().filter(move |edge| finding.concerns(seats, edge))
    };
    let suspects = diagnose(seats, &edges, crowds);
    let doubted = suspects.iter().flat_map(of).filter(|edge| tries(edge) < TRIES);
    let again: BTreeSet<(usize, usize)> =
        doubted.map(|edge| (edge.from.min(edge.to), edge.from.max(edge.to))).collect();
    if !again.is_empty() && measured.len() < MEASUREMENTS_MOST {
        return Judgement::Again(again);
    }
    let seen = |finding: &Finding| of(finding).map(tries).min().unwrap_or(0);
    let (findings, few): (Vec<_>, Vec<_>) =
        suspects.into_iter().partition(|finding| seen(finding) >= TRIES);
    let mut dismissed: Vec<Dismissed> = Vec::new();
    for finding in few {
        let why = Why::TooFew { tries: seen(&finding) };
        dismissed.push(Dismissed { finding, why });
    }
    for count in 1..measured.len() {
        for finding in diagnose(seats, &best(&measured[..count]), crowds) {
            let same = |other: &Finding| {
                (other.part, other.between_hosts) == (finding.part, finding.between_hosts)
            };
            let told = dismissed.iter().map(|dismissed| &dismissed.finding).chain(&findings);
            if !told.into_iter().any(same) {
                let gb_per_s = of(&finding).map(|edge| edge.gb_per_s).fold(0.0, f64::max);
                dismissed.push(Dismissed { finding, why: Why::Faster { gb_per_s } });
            }
        }
    }
    Judgement::Told(Told { edges, findings, dismissed })
}

/// Of each edge its best, by ranks.
fn best(measured: &[Vec<Edge>]) -> Vec<Edge> {
    let mut best: BTreeMap<(usize, usize), Edge> = BTreeMap::new();
    for edge in measured.iter().flatten() {
        let known = best.entry((edge.from, edge.to)).or_insert(*edge);
        known.gb_per_s = known.gb_per_s.max(edge.gb_per_s);
        known.round_trip_us = known.round_trip_us.min(edge.round_trip_us);
    }
    best.into_values().collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::diagnose::Part;
    use super::*;

    fn seats(hosts: usize, each: usize) -> Vec<Seat> {
        (0..hosts * each).map(|rank| Seat { host: rank / each, rail: rank % each }).collect()
    }

    /// Edges of these pairs, or of all, whose bandwidths have these factors.
    fn measure(
        seats: &[Seat],
        pairs: Option<&BTreeSet<(usize, usize)>>,
        factor: impl Fn(usize, usize) -> f64,
    ) -> Vec<Edge> {
        let all = (0..seats.len()).flat_map(|a| (0..seats.len()).map(move |b| (a, b)));
        let is_asked = |&(a, b): &(usize, usize)| {
            a != b && pairs.is_none_or(|pairs| pairs.contains(&(a.min(b), a.max(b))))
        };
        let edge = |(from, to): (usize, usize)| {
            let base = if seats[from].host == seats[to].host { 300.0 } else { 45.0 };
            Edge { from, to, gb_per_s: base * factor(from, to), round_trip_us: 10.0 }
        };
        all.filter(is_asked).map(edge).collect()
    }

    /// Measures as often as is asked; what is told, and after how many measurements.
    fn told(seats: &[Seat], factor: impl Fn(usize, (usize, usize)) -> f64) -> (Told, usize) {
        let mut measured = vec![measure(seats, None, |a, b| factor(0, (a, b)))];
        loop {
            let round = measured.len();
            match judge(seats, &measured, &[]) {
                Judgement::Told(told) => return (told, round),
                Judgement::Again(pairs) => {
                    measured.push(measure(seats, Some(&pairs), |a, b| factor(round, (a, b))));
                }
            }
        }
    }

    #[test]
    fn what_is_even_is_measured_once() {
        let (told, measurements) = told(&seats(4, 2), |_, _| 1.0);
        assert_eq!((told.findings, told.dismissed, measurements), (vec![], vec![], 1));
        assert_eq!(told.edges.len(), 56);
    }

    #[test]
    fn what_is_slow_each_time_is_told_after_three() {
        let seats = seats(4, 2);
        let is_slow = |from: usize, to: usize| seats[from].host == 2 && seats[to].host != 2;
        let factor = |_, (from, to)| if is_slow(from, to) { 0.4 } else { 1.0 };
        let (told, measurements) = told(&seats, factor);
        assert_eq!(measurements, 3);
        let parts: Vec<Part> = told.findings.iter().map(|finding| finding.part).collect();
        assert_eq!(parts, [Part::Host { host: 2, sends: true }]);
        assert_eq!(told.dismissed, []);
    }

    #[test]
    fn what_was_slow_once_is_dismissed_and_why() {
        let factor = |round, edge| if round == 0 && edge == (0, 3) { 0.2 } else { 1.0 };
        let (told, measurements) = told(&seats(2, 2), factor);
        assert_eq!((told.findings.len(), measurements), (0, 2));
        let [dismissed] = &told.dismissed[..] else { panic!("{:?}", told.dismissed) };
        assert_eq!(dismissed.finding.part, Part::Link { from: 0, to: 3 });
        assert_eq!(dismissed.why, Why::Faster { gb_per_s: 45.0 });
        let said = dismissed.to_string();
        assert!(said.starts_with("the link from rank 0 to rank 3 carries 9.000 GB/s"), "{said}");
        assert!(said.ends_with("; measured again, 45.000 GB/s"), "{said}");
    }

    #[test]
    fn suspects_that_come_late_are_not_told() {
        let seats = seats(3, 3);
        let mut measured =
            vec![measure(&seats, None, |from, to| if (from, to) == (0, 8) { 0.1 } else { 1.0 })];
        assert!(matches!(judge(&seats, &measured, &[]), Judgement::Again(_)));
        // Others were measured again meanwhile.
        measured.extend((1..MEASUREMENTS_MOST).map(|_| Vec::new()));
        let Judgement::Told(told) = judge(&seats, &measured, &[]) else { panic!("measured again") };
        assert_eq!(told.findings, []);
        assert_eq!(told.dismissed[0].why, Why::TooFew { tries: 1 });
    }

    proptest! {
        /// Links are disturbed twice, and a host is slow all the time, or none is.
        #[test]
        fn disturbances_hide_nothing_and_accuse_nobody(
            (hosts, each) in (4_usize..6, 1_usize..4),
            slow in prop::option::of(0_usize..6),
            disturbed in prop::collection::vec((0_usize..18, 0_usize..18), 0..3),
        ) {
            let seats = seats(hosts, each);
            let slow = slow.map(|host| host % hosts);
            let is_disturbed = |from: usize, to: usize| {
                disturbed.iter().any(|&(a, b)| (a % seats.len(), b % seats.len()) == (from, to))
            };
            let factor = |round, (from, to): (usize, usize)| {
                let is_across = seats[from].host != seats[to].host;
                let is_slow = is_across && Some(seats[from].host) == slow;
                let own = if is_slow { 0.3 } else { 1.0 };
                if round < 2 && is_disturbed(from, to) { own * 0.2 } else { own }
            };
            let (told, _) = told(&seats, factor);
            let parts: Vec<Part> = told.findings.iter().map(|finding| finding.part).collect();
            let expected: Vec<Part> =
                slow.iter().map(|&host| Part::Host { host, sends: true }).collect();
            prop_assert_eq!(parts, expected);
        }
    }
}
