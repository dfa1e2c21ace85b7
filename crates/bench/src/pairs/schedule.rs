//! Who meets whom when.

/// Rounds of disjoint pairs, lower rank first, in which each of `ranks` ranks meets every other one
/// once: `ranks − 1` rounds of an even number of ranks, `ranks` of an odd one, in each of which one
/// rank rests. (The circle method: one rank keeps its seat, the others move on by one.)
pub fn rounds(ranks: usize) -> Vec<Vec<(usize, usize)>> {
    if ranks < 2 {
        return Vec::new();
    }
    let seats = ranks.next_multiple_of(2);
    let moving = seats - 1;
    let round = |round: usize| {
        let at = |seat: usize| (round + seat) % moving;
        let pairs = (1..seats / 2).map(|seat| (at(seat), at(moving - seat)));
        let pairs = std::iter::once((at(0), moving)).chain(pairs);
        // With an odd number of ranks the last seat is empty.
        let mut pairs: Vec<(usize, usize)> =
            pairs.filter(|&(a, b)| a.max(b) < ranks).map(|(a, b)| (a.min(b), a.max(b))).collect();
        pairs.sort_unstable();
        pairs
    };
    (0..moving).map(round).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn everyone_meets_everyone_once_and_nobody_twice_in_a_round() {
        for ranks in 0..40 {
            let rounds = rounds(ranks);
            let mut met = HashSet::new();
            for round in &rounds {
                let mut busy = HashSet::new();
                for &(a, b) in round {
                    assert!(a < b && b < ranks);
                    assert!(busy.insert(a) && busy.insert(b), "{ranks}: {round:?}");
                    assert!(met.insert((a, b)), "{ranks}: {a} and {b} meet again");
                }
            }
            assert_eq!(met.len(), ranks * ranks.saturating_sub(1) / 2);
            let least = if ranks < 2 { 0 } else { ranks - 1 + ranks % 2 };
            assert_eq!(rounds.len(), least);
        }
    }
}
