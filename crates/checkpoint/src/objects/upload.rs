//! An object being written: front to back or at any place, by several threads.
//!
//! ```text
//! write ─▶ Parts ─ whole part ─▶ sent
//! sync  ─▶ the rest ─▶ one conditional put, if nothing was sent yet
//!                   ─▶ else the last parts, then "complete": the object appears, whole
//! dropped before ─▶ "abort": the parts are given back as far as the store can be asked
//! ```
//! Nothing is visible before `sync`. Memory: the parts on their way, of all objects at most
//! `in_flight`, and those that have begun: one where the object is written front to back, at most
//! the object's length else.
//!
//! The completion of a long object cannot be made conditional everywhere. That two write the same
//! one is excluded by the directory, which is created by one (see [`super::ObjectDisk`]); an object
//! that is there before the first part is sent is refused.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use object_store::multipart::PartId;
use object_store::path::Path as Key;
use object_store::{PutMultipartOptions, PutPayload};
use tokio::task::JoinHandle;

use super::error::ObjectError;
use super::exclusive::{Bears, Token, create, look};
use super::parts::{Parts, Whole};
use super::remote::Remote;
use crate::disk::WriteFile;

/// Stores take no more parts than this.
const MAX_PARTS: usize = 10_000;

/// An upload that failed is given back within so long, or left.
const PATIENCE: Duration = Duration::from_secs(10);

/// An object that is not there yet.
pub(super) struct Upload {
    remote: Remote,
    key: Key,
    state: Arc<Shared>,
    /// Bytes written front to back.
    written: u64,
}

/// Shared by writers and requests.
struct Shared {
    state: Mutex<State>,
    /// Rung when a part has arrived, or failed.
    arrived: Condvar,
}

struct State {
    parts: Parts,
    /// Once the first part is to be sent.
    sending: Option<Sending>,
    in_flight: usize,
    failed: Option<ObjectError>,
    is_done: bool,
}

