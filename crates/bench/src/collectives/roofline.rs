//! Bounds of a bandwidth: the published figures of known links, or the memory that ranks share.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::formula::Op;
use super::host::Host;
use super::row::Key;
use crate::BenchError;

/// A link between devices whose limits are known, per device and direction, in 10⁹ bytes/s.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KnownLink {
    /// As it is typed.
    pub name: &'static str,
    pub describes: &'static str,
    /// Of all wires together, before any protocol.
    pub raw_gb_per_s: f64,
    /// The best busbw that an all_reduce reaches.
    pub effective_gb_per_s: f64,
    /// Where switches add up on their own, busbw goes beyond the wires.
    pub switched_gb_per_s: Option<f64>,
    /// Parts of the names of devices that have it, within a host.
    pub devices: &'static [&'static str],
}

/// Published figures. H100 and H200: 18 NVLink 4 of 25 GB/s; 370 by rings and 480 with NVLS
/// (nccl-tests issue 212). MI300X: 7 xGMI links of 64 GB/s, of which 48 are usable (AMD's
/// "Understanding RCCL Bandwidth and xGMI Performance on AMD Instinct MI300X"). Pollara 400 and
/// ConnectX-7 NDR: 400 Gbit/s.
pub(crate) const KNOWN_LINKS: [KnownLink; 5] = [
    KnownLink {
        name: "nvlink4",
        describes: "H100 or H200 in one node",
        raw_gb_per_s: 450.0,
        effective_gb_per_s: 370.0,
        switched_gb_per_s: Some(480.0),
        devices: &["H100 80GB HBM3", "H100 SXM", "H200"],
    },
    KnownLink {
        name: "mi300x-xgmi",
        describes: "8 MI300X in one node",
        raw_gb_per_s: 448.0,
        effective_gb_per_s: 336.0,
        switched_gb_per_s: None,
        devices: &["MI300X"],
    },
    KnownLink {
        name: "pollara400",
        describes: "one Pollara 400 per device",
        raw_gb_per_s: 50.0,
        effective_gb_per_s: 50.0,
        switched_gb_per_s: None,
        devices: &[],
    },
    KnownLink {
        name: "ndr",
        describes: "one 400 Gbit/s InfiniBand port per device",
        raw_gb_per_s: 50.0,
        effective_gb_per_s: 50.0,
        switched_gb_per_s: None,
        devices: &[],
    },
    KnownLink {
        name: "hdr",
        describes: "one 200 Gbit/s InfiniBand port per device",
        raw_gb_per_s: 25.0,
        effective_gb_per_s: 25.0,
        switched_gb_per_s: None,
        devices: &[],
    },
];

impl KnownLink {
    /// A link by its name.
    ///
    /// # Errors
    /// [`BenchError::Argument`] with the names there are.
    pub fn named(name: &str) -> Result<&'static KnownLink, BenchError> {
        KNOWN_LINKS.iter().find(|link| link.name == name).ok_or_else(|| {
            let names = KNOWN_LINKS.map(|link| link.name).join(", ");
            BenchError::Argument(format!("no link `{name}`; use one of {names}"))
        })
    }

    /// The link within a host of such devices, by the names that their drivers give.
    pub(crate) fn of_devices(devices: &[String]) -> Option<&'static KnownLink> {
        let has = |link: &KnownLink, device: &str| link.devices.iter().any(|d| device.contains(d));
        let mut links = KNOWN_LINKS.iter();
        links.find(|link| !devices.is_empty() && devices.iter().all(|device| has(link, device)))
    }

    /// The highest busbw that can be right.
    pub fn limit_gb_per_s(&self) -> f64 {
        self.switched_gb_per_s.unwrap_or(0.0).max(self.raw_gb_per_s)
    }

    /// The busbw that is reached at best.
    pub(crate) fn best_gb_per_s(&self) -> f64 {
        self.switched_gb_per_s.unwrap_or(self.effective_gb_per_s)
    }

    /// A busbw in percent of what is reached at best.
    pub fn percent(&self, busbw_gb_per_s: f64) -> f64 {
        busbw_gb_per_s / self.best_gb_per_s() * 100.0
    }
}

