//! Which CPUs the ranks of this host run on, so that each is near its memory: what the system says,
//! what is decided of that, and a rank that binds itself.
//!
//! ```text
//! supervisor: mask, topology ─▶ divide ─▶ Binding ─▶ job file ─▶ rank: bind, then threads
//! ```
//!
//! Linux takes a page from the node on which it is first touched or reserved, so a rank that is
//! bound before it starts threads or reserves windows has all its memory in its node.

mod divide;
mod topology;

use std::collections::BTreeSet;
use std::path::Path;

use device::{Device, DeviceKind};
use serde::{Deserialize, Serialize};
use train::config::Cpus;

use crate::error::CliError;
use crate::train_cmd::place::Place;
use divide::Division;
pub use topology::list;

/// The CPUs that the ranks of this host are bound to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binding {
    /// Of each rank from `first_rank` on; empty where none is bound.
    cpus: Vec<Vec<usize>>,
    first_rank: usize,
    /// The CPUs that are bound, or why none are.
    pub why: String,
    /// Cores that the job's ranks on this machine have together, see [`comm::Settings::cores`].
    pub cores: usize,
}

/// The place that the ranks of a host are to be near.
#[derive(Debug, Clone, Copy)]
pub enum Near<'a> {
    /// Memory, of which each has a part.
    Memory,
    /// A device that all use beside memory: no part of it is nearer to one than to another.
    Shared,
    /// Devices that have their buffers, dealt in turn.
    Devices(&'a [DeviceKind]),
}

impl Binding {
    /// Decides for this host's ranks of `threads` threads each; `root` is where tests describe a
    /// host, and in `pci` there its devices.
    pub fn new(
        asked: Cpus,
        place: &Place,
        threads: usize,
        near: Near,
        root: Option<&Path>,
    ) -> Binding {
        let devices = root.map_or(topology::DEVICES.into(), |root| root.join("pci"));
        let root = root.unwrap_or(Path::new(topology::ROOT));
        let divided = || {
            let refused = |error| format!("the system does not allow it ({error})");
            let allowed = system::allowed().map_err(refused)?;
            let (nodes, ranks) = (topology::nodes(root), place.ranks.len());
            let division = match near {
                // Of one node nothing is asked of a driver, which may hang.
                Near::Devices(kinds) if !kinds.is_empty() && nodes.len() > 1 => {
                    let of = kinds.iter().map(|&kind| node_of(kind, &devices));
                    let of: Vec<Option<usize>> = of.collect();
                    let near: Vec<_> = of.into_iter().cycle().take(ranks).collect();
                    divide::near(&nodes, &allowed, &near, threads)
                }
                _ => divide::divide(&nodes, &allowed, ranks, threads),
            };
            match division.cpus.is_empty() {
                true => Ok(division),
                // To what it may use anyway: some containers refuse the call.
                false => system::bind(&allowed).map(|()| division).map_err(refused),
            }
        };
        let Division { cpus, why } = match (asked, place.may_bind()) {
            (Cpus::Any, _) => Division::none("as asked"),
            (Cpus::Auto, _) if matches!(near, Near::Shared) => {
                Division::none("ranks share a device beside their memory")
            }
            (Cpus::Auto, Err(why)) => Division::none(why),
            (Cpus::Auto, Ok(())) => divided().unwrap_or_else(Division::none),
        };
        // Ranks that share a node's CPUs have no others.
        let shared: BTreeSet<usize> = cpus.iter().flatten().copied().collect();
        let most = if shared.is_empty() { usize::MAX } else { shared.len() };
        let cores = place.cores_together().min(most);
        Binding { cpus, first_rank: place.ranks.start, why, cores }
    }

    /// Binds this process to the CPUs of `rank`, if it has some: the calling thread, and those that
    /// it starts from here on.
    ///
    /// # Errors
    /// The CPUs have been taken from this process meanwhile.
    pub fn bind(&self, rank: usize) -> Result<(), CliError> {
        let cpus = rank.checked_sub(self.first_rank).and_then(|place| self.cpus.get(place));
        let Some(cpus) = cpus else { return Ok(()) };
        system::bind(cpus).map_err(|error| {
            CliError::peer(format!(
                "rank {rank} cannot be bound to CPUs {cpus:?}: {error}; leave that to the \
                 scheduler by --cpus any"
            ))
        })
    }
}

/// The node that a device is near. One that cannot be found is told when it is opened.
fn node_of(kind: DeviceKind, devices: &Path) -> Option<usize> {
    topology::node_of(devices, &Device::bus_of(kind).ok()?)
}

#[cfg(target_os = "linux")]
mod system {
    use std::io::{Error, ErrorKind, Result};

    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

    /// The CPUs that this process may use.
    pub fn allowed() -> Result<Vec<usize>> {
        let set = sched_getaffinity(None)?;
        Ok((0..CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect())
    }

    pub fn bind(cpus: &[usize]) -> Result<()> {
        let mut set = CpuSet::new();
        for &cpu in cpus {
            if cpu >= CpuSet::MAX_CPU {
                return Err(Error::new(ErrorKind::InvalidInput, format!("there is no CPU {cpu}")));
            }
            set.set(cpu);
        }
        Ok(sched_setaffinity(None, &set)?)
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    use std::io::{ErrorKind, Result};

    pub fn allowed() -> Result<Vec<usize>> {
        Err(ErrorKind::Unsupported.into())
    }

    pub fn bind(_: &[usize]) -> Result<()> {
        Err(ErrorKind::Unsupported.into())
    }
}
