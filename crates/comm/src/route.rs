//! The route of a group's memory, for whoever shows it.

use crate::SumOrder;

/// How the memory of a group travels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// `shm`, `tcp`, `shm+tcp`; `staged-shm`, `staged-tcp`, `staged-shm+tcp`; `nccl`, `rccl`.
    pub transport: &'static str,
    /// Where a group goes by hosts: how many, and members of each.
    pub hosts: Option<(usize, usize)>,
    /// `NCCL 2.30.7`, where there is one.
    pub library: Option<String>,
    pub sum: SumOrder,
    /// Why this one and no other.
    pub reason: String,
}

impl std::fmt::Display for Route {
    /// `nccl (NCCL 2.30.7; all ranks have it), sums ordered`; `shm+tcp 2 × 4 (…), sums ordered`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Route { transport, library, sum, reason, .. } = self;
        let library = library.as_ref().map(|library| format!("{library}; ")).unwrap_or_default();
        let sum = match sum {
            SumOrder::Ordered => "ordered",
            SumOrder::Vendor => "in the library's own order",
        };
        let hosts = self.hosts.map(|(hosts, each)| format!(" {hosts} × {each}"));
        let hosts = hosts.unwrap_or_default();
        write!(f, "{transport}{hosts} ({library}{reason}), sums {sum}")
    }
}
