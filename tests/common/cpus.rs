//! The CPUs of this host, and the description of another.

use std::path::Path;

use super::{Workdir, skip};

/// The CPUs that a thread or process may use, as `/proc` lists them; none of one that has ended.
pub fn list(of: &Path) -> Option<String> {
    let status = std::fs::read_to_string(of.join("status")).ok()?;
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    Some(list.unwrap().trim().to_owned())
}

/// Two CPUs that this process may use; none, said once, where it has one alone.
pub fn two_cpus() -> Option<[String; 2]> {
    let list = list(Path::new("/proc/self")).unwrap();
    let cpus = list.split(',').flat_map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        first.parse::<usize>().unwrap()..=last.parse().unwrap()
    });
    let two: Vec<String> = cpus.take(2).map(|cpu| cpu.to_string()).collect();
    two.try_into().map_err(|_| skip("there is one CPU")).ok()
}

/// Describes a host whose nodes 0 and 1 have one of these CPUs each; returns the arguments for it.
pub fn two_nodes(run: &Workdir, cpus: &[String; 2]) -> [&'static str; 2] {
    for (node, cpu) in cpus.iter().enumerate() {
        let dir = run.path().join(format!("host/node/node{node}"));
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("cpulist"), format!("{cpu}\n")).unwrap();
    }
    ["--topology", "host"]
}
