//! A bucket and the threads that speak to it, for callers who wait.
//!
//! ```text
//! a thread of ours ── spawn ─▶ 2 threads of a runtime ─▶ requests, retried within the deadline
//!                  ◀─ answer, or Hung when the deadline has passed ──┘
//! ```
//! Only requests that may be repeated are: the library repeats those, and a condition that fails is
//! looked into ([`super::exclusive`]). No call waits longer than [`Limits::total`].

use std::future::Future;
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError, mpsc};
use std::time::Duration;

use object_store::ObjectStore;
use object_store::multipart::MultipartStore;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::JoinHandle;

use super::error::{Advice, ObjectError, explain};

/// All that is asked of a service.
pub trait Service: ObjectStore + MultipartStore {}

impl<S: ObjectStore + MultipartStore> Service for S {}

/// Times and sizes.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// A call gives up after so long, retries included.
    pub total: Duration,
    /// Bytes of a part of a long object.
    pub part_bytes: usize,
    /// Parts that are on their way at once, of all objects of a bucket together.
    pub in_flight: usize,
}

/// Stores take 10 000 parts of an object, so this allows for 78 GiB.
const PART_BYTES: usize = 8 << 20;

/// One connection carries some 50 to 100 MB/s of the large services.
const IN_FLIGHT: usize = 8;

/// Seconds until a call gives up, unless `MUSTER_STORE_SECONDS` says otherwise.
const TOTAL_SECONDS: u64 = 120;

impl Limits {
    pub(super) fn of_environment() -> Result<Limits, String> {
        let seconds = match std::env::var("MUSTER_STORE_SECONDS") {
            Err(_) => TOTAL_SECONDS,
            Ok(text) => {
                let seconds = text.parse().ok().filter(|seconds| (1..=86400).contains(seconds));
                seconds.ok_or_else(|| {
                    format!("MUSTER_STORE_SECONDS is `{text}`, not a number from 1 to 86400")
                })?
            }
        };
        Ok(Limits { total: Duration::from_secs(seconds), ..Limits::default() })
    }
}

/// The most that a writer of so many bytes, front to back, has in memory on their way.
pub fn upload_bytes(bytes: u64) -> u64 {
    bytes.min(((IN_FLIGHT + 1) * PART_BYTES) as u64)
}

impl Default for Limits {
    fn default() -> Limits {
        let total = Duration::from_secs(TOTAL_SECONDS);
        Limits { total, part_bytes: PART_BYTES, in_flight: IN_FLIGHT }
    }
}

/// A bucket. Clones share it.
#[derive(Clone)]
pub(super) struct Remote {
    pub service: Arc<dyn Service>,
    pub limits: Limits,
    pub advice: Arc<Advice>,
    slots: Arc<Slots>,
}

/// Leave to have a part on its way.
#[derive(Default)]
struct Slots {
    taken: Mutex<usize>,
    freed: Condvar,
}

/// One such leave, given back when it is dropped.
pub(super) struct Slot(Arc<Slots>);

impl Drop for Slot {
    fn drop(&mut self) {
        let mut taken = self.0.taken.lock().unwrap_or_else(PoisonError::into_inner);
        *taken = taken.saturating_sub(1);
        self.0.freed.notify_one();
    }
}

impl Remote {
    pub(super) fn new(service: Arc<dyn Service>, limits: Limits, advice: Advice) -> Remote {
        Remote { service, limits, advice: Arc::new(advice), slots: Arc::default() }
    }

    /// Waits until fewer parts than the limit are on their way: no longer than a call may last,
    /// since each of them is one.
    pub(super) fn slot(&self) -> Slot {
        let slots = &self.slots;
        let mut taken = slots.taken.lock().unwrap_or_else(PoisonError::into_inner);
        while *taken >= self.limits.in_flight.max(1) {
            taken = slots.freed.wait(taken).unwrap_or_else(PoisonError::into_inner);
        }
        *taken += 1;
        Slot(Arc::clone(slots))
    }

    /// Waits for an answer, but not for ever.
    ///
    /// # Errors
    /// As the store answers; [`ObjectError::Hung`].
    pub(super) fn ask<T: Send + 'static>(
        &self,
        call: impl Future<Output = object_store::Result<T>> + Send + 'static,
    ) -> Result<T, ObjectError> {
        self.ask_within(self.limits.total, call)
    }

    /// As [`Remote::ask`], for so long at most.
    ///
    /// # Errors
    /// As [`Remote::ask`].
    pub(super) fn ask_within<T: Send + 'static>(
        &self,
        limit: Duration,
        call: impl Future<Output = object_store::Result<T>> + Send + 'static,
    ) -> Result<T, ObjectError> {
        let (answer, answered) = mpsc::sync_channel(1);
        let handle = runtime(self)?;
        let task = async move {
            // Nobody listens any more where the caller has given up.
            let _ = answer.send(tokio::time::timeout(limit, call).await);
        };
        handle.spawn(task);
        match answered.recv() {
            Ok(Ok(result)) => result.map_err(|error| self.explain(error)),
            Ok(Err(_)) => Err(self.hung()),
            Err(_) => Err(self.broken("a request was dropped")),
        }
    }

    /// As [`Remote::ask`], without waiting: the result is told by `done`.
    pub(super) fn send<T: Send + 'static>(
        &self,
        call: impl Future<Output = object_store::Result<T>> + Send + 'static,
        done: impl FnOnce(Result<T, ObjectError>) + Send + 'static,
    ) -> Result<JoinHandle<()>, ObjectError> {
        let handle = runtime(self)?;
        let remote = self.clone();
        let limit = self.limits.total;
        Ok(handle.spawn(async move {
            done(match tokio::time::timeout(limit, call).await {
                Ok(result) => result.map_err(|error| remote.explain(error)),
                Err(_) => Err(remote.hung()),
            });
        }))
    }

    pub(super) fn explain(&self, error: object_store::Error) -> ObjectError {
        explain(error, &self.advice)
    }

    fn hung(&self) -> ObjectError {
        let Advice { bucket, seconds, .. } = self.advice.as_ref();
        ObjectError::Hung { bucket: bucket.clone(), seconds: *seconds }
    }

    fn broken(&self, reason: &str) -> ObjectError {
        ObjectError::Answer { bucket: self.advice.bucket.clone(), reason: reason.to_owned() }
    }
}

/// The threads that all buckets of this process share, started at the first request.
fn runtime(remote: &Remote) -> Result<&'static Handle, ObjectError> {
    static RUNTIME: OnceLock<Result<Runtime, String>> = OnceLock::new();
    let start = || {
        let mut builder = Builder::new_multi_thread();
        let builder = builder.worker_threads(2).thread_name("objects").enable_all();
        builder.build().map_err(|error| error.to_string())
    };
    match RUNTIME.get_or_init(start) {
        Ok(runtime) => Ok(runtime.handle()),
        Err(reason) => {
            let bucket = remote.advice.bucket.clone();
            Err(ObjectError::Setup { bucket, reason: reason.clone() })
        }
    }
}
