//! The host's NUMA nodes, the CPUs of each and the devices near it, as Linux describes them below
//! two directories (`Documentation/ABI/stable/sysfs-devices-node`, `sysfs-devices-system-cpu`,
//! `testing/sysfs-bus-pci`).
//!
//! ```text
//! node/node1/cpulist                        16-31,48-63    CPUs of node 1
//! cpu/cpu16/topology/thread_siblings_list   16,48          those that share the core of CPU 16
//! 0000:65:00.0/numa_node                    1              the node of that device; -1 of none
//! ```

use std::path::Path;

/// Where Linux has nodes and CPUs, and where devices.
pub const ROOT: &str = "/sys/devices/system";
pub const DEVICES: &str = "/sys/bus/pci/devices";

/// More than any kernel is built for; a list that has higher numbers is none of the kernel's.
const CPUS_MOST: usize = 1 << 16;

/// A NUMA node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    pub number: usize,
    /// CPUs of each core, in the order of the first of each.
    pub cores: Vec<Vec<usize>>,
}

/// The nodes that have CPUs, in order; none where nothing describes them.
pub fn nodes(root: &Path) -> Vec<Node> {
    let entries = std::fs::read_dir(root.join("node")).into_iter().flatten().flatten();
    let node = |entry: std::fs::DirEntry| {
        let number = entry.file_name().to_str()?.strip_prefix("node")?.parse().ok()?;
        let cpus = listed(&entry.path().join("cpulist"))?;
        Some(Node { number, cores: cores(cpus, |cpu| siblings(root, cpu)) })
    };
    let mut nodes: Vec<Node> = entries.filter_map(node).collect();
    nodes.sort_by_key(|node| node.number);
    nodes
}

/// The node that a device is near, by its place on the bus; none where nothing says so.
pub fn node_of(devices: &Path, bus: &str) -> Option<usize> {
    // No name leads elsewhere.
    let is_name =
        !bus.is_empty() && bus.bytes().all(|b| b.is_ascii_hexdigit() || b":.".contains(&b));
    let text = std::fs::read_to_string(devices.join(bus).join("numa_node"));
    text.ok().filter(|_| is_name)?.trim().parse().ok()
}

/// The CPUs that share a core with this one, if that is known.
fn siblings(root: &Path, cpu: usize) -> Vec<usize> {
    listed(&root.join(format!("cpu/cpu{cpu}/topology/thread_siblings_list"))).unwrap_or_default()
}

/// Divides the CPUs of a node into cores.
fn cores(mut cpus: Vec<usize>, siblings: impl Fn(usize) -> Vec<usize>) -> Vec<Vec<usize>> {
    let mut cores = Vec::new();
    while let Some(&first) = cpus.first() {
        let with = siblings(first);
        let is_of_it = |cpu: &usize| *cpu == first || with.contains(cpu);
        let (core, rest): (Vec<usize>, _) = cpus.into_iter().partition(is_of_it);
        cores.push(core);
        cpus = rest;
    }
    cores
}

fn listed(path: &Path) -> Option<Vec<usize>> {
    list(&std::fs::read_to_string(path).ok()?)
}

/// The CPUs in a list of the kernel's, `0-31,40`, ascending; none if it has none or is no list.
pub fn list(text: &str) -> Option<Vec<usize>> {
    let mut cpus = Vec::new();
    for range in text.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last) = (first.parse::<usize>().ok()?, last.parse::<usize>().ok()?);
        if first > last || last >= CPUS_MOST {
            return None;
        }
        cpus.extend(first..=last);
    }
    cpus.sort_unstable();
    cpus.dedup();
    Some(cpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory with these files.
    fn host(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, format!("{text}\n")).unwrap();
        }
        root
    }

    fn of(files: &[(&str, &str)]) -> Vec<(usize, Vec<Vec<usize>>)> {
        let nodes = nodes(host(files).path());
        nodes.into_iter().map(|node| (node.number, node.cores)).collect()
    }

    #[test]
    fn lists_are_those_of_the_kernel() {
        assert_eq!(list("0-3,8\n"), Some(vec![0, 1, 2, 3, 8]));
        assert_eq!(list("5,0-1"), Some(vec![0, 1, 5]));
        for none in ["", "\n", "3-1", "a", "1-", "0-99999999999", "0,,1"] {
            assert_eq!(list(none), None, "{none:?}");
        }
    }

    #[test]
    fn nodes_are_read_in_order_and_those_without_cpus_left_out() {
        assert_eq!(of(&[("node/node0/cpulist", "0-1")]), [(0, vec![vec![0], vec![1]])]);
        let many = [
            ("node/node10/cpulist", "4"),
            ("node/node2/cpulist", "2-3"),
            // Memory alone, as of an accelerator or behind a link.
            ("node/node3/cpulist", ""),
            ("node/online", "2-3,10"),
            ("node/has_cpu", "2,10"),
        ];
        assert_eq!(of(&many), [(2, vec![vec![2], vec![3]]), (10, vec![vec![4]])]);
        assert_eq!(of(&[("cpu/online", "0-1")]), []);
        assert_eq!(nodes(Path::new("/no/such/directory")), []);
    }

    #[test]
    fn a_device_is_near_the_node_that_is_said() {
        let root = host(&[
            ("0000:65:00.0/numa_node", "1"),
            ("0000:66:00.0/numa_node", "-1"),
            ("0000:67:00.0/class", "0x030200"),
            ("numa_node", "0"),
        ]);
        let of = |bus| node_of(root.path(), bus);
        assert_eq!((of("0000:65:00.0"), of("0000:66:00.0")), (Some(1), None));
        assert_eq!((of("0000:67:00.0"), of("0000:68:00.0"), of("")), (None, None, None));
    }

    #[test]
    fn siblings_are_one_core() {
        let two_nodes = [
            ("node/node0/cpulist", "0-1,4-5"),
            ("node/node1/cpulist", "2-3,6"),
            ("cpu/cpu0/topology/thread_siblings_list", "0,4"),
            ("cpu/cpu1/topology/thread_siblings_list", "1,5"),
            ("cpu/cpu2/topology/thread_siblings_list", "2,6"),
            // Its sibling is off line, and in no list of a node.
            ("cpu/cpu3/topology/thread_siblings_list", "3,7"),
        ];
        let cores = [vec![vec![0, 4], vec![1, 5]], vec![vec![2, 6], vec![3]]];
        assert_eq!(of(&two_nodes), [(0, cores[0].clone()), (1, cores[1].clone())]);
    }
}
