//! Which transport a group gets: a pure function of what its members have said of themselves, so
//! that all of them come to the same.

use nccl_rs::{Vendor, Version};

use super::facts::{Facts, Maker, SHARE};
use super::{DeviceTransport, SumOrder};
use crate::error::ranks;

/// Since when several ranks may share a GPU, if the environment says so.
const SHARING: Version = Version::new(2, 30, 0);

/// The way that a group uses, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) way: Way,
    pub(crate) reason: String,
    /// Whether all members have memory of the host, or none.
    pub(crate) is_alike: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// The transport that connects the ranks, on memory of the host.
    Host,
    /// The same, and copies.
    Staged,
    Library(Vendor),
}

impl Way {
    pub(crate) fn is_library(self) -> bool {
        matches!(self, Way::Library(_))
    }
}

/// Why a group cannot have what was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Ranks by value.
    #[error(
        "the ranks of a group ask for different {what}: {}; give all of them the same",
        list(groups)
    )]
    Options { what: &'static str, groups: Vec<(String, Vec<usize>)> },
    #[error(
        "{} cannot use {library}: {device} is no GPU of its vendor; use --transport {other}, \
        or auto",
        ranks(ranks_of)
    )]
    Device { ranks_of: Vec<usize>, device: String, library: Vendor, other: &'static str },
    #[error("{} cannot use {library}: {reason}; or use --transport staged", ranks(ranks_of))]
    Library { ranks_of: Vec<usize>, library: Vendor, reason: String },
    #[error(
        "the ranks of a group have different builds of {library}: {}; give all of them the \
        same one, or use --transport staged",
        list(groups)
    )]
    Versions { library: Vendor, groups: Vec<(String, Vec<usize>)> },
    #[error("{} share the GPU at {bus}, which {library} {version} refuses: give each rank a GPU of \
        its own, {}, or use --transport staged", ranks(ranks_of), permission(*version))]
    SharedGpu { ranks_of: Vec<usize>, bus: String, library: Vendor, version: Version },
}

fn list(groups: &[(String, Vec<usize>)]) -> String {
    let each = groups.iter().map(|(value, members)| format!("{value} on {}", ranks(members)));
    each.collect::<Vec<String>>().join(", ")
}

fn permission(version: Version) -> String {
    match version >= SHARING {
        true => format!("or set {SHARE}=1 on all of them"),
        false => format!("or use {SHARING} or later with {SHARE}=1"),
    }
}

/// Returns the way that the group of these members uses; each is its rank and its facts.
///
/// # Errors
/// The way that was asked for is impossible.
pub(crate) fn choose(members: &[(usize, Facts)]) -> Result<Choice, Refusal> {
    let asked = same("transports", members, |facts| facts.options.transport.to_string())?;
    let sums = same("orders of sums", members, |facts| facts.options.sum.to_string())?;
    let asked = asked.parse().unwrap_or(DeviceTransport::Auto);
    let is_host = members.iter().all(|(_, facts)| facts.maker == Maker::Host);
    let without = if is_host { Way::Host } else { Way::Staged };
    let is_alike = is_host || members.iter().all(|(_, facts)| facts.maker != Maker::Host);
    let choice = |way, reason: String| Ok(Choice { way, reason, is_alike });
    let problem = match asked {
        DeviceTransport::Auto if is_host => {
            return choice(Way::Host, "the memory is the host's".to_owned());
        }
        DeviceTransport::Staged => return choice(without, "as asked for".to_owned()),
        DeviceTransport::Auto => {
            let found = members.iter().find_map(|(_, facts)| facts.maker.vendor());
            let Some(vendor) = found else {
                return choice(Way::Staged, "simulated devices have no such library".to_owned());
            };
            match usable(vendor, members) {
                Ok(version) => {
                    let reason = format!("all ranks have {vendor} {version}");
                    return choice(Way::Library(vendor), reason);
                }
                Err(problem) => problem,
            }
        }
        DeviceTransport::Nccl | DeviceTransport::Rccl => {
            let is_nccl = asked == DeviceTransport::Nccl;
            let vendor = if is_nccl { Vendor::Nvidia } else { Vendor::Amd };
            usable(vendor, members)?;
            return choice(Way::Library(vendor), "as asked for".to_owned());
        }
    };
    if sums == SumOrder::Vendor.name() {
        // Else it would depend on the machine whose sums a run has.
        return Err(problem);
    }
    choice(Way::Staged, problem.to_string())
}

