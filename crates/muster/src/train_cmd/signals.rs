//! Signals as counts, and the death of a parent as the death of its workers.
//!
//! ```text
//! supervisor   before the ranks start     first signal: ends the process
//!              while it watches them      counts; the watch passes them on
//!              anywhere                   second Ctrl-C: ends the process
//! worker       before it has handlers     blocked since it was spawned, then counted
//! ```
//!
//! SIGHUP (the terminal is closed), SIGXCPU (the limit of CPU time is near) and the signal that a
//! scheduler warns with are requests to stop like SIGTERM. One that was ignored when the program
//! started, as `nohup` does with SIGHUP, stays ignored.
//!
//! The messages at the end, and the exit code of a request to stop, differ by command ([`Ending`]):
//! a training goes on when it is run again, a benchmark begins anew.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2, SIGXCPU};
use train::config::WarnSignal;

use crate::error::{CliError, Exit};
use crate::limits;
use crate::trace::Parts;

/// How long the watch may take to end the ranks in good order after a second Ctrl-C.
const ORDERLY: Duration = Duration::from_millis(300);

/// Every signal that may be counted.
const ALL: [i32; 6] = [SIGINT, SIGTERM, SIGHUP, SIGXCPU, SIGUSR1, SIGUSR2];

/// How a signal ends the process where it does not wait for the ranks.
#[derive(Debug)]
pub struct Ending {
    /// The message before the ranks run.
    pub early: String,
    /// The message after a second Ctrl-C.
    pub at_once: String,
    /// Of a trace, which may have been merged by then.
    pub parts: Option<Parts>,
    /// Of a request to stop before the ranks run; Ctrl-C has an exit code of its own.
    pub asked: Exit,
}

impl Ending {
    /// Of a training.
    pub fn of_training(parts: Option<Parts>) -> Ending {
        Ending {
            early: "stopped before training began".to_owned(),
            at_once: "stopped at once; checkpoints that were saved are intact".to_owned(),
            parts,
            asked: Exit::Preempted,
        }
    }

    /// The message of this moment, after a second Ctrl-C.
    fn at_once(&self) -> String {
        let stay = self.parts.as_ref().and_then(Parts::stay);
        self.at_once.clone() + &stay.map(|stay| format!("; {stay}")).unwrap_or_default()
    }
}

impl Default for Ending {
    fn default() -> Ending {
        Ending::of_training(None)
    }
}

/// How often each signal has come.
#[derive(Clone, Default)]
pub struct Signals {
    interrupts: Arc<AtomicUsize>,
    terminations: Arc<AtomicUsize>,
    /// Ranks run, so that there is something to save.
    training: Arc<AtomicBool>,
    ending: Arc<Ending>,
}

impl Signals {
    /// Counts SIGINT and the requests to stop from now on, instead of dying of them; those that
    /// were blocked come now.
    ///
    /// # Errors
    /// The system refuses.
    pub fn count(warn: WarnSignal) -> Result<Signals, CliError> {
        let signals = Signals::default();
        for signal in counted(warn) {
            let interrupts = signal == SIGINT;
            let count = if interrupts { &signals.interrupts } else { &signals.terminations };
            let count = Arc::clone(count);
            let action = move || {
                count.fetch_add(1, Ordering::Relaxed);
            };
            // SAFETY: the action touches one atomic, which is async-signal-safe.
            let done = unsafe { signal_hook::low_level::register(signal, action) };
            done.map_err(cannot_watch)?;
        }
        mask(libc::SIG_UNBLOCK).map_err(cannot_watch)?;
        Ok(signals)
    }

    /// The supervisor's: counts, and ends the process where nothing would be saved by waiting.
    /// `leave` removes what would be left behind.
    ///
    /// # Errors
    /// The system refuses.
    pub fn watch(
        warn: WarnSignal,
        ending: Ending,
        leave: impl Fn() + Send + 'static,
    ) -> Result<Signals, CliError> {
        // Asked before any of them has a handler.
        let counted = counted(warn);
        // Counted before the thread hears of it.
        let signals = Signals { ending: Arc::new(ending), ..Signals::count(warn)? };
        let incoming = signal_hook::iterator::Signals::new(counted);
        let mut incoming = incoming.map_err(cannot_watch)?;
        let known = signals.clone();
        let watch = move || {
            for signal in incoming.forever() {
                if !known.training.load(Ordering::Acquire) {
                    leave();
                    known.end_early(signal == SIGINT);
                }
                if known.interrupts() > 1 {
                    std::thread::sleep(ORDERLY);
                    known.at_once();
                }
            }
        };
        let thread = std::thread::Builder::new().name("signals".into()).spawn(watch);
        thread.map_err(cannot_watch)?;
        Ok(signals)
    }

