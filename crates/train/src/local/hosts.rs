//! Which ranks share a host, and on which host each rank's files have their copies.

/// The hosts of a job, numbered by their first ranks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hosts {
    of: Vec<usize>,
    ranks: Vec<Vec<usize>>,
}

impl Hosts {
    /// Ranks with the same word share a host.
    pub(crate) fn new<T: PartialEq>(words: &[T]) -> Hosts {
        let (mut of, mut ranks) = (Vec::new(), Vec::<Vec<usize>>::new());
        for (rank, word) in words.iter().enumerate() {
            let host = ranks.iter().position(|ranks| words[ranks[0]] == *word);
            let host = host.unwrap_or(ranks.len());
            if host == ranks.len() {
                ranks.push(Vec::new());
            }
            ranks[host].push(rank);
            of.push(host);
        }
        Hosts { of, ranks }
    }

    pub(crate) fn count(&self) -> usize {
        self.ranks.len()
    }

    pub(crate) fn of(&self, rank: usize) -> usize {
        self.of[rank]
    }

    /// Whether this is the first rank of its host.
    pub(crate) fn leads(&self, rank: usize) -> bool {
        self.ranks[self.of[rank]][0] == rank
    }

    /// The first rank of a host.
    pub(crate) fn leader(&self, host: usize) -> usize {
        self.ranks[host][0]
    }

    /// The rank on the next host that keeps copies of this one's files; none where it is the only
    /// host.
    pub(crate) fn keeper(&self, rank: usize) -> Option<usize> {
        let host = self.of[rank];
        let place = self.ranks[host].iter().position(|&other| other == rank)?;
        let next = &self.ranks[(host + 1) % self.count()];
        (self.count() > 1).then(|| next[place % next.len()])
    }

    /// The ranks of whose files this one keeps copies, in order.
    pub(crate) fn kept_by(&self, rank: usize) -> Vec<usize> {
        (0..self.of.len()).filter(|&other| self.keeper(other) == Some(rank)).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_rank_has_one_keeper_on_another_host(
            words in proptest::collection::vec(0_u8..4, 1..20),
        ) {
            let hosts = Hosts::new(&words);
            for (rank, word) in words.iter().enumerate() {
                prop_assert_eq!(
                    words.iter().position(|of| of == word),
                    Some(hosts.leader(hosts.of(rank)))
                );
                let keeper = hosts.keeper(rank);
                prop_assert_eq!(keeper.is_some(), hosts.count() > 1);
                if let Some(keeper) = keeper {
                    prop_assert!(hosts.of(keeper) != hosts.of(rank));
                    prop_assert!(hosts.kept_by(keeper).contains(&rank));
                }
            }
            let kept: usize = (0..words.len()).map(|rank| hosts.kept_by(rank).len()).sum();
            prop_assert_eq!(kept, if hosts.count() > 1 { words.len() } else { 0 });
        }
    }
}
