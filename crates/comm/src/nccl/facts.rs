//! The facts that a member finds out about its device and its library before a group is made.

use std::sync::OnceLock;

use device::{Device, DeviceKind};
use nccl_rs::{Library, Vendor};
use serde::{Deserialize, Serialize};

use super::{DeviceTransport, GroupOptions};

/// Lets several ranks share a GPU, from NCCL 2.30 on.
pub(super) const SHARE: &str = "NCCL_MULTI_RANK_GPU_ENABLE";

/// Symbols of a library that decide how it knows the memory of windows (`window.rs`).
const MEMORY: [&str; 3] = ["ncclMemAlloc", "ncclCommRegister", "ncclCommWindowRegister"];

/// Whose library moves memory of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Maker {
    Nvidia,
    Amd,
    /// Nobody's: a simulated one.
    Simulated,
    /// Memory of the host.
    Host,
}

impl Maker {
    fn of(kind: DeviceKind) -> Maker {
        match kind {
            DeviceKind::Cpu | DeviceKind::Guarded => Maker::Host,
            DeviceKind::Sim(_) => Maker::Simulated,
            DeviceKind::Cuda(_) => Maker::Nvidia,
            DeviceKind::Hip(_) => Maker::Amd,
        }
    }

    pub(crate) fn vendor(self) -> Option<Vendor> {
        match self {
            Maker::Nvidia => Some(Vendor::Nvidia),
            Maker::Amd => Some(Vendor::Amd),
            Maker::Simulated | Maker::Host => None,
        }
    }
}

/// Of one member, as all others hear it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Facts {
    pub(super) options: GroupOptions,
    /// `cuda:0`.
    pub(super) device: String,
    pub(super) maker: Maker,
    /// One name for each machine, and where the device is on its bus.
    pub(super) machine: String,
    pub(super) bus: String,
    /// Version of the library, as it tells it, or why there is none; `None` if nobody looked.
    pub(super) library: Option<Result<u32, String>>,
    /// Functions for memory that the library lacks, whatever its version: builds differ.
    pub(super) lacks: Vec<String>,
    /// Whether the environment lets ranks share a GPU.
    pub(super) may_share: bool,
}

impl Facts {
    /// Opens the device's library, unless the options rule it out.
    pub(crate) fn of(device: &Device, options: GroupOptions) -> Facts {
        let (kind, maker) = (device.kind(), Maker::of(device.kind()));
        let wanted = maker.vendor().filter(|_| options.transport != DeviceTransport::Staged);
        let is_host = maker == Maker::Host;
        let found = wanted.map(library);
        let opened = found.as_ref().and_then(|found| found.as_ref().ok());
        let is_lacking = |name: &&str| opened.is_some_and(|found| !found.has(name));
        let lacks = MEMORY.into_iter().filter(is_lacking).map(str::to_owned).collect();
        Facts {
            options,
            device: kind.to_string(),
            maker,
            machine: if is_host { String::new() } else { machine() },
            bus: if is_host { String::new() } else { device.properties().bus },
            library: found.map(|found| found.map(|found| found.version().code())),
            lacks,
            may_share: std::env::var(SHARE).is_ok_and(|value| value.trim() == "1"),
        }
    }
}

/// The library of a vendor, opened once in a process.
///
/// # Errors
/// Why it cannot be opened, in words.
pub(crate) fn library(vendor: Vendor) -> Result<Library, String> {
    static OPENED: [OnceLock<Result<Library, String>>; 2] = [const { OnceLock::new() }; 2];
    let at = usize::from(vendor == Vendor::Amd);
    let open = || Library::open(vendor).map_err(|error| error.to_string());
    OPENED[at].get_or_init(open).clone()
}

/// A name that this machine keeps until it is started again, in all of its containers.
fn machine() -> String {
    let read = |path| std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
    let boot = read("/proc/sys/kernel/random/boot_id").filter(|id| !id.is_empty());
    boot.or_else(|| read("/proc/sys/kernel/hostname")).unwrap_or_default()
}
