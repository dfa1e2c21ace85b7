//! How a group on a device moves its memory, as whoever makes it asks for it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The transport of a group's memory on a device. Groups in memory of the host always use what
/// connects the ranks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceTransport {
    /// The vendor's library where all members can use it, else staged.
    #[default]
    Auto,
    /// Through memory of the host.
    Staged,
    Nccl,
    Rccl,
}

impl DeviceTransport {
    pub const ALL: [DeviceTransport; 4] = [
        DeviceTransport::Auto,
        DeviceTransport::Staged,
        DeviceTransport::Nccl,
        DeviceTransport::Rccl,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            DeviceTransport::Auto => "auto",
            DeviceTransport::Staged => "staged",
            DeviceTransport::Nccl => "nccl",
            DeviceTransport::Rccl => "rccl",
        }
    }
}

impl fmt::Display for DeviceTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for DeviceTransport {
    type Err = String;

    fn from_str(word: &str) -> Result<DeviceTransport, String> {
        let found = DeviceTransport::ALL.into_iter().find(|transport| transport.name() == word);
        found.ok_or_else(|| format!("`{word}` is no transport; use auto, staged, nccl or rccl"))
    }
}

/// Who makes the sums of a group.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SumOrder {
    /// Their owner, in the order of the program: the same bits at every number of ranks.
    #[default]
    Ordered,
    /// The vendor's library, in an order of its own, which may depend on the number of ranks and
    /// on its version. What it cannot sum (partials of several leaves, or of another type than
    /// their sum), and groups without it, are summed in order.
    Vendor,
}

impl SumOrder {
    pub const fn name(self) -> &'static str {
        match self {
            SumOrder::Ordered => "ordered",
            SumOrder::Vendor => "vendor",
        }
    }
}

impl fmt::Display for SumOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for SumOrder {
    type Err = String;

    fn from_str(word: &str) -> Result<SumOrder, String> {
        let found =
            [SumOrder::Ordered, SumOrder::Vendor].into_iter().find(|sum| sum.name() == word);
        found.ok_or_else(|| format!("`{word}` is no order of sums; use ordered or vendor"))
    }
}

/// Options of a group; the same on all its members.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupOptions {
    pub transport: DeviceTransport,
    pub sum: SumOrder,
}
