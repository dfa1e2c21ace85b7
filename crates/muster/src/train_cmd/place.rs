//! Where this host stands among the hosts of a job, and what it says of that.

use std::net::SocketAddr;
use std::ops::Range;

use crate::cpus::list as cpus_in;
use crate::error::CliError;
use crate::launch_env::Hosts;

/// Where this host stands.
pub struct Place {
    pub nodes: usize,
    pub node: usize,
    /// Ranks that this host starts.
    pub ranks: Range<usize>,
    /// Hosts of the job on this machine.
    beside: usize,
}

/// Ranks that divide something, and how many such parts the job has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    pub ranks: usize,
    pub parts: usize,
}

impl Place {
    /// Of a job of `world` ranks, on as many hosts as the command says.
    ///
    /// # Errors
    /// A host that is none of them; ranks that do not divide; memory that other hosts do not share.
    pub fn new(hosts: &Hosts, world: usize, is_shm: bool) -> Result<Place, CliError> {
        let &Hosts { nodes, node, beside, .. } = hosts;
        let refuse = |what: String| Err(CliError::mistake(what));
        if nodes == 0 || node >= nodes {
            return refuse(format!(
                "--node-rank {node} is not one of {nodes} nodes; nodes count from 0"
            ));
        }
        if !world.is_multiple_of(nodes) {
            // More than there are may be too many for the batch.
            let near = (world / nodes).max(1) * nodes;
            return refuse(format!(
                "{world} ranks do not divide over {nodes} nodes; use --ranks {near}"
            ));
        }
        if nodes > 1 && is_shm {
            return refuse(match beside > 1 {
                true => "ranks share memory only with those that the same process starts, and a \
                         launcher started several here; use --backend tcp, or one task per machine"
                    .into(),
                false => "shared memory does not reach other hosts; use --backend tcp".into(),
            });
        }
        if hosts.bind.is_some() && is_shm {
            return refuse(
                "--bind: over shared memory no rank listens; leave it out, or use --backend tcp"
                    .into(),
            );
        }
        let share = world / nodes;
        Ok(Place { nodes, node, ranks: node * share..(node + 1) * share, beside })
    }

    /// The number of this host, and of how many, if there are several.
    pub fn among_hosts(&self) -> Option<(usize, usize)> {
        (self.nodes > 1).then_some((self.node, self.nodes))
    }

    /// How many ranks each host has that share memory beside tcp, where they are to: ranks of one
    /// host alone are connected as asked, and one rank has nobody to share with.
    pub fn sharing(&self, over_tcp: bool, within_host: bool) -> Option<usize> {
        let is_so = over_tcp && within_host && cfg!(target_os = "linux");
        Some(self.ranks.len()).filter(|&each| is_so && self.nodes > 1 && each > 1)
    }

    /// Whose the machine's memory is.
    pub fn of_machine(&self) -> Share {
        let Place { nodes, ranks, beside, .. } = self;
        Share { ranks: ranks.len() * beside, parts: nodes.div_ceil(*beside) }
    }

    /// Whose the cores are that this process may use.
    pub fn of_cores(&self) -> Share {
        self.of_cores_where(Cores::seen())
    }

    /// Threads of each rank: as `asked`, or if that is 0 this host's cores divided among its ranks.
    pub fn threads(&self, asked: usize) -> usize {
        let cores = Cores::seen();
        match asked {
            0 => (cores.mine / self.of_cores_where(cores).ranks.max(1)).max(1),
            asked => asked,
        }
    }

    /// A launcher that binds tasks to cores gave each its own, if all such parts fit beside each
    /// other.
    fn has_own(&self, Cores { mine, in_sight }: Cores) -> bool {
        self.beside > 1 && mine.saturating_mul(self.beside) <= in_sight
    }

    fn of_cores_where(&self, cores: Cores) -> Share {
        match self.has_own(cores) {
            true => Share { ranks: self.ranks.len(), parts: self.nodes },
            false => self.of_machine(),
        }
    }

