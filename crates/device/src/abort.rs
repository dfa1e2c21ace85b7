//! Giving a device up: from then on nothing waits for it.

use crate::sync::OnceLock;
use crate::{DeviceError, DeviceKind};

#[derive(Default)]
pub(crate) struct Abort {
    why: OnceLock<Box<str>>,
}

impl Abort {
    /// The first reason stays; false if there was one.
    pub(crate) fn set(&self, why: &str) -> bool {
        self.why.set(why.into()).is_ok()
    }

    pub(crate) fn is_set(&self) -> bool {
        self.why.get().is_some()
    }

    /// # Errors
    /// The device was given up.
    pub(crate) fn check(&self, device: DeviceKind) -> Result<(), DeviceError> {
        match self.why.get() {
            None => Ok(()),
            Some(why) => Err(DeviceError::Aborted { device, why: why.to_string() }),
        }
    }
}
