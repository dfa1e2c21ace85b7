//! Names of devices and of the architectures that kernels are compiled for.

use std::fmt;
use std::str::FromStr;

use crate::DeviceError;

/// An architecture for which there are kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Arch {
    /// NVIDIA from compute capability 8.0 on, through the instructions that all of them have.
    Sm80,
    /// Hopper: H100, H200.
    Sm90a,
    /// Blackwell: B100, B200.
    Sm100a,
    /// CDNA 2: MI210, MI250.
    Gfx90a,
    /// CDNA 3: MI300, MI325.
    Gfx942,
    /// CDNA 4: MI350, MI355.
    Gfx950,
}

impl Arch {
    pub const ALL: [Arch; 6] =
        [Arch::Sm80, Arch::Sm90a, Arch::Sm100a, Arch::Gfx90a, Arch::Gfx942, Arch::Gfx950];

    /// The compiler's name.
    pub const fn name(self) -> &'static str {
        match self {
            Arch::Sm80 => "sm_80",
            Arch::Sm90a => "sm_90a",
            Arch::Sm100a => "sm_100a",
            Arch::Gfx90a => "gfx90a",
            Arch::Gfx942 => "gfx942",
            Arch::Gfx950 => "gfx950",
        }
    }

    /// Whether NVIDIA makes it; else AMD.
    pub(crate) const fn is_nvidia(self) -> bool {
        matches!(self, Arch::Sm80 | Arch::Sm90a | Arch::Sm100a)
    }

    /// Lanes of a wave (a warp).
    pub const fn wave(self) -> u32 {
        if self.is_nvidia() { 32 } else { 64 }
    }

    /// Shared memory (LDS) that one block may ask for.
    pub const fn shared_bytes_per_block(self) -> u32 {
        match self {
            Arch::Sm80 => 163 << 10,
            Arch::Sm90a | Arch::Sm100a => 227 << 10,
            Arch::Gfx90a | Arch::Gfx942 => 64 << 10,
            Arch::Gfx950 => 160 << 10,
        }
    }

    /// Which kernels an NVIDIA device of this compute capability runs; `None` below 8.0.
    pub(crate) const fn of_compute_capability(major: i32, minor: i32) -> Option<Arch> {
        match (major, minor) {
            (9, 0) => Some(Arch::Sm90a),
            (10, 0) => Some(Arch::Sm100a),
            (8.., _) => Some(Arch::Sm80),
            _ => None,
        }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Arch {
    type Err = DeviceError;

    /// The compiler's name; AMD's feature suffixes (`gfx942:sramecc+:xnack-`) are ignored.
    fn from_str(word: &str) -> Result<Arch, DeviceError> {
        let name = word.split(':').next().unwrap_or(word);
        let found = Arch::ALL.into_iter().find(|arch| arch.name() == name);
        found.ok_or_else(|| DeviceError::UnknownArch { got: word.to_owned() })
    }
}

/// Which device this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeviceKind {
    /// Host memory; a launch runs at once where its stream is idle.
    Cpu,
    /// Host memory that is inaccessible outside kernels and copies; a launch runs late, and what
    /// events do not order in an order that a seed draws.
    Guarded,
    /// Device kernels, compiled for the CPU with models of the vendor's instructions.
    Sim(Arch),
    /// An NVIDIA device, by number.
    Cuda(u32),
    /// An AMD device, by number.
    Hip(u32),
}

impl DeviceKind {
    /// Whether kernels are closures over host memory ([`crate::Stream::launch`]); else they come
    /// from modules ([`crate::Device::load_module`]).
    pub const fn is_host(self) -> bool {
        matches!(self, DeviceKind::Cpu | DeviceKind::Guarded)
    }
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceKind::Cpu => f.write_str("cpu"),
            DeviceKind::Guarded => f.write_str("guarded"),
            DeviceKind::Sim(arch) => write!(f, "sim:{arch}"),
            DeviceKind::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
            DeviceKind::Hip(ordinal) => write!(f, "hip:{ordinal}"),
        }
    }
}

impl FromStr for DeviceKind {
    type Err = DeviceError;

    fn from_str(word: &str) -> Result<DeviceKind, DeviceError> {
        let unknown = || DeviceError::UnknownDevice { got: word.to_owned() };
        let (name, detail) = match word.split_once(':') {
            Some((name, detail)) => (name, Some(detail)),
            None => (word, None),
        };
        let ordinal = || match detail {
            None => Ok(0),
            Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => {
                digits.parse().map_err(|_| unknown())
            }
            Some(_) => Err(unknown()),
        };
        match (name, detail) {
            ("cpu", None) => Ok(DeviceKind::Cpu),
            ("guarded", None) => Ok(DeviceKind::Guarded),
            ("sim", None) => Ok(DeviceKind::Sim(Arch::Sm90a)),
            // The features that a driver tells are no part of a name that is typed.
            ("sim", Some(arch)) if arch.contains(':') => Err(unknown()),
            ("sim", Some(arch)) => Ok(DeviceKind::Sim(arch.parse()?)),
            ("cuda", _) => Ok(DeviceKind::Cuda(ordinal()?)),
            ("hip", _) => Ok(DeviceKind::Hip(ordinal()?)),
            _ => Err(unknown()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        let sims = Arch::ALL.map(DeviceKind::Sim);
        let rest = [DeviceKind::Cpu, DeviceKind::Guarded, DeviceKind::Cuda(3), DeviceKind::Hip(12)];
        for kind in sims.into_iter().chain(rest) {
            assert_eq!(kind.to_string().parse::<DeviceKind>().unwrap(), kind);
        }
        assert_eq!("sim".parse::<DeviceKind>().unwrap(), DeviceKind::Sim(Arch::Sm90a));
        assert_eq!("cuda".parse::<DeviceKind>().unwrap(), DeviceKind::Cuda(0));
        assert_eq!("gfx942:sramecc+:xnack-".parse::<Arch>().unwrap(), Arch::Gfx942);
        let typed = "sim:gfx942:xnack-".parse::<DeviceKind>();
        assert!(matches!(typed, Err(DeviceError::UnknownDevice { .. })), "{typed:?}");
    }

    #[test]
    fn other_words_are_refused_with_the_choice() {
        for word in ["", "cpu:0", "gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:+1", "hip:99999999999"]
        {
            let message = word.parse::<DeviceKind>().unwrap_err().to_string();
            assert!(message.contains("`cuda:0`"), "{word}: {message}");
        }
        let message = "sim:sm_70".parse::<DeviceKind>().unwrap_err().to_string();
        assert!(message.contains("sm_70") && message.contains("gfx942"), "{message}");
    }

    #[test]
    fn capabilities_choose_the_kernels() {
        let of = Arch::of_compute_capability;
        assert_eq!(of(9, 0), Some(Arch::Sm90a));
        assert_eq!(of(10, 0), Some(Arch::Sm100a));
        for other in [(8, 0), (8, 6), (8, 9), (10, 3), (12, 0)] {
            assert_eq!(of(other.0, other.1), Some(Arch::Sm80), "{other:?}");
        }
        assert_eq!(of(7, 5), None);
    }
}
