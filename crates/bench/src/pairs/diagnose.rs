//! The slow parts in a matrix of bandwidths.
//!
//! Edges within a host and edges between hosts are looked at apart. A part (a host, a rail, a rank)
//! is as good as its best edge, since whoever is slow is slow to everybody, and whoever is not has
//! a peer to show it with. Parts are compared with their like by the modified z-score
//!
//! ```text
//! z = 0.6745 · (x − median) / MAD        x = ln of the bandwidth
//! ```
//!
//! (Iglewicz and Hoaglin, *How to Detect and Handle Outliers*, 1993, who flag |z| > 3.5), where MAD
//! is the median absolute deviation, at least `MAD_LEAST`, so that very even machines do not flag
//! what nobody would repair. Larger parts come first, and what they explain is not flagged again.

use std::collections::BTreeMap;
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::crowd::{Crowd, Shares};
use super::edge::{Edge, Seat};

/// Beyond it a value is an outlier.
pub(crate) const Z_LIMIT: f64 = 3.5;

/// Of logarithms: two percent.
pub(crate) const MAD_LEAST: f64 = 0.02;

/// Values that a comparison needs at least.
const LIKE_LEAST: usize = 3;

/// Parts that can be slow.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Part {
    /// A host, in what it sends to or receives from others.
    Host { host: usize, sends: bool },
    /// The links between the ranks of the same number within their hosts.
    Rail { rail: usize },
    /// A rank, in what it sends or receives.
    Rank { rank: usize, sends: bool },
    /// One direction between two ranks.
    Link { from: usize, to: usize },
}

/// A part that is slower than its like.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Finding {
    pub part: Part,
    /// Whether it was seen between hosts, or within one.
    pub between_hosts: bool,
    pub gb_per_s: f64,
    /// The median of its like.
    pub median_gb_per_s: f64,
    /// The modified z-score, below 0.
    pub z: f64,
}

impl Finding {
    /// Whether `edge`, of ranks that sit at `seats`, is one of those that it was seen in.
    pub(crate) fn concerns(&self, seats: &[Seat], edge: &Edge) -> bool {
        let (from, to) = (seats[edge.from], seats[edge.to]);
        let is_of_part = match self.part {
            Part::Host { host, sends } => host == if sends { from.host } else { to.host },
            Part::Rail { rail } => from.rail == rail && to.rail == rail,
            Part::Rank { rank, sends } => rank == if sends { edge.from } else { edge.to },
            Part::Link { from, to } => (from, to) == (edge.from, edge.to),
        };
        is_of_part && (from.host != to.host) == self.between_hosts
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let verb = |sends: bool| if sends { "sends" } else { "receives" };
        match self.part {
            Part::Host { host, sends } => write!(f, "host {host} {}", verb(sends))?,
            Part::Rail { rail } => write!(f, "rail {rail} carries")?,
            Part::Rank { rank, sends } => write!(f, "rank {rank} {}", verb(sends))?,
            Part::Link { from, to } => write!(f, "the link from rank {from} to rank {to} carries")?,
        }
        let place = if self.between_hosts { "between hosts" } else { "within its host" };
        let (got, like, z) = (self.gb_per_s, self.median_gb_per_s, self.z);
        write!(f, " {got:.3} GB/s {place}, where the median is {like:.3} (z = {z:.1})")
    }
}

/// Which part of a kind an edge belongs to, if any.
type PartOf<'a> = &'a dyn Fn(&Edge) -> Option<Part>;

