//! The ranks of a job that this host alone starts again, or that are not started again.

use std::time::{Duration, Instant};

use train::Event;
use train::event::Restarting;

use super::planned::Planned;
use super::restart::{Failure, Next};
use super::starting::Starts;
use crate::error::{CliError, Exit};

/// Starts this host's ranks and sees them to their end, again where they fail and may be started
/// anew.
///
/// # Errors
/// Why they ended.
pub fn supervise(planned: &Planned, starts: &mut Starts) -> Result<Exit, CliError> {
    loop {
        let outcome = starts.once(planned);
        let error = match outcome.result {
            Err(error) if error.exit == Exit::Peer => error,
            ended => return ended,
        };
        let next = match starts.was_asked() || !outcome.has_met {
            // Ranks that never met fail for what another start does not mend.
            true => Next::End(None),
            false => starts.restarts.next(Failure::new(outcome.step, &error.message)),
        };
        let (number, wait) = match next {
            Next::Again { number, wait } => (number, wait),
            Next::End(why) => return Err(error.with_reason(why)),
        };
        let (failure, of) = (error.headline(), planned.frame.config.ranks.restarts);
        let wait_s = wait.as_secs_f64();
        starts.tell(&Event::Restarting(Restarting { failure, number, of, wait_s, hosts: None }));
        let until = Instant::now() + wait;
        while Instant::now() < until {
            if starts.was_asked() {
                // The newest checkpoint is all that there is to go on from.
                starts.signals.before_training();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
