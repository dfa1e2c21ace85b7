//! Which CPUs each rank of a host gets: a pure function of the host's nodes, the CPUs that may be
//! used, the ranks and their threads.
//!
//! ```text
//! node 0  ▯▯▯▯▯▯▯▯     2 ranks  00000000 11111111
//! node 1  ▯▯▯▯▯▯▯▯     4 ranks  00001111 22223333
//!                      3 ranks  00001111 22222222   of 4 threads each, or fewer
//!                      3 ranks  00000111 11222222   of 5, which 4 cores do not carry
//! ```
//!
//! A rank whose buffers are on a device of its own gets all CPUs of the node that the device is
//! near ([`near`]). Of others: a rank gets whole cores, all that is its share and not as many as it
//! has threads: so the scheduler still has a choice, and other programs a place. Where ranks are
//! fewer than nodes, each has one node if that carries its threads, and the other nodes are used by
//! no rank.

use std::collections::BTreeSet;

use super::topology::Node;

/// The CPUs of each rank, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Division {
    /// Of each rank, ascending and disjoint; empty where the scheduler keeps its freedom.
    pub cpus: Vec<Vec<usize>>,
    pub why: String,
}

impl Division {
    /// No rank is bound.
    pub fn none(why: impl Into<String>) -> Division {
        Division { cpus: Vec::new(), why: format!("not bound: {}", why.into()) }
    }
}

/// A core, and the number of its node.
type Core = (Vec<usize>, usize);

/// Divides the `allowed` ones of the CPUs of `nodes` among `ranks` of `threads` threads each.
pub fn divide(nodes: &[Node], allowed: &[usize], ranks: usize, threads: usize) -> Division {
    let cores = usable(nodes, allowed);
    let numbers: BTreeSet<usize> = cores.iter().map(|core| core.1).collect();
    match (numbers.len(), ranks) {
        (0, _) => return Division::none("no NUMA node is known that has CPUs for them"),
        (1, _) => return Division::none("one NUMA node has all their CPUs"),
        (_, 0 | 1) => return Division::none("one rank has all CPUs of its host"),
        (_, ranks) if ranks > cores.len() => {
            return Division::none(format!("{ranks} ranks outnumber {} cores", cores.len()));
        }
        _ => {}
    }
    // In one node memory is near; but threads without a CPU cost more than memory that is not.
    let (near, even) = (within_nodes(&cores, ranks), in_a_row(&cores, ranks));
    let carries = |parts: &[&[Core]]| {
        parts.iter().map(|cores| threads.min(cores.iter().map(|core| core.0.len()).sum())).min()
    };
    let parts = if carries(&near) >= carries(&even) { near } else { even };
    Division { cpus: parts.iter().map(cpus).collect(), why: format!("bound: {}", words(&parts)) }
}

/// Binds ranks of `threads` threads each to the `allowed` CPUs of the nodes that their devices are
/// `near`. Ranks of one node share its CPUs: where a device works, a rank mostly waits.
pub fn near(nodes: &[Node], allowed: &[usize], near: &[Option<usize>], threads: usize) -> Division {
    let cores = usable(nodes, allowed);
    let numbers: BTreeSet<usize> = cores.iter().map(|core| core.1).collect();
    match numbers.len() {
        0 => return Division::none("no NUMA node is known that has CPUs for them"),
        1 => return Division::none("one NUMA node has all their CPUs"),
        _ => {}
    }
    let mut parts = Vec::new();
    for (rank, node) in near.iter().enumerate() {
        let Some(node) = node else {
            return Division::none(format!(
                "the NUMA node of the device of rank {rank} is unknown"
            ));
        };
        let part = cores.chunk_by(|a, b| a.1 == b.1).find(|part| part[0].1 == *node);
        let Some(part) = part else {
            return Division::none(format!(
                "they may use no CPU of NUMA node {node}, which the device of rank {rank} is near"
            ));
        };
        let cpus: usize = part.iter().map(|core| core.0.len()).sum();
        if threads > cpus {
            let node = format!("NUMA node {node}, which the device of rank {rank} is near");
            return Division::none(format!(
                "{threads} threads outnumber the {cpus} CPUs of {node}"
            ));
        }
        parts.push(part);
    }
    Division {
        cpus: parts.iter().map(cpus).collect(),
        why: format!("bound near their devices: {}", words(&parts)),
    }
}

/// The CPUs of cores, ascending.
fn cpus(part: &&[Core]) -> Vec<usize> {
    let mut cpus: Vec<usize> = part.iter().flat_map(|core| core.0.iter().copied()).collect();
    cpus.sort_unstable();
    cpus
}

/// The cores of which anything may be used, in the order of nodes.
fn usable(nodes: &[Node], allowed: &[usize]) -> Vec<Core> {
    let allowed: BTreeSet<usize> = allowed.iter().copied().collect();
    let may = |cpu: &usize| allowed.contains(cpu);
    let cores = nodes.iter().flat_map(|node| node.cores.iter().map(|core| (core, node.number)));
    let cores = cores.map(|(core, node)| (core.iter().copied().filter(may).collect(), node));
    cores.filter(|core: &Core| !core.0.is_empty()).collect()
}

