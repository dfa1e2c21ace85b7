//! The time of a host device's kernels, by name: kept only while somebody wants to know.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The calls of one kernel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Operation {
    pub calls: u64,
    pub time: Duration,
    /// Floating-point operations; 0 for kernels that do not count them.
    pub flops: u64,
    /// Bytes of the operands, each counted once; 0 for kernels that do not count them.
    pub bytes: u64,
}

/// The work that a kernel counted for itself.
#[derive(Debug, Default)]
pub(crate) struct Work {
    pub flops: Cell<u64>,
    pub bytes: Cell<u64>,
    /// Whether its operands are everything that it asks for.
    pub streams: Cell<bool>,
}

/// The operations of a device.
#[derive(Default)]
pub(crate) struct Profile {
    on: AtomicBool,
    operations: Mutex<BTreeMap<&'static str, Operation>>,
}

impl Profile {
    pub(crate) fn begin(&self) {
        self.operations.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.on.store(true, Ordering::Relaxed);
    }

    pub(crate) fn end(&self) -> Vec<(&'static str, Operation)> {
        self.on.store(false, Ordering::Relaxed);
        let mut operations = self.operations.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *operations).into_iter().collect()
    }

    /// The start of a kernel, if it is to be timed.
    pub(crate) fn start(&self) -> Option<Instant> {
        self.on.load(Ordering::Relaxed).then(Instant::now)
    }

    pub(crate) fn add(&self, name: &'static str, start: Instant, (flops, bytes): (u64, u64)) {
        let time = start.elapsed();
        let mut operations = self.operations.lock().unwrap_or_else(PoisonError::into_inner);
        let operation = operations.entry(name).or_default();
        operation.calls += 1;
        operation.time += time;
        operation.flops += flops;
        operation.bytes += bytes;
    }
}

#[cfg(test)]
mod tests {
    use crate::{DType, Device};

    #[test]
    fn kernels_are_counted_while_somebody_wants_to_know() {
        let device = Device::cpu(1).unwrap();
        let (stream, x) = (device.stream(), device.zeros(&[1000], DType::F32).unwrap());
        let launch = |name| {
            let x = x.clone();
            let kernel = move |k: &crate::Kernel| {
                k.read::<f32>(&x)?;
                k.streams();
                k.flops(2000);
                Ok(())
            };
            stream.launch(name, kernel).unwrap();
        };
        launch("before");
        device.begin_profile();
        launch("b");
        launch("a");
        launch("b");
        let seen = device.end_profile();
        launch("after");
        let told = seen.iter().map(|(name, o)| (*name, o.calls, o.flops, o.bytes));
        assert_eq!(told.collect::<Vec<_>>(), [("a", 1, 2000, 4000), ("b", 2, 4000, 8000)]);
        assert_eq!(device.end_profile(), []);
    }
}