/// The slow parts among `edges` of ranks that sit at `seats`, larger ones first. A part that
/// reaches `SHARE_HEALTHY` of its like is not slow, nor one that reaches less if all of it touches
/// `crowds`.
pub fn diagnose(seats: &[Seat], edges: &[Edge], crowds: &[Crowd]) -> Vec<Finding> {
    let shares = Shares::new(seats, crowds);
    let between = |edge: &&Edge| seats[edge.from].host != seats[edge.to].host;
    let (across, within): (Vec<&Edge>, Vec<&Edge>) = edges.iter().partition(between);
    let mut findings = Vec::new();
    let count = seats.iter().map(|seat| seat.host + 1).max().unwrap_or(0);
    let host = |rank: usize| seats[rank].host;
    let rail = |rank: usize| seats[rank].rail;
    let hosts = |sends: bool| {
        move |edge: &Edge| {
            let host = host(if sends { edge.from } else { edge.to });
            Some(Part::Host { host, sends })
        }
    };
    let rails = |edge: &Edge| {
        let (from, to) = (rail(edge.from), rail(edge.to));
        (from == to).then_some(Part::Rail { rail: from })
    };
    let ranks = |sends: bool| {
        move |edge: &Edge| Some(Part::Rank { rank: if sends { edge.from } else { edge.to }, sends })
    };
    let links = |edge: &Edge| Some(Part::Link { from: edge.from, to: edge.to });
    let mut look = |edges: Vec<&Edge>, between_hosts: bool| {
        let mut left = edges;
        // All parts of a level are judged before what they explain is left out.
        let mut level = |least: usize, parts_of: &[PartOf]| {
            let slow =
                parts_of.iter().flat_map(|of| outliers(&left, (between_hosts, &shares), least, of));
            let slow: Vec<Finding> = slow.collect();
            let is_explained = |edge: &&Edge| {
                let mut parts = parts_of.iter().filter_map(|of| of(edge));
                parts.any(|part| slow.iter().any(|finding| finding.part == part))
            };
            left.retain(|edge| !is_explained(edge));
            findings.extend(slow);
        };
        if between_hosts {
            level(2, &[&hosts(true), &hosts(false)]);
            if count >= LIKE_LEAST {
                // Of two hosts each rail is one pair of ranks.
                level(2, &[&rails]);
            }
        }
        // One rank of each host is what its host is.
        level(2, &[&ranks(true), &ranks(false)]);
        level(1, &[&links]);
    };
    look(across, true);
    look(within, false);
    findings
}

