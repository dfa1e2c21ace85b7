//! What `train` decides for its workers, in one file of the run's directory.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use data::Prepared;
use serde::{Deserialize, Serialize};
use train::config::Config;

use crate::error::CliError;

/// A start of a run.
#[derive(Debug, Serialize, Deserialize)]
pub struct Job {
    /// New for each start; names shared memory and keeps strangers apart.
    pub name: String,
    pub config: Config,
    pub prepared: Prepared,
    /// Ranks of all hosts.
    pub world: usize,
    pub threads: usize,
    /// Where the ranks meet.
    pub rendezvous: SocketAddr,
    /// Where a rank listens for its peers.
    pub bind: IpAddr,
    pub checkpoints: PathBuf,
    pub max_steps: Option<u64>,
}

impl Job {
    /// Writes the file.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), CliError> {
        let text = serde_json::to_vec_pretty(self).map_err(CliError::bug)?;
        std::fs::write(path, text)
            .map_err(|error| CliError::mistake(format!("cannot write {}: {error}", path.display())))
    }

    /// Reads the file.
    ///
    /// # Errors
    /// The file cannot be read, or is not a job of this version.
    pub fn read(path: &Path) -> Result<Job, CliError> {
        let failed = |error: &dyn std::fmt::Display| {
            CliError::mistake(format!(
                "cannot read the job {}: {error}; workers are started by `muster train`",
                path.display()
            ))
        };
        let text = std::fs::read(path).map_err(|error| failed(&error))?;
        serde_json::from_slice(&text).map_err(|error| failed(&error))
    }

    /// What all ranks must have the same: what and its digest.
    pub fn identity(&self, plan: &train::RunPlan) -> Vec<(String, String)> {
        let hex = |bytes: [u8; 32]| blake3::Hash::from(bytes).to_hex()[..16].to_owned();
        let config = serde_json::to_vec(&self.config).unwrap_or_default();
        let mut identity = vec![
            ("build".into(), train::BUILD.into()),
            ("configuration".into(), hex(*blake3::hash(&config).as_bytes())),
            ("data".into(), hex(self.prepared.digest)),
            ("model".into(), hex(plan.schema.digest())),
            ("ownership plan".into(), hex(plan.ownership.digest())),
        ];
        if !self.config.ranks.mixed_cpus {
            // Whole, so that a refusal shows in what the CPUs differ.
            identity.push(("kind of CPU".into(), kernels::gemm::arithmetic()));
        }
        identity
    }
}
