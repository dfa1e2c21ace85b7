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

/// Makes this process die when the one that started it does, however that ends.
pub fn die_with_parent() {
    #[cfg(target_os = "linux")]
    {
        // SAFETY: system calls without memory.
        unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            // The parent may have died before the call.
            if libc::getppid() == 1 {
                libc::_exit(3);
            }
        }
    }
}