    /// Cores that all ranks of the job on this machine have together. What other tasks may use
    /// cannot be seen from here: where this one has cores of its own, so have they, and as many.
    pub fn cores_together(&self) -> usize {
        self.cores_together_where(Cores::seen())
    }

    fn cores_together_where(&self, cores: Cores) -> usize {
        match self.has_own(cores) {
            true => cores.mine * self.beside,
            false => cores.mine,
        }
    }

    /// Whether this process may divide the CPUs that are open to it among its ranks, or why not.
    ///
    /// # Errors
    /// The reason.
    pub fn may_bind(&self) -> Result<(), String> {
        self.may_bind_where(Cores::seen())
    }

    fn may_bind_where(&self, cores: Cores) -> Result<(), String> {
        match (self.beside > 1, self.has_own(cores), self.ranks.len()) {
            (true, true, 1) => Err("the launcher gave each rank CPUs of its own".into()),
            (true, false, _) => Err(format!(
                "{} tasks of a launcher share the CPUs of this machine, and it can bind them",
                self.beside
            )),
            _ => Ok(()),
        }
    }

    /// Where there is nothing else to see: host 0 `shows` it.
    pub fn says_it_joins(&self, rendezvous: &[SocketAddr], world: usize, shows: &str) {
        let Place { nodes, node, ranks, .. } = self;
        if *node > 0 {
            crate::output::tell(&format!(
                "node {node} of {nodes}: ranks {} to {} of {} meet the others at {}; node 0 \
                 {shows}",
                ranks.start,
                ranks.end - 1,
                world,
                list(rendezvous),
            ));
        }
    }

    /// The message where the others are late; on one host there are none.
    pub fn waits(&self, rendezvous: &[SocketAddr], timeout_ms: u64) -> Option<String> {
        let at = list(rendezvous);
        let most_s = timeout_ms.div_ceil(1000);
        let what = match self.node {
            0 => format!("waiting at {at} for the other hosts"),
            _ => format!("waiting for node 0 at {at} and the other hosts"),
        };
        (self.nodes > 1).then(|| format!("node {}: {what}, for {most_s} s at most", self.node))
    }

    pub fn says_it_is_done(&self) {
        if self.node > 0 {
            crate::output::tell(&format!("node {}: its ranks are done", self.node));
        }
    }
}

/// Addresses in words.
pub fn list(addrs: &[SocketAddr]) -> String {
    let texts: Vec<String> = addrs.iter().map(ToString::to_string).collect();
    texts.join(" or ")
}

/// How many cores there are.
#[derive(Debug, Clone, Copy)]
struct Cores {
    /// Open to this process.
    mine: usize,
    /// Of the machine, or the container.
    in_sight: usize,
}

impl Cores {
    fn seen() -> Cores {
        let mine = crate::limits::cores();
        let read = |path| std::fs::read_to_string(path).ok();
        Cores { mine, in_sight: in_sight(read).unwrap_or(mine) }
    }
}

