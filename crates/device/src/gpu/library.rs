//! Opening a driver's library at run time.

use libloading::Library;

use crate::{DeviceError, DeviceKind};

/// A vendor's library: its name, where else it may be, and how a user gets it.
pub(crate) struct Wanted {
    pub(crate) device: DeviceKind,
    pub(crate) library: &'static str,
    pub(crate) candidates: Vec<String>,
    pub(crate) install: &'static str,
}

impl Wanted {
    /// The first candidate that opens, with its name.
    ///
    /// # Errors
    /// None does: all names, and the reason of the first that is more than absent.
    pub(crate) fn open(&self) -> Result<(Library, &str), DeviceError> {
        let mut reasons = Vec::new();
        for name in &self.candidates {
            // SAFETY: a driver's library runs its initializers, which is what it is opened for.
            match unsafe { Library::new(name) } {
                Ok(library) => return Ok((library, name)),
                Err(error) => reasons.push(reason(&error)),
            }
        }
        let present = |reason: &&String| !reason.contains("No such file or directory");
        let reason = reasons.iter().find(present).or(reasons.first());
        Err(DeviceError::Library {
            device: self.device,
            library: self.library,
            tried: self.candidates.join(", "),
            reason: reason.cloned().unwrap_or_default(),
            install: self.install,
        })
    }

    pub(crate) fn lacks(&self, name: &str, symbol: &'static str) -> DeviceError {
        let (device, install) = (self.device, self.install);
        DeviceError::Symbol { device, library: name.to_owned(), symbol, install }
    }
}

/// The loader's message, which the error itself leaves to its source.
pub(crate) fn reason(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}
