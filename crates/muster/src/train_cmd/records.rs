//! The records of a run that its supervisor keeps, and shows: events, the config, the plot.

use std::path::Path;
use std::time::Duration;

use train::Event;
use train::config::Config;
use train::event::FinishReason;

use super::job::Job;
use super::place::Place;
use super::signals::Signals;
use crate::console::Console;
use crate::error::CliError;
use crate::events::{self, EventLog};
use crate::limits;
use crate::run_dir::RunDir;

/// Where events go; node 0 alone keeps them, and begins with the header.
///
/// # Errors
/// The file of events cannot be written.
pub fn begin_events(
    place: &Place,
    run: &RunDir,
    header: impl FnOnce() -> Result<train::event::Header, CliError>,
) -> Result<EventSink, CliError> {
    let log = (place.node == 0).then(|| EventLog::append(&run.events())).transpose()?;
    let mut sink = EventSink { console: Console::new(), log, has_failed: false };
    if place.node == 0 {
        sink.tell(&Event::Header(header()?));
    }
    Ok(sink)
}

/// Shows events and keeps them.
pub struct EventSink {
    console: Console,
    /// On host 0, where the events are.
    log: Option<EventLog>,
    has_failed: bool,
}

impl EventSink {
    /// The run goes on without a log: stopping would lose more than lines, and what fills a disk
    /// keeps a checkpoint from it too.
    pub fn tell(&mut self, event: &Event) {
        self.console.show(event);
        if let Some(Err(error)) = self.log.as_mut().map(|log| log.write(event))
            && !std::mem::replace(&mut self.has_failed, true)
        {
            self.warn(&format!("{}; training goes on, events are missing there", error.message));
        }
    }

    pub fn warn(&mut self, message: &str) {
        self.console.show(&Event::Warning { message: message.to_owned() });
    }
}

/// The supervisor's part of the records, most of it written when the ranks are done.
pub struct Finish<'a> {
    pub job: &'a Job,
    pub run: &'a RunDir,
    pub has_begun: bool,
}

impl Finish<'_> {
    /// Handles an event of the ranks.
    pub fn hear(&mut self, event: Event, signals: &Signals, sink: &mut EventSink) {
        // Not before the ranks agree and have loaded what they go on from: until then the
        // directory may be another run's, whose checkpoints need its config.
        let begins = !matches!(event, Event::Warning { .. });
        if begins && !std::mem::replace(&mut self.has_begun, true) {
            let kept = keep_config(&self.job.config, self.run);
            kept.unwrap_or_else(|error| sink.warn(&error.message));
        }
        match event {
            Event::Finished(finished) => self.end(finished, signals, sink),
            event => sink.tell(&event),
        }
    }

    /// The weights are saved: what fails from here on is told and ends nothing.
    fn end(&self, finished: train::event::Finished, signals: &Signals, sink: &mut EventSink) {
        if finished.reason == FinishReason::Complete && finished.final_loss.is_some() {
            match self.baseline(signals) {
                Ok(event) => event.iter().for_each(|event| sink.tell(event)),
                Err(error) => sink.warn(&format!("no baseline: {}", error.message)),
            }
        }
        sink.tell(&Event::Finished(finished));
        match self.plot() {
            Ok(0) => {}
            Ok(others) => sink.warn(&format!(
                "{} of {} left out of the plot: no event of this version",
                crate::console::plural(others, "line"),
                self.run.events().display(),
            )),
            Err(error) => sink.warn(&format!("no plot: {}", error.message)),
        }
    }

    /// The byte model to beat, on the windows that validation read. Counting takes a while on much
    /// text; whoever asks to stop does without it.
    fn baseline(&self, signals: &Signals) -> Result<Option<Event>, CliError> {
        let config = &self.job.config;
        let fraction = config.data.validation_fraction;
        let prepared = &self.job.prepared;
        let dataset = data::Dataset::open(prepared, config.batch.seq_len, config.seed, fraction)?;
        let samples = match config.train.eval_samples {
            0 => dataset.validation_samples(),
            most => most.min(dataset.validation_samples()),
        };
        let tokenizer = dataset.tokenizer()?;
        let count = move || data::order2_bits_per_byte_of(&dataset, &tokenizer, samples);
        let counting = std::thread::Builder::new().name("baseline".into()).spawn(count);
        let counting = counting.map_err(|error| limits::refused("start a thread", &error))?;
        while !counting.is_finished() {
            if signals.interrupts() + signals.terminations() > 0 {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        // Token files without text have no bytes to compare on; that is no failure.
        let model = counting.join().ok().and_then(Result::ok);
        Ok(model.map(|model| Event::Baseline {
            bits_per_byte: model.bits_per_byte,
            train_bytes: model.train_bytes,
            validation_bytes: model.validation_bytes,
        }))
    }

    /// Draws all that the event file holds; returns how many lines were no events.
    fn plot(&self) -> Result<usize, CliError> {
        let (events, others) = events::read(&self.run.events())?;
        if let Some(svg) = crate::plot::loss_svg(&events)? {
            write(&self.run.plot(), svg.as_bytes())?;
        }
        Ok(others)
    }
}

/// A config as the file of a run has it.
///
/// # Errors
/// None of a config.
pub fn as_yaml(config: &Config) -> Result<String, CliError> {
    // Through JSON's data model, in which enums are single-key maps.
    let value = serde_json::to_value(config).map_err(CliError::bug)?;
    serde_yaml::to_string(&value).map_err(CliError::bug)
}

/// Writes `config.yaml`, whole or not at all.
fn keep_config(config: &Config, run: &RunDir) -> Result<(), CliError> {
    let text = as_yaml(config)?;
    let temporary = run.config().with_extension("yaml.tmp");
    write(&temporary, text.as_bytes())?;
    std::fs::rename(&temporary, run.config()).map_err(|error| {
        CliError::mistake(format!("cannot write {}: {error}", run.config().display()))
    })
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), CliError> {
    std::fs::write(path, bytes)
        .map_err(|error| CliError::mistake(format!("cannot write {}: {error}", path.display())))
}