/// So many runs of cores, whose sizes differ by one at most.
fn in_a_row(cores: &[Core], parts: usize) -> Vec<&[Core]> {
    let at = |part: usize| part * cores.len() / parts;
    (0..parts).map(|part| &cores[at(part)..at(part + 1)]).collect()
}

/// Each rank within a node: nodes get blocks of ranks by their cores, and a node's cores are
/// divided evenly among its ranks. No node gets more ranks than it has cores, where all together
/// do not.
fn within_nodes(cores: &[Core], ranks: usize) -> Vec<&[Core]> {
    let mut parts = Vec::new();
    let mut done = 0;
    for node in cores.chunk_by(|a, b| a.1 == b.1) {
        done += node.len();
        // To the nearest, up from the middle.
        let until = (2 * ranks * done + cores.len()) / (2 * cores.len());
        parts.extend(in_a_row(node, until - parts.len()));
    }
    parts
}

/// `ranks 0 to 3 in NUMA node 0, rank 4 in NUMA nodes 0 and 1`.
fn words(parts: &[&[Core]]) -> String {
    let nodes = |part: &[Core]| part.iter().map(|core| core.1).collect::<BTreeSet<_>>();
    let mut first = 0;
    let mut words = Vec::new();
    for block in parts.chunk_by(|a, b| nodes(a) == nodes(b)) {
        let last = first + block.len() - 1;
        let ranks = match block.len() {
            1 => format!("rank {first}"),
            _ => format!("ranks {first} to {last}"),
        };
        let numbers: Vec<String> = nodes(block[0]).iter().map(usize::to_string).collect();
        let plural = if numbers.len() > 1 { "s" } else { "" };
        words.push(format!("{ranks} in NUMA node{plural} {}", numbers.join(" and ")));
        first = last + 1;
    }
    words.join(", ")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Nodes of so many cores with so many CPUs each, numbered as Linux numbers siblings: the first
    /// of every core, then the second ones.
    fn host(cores: &[usize], siblings: usize) -> Vec<Node> {
        let all: usize = cores.iter().sum();
        let mut next = 0;
        let nodes = cores.iter().enumerate().map(|(number, &count)| {
            let firsts = next..next + count;
            next += count;
            let of = |first| (0..siblings).map(|sibling| first + sibling * all).collect();
            Node { number, cores: firsts.map(of).collect() }
        });
        nodes.collect()
    }

    fn all(nodes: &[Node]) -> Vec<usize> {
        nodes.iter().flat_map(|node| node.cores.iter().flatten().copied()).collect()
    }

    fn of(cores: &[usize], siblings: usize, ranks: usize, threads: usize) -> Division {
        let nodes = host(cores, siblings);
        divide(&nodes, &all(&nodes), ranks, threads)
    }

    /// As the kernel lists them.
    fn lists(division: &Division) -> String {
        let list = |cpus: &Vec<usize>| {
            let runs = cpus.chunk_by(|a, b| a + 1 == *b);
            let run = |run: &[usize]| match run {
                [one] => one.to_string(),
                run => format!("{}-{}", run[0], run[run.len() - 1]),
            };
            runs.map(run).collect::<Vec<_>>().join(",")
        };
        division.cpus.iter().map(list).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn ranks_lie_in_nodes_as_evenly_as_their_threads_need() {
        let two = |ranks, threads| lists(&of(&[8, 8], 1, ranks, threads));
        assert_eq!(two(2, 8), "0-7 8-15");
        assert_eq!(two(4, 4), "0-3 4-7 8-11 12-15");
        assert_eq!(two(3, 4), "0-3 4-7 8-15");
        assert_eq!(two(3, 5), "0-4 5-9 10-15");
        assert_eq!(two(16, 1).split(' ').count(), 16);
        // Siblings stay together, and count as CPUs of their rank.
        assert_eq!(lists(&of(&[2, 2], 2, 2, 4)), "0-1,4-5 2-3,6-7");
        assert_eq!(lists(&of(&[2, 2], 2, 4, 2)), "0,4 1,5 2,6 3,7");
        // Fewer ranks than nodes: all of them, or each its own.
        assert_eq!(lists(&of(&[2, 2, 2, 2], 1, 2, 4)), "0-3 4-7");
        assert_eq!(lists(&of(&[2, 2, 2, 2], 1, 2, 2)), "0-1 4-5");
        assert_eq!(lists(&of(&[6, 2], 1, 4, 1)), "0-1 2-3 4-5 6-7");
    }

    #[test]
    fn what_is_bound_is_said_and_why_not() {
        let why = |cores: &[usize], ranks, threads| of(cores, 1, ranks, threads).why;
        let words = "bound: ranks 0 to 1 in NUMA node 0, ranks 2 to 3 in NUMA node 1";
        assert_eq!(why(&[8, 8], 4, 4), words);
        let words = "bound: rank 0 in NUMA node 0, rank 1 in NUMA nodes 0 and 1, rank 2 in NUMA \
                     node 1";
        assert_eq!(why(&[8, 8], 3, 5), words);
        assert_eq!(why(&[8, 8], 1, 16), "not bound: one rank has all CPUs of its host");
        assert_eq!(why(&[2, 2], 5, 1), "not bound: 5 ranks outnumber 4 cores");
        assert_eq!(why(&[8], 2, 4), "not bound: one NUMA node has all their CPUs");
        assert_eq!(why(&[], 2, 4), "not bound: no NUMA node is known that has CPUs for them");
        // A task that may use one of two nodes.
        let nodes = host(&[4, 4], 1);
        let division = divide(&nodes, &[4, 5, 6, 7], 2, 2);
        assert_eq!(division, Division::none("one NUMA node has all their CPUs"));
        let division = divide(&nodes, &[1, 3, 4, 6], 2, 2);
        assert_eq!(division.cpus, [[1, 3], [4, 6]]);
    }

    #[test]
    fn ranks_are_near_their_devices_or_it_is_said_why_not() {
        let nodes = host(&[4, 4], 2);
        let of = |near: &[Option<usize>], threads| super::near(&nodes, &all(&nodes), near, threads);
        let division = of(&[Some(1), Some(0), Some(0)], 8);
        assert_eq!(lists(&division), "4-7,12-15 0-3,8-11 0-3,8-11");
        let why = "bound near their devices: rank 0 in NUMA node 1, ranks 1 to 2 in NUMA node 0";
        assert_eq!(division.why, why);
        assert_eq!(lists(&of(&[Some(1)], 1)), "4-7,12-15");
        let why = |near: &[Option<usize>], threads| of(near, threads).why;
        let words = "not bound: the NUMA node of the device of rank 1 is unknown";
        assert_eq!(why(&[Some(0), None], 1), words);
        let words = "not bound: 9 threads outnumber the 8 CPUs of NUMA node 1, which the device of \
                     rank 0 is near";
        assert_eq!(why(&[Some(1)], 9), words);
        let words = "not bound: they may use no CPU of NUMA node 2, which the device of rank 0 is \
                     near";
        assert_eq!(why(&[Some(2)], 1), words);
        let one = super::near(&host(&[4], 1), &[0, 1, 2, 3], &[Some(0)], 1);
        assert_eq!(one, Division::none("one NUMA node has all their CPUs"));
    }

    proptest! {
        #[test]
        fn every_rank_has_cores_of_its_own_or_none_is_bound(
            cores in prop::collection::vec(0_usize..9, 0..5),
            siblings in 1_usize..3,
            ranks in 0_usize..24,
            threads in 1_usize..12,
            forbidden in prop::collection::btree_set(0_usize..64, 0..40),
        ) {
            let nodes = host(&cores, siblings);
            let mut allowed = all(&nodes);
            allowed.retain(|cpu| !forbidden.contains(cpu));
            let division = divide(&nodes, &allowed, ranks, threads);
            let usable = usable(&nodes, &allowed);
            let has_several = usable.chunk_by(|a, b| a.1 == b.1).count() > 1;
            let is_bound = has_several && ranks > 1 && ranks <= usable.len();
            prop_assert_eq!(division.cpus.len(), if is_bound { ranks } else { 0 });
            prop_assert_eq!(division.why.starts_with("bound: "), is_bound);
            let mut taken: Vec<usize> = division.cpus.iter().flatten().copied().collect();
            taken.sort_unstable();
            let before = taken.len();
            taken.dedup();
            prop_assert_eq!(taken.len(), before, "no CPU belongs to two");
            prop_assert!(taken.iter().all(|cpu| allowed.contains(cpu)));
            let holders = |core: &Core| {
                let of_it = |cpus: &&Vec<usize>| core.0.iter().any(|cpu| cpus.contains(cpu));
                division.cpus.iter().filter(of_it).count()
            };
            prop_assert!(usable.iter().all(|core| holders(core) <= 1), "siblings stay together");
            for cpus in &division.cpus {
                prop_assert!(!cpus.is_empty() && cpus.is_sorted());
                // Any share of a node carries one thread.
                if threads == 1 {
                    let node = |cpu: &usize| usable.iter().find(|c| c.0.contains(cpu)).unwrap().1;
                    let of_it: BTreeSet<usize> = cpus.iter().map(node).collect();
                    prop_assert_eq!(of_it.len(), 1);
                }
            }
            // It depends on its arguments alone, and not on the order of the CPUs that are allowed.
            allowed.reverse();
            prop_assert_eq!(divide(&nodes, &allowed, ranks, threads), division);
        }
    }
}
