//! The two vendors' numbers behind one set of names.
//!
//! CUDA and HIP agree in most error codes and flags and in hardly any attribute; each is written
//! once, here, in two columns.

/// What a driver's error code means to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    InvalidValue,
    OutOfMemory,
    NotInitialized,
    NoDevice,
    InvalidDevice,
    InvalidImage,
    InvalidContext,
    NoBinaryForDevice,
    InvalidHandle,
    NotFound,
    NotReady,
    IllegalAddress,
    OutOfResources,
    LaunchFailed,
    Capture,
    OldDriver,
    Other,
}

/// Code, its meaning; where both vendors have it, they agree.
#[cfg(test)]
const CODES: &[(i32, Failure)] = &[
    (1, Failure::InvalidValue),
    (2, Failure::OutOfMemory),
    (3, Failure::NotInitialized),
    (35, Failure::OldDriver),
    (100, Failure::NoDevice),
    (101, Failure::InvalidDevice),
    (200, Failure::InvalidImage),
    (201, Failure::InvalidContext),
    (209, Failure::NoBinaryForDevice),
    (218, Failure::InvalidImage),
    (222, Failure::OldDriver),
    (400, Failure::InvalidHandle),
    (500, Failure::NotFound),
    (600, Failure::NotReady),
    (700, Failure::IllegalAddress),
    (701, Failure::OutOfResources),
    (719, Failure::LaunchFailed),
    (803, Failure::OldDriver),
    (900, Failure::Capture),
    (901, Failure::Capture),
    (902, Failure::Capture),
    (903, Failure::Capture),
    (904, Failure::Capture),
    (905, Failure::Capture),
    (906, Failure::Capture),
    (907, Failure::Capture),
    (908, Failure::Capture),
];

impl Failure {
    #[cfg(test)]
    pub(crate) fn of(code: i32) -> Failure {
        CODES.iter().find(|(known, _)| *known == code).map_or(Failure::Other, |&(_, it)| it)
    }

    /// What to do, as the end of a message; empty where nothing general can be said.
    pub(crate) const fn advice(self) -> &'static str {
        match self {
            Failure::OutOfMemory => "; device memory is full: lower the batch or the model",
            Failure::NoBinaryForDevice => "; the module holds no code for this device",
            Failure::OldDriver => "; the driver is older than the module: update the driver",
            Failure::IllegalAddress | Failure::LaunchFailed => {
                "; a kernel failed, and the device can do no more work in this process"
            }
            Failure::OutOfResources => "; the kernel needs more registers than a block may have",
            Failure::Capture => "; that cannot be part of a captured graph",
            _ => "",
        }
    }
}
