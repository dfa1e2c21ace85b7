//! `muster bench compare`: two files, a table, and an exit code for CI.

use std::path::Path;

use bench::collectives::Report;
use bench::collectives::compare::{Options, compare};
use bench::collectives::read::read;

use crate::cli::CompareArgs;
use crate::error::{CliError, Exit};
use crate::out_file;
use crate::output::{complain, say};

pub fn run(args: CompareArgs) -> Result<Exit, CliError> {
    let (base, new) = (report(&args.base)?, report(&args.new)?);
    let CompareArgs { threshold, only, allow_missing, .. } = args;
    let options = Options { threshold, only, allow_missing };
    let comparison = compare(&base, &new, &options)?;
    // What was found reaches its file also where nobody can read the table.
    let written = args
        .json
        .as_deref()
        .map_or(Ok(()), |path| out_file::write(path, comparison.json()?.as_bytes()));
    say(&comparison.text())?;
    written?;
    Ok(if comparison.is_regression() { Exit::Regression } else { Exit::Ok })
}

fn report(path: &Path) -> Result<Report, CliError> {
    let bytes = std::fs::read(path).map_err(|error| CliError::file("read", path, &error))?;
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
