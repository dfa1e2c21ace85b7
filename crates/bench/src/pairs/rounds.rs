//! Who meets whom when.

use super::edge::Seat;

/// Rounds of disjoint pairs, lower number first, in which each of `count` meets every other one
/// once: `count − 1` rounds of an even number, `count` of an odd one, in each of which one rests.
/// (The circle method: one keeps its seat, the others move on by one.)
fn circle(count: usize) -> Vec<Vec<(usize, usize)>> {
    if count < 2 {
        return Vec::new();
    }
    let seats = count.next_multiple_of(2);
    let moving = seats - 1;
    let round = |round: usize| {
        let at = |seat: usize| (round + seat) % moving;
        let pairs = (1..seats / 2).map(|seat| (at(seat), at(moving - seat)));
        let pairs = std::iter::once((at(0), moving)).chain(pairs);
        // With an odd number the last seat is empty.
        let pairs = pairs.filter(|&(a, b)| a.max(b) < count);
        pairs.map(|(a, b)| (a.min(b), a.max(b))).collect()
    };
    (0..moving).map(round).collect()
}

/// Rounds of disjoint pairs of ranks that sit at `seats`, lower rank first, in which each rank
/// meets every other one once: first within hosts, then between them. Between hosts two of them
/// meet with all of their ranks, so that links that the ranks of a host share are shared by as many
/// pairs in every round, and their bandwidths can be compared.
pub fn rounds(seats: &[Seat]) -> Vec<Vec<(usize, usize)>> {
    let count = seats.iter().map(|seat| seat.host + 1).max().unwrap_or(0);
    let mut hosts: Vec<Vec<usize>> = vec![Vec::new(); count];
    for (rank, seat) in seats.iter().enumerate() {
        hosts[seat.host].push(rank);
    }
    let most = hosts.iter().map(Vec::len).max().unwrap_or(0);
    let mut rounds = Vec::new();
    let mut add = |pairs: &mut dyn Iterator<Item = (Option<&usize>, Option<&usize>)>| {
        let there = pairs.filter_map(|(a, b)| Some((*a?, *b?)));
        let mut round: Vec<(usize, usize)> = there.map(|(a, b)| (a.min(b), a.max(b))).collect();
        round.sort_unstable();
        if !round.is_empty() {
            rounds.push(round);
        }
    };
    for round in circle(most) {
        let of_host = |host: &'_ Vec<usize>| -> Vec<(Option<usize>, Option<usize>)> {
            round.iter().map(|&(a, b)| (host.get(a).copied(), host.get(b).copied())).collect()
        };
        let pairs: Vec<_> = hosts.iter().flat_map(of_host).collect();
        add(&mut pairs.iter().map(|(a, b)| (a.as_ref(), b.as_ref())));
    }
    for meeting in circle(count) {
        for shift in 0..most {
            let pairs = meeting.iter().flat_map(|&(a, b)| {
                let (a, b) = (&hosts[a], &hosts[b]);
                (0..most).map(move |i| (a.get(i), b.get((i + shift) % most)))
            });
            add(&mut { pairs });
        }
    }
    rounds
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// Ranks of hosts with so many each, dealt in turn as far as they go.
    fn seats(each: &[usize]) -> Vec<Seat> {
        let most = each.iter().copied().max().unwrap_or(0);
        let turn = |rail| {
            let hosts = each.iter().enumerate().filter(move |(_, count)| rail < **count);
            hosts.map(move |(host, _)| Seat { host, rail })
        };
        (0..most).flat_map(turn).collect()
    }

    #[test]
    fn everyone_meets_everyone_once_and_nobody_twice_in_a_round() {
        let alike = (1..9).flat_map(|hosts| (1..6).map(move |each| vec![each; hosts]));
        for each in alike.chain([vec![3, 1, 2], vec![1, 5], vec![4, 4, 3], vec![]]) {
            let seats = seats(&each);
            let rounds = rounds(&seats);
            let mut met = HashSet::new();
            for round in &rounds {
                let mut busy = HashSet::new();
                for &(a, b) in round {
                    assert!(a < b && b < seats.len());
                    assert!(busy.insert(a) && busy.insert(b), "{each:?}: {round:?}");
                    assert!(met.insert((a, b)), "{each:?}: {a} and {b} meet again");
                }
            }
            let ranks = seats.len();
            assert_eq!(met.len(), ranks * ranks.saturating_sub(1) / 2, "{each:?}");
        }
        // No more rounds than there have to be.
        assert_eq!((rounds(&seats(&[4, 4])).len(), rounds(&seats(&[1; 6])).len()), (7, 5));
    }

    #[test]
    fn as_many_pairs_share_a_host_in_every_round_between_hosts() {
        for (hosts, each) in [(2, 8), (3, 4), (4, 4), (5, 2)] {
            let seats = seats(&vec![each; hosts]);
            for round in rounds(&seats) {
                let across = |&&(a, b): &&(usize, usize)| seats[a].host != seats[b].host;
                let crossing = round.iter().filter(across).count();
                assert!(crossing == 0 || crossing == round.len(), "{round:?}");
                for host in 0..hosts {
                    let of_host = |&(a, b): &(usize, usize)| {
                        usize::from(seats[a].host == host) + usize::from(seats[b].host == host)
                    };
                    let pairs: usize = round.iter().filter(across).map(of_host).sum();
                    assert!(pairs == 0 || pairs == each, "{round:?}");
                }
            }
        }
    }
}
