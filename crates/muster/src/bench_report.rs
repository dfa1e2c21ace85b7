//! Reports of benchmarks, in the files that were asked for.

use std::path::Path;

use bench::BenchError;

use crate::cli::ReportArgs;
use crate::error::CliError;
use crate::out_file;

/// A report in one of its forms.
pub type Form<'a> = &'a dyn Fn() -> Result<String, BenchError>;

/// Writes a report as JSON, CSV and SVG to the files that were asked for; to be called before the
/// table is shown, so that what was measured is kept also where nobody can read that.
///
/// # Errors
/// The first that cannot be made or written; it keeps no other from its file.
pub fn write(files: &ReportArgs, forms: [Form; 3]) -> Result<(), CliError> {
    let files = [&files.json, &files.csv, &files.svg].into_iter().zip(forms);
    let asked = files.filter_map(|(path, form)| Some((path.as_deref()?, form)));
    let write = |(path, form): (&Path, Form)| out_file::write(path, form()?.as_bytes());
    let written: Vec<Result<(), CliError>> = asked.map(write).collect();
    written.into_iter().collect()
}

/// This process's command, as a report has it.
pub fn command() -> String {
    let words = std::env::args().skip(1).collect::<Vec<_>>().join(" ");
    format!("muster {words}")
}