/// The parts whose best edge is an outlier among the best edges of all. A part of fewer than
/// `least` edges is left out: which end of a single edge is slow cannot be told.
fn outliers(
    edges: &[&Edge],
    (between_hosts, shares): (bool, &Shares),
    least: usize,
    part_of: PartOf,
) -> Vec<Finding> {
    let mut best: BTreeMap<Part, (f64, f64, usize)> = BTreeMap::new();
    for edge in edges {
        if let Some(part) = part_of(edge) {
            let (value, healthy, count) = best.entry(part).or_insert((0.0, 0.0, 0));
            *value = value.max(edge.gb_per_s);
            *healthy = healthy.max(shares.of(edge));
            *count += 1;
        }
    }
    best.retain(|_, (_, _, count)| *count >= least);
    if best.len() < LIKE_LEAST {
        return Vec::new();
    }
    let logs: Vec<f64> =
        best.values().map(|(value, ..)| value.max(f64::MIN_POSITIVE).ln()).collect();
    let middle = median(logs.clone());
    let deviations = logs.iter().map(|log| (log - middle).abs()).collect();
    let mad = median(deviations).max(MAD_LEAST);
    let finding = |(&part, &(gb_per_s, healthy, _)): (&Part, &(f64, f64, usize))| {
        let z = 0.6745 * (gb_per_s.max(f64::MIN_POSITIVE).ln() - middle) / mad;
        let median_gb_per_s = middle.exp();
        let is_slow = z < -Z_LIMIT && gb_per_s < healthy * median_gb_per_s;
        is_slow.then_some(Finding { part, between_hosts, gb_per_s, median_gb_per_s, z })
    };
    best.iter().filter_map(finding).collect()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seats(hosts: usize, each: usize) -> Vec<Seat> {
        (0..hosts * each).map(|rank| Seat { host: rank / each, rail: rank % each }).collect()
    }

    /// All directions, with a factor of each and some noise.
    fn edges(seats: &[Seat], noise: u64, factor: impl Fn(usize, usize) -> f64) -> Vec<Edge> {
        let mut seed = noise;
        let mut all = Vec::new();
        for from in 0..seats.len() {
            for to in (0..seats.len()).filter(|&to| to != from) {
                seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let jitter = 1.0 + 0.04 * ((seed >> 33) as f64 / f64::from(u32::MAX) - 0.25);
                let base = if seats[from].host == seats[to].host { 300.0 } else { 45.0 };
                let gb_per_s = base * jitter * factor(from, to);
                all.push(Edge { from, to, gb_per_s, round_trip_us: 10.0 });
            }
        }
        all
    }

    fn parts(seats: &[Seat], edges: &[Edge]) -> Vec<Part> {
        diagnose(seats, edges, &[]).into_iter().map(|finding| finding.part).collect()
    }

    proptest! {
        #[test]
        fn the_slow_part_is_named_and_nothing_else(
            (hosts, each) in (3_usize..7, 2_usize..5),
            noise in any::<u64>(),
            slowdown in 0.05..0.7_f64,
            pick in any::<u32>(),
        ) {
            let seats = seats(hosts, each);
            let (host, rail) = (pick as usize % hosts, pick as usize % each);
            let rank = pick as usize % seats.len();
            let slow = |is: bool| if is { slowdown } else { 1.0 };
            prop_assert_eq!(parts(&seats, &edges(&seats, noise, |_, _| 1.0)), []);

            let all = edges(&seats, noise, |from, to| {
                slow(seats[from].host == host && seats[to].host != host)
            });
            prop_assert_eq!(parts(&seats, &all), [Part::Host { host, sends: true }]);

            if each > 2 {
                let all = edges(&seats, noise, |from, to| {
                    slow(seats[from].rail == rail && seats[to].rail == rail
                        && seats[from].host != seats[to].host)
                });
                prop_assert_eq!(parts(&seats, &all), [Part::Rail { rail }]);
            }

            let all = edges(&seats, noise, |_, to| slow(to == rank));
            let found = parts(&seats, &all);
            prop_assert!(found.contains(&Part::Rank { rank, sends: false }), "{:?}", found);
            // Of the two ranks of a host each has one edge within it.
            let is_of_rank = |part: &Part| match *part {
                Part::Link { to, .. } => to == rank && each == 2,
                part => part == Part::Rank { rank, sends: false },
            };
            prop_assert!(found.iter().all(is_of_rank), "{:?}", found);

            let to = (rank + each) % seats.len();
            let all = edges(&seats, noise, |a, b| slow((a, b) == (rank, to)));
            prop_assert_eq!(parts(&seats, &all), [Part::Link { from: rank, to }]);
        }
    }

    #[test]
    fn one_rank_a_host_is_named_by_its_host() {
        let seats = seats(4, 1);
        let all = edges(&seats, 7, |from, to| if from == 2 || to == 2 { 0.3 } else { 1.0 });
        let host = |sends| Part::Host { host: 2, sends };
        assert_eq!(parts(&seats, &all), [host(true), host(false)]);
        let finding = &diagnose(&seats, &all, &[])[0];
        assert!((finding.gb_per_s / finding.median_gb_per_s - 0.3).abs() < 0.02, "{finding:?}");
        let text = finding.to_string();
        assert!(text.starts_with("host 2 sends 1"), "{text}");
        assert!(text.contains("between hosts, where the median is 4"), "{text}");
    }

    #[test]
    fn a_part_that_is_slow_both_ways_is_named_for_both() {
        let three = seats(3, 1);
        let all = edges(&three, 7, |from, to| if from == 2 || to == 2 { 0.3 } else { 1.0 });
        let host = |sends| Part::Host { host: 2, sends };
        assert_eq!(parts(&three, &all), [host(true), host(false)]);
        // Of two hosts, one rank's link to the others.
        let two = seats(2, 4);
        let is_of = |from: usize, to: usize| (from == 3 || to == 3) && from / 4 != to / 4;
        let all = edges(&two, 7, |from, to| if is_of(from, to) { 0.3 } else { 1.0 });
        let rank = |sends| Part::Rank { rank: 3, sends };
        assert_eq!(parts(&two, &all), [rank(true), rank(false)]);
    }

    /// One that is excuses no other.
    #[test]
    fn a_crowded_machine_excuses_what_touches_it_alone() {
        let seats = seats(4, 2);
        let crowds = [Crowd { hosts: vec![3], ranks: 2, cores: 1 }];
        // Crowded or slow, each is half as fast in what it sends.
        let slow = |host| {
            let factor = |from: usize, to: usize| {
                let is_slow = seats[from].host == host && seats[to].host != host;
                if is_slow { 0.6 } else { 1.0 }
            };
            let found = diagnose(&seats, &edges(&seats, 7, factor), &crowds);
            found.into_iter().map(|finding| finding.part).collect::<Vec<_>>()
        };
        assert_eq!(slow(1), [Part::Host { host: 1, sends: true }]);
        // All that it sends to others has an end there.
        assert_eq!(slow(3), []);
        let links = |to: usize| {
            let factor = |a: usize, b: usize| if (a, b) == (0, to) { 0.6 } else { 1.0 };
            diagnose(&seats, &edges(&seats, 7, factor), &crowds).len()
        };
        assert_eq!([links(2), links(6)], [1, 0]);
    }

    #[test]
    fn two_ranks_have_nobody_to_be_compared_with() {
        let seats = seats(2, 1);
        assert_eq!(parts(&seats, &edges(&seats, 1, |from, _| 1.0 + from as f64)), []);
        assert_eq!(parts(&seats, &[]), []);
    }
}
