//! Signals as flags, and the death of a parent as the death of its workers.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};

use crate::error::CliError;

/// How often each signal has come.
#[derive(Clone, Default)]
pub struct Signals {
    interrupts: Arc<AtomicUsize>,
    terminations: Arc<AtomicUsize>,
}

impl Signals {
    /// Counts SIGINT and SIGTERM from now on, instead of dying of them.
    ///
    /// # Errors
    /// The system refuses.
    pub fn watch() -> Result<Signals, CliError> {
        let signals = Signals::default();
        for (signal, count) in [(SIGINT, &signals.interrupts), (SIGTERM, &signals.terminations)] {
            let count = Arc::clone(count);
            let action = move || {
                count.fetch_add(1, Ordering::Relaxed);
            };
            // SAFETY: the action touches one atomic, which is async-signal-safe.
            let done = unsafe { signal_hook::low_level::register(signal, action) };
            done.map_err(|error| CliError::peer(format!("cannot watch signals: {error}")))?;
        }
        Ok(signals)
    }

    pub fn interrupts(&self) -> usize {
        self.interrupts.load(Ordering::Relaxed)
    }

    pub fn terminations(&self) -> usize {
        self.terminations.load(Ordering::Relaxed)
    }
}

/// Sends `signal` to a process; one that has ended already is no error.
pub fn send(pid: u32, signal: i32) {
    // SAFETY: a system call without memory; the process is a child that was not yet waited for,
    // so the number is not another's.
    unsafe { libc::kill(pid as libc::pid_t, signal) };
}

/// Names the supervisor's process to its workers.
pub const PARENT: &str = "MUSTER_SUPERVISOR_PID";

/// Makes this process die when the supervisor that started it does, however that ends.
pub fn die_with_parent() {
    #[cfg(target_os = "linux")]
    {
        // SAFETY: a system call without memory.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        // The supervisor may have died before the call; then this process has another parent.
        let parent = std::env::var(PARENT).ok().and_then(|pid| pid.parse().ok());
        if parent.is_some_and(|pid: u32| pid != std::os::unix::process::parent_id()) {
            std::process::exit(3);
        }
    }
}
