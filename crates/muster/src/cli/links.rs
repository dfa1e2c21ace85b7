//! The command line of `muster bench links`.

use std::path::PathBuf;

use ::bench::collectives::parse_size;
use clap::Args;
use comm::BackendWord;

use super::{HostArgs, backend, timeout_ms};
use crate::error::CliError;
use crate::limits::cores;

#[derive(Debug, Args)]
pub struct LinksArgs {
    /// Worker processes of all hosts; by default one per task of a launcher, or per core of this
    /// host
    #[arg(long, value_name = "N")]
    pub ranks: Option<usize>,
    /// Backend that connects the ranks
    #[arg(long, default_value = "shm", value_parser = backend())]
    pub backend: BackendWord,
    /// Of a message whose time gives the bandwidth
    #[arg(long, value_name = "BYTES", default_value = "4MiB", value_parser = size)]
    pub size: u64,
    /// Messages of each direction of a pair, of which the median counts
    #[arg(
        long,
        value_name = "N",
        default_value_t = 16,
        value_parser = clap::value_parser!(u32).range(1..100_000)
    )]
    pub messages: u32,
    /// End with exit code 3 if something is slow
    #[arg(long)]
    pub fail: bool,
    /// How long a rank may stand still, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 30_000, value_parser = timeout_ms)]
    pub timeout_ms: u64,
    #[command(flatten)]
    pub hosts: HostArgs,
    /// Write the report as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write the directions as CSV
    #[arg(long, value_name = "FILE")]
    pub csv: Option<PathBuf>,
}

impl LinksArgs {
    /// Ranks of all hosts: by default those tasks that a launcher started, or a rank per core.
    ///
    /// # Errors
    /// Fewer than two.
    pub fn world(&self, tasks: Option<usize>) -> Result<usize, CliError> {
        let world = self.ranks.or(tasks).unwrap_or_else(|| cores().max(2));
        match world {
            0 | 1 => Err(CliError::mistake(format!(
                "--ranks {world}: a link has two ends; use 2 or more"
            ))),
            world => Ok(world),
        }
    }
}

fn size(text: &str) -> Result<u64, String> {
    match parse_size(text).map_err(|error| error.to_string())? {
        bytes @ 8..=0x4000_0000 => Ok(bytes),
        bytes => Err(format!("{bytes} bytes; use 8 to 1GiB")),
    }
}
