//! How a communicator is to be made, and the struct that says so to the library.
//!
//! The library reads as many bytes as the struct says it has, fills the rest with defaults, and
//! judges the fields by the version that the struct names. So the shortest that holds what was
//! asked for is sent: 48 bytes of version 2.18, which every library from the baseline on takes,
//! or the longer one of the first version that has the field.

use std::ffi::{CString, c_char, c_int};
use std::mem::offset_of;
use std::time::Duration;

use crate::{Error, Vendor, Version};

/// Settings of a communicator. Fields that are `None` are the library's own choice.
///
/// ```
/// use std::time::Duration;
/// use nccl_rs::Config;
///
/// let timeout = Duration::from_secs(30);
/// let config = Config { timeout, max_ctas: Some(8), ..Config::default() };
/// assert_eq!(config.min_ctas, None);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Longest wait for the other ranks when the communicator is made, and in each later call of
    /// it ([`crate::Communicator::set_timeout`]).
    pub timeout: Duration,
    /// Blocks of a kernel that run as one cluster, 0 to 8.
    pub cga_cluster_size: Option<i32>,
    /// Least blocks (of threads) per operation, at least 1.
    pub min_ctas: Option<i32>,
    /// Most blocks per operation; not fewer than the least.
    pub max_ctas: Option<i32>,
    /// Which network module is used: `IB`, `Socket`, or the name of a plugin.
    pub net_name: Option<String>,
    /// Whether children of a split share the parent's resources.
    pub split_share: Option<bool>,
    /// Traffic class of the network; from 2.26 on.
    pub traffic_class: Option<i32>,
    /// The communicator's name in the library's own logs; from 2.27 on.
    pub comm_name: Option<String>,
    /// Whether switches may reduce; from 2.27 on.
    pub collnet: Option<bool>,
    /// `NCCL_CTA_POLICY_*`: 0 is the default, 1 few blocks, 2 none where copy engines do it; from
    /// 2.27 on.
    pub cta_policy: Option<i32>,
    /// Whether children of a shrink share the parent's resources; from 2.27 on.
    pub shrink_share: Option<bool>,
    /// Blocks of operations through NVLink's switches; from 2.27 on.
    pub nvls_ctas: Option<i32>,
    /// Channels between two ranks over the network; NCCL from 2.28 on.
    pub channels_per_net_peer: Option<i32>,
    /// Peers that one group may send to or receive from; NCCL from 2.30 on.
    pub max_p2p_peers: Option<i32>,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            timeout: Duration::from_secs(300),
            cga_cluster_size: None,
            min_ctas: None,
            max_ctas: None,
            net_name: None,
            split_share: None,
            traffic_class: None,
            comm_name: None,
            collnet: None,
            cta_policy: None,
            shrink_share: None,
            nvls_ctas: None,
            channels_per_net_peer: None,
            max_p2p_peers: None,
        }
    }
}

/// `ncclConfig_t` as 2.30 has it. Later ones add to the end, earlier ones end before.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct RawConfig {
    size: usize,
    magic: u32,
    version: u32,
    blocking: c_int,
    cga_cluster_size: c_int,
    min_ctas: c_int,
    max_ctas: c_int,
    net_name: *const c_char,
    split_share: c_int,
    traffic_class: c_int,
    comm_name: *const c_char,
    collnet: c_int,
    cta_policy: c_int,
    shrink_share: c_int,
    nvls_ctas: c_int,
    channels_per_net_peer: c_int,
    nvlink_centric_sched: c_int,
    graph_usage_mode: c_int,
    rma_contexts: c_int,
    max_p2p_peers: c_int,
    graph_stream_ordering: c_int,
}

