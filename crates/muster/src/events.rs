//! The event file of a run: one JSON object a line, only ever appended to.
//!
//! A kill may tear the last line, which is cut off before the next run appends. A write that fails
//! is undone, so that later ones, when there is room again, begin a line. Readers pass over what is
//! no event of this version, and say how much that was.

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
    /// Bytes of whole lines.
    whole: u64,
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
        Ok(EventLog { path: path.to_path_buf(), file, whole, line: Vec::new() })
    }

    /// Appends one event, in one write.
    ///
    /// # Errors
    /// The file cannot be written to.
    pub fn write(&mut self, event: &Event) -> Result<(), CliError> {
        self.line.clear();
        serde_json::to_writer(&mut self.line, event).map_err(CliError::bug)?;
        self.line.push(b'\n');
        match self.file.write_all(&self.line) {
            Ok(()) => self.whole += self.line.len() as u64,
            Err(error) => {
                // Should this fail too, readers pass over the torn line.
                let _ = self.file.set_len(self.whole);
                let _ = self.file.seek(SeekFrom::Start(self.whole));
                return Err(cannot("write to", &self.path, error));
            }
        }
        Ok(())
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

/// Reads all events of this version; returns them and the number of lines that are none.
///
/// # Errors
/// The file cannot be read.
pub fn read(path: &Path) -> Result<(Vec<Event>, usize), CliError> {
    let file = File::open(path).map_err(|error| cannot("read", path, error))?;
    let mut reader = BufReader::new(file);
    let mut events = Vec::new();
    let mut others = 0;
    let mut line = Vec::new();
    loop {
        line.clear();
        reader.read_until(b'\n', &mut line).map_err(|error| cannot("read", path, error))?;
        if line.pop() != Some(b'\n') {
            break; // The end, or a torn line.
        }
        match serde_json::from_slice(&line) {
            // One a step, as long as there are ranks: of no use to whoever draws curves.
            Ok(Event::Ranks(_)) => {}
            Ok(event) => events.push(event),
            Err(_) => others += 1,
        }
    }
    Ok((events, others))
}

fn cannot(action: &str, path: &Path, error: std::io::Error) -> CliError {
    CliError::file(&format!("{action} the event file"), path, &error)
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
            assert_eq!(read(&path).unwrap().0, [warning("one")]);
            EventLog::append(&path).unwrap().write(&warning("two")).unwrap();
            assert_eq!(read(&path).unwrap(), (vec![warning("one"), warning("two")], 0));
        }
    }

    #[test]
    fn a_foreign_line_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        std::fs::write(&path, "{\"warning\":{\"message\":\"a\"}}\n{\"stepp\":{}}\n").unwrap();
        assert_eq!(read(&path).unwrap(), (vec![warning("a")], 1));
    }
}
