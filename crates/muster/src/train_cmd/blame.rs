//! Whom a rank blames that ends because of others.

use std::time::{Duration, Instant};

use comm::Fault;
use comm::rendezvous::ControlHandle;

/// How long a rank that fails because of others waits to hear what the server makes of it.
const ABORT: Duration = Duration::from_secs(2);

/// And how long a server that has not heard of it: frozen with its host, it makes nothing of it.
const UNHEARD: Duration = Duration::from_millis(750);

/// Leaves because of others. What the server makes of it is what every host hears: it may know
/// better than an error in the group who failed, and from the supervisor of that rank how.
pub fn leave(fault: &mut Fault, control: ControlHandle) {
    match fault.ranks.is_empty() {
        true => control.follow(),
        false => control.accuse(fault),
    }
    let since = Instant::now();
    let verdict = loop {
        let aborted = control.aborted();
        let patience = if control.is_heard() { ABORT } else { UNHEARD };
        if aborted.is_some() || since.elapsed() > patience {
            break aborted;
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    if let Some(aborted) = verdict.filter(|aborted| !aborted.ranks.is_empty()) {
        *fault = Fault { ranks: aborted.ranks, what: aborted.reason };
    }
    control.blame(fault);
}