/// The bound of a report's rows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Roof {
    Link(&'static KnownLink),
    /// Bytes that the memory of the host carries, read and written together, as a copy measured
    /// it: all ranks share it.
    Memory {
        gb_per_s: f64,
    },
    Unknown(Unknown),
}

/// Why no bound is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unknown {
    /// A network between hosts, or within one, that nobody has named.
    Network,
    /// Devices that no published figures are known of.
    Devices,
    /// Times of a simulator mean nothing.
    Simulated,
    /// The memory was not measured.
    Memory,
}

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Unknown::Network => "none known of this network; name the link with --link",
            Unknown::Devices => "none known of these devices; name their link with --link",
            Unknown::Simulated => "none of a simulated device",
            Unknown::Memory => "none; the memory was not measured",
        })
    }
}

impl Roof {
    /// The bound of rows that were measured on `hosts` over `transport`: the link that was named,
    /// or the one that the devices have, or the memory of the host, which carries
    /// `memory_gb_per_s`.
    pub fn of(
        hosts: &[Host],
        transport: Option<&str>,
        named: Option<&'static KnownLink>,
        memory_gb_per_s: Option<f64>,
    ) -> Roof {
        if let Some(link) = named {
            return Roof::Link(link);
        }
        let devices: Vec<String> = devices(hosts);
        match transport {
            _ if devices.iter().any(|device| device.starts_with("sim")) => {
                Roof::Unknown(Unknown::Simulated)
            }
            Some("shm") => match memory_gb_per_s {
                Some(gb_per_s) => Roof::Memory { gb_per_s },
                None => Roof::Unknown(Unknown::Memory),
            },
            Some("nccl" | "rccl") if hosts.len() == 1 => {
                let link = KnownLink::of_devices(&devices);
                link.map_or(Roof::Unknown(Unknown::Devices), Roof::Link)
            }
            _ => Roof::Unknown(Unknown::Network),
        }
    }

    /// The bound of a curve's busbw, and what its peak is of it.
    pub fn over(&self, key: &Key, peak_busbw_gb_per_s: f64) -> Option<Roofline> {
        let (of, busbw_gb_per_s) = match *self {
            Roof::Link(link) => (link.name.to_owned(), link.best_gb_per_s()),
            Roof::Memory { gb_per_s } => {
                let ranks = key.ranks?;
                let traffic = memory_traffic(key.op, ranks, key.in_place)?;
                ("memory".to_owned(), gb_per_s / traffic * key.op.bus_factor(ranks)?)
            }
            Roof::Unknown(_) => return None,
        };
        let percent = peak_busbw_gb_per_s / busbw_gb_per_s * 100.0;
        (busbw_gb_per_s > 0.0 && percent.is_finite()).then_some(Roofline {
            of,
            busbw_gb_per_s,
            percent,
        })
    }
}

fn devices(hosts: &[Host]) -> Vec<String> {
    hosts.iter().flat_map(|host| host.devices.iter().cloned()).collect()
}

/// A bound and what is reached of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Roofline {
    /// `memory`, or the name of a link.
    pub of: String,
    pub busbw_gb_per_s: f64,
    /// Of the peak. More than 100 of memory where caches carried it.
    pub percent: f64,
}