/// The version of the library, if all members can use it together.
fn usable(vendor: Vendor, members: &[(usize, Facts)]) -> Result<Version, Refusal> {
    let is_other = |(_, facts): &&(usize, Facts)| facts.maker.vendor() != Some(vendor);
    if let Some((_, first)) = members.iter().find(is_other) {
        let same = members.iter().filter(|(_, facts)| facts.device == first.device);
        let ranks_of = same.map(|(rank, _)| *rank).collect();
        let other = match first.maker {
            Maker::Nvidia => "nccl",
            Maker::Amd => "rccl",
            Maker::Simulated | Maker::Host => "staged",
        };
        let device = first.device.clone();
        return Err(Refusal::Device { ranks_of, device, library: vendor, other });
    }
    let missing = |facts: &Facts| match &facts.library {
        Some(Ok(_)) => None,
        Some(Err(reason)) => Some(reason.clone()),
        None => Some("it was not looked for".to_owned()),
    };
    if let Some(reason) = members.iter().find_map(|(_, facts)| missing(facts)) {
        let same = members.iter().filter(|(_, facts)| missing(facts).as_ref() == Some(&reason));
        let ranks_of = same.map(|(rank, _)| *rank).collect();
        return Err(Refusal::Library { ranks_of, library: vendor, reason });
    }
    let code = |facts: &Facts| facts.library.clone().and_then(Result::ok).unwrap_or(0);
    let groups = by_value(members, |facts| {
        let version = Version::from_code(code(facts));
        match facts.lacks.is_empty() {
            true => version.to_string(),
            false => format!("{version} (without {})", facts.lacks.join(", ")),
        }
    });
    if groups.len() > 1 {
        return Err(Refusal::Versions { library: vendor, groups });
    }
    let version = members.first().map_or(0, |(_, facts)| code(facts));
    let version = Version::from_code(version);
    match shared_gpu(version, members) {
        Some((bus, ranks_of)) => {
            Err(Refusal::SharedGpu { ranks_of, bus, library: vendor, version })
        }
        None => Ok(version),
    }
}

/// A GPU that several ranks use although one of them may not share it.
fn shared_gpu(version: Version, members: &[(usize, Facts)]) -> Option<(String, Vec<usize>)> {
    members.iter().find_map(|(_, first)| {
        let is_there = |facts: &Facts| (&facts.machine, &facts.bus) == (&first.machine, &first.bus);
        let there = || members.iter().filter(|(_, facts)| is_there(facts));
        let may = version >= SHARING && there().all(|(_, facts)| facts.may_share);
        let is_shared = there().count() > 1 && !first.bus.is_empty();
        (is_shared && !may).then(|| (first.bus.clone(), there().map(|(rank, _)| *rank).collect()))
    })
}

/// The value that all members have alike.
fn same(
    what: &'static str,
    members: &[(usize, Facts)],
    value: impl Fn(&Facts) -> String,
) -> Result<String, Refusal> {
    let mut groups = by_value(members, value);
    match groups.len() {
        0 | 1 => Ok(groups.pop().unwrap_or_default().0),
        _ => Err(Refusal::Options { what, groups }),
    }
}

