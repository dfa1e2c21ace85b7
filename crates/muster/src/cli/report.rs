//! The files that a report goes to.

use std::path::PathBuf;

use clap::Args;

/// The files that a report goes to.
#[derive(Debug, Clone, Args)]
pub struct ReportArgs {
    /// Write the report as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write the rows as CSV
    #[arg(long, value_name = "FILE")]
    pub csv: Option<PathBuf>,
    /// Write a plot
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
}
