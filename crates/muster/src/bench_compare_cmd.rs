//! `muster bench compare`: two files, a table, and an exit code for CI.

use std::io::Read;
use std::path::Path;

use bench::collectives::Report;
use bench::collectives::compare::{Options, compare};
use bench::collectives::read::read;
use data::DataError;

use crate::cli::CompareArgs;
use crate::error::{CliError, Exit};
use crate::out_file;
use crate::output::{complain, say};

/// Reports and logs have some megabytes; what has no end is known by more.
const FILE_BYTES_MAX: u64 = 1 << 30;

pub fn run(args: CompareArgs) -> Result<Exit, CliError> {
    if let Some(json) = args.json.as_deref() {
        out_file::check_all([("--json", json)])?;
        out_file::check_unread(("--json", json), &[&args.base, &args.new])?;
    }
    let (base, new) = (report(&args.base)?, report(&args.new)?);
    let CompareArgs { threshold, only, allow_missing, .. } = args;
    let options = Options { threshold, only, allow_missing };
    let comparison = compare(&base, &new, &options)?;
    // The result reaches its file also where nobody can read the table.
    let written = args
        .json
        .as_deref()
        .map_or(Ok(()), |path| out_file::write(path, comparison.json()?.as_bytes()));
    say(&comparison.text())?;
    written?;
    Ok(if comparison.is_regression() { Exit::Regression } else { Exit::Ok })
}

fn report(path: &Path) -> Result<Report, CliError> {
    let bytes = bytes(path)?;
    let path = path.display();
    let report = read(&bytes).map_err(|error| CliError::mistake(format!("{path}: {error}")))?;
    for failure in &report.failures {
        complain(&format!("warning: {path}: its run failed: {failure}"));
    }
    for warning in &report.warnings {
        complain(&format!("warning: {path}: its run did not fail, and said: {warning}"));
    }
    for skipped in &report.skipped {
        complain(&format!("warning: {path}: {skipped}; it is not compared"));
    }
    Ok(report)
}

/// All of a file or a pipe.
fn bytes(path: &Path) -> Result<Vec<u8>, CliError> {
    let shown = path.display();
    let file = match data::input::open(path) {
        Err(DataError::IsDirectory { .. }) => {
            let why = format!("{shown} is a directory; name a report or a log in it");
            return Err(CliError::mistake(why));
        }
        Err(DataError::NotAFile { what, .. }) => {
            let why = format!("{shown} is {what}; name a report, a log, or a pipe with one");
            return Err(CliError::mistake(why));
        }
        opened => opened?,
    };
    let mut bytes = Vec::new();
    let read = file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes);
    read.map_err(|error| CliError::file("read", path, &error))?;
    match bytes.len() as u64 > FILE_BYTES_MAX {
        true => {
            let most = crate::console::bytes(FILE_BYTES_MAX);
            let why = format!("{shown} is larger than {most}, the most that is read here");
            Err(CliError::mistake(why))
        }
        false => Ok(bytes),
    }
}
