//! The tasks of the ranks of a benchmark.

use bench::collectives::run;
use bench::pairs;
use serde::{Deserialize, Serialize};

/// The tasks of the ranks.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(clippy::large_enum_variant)] // One exists at a time.
pub enum Task {
    Collectives(run::Plan),
    Pairs(pairs::Plan),
}

impl Task {
    /// The benchmark's.
    pub fn name(&self) -> &'static str {
        match self {
            Task::Collectives(_) => "collectives",
            Task::Pairs(_) => "links",
        }
    }
}
