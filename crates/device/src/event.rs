//! Points in the order of streams, which other streams and the host wait for.

use std::sync::Arc;
use std::time::Instant;

use crate::driver::{Driver, Handle};
use crate::release::release;
use crate::stream::Queue;
use crate::{DeviceError, DeviceKind, Stream, host};

/// A point in a stream's order; clones are the same.
#[derive(Clone)]
pub struct Event {
    stream: Stream,
    mark: Mark,
}

#[derive(Clone)]
enum Mark {
    Host(host::Mark),
    Driver(Arc<RawEvent>),
}

struct RawEvent {
    driver: Arc<dyn Driver>,
    handle: Handle,
}

impl RawEvent {
    fn new(driver: &Arc<dyn Driver>) -> Result<RawEvent, DeviceError> {
        let (driver, handle) = (driver.clone(), driver.event_create()?);
        Ok(RawEvent { driver, handle })
    }
}

impl Drop for RawEvent {
    fn drop(&mut self) {
        let event = self.handle;
        release(&self.driver, move |driver| driver.event_destroy(event));
    }
}

impl Stream {
    /// The present end of the stream.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn record(&self) -> Result<Event, DeviceError> {
        let mark = match &self.queue {
            Queue::Host(stream) => Mark::Host(stream.record()?),
            Queue::Driver(raw) => {
                raw.refuse_in_capture("an event")?;
                let event = RawEvent::new(&raw.driver)?;
                raw.driver.event_record(event.handle, raw.handle)?;
                Mark::Driver(Arc::new(event))
            }
        };
        Ok(Event { stream: self.clone(), mark })
    }

    /// Lets the stream's later work wait for `event`; the caller goes on.
    ///
    /// # Errors
    /// An event of another device.
    pub fn wait_for(&self, event: &Event) -> Result<(), DeviceError> {
        if !event.stream.device().is_same(self.device()) {
            return Err(foreign(self.device().kind()));
        }
        match (&self.queue, &event.stream.queue, &event.mark) {
            (Queue::Host(stream), Queue::Host(source), Mark::Host(mark)) => {
                stream.wait_for(source, mark)
            }
            (Queue::Driver(raw), _, Mark::Driver(event)) => {
                raw.refuse_in_capture("an event")?;
                raw.driver.stream_wait(raw.handle, event.handle)
            }
            _ => Err(foreign(self.device().kind())),
        }
    }
}

impl Event {
    /// Blocks until everything launched before the event has run.
    ///
    /// # Errors
    /// The first error of those launches, or that some were left out because of it; a device that
    /// was given up; work that waits for itself. On devices with a driver also the error of later
    /// work on the host ([`Stream::host`]).
    pub fn wait(&self) -> Result<(), DeviceError> {
        self.wait_bounded(None).map(|_| ())
    }

    /// As [`Event::wait`] up to `at`: false if the event was not reached by then.
    ///
    /// # Errors
    /// As [`Event::wait`].
    pub fn wait_until(&self, at: Instant) -> Result<bool, DeviceError> {
        self.wait_bounded(Some(at))
    }

    /// Whether the event has been reached.
    ///
    /// # Errors
    /// As [`Event::wait`].
    pub fn query(&self) -> Result<bool, DeviceError> {
        self.wait_bounded(Some(Instant::now()))
    }

    /// Milliseconds of the device from `earlier` to this event; waits for both.
    ///
    /// # Errors
    /// A device on which times mean nothing; an error of the launches before; an event of another
    /// device.
    pub fn elapsed_ms(&self, earlier: &Event) -> Result<f64, DeviceError> {
        let device = self.stream.device().kind();
        if !earlier.stream.device().is_same(self.stream.device()) {
            return Err(foreign(device));
        }
        if device == DeviceKind::Guarded {
            return Err(DeviceError::NoClock { device });
        }
        if let (Some(start), Some(end)) = (earlier.reach()?, self.reach()?) {
            return Ok(end.saturating_duration_since(start).as_secs_f64() * 1e3);
        }
        match (&earlier.mark, &self.mark) {
            (Mark::Driver(start), Mark::Driver(end)) => {
                start.driver.event_synchronize(start.handle, None)?;
                end.driver.event_synchronize(end.handle, None)?;
                end.driver.event_elapsed_ms(start.handle, end.handle).map(f64::from)
            }
            _ => Err(foreign(device)),
        }
    }

    /// When an event of a host device was reached; waits for it.
    fn reach(&self) -> Result<Option<Instant>, DeviceError> {
        match (&self.stream.queue, &self.mark) {
            (Queue::Host(stream), Mark::Host(mark)) => stream.reach(mark, None),
            _ => Ok(None),
        }
    }

    fn wait_bounded(&self, until: Option<Instant>) -> Result<bool, DeviceError> {
        match (&self.stream.queue, &self.mark) {
            (Queue::Host(stream), Mark::Host(mark)) => {
                stream.reach(mark, until).map(|at| at.is_some())
            }
            (Queue::Driver(stream), Mark::Driver(event)) => {
                let reached = event.driver.event_synchronize(event.handle, until)?;
                stream.faults.report().map(|()| reached)
            }
            _ => Err(foreign(self.stream.device().kind())),
        }
    }
}

fn foreign(device: DeviceKind) -> DeviceError {
    DeviceError::Misuse { device, message: "the event is of another device".to_owned() }
}
