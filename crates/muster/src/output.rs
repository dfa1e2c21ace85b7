//! Writing to the terminal, never in silence and never by a panic.
//!
//! | | what a command was asked for | what a training tells | complaints |
//! |---|---|---|---|
//! | function | [`say`], [`pass_on`] | [`tell`] | [`complain`] |
//! | nobody reads any more (`muster … \| head`) | ends, exit code 0 | goes on | goes on |
//! | full disk, failing device | an error, exit code 3 | one warning, goes on | goes on |
//!
//! A training that cannot be watched is worth more than one that has ended, so its exit code stays
//! that of the run; the event file has all that was not shown.
//!
//! Messages hold what others wrote: keys, paths, names of tensors, lines of logs. Here, at the last
//! place, whatever could steer a terminal becomes visible.

use std::borrow::Cow;
use std::io::{ErrorKind, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use crate::error::{CliError, Exit};

/// Around bold text. Unicode keeps these for use inside programs: no text that is exchanged should
/// hold them, and one that does can make no more than bold text of it.
pub const BOLD: &str = "\u{fdd0}";
pub const PLAIN: &str = "\u{fdd1}";

/// Writes lines to standard output: what a command was asked for.
///
/// # Errors
/// They cannot be written. A closed pipe ends the program quietly.
pub fn say(text: &str) -> Result<(), CliError> {
    checked(write_lines(&visible(text)))
}

/// As [`say`], of lines with marks of bold text.
///
/// # Errors
/// As [`say`].
pub fn show(text: &str) -> Result<(), CliError> {
    checked(write_lines(&bold(&visible(text))))
}

/// Writes text that a model generated: as it is to a file or a pipe, visible on a terminal.
///
/// # Errors
/// As [`say`].
pub fn pass_on(text: &str) -> Result<(), CliError> {
    match std::io::stdout().is_terminal() {
        true => say(text),
        false => checked(write_lines(text)),
    }
}

/// How long what is asked for may take before it is told.
const SLOW: Duration = Duration::from_secs(2);

/// Complains with `words` once if the result is not dropped soon.
pub fn tell_if_slow(words: String) -> Sender<()> {
    let (done, waits) = channel();
    let watch = move || {
        if waits.recv_timeout(SLOW) == Err(RecvTimeoutError::Timeout) {
            complain(&words);
        }
    };
    // Where no thread can be had it stays untold.
    let _ = std::thread::Builder::new().name("slow".into()).spawn(watch);
    done
}

/// Writes lines, with marks of bold text, to standard output if anybody reads them; the first
/// failure is a warning.
pub fn tell(text: &str) {
    static WARNED: AtomicBool = AtomicBool::new(false);
    if let Err(error) = write_lines(&bold(&visible(text)))
        && error.kind() != ErrorKind::BrokenPipe
        && !WARNED.swap(true, Ordering::Relaxed)
    {
        complain(&format!(
            "warning: cannot write to standard output: {error}; the run goes on unseen, its \
             events are in events.jsonl"
        ));
    }
}

/// Writes lines to standard error; nobody can be told if that fails.
pub fn complain(text: &str) {
    let _ = write!(std::io::stderr().lock(), "{}", with_end(&visible(text)));
}

/// Shows clap's text in place of a command: help and version on standard output, mistakes on
/// standard error.
///
/// # Errors
/// As [`say`].
pub fn show_clap(error: &clap::Error) -> Result<Exit, CliError> {
    if error.use_stderr() {
        complain(&error.to_string());
        return Ok(Exit::Mistake);
    }
    // In clap's own colors: nothing that was typed is in it.
    let written = error.print().and_then(|()| std::io::stdout().flush());
    checked(written).map(|()| Exit::Ok)
}

fn checked(written: std::io::Result<()>) -> Result<(), CliError> {
    match written {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => Err(CliError::peer(format!("cannot write to standard output: {error}"))),
        Ok(()) => Ok(()),
    }
}

fn write_lines(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    write!(out, "{}", with_end(text)).and_then(|()| out.flush())
}

fn with_end(text: &str) -> Cow<'_, str> {
    match text.ends_with('\n') || text.is_empty() {
        true => text.into(),
        false => format!("{text}\n").into(),
    }
}

/// Marks of bold text as a terminal wants them.
fn bold(text: &str) -> String {
    text.replace(BOLD, "\x1b[1m").replace(PLAIN, "\x1b[0m")
}

/// Text with everything invisible made visible, newlines kept: whatever a model or a file holds,
/// it must not steer the terminal.
pub fn visible(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => out.push('\n'),
            '\t' => out.push_str("    "),
            // The pictures of control characters.
            '\0'..' ' => out.push(char::from_u32(0x2400 + c as u32).unwrap_or('\u{fffd}')),
            '\u{7f}' => out.push('\u{2421}'),
            c if c.is_control() || is_direction(c) => {
                out.push_str(&format!("\\u{{{:x}}}", c as u32));
            }
            c => out.push(c),
        }
    }
    out
}

/// Marks that reorder the text around them.
fn is_direction(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_show() {
        assert_eq!(
            visible("a\x1b[31m\r\n\u{202e}b\u{85}\x7f\tc"),
            "a␛[31m␍\n\\u{202e}b\\u{85}␡    c"
        );
        let marked = format!("{BOLD}a{PLAIN}\x1b[0m");
        assert_eq!(bold(&visible(&marked)), "\x1b[1ma\x1b[0m␛[0m");
    }
}
