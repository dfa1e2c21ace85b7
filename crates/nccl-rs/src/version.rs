//! Versions of the library, and what the two encodings of a version's number are.

use std::fmt;

/// A version of NCCL or RCCL, whose numbers RCCL takes from the NCCL that it follows.
///
/// ```
/// use nccl_rs::Version;
///
/// assert_eq!(Version::from_code(22105).to_string(), "2.21.5");
/// assert!(Version::from_code(2804) < Version::new(2, 18, 0));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    pub major: u16,
    pub minor: u16,
    pub patch: u16,
}

impl Version {
    /// Since when communicators can be split; older ones are refused.
    pub const BASELINE: Version = Version::new(2, 18, 0);

    pub const fn new(major: u16, minor: u16, patch: u16) -> Version {
        Version { major, minor, patch }
    }

    /// From what `ncclGetVersion` tells: `major·1000 + minor·100 + patch` up to 2.8, and
    /// `major·10000 + minor·100 + patch` from 2.9 on (`NCCL_VERSION` in nccl.h).
    pub const fn from_code(code: u32) -> Version {
        let (major, minor) = if code < 10_000 {
            (code / 1000, code / 100 % 10)
        } else {
            (code / 10_000, code / 100 % 100)
        };
        Version { major: major as u16, minor: minor as u16, patch: (code % 100) as u16 }
    }

    /// As `ncclGetVersion` tells it.
    pub const fn code(self) -> u32 {
        let (major, minor, patch) = (self.major as u32, self.minor as u32, self.patch as u32);
        match major == 2 && minor <= 8 || major < 2 {
            true => major * 1000 + minor * 100 + patch,
            false => major * 10_000 + minor * 100 + patch,
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_encodings_are_read_and_written() {
        for (code, text) in
            [(2708, "2.7.8"), (2804, "2.8.4"), (20_906, "2.9.6"), (23_007, "2.30.7")]
        {
            let version = Version::from_code(code);
            assert_eq!((version.to_string().as_str(), version.code()), (text, code));
        }
    }

    #[test]
    fn versions_are_ordered_by_their_numbers() {
        assert!(Version::from_code(2804) < Version::from_code(20_906));
        assert!(Version::from_code(22_809) < Version::from_code(23_003));
    }
}
