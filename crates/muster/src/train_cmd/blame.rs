//! Whom a rank blames that ends because of others.

use std::time::{Duration, Instant};

use comm::Fault;
use comm::rendezvous::{Aborted, ControlHandle};

/// How long a rank of a job that was revoked waits to hear who failed.
const ABORT: Duration = Duration::from_secs(1);

/// The server may know better than an error in the group who failed.
pub fn ask_for_names(fault: &mut Fault, control: &ControlHandle) {
    if fault.ranks.is_empty() {
        control.follow();
    }
    let patience = Instant::now() + ABORT;
    while fault.ranks.is_empty() && control.aborted().is_none() && Instant::now() < patience {
        std::thread::sleep(Duration::from_millis(10));
    }
    if let Some(Aborted { rank: Some(rank), reason }) = control.aborted() {
        *fault = Fault { ranks: vec![rank], what: reason };
    }
}
