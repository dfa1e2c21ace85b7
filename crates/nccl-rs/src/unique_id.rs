//! The token by which the ranks of a communicator find each other, with what it belongs to.
//!
//! The library's own id is 128 bytes that say nothing about themselves. One that reaches a rank of
//! another job, of another vendor or of another version leads to a hang or to worse; so ours
//! travels in an envelope, and a rank checks it before the library sees it.
//!
//! ```text
//! 0      8       9        10         12        16     32             160        168
//! magic  format  vendor   (zero)     version   job    the library's  checksum
//! ```

use std::fmt;

use crate::table::RawUniqueId;
use crate::{Error, Vendor, Version};

/// Which job a communicator belongs to: a number that no other job has, drawn by whoever starts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct JobId(pub [u8; 16]);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A communicator's id, made by one rank ([`crate::Library::unique_id`]) and given to all.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct UniqueId {
    pub(crate) raw: RawUniqueId,
    pub(crate) vendor: Vendor,
    pub(crate) version: Version,
    pub(crate) job: JobId,
}

const MAGIC: [u8; 8] = *b"nccl-uid";
const FORMAT: u8 = 1;
const RAW: std::ops::Range<usize> = 32..160;

impl UniqueId {
    /// Size of the envelope.
    pub const BYTES: usize = 168;

    /// The 128 bytes that the library made.
    pub const fn as_bytes(&self) -> &[u8; 128] {
        &self.raw.0
    }

    pub const fn vendor(&self) -> Vendor {
        self.vendor
    }

    pub const fn version(&self) -> Version {
        self.version
    }

    pub const fn job(&self) -> JobId {
        self.job
    }

    /// The id in its envelope, to be sent to the other ranks.
    pub fn to_bytes(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        (bytes[8], bytes[9]) = (FORMAT, self.vendor.number());
        bytes[12..16].copy_from_slice(&self.version.code().to_le_bytes());
        bytes[16..32].copy_from_slice(&self.job.0);
        bytes[RAW].copy_from_slice(&self.raw.0);
        let sum = checksum(&bytes[..RAW.end]);
        bytes[RAW.end..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// # Errors
    /// [`Error::IdMalformed`]: another length, other bytes, or some were changed on the way.
    pub fn from_bytes(bytes: &[u8]) -> Result<UniqueId, Error> {
        let malformed = |what: String| Error::IdMalformed { what };
        let Ok(bytes) = <&[u8; Self::BYTES]>::try_from(bytes) else {
            let what = format!("{} bytes, and it has {}", bytes.len(), Self::BYTES);
            return Err(malformed(what));
        };
        if bytes[..8] != MAGIC {
            return Err(malformed("it does not begin as one".to_owned()));
        }
        if bytes[8] != FORMAT {
            let what = format!("format {}, and this program knows {FORMAT}", bytes[8]);
            return Err(malformed(what));
        }
        let sum = checksum(&bytes[..RAW.end]);
        if bytes[RAW.end..] != sum.to_le_bytes() {
            return Err(malformed("its checksum is wrong: it was changed on the way".to_owned()));
        }
        let vendor = Vendor::of_number(bytes[9]);
        let vendor = vendor.ok_or_else(|| malformed(format!("vendor {} is unknown", bytes[9])))?;
        let code = bytes[12..16].try_into().map_or(0, u32::from_le_bytes);
        let (mut raw, mut job) = ([0; 128], [0; 16]);
        raw.copy_from_slice(&bytes[RAW]);
        job.copy_from_slice(&bytes[16..32]);
        let version = Version::from_code(code);
        Ok(UniqueId { raw: RawUniqueId(raw), vendor, version, job: JobId(job) })
    }

    /// Whether a rank of `job` that has opened `version` of `vendor`'s library may use it.
    ///
    /// # Errors
    /// The job, vendor and version that it belongs to, and those of the rank.
    pub fn check(&self, vendor: Vendor, version: Version, job: JobId) -> Result<(), Error> {
        if self.job != job {
            return Err(Error::IdJob { theirs: self.job, ours: job });
        }
        if self.vendor != vendor {
            return Err(Error::IdVendor { theirs: self.vendor, ours: vendor });
        }
        if self.version != version {
            return Err(Error::IdVersion { vendor, theirs: self.version, ours: version });
        }
        Ok(())
    }
}

impl fmt::Debug for UniqueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UniqueId({} {}, job {})", self.vendor, self.version, self.job)
    }
}

/// FNV-1a, 64 bits (<http://www.isthe.com/chongo/tech/comp/fnv/>): against accidents alone.
fn checksum(bytes: &[u8]) -> u64 {
    let step = |hash: u64, &byte: &u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> UniqueId {
        UniqueId {
            raw: RawUniqueId(std::array::from_fn(|index| index as u8)),
            vendor: Vendor::Amd,
            version: Version::new(2, 27, 7),
            job: JobId([9; 16]),
        }
    }

    #[test]
    fn an_envelope_comes_back_as_it_was() {
        assert_eq!(UniqueId::from_bytes(&id().to_bytes()).unwrap(), id());
    }

    #[test]
    fn any_changed_byte_is_noticed() {
        for index in 0..UniqueId::BYTES {
            let mut bytes = id().to_bytes();
            bytes[index] ^= 0x10;
            let error = UniqueId::from_bytes(&bytes).unwrap_err();
            assert!(matches!(error, Error::IdMalformed { .. }), "byte {index}: {error}");
        }
        assert!(UniqueId::from_bytes(&id().to_bytes()[..128]).is_err());
        assert!(UniqueId::from_bytes(&[]).is_err());
    }

    #[test]
    fn an_id_that_meets_another_job_vendor_or_version_says_both() {
        let (vendor, version, job) = (Vendor::Amd, Version::new(2, 27, 7), JobId([9; 16]));
        id().check(vendor, version, job).unwrap();
        let told = |vendor, version, job| id().check(vendor, version, job).unwrap_err().to_string();
        let other = told(vendor, version, JobId([1; 16]));
        assert!(other.contains("0909") && other.contains("0101"), "{other}");
        let other = told(Vendor::Nvidia, version, job);
        assert!(other.contains("one of RCCL") && other.contains("opened NCCL"), "{other}");
        let other = told(vendor, Version::new(2, 21, 5), job);
        assert!(other.contains("RCCL 2.27.7") && other.contains("RCCL 2.21.5"), "{other}");
    }
}
