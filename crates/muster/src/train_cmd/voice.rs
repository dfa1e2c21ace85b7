//! A worker's voice: its lines for the supervisor, and a sign of life where it has nothing to say.
//!
//! ```text
//! rank ── say ──▶ waiting lines ── a thread of its own ──▶ standard output ──▶ supervisor
//!                                  and after each beat: `alive`, with the rank's pulse
//! ```
//!
//! The thread says that the process lives however long a step takes. And it waits where a stopped
//! supervisor does not read, so that the rank need not: its peers would take it for dead.

use std::io::Write;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use train::pulse;

use super::line::Line;
use crate::error::CliError;
use crate::limits;

/// A rank says something at least this often,
const BEAT: Duration = Duration::from_millis(500);
/// and so often within the timeout after which it is given up.
const BEATS: u32 = 4;

fn beat(timeout_ms: u64) -> Duration {
    BEAT.min(Duration::from_millis(timeout_ms) / BEATS)
}

/// Bytes of lines that may wait: about a hundred thousand steps. Beyond them the rank waits too.
const WAITING_BYTES: usize = 64 << 20;

/// The lines of a rank, on their way to its supervisor.
pub struct Voice {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: Vec<u8>,
    /// Everything has been said.
    is_over: bool,
    /// The supervisor cannot be told anything any more.
    failed: Option<std::io::ErrorKind>,
}

impl Voice {
    /// Begins to give signs of life, of a rank that is given up after `timeout_ms` without one.
    ///
    /// # Errors
    /// The system has no thread to spare.
    pub fn start(timeout_ms: u64) -> Result<Voice, CliError> {
        Voice::onto(std::io::stdout(), beat(timeout_ms))
    }

    fn onto(out: impl Write + Send + 'static, beat: Duration) -> Result<Voice, CliError> {
        let shared = Arc::new(Shared::default());
        let spoken = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("voice".into());
        let thread = thread.spawn(move || spoken.speak(out, beat));
        let thread = thread.map_err(|error| limits::refused("start a thread", &error))?;
        Ok(Voice { shared, thread: Some(thread) })
    }

    /// Says a line, in its turn.
    ///
    /// # Errors
    /// The supervisor is gone.
    pub fn say(&self, line: &Line) -> std::io::Result<()> {
        let bytes = line.bytes()?;
        let mut state = self.shared.lock();
        while state.waiting.len() > WAITING_BYTES && state.failed.is_none() {
            state = self.shared.wait(state, None);
        }
        if let Some(kind) = state.failed {
            return Err(kind.into());
        }
        state.waiting.extend_from_slice(&bytes);
        self.shared.changed.notify_all();
        Ok(())
    }
}

impl Voice {
    /// Says what people should hear while others are awaited.
    pub fn hint(&self, message: String) {
        // Who is gone is found out by the next line that matters.
        let _ = self.say(&Line::Hint(message));
    }
}

impl Drop for Voice {
    /// Returns when everything has been said.
    fn drop(&mut self) {
        self.shared.lock().is_over = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic there has ended the process.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(
        &self,
        state: MutexGuard<'a, State>,
        limit: Option<Duration>,
    ) -> MutexGuard<'a, State> {
        match limit {
            None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            Some(limit) => {
                let woken = self.changed.wait_timeout(state, limit);
                woken.unwrap_or_else(PoisonError::into_inner).0
            }
        }
    }

    fn speak(&self, mut out: impl Write, beat: Duration) {
        let (mut lines, mut beaten) = (Vec::new(), Instant::now());
        loop {
            let mut state = self.lock();
            if state.waiting.is_empty() && !state.is_over {
                state = self.wait(state, Some(beat));
            }
            lines.clear();
            std::mem::swap(&mut lines, &mut state.waiting);
            let is_over = state.is_over;
            drop(state);
            // There is room again.
            self.changed.notify_all();
            if lines.is_empty() && is_over {
                return;
            }
            // Also where it has other things to say: what it does is told by the pulse alone.
            if lines.is_empty() || beaten.elapsed() >= beat {
                beaten = Instant::now();
                lines.extend(Line::Alive(pulse::take()).bytes().unwrap_or_default());
            }
            if let Err(error) = out.write_all(&lines).and_then(|()| out.flush()) {
                self.lock().failed = Some(error.kind());
                return self.changed.notify_all();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_rank_does_not_wait_for_who_does_not_read() {
        let (mut supervisor, out) = UnixStream::pair().unwrap();
        let voice = Voice::onto(out, BEAT).unwrap();
        // Far more than a socket holds.
        let steps = 200_000;
        for step in 0..steps {
            voice.say(&Line::At(step)).unwrap();
        }
        let reader = std::thread::spawn(move || {
            let mut text = String::new();
            supervisor.read_to_string(&mut text).unwrap();
            text
        });
        drop(voice);
        let text = reader.join().unwrap();
        let mut told = text.lines().filter(|line| !line.contains("alive"));
        assert!((0..steps).all(|step| told.next() == Some(&format!("{{\"at\":{step}}}"))));
        assert_eq!(told.next(), None);
    }

    #[test]
    fn a_short_timeout_has_as_many_signs_of_life() {
        assert_eq!([120_000, 2000, 1000].map(|ms| beat(ms).as_millis()), [500, 500, 250]);
    }

    #[test]
    fn silence_is_broken_and_a_supervisor_that_is_gone_is_noticed() {
        let (mut supervisor, out) = UnixStream::pair().unwrap();
        let voice = Voice::onto(out, BEAT).unwrap();
        let mut byte = [0; 10];
        supervisor.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"{\"alive\":{");
        drop(supervisor);
        let gone = loop {
            if let Err(error) = voice.say(&Line::At(1)) {
                break error.kind();
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        assert_eq!(gone, ErrorKind::BrokenPipe);
    }
}
