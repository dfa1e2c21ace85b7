//! Giving a device up from outside: nobody who watches one keeps it open.

use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use crate::{Device, DeviceError, Inner};

/// Between two looks at whether a device is to be given up.
const LOOK: Duration = Duration::from_millis(50);

/// A device as long as it is open.
#[derive(Clone)]
pub(crate) struct WeakDevice {
    inner: Weak<Inner>,
}

impl WeakDevice {
    /// As [`Device::abort`]; a device that is closed has nothing to give up.
    pub fn abort(&self, why: &str) {
        if let Some(inner) = self.inner.upgrade() {
            Device { inner }.abort(why);
        }
    }

    fn is_open(&self) -> bool {
        self.inner.strong_count() > 0
    }
}

impl Device {
    /// For whoever may have to give the device up, and must not keep it open.
    pub(crate) fn downgrade(&self) -> WeakDevice {
        WeakDevice { inner: Arc::downgrade(&self.inner) }
    }

    /// Gives the device up as soon as `why` has a reason ([`Device::abort`]). A thread asks 20
    /// times a second until then, or until the device is closed.
    ///
    /// # Errors
    /// There can be no further thread.
    pub fn give_up_when(
        &self,
        mut why: impl FnMut() -> Option<String> + Send + 'static,
    ) -> Result<(), DeviceError> {
        let device = self.downgrade();
        let work = move || {
            while device.is_open() {
                match why() {
                    Some(why) => return device.abort(&why),
                    None => thread::sleep(LOOK),
                }
            }
        };
        let begun = thread::Builder::new().name("watch".to_owned()).spawn(work);
        begun.map(drop).map_err(|source| DeviceError::Threads { threads: 1, source })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_device_is_given_up_from_outside_and_closed_all_the_same() {
        let device = Device::cpu(1).unwrap();
        let (sender, reasons) = mpsc::channel();
        device.give_up_when(move || reasons.try_recv().ok()).unwrap();
        let (hold, held) = mpsc::channel::<()>();
        device.stream().host(move || held.recv().or(Ok(()))).unwrap();
        sender.send("enough".to_owned()).unwrap();
        let told = device.stream().synchronize().unwrap_err();
        assert_eq!(told.to_string(), "cpu was given up: enough");
        drop(hold);

        let device = Device::cpu(1).unwrap();
        let (alive, gone) = mpsc::channel::<()>();
        let watch = move || {
            let _ = &alive;
            None
        };
        device.give_up_when(watch).unwrap();
        let weak = device.downgrade();
        drop(device);
        let ended = gone.recv_timeout(Duration::from_secs(60));
        assert_eq!(ended, Err(mpsc::RecvTimeoutError::Disconnected), "its thread has ended");
        assert!(!weak.is_open());
        weak.abort("nobody is there");
    }
}
