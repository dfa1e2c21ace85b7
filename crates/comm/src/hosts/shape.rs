//! How the members of a group lie on hosts, and so what connects them: a pure function.

/// Fewest bytes of a window that go by hosts: below, the meetings in shared memory cost more than
/// the bytes that they save. Two hosts of two ranks, all on two busy cores and the loopback
/// interface, which takes no bytes off a network; the shortest time of flat over that by hosts:
///
/// ```text
///           all_reduce   reduce_scatter   all_gather   broadcast
/// 256 KiB         0.69             0.93         0.96        0.66
/// 2 MiB           1.96             1.39         1.50        1.28
/// ```
pub const BY_HOSTS_BYTES: usize = 512 << 10;

/// Hosts with as many neighbouring members each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hosts {
    pub count: usize,
    /// Members of each.
    pub each: usize,
    /// Fewest bytes that go by hosts.
    pub from_bytes: usize,
}

/// The layout of a group's connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Memory of the one host.
    OneHost,
    ByHosts(Hosts),
    /// Frames alone.
    Flat,
}

impl Hosts {
    /// The host of the member at `place`, and its column.
    pub(crate) fn of(self, place: usize) -> (usize, usize) {
        (place / self.each, place % self.each)
    }

    pub(crate) fn place(self, host: usize, column: usize) -> usize {
        host * self.each + column
    }

    /// Whether so many bytes of a window go by hosts.
    pub(crate) fn carry(self, bytes: usize) -> bool {
        bytes >= self.from_bytes
    }
}

/// The shape of a group of these ranks, where rank `r` of the job is on host `host_of[r]`, and why.
pub(crate) fn shape(ranks: &[usize], host_of: &[usize], from_bytes: usize) -> (Shape, String) {
    let hosts: Vec<usize> = ranks.iter().map(|&rank| host_of[rank]).collect();
    let runs: Vec<&[usize]> = hosts.chunk_by(|a, b| a == b).collect();
    let (first, count) = (runs.first().map_or(0, |run| run.len()), runs.len());
    if count <= 1 {
        return (Shape::OneHost, "all ranks are on one host".into());
    }
    let mut seen: Vec<usize> = runs.iter().map(|run| run[0]).collect();
    seen.sort_unstable();
    let twice = seen.windows(2).find(|pair| pair[0] == pair[1]);
    if let Some(pair) = twice {
        let host = pair[0];
        return (Shape::Flat, format!("the ranks of host {host} do not follow one another"));
    }
    if let Some(other) = runs.iter().find(|run| run.len() != first) {
        let (one, two) = (runs[0][0], other[0]);
        let (most, least) = (first, other.len());
        let why = format!("{most} of the ranks are on host {one}, and {least} on host {two}");
        return (Shape::Flat, why);
    }
    if first == 1 {
        return (Shape::Flat, "each rank is on a host of its own".into());
    }
    let hosts = Hosts { count, each: first, from_bytes };
    (Shape::ByHosts(hosts), "as many ranks on each host".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn even_neighbours_go_by_hosts_and_all_else_flat() {
        let of = |ranks: &[usize], host_of: &[usize]| shape(ranks, host_of, 0);
        let hosts = |count, each| Shape::ByHosts(Hosts { count, each, from_bytes: 0 });
        assert_eq!(of(&[0, 1, 2, 3], &[0, 0, 1, 1]).0, hosts(2, 2));
        assert_eq!(of(&[3, 2, 0, 1], &[0, 0, 1, 1]).0, hosts(2, 2));
        assert_eq!(of(&[0, 1, 3, 4, 6, 7], &[0, 0, 0, 1, 1, 1, 2, 2, 2]).0, hosts(3, 2));
        assert_eq!(of(&[1, 0], &[0, 0, 1, 1]).0, Shape::OneHost);
        assert_eq!(of(&[2], &[0, 0, 1, 1]).0, Shape::OneHost);
        let flat = [
            (of(&[0, 2], &[0, 0, 1, 1]), "each rank is on a host of its own"),
            (of(&[0, 1, 2], &[0, 0, 1]), "2 of the ranks are on host 0, and 1 on host 1"),
            (of(&[0, 2, 1, 3], &[0, 0, 1, 1]), "the ranks of host 0 do not follow one another"),
        ];
        for ((shape, why), expected) in flat {
            assert_eq!((shape, why.as_str()), (Shape::Flat, expected));
        }
    }

    #[test]
    fn places_count_through_the_hosts() {
        let hosts = Hosts { count: 3, each: 2, from_bytes: 0 };
        for place in 0..6 {
            let (host, column) = hosts.of(place);
            assert_eq!(hosts.place(host, column), place);
        }
        assert_eq!(hosts.of(3), (1, 1));
    }
}
