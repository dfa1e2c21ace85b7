//! The machines of a run, as a report names them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A machine that took part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Host {
    pub name: String,
    /// Ranks on it, in order.
    pub ranks: Vec<usize>,
    /// Names of their devices, one per rank, or none.
    #[serde(default)]
    pub devices: Vec<String>,
    /// The CPUs that each may use, as the kernel lists them (`0-3,8`), or none.
    #[serde(default)]
    pub cpus: Vec<String>,
}