/// An upload in parts.
struct Sending {
    id: String,
    token: Token,
    arrived: Vec<Option<PartId>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Upload {
    pub(super) fn new(remote: Remote, key: Key) -> Upload {
        let state = State {
            parts: Parts::new(remote.limits.part_bytes),
            sending: None,
            in_flight: 0,
            failed: None,
            is_done: false,
        };
        let state = Shared { state: Mutex::new(state), arrived: Condvar::new() };
        Upload { remote, key, state: Arc::new(state), written: 0 }
    }

    /// Takes bytes, and sends the part that they complete.
    fn put(&self, bytes: &[u8], offset: u64) -> Result<usize, ObjectError> {
        let most = (MAX_PARTS * self.remote.limits.part_bytes) as u64;
        if offset.saturating_add(bytes.len() as u64) > most {
            let part = self.remote.limits.part_bytes as u64;
            return Err(ObjectError::TooLong { most, part });
        }
        let mut state = self.state.lock();
        state.check()?;
        let (count, whole) = state.parts.put(bytes, offset)?;
        if let Some(whole) = whole {
            self.send(state, whole)?;
        }
        Ok(count)
    }

    /// Sends a part, as soon as fewer than the limit are on their way.
    fn send(&self, mut state: MutexGuard<'_, State>, part: Whole) -> Result<(), ObjectError> {
        if state.sending.is_none() {
            // Other writers wait here for the lock: there is nothing to send before.
            let begun = self.begin().inspect_err(|error| state.failed = Some(error.clone()))?;
            state.sending = Some(begun);
        }
        drop(state);
        let slot = self.remote.slot();
        let mut state = self.state.lock();
        state.check()?;
        let Some(sending) = &mut state.sending else { return Ok(()) };
        let Whole { number, bytes } = part;
        let (service, key) = (self.remote.service.clone(), self.key.clone());
        let (id, shared) = (sending.id.clone(), Arc::clone(&self.state));
        let call = async move {
            let sent = service.put_part(&key, &id, number, PutPayload::from(bytes)).await;
            drop(slot);
            sent
        };
        let task = self.remote.send(call, move |result| shared.arrive(number, result))?;
        sending.tasks.push(task);
        state.in_flight += 1;
        Ok(())
    }

    fn begin(&self) -> Result<Sending, ObjectError> {
        let token = Token::new(&self.remote)?;
        match look(&self.remote, &self.key, &token)? {
            Bears::Nothing => {}
            Bears::Ours(_) | Bears::Anothers(_) => return Err(ObjectError::Exists),
        }
        let (service, key) = (self.remote.service.clone(), self.key.clone());
        let attributes = token.attributes();
        let options = PutMultipartOptions { attributes, ..PutMultipartOptions::default() };
        let id = self.remote.ask(async move {
            match service.create_multipart_opts(&key, options).await {
                // Not every service takes metadata here.
                Err(object_store::Error::NotSupported { .. }) => {
                    service.create_multipart(&key).await
                }
                result => result,
            }
        })?;
        Ok(Sending { id, token, arrived: Vec::new(), tasks: Vec::new() })
    }

    /// Sends what is left and lets the object appear.
    fn finish(&self) -> Result<(), ObjectError> {
        let mut state = self.state.lock();
        state.check()?;
        if state.parts.is_single() {
            let bytes = state.parts.next_left().map(|part| part.bytes).unwrap_or_default();
            drop(state);
            return create(&self.remote, &self.key, Bytes::from(bytes));
        }
        while let Some(part) = state.parts.next_left() {
            self.send(state, part)?;
            state = self.state.lock();
        }
        while state.in_flight > 0 && state.failed.is_none() {
            state = self.state.wait(state);
        }
        state.check()?;
        let bytes = state.parts.end();
        let Some(sending) = &mut state.sending else { return Ok(()) };
        let parts: Option<Vec<PartId>> = std::mem::take(&mut sending.arrived).into_iter().collect();
        let (id, token) = (sending.id.clone(), sending.token.clone());
        drop(state);
        // Every part that was sent has arrived.
        let parts = parts.ok_or(ObjectError::NotFound)?;
        self.complete(id, &token, parts, bytes)
    }

    fn complete(
        &self,
        id: String,
        token: &Token,
        parts: Vec<PartId>,
        bytes: u64,
    ) -> Result<(), ObjectError> {
        let (service, key) = (self.remote.service.clone(), self.key.clone());
        let call = async move { service.complete_multipart(&key, &id, parts).await.map(drop) };
        match self.remote.ask(call) {
            // An answer that was lost leaves the object there, and the upload gone.
            Err(error) if error.is_doubtful() => match look(&self.remote, &self.key, token)? {
                Bears::Ours(found) if found == bytes => Ok(()),
                // Of a service without metadata: nobody else writes in this directory.
                Bears::Anothers(found) if found == bytes => Ok(()),
                _ => Err(error),
            },
            result => result,
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.arrived.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    fn arrive(&self, number: usize, result: Result<PartId, ObjectError>) {
        let mut state = self.lock();
        state.in_flight = state.in_flight.saturating_sub(1);
        match (result, &mut state.sending) {
            (Ok(part), Some(sending)) => {
                if sending.arrived.len() <= number {
                    sending.arrived.resize_with(number + 1, || None);
                }
                sending.arrived[number] = Some(part);
            }
            (Ok(_), None) => {}
            (Err(error), _) => state.failed = Some(error),
        }
        self.arrived.notify_all();
    }
}

impl State {
    /// The first failure is everyone's.
    fn check(&self) -> Result<(), ObjectError> {
        self.failed.clone().map_or(Ok(()), Err)
    }
}

impl WriteFile for Upload {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.put(bytes, self.written)?;
        self.written += count as u64;
        Ok(count)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        Ok(self.put(bytes, offset)?)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.finish()?;
        self.state.lock().is_done = true;
        Ok(())
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let mut state = self.state.lock();
        if state.is_done {
            return;
        }
        let Some(Sending { id, tasks, .. }) = state.sending.take() else { return };
        drop(state);
        tasks.iter().for_each(JoinHandle::abort);
        let (service, key) = (self.remote.service.clone(), self.key.clone());
        // One that cannot be given back now is for the bucket's own rule about unfinished uploads.
        let call = async move { service.abort_multipart(&key, &id).await };
        let _ = self.remote.ask_within(PATIENCE.min(self.remote.limits.total), call);
    }
}
