//! Machines whose ranks outnumber their cores: there a pair may be slow because one end of it did
//! not run.

use std::collections::BTreeMap;
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::edge::{Edge, Seat};

/// A bandwidth that reaches this share of its like is not slow, whatever its score.
pub(crate) const SHARE_HEALTHY: f64 = 0.9;

/// A machine with more ranks than cores.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Crowd {
    /// Numbers of its hosts: containers and network namespaces count as hosts.
    pub hosts: Vec<usize>,
    pub ranks: usize,
    pub cores: usize,
}

impl Crowd {
    /// The share of its like that a part need not exceed to be slow: a rank that has half of a core
    /// can be half as fast as one that had it alone, and nothing of its links is known from that.
    pub(crate) fn share_healthy(&self) -> f64 {
        SHARE_HEALTHY * (self.cores as f64 / self.ranks as f64).min(1.0)
    }
}

impl fmt::Display for Crowd {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Crowd { hosts, ranks, cores } = self;
        let named: Vec<String> = hosts.iter().map(ToString::to_string).collect();
        let (noun, named) = (if named.len() == 1 { "host" } else { "hosts" }, named.join(", "));
        let unit = if *cores == 1 { "core" } else { "cores" };
        write!(
            f,
            "the {ranks} ranks of {noun} {named} share {cores} {unit}: what seems slow may be a \
             rank that did not run, so that what has an end there is called slow below {:.0} % of \
             its like, not below {:.0} %; start no more ranks there than cores",
            100.0 * self.share_healthy(),
            100.0 * SHARE_HEALTHY
        )
    }
}

/// The machine that a rank runs on, as it tells the others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Room {
    /// The name that tells the machine from others.
    pub machine: String,
    pub host: usize,
    /// Cores that the ranks of its host share.
    pub cores: usize,
    /// Cores of the whole machine.
    pub all_cores: usize,
}

/// The machines that have more ranks than cores, by their first hosts. Hosts of one machine may
/// each have cores of their own, or all the same.
pub fn crowds(ranks: &[Room]) -> Vec<Crowd> {
    let mut machines: BTreeMap<&str, Vec<&Room>> = BTreeMap::new();
    for room in ranks {
        machines.entry(&room.machine).or_default().push(room);
    }
    let crowd = |rooms: Vec<&Room>| {
        let mut cores_of: BTreeMap<usize, usize> = BTreeMap::new();
        for room in &rooms {
            let cores = cores_of.entry(room.host).or_default();
            *cores = (*cores).max(room.cores);
        }
        let all = rooms.iter().map(|room| room.all_cores).max().unwrap_or(usize::MAX);
        let cores = cores_of.values().sum::<usize>().min(all);
        let hosts = cores_of.into_keys().collect();
        (rooms.len() > cores).then_some(Crowd { hosts, ranks: rooms.len(), cores })
    };
    let mut crowds: Vec<Crowd> = machines.into_values().filter_map(crowd).collect();
    crowds.sort_by_key(|crowd| crowd.hosts.clone());
    crowds
}

/// The shares of hosts: a bandwidth that reaches its share is not slow. It is `SHARE_HEALTHY`, or
/// less where an end is crowded.
pub struct Shares<'a> {
    seats: &'a [Seat],
    /// By host.
    of_hosts: BTreeMap<usize, f64>,
}

impl<'a> Shares<'a> {
    /// Of ranks that sit at `seats`.
    pub fn new(seats: &'a [Seat], crowds: &[Crowd]) -> Shares<'a> {
        let of_crowd = |crowd: &Crowd| {
            let share = crowd.share_healthy();
            crowd.hosts.clone().into_iter().map(move |host| (host, share))
        };
        Shares { seats, of_hosts: crowds.iter().flat_map(of_crowd).collect() }
    }

    /// Of an edge. A part has that of the edge with the largest: one that nothing excuses shows
    /// whether the part is slow.
    pub fn of(&self, edge: &Edge) -> f64 {
        let of_rank = |rank: usize| {
            self.of_hosts.get(&self.seats[rank].host).copied().unwrap_or(SHARE_HEALTHY)
        };
        of_rank(edge.from).min(of_rank(edge.to))
    }
}

/// Cores of a machine as the kernel lists them: `0-3,8`. None of what is no such list.
pub(super) fn listed(list: &str) -> Option<usize> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        (last + 1).checked_sub(first)
    };
    list.trim().split(',').map(range).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rooms(of: &[(&str, usize, usize)], all_cores: usize) -> Vec<Room> {
        let room = |&(machine, host, cores): &(&str, usize, usize)| Room {
            machine: machine.into(),
            host,
            cores,
            all_cores,
        };
        of.iter().map(room).collect()
    }

    #[test]
    fn a_machine_is_crowded_where_its_ranks_outnumber_its_cores() {
        assert_eq!(crowds(&rooms(&[("a", 0, 2), ("a", 0, 2)], 2)), []);
        let three = rooms(&[("a", 0, 2), ("a", 0, 2), ("a", 0, 2), ("b", 1, 2)], 8);
        assert_eq!(crowds(&three), [Crowd { hosts: vec![0], ranks: 3, cores: 2 }]);
        // Namespaces that have all cores, and containers with two of eight each.
        let four = [("a", 0, 2), ("a", 1, 2), ("a", 2, 2), ("a", 3, 2)];
        assert_eq!(
            crowds(&rooms(&four, 2)),
            [Crowd { hosts: vec![0, 1, 2, 3], ranks: 4, cores: 2 }]
        );
        assert_eq!(crowds(&rooms(&four, 8)), []);
        let said = crowds(&rooms(&four, 2))[0].to_string();
        assert!(said.starts_with("the 4 ranks of hosts 0, 1, 2, 3 share 2 cores: "), "{said}");
    }

    #[test]
    fn where_a_rank_has_half_a_core_what_is_half_as_fast_is_not_slow() {
        let crowd = |host, ranks, cores| Crowd { hosts: vec![host], ranks, cores };
        let seats = [0, 1, 2, 3].map(|host| Seat { host, rail: 0 });
        let shares = Shares::new(&seats, &[crowd(0, 4, 3), crowd(1, 4, 2)]);
        let of = |from, to| shares.of(&Edge { from, to, gb_per_s: 1.0, round_trip_us: 1.0 });
        assert_eq!([of(2, 3), of(3, 2)], [SHARE_HEALTHY; 2]);
        assert_eq!([of(0, 2), of(3, 0)], [SHARE_HEALTHY * 0.75; 2]);
        assert_eq!([of(0, 1), of(1, 3)], [SHARE_HEALTHY / 2.0; 2]);
        let said = crowd(1, 4, 2).to_string();
        assert!(said.contains("is called slow below 45 % of its like, not below 90 %"), "{said}");
    }

    #[test]
    fn cores_are_counted_as_the_kernel_lists_them() {
        for (list, count) in [("0", 1), ("0-3", 4), ("0-1,4,8-9\n", 5)] {
            assert_eq!(listed(list), Some(count), "{list}");
        }
        for list in ["", "x", "3-1", "1,,2"] {
            assert_eq!(listed(list), None, "{list}");
        }
    }
}