// Offsets of nccl.h 2.30.7 on a 64-bit machine; sizes of the struct at earlier versions.
const _: () = {
    assert!(offset_of!(RawConfig, magic) == 8);
    assert!(offset_of!(RawConfig, version) == 12);
    assert!(offset_of!(RawConfig, blocking) == 16);
    assert!(offset_of!(RawConfig, cga_cluster_size) == 20);
    assert!(offset_of!(RawConfig, min_ctas) == 24);
    assert!(offset_of!(RawConfig, max_ctas) == 28);
    assert!(offset_of!(RawConfig, net_name) == 32);
    assert!(offset_of!(RawConfig, split_share) == 40);
    assert!(offset_of!(RawConfig, traffic_class) == 44);
    assert!(offset_of!(RawConfig, comm_name) == LENGTHS[0].1);
    assert!(offset_of!(RawConfig, collnet) == 56);
    assert!(offset_of!(RawConfig, cta_policy) == 60);
    assert!(offset_of!(RawConfig, shrink_share) == 64);
    assert!(offset_of!(RawConfig, nvls_ctas) == 68);
    assert!(offset_of!(RawConfig, channels_per_net_peer) == LENGTHS[2].1);
    assert!(offset_of!(RawConfig, graph_usage_mode) == LENGTHS[3].1);
    assert!(offset_of!(RawConfig, max_p2p_peers) == 88);
    assert!(size_of::<RawConfig>() == LENGTHS[4].1);
};

/// Versions whose struct is longer, or has more in it, than the one before, with its size.
const LENGTHS: [(Version, usize); 5] = [
    (Version::new(2, 18, 0), 48),
    (Version::new(2, 26, 0), 48),
    (Version::new(2, 27, 0), 72),
    (Version::new(2, 28, 0), 80),
    (Version::new(2, 30, 0), 96),
];

const MAGIC: u32 = 0xcafe_beef;
const UNDEFINED: c_int = c_int::MIN;

/// The struct, with the texts that it points to.
#[derive(Debug)]
pub(crate) struct Sent {
    pub(crate) raw: RawConfig,
    _texts: [Option<CString>; 2],
}

// SAFETY: its pointers are into the texts beside it, which nobody changes.
unsafe impl Send for Sent {}
// SAFETY: as above.
unsafe impl Sync for Sent {}

impl Config {
    /// The fields that 2.18 does not have and that are set, with the first version that has them.
    fn later(&self) -> impl Iterator<Item = (&'static str, Version)> {
        let (v26, v27) = (Version::new(2, 26, 0), Version::new(2, 27, 0));
        let (v28, v30) = (Version::new(2, 28, 0), Version::new(2, 30, 0));
        let all = [
            (self.traffic_class.is_some(), "the config's `traffic_class`", v26),
            (self.comm_name.is_some(), "the config's `comm_name`", v27),
            (self.collnet.is_some(), "the config's `collnet`", v27),
            (self.cta_policy.is_some(), "the config's `cta_policy`", v27),
            (self.shrink_share.is_some(), "the config's `shrink_share`", v27),
            (self.nvls_ctas.is_some(), "the config's `nvls_ctas`", v27),
            (self.channels_per_net_peer.is_some(), "the config's `channels_per_net_peer`", v28),
            (self.max_p2p_peers.is_some(), "the config's `max_p2p_peers`", v30),
        ];
        all.into_iter().filter(|(is_set, ..)| *is_set).map(|(_, what, since)| (what, since))
    }

    /// The struct for a library; always non-blocking.
    ///
    /// # Errors
    /// A field that the library does not have, or whose place in RCCL's struct is another; bounds
    /// in the wrong order; a text with a zero byte.
    pub(crate) fn to_raw(&self, vendor: Vendor, version: Version) -> Result<Sent, Error> {
        let mut needed = Version::BASELINE;
        for (what, since) in self.later() {
            if since > version {
                return Err(Error::Absent { what, vendor, since, version });
            }
            if vendor == Vendor::Amd && since > Version::new(2, 27, 0) {
                let what = format!("{what} is a field of NCCL, which RCCL has elsewhere or not");
                return Err(Error::Config { what });
            }
            needed = needed.max(since);
        }
        if let (Some(min), Some(max)) = (self.min_ctas, self.max_ctas)
            && min > max
        {
            let what = format!("min_ctas is {min}, above max_ctas, which is {max}");
            return Err(Error::Config { what });
        }
        let newest = LENGTHS.iter().rev().find(|(since, _)| *since <= needed);
        let (named, size) = newest.copied().unwrap_or(LENGTHS[0]);
        let texts = [text("net_name", &self.net_name)?, text("comm_name", &self.comm_name)?];
        let raw = self.filled(named, size, &texts);
        Ok(Sent { raw, _texts: texts })
    }

