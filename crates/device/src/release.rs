//! Letting go of what is a driver's, on a thread that may.
//!
//! The closure of a call on the host ([`crate::Stream::host`]) drops what it captured at its end,
//! and that may be the last handle of a buffer or a stream. But freeing waits for all work, of
//! which the call itself is part, and drivers permit no call of theirs there. So what is let go of
//! within such a call is handed to a thread of the process.

use std::sync::mpsc::{SendError, Sender, channel};
use std::sync::{Arc, OnceLock};

use crate::driver::Driver;
use crate::host_call::is_within_call;

type Rest = Box<dyn FnOnce() + Send>;

/// Lets `how` call the driver: now, or within a call on the host a little later.
pub(crate) fn release(driver: &Arc<dyn Driver>, how: impl FnOnce(&dyn Driver) + Send + 'static) {
    if !is_within_call() {
        return how(&**driver);
    }
    let driver = driver.clone();
    hand_over(Box::new(move || how(&*driver)));
}

/// As [`release`], of the driver itself.
pub(crate) fn close(how: impl FnOnce() + Send + 'static) {
    match is_within_call() {
        true => hand_over(Box::new(how)),
        false => how(),
    }
}

/// Where there can be no further thread, it is left to the end of the process.
fn hand_over(rest: Rest) {
    static HANDS: OnceLock<Option<Sender<Rest>>> = OnceLock::new();
    let hands = HANDS.get_or_init(|| {
        let (sender, rests) = channel::<Rest>();
        let work = move || rests.iter().for_each(|rest| rest());
        let begun = std::thread::Builder::new().name("release".to_owned()).spawn(work);
        begun.ok().map(|_| sender)
    });
    let left = match hands {
        Some(sender) => sender.send(rest).err().map(|SendError(rest)| rest),
        None => Some(rest),
    };
    std::mem::forget(left);
}
