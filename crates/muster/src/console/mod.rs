//! The view that a person has of a run: a progress bar on a terminal, plain lines anywhere else.
//!
//! [`Renderer`] decides every line; [`Console`] only puts them where they belong. Lines go to
//! standard output, bars to standard error.

mod render;
mod units;

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use train::event::Event;

use crate::output::{complain, tell, visible};

pub use render::{Renderer, plural};
pub use units::{bytes, count, duration, short};

/// The bars of this process, so that whoever ends it can clear them.
fn bars() -> &'static MultiProgress {
    static BARS: OnceLock<MultiProgress> = OnceLock::new();
    BARS.get_or_init(MultiProgress::new)
}

/// Clears bars and shows the cursor. Safe at any time, more than once.
pub fn restore_terminal() {
    if std::io::stderr().is_terminal() {
        let _ = bars().clear();
        let _ = std::io::stderr().write_all(b"\x1b[?25h");
    }
}

/// A run's console.
pub struct Console {
    renderer: Renderer,
    bar: Option<ProgressBar>,
    on_terminal: bool,
}

impl Default for Console {
    fn default() -> Console {
        Console::new()
    }
}

impl Console {
    /// Bars if standard error is a terminal; bold text if standard output is one that wants it.
    pub fn new() -> Console {
        let wants_color = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let color = std::io::stdout().is_terminal() && wants_color;
        let on_terminal = std::io::stderr().is_terminal();
        Console { renderer: Renderer::new(color), bar: None, on_terminal }
    }

    /// The lines that an event is worth.
    pub fn lines(&mut self, event: &Event) -> String {
        self.renderer.render(event)
    }

    /// Shows an event.
    pub fn show(&mut self, event: &Event) {
        let lines = self.lines(event);
        if !lines.is_empty() {
            self.print(&lines);
        }
        match event {
            Event::Header(header) if self.on_terminal => {
                self.bar = Some(bars().add(step_bar(header.steps)));
            }
            Event::Resumed(resumed) => {
                if let Some(bar) = &self.bar {
                    bar.set_position(resumed.step);
                    // Steps done before say nothing about the time left.
                    bar.reset_eta();
                }
            }
            Event::Step(step) => {
                if let Some(bar) = &self.bar {
                    bar.set_position(step.step);
                    bar.set_message(format!("loss {:.4}", step.loss));
                }
            }
            Event::Finished(_) => {
                if let Some(bar) = self.bar.take() {
                    bar.finish_and_clear();
                }
            }
            _ => {}
        }
    }

    /// Prints lines above the bar.
    pub fn print(&self, lines: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| tell(lines)),
            None => tell(lines),
        }
    }
}

fn step_bar(steps: u64) -> ProgressBar {
    let template = "{wide_bar} {pos}/{len} steps, {eta} left, {msg}";
    let style = ProgressStyle::with_template(template).expect("a constant template");
    ProgressBar::new(steps).with_style(style)
}

/// Of work whose end is not known.
fn endless_style() -> ProgressStyle {
    let template = "{msg} {spinner} {bytes} {bytes_per_sec}";
    ProgressStyle::with_template(template).expect("a constant template")
}

/// Progress through the cases of a benchmark: a bar on a terminal, a line for each elsewhere.
pub struct CaseProgress {
    bar: Option<ProgressBar>,
    of: u64,
}

impl CaseProgress {
    /// Nothing done yet of so many cases.
    pub fn new(of: usize) -> CaseProgress {
        let of = of as u64;
        let bar = std::io::stderr().is_terminal().then(|| {
            let template = "{wide_bar} {pos}/{len} cases, {eta} left, {msg}";
            let style = ProgressStyle::with_template(template).expect("a constant template");
            bars().add(ProgressBar::new(of).with_style(style))
        });
        CaseProgress { bar, of }
    }

    /// So many are done, the last of which is `what`.
    pub fn update(&self, done: usize, what: &str) {
        match &self.bar {
            Some(bar) => {
                bar.set_message(visible(what));
                bar.set_position(done as u64);
            }
            None => complain(&format!("{done} of {}: {what}", self.of)),
        }
    }

    /// A line above the bar.
    pub fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| complain(text)),
            None => complain(text),
        }
    }
}

impl Drop for CaseProgress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Plain progress lines come this far apart.
const PLAIN_INTERVAL: Duration = Duration::from_secs(10);

/// Progress through bytes: a bar on a terminal, a line now and then elsewhere.
pub struct ByteProgress {
    what: String,
    bar: Option<ProgressBar>,
    started: Instant,
    said: Instant,
}

impl ByteProgress {
    /// Nothing done yet of `what`, in words (`tokenizing`).
    pub fn new(what: &str) -> ByteProgress {
        let now = Instant::now();
        let bar = std::io::stderr().is_terminal().then(|| {
            let template = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta} left";
            let style = ProgressStyle::with_template(template).expect("a constant template");
            bars().add(ProgressBar::new(0).with_style(style))
        });
        ByteProgress { what: visible(what), bar, started: now, said: now }
    }

    /// `done` of `total` bytes, where the end is known.
    pub fn update(&mut self, done: u64, total: Option<u64>) {
        if let Some(bar) = &self.bar {
            match total {
                Some(total) => bar.set_length(total),
                None => bar.set_style(endless_style()),
            }
            bar.set_message(self.what.clone());
            bar.set_position(done);
            return;
        }
        if self.said.elapsed() >= PLAIN_INTERVAL {
            self.said = Instant::now();
            let rate = done as f64 / 1e6 / self.started.elapsed().as_secs_f64();
            let of = total.map(|total| format!(" of {}", bytes(total))).unwrap_or_default();
            let (what, done) = (&self.what, bytes(done));
            complain(&format!("{what}: {done}{of}, {rate:.1} MB/s"));
        }
    }

    /// Begins another piece of work.
    pub fn rename(&mut self, what: &str) {
        let what = visible(what);
        if self.what != what {
            self.what = what;
            self.started = Instant::now();
        }
    }
}

/// Progress of several threads through so many bytes.
pub struct SharedProgress {
    all: u64,
    done: AtomicU64,
    shown: Mutex<ByteProgress>,
}

impl SharedProgress {
    /// None of `all` bytes of `what` done yet.
    pub fn new(what: &str, all: u64) -> SharedProgress {
        SharedProgress { all, done: AtomicU64::new(0), shown: Mutex::new(ByteProgress::new(what)) }
    }

    /// So many bytes more are done.
    pub fn more(&self, bytes: u64) {
        let now = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        // Whoever holds it is showing nearly the same.
        if let Ok(mut shown) = self.shown.try_lock() {
            shown.update(now, Some(self.all));
        }
    }
}

impl Drop for ByteProgress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
