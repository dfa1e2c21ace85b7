//! Writing to the terminal without ever panicking: a closed pipe (`muster … | head`) ends the
//! program quietly.

use std::io::{ErrorKind, Write};

/// Writes lines to standard output.
pub fn say(text: &str) {
    let end = if text.ends_with('\n') || text.is_empty() { "" } else { "\n" };
    let mut out = std::io::stdout().lock();
    let written = write!(out, "{text}{end}").and_then(|()| out.flush());
    if let Err(error) = written
        && error.kind() == ErrorKind::BrokenPipe
    {
        std::process::exit(0);
    }
}

/// Writes lines to standard error; nobody can be told if that fails.
pub fn complain(text: &str) {
    let end = if text.ends_with('\n') || text.is_empty() { "" } else { "\n" };
    let _ = write!(std::io::stderr().lock(), "{text}{end}");
}
