//! `muster trace`: what can be done with traces.

use std::path::{Path, PathBuf};

use super::merge;
use crate::cli::TraceCommand;
use crate::console::plural;
use crate::error::{CliError, Exit};
use crate::out_file;
use crate::output::{complain, say};

/// Does what was typed.
///
/// # Errors
/// Files that cannot be read or written, or are no traces.
pub fn run(command: TraceCommand) -> Result<Exit, CliError> {
    let TraceCommand::Merge { paths } = command;
    let Some((into, from)) = paths.split_last() else {
        return Err(CliError::mistake(
            "name the traces to merge, and at the end the file to write",
        ));
    };
    // Before traces are read, which may be long.
    out_file::check(into)?;
    let mut files = Vec::new();
    for path in from {
        files.extend(traces(path)?);
    }
    let merged = merge::merge(&files, into)?;
    for warning in merged.warnings(merged.ranks()) {
        complain(&format!("warning: {warning}"));
    }
    if merged.keeps_file {
        return Ok(Exit::Ok);
    }
    let (ranks, file) = (plural(merged.ranks(), "rank"), into.display());
    say(&format!("trace of {ranks}, {} spans: {file}", merged.spans))?;
    Ok(Exit::Ok)
}

/// A file, or of a directory the parts in it.
fn traces(path: &Path) -> Result<Vec<PathBuf>, CliError> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = std::fs::read_dir(path).map_err(|error| CliError::file("read", path, &error))?;
    let mut parts: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    let is_part = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("rank-") && name.ends_with(".json")
    };
    parts.retain(is_part);
    parts.sort();
    match parts.is_empty() {
        true => Err(CliError::mistake(format!(
            "{} holds no rank-NNNNN.json; name the directory that a run left beside its trace \
             (FILE.parts), or files",
            path.display()
        ))),
        false => Ok(parts),
    }
}