    fn filled(&self, named: Version, size: usize, texts: &[Option<CString>; 2]) -> RawConfig {
        let number = |value: Option<i32>| value.unwrap_or(UNDEFINED);
        let switch = |value: Option<bool>| value.map_or(UNDEFINED, c_int::from);
        let pointer =
            |text: &Option<CString>| text.as_ref().map_or(std::ptr::null(), |t| t.as_ptr());
        // The header writes 2.18.0 as 21800: the newer encoding.
        RawConfig {
            size,
            magic: MAGIC,
            version: named.code(),
            blocking: 0,
            cga_cluster_size: number(self.cga_cluster_size),
            min_ctas: number(self.min_ctas),
            max_ctas: number(self.max_ctas),
            net_name: pointer(&texts[0]),
            split_share: switch(self.split_share),
            traffic_class: number(self.traffic_class),
            comm_name: pointer(&texts[1]),
            collnet: switch(self.collnet),
            cta_policy: number(self.cta_policy),
            shrink_share: switch(self.shrink_share),
            nvls_ctas: number(self.nvls_ctas),
            channels_per_net_peer: number(self.channels_per_net_peer),
            nvlink_centric_sched: UNDEFINED,
            graph_usage_mode: UNDEFINED,
            rma_contexts: UNDEFINED,
            max_p2p_peers: number(self.max_p2p_peers),
            graph_stream_ordering: UNDEFINED,
        }
    }
}

fn text(field: &str, value: &Option<String>) -> Result<Option<CString>, Error> {
    let made = value.as_ref().map(|value| CString::new(value.as_str())).transpose();
    made.map_err(|_| Error::Config { what: format!("{field} has a zero byte in it") })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(config: &Config, version: u32) -> (usize, u32) {
        let sent = config.to_raw(Vendor::Nvidia, Version::from_code(version)).unwrap();
        assert_eq!((sent.raw.magic, sent.raw.blocking), (MAGIC, 0));
        (sent.raw.size, sent.raw.version)
    }

    #[test]
    fn the_shortest_struct_that_holds_what_was_asked_for_is_sent() {
        let plain = Config { max_ctas: Some(4), ..Config::default() };
        for version in [21_801, 22_105, 22_809, 23_203] {
            assert_eq!(sent(&plain, version), (48, 21_800));
        }
        let named = Config { comm_name: Some("dp".to_owned()), ..Config::default() };
        assert_eq!(sent(&named, 23_007), (72, 22_700));
        let class = Config { traffic_class: Some(3), ..Config::default() };
        assert_eq!(sent(&class, 23_007), (48, 22_600));
        let peers = Config { max_p2p_peers: Some(3), ..named };
        assert_eq!(sent(&peers, 23_203), (96, 23_000));
    }

    #[test]
    fn a_field_that_the_library_lacks_is_named_with_the_version_that_has_it() {
        let named = Config { comm_name: Some("dp".to_owned()), ..Config::default() };
        let error = named.to_raw(Vendor::Nvidia, Version::new(2, 21, 5)).unwrap_err();
        let expected = "the config's `comm_name` needs NCCL 2.27.0, this is 2.21.5";
        assert_eq!(error.to_string(), expected);
        let peers = Config { max_p2p_peers: Some(3), ..Config::default() };
        let error = peers.to_raw(Vendor::Amd, Version::new(2, 30, 4)).unwrap_err();
        assert!(error.to_string().contains("RCCL"), "{error}");
    }

    #[test]
    fn contradictions_and_bad_texts_are_refused() {
        let version = Version::new(2, 30, 7);
        let crossed = Config { min_ctas: Some(9), max_ctas: Some(8), ..Config::default() };
        let error = crossed.to_raw(Vendor::Nvidia, version).unwrap_err().to_string();
        assert!(error.contains("min_ctas is 9"), "{error}");
        let zero = Config { net_name: Some("a\0b".to_owned()), ..Config::default() };
        assert!(zero.to_raw(Vendor::Nvidia, version).is_err());
    }

    #[test]
    fn what_is_not_asked_for_is_undefined() {
        let sent = Config::default().to_raw(Vendor::Nvidia, Version::new(2, 30, 7)).unwrap();
        assert_eq!((sent.raw.cga_cluster_size, sent.raw.net_name), (UNDEFINED, std::ptr::null()));
    }
}