/// Bytes that must be read from memory and written to it for each byte of the size, by all ranks of
/// a host together, if everything is read once and written once:
///
/// ```text
/// all_reduce, all_to_all, send_recv            n parts read, n written
/// reduce_scatter, reduce                       n read, 1 written
/// all_gather, broadcast                        1 read, n written; in place n − 1
/// gather, scatter                              1 read, 1 written
/// ```
///
/// `None` for what moves nothing, or is not measured here.
fn memory_traffic(op: Op, ranks: usize, in_place: bool) -> Option<f64> {
    let n = ranks as f64;
    match op {
        _ if ranks < 2 => None,
        Op::AllReduce | Op::AllToAll | Op::SendRecv => Some(2.0 * n),
        Op::ReduceScatter | Op::Reduce => Some(n + 1.0),
        Op::AllGather | Op::Broadcast if in_place => Some(n),
        Op::AllGather | Op::Broadcast => Some(n + 1.0),
        Op::Gather | Op::Scatter => Some(2.0),
        Op::AllToAllV | Op::Hypercube | Op::Barrier => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::Report;
    use super::super::report::tests::full;
    use super::super::row::tests::key;
    use super::*;

    #[test]
    fn known_links_have_limits_and_names() {
        let nvlink = KnownLink::named("nvlink4").unwrap();
        assert_eq!((nvlink.limit_gb_per_s(), nvlink.percent(240.0)), (480.0, 50.0));
        let xgmi = KnownLink::named("mi300x-xgmi").unwrap();
        assert_eq!((xgmi.limit_gb_per_s(), xgmi.percent(336.0)), (448.0, 100.0));
        assert!(KnownLink::named("pci").unwrap_err().to_string().contains("pollara400"));
    }

    #[test]
    fn devices_are_known_by_their_names() {
        let of = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
            KnownLink::of_devices(&names).map(|link| link.name)
        };
        assert_eq!(of(&["NVIDIA H200", "NVIDIA H200"]), Some("nvlink4"));
        assert_eq!(of(&["AMD Instinct MI300X"; 2]), Some("mi300x-xgmi"));
        assert_eq!(of(&["NVIDIA H200", "NVIDIA L4"]), None);
        assert_eq!(of(&["NVIDIA H100 PCIe"]), None);
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn the_roof_is_what_was_named_or_found() {
        let mut report = full();
        let with = |report: &Report, named, memory| {
            Roof::of(&report.hosts, report.transport.as_deref(), named, memory)
        };
        let of = |report: &Report, memory| with(report, None, memory);
        assert_eq!(of(&report, Some(20.0)), Roof::Memory { gb_per_s: 20.0 });
        assert_eq!(of(&report, None), Roof::Unknown(Unknown::Memory));
        let named = KnownLink::named("ndr").unwrap();
        assert_eq!(with(&report, Some(named), Some(20.0)), Roof::Link(named));
        report.transport = Some("tcp".into());
        assert_eq!(of(&report, Some(20.0)), Roof::Unknown(Unknown::Network));
        report.transport = Some("nccl".into());
        assert_eq!(of(&report, None), Roof::Unknown(Unknown::Devices));
        report.hosts[0].devices = vec!["NVIDIA H200".into()];
        assert_eq!(of(&report, None), Roof::Link(KnownLink::named("nvlink4").unwrap()));
        report.hosts.push(report.hosts[0].clone());
        assert_eq!(of(&report, None), Roof::Unknown(Unknown::Network));
        report.hosts[0].devices = vec!["sim:gfx942".into()];
        assert_eq!(of(&report, None), Roof::Unknown(Unknown::Simulated));
    }

    #[test]
    fn memory_bounds_by_what_must_be_read_and_written() {
        // Eight ranks: 16 bytes for each byte that is reduced, and busbw 1.75 times algbw.
        let memory = Roof::Memory { gb_per_s: 160.0 };
        let roofline = memory.over(&key(0), 8.75).unwrap();
        assert_eq!(roofline.of, "memory");
        assert!((roofline.busbw_gb_per_s - 17.5).abs() < 1e-9, "{roofline:?}");
        assert!((roofline.percent - 50.0).abs() < 1e-9, "{roofline:?}");
        let traffic = |op, in_place| memory_traffic(op, 4, in_place);
        assert_eq!(
            (traffic(Op::AllGather, false), traffic(Op::AllGather, true)),
            (Some(5.0), Some(4.0))
        );
        assert_eq!(
            (traffic(Op::Barrier, false), memory_traffic(Op::AllReduce, 1, false)),
            (None, None)
        );
        assert_eq!(memory.over(&Key { ranks: Some(1), ..key(0) }, 1.0), None);
        let link = Roof::Link(KnownLink::named("hdr").unwrap());
        assert_eq!(link.over(&key(0), 12.5).unwrap().percent, 50.0);
        assert_eq!(Roof::Unknown(Unknown::Network).over(&key(0), 1.0), None);
    }
}
