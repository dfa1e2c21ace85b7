//! The phase and the progress of the rank of this process, for whoever watches it.
//!
//! One for the process, since a rank is one, and since a rank that stands still cannot be asked.

use std::sync::atomic::{AtomicU8, Ordering};

use serde::{Deserialize, Serialize};

/// The phase that a rank is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    Starting,
    Meeting,
    Loading,
    Training,
    Validating,
    Saving,
    Ending,
    Measuring,
}

impl Phase {
    const ALL: [Phase; 8] = [
        Phase::Starting,
        Phase::Meeting,
        Phase::Loading,
        Phase::Training,
        Phase::Validating,
        Phase::Saving,
        Phase::Ending,
        Phase::Measuring,
    ];

    /// In words that follow `while it was`.
    pub fn words(self) -> &'static str {
        match self {
            Phase::Starting => "starting",
            Phase::Meeting => "meeting the other ranks",
            Phase::Loading => "allocating memory and loading a checkpoint",
            Phase::Training => "training",
            Phase::Validating => "validating",
            Phase::Saving => "saving a checkpoint",
            Phase::Ending => "ending the run",
            Phase::Measuring => "measuring",
        }
    }
}

/// A moment of a rank.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pulse {
    pub phase: Phase,
    /// Pieces of work done so far: the same number twice is no progress.
    pub work: u64,
    /// The call to a disk that has lasted longest, if there is one. While it may last `work` grows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub call: Option<SystemCall>,
    /// The last operation among ranks that it has ended: `all_gather_segments #17`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<String>,
}

/// A call to a disk that has not returned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SystemCall {
    /// No other call of the rank has it.
    pub number: u64,
    /// `fsync of /runs/a/checkpoints/…`.
    pub what: String,
}

impl From<device::work::SystemCall> for SystemCall {
    fn from(call: device::work::SystemCall) -> SystemCall {
        let device::work::SystemCall { number, action, path } = call;
        let what = match path {
            Some(path) => format!("{action} of {}", path.display()),
            None => action.to_owned(),
        };
        SystemCall { number, what }
    }
}

static PHASE: AtomicU8 = AtomicU8::new(0);

/// The rank of this process begins with `phase`.
pub fn enter(phase: Phase) {
    PHASE.store(phase as u8, Ordering::Relaxed);
    device::work::mark();
}

/// The pulse of this process.
pub fn take() -> Pulse {
    let phase = Phase::ALL[usize::from(PHASE.load(Ordering::Relaxed)) % Phase::ALL.len()];
    let call = device::work::oldest_call().map(SystemCall::from);
    let operation = comm::last_operation();
    let operation = operation.map(|(operation, number)| format!("{operation} #{number}"));
    Pulse { phase, work: device::work::done(), call, operation }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_phase_is_told_apart() {
        for phase in Phase::ALL {
            let before = take().work;
            enter(phase);
            let pulse = take();
            assert_eq!(pulse.phase, phase);
            assert!(pulse.work > before);
        }
    }
}