    /// From now on a first signal is for the ranks.
    pub fn begin_training(&self) {
        self.training.store(true, Ordering::Release);
    }

    /// Ends the process of a run whose ranks have not met: there is nothing to save.
    pub fn before_training(&self) -> ! {
        self.end_early(self.interrupts() > 0)
    }

    fn end_early(&self, interrupted: bool) -> ! {
        let exit = if interrupted { Exit::Interrupted } else { self.ending.asked };
        end(&self.ending.early, exit)
    }

    /// Ends the process after a second Ctrl-C.
    pub fn at_once(&self) -> ! {
        end(&self.ending.at_once(), Exit::Interrupted)
    }

    pub fn interrupts(&self) -> usize {
        self.interrupts.load(Ordering::Relaxed)
    }

    pub fn terminations(&self) -> usize {
        self.terminations.load(Ordering::Relaxed)
    }
}

fn cannot_watch(error: std::io::Error) -> CliError {
    limits::refused("watch signals", &error)
}

/// Ends the process with a last word, which only the first thread that comes here says.
fn end(word: &str, exit: Exit) -> ! {
    static ENDING: AtomicBool = AtomicBool::new(false);
    if ENDING.swap(true, Ordering::AcqRel) {
        loop {
            std::thread::park();
        }
    }
    crate::console::restore_terminal();
    crate::output::complain(word);
    std::process::exit(exit.code().into());
}

/// The signals that are counted when a scheduler warns with `warn`.
fn counted(warn: WarnSignal) -> Vec<i32> {
    let warning = match warn {
        WarnSignal::Usr1 => Some(SIGUSR1),
        WarnSignal::Usr2 => Some(SIGUSR2),
        WarnSignal::None => None,
    };
    let others = [SIGHUP, SIGXCPU].into_iter().chain(warning);
    [SIGINT, SIGTERM].into_iter().chain(others.filter(|&signal| !is_ignored(signal))).collect()
}

fn is_ignored(signal: i32) -> bool {
    // SAFETY: all-zero bytes are a value of this plain type, which the call overwrites.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to the action, which lives until the call returns; nothing is set.
    let asked = unsafe { libc::sigaction(signal, std::ptr::null(), &raw mut action) };
    asked == 0 && action.sa_sigaction == libc::SIG_IGN
}

/// Blocks all of these signals in a process that is about to become a worker, until it counts them.
/// Async-signal-safe.
pub fn block() -> std::io::Result<()> {
    mask(libc::SIG_BLOCK)
}

fn mask(how: i32) -> std::io::Result<()> {
    // SAFETY: all-zero bytes are a value of this plain type, which the next call overwrites.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: the pointers are to the set, which lives until the calls return.
    let failed = unsafe {
        libc::sigemptyset(&raw mut set);
        for signal in ALL {
            libc::sigaddset(&raw mut set, signal);
        }
        libc::pthread_sigmask(how, &raw const set, std::ptr::null_mut())
    };
    if failed == 0 { Ok(()) } else { Err(std::io::Error::from_raw_os_error(failed)) }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_trace_are_told_of_as_long_as_they_are_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.json");
        let ending = Ending::of_training(Some(Parts::of(&path, (0, 1))));
        let plain = "stopped at once; checkpoints that were saved are intact";
        assert_eq!(ending.at_once(), plain);
        let parts = dir.path().join("t.json.parts");
        std::fs::create_dir(&parts).unwrap();
        let stay = format!("; what was recorded stays in {} (muster trace merge)", parts.display());
        assert_eq!(ending.at_once(), format!("{plain}{stay}"));
        // They were merged.
        std::fs::remove_dir(&parts).unwrap();
        assert_eq!(ending.at_once(), plain);
    }
}
