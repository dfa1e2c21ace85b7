//! The two vendors: their libraries' names, where they lie, and how a user gets them.

use std::fmt;
use std::path::{Path, PathBuf};

/// Whose library it is. Both have the same functions, and do not talk to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Vendor {
    /// NCCL, for NVIDIA's GPUs.
    Nvidia,
    /// RCCL, for AMD's GPUs.
    Amd,
}

impl Vendor {
    /// `NCCL` or `RCCL`.
    pub const fn library(self) -> &'static str {
        match self {
            Vendor::Nvidia => "NCCL",
            Vendor::Amd => "RCCL",
        }
    }

    /// The environment variable that names the library's file, before all other places.
    pub const fn variable(self) -> &'static str {
        match self {
            Vendor::Nvidia => "MUSTER_NCCL_LIB",
            Vendor::Amd => "MUSTER_RCCL_LIB",
        }
    }

    /// Names that the loader searches its own directories for, in this order.
    const fn names(self) -> [&'static str; 2] {
        match self {
            Vendor::Nvidia => ["libnccl.so.2", "libnccl.so"],
            Vendor::Amd => ["librccl.so.1", "librccl.so"],
        }
    }

    pub(crate) const fn install(self) -> &'static str {
        match self {
            Vendor::Nvidia => {
                "install libnccl2, or the Python wheel nvidia-nccl-cu13, or set MUSTER_NCCL_LIB to \
                 the library's file"
            }
            Vendor::Amd => {
                "install ROCm's package rccl, or set MUSTER_RCCL_LIB to the library's file, or \
                 ROCM_PATH"
            }
        }
    }

    /// The number that stands for the vendor in a [`crate::UniqueId`].
    pub(crate) const fn number(self) -> u8 {
        match self {
            Vendor::Nvidia => 1,
            Vendor::Amd => 2,
        }
    }

    pub(crate) fn of_number(number: u8) -> Option<Vendor> {
        [Vendor::Nvidia, Vendor::Amd].into_iter().find(|vendor| vendor.number() == number)
    }
}

impl fmt::Display for Vendor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.library())
    }
}

/// The part of the environment that decides where a library is looked for.
#[derive(Debug, Default, Clone)]
pub(crate) struct Places {
    /// Value of [`Vendor::variable`].
    pub(crate) named: Option<PathBuf>,
    /// `ROCM_PATH`.
    pub(crate) rocm: Option<PathBuf>,
    /// `site-packages` of an active environment (venv, conda) and of the user, where wheels lie.
    pub(crate) packages: Vec<PathBuf>,
}

/// Names to try, the best first. What a user has named is the only one.
pub(crate) fn candidates(vendor: Vendor, places: &Places) -> Vec<PathBuf> {
    if let Some(named) = &places.named {
        return vec![named.clone()];
    }
    let mut all: Vec<PathBuf> = vendor.names().map(PathBuf::from).into();
    match vendor {
        Vendor::Nvidia => {
            let inside = Path::new("nvidia/nccl/lib").join(vendor.names()[0]);
            all.extend(places.packages.iter().map(|packages| packages.join(&inside)));
        }
        Vendor::Amd => {
            let rocm = places.rocm.clone().into_iter().chain([PathBuf::from("/opt/rocm")]);
            all.extend(rocm.map(|rocm| rocm.join("lib").join(vendor.names()[0])));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(vendor: Vendor, places: &Places) -> Vec<String> {
        candidates(vendor, places).iter().map(|path| path.display().to_string()).collect()
    }

    #[test]
    fn the_loader_is_asked_first_and_then_wheels_and_rocm() {
        let places = Places {
            packages: vec!["/venv/lib/python3.12/site-packages".into()],
            rocm: Some("/rocm".into()),
            ..Places::default()
        };
        let wheel = "/venv/lib/python3.12/site-packages/nvidia/nccl/lib/libnccl.so.2";
        assert_eq!(shown(Vendor::Nvidia, &places), ["libnccl.so.2", "libnccl.so", wheel]);
        let [first, second] = ["/rocm/lib/librccl.so.1", "/opt/rocm/lib/librccl.so.1"];
        assert_eq!(shown(Vendor::Amd, &places), ["librccl.so.1", "librccl.so", first, second]);
    }

    #[test]
    fn a_library_that_the_user_names_is_the_only_one() {
        let places = Places { named: Some("/x/libnccl.so".into()), ..Places::default() };
        assert_eq!(shown(Vendor::Nvidia, &places), ["/x/libnccl.so"]);
    }

    #[test]
    fn numbers_are_those_of_one_vendor() {
        for vendor in [Vendor::Nvidia, Vendor::Amd] {
            assert_eq!(Vendor::of_number(vendor.number()), Some(vendor));
        }
        assert_eq!(Vendor::of_number(0), None);
    }
}
