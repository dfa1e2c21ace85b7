//! The thread of a rank that writes down what the rank records.
//!
//! It looks 50 times a second and appends what it finds, so that a rank that is killed leaves all
//! but its last 20 ms. What goes wrong with the file ends the recording and nothing else, and is
//! told.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use comm::clocks::{self, Alignment};
use comm::{Channel, World};
use device::trace;

use super::chrome::Writer;
use super::plan::{Plan, Steps};
use crate::error::CliError;
use crate::limits;
use crate::output::complain;

/// How often the thread looks: what a ring takes meanwhile is [`trace::SPANS`].
const LOOK: Duration = Duration::from_millis(20);

/// How long the last write may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// Records until it is dropped.
pub struct Recorder {
    /// Dropped to end it.
    stop: Option<Sender<()>>,
    ended: Receiver<()>,
    /// Why there is no more of it.
    failure: Arc<OnceLock<String>>,
}

impl Recorder {
    /// Compares the clocks of all ranks and begins this one's part, if that is planned. Collective.
    /// A part that cannot be written is told and not had: a trace is never worth a run.
    ///
    /// # Errors
    /// Ranks that do not come to compare clocks.
    pub fn of_rank(plan: Option<&Plan>, world: &World) -> Result<Option<Recorder>, CliError> {
        let Some(plan) = plan else { return Ok(None) };
        let alignment = clocks::align(&*world.control(Channel::Training), world.rank())?;
        let begun = Recorder::start(&plan.part(world.rank()), world.rank(), alignment);
        Ok(Some(begun.unwrap_or_else(|error| Recorder::without(&error))))
    }

    /// One that records nothing.
    fn without(error: &CliError) -> Recorder {
        let (_, ended) = channel();
        let recorder = Recorder { stop: None, ended, failure: Arc::default() };
        fail(&recorder.failure, format!("no trace of this rank: {}", error.message));
        recorder
    }

    /// Why it records no more, if it does not.
    pub fn failure(&self) -> Option<&str> {
        self.failure.get().map(String::as_str)
    }

    /// Ends recording, waits for a moment until all of it is written, and returns why that failed.
    pub fn end(mut self) -> Option<String> {
        self.finish();
        self.failure().map(str::to_owned)
    }

    fn finish(&mut self) {
        trace::switch(false);
        if self.stop.take().is_some() {
            // A disk that hangs keeps nobody.
            let _ = self.ended.recv_timeout(PATIENCE);
        }
    }

    /// Begins the part at `path`; nothing is recorded before [`Recorder::look`] says so.
    ///
    /// # Errors
    /// The file cannot be made; the system has no thread to spare.
    fn start(path: &Path, rank: usize, alignment: Alignment) -> Result<Recorder, CliError> {
        let failed = |error: std::io::Error| CliError::file("write", path, &error);
        let (mut file, mut writer) =
            (File::create(path).map_err(failed)?, Writer::new(rank, alignment));
        let mut lines = Vec::new();
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        writer.begin(&mut lines, host.trim());
        file.write_all(&lines).map_err(failed)?;
        let ((stop, stopped), (end, ended)) = (channel(), channel());
        let path = path.to_owned();
        let failure = Arc::new(OnceLock::new());
        let failed_now = Arc::clone(&failure);
        let record = move || {
            let written = record(&mut file, &mut writer, &stopped);
            if let Err(error) = written {
                let path = path.display();
                fail(&failed_now, format!("its trace ends early: cannot write {path}: {error}"));
            }
            drop(end);
        };
        let thread = std::thread::Builder::new().name("recorder".into()).spawn(record);
        thread.map_err(|error| limits::refused("start a thread", &error))?;
        Ok(Recorder { stop: Some(stop), ended, failure })
    }

    /// Records from here on if the step after `taken` others is one of `steps`.
    pub fn look(&self, steps: Steps, taken: u64) {
        trace::switch(steps.contains(taken + 1));
    }
}

/// Notes why nothing is recorded from here on, for the log of this rank and for whoever asks.
fn fail(failure: &OnceLock<String>, why: String) {
    trace::refuse();
    complain(&why);
    let _ = failure.set(why);
}

fn record(file: &mut File, writer: &mut Writer, stopped: &Receiver<()>) -> std::io::Result<()> {
    let mut lines = Vec::new();
    loop {
        let is_last = !matches!(stopped.recv_timeout(LOOK), Err(RecvTimeoutError::Timeout));
        lines.clear();
        trace::drain(&mut |told| writer.tell(&mut lines, told));
        file.write_all(&lines)?;
        if is_last {
            return Ok(());
        }
    }
}

impl Drop for Recorder {
    /// As [`Recorder::end`].
    fn drop(&mut self) {
        self.finish();
    }
}