/// Cores of the machine or, in a container, of that: what the top of the control groups in sight
/// allows, which on the machine itself is everything (`cgroups(7)`, versions 2 and 1).
fn in_sight(read: impl Fn(&'static str) -> Option<String>) -> Option<usize> {
    let lists = [
        "/sys/devices/system/cpu/online",
        "/sys/fs/cgroup/cpuset.cpus.effective",
        "/sys/fs/cgroup/cpuset/cpuset.effective_cpus",
    ];
    let listed = lists.into_iter().filter_map(|path| Some(cpus_in(&read(path)?)?.len()));
    let number = |path| read(path)?.trim().parse::<usize>().ok();
    let second = || {
        let quota = number("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")?;
        quota.checked_div(number("/sys/fs/cgroup/cpu/cpu.cfs_period_us")?)
    };
    let quota = read("/sys/fs/cgroup/cpu.max").and_then(|text| quota(&text)).or_else(second);
    listed.chain(quota.map(|cores| cores.max(1))).min()
}

/// Whole cores of a `cpu.max`: `400000 100000`, or `max 100000`.
fn quota(text: &str) -> Option<usize> {
    let (quota, period) = text.trim().split_once(' ')?;
    quota.parse::<usize>().ok()?.checked_div(period.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(nodes: usize, beside: usize, share: usize) -> Place {
        Place { nodes, node: 0, ranks: 0..share, beside }
    }

    fn cores(mine: usize, in_sight: usize) -> Cores {
        Cores { mine, in_sight }
    }

    #[test]
    fn ranks_of_several_hosts_share_memory_unless_asked_otherwise() {
        let linux = cfg!(target_os = "linux");
        assert_eq!(place(2, 1, 4).sharing(true, true), linux.then_some(4));
        let without = [
            place(2, 1, 4).sharing(true, false),
            place(2, 1, 4).sharing(false, true),
            place(1, 1, 4).sharing(true, true),
            place(2, 1, 1).sharing(true, true),
        ];
        assert_eq!(without, [None; 4]);
    }

    #[test]
    fn tasks_on_one_machine_divide_its_memory_and_cores() {
        let share = |ranks, parts| Share { ranks, parts };
        assert_eq!(place(2, 1, 4).of_machine(), share(4, 2));
        assert_eq!(place(16, 8, 1).of_machine(), share(8, 2));
        // On 32 cores: all open to each of eight, or four of them to each.
        assert_eq!(place(16, 8, 1).of_cores_where(cores(32, 32)), share(8, 2));
        assert_eq!(place(16, 8, 1).of_cores_where(cores(4, 32)), share(1, 16));
        // Eight tasks in a container of four cores, by list or by quota, of version 2 or 1.
        let online = ("/sys/devices/system/cpu/online", "0-31");
        let containers: [&[(&str, &str)]; 4] = [
            &[online, ("/sys/fs/cgroup/cpuset.cpus.effective", "4-7")],
            &[online, ("/sys/fs/cgroup/cpu.max", "400000 100000\n")],
            &[online, ("/sys/fs/cgroup/cpuset/cpuset.effective_cpus", "0,2,4,6\n")],
            &[
                online,
                ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "400000"),
                ("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000"),
            ],
        ];
        let of = |files: &[(&str, &str)]| {
            in_sight(|path| {
                let (_, text) = files.iter().find(|(known, _)| *known == path)?;
                Some((*text).to_owned())
            })
        };
        for files in containers {
            assert_eq!(of(files), Some(4), "{files:?}");
            assert_eq!(place(16, 8, 1).of_cores_where(cores(4, 4)), share(8, 2));
        }
        let whole = [online, ("/sys/fs/cgroup/cpu.max", "max 100000")];
        assert_eq!(of(&whole), Some(32));
        assert_eq!(of(&[online, ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1")]), Some(32));
        assert_eq!(of(&[]), None);
        // One task in a container with part of the machine.
        assert_eq!(place(2, 1, 4).of_cores_where(cores(4, 32)), share(4, 2));
    }

    #[test]
    fn a_launcher_that_has_bound_its_tasks_or_could_have_is_left_alone() {
        let of = |beside, share, cores| {
            let place = place(16, beside, share);
            (place.may_bind_where(cores).err(), place.cores_together_where(cores))
        };
        let why = |why: &str| Some(why.to_owned());
        let own = why("the launcher gave each rank CPUs of its own");
        assert_eq!(of(8, 1, cores(4, 32)), (own, 32));
        let open =
            why("8 tasks of a launcher share the CPUs of this machine, and it can bind them");
        assert_eq!(of(8, 1, cores(32, 32)), (open.clone(), 32));
        assert_eq!(of(8, 2, cores(32, 32)), (open, 32));
        // One task for each socket, say, of which each has several ranks; and a host's only one.
        assert_eq!(of(2, 4, cores(16, 32)), (None, 32));
        assert_eq!(of(1, 4, cores(16, 32)), (None, 16));
    }
}
