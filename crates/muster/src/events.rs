//! The event file of a run: one JSON object a line, only ever appended to.
//!
//! A kill may tear the last line. It is cut off before the next run appends, and passed over by
//! readers; anything else that cannot be read is an error with its line.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use train::event::Event;

use crate::error::CliError;

/// An event file, open for appending.
#[derive(Debug)]
pub struct EventLog {
    path: PathBuf,
    file: File,
    line: Vec<u8>,
}

impl EventLog {
    /// Opens or makes the file, and cuts off a torn last line.
    ///
    /// # Errors
    /// The file cannot be opened, read or cut.
    pub fn append(path: &Path) -> Result<EventLog, CliError> {
        let fail = |error| cannot("open", path, error);
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).read(true).write(true);
        let mut file = options.open(path).map_err(fail)?;
        let whole = end_of_last_line(&mut file).map_err(fail)?;
        file.set_len(whole).map_err(fail)?;
        file.seek(SeekFrom::Start(whole)).map_err(fail)?;
        Ok(EventLog { path: path.to_path_buf(), file, line: Vec::new() })
    }

    /// Appends one event, in one write.
    ///
    /// # Errors
    /// The file cannot be written to.
    pub fn write(&mut self, event: &Event) -> Result<(), CliError> {
        self.line.clear();
        serde_json::to_writer(&mut self.line, event).map_err(CliError::bug)?;
        self.line.push(b'\n');
        self.file.write_all(&self.line).map_err(|error| cannot("write to", &self.path, error))
    }
}

/// Where the last whole line ends: after the last newline, which is looked for from the end.
fn end_of_last_line(file: &mut File) -> std::io::Result<u64> {
    let mut end = file.metadata()?.len();
    let mut block = [0; 4096];
    while end > 0 {
        let start = end.saturating_sub(block.len() as u64);
        let part = &mut block[..(end - start) as usize];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(part)?;
        if let Some(at) = part.iter().rposition(|&byte| byte == b'\n') {
            return Ok(start + at as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

/// Reads all events; a torn last line is passed over.
///
/// # Errors
/// The file cannot be read, or a whole line is not an event.
pub fn read(path: &Path) -> Result<Vec<Event>, CliError> {
    let file = File::open(path).map_err(|error| cannot("read", path, error))?;
    let mut reader = BufReader::new(file);
    let mut events = Vec::new();
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        reader.read_until(b'\n', &mut line).map_err(|error| cannot("read", path, error))?;
        if line.pop() != Some(b'\n') {
            break; // The end, or a torn line.
        }
        let event = serde_json::from_slice(&line).map_err(|error| {
            let (path, column) = (path.display(), error.column());
            CliError::mistake(format!(
                "{path}:{number}:{column}: not an event of this version ({error}); move the file \
                 away to start a new one"
            ))
        })?;
        events.push(event);
    }
    Ok(events)
}

fn cannot(action: &str, path: &Path, error: std::io::Error) -> CliError {
    CliError::mistake(format!("cannot {action} the event file {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warning(message: &str) -> Event {
        Event::Warning { message: message.into() }
    }

    #[test]
    fn a_torn_line_is_cut_off_and_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        let long = "x".repeat(10_000);
        {
            let mut log = EventLog::append(&path).unwrap();
            log.write(&warning("one")).unwrap();
            log.write(&warning(&long)).unwrap();
        }
        let whole = std::fs::read(&path).unwrap();
        for torn in [1, 100, 5000, 10_000] {
            std::fs::write(&path, &whole[..whole.len() - torn]).unwrap();
            assert_eq!(read(&path).unwrap(), [warning("one")]);
            EventLog::append(&path).unwrap().write(&warning("two")).unwrap();
            assert_eq!(read(&path).unwrap(), [warning("one"), warning("two")]);
        }
    }

    #[test]
    fn a_foreign_line_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        std::fs::write(&path, "{\"warning\":{\"message\":\"a\"}}\n{\"stepp\":{}}\n").unwrap();
        let message = read(&path).unwrap_err().message;
        assert!(message.contains("events.jsonl:2:"), "{message}");
    }
}
