//! Writing to the terminal without ever panicking: a closed pipe (`muster … | head`) ends the
//! program quietly, unless it has more to do than to print.

use std::io::{ErrorKind, Write};
use std::sync::atomic::{AtomicBool, Ordering};

static OUTLIVES_READERS: AtomicBool = AtomicBool::new(false);

/// From now on the program goes on when nobody reads its standard output any more.
pub fn outlive_readers() {
    OUTLIVES_READERS.store(true, Ordering::Relaxed);
}

/// Writes lines to standard output.
pub fn say(text: &str) {
    let end = if text.ends_with('\n') || text.is_empty() { "" } else { "\n" };
    let mut out = std::io::stdout().lock();
    let written = write!(out, "{text}{end}").and_then(|()| out.flush());
    if let Err(error) = written
        && error.kind() == ErrorKind::BrokenPipe
        && !OUTLIVES_READERS.load(Ordering::Relaxed)
    {
        std::process::exit(0);
    }
}

/// Writes lines to standard error; nobody can be told if that fails.
pub fn complain(text: &str) {
    let end = if text.ends_with('\n') || text.is_empty() { "" } else { "\n" };
    let _ = write!(std::io::stderr().lock(), "{text}{end}");
}