/// Ranks by what they say, in the order of the first.
fn by_value(
    members: &[(usize, Facts)],
    value: impl Fn(&Facts) -> String,
) -> Vec<(String, Vec<usize>)> {
    let mut groups: Vec<(String, Vec<usize>)> = Vec::new();
    for (rank, facts) in members {
        let value = value(facts);
        match groups.iter_mut().find(|(known, _)| *known == value) {
            Some((_, ranks)) => ranks.push(*rank),
            None => groups.push((value, vec![*rank])),
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::super::GroupOptions;
    use super::*;

    fn facts(maker: Maker, bus: u32) -> Facts {
        let device = match maker {
            Maker::Nvidia => format!("cuda:{bus}"),
            Maker::Amd => format!("hip:{bus}"),
            Maker::Simulated => "sim:sm_90a".to_owned(),
            Maker::Host => "cpu".to_owned(),
        };
        Facts {
            options: GroupOptions::default(),
            device,
            maker,
            machine: "m".to_owned(),
            bus: format!("0000:0{bus}:00.0"),
            library: maker.vendor().map(|_| Ok(23_007)),
            lacks: Vec::new(),
            may_share: false,
        }
    }

    fn gpus() -> Vec<(usize, Facts)> {
        vec![(0, facts(Maker::Nvidia, 1)), (3, facts(Maker::Nvidia, 2))]
    }

    fn asked(transport: DeviceTransport, mut members: Vec<(usize, Facts)>) -> Vec<(usize, Facts)> {
        members.iter_mut().for_each(|(_, facts)| facts.options.transport = transport);
        members
    }

    fn way(members: &[(usize, Facts)]) -> Way {
        choose(members).unwrap().way
    }

    fn refused(members: Vec<(usize, Facts)>) -> String {
        let error = choose(&asked(DeviceTransport::Nccl, members.clone())).unwrap_err().to_string();
        // Without being asked for it is left alone, for the same reason.
        assert_eq!(way(&members), Way::Staged, "{error}");
        assert_eq!(choose(&members).unwrap().reason, error);
        let mut vendor = members;
        vendor.iter_mut().for_each(|(_, facts)| facts.options.sum = SumOrder::Vendor);
        assert_eq!(choose(&vendor).unwrap_err().to_string(), error, "or the sums would change");
        error
    }

    #[test]
    fn the_library_is_used_where_all_can_and_only_then() {
        assert_eq!(way(&gpus()), Way::Library(Vendor::Nvidia));
        assert_eq!(way(&[(0, facts(Maker::Amd, 1))]), Way::Library(Vendor::Amd));
        assert_eq!(way(&asked(DeviceTransport::Staged, gpus())), Way::Staged);
        assert_eq!(way(&[(0, facts(Maker::Host, 0)), (1, facts(Maker::Host, 0))]), Way::Host);
        assert_eq!(way(&[(0, facts(Maker::Simulated, 0))]), Way::Staged);
        let mixed = choose(&[(0, facts(Maker::Simulated, 0)), (1, facts(Maker::Host, 0))]);
        assert!(mixed.is_ok_and(|choice| choice.way == Way::Staged && !choice.is_alike));
        let choice = choose(&gpus()).unwrap();
        assert_eq!(choice.reason, "all ranks have NCCL 2.30.7");
    }

    #[test]
    fn members_of_other_vendors_are_named() {
        let mixed = vec![(0, facts(Maker::Nvidia, 1)), (2, facts(Maker::Amd, 1))];
        let told = refused(mixed);
        let expected = "rank 2 cannot use NCCL: hip:1 is no GPU of its vendor; use --transport \
                        rccl, or auto";
        assert_eq!(told, expected);
        let host = vec![(0, facts(Maker::Host, 0)), (1, facts(Maker::Host, 0))];
        let told = choose(&asked(DeviceTransport::Nccl, host)).unwrap_err().to_string();
        assert!(told.starts_with("ranks 0 and 1 cannot use NCCL: cpu is no GPU"), "{told}");
    }

    #[test]
    fn a_missing_library_and_other_versions_are_named_with_their_ranks() {
        let mut missing = gpus();
        missing[1].1.library = Some(Err("NCCL was not found (x)".to_owned()));
        let told = refused(missing);
        let expected = "rank 3 cannot use NCCL: NCCL was not found (x); or use --transport staged";
        assert_eq!(told, expected);
        let mut builds = gpus();
        builds[1].1.lacks = vec!["ncclMemAlloc".to_owned()];
        let told = refused(builds);
        assert!(told.contains("2.30.7 on rank 0, 2.30.7 (without ncclMemAlloc) on"), "{told}");
        let mut versions = gpus();
        versions[1].1.library = Some(Ok(22_809));
        let told = refused(versions);
        assert!(told.contains("2.30.7 on rank 0, 2.28.9 on rank 3"), "{told}");
    }

    #[test]
    fn two_ranks_share_a_gpu_by_permission_and_by_version() {
        let mut shared = gpus();
        let bus = shared[0].1.bus.clone();
        shared[1].1.bus = bus;
        let told = refused(shared.clone());
        assert!(told.starts_with("ranks 0 and 3 share the GPU at 0000:01:00.0"), "{told}");
        assert!(told.contains("or set NCCL_MULTI_RANK_GPU_ENABLE=1"), "{told}");
        shared.iter_mut().for_each(|(_, facts)| facts.may_share = true);
        assert_eq!(way(&shared), Way::Library(Vendor::Nvidia));
        shared.iter_mut().for_each(|(_, facts)| facts.library = Some(Ok(22_907)));
        let told = refused(shared.clone());
        assert!(told.contains("or use 2.30.0 or later"), "{told}");
        // The same place on the bus of another machine is another GPU.
        shared[1].1.machine = "n".to_owned();
        assert_eq!(way(&shared), Way::Library(Vendor::Nvidia));
    }

    #[test]
    fn members_that_ask_for_different_things_are_refused() {
        let mut members = gpus();
        members[0].1.options.transport = DeviceTransport::Staged;
        let told = choose(&members).unwrap_err().to_string();
        let expected = "the ranks of a group ask for different transports: staged on rank 0, auto \
                        on rank 3; give all of them the same";
        assert_eq!(told, expected);
    }
}
