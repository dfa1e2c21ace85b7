//! What moves the memory of a group, for whoever shows it.

use crate::SumOrder;

/// How the memory of a group travels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// `shm`, `tcp`; `staged-shm`, `staged-tcp`; `nccl`, `rccl`.
    pub transport: &'static str,
    /// `NCCL 2.30.7`, where there is one.
    pub library: Option<String>,
    pub sum: SumOrder,
    /// Why this one and no other.
    pub reason: String,
}

impl std::fmt::Display for Route {
    /// `nccl (NCCL 2.30.7; all ranks have it), sums ordered`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Route { transport, library, sum, reason } = self;
        let library = library.as_ref().map(|library| format!("{library}; ")).unwrap_or_default();
        let sum = match sum {
            SumOrder::Ordered => "ordered",
            SumOrder::Vendor => "in the library's own order",
        };
        write!(f, "{transport} ({library}{reason}), sums {sum}")
    }
}
