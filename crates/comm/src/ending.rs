//! The end of a thread that serves this rank.
//!
//! Nothing that a rank does at its end may wait without a bound: a thread that is held up (by a
//! debugger, by a call that does not return) is let go of, and ends with its process.

use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a thread that was told to end may take: it looks many times in that.
const PATIENCE: Duration = Duration::from_secs(2);

/// Waits for a thread that was told to end, for a moment.
pub(crate) fn join(thread: JoinHandle<()>) {
    let until = Instant::now() + PATIENCE;
    while !thread.is_finished() {
        if Instant::now() > until {
            return;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    // A panic there was reported by its own thread.
    let _ = thread.join();
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn a_thread_that_is_held_up_is_let_go() {
        let (hold, held) = channel::<()>();
        // Would wait for ever.
        join(std::thread::spawn(move || {
            let _ = held.recv();
        }));
        drop(hold);
    }

    #[test]
    fn a_thread_that_ends_is_waited_for() {
        let (done, is_done) = channel();
        join(std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            let _ = done.send(());
        }));
        assert!(is_done.try_recv().is_ok());
    }
}
